//! BPF maps that CRIU does not know: a prefix tree, and a second open file of a map, for reading only.
use std::os::fd::AsRawFd;
use zoo::bpf_maps::{create, freeze, get, info, open_for_reading, put};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    // Without memory of its own for each entry, as this type must be; frozen below.
    let tree = match create([11, 8, 4, 16, 1], "zoo_tree") {
        Ok(map) => map,
        Err(e) => zoo.skip(&format!("no BPF maps here: {e}")),
    };
    let (wide, narrow) = ([8, 0, 0, 0, 10, 0, 0, 0], [24, 0, 0, 0, 10, 1, 2, 0]);
    zoo::must(put(&tree, &wide, b"wide"));
    zoo::must(put(&tree, &narrow, b"slim"));
    zoo::must(freeze(&tree));
    let list = zoo::must(create([2, 4, 4, 2, 0], "zoo_list"));
    let reader = zoo::must(open_for_reading(&list));
    let all = [&tree, &list, &reader];
    // All but the number, which the kernel gives.
    let look = || {
        all.map(|map| {
            let mut words = zoo::must(info(map));
            words[1] = 0;
            let of = |key: &str| zoo::proc::fd_info(map.as_raw_fd(), key);
            (words, of("flags"), of("frozen"))
        })
    };
    let before = look();
    let mut round = 0_u32;
    while zoo.gap() {
        zoo.eq("maps", look(), before.clone());
        let near = |last: [u8; 4]| get(&tree, &[&[32, 0, 0, 0], &last[..]].concat(), 4).ok();
        zoo.eq("the narrow prefix", near([10, 1, 2, 3]), Some(b"slim".to_vec()));
        zoo.eq("the wide prefix", near([10, 9, 9, 9]), Some(b"wide".to_vec()));
        zoo.eq("no prefix", near([11, 9, 9, 9]), None);
        zoo.ok("frozen", put(&tree, &wide, b"news").is_err());
        zoo.eq("both files are of one map", zoo::must(info(&list))[1], zoo::must(info(&reader))[1]);
        zoo.eq("what was written", get(&reader, &[0; 4], 4).ok(), Some(round.to_ne_bytes().to_vec()));
        round += 1;
        zoo.ok("the second file only reads", put(&reader, &[0; 4], &round.to_ne_bytes()).is_err());
        zoo.ok("the first writes", put(&list, &[0; 4], &round.to_ne_bytes()).is_ok());
        zoo.eq("what is read", get(&reader, &[0; 4], 4).ok(), Some(round.to_ne_bytes().to_vec()));
    }
}

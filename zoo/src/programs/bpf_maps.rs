//! BPF maps: a hash and an array with their content, a frozen one, an empty one.
use std::os::fd::AsRawFd;
use zoo::bpf_maps::{create, freeze, get, info, put, remove};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let hash = match create([1, 8, 12, 5000, 0], "zoo_hash") {
        Ok(map) => map,
        Err(e) => zoo.skip(&format!("no BPF maps here: {e}")),
    };
    let array = zoo::must(create([2, 4, 7, 16, 0], "zoo_list"));
    let empty = zoo::must(create([1, 4, 4, 16, 1], ""));
    let value = |n: u64, round: u64| [n.to_ne_bytes().as_slice(), &(round as u32).to_ne_bytes()].concat();
    for n in 0..3000_u64 {
        zoo::must(put(&hash, &n.to_ne_bytes(), &value(n, 0)));
    }
    for n in 0..16_u32 {
        zoo::must(put(&array, &n.to_ne_bytes(), &[n as u8 ^ 0x55; 7]));
    }
    zoo::must(freeze(&array));
    let all = [&hash, &array, &empty];
    // All but the number, which the kernel gives.
    let look = || {
        all.map(|map| {
            let mut words = zoo::must(info(map));
            words[1] = 0;
            let of = |key: &str| zoo::proc::fd_info(map.as_raw_fd(), key);
            (words, of("flags"), of("frozen"), of("memlock"))
        })
    };
    let before = look();
    let mut round = 0_u64;
    while zoo.gap() {
        zoo.eq("maps", look(), before.clone());
        let found = (0..3000_u64).filter(|n| get(&hash, &n.to_ne_bytes(), 12).ok() == Some(value(*n, round))).count();
        zoo.eq("entries of the hash", found, 3000);
        zoo.ok("no other", get(&hash, &3000_u64.to_ne_bytes(), 12).is_err());
        let found = (0..16_u32).filter(|n| get(&array, &n.to_ne_bytes(), 7).ok() == Some(vec![*n as u8 ^ 0x55; 7]));
        zoo.eq("entries of the array", found.count(), 16);
        zoo.ok("frozen", put(&array, &[0; 4], &[0; 7]).is_err());
        round += 1;
        for n in 0..3000_u64 {
            zoo.ok("writing", put(&hash, &n.to_ne_bytes(), &value(n, round)).is_ok());
        }
        zoo.ok("the empty one takes", put(&empty, &[1; 4], &[2; 4]).is_ok() && remove(&empty, &[1; 4]).is_ok());
    }
}

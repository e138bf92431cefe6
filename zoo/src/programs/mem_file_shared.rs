//! A shared mapping of a file: writes reach the file and come from it, before the gap and after.
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use zoo::mem::{Map, PAGE, holds};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let open = std::fs::OpenOptions::new().create(true).truncate(true).read(true).write(true).open(zoo.path("mapped"));
    let Ok(file) = open else { return };
    let done = file.set_len(4 * PAGE as u64);
    zoo.get("set_len", done);
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let mut map = Map::new(4 * PAGE, prot, libc::MAP_SHARED, Some((file.as_fd(), 0)));
    loop {
        let seed = u64::from(zoo.round());
        map.fill(seed);
        let on = zoo.gap();
        let mut read = vec![0; 4 * PAGE];
        zoo.ok("the file has what was mapped", file.read_exact_at(&mut read, 0).is_ok() && holds(&read, seed));
        map.fill(seed + 50);
        zoo.ok("a write to memory", file.read_exact_at(&mut read, 0).is_ok() && holds(&read, seed + 50));
        zoo.ok("a write to the file", file.write_all_at(b"seen", 9).is_ok() && &map.bytes()[9..13] == b"seen");
        if !on {
            return;
        }
    }
}

//! Shared memory from /dev/zero, which the kernel keeps in a file without a name.
use std::os::fd::AsFd;
use zoo::mem::{Map, PAGE};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let Ok(zero) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/zero") else { return };
    let (prot, file) = (libc::PROT_READ | libc::PROT_WRITE, Some((zero.as_fd(), 0)));
    let mut map = Map::new(8 * PAGE, prot, libc::MAP_SHARED, file);
    map.fill(5);
    while zoo.gap() {
        let seed = 4 + u64::from(zoo.round());
        zoo.ok("content", map.holds(seed));
        map.fill(seed + 1);
    }
}

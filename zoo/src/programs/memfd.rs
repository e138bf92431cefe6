//! A file in memory: content, name, seals; and a mapping of it.
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use zoo::mem::{Map, PAGE, holds};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let Ok(fd) = memfd_create("zoo memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING) else { return };
    let mut file = std::fs::File::from(fd);
    let mut bytes = vec![0; 4 * PAGE];
    zoo::mem::fill(&mut bytes, 8);
    zoo.ok("write", file.write_all(&bytes).is_ok());
    let seals = SealFlags::SHRINK | SealFlags::GROW;
    let sealed = fcntl_add_seals(&file, seals);
    zoo.get("seal", sealed);
    let mut map = Map::new(4 * PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, Some((file.as_fd(), 0)));
    // A program in memory: nothing that is open for writing can be executed, and what made it does not count as that.
    let program = std::fs::File::from(zoo::must(memfd_create("program", MemfdFlags::CLOEXEC)));
    zoo.ok("program", std::fs::read("/bin/true").is_ok_and(|bytes| (&program).write_all(&bytes).is_ok()));
    let runs = || std::process::Command::new(format!("/proc/self/fd/{}", program.as_raw_fd())).status();
    zoo.ok("it runs", runs().is_ok_and(|s| s.success()));
    let mut seed = 8;
    while zoo.gap() {
        zoo.eq("name", zoo::proc::fd_link(file.as_raw_fd()), "/memfd:zoo memory (deleted)".to_owned());
        zoo.eq("seals", fcntl_get_seals(&file), Ok(seals));
        let mut got = vec![0; 4 * PAGE];
        let read = std::os::unix::fs::FileExt::read_exact_at(&file, &mut got, 0);
        zoo.ok("content", read.is_ok() && holds(&got, seed));
        zoo.eq("it runs", runs().map(|s| s.code()).map_err(|e| e.to_string()), Ok(Some(0)));
        seed += 1;
        map.fill(seed);
    }
}

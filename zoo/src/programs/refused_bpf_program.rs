//! A BPF program, and a map that it uses.
use std::os::fd::AsRawFd;
use zoo::bpf_maps::{create, get, program, put};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let map = match create([2, 4, 4, 1, 0], "zoo_used") {
        Ok(map) => map,
        Err(e) => zoo.skip(&format!("no BPF maps here: {e}")),
    };
    let program = match program(&map) {
        Ok(program) => program,
        Err(e) => zoo.skip(&format!("no BPF programs here: {e}")),
    };
    zoo::must(put(&map, &[0; 4], &[7; 4]));
    let (pid, a, b) = (zoo::sys::getpid(), map.as_raw_fd(), program.as_raw_fd());
    zoo.tell(
        "names",
        &format!("task {pid}\nfd {a}\nzoo_used\nis used by a loaded program|BPF map type\nfd {b}\nbpf-prog"),
    );
    while zoo.gap() {
        zoo.eq("the map", get(&map, &[0; 4], 4).ok(), Some(vec![7; 4]));
    }
}

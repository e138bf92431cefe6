//! A process whose main thread has ended while others live on: two threads with a pipe, memory, and a child of their own.
#![allow(unsafe_code, reason = "ends the main thread alone")]
use std::io::{Read, Write};

/// What the process would end with if its threads ended one by one.
const CODE: i32 = 5;

fn ended(pid: i32) -> bool {
    zoo::proc::shape(pid).is_ok_and(|s| s.state == 'Z')
}

/// The wait status in the last field of the leader's stat file.
fn exit_code() -> Option<i32> {
    std::fs::read_to_string("/proc/self/stat").ok()?.split_whitespace().last()?.parse().ok()
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(rustix::thread::set_name(c"the leader"));
    let pid = zoo::sys::getpid();
    std::thread::spawn(move || {
        while !ended(pid) {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        zoo.fork("child", move |mut zoo| {
            while zoo.gap() {
                zoo.eq("parent", zoo::proc::shape(zoo::sys::getpid()).map_or(0, |s| s.ppid), pid);
            }
        });
        zoo.thread("second", |seat| while seat.gap() {});
        let (mut from, mut to) = zoo::must(std::io::pipe());
        let heap = vec![7_u8; 100_000];
        zoo::must(to.write_all(b"in the pipe"));
        while zoo.gap() {
            let shape = zoo::must(zoo::proc::shape(pid));
            zoo.eq(
                "leader, threads, name",
                (shape.state, shape.tids.len(), shape.comm),
                ('Z', 3, "the leader".to_owned()),
            );
            zoo.eq("wait status of the leader", exit_code(), Some(CODE << 8));
            zoo.ok("heap", heap.iter().all(|&b| b == 7));
            let mut text = [0; 11];
            zoo::must(from.read_exact(&mut text));
            zoo.eq("pipe", &text, b"in the pipe");
            zoo::must(to.write_all(b"in the pipe"));
        }
        std::process::exit(0);
    });
    // SAFETY: ends this thread; the process lives as long as the others.
    unsafe { libc::syscall(libc::SYS_exit, CODE) };
}

//! Refused: an io_uring with a thread in the kernel that polls it, which shows among the process's threads.
#![allow(unsafe_code, reason = "io_uring_setup has no safe wrapper")]
use std::time::{Duration, Instant};

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

pub(super) fn main() {
    const IORING_SETUP_SQPOLL: u32 = 2;
    let mut zoo = zoo::Zoo::start();
    let before = threads();
    let mut params = [0_u32; 30];
    params[2] = IORING_SETUP_SQPOLL;
    // Milliseconds until it sleeps for want of work.
    params[4] = 1;
    // SAFETY: the kernel fills the 120 bytes of io_uring_params.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) };
    if fd < 0 {
        zoo.skip("this kernel gives no polled io_uring");
    }
    let end = Instant::now() + Duration::from_secs(60);
    while threads() == before && Instant::now() < end {
        std::thread::yield_now();
    }
    zoo.ok("its thread is there", threads() == before + 1);
    zoo.tell("names", &format!("task {}\nio_uring", zoo::sys::getpid()));
    while zoo.gap() {
        zoo.eq("threads", threads(), before + 1);
    }
}

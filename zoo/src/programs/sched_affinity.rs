//! Processors that each thread may use, and its I/O priority.
#![allow(unsafe_code, reason = "ioprio has no wrapper")]
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Class and level of this thread's I/O priority.
fn ioprio() -> i64 {
    // SAFETY: numbers only; 1 is IOPRIO_WHO_PROCESS.
    unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) }
}

/// Pins this thread to one processor of those it may use.
fn pin(n: usize) {
    let all = zoo::must(sched_getaffinity(None));
    let usable: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu)).collect();
    let mut one = CpuSet::new();
    one.set(usable[n % usable.len()]);
    zoo::must(sched_setaffinity(None, &one));
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    for i in 0..4 {
        zoo.thread(&i.to_string(), move |seat| {
            pin(i);
            // SAFETY: numbers only; class "best effort", a level of its own.
            unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, (2 << 13) | i) };
            let look = || (sched_getaffinity(None), ioprio());
            let before = look();
            while seat.gap() {
                seat.eq("affinity, I/O priority", look(), before);
            }
        });
    }
    while zoo.gap() {}
}

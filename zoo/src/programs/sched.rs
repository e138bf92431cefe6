//! Scheduling of each thread: nice value, policy, priority, affinity; and the I/O priority.
#![allow(unsafe_code, reason = "ioprio has no wrapper")]
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use zoo::sys::{SchedAttr, sched_attr, set_sched_attr};

const RESET_ON_FORK: u64 = 1;

/// Class and level of this thread's I/O priority.
fn ioprio() -> i64 {
    // SAFETY: numbers only; 1 is IOPRIO_WHO_PROCESS.
    unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) }
}

/// Pins this thread to one processor of those it may use.
fn pin(n: usize) {
    let all = sched_getaffinity(None).unwrap_or_default();
    let mut one = CpuSet::new();
    (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu)).cycle().nth(n).into_iter().for_each(|cpu| one.set(cpu));
    zoo::must(sched_setaffinity(None, &one));
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let attrs = [
        SchedAttr { policy: 3, nice: 3, ..Default::default() },
        SchedAttr { policy: 5, nice: 19, ..Default::default() },
        SchedAttr { policy: 0, nice: -4, flags: RESET_ON_FORK, ..Default::default() },
        SchedAttr { policy: 1, priority: 7, ..Default::default() },
        SchedAttr { policy: 2, priority: 9, flags: RESET_ON_FORK, ..Default::default() },
    ];
    for (i, attr) in attrs.into_iter().enumerate() {
        zoo.thread(&i.to_string(), move |seat| {
            let set = set_sched_attr(attr);
            if i % 2 == 0 {
                pin(i / 2);
            }
            // SAFETY: numbers only; class "best effort", a level of its own.
            unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, (2 << 13) | i) };
            let look = || (sched_attr(), sched_getaffinity(None), ioprio());
            let before = look();
            // A group without real-time bandwidth refuses FIFO and RR: then the thread stays what it was.
            seat.ok("set", set.is_ok() || attr.priority > 0);
            while seat.gap() {
                seat.eq("attributes, affinity, ioprio", look(), before);
            }
        });
    }
    rustix::process::nice(4).unwrap_or_default();
    while zoo.gap() {
        zoo.eq("nice", sched_attr().nice, 4);
    }
}

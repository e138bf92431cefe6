//! Thousands of what the kernel lets a process have many of: waiting signals, timers, groups. A restore plans for each.
use rustix::thread::set_thread_groups;
use std::time::Duration;
use zoo::sys::{Notify, SigInfo, bit, getpid, queue, set_mask, take_signal, timer_create};

const SIGNALS: u64 = 4000;
const TIMERS: u64 = 1000;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let groups: Vec<_> = (1..=60_000).map(rustix::fs::Gid::from_raw).collect();
    zoo.ok("groups", set_thread_groups(&groups).is_ok());
    for value in 0..TIMERS {
        let timer = timer_create(libc::CLOCK_MONOTONIC, &Notify { value, signo: libc::SIGUSR1, ..Notify::default() });
        zoo.ok("timer", timer.is_ok());
    }
    let timers = || std::fs::read_to_string("/proc/self/timers").unwrap_or_default();
    let made = timers();
    set_mask(bit(40));
    let mut on = true;
    while on {
        for value in 0..SIGNALS {
            zoo.ok("queued", queue(None, 40, value).is_ok());
        }
        on = zoo.gap();
        let next = || take_signal(bit(40), Duration::ZERO);
        let got: Vec<SigInfo> = std::iter::from_fn(next).collect();
        zoo.ok("senders", got.iter().all(|i| (i.signo, i.code, i.pid) == (40, libc::SI_QUEUE, getpid())));
        zoo.ok("signals", got.iter().map(|i| i.value).eq(0..SIGNALS));
        zoo.eq("groups", rustix::process::getgroups().ok(), Some(groups.clone()));
        zoo.ok("timers", timers() == made);
    }
}

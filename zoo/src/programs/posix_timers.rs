//! POSIX timers with gaps between their ids: way of telling, value, clock, time left, interval.
use std::time::Duration;
use zoo::sys::{Notify, timer_create, timer_delete, timer_get, timer_set};

fn list() -> String {
    std::fs::read_to_string("/proc/self/timers").unwrap_or_default()
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (mut timers, mut spare) = (Vec::new(), Vec::new());
    for i in 0..8_u64 {
        let how = if i == 3 { libc::SIGEV_NONE } else { libc::SIGEV_SIGNAL };
        let notify = Notify { value: 0xdead_0000 + i, signo: libc::SIGUSR1, how, ..Notify::default() };
        let clock = [libc::CLOCK_MONOTONIC, libc::CLOCK_REALTIME, libc::CLOCK_BOOTTIME][i as usize % 3];
        match timer_create(clock, &notify) {
            Ok(id) if i % 3 == 1 => spare.push(id),
            Ok(id) => timers.push((id, Duration::from_secs(5000 + i), Duration::from_millis(i * 7001))),
            Err(e) => zoo.skip(&format!("timer_create: {e}")),
        }
    }
    spare.into_iter().for_each(timer_delete);
    for &(id, value, interval) in &timers {
        zoo.ok("armed", timer_set(id, value, interval).is_ok());
    }
    let before = list();
    while zoo.gap() {
        zoo.eq("/proc/self/timers", list(), before.clone());
        for &(id, value, interval) in &timers {
            let (left, every) = zoo.get("timer_gettime", timer_get(id));
            zoo.eq(&format!("interval of timer {id}"), every, interval);
            let near = left <= value && left + Duration::from_secs(600) > value;
            zoo.ok(&format!("timer {id}: {left:?} of {value:?} left"), near);
        }
    }
}

//! POSIX timers that tell one thread each (`SIGEV_THREAD_ID`), disarmed through the gap and fired after it.
use std::time::Duration;
use zoo::sys::{Notify, bit, gettid, set_mask, take_signal, timer_create, timer_set};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    set_mask(bit(40));
    for i in 0..3_u64 {
        zoo.thread(&i.to_string(), move |seat| {
            let how = libc::SIGEV_THREAD_ID;
            let notify = Notify { value: 0x1_0000_0000 + i, signo: 40, how, tid: gettid(), ..Notify::default() };
            let timer = timer_create(libc::CLOCK_MONOTONIC, &notify);
            while seat.gap() {
                let timer = timer.as_ref().copied().unwrap_or(-1);
                let armed = timer_set(timer, Duration::from_millis(1), Duration::ZERO);
                seat.ok("armed", armed.is_ok());
                let got = take_signal(bit(40), Duration::from_secs(10)).map(|s| (s.code, s.pid, s.value));
                seat.eq("its signal", got, Some((libc::SI_TIMER, timer, 0x1_0000_0000 + i)));
            }
        });
    }
    while zoo.gap() {}
}

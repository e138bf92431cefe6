//! Signals that wait for one thread each, with senders and values.
use std::time::Duration;
use zoo::sys::{bit, gettid, queue, set_mask, take_signal, tgkill};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mask = bit(libc::SIGUSR2) | bit(35);
    set_mask(mask);
    for i in 0..4_u64 {
        zoo.thread(&i.to_string(), move |seat| {
            let mut round = 0;
            loop {
                round += 1;
                for n in 0..=i {
                    seat.ok("queued", queue(Some(gettid()), 35, round * 100 + n).is_ok());
                }
                seat.ok("sent", tgkill(gettid(), libc::SIGUSR2).is_ok());
                if !seat.gap() {
                    return;
                }
                let usr2 = take_signal(bit(libc::SIGUSR2), Duration::ZERO).map(|s| s.code);
                seat.eq("thread-directed signal", usr2, Some(libc::SI_TKILL));
                for n in 0..=i {
                    let got = take_signal(mask, Duration::ZERO).map(|s| (s.signo, s.code, s.value));
                    seat.eq("queued signal", got, Some((35, libc::SI_QUEUE, round * 100 + n)));
                }
                seat.eq("one more", take_signal(mask, Duration::ZERO), None);
            }
        });
    }
    while zoo.gap() {
        zoo.eq("the main thread has none", take_signal(mask, Duration::ZERO), None);
    }
}

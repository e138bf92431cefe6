//! Signals that wait for the whole process: order, senders and values of the real-time queue.
use std::time::Duration;
use zoo::sys::{SigInfo, bit, getpid, kill, queue, set_mask, take_signal};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mask = bit(libc::SIGUSR1) | bit(34) | bit(36) | bit(64);
    set_mask(mask);
    let info = |signo, value| SigInfo { signo, code: libc::SI_QUEUE, pid: getpid(), uid: 0, value };
    let mut on = true;
    while on {
        let first = u64::from(zoo.round()) << 33;
        let queued: Vec<SigInfo> =
            [(64, 9), (36, 1), (34, 3), (34, 2), (34, 1)].map(|(n, v)| info(n, first + v)).into();
        for i in &queued {
            zoo.ok("queued", queue(None, i.signo, i.value).is_ok());
        }
        zoo.ok("sent", kill(getpid(), libc::SIGUSR1).is_ok());
        on = zoo.gap();
        let mut want = vec![SigInfo { code: libc::SI_USER, ..info(libc::SIGUSR1, 0) }];
        want.extend([2, 3, 4, 1, 0].map(|i: usize| queued[i]));
        let mut got = Vec::new();
        while let Some(mut i) = take_signal(mask, Duration::ZERO) {
            if i.code == libc::SI_USER {
                i.value = 0;
            }
            got.push(i);
        }
        zoo.eq("signals", got, want);
    }
}

//! Signals that do what the kernel does by default, in a process whose memory is filled by several threads at a restore.
#![allow(unsafe_code, reason = "actions are set by number")]
use zoo::sys::{RawAction, action, set_action};

const MIB: usize = 1 << 20;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let memory: Vec<u8> = (0..8 * MIB).map(|i| (i / 4096 % 251) as u8).collect();
    // The last two are those that C libraries take for themselves as soon as they make a thread.
    let signals = [libc::SIGINT, libc::SIGTERM, libc::SIGUSR1, 64, 32, 33];
    for n in signals {
        // SAFETY: the default action runs no code of this program, which has but one thread.
        unsafe { set_action(n, RawAction::default()) };
    }
    while zoo.gap() {
        for n in signals {
            zoo.eq(&format!("signal {n}"), action(n), RawAction::default());
        }
        zoo.ok("memory", memory.iter().enumerate().all(|(i, &b)| b == (i / 4096 % 251) as u8));
    }
}

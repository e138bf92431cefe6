//! Actions of all signals with every field: handler, flags, restorer, mask.
#![allow(unsafe_code, reason = "actions with made-up addresses")]
use zoo::sys::{RawAction, action, set_action};

const RESTORER: u64 = 0x0400_0000;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let flags = [libc::SA_SIGINFO, libc::SA_RESTART, libc::SA_NODEFER, libc::SA_ONSTACK, libc::SA_NOCLDWAIT];
    let signals: Vec<i32> = (1..=64).filter(|&n| n != libc::SIGKILL && n != libc::SIGSTOP).collect();
    while {
        for &n in &signals {
            let seed = n.unsigned_abs() + zoo.round() * 64;
            let handler = if seed.is_multiple_of(5) { 1 } else { 0x1000_0000 + u64::from(seed) * 16 };
            let flags = u64::from(flags[seed as usize % flags.len()].unsigned_abs()) | RESTORER;
            let mask = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            // SAFETY: nobody sends this program a signal; SIGCHLD too, for it has no children.
            unsafe { set_action(n, RawAction { handler, flags, restorer: 0x2000_0000 + u64::from(seed), mask }) };
        }
        let before: Vec<RawAction> = signals.iter().map(|&n| action(n)).collect();
        let on = zoo.gap();
        for (&n, before) in signals.iter().zip(before) {
            zoo.eq(&format!("signal {n}"), action(n), before);
        }
        on
    } {}
}

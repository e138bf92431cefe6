//! A signal mask of its own in every thread.
use zoo::sys::{ALL_SIGNALS, bit, mask, set_mask};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let unblockable = bit(libc::SIGKILL) | bit(libc::SIGSTOP);
    for (i, want) in [0, ALL_SIGNALS, 0x5555_5555_5555_5555, bit(64), bit(34) | bit(2)].into_iter().enumerate() {
        zoo.thread(&i.to_string(), move |seat| {
            set_mask(want);
            while seat.gap() {
                seat.eq("mask", mask(), want & !unblockable);
            }
        });
    }
    set_mask(bit(libc::SIGTERM) | bit(40));
    while zoo.gap() {
        zoo.eq("mask", mask(), bit(libc::SIGTERM) | bit(40));
    }
}

//! A thread blocked in a plain futex wait, called directly: a return without a wake would be seen.
use rustix::thread::futex::{Flags, wait, wake};
use std::sync::atomic::AtomicU32;

static WORD: AtomicU32 = AtomicU32::new(0);

pub(super) fn main() {
    let call = || wait(&WORD, Flags::PRIVATE, 0, None).map(|()| 7);
    zoo::sys::blocked(call, || while wake(&WORD, Flags::PRIVATE, 1) == Ok(0) {}, 7);
}

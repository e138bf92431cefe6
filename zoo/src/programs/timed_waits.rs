//! Threads in one wait with a time limit after the other: poll, nanosleep without a place for the rest, futexes with a relative and an
//! absolute time. None is interrupted and none is too short.
#![allow(unsafe_code, reason = "raw calls: the C library hides interruptions of some")]
use zoo::sys::{TimedWait, timed_waits};

const MS: i64 = 300;

fn timespec(ms: i64) -> libc::timespec {
    libc::timespec { tv_sec: ms / 1000, tv_nsec: ms % 1000 * 1_000_000 }
}

pub(super) fn main() {
    let word = 0_u32;
    // SAFETY: no descriptors, so no array of them is read.
    let poll = || unsafe { libc::syscall(libc::SYS_poll, 0, 0, MS) };
    // SAFETY: the request lives to the end of the statement; no place for the rest is given.
    let sleep = || unsafe { libc::syscall(libc::SYS_nanosleep, &raw const *Box::new(timespec(MS)), 0) };
    let relative = || {
        let time = timespec(MS);
        // SAFETY: the word and the time are live through the call. 128: private.
        unsafe { libc::syscall(libc::SYS_futex, &raw const word, 128, 0, &raw const time, 0, 0) }
    };
    let absolute = || {
        let mut end = timespec(0);
        // SAFETY: the word and the time are live through the calls. 9: FUTEX_WAIT_BITSET.
        unsafe {
            libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut end);
            end.tv_nsec += MS * 1_000_000;
            (end.tv_sec, end.tv_nsec) = (end.tv_sec + end.tv_nsec / 1_000_000_000, end.tv_nsec % 1_000_000_000);
            libc::syscall(libc::SYS_futex, &raw const word, 128 | 9, 0, &raw const end, 0, u32::MAX)
        }
    };
    let calls: [(&str, &(dyn Fn() -> i64 + Sync)); 4] =
        [("poll", &poll), ("nanosleep", &sleep), ("futex, relative", &relative), ("futex, absolute", &absolute)];
    timed_waits(calls.map(|(name, call)| TimedWait { name, call }), MS);
}

//! Threads whose waits are half over: poll, nanosleep with and without a place for the rest, a futex, pselect, ppoll, epoll. Each
//! ends when it would have, neither at once nor after its whole time again.
#![allow(unsafe_code, reason = "raw calls: the C library hides interruptions of some")]
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

const WHOLE: Duration = Duration::from_secs(6);
/// Slept before the gap.
const BEFORE: Duration = Duration::from_secs(4);

fn timespec() -> libc::timespec {
    libc::timespec { tv_sec: WHOLE.as_secs() as i64, tv_nsec: 0 }
}

fn poll() -> i64 {
    // SAFETY: no descriptors, so no array of them is read.
    unsafe { libc::syscall(libc::SYS_poll, 0, 0, WHOLE.as_millis() as i64) }
}

fn sleep() -> i64 {
    // SAFETY: the request lives to the end of the statement; no place for the rest is given.
    unsafe { libc::syscall(libc::SYS_nanosleep, &raw const *Box::new(timespec()), 0) }
}

fn sleep_with_rest() -> i64 {
    let (request, mut rest) = (timespec(), timespec());
    // SAFETY: both live through the call.
    unsafe { libc::syscall(libc::SYS_clock_nanosleep, 1, 0, &raw const request, &raw mut rest) }
}

fn futex() -> i64 {
    let (word, time) = (0_u32, timespec());
    // SAFETY: the word and the time live through the call. 128: private.
    unsafe { libc::syscall(libc::SYS_futex, &raw const word, 128, 0, &raw const time, 0, 0) }
}

fn select() -> i64 {
    let mut time = timespec();
    // SAFETY: no sets; the time lives through the call.
    unsafe { libc::syscall(libc::SYS_pselect6, 0, 0, 0, 0, &raw mut time, 0) }
}

fn ppoll() -> i64 {
    let mut time = timespec();
    // SAFETY: no descriptors; the time lives through the call.
    unsafe { libc::syscall(libc::SYS_ppoll, 0, 0, &raw mut time, 0, 8) }
}

/// The limit is the fourth argument, and no signal mask is given.
fn epoll(nr: i64) -> i64 {
    let Ok(epoll) = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC) else { return -1 };
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: the room for one event lives through the call.
    unsafe { libc::syscall(nr, epoll.as_raw_fd(), &raw mut event, 1, WHOLE.as_millis() as i32, 0, 8) }
}

type Wait = (&'static str, fn() -> i64);

const WAITS: [Wait; 8] = [
    ("poll", poll),
    ("nanosleep", sleep),
    ("clock_nanosleep with a place for the rest", sleep_with_rest),
    ("futex", futex),
    ("pselect", select),
    ("ppoll", ppoll),
    ("epoll_wait", || epoll(libc::SYS_epoll_wait)),
    ("epoll_pwait", || epoll(libc::SYS_epoll_pwait)),
];

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    loop {
        let (begun, faults) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for (name, call) in WAITS {
                let (begun, faults) = (&begun, &faults);
                scope.spawn(move || {
                    let from = Instant::now();
                    begun.fetch_add(1, SeqCst);
                    let got = call();
                    let errno = std::io::Error::last_os_error().raw_os_error();
                    let took = from.elapsed();
                    // The whole time again would be BEFORE too long.
                    let ended = got == 0 || errno == Some(libc::ETIMEDOUT);
                    if !ended || took < WHOLE || took > WHOLE + BEFORE.mul_f32(0.8) {
                        let fault = format!("{name} returned {got}, errno {errno:?} after {took:?}");
                        faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(fault);
                    }
                });
            }
            let from = Instant::now();
            while begun.load(SeqCst) < WAITS.len() || from.elapsed() < BEFORE {
                std::thread::sleep(Duration::from_millis(10));
            }
            if !zoo.gap() {
                // Nobody waits for the rest.
                std::process::exit(0);
            }
        });
        zoo.eq("waits that did not end in time", faults.into_inner().unwrap_or_default(), Vec::<String>::new());
    }
}

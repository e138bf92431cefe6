//! A stopped child in pause(2) for which a signal with a handler waits: when it goes on the handler runs, and pause has to end.
#![allow(unsafe_code, reason = "pause has no wrapper")]
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use zoo::sys::kill;

static HANDLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    HANDLED.fetch_add(1, SeqCst);
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (mut from_child, mut to_parent) = zoo::must(std::io::pipe());
    let child = zoo::sys::fork(|| {
        zoo::sys::handle(libc::SIGUSR1, libc::SA_RESTART, count);
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::syscall(libc::SYS_pause) };
            zoo::must(to_parent.write_all(&[HANDLED.load(SeqCst) as u8]));
        }
    });
    let is = |want: char, call: &str| {
        (0..12000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let now = std::fs::read_to_string(format!("/proc/{child}/syscall")).unwrap_or_default();
            zoo::proc::shape(child).is_ok_and(|s| s.state == want) && now.starts_with(call)
        })
    };
    let settle = || {
        let paused = is('-', &format!("{} ", libc::SYS_pause));
        let stopped = kill(child, libc::SIGSTOP).is_ok() && is('T', "");
        paused && stopped && kill(child, libc::SIGUSR1).is_ok()
    };
    zoo.ok("it waits, stopped, with a signal", settle());
    while zoo.gap() {
        let n = zoo.round() as u8;
        zoo.ok("SIGCONT", kill(child, libc::SIGCONT).is_ok());
        let in_time = zoo::sys::readable(&from_child, std::time::Duration::from_secs(60));
        zoo.ok("pause ends", in_time.is_ok_and(|ready| ready));
        let mut byte = [0];
        let read = from_child.read_exact(&mut byte);
        zoo.get("its byte", read);
        zoo.eq("signals handled", byte[0], n);
        zoo.ok("it waits again", settle());
    }
    zoo::must(kill(child, libc::SIGKILL));
}

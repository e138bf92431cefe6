//! Two threads with syscall user dispatch, each with a selector of its own: calls are sent to the thread as SIGSYS while the
//! selector says so, and made otherwise.
#![allow(unsafe_code, reason = "a system call that is not made, and the signal that comes instead")]
use std::cell::Cell;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;
const ON: u64 = 1;
const ALLOW: u8 = 0;
const BLOCK: u8 = 1;

thread_local! {
    static SELECTOR: AtomicU8 = const { AtomicU8::new(ALLOW) };
    static SENT: Cell<u32> = const { Cell::new(0) };
}

/// Runs on the thread that made the call.
extern "C" fn sent(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    SELECTOR.with(|s| s.store(ALLOW, SeqCst));
    SENT.set(SENT.get() + 1);
}

fn on() -> bool {
    let selector = SELECTOR.with(|s| s.as_ptr() as u64);
    zoo::sys::prctl(PR_SET_SYSCALL_USER_DISPATCH, [ON, 0, 0, selector]).is_ok()
}

/// How many signals a call caused while calls are sent, and what it returned: its own number, for it was not made.
fn call() -> (u32, i64) {
    let before = SENT.get();
    // Both are there before calls are sent: making them takes calls.
    let selector = SELECTOR.with(|s| s.as_ptr());
    // SAFETY: the selector is this thread's own atomic byte, which lives as long as the thread; the call takes nothing.
    let got = unsafe {
        AtomicU8::from_ptr(selector).store(BLOCK, SeqCst);
        libc::syscall(libc::SYS_getppid)
    };
    (SENT.get() - before, got)
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::sys::handle(libc::SIGSYS, libc::SA_SIGINFO, sent);
    if !on() {
        zoo.skip("this kernel has no syscall user dispatch");
    }
    zoo.thread("with its own", |seat| {
        seat.ok("dispatch of the thread", on());
        while seat.gap() {
            seat.eq("a thread's call", call(), (1, libc::SYS_getppid));
        }
    });
    while zoo.gap() {
        zoo.eq("a call", call(), (1, libc::SYS_getppid));
        zoo.ok("calls are made otherwise", rustix::process::getppid().is_some());
    }
}

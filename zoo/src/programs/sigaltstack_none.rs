//! A handler that would use an alternate stack in threads that have none, as Python's do.
use std::sync::atomic::{AtomicU32, Ordering};
use zoo::sys::{altstack, gettid, handle, no_altstack, tgkill};

static HANDLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_signal(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

/// The handler runs here, in this thread.
fn handled() -> bool {
    let before = HANDLED.load(Ordering::SeqCst);
    tgkill(gettid(), libc::SIGUSR1).is_ok() && HANDLED.load(Ordering::SeqCst) == before + 1
}

pub(super) fn main() {
    no_altstack();
    handle(libc::SIGUSR1, libc::SA_ONSTACK, on_signal);
    let (ask, asked) = std::sync::mpsc::channel();
    let (answer, answered) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        no_altstack();
        while asked.recv().is_ok() {
            let seen = (altstack(), handled());
            if answer.send(seen).is_err() {
                return;
            }
        }
    });
    let none = (0, libc::SS_DISABLE, 0);
    let mut zoo = zoo::Zoo::start();
    // Ready only when the thread has settled: its start changes the address space and its mask.
    for _ in 0..2 {
        zoo.ok("asked at first", ask.send(()).is_ok());
        zoo.eq("other thread at first", answered.recv(), Ok((none, true)));
    }
    while zoo.gap() {
        zoo.eq("first thread: alternate stack", altstack(), none);
        zoo.ok("first thread: handled", handled());
        zoo.ok("asked", ask.send(()).is_ok());
        zoo.eq("other thread: alternate stack, handled", answered.recv(), Ok((none, true)));
    }
}

//! Refused: a directory whose changes are signalled.
use rustix::fs::{Mode, OFlags};
use std::os::fd::AsRawFd;

/// `F_NOTIFY`, and what it is to tell: files created, always again.
const F_NOTIFY: i32 = 1026;
const DN_CREATE_ALWAYS: i32 = 4 | i32::MIN;

extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    // Each file of the harness is one.
    zoo::sys::handle(libc::SIGIO, libc::SA_RESTART, nothing);
    let dir = zoo::must(rustix::fs::open(".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()));
    if zoo::calls::fcntl(&dir, F_NOTIFY, DN_CREATE_ALWAYS).is_err() {
        zoo.skip("this kernel has no F_NOTIFY");
    }
    zoo.tell("names", &format!("task {}\nfd {}\nF_NOTIFY", zoo::sys::getpid(), dir.as_raw_fd()));
    while zoo.gap() {
        zoo.ok("it runs on", true);
    }
}

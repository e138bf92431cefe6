//! Refused: a descriptor for a thread that leads no process (PIDFD_THREAD).
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::AsRawFd;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (tell, hear) = std::sync::mpsc::channel();
    // It lives as long as the process.
    std::thread::spawn(move || {
        tell.send(rustix::thread::gettid()).unwrap_or_default();
        loop {
            std::thread::park();
        }
    });
    let thread: Pid = zoo::must(hear.recv());
    // PIDFD_THREAD is O_EXCL.
    let fd = match pidfd_open(thread, PidfdFlags::from_bits_retain(libc::O_EXCL.cast_unsigned())) {
        Ok(fd) => fd,
        Err(e) => zoo.skip(&format!("no descriptors for threads here: {e}")),
    };
    super::hold_refused(&mut zoo, fd.as_raw_fd().into(), "belongs to thread|not a part of process tree");
}

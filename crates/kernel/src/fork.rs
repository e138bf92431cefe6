//! fork(2) for a process with one thread, and the daemon's way into the background.
#![allow(unsafe_code, reason = "fork(2) has no safe wrapper: only a single-threaded process may go on freely after it")]
use crate::HostTid;
use std::io;

/// Which side of the fork we are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The caller goes on; the child has this id.
    Parent(HostTid),
    /// The new process. It must leave by `std::process::exit` or exec, never by returning into the caller's loop.
    Child,
}

/// Duplicates the calling process.
///
/// # Errors
/// `EBUSY` if other threads exist (their locks would stay locked in the child for ever), else what fork(2) says.
pub fn fork() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: this is the only thread of the process, checked just above and unable to change without us running,
    // so no lock of the allocator, of std or of anybody else can be held by a thread that is missing in the child.
    match unsafe { libc::fork() } {
        0 => Ok(Fork::Child),
        pid => HostTid::new(pid).map(Fork::Parent).ok_or_else(io::Error::last_os_error),
    }
}

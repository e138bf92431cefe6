//! fork(2) for a process with one thread: into the background, and with an id and sharing of the caller's choice.
#![allow(unsafe_code, reason = "fork(2) has no safe wrapper: only a single-threaded process may go on freely after it")]
use crate::process::CloneArgs;
use crate::{HostTid, NsTid};
use rustix::io::{Errno, Result};
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

/// Forks; with `tid` the child gets exactly this id in our own pid namespace. `flags` may hold CLONE_FILES, CLONE_FS,
/// CLONE_PARENT and namespace flags, not CLONE_VM.
///
/// # Errors
/// `EEXIST` if the id is taken, `EPERM` without CAP_CHECKPOINT_RESTORE (or CAP_SYS_ADMIN) over the pid namespace,
/// `EINVAL` with CLONE_VM.
///
/// # Safety
/// The process must be single-threaded: the child continues with a copy of this thread alone, and a lock that another
/// thread held would stay locked there for ever.
pub unsafe fn fork_as(tid: Option<NsTid>, flags: u64) -> Result<Fork> {
    if flags & libc::CLONE_VM as u64 != 0 {
        return Err(Errno::INVAL);
    }
    let set_tid = [tid.map_or(0, NsTid::as_raw)];
    let mut args = CloneArgs { flags, exit_signal: libc::SIGCHLD as u64, ..Default::default() };
    if flags & libc::CLONE_PARENT as u64 != 0 {
        args.exit_signal = 0;
    }
    if tid.is_some() {
        args.set_tid = set_tid.as_ptr() as u64;
        args.set_tid_size = 1;
    }
    // SAFETY: `args` and `set_tid` live over the call. Without CLONE_VM the child has its own copy of this stack, so
    // returning in it is a fork; the caller vouches for being single-threaded.
    let ret = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match ret {
        0 => Ok(Fork::Child),
        pid if pid > 0 => HostTid::new(pid as i32).map(Fork::Parent).ok_or(Errno::INVAL),
        _ => Err(Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))),
    }
}

//! Leases of files: fcntl(2) F_SETLEASE and F_GETLEASE.
#![allow(unsafe_code, reason = "fcntl's lease calls are in no safe wrapper")]
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd};

fn fcntl(fd: impl AsFd, op: i32, arg: i32) -> Result<i32> {
    // SAFETY: both operations take a plain number, and `fd` is open for the call.
    let ret = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), op, arg) };
    if ret < 0 { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)) } else { Ok(ret) }
}

/// The lease of an open file: F_RDLCK, F_WRLCK or F_UNLCK; of one that is being broken, what it is to become.
///
/// # Errors
/// `EBADF` for an `O_PATH` descriptor.
pub fn get(fd: impl AsFd) -> Result<i32> {
    fcntl(fd, libc::F_GETLEASE, 0)
}

/// Takes a lease, F_RDLCK or F_WRLCK.
///
/// # Errors
/// `EAGAIN` if others have the file open, `EACCES` if it belongs to another user (without CAP_LEASE).
pub fn set(fd: impl AsFd, kind: i32) -> Result<()> {
    fcntl(fd, libc::F_SETLEASE, kind).map(drop)
}

/// Takes the owner of a file's signals away, so that nobody gets any.
///
/// # Errors
/// `EBADF` for an `O_PATH` descriptor.
pub fn disown(fd: impl AsFd) -> Result<()> {
    fcntl(fd, libc::F_SETOWN, 0).map(drop)
}

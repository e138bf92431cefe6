//! fcntl(2) for leases and signal owners, and io_setup(2) with its companions.
#![allow(unsafe_code, reason = "raw system calls, one each")]
use crate::sys::cvt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// fcntl(2) with a number.
///
/// # Errors
/// As the call.
pub fn fcntl(fd: impl AsFd, op: i32, arg: i32) -> io::Result<i32> {
    // SAFETY: the programs use operations whose argument is a number.
    cvt(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), op, arg) })
}

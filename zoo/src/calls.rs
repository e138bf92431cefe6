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

/// Who gets a file's signals: `F_OWNER_TID` 0, `F_OWNER_PID` 1, `F_OWNER_PGRP` 2, and an id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Sort of id.
    pub kind: i32,
    /// Id.
    pub id: i32,
}

/// `F_SETOWN_EX`.
///
/// # Errors
/// As fcntl(2).
pub fn set_owner(fd: impl AsFd, owner: Owner) -> io::Result<()> {
    // SAFETY: the kernel reads a `struct f_owner_ex`, two ints, which `owner` is; it lives over the call.
    cvt(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), 15, &raw const owner) }).map(drop)
}

/// `F_GETOWN_EX`.
///
/// # Errors
/// As fcntl(2).
pub fn owner(fd: impl AsFd) -> io::Result<Owner> {
    let mut owner = Owner::default();
    // SAFETY: the kernel writes a `struct f_owner_ex`, two ints, which `owner` is; it lives over the call.
    cvt(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), 16, &raw mut owner) })?;
    Ok(owner)
}

//! POSIX message queues (mq_overview(7)), for the programs that have some.
#![allow(unsafe_code, reason = "the calls of message queues")]
use crate::sys::{adopt, cvt};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// A name that no other queue has: of this test, this process and this moment.
pub fn name(what: &str) -> CString {
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos());
    crate::must(CString::new(format!("/zoo-{what}-{}-{now}", crate::sys::getpid())))
}

/// A new queue of this many messages of this length. Small ones: all queues of a user together have a limit.
///
/// # Errors
/// As mq_open(3).
pub fn make(name: &CStr, flags: i32, mode: u32, messages: i64, size: i64) -> io::Result<OwnedFd> {
    // SAFETY: a structure of numbers.
    let mut attributes: libc::mq_attr = unsafe { std::mem::zeroed() };
    (attributes.mq_maxmsg, attributes.mq_msgsize) = (messages, size);
    let flags = flags | libc::O_CREAT | libc::O_EXCL;
    // SAFETY: the name ends in a zero byte; it and the attributes live over the call.
    adopt(unsafe { libc::mq_open(name.as_ptr(), flags, mode, &raw mut attributes) })
}

/// Opens one that exists.
///
/// # Errors
/// As mq_open(3).
pub fn open(name: &CStr, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: the name ends in a zero byte and lives over the call.
    adopt(unsafe { libc::mq_open(name.as_ptr(), flags) })
}

/// Takes the name away.
///
/// # Errors
/// As mq_unlink(3).
pub fn unlink(name: &CStr) -> io::Result<()> {
    // SAFETY: the name ends in a zero byte and lives over the call.
    cvt(unsafe { libc::mq_unlink(name.as_ptr()) }).map(drop)
}

/// mq_send(3)
///
/// # Errors
/// As the call.
pub fn send(fd: &OwnedFd, message: &[u8], priority: u32) -> io::Result<()> {
    // SAFETY: the message lives over the call and is as long as it is said to be.
    cvt(unsafe { libc::mq_send(fd.as_raw_fd(), message.as_ptr().cast(), message.len(), priority) }).map(drop)
}

/// mq_receive(3): the message and its priority.
///
/// # Errors
/// As the call.
pub fn receive(fd: &OwnedFd) -> io::Result<(Vec<u8>, u32)> {
    let (mut message, mut priority) = (vec![0u8; 8192], 0);
    let at = message.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most as many bytes as it is told that there is room for.
    let n = cvt(unsafe { libc::mq_receive(fd.as_raw_fd(), at, message.len(), &raw mut priority) } as i64)?;
    message.truncate(usize::try_from(n).unwrap_or(0));
    Ok((message, priority))
}

/// mq_getattr(3): flags, most messages, most bytes, messages.
///
/// # Errors
/// As the call.
pub fn attributes(fd: &OwnedFd) -> io::Result<[i64; 4]> {
    // SAFETY: a structure of numbers.
    let mut a: libc::mq_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes the structure, which lives over the call.
    cvt(unsafe { libc::mq_getattr(fd.as_raw_fd(), &raw mut a) })?;
    Ok([a.mq_flags, a.mq_maxmsg, a.mq_msgsize, a.mq_curmsgs])
}

/// mq_notify(3): this process gets a signal for the next message.
///
/// # Errors
/// As the call.
pub fn notify(fd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: a structure of numbers and pointers that may be null.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    (event.sigev_notify, event.sigev_signo) = (libc::SIGEV_SIGNAL, signal);
    // SAFETY: the kernel reads the structure, which lives over the call.
    cvt(unsafe { libc::mq_notify(fd.as_raw_fd(), &raw const event) }).map(drop)
}

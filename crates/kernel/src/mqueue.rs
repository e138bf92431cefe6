//! POSIX message queues (mq_overview(7)): names, attributes and what is registered for a message's arrival.
#![allow(unsafe_code, reason = "the calls of message queues, which no safe wrapper has")]
use crate::sock_diag::last;
use rustix::io::{Errno, Result};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The filesystem's number (statfs(2)).
pub const MAGIC: u64 = 0x1980_0202;

/// `struct mq_attr`, without flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The most messages it takes.
    pub max_messages: i64,
    /// The most bytes of a message.
    pub message_size: i64,
    /// Messages that wait in it.
    pub messages: i64,
}

/// What reading the queue's file tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Bytes of all messages.
    pub bytes: u64,
    /// The process that is told of the next message (mq_notify(3)), as the reader's pid namespace has it; 0 for none.
    pub notified: i32,
}

/// mq_open(3); the name is one without slashes. With attributes a new queue is made that must not exist yet.
///
/// # Errors
/// `ENOENT`, `EEXIST`, `EACCES`; `EINVAL`, `EMFILE`, `ENOSPC`: limits (mq_overview(7)).
pub fn open(name: &[u8], access: u32, new: Option<(u32, Attributes)>) -> Result<OwnedFd> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    let mut flags = (access as i32 & libc::O_ACCMODE) | libc::O_CLOEXEC;
    let (mode, a) = new.unwrap_or_default();
    // Flags, messages, bytes, waiting, four reserved.
    let words = [0i64, a.max_messages, a.message_size, 0, 0, 0, 0, 0];
    let mut attributes = std::ptr::null();
    if new.is_some() {
        flags |= libc::O_CREAT | libc::O_EXCL;
        attributes = words.as_ptr();
    }
    // SAFETY: the name ends in a zero byte, the attributes are eight words or none; both live over the call.
    let ret = unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, mode, attributes) };
    let raw = RawFd::try_from(ret).map_err(|_| Errno::IO)?;
    if raw < 0 {
        return Err(last());
    }
    // SAFETY: the kernel has just made this descriptor, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// mq_unlink(3), of a name without slashes.
///
/// # Errors
/// As the call.
pub fn unlink(name: &[u8]) -> Result<()> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    // SAFETY: the name ends in a zero byte and lives over the call.
    if unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) } < 0 { Err(last()) } else { Ok(()) }
}

/// mq_getattr(3).
///
/// # Errors
/// `EBADF`: no queue.
pub fn attributes(fd: impl AsFd) -> Result<Attributes> {
    let mut words = [0i64; 8];
    let none = std::ptr::null::<i64>();
    // SAFETY: the kernel writes eight words to `words`, which lives over the call, and reads nothing.
    let ret = unsafe { libc::syscall(libc::SYS_mq_getsetattr, fd.as_fd().as_raw_fd(), none, words.as_mut_ptr()) };
    if ret < 0 {
        return Err(last());
    }
    let [_, max_messages, message_size, messages, ..] = words;
    Ok(Attributes { max_messages, message_size, messages })
}

/// Reads the queue's file, which takes no message. The descriptor must be open for reading; its position stays.
///
/// # Errors
/// As pread(2); `EBADMSG` for another text than expected.
pub fn status(fd: impl AsFd) -> Result<Status> {
    let mut text = [0u8; 256];
    let n = rustix::io::pread(fd, &mut text, 0)?;
    parse(&String::from_utf8_lossy(text.get(..n).unwrap_or_default())).ok_or(Errno::BADMSG)
}

fn parse(text: &str) -> Option<Status> {
    let after = |key: &str| text.split_once(key)?.1.split_ascii_whitespace().next();
    Some(Status { bytes: after("QSIZE:")?.parse().ok()?, notified: after("NOTIFY_PID:")?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_made_looked_at_and_gone() {
        let name = format!("crust-kernel-{}", std::process::id());
        let wanted = Attributes { max_messages: 3, message_size: 32, messages: 0 };
        let fd = match open(name.as_bytes(), libc::O_RDWR as u32, Some((0o600, wanted))) {
            Err(Errno::NOSYS | Errno::MFILE | Errno::NOSPC) => return, // none here, or too many by now
            other => other.expect("mq_open"),
        };
        let again = open(name.as_bytes(), libc::O_RDONLY as u32, Some((0o600, wanted))).map(drop);
        unlink(name.as_bytes()).expect("mq_unlink");
        assert_eq!(again, Err(Errno::EXIST));
        assert_eq!(open(name.as_bytes(), 0, None).map(drop), Err(Errno::NOENT));
        assert_eq!(attributes(&fd), Ok(wanted));
        assert_eq!(status(&fd), Ok(Status::default()));
        assert_eq!(
            attributes(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("eventfd")),
            Err(Errno::BADF)
        );
    }

    #[test]
    fn the_text_is_understood() {
        let text = "QSIZE:129        NOTIFY:2     SIGNO:10    NOTIFY_PID:8260  \n";
        assert_eq!(parse(text), Some(Status { bytes: 129, notified: 8260 }));
        assert_eq!(parse("nothing"), None);
    }
}

//! pidfds: a handle that cannot come to mean another task, and the way to copies of a target's descriptors.
#![allow(unsafe_code, reason = "rustix has no PIDFD_THREAD and ties descriptor numbers of the target to its own types")]

use crate::{Deadline, HostTid, TargetFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A process or (Linux 6.9) a single thread, held so that its id cannot be reused under us.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Takes ownership of a descriptor a syscall just returned.
fn owned(ret: libc::c_long) -> Result<OwnedFd> {
    let raw = RawFd::try_from(ret).map_err(|_| Errno::IO)?;
    if raw < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel has just made this descriptor for the calling function, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

impl PidFd {
    /// The thread group led by `pid`.
    ///
    /// # Errors
    /// `ESRCH`: gone. `EINVAL`: not a leader.
    pub fn open(pid: HostTid) -> Result<Self> {
        // SAFETY: takes numbers only.
        owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) }).map(Self)
    }

    /// One thread (`PIDFD_THREAD`, Linux 6.9).
    ///
    /// # Errors
    /// `EINVAL`: an older kernel. `ESRCH`: gone.
    pub fn open_thread(tid: HostTid) -> Result<Self> {
        // SAFETY: takes numbers only. PIDFD_THREAD has the value of O_EXCL.
        owned(unsafe { libc::syscall(libc::SYS_pidfd_open, tid.as_raw(), libc::O_EXCL) }).map(Self)
    }

    /// Our own descriptor for the open file behind `fd` of the target; close-on-exec.
    ///
    /// # Errors
    /// `EBADF`: no such slot there. `EPERM`: no right to ptrace the target. `ESRCH`: it ended.
    pub fn get_fd(&self, fd: TargetFd) -> Result<OwnedFd> {
        // SAFETY: takes numbers only.
        owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), fd.0, 0) })
    }

    /// Sends `signal`; 0 only checks.
    ///
    /// # Errors
    /// `ESRCH`: ended. `EPERM`: not ours to signal.
    pub fn send_signal(&self, signal: i32) -> Result<()> {
        let null = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a null siginfo makes the kernel build the one of kill(2); nothing of ours is read.
        let ret = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal, null, 0) };
        if ret < 0 { Err(last_errno()) } else { Ok(()) }
    }

    /// Waits until the task has ended (it may still be a zombie).
    ///
    /// # Errors
    /// `ETIMEDOUT` at the deadline.
    pub fn wait_exit(&self, deadline: Deadline) -> Result<()> {
        loop {
            let left = Timespec::try_from(deadline.remaining()).map_err(|_| Errno::INVAL)?;
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Err(Errno::TIMEDOUT),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn copies_a_descriptor_of_a_child_and_sees_it_end() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = HostTid::new(i32::try_from(child.id()).unwrap()).unwrap();
        let fd = PidFd::open(pid).unwrap();
        let theirs = rustix::fs::fstat(fd.get_fd(TargetFd(0)).unwrap()).unwrap();
        let ours = rustix::fs::fstat(child.stdin.as_ref().unwrap()).unwrap();
        assert_eq!((theirs.st_dev, theirs.st_ino), (ours.st_dev, ours.st_ino));
        assert_eq!(fd.get_fd(TargetFd(4321)).unwrap_err(), Errno::BADF);
        assert_eq!(fd.wait_exit(Deadline::after(Duration::from_millis(2))), Err(Errno::TIMEDOUT));
        drop(child.stdin.take());
        fd.wait_exit(Deadline::after(Duration::from_secs(10))).unwrap();
        child.wait().unwrap();
        assert_eq!(fd.send_signal(0), Err(Errno::SRCH));
    }
}

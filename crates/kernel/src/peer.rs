//! Who is on the other end of a Unix socket, as a pidfd: an identity that pid reuse cannot change.
#![allow(unsafe_code, reason = "SO_PEERPIDFD (Linux 6.5) is not in rustix")]
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Linux 6.5; the same number on every architecture crust knows.
const SO_PEERPIDFD: libc::c_int = 77;

/// A pidfd of the process that connected (or made the pair), CLOEXEC.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 6.5; `EINVAL`/`ESRCH` if the peer is gone and reaped.
pub fn peer_pidfd(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `fd` is one writable int and `len` says so; the kernel writes at most that many bytes.
    let result = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut fd).cast(), &raw mut len)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: the kernel has installed this descriptor for us in this very call; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

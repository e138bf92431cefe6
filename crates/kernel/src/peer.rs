//! Who is on the other end of a Unix socket: credentials of the moment it connected, and a pidfd that no pid reuse fools.
#![allow(unsafe_code, reason = "SO_PEERPIDFD is not in rustix, and its SO_PEERCRED has no place for a pid of zero")]
use crate::HostTid;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Linux 6.5; the same number on every architecture crust knows.
const SO_PEERPIDFD: libc::c_int = 77;

/// The other side, as the kernel recorded it at connect(2) or socketpair(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCred {
    /// `None` if it lives in a pid namespace that we cannot see into.
    pub pid: Option<HostTid>,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// Reads one socket option of exactly the size of `T`.
///
/// # Safety
/// Every bit pattern must be a valid `T`.
unsafe fn option<T: Copy>(socket: BorrowedFd<'_>, name: libc::c_int, mut value: T) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is writable and `len` is its size; the kernel writes no more than that, and whatever it writes is
    // a valid T, as our caller promises.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut len) };
    match result {
        0 if len as usize == size_of::<T>() => Ok(value),
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// SO_PEERCRED.
///
/// # Errors
/// `ENOTSOCK` for anything but a socket.
pub fn peer_cred(socket: impl AsFd) -> io::Result<PeerCred> {
    let empty = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    // SAFETY: ucred is three integers.
    let cred = unsafe { option(socket.as_fd(), libc::SO_PEERCRED, empty) }?;
    Ok(PeerCred { pid: HostTid::new(cred.pid), uid: cred.uid, gid: cred.gid })
}

/// A pidfd of the process that connected (or made the pair), CLOEXEC.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 6.5; `EINVAL`/`ESRCH` if the peer is gone and reaped.
pub fn peer_pidfd(socket: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: the value is one integer.
    let fd: libc::c_int = unsafe { option(socket.as_fd(), SO_PEERPIDFD, -1) }?;
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: the kernel has installed this descriptor for us in this very call; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Linux 4.13; the same number on every architecture crust knows.
const SO_PEERGROUPS: libc::c_int = 59;

/// SO_PEERGROUPS: the supplementary groups of the moment it connected.
///
/// # Errors
/// `ENODATA` if the socket has no peer.
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let fd = socket.as_fd().as_raw_fd();
    let mut groups: Vec<u32> = vec![0; 32];
    loop {
        let mut len = libc::socklen_t::try_from(groups.len() * size_of::<u32>()).map_err(io::Error::other)?;
        // SAFETY: `groups` is writable for `len` bytes; the kernel writes whole gid_t (u32) values and no more than that.
        let result =
            unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_PEERGROUPS, groups.as_mut_ptr().cast(), &raw mut len) };
        let count = len as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let e = io::Error::last_os_error();
        // The kernel says how much room it needs; the groups of a socket never change.
        if e.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(e);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_s_peer_is_ourselves() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        let cred = peer_cred(&a).unwrap();
        assert_eq!(cred.pid.map(HostTid::as_raw), Some(std::process::id() as i32));
        assert_eq!(cred.uid, rustix::process::geteuid().as_raw());
        match peer_pidfd(&a) {
            Ok(fd) => assert!(
                std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
                    .unwrap()
                    .contains(&format!("Pid:\t{}", std::process::id()))
            ),
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ENOPROTOOPT)),
        }
        assert!(peer_cred(std::fs::File::open("/dev/null").unwrap()).is_err());
        let mut mine: Vec<u32> = rustix::process::getgroups().unwrap().iter().map(|g| g.as_raw()).collect();
        let mut theirs = peer_groups(&a).unwrap();
        mine.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(theirs, mine);
    }
}

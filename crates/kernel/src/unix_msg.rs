//! Messages of unix sockets with the descriptors they carry, and the files that such sockets are bound to.
#![allow(unsafe_code, reason = "control messages and ioctls that rustix has no safe form for")]
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `SIOCUNIXFILE`: an `O_PATH` descriptor of the file a socket is bound to.
const SIOCUNIXFILE: libc::c_ulong = 0x89E0;
/// Room for control messages: the kernel sends at most 253 descriptors at once, and little beside them.
const CONTROL_WORDS: usize = 512;
/// `SCM_PIDFD`: a pidfd of the sender.
const SCM_PIDFD: i32 = 4;

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// A message that was looked at and still waits.
#[derive(Debug, Default)]
pub struct Message {
    /// Its bytes, as many as there was room for.
    pub bytes: Vec<u8>,
    /// Copies of the descriptors it carries: closing them takes nothing from the message.
    pub rights: Vec<OwnedFd>,
    /// The message is longer than the room.
    pub cut: bool,
    /// The sender's credentials come with it.
    pub credentials: bool,
    /// Something else comes with it, or descriptors for which we have no room.
    pub other: bool,
}

/// Looks at the next message without taking it. Where a socket's peek offset is set, this one starts there and moves it.
///
/// # Errors
/// `EAGAIN` if nothing waits, `ENOTCONN` for a SEQPACKET socket that is not connected.
pub fn peek(fd: impl AsFd, room: usize) -> Result<Message> {
    let mut bytes = vec![0u8; room];
    let mut control = [0u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain memory; zero is valid for every field.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `header` refers to one part that covers exactly `bytes` and to all of `control`; all live over the call.
    let n = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut header, flags) };
    if n < 0 {
        return Err(last());
    }
    let n = n as usize;
    let mut message = Message {
        cut: header.msg_flags & libc::MSG_TRUNC != 0 || n > room,
        other: header.msg_flags & libc::MSG_CTRUNC != 0,
        ..Message::default()
    };
    bytes.truncate(n.min(room));
    message.bytes = bytes;
    // SAFETY: the kernel has filled `control` and set `msg_controllen` to what it wrote; the header still refers to it.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !next.is_null() {
        // SAFETY: not null, so it points to a whole header inside `control`, which is aligned for it.
        let at = unsafe { &*next };
        // SAFETY: computes a length from numbers only.
        let before = unsafe { libc::CMSG_LEN(0) } as usize;
        let count = (at.cmsg_len as usize).saturating_sub(before) / size_of::<RawFd>();
        match (at.cmsg_level, at.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS | SCM_PIDFD) => {
                for i in 0..count {
                    // SAFETY: the kernel wrote `count` numbers behind this header, all within `control`.
                    let number = unsafe { libc::CMSG_DATA(next).cast::<RawFd>().add(i).read_unaligned() };
                    if number < 0 {
                        continue; // a pidfd that could not be made
                    }
                    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows its number.
                    let copy = unsafe { OwnedFd::from_raw_fd(number) };
                    if at.cmsg_type == libc::SCM_RIGHTS {
                        message.rights.push(copy);
                    }
                }
                message.other |= at.cmsg_type == SCM_PIDFD;
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => message.credentials = true,
            _ => message.other = true,
        }
        // SAFETY: `next` came from this header's own buffer, which the kernel filled with whole control messages.
        next = unsafe { libc::CMSG_NXTHDR(&raw const header, next) };
    }
    Ok(message)
}

/// Looks at a stream and tells how many of its next bytes belong to messages that end within the next `most`. The kernel
/// hands out one message after the other until one has no room in our memory.
///
/// # Errors
/// `EFAULT` if the first message is longer; `EAGAIN` if nothing waits.
pub fn peek_messages(fd: impl AsFd, most: usize) -> Result<usize> {
    let mut bytes = vec![0u8; most];
    let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 << 28 };
    let mut parts = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }, none];
    // SAFETY: msghdr is plain memory; zero is valid for every field.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = parts.as_mut_ptr();
    header.msg_iovlen = parts.len() as _;
    // SAFETY: the first part covers exactly `bytes`. Nothing is ever mapped at the second, so the kernel writes nothing
    // there and takes it for what it is: an address that cannot be written. All live over the call.
    let n = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut header, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    if n < 0 { Err(last()) } else { Ok(n as usize) }
}

/// Sends bytes with descriptors, without waiting. Returns how many bytes went.
///
/// # Errors
/// `EAGAIN` if there is no room, `EINVAL` for more than 253 descriptors, and as sendmsg(2).
pub fn send(fd: impl AsFd, bytes: &[u8], rights: &[BorrowedFd<'_>]) -> Result<usize> {
    let mut control = [0u64; CONTROL_WORDS];
    let payload = size_of_val(rights);
    // SAFETY: computes a length from numbers only.
    let space = unsafe { libc::CMSG_SPACE(payload as u32) } as usize;
    if space > size_of_val(&control) {
        return Err(Errno::INVAL);
    }
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain memory; zero is valid for every field.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    if !rights.is_empty() {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = space as _;
        // SAFETY: `control` has room for one header and `payload` bytes behind it, as was checked above.
        unsafe {
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(payload as u32) as _;
            let data = libc::CMSG_DATA(first).cast::<RawFd>();
            for (i, right) in rights.iter().enumerate() {
                data.add(i).write_unaligned(right.as_raw_fd());
            }
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel only reads: the header, the part that covers exactly `bytes`, and `control`; all live over the call.
    let n = unsafe { libc::sendmsg(fd.as_fd().as_raw_fd(), &raw const header, flags) };
    if n < 0 { Err(last()) } else { Ok(n as usize) }
}

/// Opens the file that a unix socket is bound to, as `O_PATH`, wherever its name has gone.
///
/// # Errors
/// `ENOENT` for a socket without a path, `EPERM` without CAP_NET_ADMIN.
pub fn bound_file(fd: impl AsFd) -> Result<OwnedFd> {
    // SAFETY: this request takes no argument.
    let raw = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), SIOCUNIXFILE, 0) };
    if raw < 0 {
        return Err(last());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows its number.
    let file = unsafe { OwnedFd::from_raw_fd(raw) };
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::CLOEXEC)?;
    Ok(file)
}

/// How much memory the messages take that a socket has sent and nobody has received (`SIOCOUTQ`).
///
/// # Errors
/// As ioctl(2).
pub fn unreceived(fd: impl AsFd) -> Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int to `bytes`, which lives over the call.
    let ret = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if ret < 0 { Err(last()) } else { Ok(bytes as u32) }
}

/// Makes a datagram socket forget its peer (connect(2) to `AF_UNSPEC`). What waits in its queue is lost.
///
/// # Errors
/// As connect(2).
pub fn disconnect(fd: impl AsFd) -> Result<()> {
    let family = libc::AF_UNSPEC as libc::sa_family_t;
    // SAFETY: the kernel reads the two bytes of `family`, which lives over the call.
    let ret = unsafe {
        libc::connect(fd.as_fd().as_raw_fd(), (&raw const family).cast(), size_of_val(&family) as libc::socklen_t)
    };
    if ret < 0 { Err(last()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("socketpair")
    }

    #[test]
    fn descriptors_are_seen_and_stay() {
        let (a, b) = pair(SocketType::DGRAM);
        let (r, w) = rustix::pipe::pipe().expect("pipe");
        assert_eq!(send(&a, b"two", &[r.as_fd(), w.as_fd()]), Ok(3));
        assert_eq!(send(&a, b"none", &[]), Ok(4));
        drop((r, w));
        for _ in 0..3 {
            let seen = peek(&b, 10).expect("peek");
            assert_eq!((seen.bytes.as_slice(), seen.rights.len()), (&b"two"[..], 2));
            assert!(!seen.cut && !seen.credentials && !seen.other);
            rustix::io::write(&seen.rights[1], b"x").expect("the pipe works");
            assert_eq!(rustix::io::read(&seen.rights[0], &mut [0; 4]), Ok(1));
        }
        assert!(peek(&b, 1).expect("peek").cut);
    }

    #[test]
    fn messages_of_a_stream_are_told_apart() {
        let (a, b) = pair(SocketType::STREAM);
        assert_eq!(peek_messages(&b, 10), Err(Errno::AGAIN));
        for len in [6000, 1, 70_000] {
            assert_eq!(send(&a, &vec![1; len], &[]), Ok(len));
        }
        assert_eq!(peek_messages(&b, 5999), Err(Errno::FAULT));
        assert_eq!(peek_messages(&b, 0), Err(Errno::FAULT));
        assert_eq!([6000, 6001, 6002].map(|most| peek_messages(&b, most)), [Ok(6000), Ok(6001), Ok(6001)]);
        assert_eq!(send(&a, b"with", &[a.as_fd()]), Ok(4));
        assert_eq!(send(&a, b"more", &[]), Ok(4));
        let seen = peek(&b, 200_000).expect("peek");
        assert_eq!((seen.bytes.len(), seen.rights.len()), (76_005, 1));
        assert_eq!(peek_messages(&b, seen.bytes.len() - 1), Ok(76_001));
    }

    #[test]
    fn credentials_show() {
        let (a, b) = pair(SocketType::SEQPACKET);
        rustix::net::sockopt::set_socket_passcred(&b, true).expect("option");
        assert_eq!(send(&a, b"", &[]), Ok(0));
        let seen = peek(&b, 10).expect("peek");
        assert!(seen.credentials && seen.bytes.is_empty() && !seen.other);
        drop(a);
        rustix::io::read(&b, &mut [0; 1]).expect("the empty message");
        assert!(!peek(&b, 10).expect("peek").credentials, "the end of the stream is no message");
    }

    #[test]
    fn a_file_is_found_after_its_name_went() {
        let path = std::env::temp_dir().join(format!("crust-bound-{}", std::process::id()));
        let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("bind");
        std::fs::remove_file(&path).expect("unlink");
        let file = bound_file(&socket).expect("bound file");
        assert_eq!(rustix::fs::fstat(&file).expect("fstat").st_nlink, 0);
        assert_eq!(bound_file(pair(SocketType::STREAM).0).err(), Some(Errno::NOENT));
        let client = std::os::unix::net::UnixDatagram::unbound().expect("socket");
        client.connect(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("connect through /proc");
        client.send(b"there").expect("send");
        assert!(unreceived(&client).expect("SIOCOUTQ") > 0);
        disconnect(&client).expect("disconnect");
        assert_eq!(rustix::io::write(&client, b"x"), Err(Errno::NOTCONN));
    }
}

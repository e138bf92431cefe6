//! sock_diag(7): what the kernel tells about unix sockets, and socket options as plain numbers.
#![allow(unsafe_code, reason = "netlink structures and getsockopt on raw memory")]
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// One unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnixSocket {
    /// `SOCK_STREAM` …
    pub kind: u8,
    /// 1 connected, 7 not, 10 listening.
    pub state: u8,
    /// Name as bound: a path without a closing NUL, or a NUL and bytes; empty without one.
    pub name: Vec<u8>,
    /// Inode and device (the kernel's 32-bit form) of the file it is bound to.
    pub file: Option<(u32, u32)>,
    /// Inode of the socket it is connected to, 0 for none.
    pub peer: u32,
    /// Waiting bytes, or connections of a listener.
    pub waiting: u32,
    /// Bytes on their way, or the backlog of a listener.
    pub backlog: u32,
    /// `SHUT_*` as bits: 1 receiving, 2 sending.
    pub shutdown: u8,
    /// Of a listener: inodes of the connections that wait to be accepted, in order; 0 for one whose client has closed it.
    pub pending: Vec<u32>,
    /// Inode of the listener that has not accepted this connection yet, 0 for none.
    pub listener: u32,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SHOW: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10; // name, vfs, peer, connections not accepted, queues

pub(crate) fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Asks sock_diag(7) for all sockets that `request` (the part behind the netlink header) describes; gives each answer.
///
/// # Errors
/// `ENOENT` if the kernel cannot list such sockets; what the kernel says to the request.
pub(crate) fn dump(request: &[u8], mut each: impl FnMut(&[u8])) -> Result<()> {
    // SAFETY: plain numbers.
    let raw = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_SOCK_DIAG) };
    if raw < 0 {
        return Err(last());
    }
    // SAFETY: the kernel has just opened it; nothing else knows the number.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    let mut message = Vec::with_capacity(16 + request.len());
    message.extend_from_slice(&(16 + request.len() as u32).to_ne_bytes());
    message.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(request);
    rustix::io::write(&fd, &message)?;
    let mut buf = vec![0u8; 1 << 16];
    loop {
        let n = rustix::io::read(&fd, &mut buf)?;
        let mut rest = buf.get(..n).unwrap_or_default();
        while rest.len() >= 16 {
            let len = u32_at(rest, 0).unwrap_or(0) as usize;
            let Some(message) = rest.get(..len).filter(|m| m.len() >= 16) else { return Err(Errno::BADMSG) };
            match u16_at(message, 4) {
                Some(3) => return Ok(()), // NLMSG_DONE
                Some(2) => {
                    let code = u32_at(message, 16).unwrap_or(0) as i32;
                    return Err(Errno::from_raw_os_error(-code));
                }
                Some(SOCK_DIAG_BY_FAMILY) => each(message.get(16..).unwrap_or_default()),
                _ => {}
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
        if n == 0 {
            return Err(Errno::BADMSG);
        }
    }
}

/// Tells every client that waits to be accepted where it waits.
fn name_listeners(found: &mut HashMap<u32, UnixSocket>) {
    let waits = found.iter().flat_map(|(ino, s)| s.pending.iter().map(|client| (*client, *ino)));
    let waits: Vec<(u32, u32)> = waits.filter(|(client, _)| *client != 0).collect();
    for (client, listener) in waits {
        if let Some(s) = found.get_mut(&client) {
            s.listener = listener;
        }
    }
}

/// The netlink attributes in `rest`: number and value of each.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(rest, 0)?);
        let found = (u16_at(rest, 2)? & 0x3fff, rest.get(4..len)?);
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(found)
    })
}

/// All unix sockets of our network namespace, by inode.
///
/// # Errors
/// `ENOENT` if the kernel has no CONFIG_UNIX_DIAG.
pub fn unix_sockets() -> Result<HashMap<u32, UnixSocket>> {
    // unix_diag_req: family, protocol, pad, states, ino, show, cookie[2].
    let mut request = vec![libc::AF_UNIX as u8, 0, 0, 0];
    request.extend_from_slice(&u32::MAX.to_ne_bytes());
    request.extend_from_slice(&0u32.to_ne_bytes());
    request.extend_from_slice(&SHOW.to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    let mut found = HashMap::new();
    dump(&request, |m| found.extend(parse(m)))?;
    name_listeners(&mut found);
    Ok(found)
}

pub(crate) fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(b.get(at..at + 2)?.try_into().ok()?))
}

/// `unix_diag_msg` (family, type, state, pad, ino, two words of cookie) and its attributes.
fn parse(m: &[u8]) -> Option<(u32, UnixSocket)> {
    let mut s = UnixSocket { kind: *m.get(1)?, state: *m.get(2)?, ..UnixSocket::default() };
    let ino = u32_at(m, 4)?;
    for (number, value) in attributes(m.get(16..)?) {
        match number {
            0 => s.name = value.to_vec(),
            1 => s.file = Some((u32_at(value, 0)?, u32_at(value, 4)?)),
            2 => s.peer = u32_at(value, 0)?,
            3 => s.pending = value.chunks_exact(4).filter_map(|c| u32_at(c, 0)).collect(),
            4 => (s.waiting, s.backlog) = (u32_at(value, 0)?, u32_at(value, 4)?),
            6 => s.shutdown = *value.first()?,
            _ => {}
        }
    }
    // A path's closing NUL is not part of it.
    if s.name.first() != Some(&0) {
        while s.name.last() == Some(&0) {
            s.name.pop();
        }
    }
    Some((ino, s))
}

/// A socket option that is one number.
///
/// # Errors
/// `ENOPROTOOPT` if the kernel does not know it.
pub fn option(fd: impl AsFd, level: i32, name: i32) -> Result<i32> {
    let mut value = 0i32;
    let mut len = size_of::<i32>() as libc::socklen_t;
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `len` bytes to `value`, which has that room; both live over the call.
    let ret = unsafe { libc::getsockopt(raw, level, name, (&raw mut value).cast(), &raw mut len) };
    if ret < 0 { Err(last()) } else { Ok(value) }
}

/// Sets a socket option that is one number.
///
/// # Errors
/// As setsockopt(2).
pub fn set_option(fd: impl AsFd, level: i32, name: i32, value: i32) -> Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the kernel reads the four bytes of `value`, which lives over the call.
    let ret = unsafe { libc::setsockopt(raw, level, name, (&raw const value).cast(), size_of::<i32>() as u32) };
    if ret < 0 { Err(last()) } else { Ok(()) }
}

/// A socket option that is a pair of 64-bit numbers: a timeout (seconds, microseconds).
///
/// # Errors
/// As getsockopt(2).
pub fn option_time(fd: impl AsFd, name: i32) -> Result<(i64, i64)> {
    let mut value = [0i64; 2];
    let mut len = size_of::<[i64; 2]>() as libc::socklen_t;
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `len` bytes, a struct timeval, to `value`, which has that room.
    let ret = unsafe { libc::getsockopt(raw, libc::SOL_SOCKET, name, value.as_mut_ptr().cast(), &raw mut len) };
    if ret < 0 { Err(last()) } else { Ok((value[0], value[1])) }
}

/// Sets a timeout option.
///
/// # Errors
/// As setsockopt(2).
pub fn set_option_time(fd: impl AsFd, name: i32, value: (i64, i64)) -> Result<()> {
    let value = [value.0, value.1];
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the kernel reads a struct timeval, two 64-bit numbers, from `value`, which lives over the call.
    let ret = unsafe { libc::setsockopt(raw, libc::SOL_SOCKET, name, value.as_ptr().cast(), 16) };
    if ret < 0 { Err(last()) } else { Ok(()) }
}

/// The groups that a netlink socket listens to, as words of bits (`NETLINK_LIST_MEMBERSHIPS`).
///
/// # Errors
/// As getsockopt(2).
pub fn netlink_groups(fd: impl AsFd) -> Result<Vec<u32>> {
    let mut words = vec![0u32; 64];
    let mut len = (words.len() * size_of::<u32>()) as libc::socklen_t;
    let (raw, level, name) = (fd.as_fd().as_raw_fd(), libc::SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS);
    // SAFETY: the kernel writes at most `len` bytes to `words`, which has that room; both live over the call.
    let ret = unsafe { libc::getsockopt(raw, level, name, words.as_mut_ptr().cast(), &raw mut len) };
    if ret < 0 {
        return Err(last());
    }
    while words.last() == Some(&0) {
        words.pop();
    }
    Ok(words)
}

/// Looks at the next message without taking it: the bytes, and whether something (data or descriptors) did not fit.
/// Control messages are never received, so no descriptor is made here.
///
/// # Errors
/// `EAGAIN` if nothing waits.
pub fn peek(fd: impl AsFd, room: usize) -> Result<(Vec<u8>, PeekFlags)> {
    let mut buf = vec![0u8; room];
    let mut part = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: msghdr is plain memory; zero is valid for every field.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: `header` refers to one part that covers exactly `buf`; all live over the call.
    let n = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut header, flags) };
    if n < 0 {
        return Err(last());
    }
    let n = n as usize;
    let has = |f: i32| header.msg_flags & f != 0;
    let peeked = PeekFlags { cut: has(libc::MSG_TRUNC) || n > room, control: has(libc::MSG_CTRUNC) };
    buf.truncate(n.min(room));
    Ok((buf, peeked))
}

/// State of a TCP socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// `TCP_*` state: 1 established, 7 closed, 10 listening.
    pub state: u8,
    /// Of a listener: connections that wait to be accepted.
    pub waiting: u32,
    /// Of a listener: its backlog.
    pub backlog: u32,
}

/// Asks for the state of a TCP socket (`TCP_INFO`).
///
/// # Errors
/// `EOPNOTSUPP` for other sockets.
pub fn tcp_info(fd: impl AsFd) -> Result<TcpInfo> {
    let mut raw = [0u8; 104];
    let mut len = raw.len() as libc::socklen_t;
    let number = fd.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `len` bytes to `raw`, which has that room; both live over the call.
    let ret =
        unsafe { libc::getsockopt(number, libc::IPPROTO_TCP, libc::TCP_INFO, raw.as_mut_ptr().cast(), &raw mut len) };
    if ret < 0 {
        return Err(last());
    }
    // struct tcp_info: eight bytes, then 32-bit words; tcpi_unacked and tcpi_sacked mean a listener's queue.
    let word = |n: usize| u32_at(&raw, 8 + 4 * n).unwrap_or(0);
    Ok(TcpInfo { state: raw[0], waiting: word(4), backlog: word(5) })
}

/// What [`peek`] could not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeekFlags {
    /// The message is longer.
    pub cut: bool,
    /// Descriptors or credentials come with it.
    pub control: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_pair() {
        let (a, b) = std::os::unix::net::UnixStream::pair().expect("socketpair");
        let ino = |s: &std::os::unix::net::UnixStream| rustix::fs::fstat(s).expect("fstat").st_ino as u32;
        let all = unix_sockets().expect("diag");
        assert_eq!(all[&ino(&a)].peer, ino(&b));
        assert_eq!((all[&ino(&b)].kind, all[&ino(&b)].state), (libc::SOCK_STREAM as u8, 1));
    }

    #[test]
    fn a_client_that_waits_is_known_on_both_sides() {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
        let name = SocketAddr::from_abstract_name(format!("crust-diag-{}", std::process::id())).expect("a name");
        let listener = UnixListener::bind_addr(&name).expect("bind");
        let clients = [0; 2].map(|_| UnixStream::connect_addr(&name).expect("connect"));
        let ino = |s: &dyn std::os::fd::AsRawFd| {
            // The borrow ends before the socket does.
            std::fs::metadata(format!("/proc/self/fd/{}", s.as_raw_fd()))
                .map(|m| std::os::unix::fs::MetadataExt::ino(&m))
        };
        let ino = |s: &dyn std::os::fd::AsRawFd| ino(s).expect("stat") as u32;
        let all = unix_sockets().expect("diag");
        assert_eq!(all[&ino(&listener)].pending, clients.each_ref().map(|c| ino(c)));
        assert_eq!(all[&ino(&clients[1])].listener, ino(&listener));
        assert_eq!((all[&ino(&clients[0])].peer, all[&ino(&listener)].listener), (0, 0));
    }

    #[test]
    fn peek_takes_nothing() {
        use std::os::unix::net::UnixDatagram;
        let (a, b) = UnixDatagram::pair().expect("socketpair");
        assert_eq!(peek(&b, 10), Err(Errno::AGAIN));
        a.send(b"message").expect("send");
        let whole = PeekFlags { cut: false, control: false };
        assert_eq!(peek(&b, 10), Ok((b"message".to_vec(), whole)));
        assert_eq!(peek(&b, 3), Ok((b"mes".to_vec(), PeekFlags { cut: true, control: false })));
        assert_eq!(peek(&b, 10), Ok((b"message".to_vec(), whole)));
    }

    #[test]
    fn listener_tells_its_backlog() {
        let listener = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)
            .expect("socket");
        assert_eq!(tcp_info(&listener).map(|i| i.state), Ok(7));
        let any: std::net::SocketAddr = "127.0.0.1:0".parse().expect("address");
        rustix::net::bind(&listener, &any).expect("bind");
        rustix::net::listen(&listener, 7).expect("listen");
        assert_eq!(tcp_info(&listener), Ok(TcpInfo { state: 10, waiting: 0, backlog: 7 }));
    }

    #[test]
    fn garbage_is_none() {
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[1; 17]).map(|(ino, _)| ino), Some(0x0101_0101));
        assert_eq!(parse(&[[1u8; 16].as_slice(), &[6, 0, 2, 0, 1, 1]].concat()), None);
        assert_eq!(attributes(&[3, 0, 0, 0]).count(), 0);
    }
}

//! Socket options that are more than one number: bytes of any length, packet filters, multicast memberships.
#![allow(unsafe_code, reason = "getsockopt and setsockopt on raw memory")]
use crate::sock_diag::last;
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd};

/// A socket option as the kernel gives it, up to `room` bytes.
///
/// # Errors
/// `ENOPROTOOPT` and others if the socket has no such option.
pub fn bytes(fd: impl AsFd, level: i32, name: i32, room: usize) -> Result<Vec<u8>> {
    // Nearly all are short; one that fills this may be longer.
    let mut short = [0u8; 64];
    let len = bytes_into(&fd, level, name, &mut short)?;
    if len < short.len() {
        return Ok(short.get(..len).unwrap_or_default().to_vec());
    }
    let mut value = vec![0u8; room];
    let len = bytes_into(&fd, level, name, &mut value)?;
    value.truncate(len);
    Ok(value)
}

fn bytes_into(fd: impl AsFd, level: i32, name: i32, value: &mut [u8]) -> Result<usize> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `value`, which has that room; both live over the call.
    let ret = unsafe { libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) };
    if ret < 0 { Err(last()) } else { Ok(len as usize) }
}

/// Sets a socket option to bytes.
///
/// # Errors
/// As setsockopt(2).
pub fn set_bytes(fd: impl AsFd, level: i32, name: i32, value: &[u8]) -> Result<()> {
    let (raw, len) = (fd.as_fd().as_raw_fd(), value.len() as libc::socklen_t);
    // SAFETY: the kernel reads at most `len` bytes of `value`, which lives over the call.
    let ret = unsafe { libc::setsockopt(raw, level, name, value.as_ptr().cast(), len) };
    if ret < 0 { Err(last()) } else { Ok(()) }
}

/// The classic packet filter of a socket, one instruction a word: code, jt, jf, k from the top. Empty without one.
///
/// # Errors
/// `EACCES` for a filter that is an eBPF program.
pub fn filter(fd: impl AsFd) -> Result<Vec<u64>> {
    let raw = fd.as_fd().as_raw_fd();
    // The kernel counts in instructions here, not in bytes.
    let mut len: libc::socklen_t = 0;
    // SAFETY: with a length of 0 the kernel writes nothing but the length.
    let ret =
        unsafe { libc::getsockopt(raw, libc::SOL_SOCKET, libc::SO_GET_FILTER, std::ptr::null_mut(), &raw mut len) };
    if ret < 0 {
        return Err(last());
    }
    // libc::sock_filter is code u16, jt u8, jf u8, k u32.
    let mut program = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; len as usize];
    if len == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the kernel writes at most `len` instructions to `program`, which has room for them.
    let ret = unsafe {
        libc::getsockopt(raw, libc::SOL_SOCKET, libc::SO_GET_FILTER, program.as_mut_ptr().cast(), &raw mut len)
    };
    if ret < 0 {
        return Err(last());
    }
    let word = |i: &libc::sock_filter| {
        u64::from(i.code) << 48 | u64::from(i.jt) << 40 | u64::from(i.jf) << 32 | u64::from(i.k)
    };
    Ok(program.iter().map(word).collect())
}

/// Attaches a packet filter, in the form that [`filter`] gives.
///
/// # Errors
/// `EINVAL` for a program that the kernel does not take.
pub fn attach_filter(fd: impl AsFd, words: &[u64]) -> Result<()> {
    let part =
        |w: &u64| libc::sock_filter { code: (w >> 48) as u16, jt: (w >> 40) as u8, jf: (w >> 32) as u8, k: *w as u32 };
    let mut program: Vec<libc::sock_filter> = words.iter().map(part).collect();
    let len = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let value = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    let (raw, size) = (fd.as_fd().as_raw_fd(), size_of::<libc::sock_fprog>() as libc::socklen_t);
    // SAFETY: the kernel reads `value` and the `len` instructions that it points to, in `program`; both live over the call.
    let ret =
        unsafe { libc::setsockopt(raw, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, (&raw const value).cast(), size) };
    if ret < 0 { Err(last()) } else { Ok(()) }
}

/// A multicast group that a socket listens to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The group: four bytes or sixteen.
    pub group: Vec<u8>,
    /// Only from these sources; with `exclude` from all others.
    pub sources: Vec<Vec<u8>>,
    /// See `sources`.
    pub exclude: bool,
}

const STORAGE: usize = 128;
const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;

/// A sockaddr_storage.
fn storage(address: &[u8]) -> [u8; STORAGE] {
    let mut s = [0; STORAGE];
    let (family, at) = if address.len() == 4 { (libc::AF_INET, 4) } else { (libc::AF_INET6, 8) };
    if let Some(place) = s.get_mut(..2) {
        place.copy_from_slice(&(family as u16).to_ne_bytes());
    }
    if let Some(place) = s.get_mut(at..at + address.len()) {
        place.copy_from_slice(address);
    }
    s
}

fn level(address: &[u8]) -> i32 {
    if address.len() == 4 { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 }
}

/// `group_filter` up to its sources: interface, pad, group, mode, number of sources.
fn group_filter(index: u32, group: &[u8], exclude: bool, sources: &[Vec<u8>], room: usize) -> Vec<u8> {
    let mut v = Vec::with_capacity(144 + room * STORAGE);
    v.extend_from_slice(&index.to_ne_bytes());
    v.extend_from_slice(&[0; 4]);
    v.extend_from_slice(&storage(group));
    v.extend_from_slice(&u32::from(!exclude).to_ne_bytes()); // MCAST_EXCLUDE is 0
    v.extend_from_slice(&(room.max(sources.len()) as u32).to_ne_bytes());
    for source in sources {
        v.extend_from_slice(&storage(source));
    }
    v.resize(144 + room.max(sources.len()) * STORAGE, 0);
    v
}

/// How the socket listens to a group on an interface, `None` if it does not.
///
/// # Errors
/// Others than that.
pub fn membership(fd: impl AsFd, index: u32, group: &[u8]) -> Result<Option<Membership>> {
    let raw = fd.as_fd().as_raw_fd();
    let mut room = 0;
    loop {
        let mut v = group_filter(index, group, false, &[], room);
        let mut len = v.len() as libc::socklen_t;
        // SAFETY: the kernel reads the header from `v` and writes at most `len` bytes to it; both live over the call.
        let ret = unsafe { libc::getsockopt(raw, level(group), MCAST_MSFILTER, v.as_mut_ptr().cast(), &raw mut len) };
        if ret < 0 {
            return match last() {
                Errno::ADDRNOTAVAIL | Errno::NODEV => Ok(None),
                e => Err(e),
            };
        }
        let word = |at: usize| v.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let count = word(140) as usize;
        if count > room {
            room = count;
            continue;
        }
        let at = if group.len() == 4 { 4 } else { 8 };
        let sources = v.get(144..).unwrap_or_default().chunks_exact(STORAGE).take(count);
        let sources = sources.filter_map(|s| s.get(at..at + group.len())).map(<[u8]>::to_vec).collect();
        return Ok(Some(Membership { group: group.to_vec(), sources, exclude: word(136) == 0 }));
    }
}

/// Lets a socket listen to a group on an interface.
///
/// # Errors
/// `ENODEV` without such an interface, `ENOBUFS` if there are too many.
pub fn join(fd: impl AsFd, index: u32, m: &Membership) -> Result<()> {
    let mut request = Vec::from(index.to_ne_bytes());
    request.extend_from_slice(&[0; 4]);
    request.extend_from_slice(&storage(&m.group));
    set_bytes(&fd, level(&m.group), MCAST_JOIN_GROUP, &request)?;
    if m.exclude && m.sources.is_empty() {
        return Ok(());
    }
    let filter = group_filter(index, &m.group, m.exclude, &m.sources, 0);
    set_bytes(&fd, level(&m.group), MCAST_MSFILTER, &filter)
}

/// Binds a packet socket to a protocol (in network order) and an interface, 0 for all.
///
/// # Errors
/// `ENODEV` without such an interface.
pub fn bind_packet(fd: impl AsFd, protocol: u16, index: u32) -> Result<()> {
    // sockaddr_ll: family, protocol, index, and what only the kernel fills in.
    let mut address = [0u8; 20];
    address[..2].copy_from_slice(&(libc::AF_PACKET as u16).to_ne_bytes());
    address[2..4].copy_from_slice(&protocol.to_ne_bytes());
    address[4..8].copy_from_slice(&index.to_ne_bytes());
    bind_raw(fd, &address)
}

/// Binds a packet socket of the old sort (`SOCK_PACKET`) to a device by name.
///
/// # Errors
/// `ENODEV` without such a device.
pub fn bind_packet_old(fd: impl AsFd, device: &str) -> Result<()> {
    // sockaddr: family, fourteen bytes that end in a NUL.
    let mut address = [0u8; 16];
    address[..2].copy_from_slice(&(libc::AF_PACKET as u16).to_ne_bytes());
    let name = device.as_bytes().get(..device.len().min(13)).unwrap_or_default();
    address[2..2 + name.len()].copy_from_slice(name);
    bind_raw(fd, &address)
}

fn bind_raw(fd: impl AsFd, address: &[u8]) -> Result<()> {
    let (raw, len) = (fd.as_fd().as_raw_fd(), address.len() as libc::socklen_t);
    // SAFETY: the kernel reads at most `len` bytes of `address`, which lives over the call.
    let ret = unsafe { libc::bind(raw, address.as_ptr().cast(), len) };
    if ret < 0 { Err(last()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_go_there_and_back() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        assert_eq!(filter(&socket), Ok(Vec::new()));
        let accept_all = [0x0006_0000_0000_ffff];
        attach_filter(&socket, &accept_all).expect("attach");
        assert_eq!(filter(&socket), Ok(accept_all.to_vec()));
    }

    #[test]
    fn memberships_go_there_and_back() {
        let a = std::net::UdpSocket::bind("0.0.0.0:0").expect("bind");
        let b = std::net::UdpSocket::bind("0.0.0.0:0").expect("bind");
        let lo = 1;
        let group = [239, 1, 2, 3];
        assert_eq!(membership(&a, lo, &group), Ok(None));
        let all = Membership { group: group.to_vec(), sources: Vec::new(), exclude: true };
        join(&a, lo, &all).expect("join");
        assert_eq!(membership(&a, lo, &group), Ok(Some(all)));
        let one = Membership { group: group.to_vec(), sources: vec![vec![127, 0, 0, 9]], exclude: false };
        join(&b, lo, &one).expect("join");
        assert_eq!(membership(&b, lo, &group), Ok(Some(one)));
    }

    #[test]
    fn bytes_are_those_of_the_option() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let linger = [1i32.to_ne_bytes(), 30i32.to_ne_bytes()].concat();
        set_bytes(&socket, libc::SOL_SOCKET, libc::SO_LINGER, &linger).expect("set");
        assert_eq!(bytes(&socket, libc::SOL_SOCKET, libc::SO_LINGER, 64), Ok(linger));
    }
}

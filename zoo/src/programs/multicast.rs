//! UDP sockets that listen to multicast groups: any source, one source, all but one; version 6 too.
#![allow(unsafe_code, reason = "options that are structures")]
use std::os::fd::{AsRawFd, OwnedFd};

const LO: u32 = 1;
const JOIN: i32 = 42;
const JOIN_SOURCE: i32 = 46;
const BLOCK_SOURCE: i32 = 43;
const MSFILTER: i32 = 48;

fn address(bytes: &[u8]) -> [u8; 128] {
    let mut a = [0; 128];
    let (family, at) = if bytes.len() == 4 { (libc::AF_INET, 4) } else { (libc::AF_INET6, 8) };
    a[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    a[at..at + bytes.len()].copy_from_slice(bytes);
    a
}

fn ask(fd: &OwnedFd, group: &[u8], name: i32, source: Option<&[u8]>) {
    let mut request = LO.to_ne_bytes().to_vec();
    request.extend_from_slice(&[0; 4]);
    request.extend_from_slice(&address(group));
    request.extend(source.map(address).into_iter().flatten());
    let level = if group.len() == 4 { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
    // SAFETY: the kernel reads the request, which lives over the call.
    let ret = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, request.as_ptr().cast(), request.len() as u32) };
    assert_eq!(ret, 0, "option {name}: {}", std::io::Error::last_os_error());
}

/// How a socket listens to a group: mode, number of sources, the first one. Nothing if it does not.
fn listens(fd: &OwnedFd, group: &[u8]) -> Option<Vec<u8>> {
    let mut filter = LO.to_ne_bytes().to_vec();
    filter.extend_from_slice(&[0; 4]);
    filter.extend_from_slice(&address(group));
    filter.extend_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0]);
    filter.extend_from_slice(&[0; 128]);
    let level = if group.len() == 4 { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
    let mut len = filter.len() as u32;
    // SAFETY: the kernel reads and writes at most `len` bytes of `filter`, which lives over the call.
    let ret = unsafe { libc::getsockopt(fd.as_raw_fd(), level, MSFILTER, filter.as_mut_ptr().cast(), &raw mut len) };
    (ret == 0).then(|| filter[136..].to_vec())
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let v4 = || zoo::must(zoo::net::socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDP));
    let (all, one, not_one, none) = (v4(), v4(), v4(), v4());
    let group = [239, 77, 1, 2];
    let group6 = [0xff, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 7];
    ask(&all, &group, JOIN, None);
    ask(&one, &group, JOIN_SOURCE, Some(&[127, 0, 0, 5]));
    ask(&not_one, &group, JOIN, None);
    ask(&not_one, &group, BLOCK_SOURCE, Some(&[127, 0, 0, 6]));
    let v6 = zoo::net::socket(libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP).ok();
    if let Some(v6) = &v6 {
        ask(v6, &group6, JOIN, None);
    }
    let look = || {
        let four = [&all, &one, &not_one, &none].map(|fd| listens(fd, &group));
        (four, v6.as_ref().map(|fd| listens(fd, &group6)))
    };
    let before = look();
    assert!(before.0[..3].iter().all(Option::is_some) && before.0[3].is_none());
    while zoo.gap() {
        zoo.eq("groups", look(), before.clone());
    }
}

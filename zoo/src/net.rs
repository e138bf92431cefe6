//! Sockets for programs: addresses that nobody else uses, and all options of a socket.
use crate::{must, sys};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, bind, socket_with};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

/// Loopback addresses are many, and ports below 32768 are given to nobody who does not ask for them.
#[must_use]
pub fn place() -> SocketAddr {
    let mut random = [0u8; 5];
    must(rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()));
    let [a, b, c, high, low] = random;
    let port = 10_000 + u16::from_ne_bytes([high, low]) % 20_000;
    (Ipv4Addr::new(127, 1 + a % 250, b, 1 + c % 250), port).into()
}

/// A socket, or nothing if this kernel or user cannot have it.
pub fn socket(family: i32, kind: i32, protocol: i32) -> rustix::io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::from_raw(family as u16), SocketType::from_raw(kind as u32));
    let protocol = std::num::NonZeroU32::new(protocol as u32).map(Protocol::from_raw);
    socket_with(family, kind, SocketFlags::CLOEXEC, protocol)
}

/// A UDP socket at an address.
#[must_use]
pub fn udp(at: SocketAddr) -> OwnedFd {
    let fd = must(socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDP));
    must(bind(&fd, &at));
    fd
}

/// Options that tell about the moment: SO_ERROR, INCOMING_CPU, MEMINFO, NAPI_ID, COOKIE; TCP_INFO, TIMESTAMP, CC_INFO,
/// SAVED_SYN, ZEROCOPY_RECEIVE.
const MOMENT: [(i32, i32); 10] =
    [(1, 4), (1, 49), (1, 55), (1, 56), (1, 57), (6, 11), (6, 24), (6, 26), (6, 28), (6, 35)];

/// Options that make another socket of it: SO_BINDTODEVICE, ATTACH_FILTER, DETACH_FILTER, ATTACH_BPF and the like,
/// BINDTOIFINDEX; IPV6_ADDRFORM; TCP_MD5SIG, REPAIR, ULP; UDP_CORK, UDP_ENCAP.
const ANOTHER: [(i32, i32); 16] = [
    (1, 25),
    (1, 26),
    (1, 27),
    (1, 50),
    (1, 51),
    (1, 52),
    (1, 62),
    (1, 68),
    (41, 1),
    (6, 14),
    (6, 19),
    (6, 31),
    (17, 1),
    (17, 100),
    (136, 1),
    (136, 100),
];

/// Every option that the socket has on these levels.
pub fn options(fd: &OwnedFd, levels: &[i32]) -> Vec<((i32, i32), Vec<u8>)> {
    let all = levels.iter().flat_map(|level| (1..=110).map(|name| (*level, name)));
    all.filter(|o| !MOMENT.contains(o))
        .filter_map(|(level, name)| Some(((level, name), sys::get_option(fd, level, name).ok()?)))
        .collect()
}

/// Sets every option on these levels that takes another value than it has; says how many.
pub fn set_all(fd: &OwnedFd, levels: &[i32]) -> usize {
    let mut count = 0;
    for ((level, name), value) in options(fd, levels) {
        if ANOTHER.contains(&(level, name)) {
            continue;
        }
        let old = value.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
        for new in [old ^ 1, 1, 2, 60, 1500] {
            let took = sys::set_option(fd, level, name, new).is_ok();
            if took && sys::get_option(fd, level, name).is_ok_and(|now| now != value) {
                count += 1;
                break;
            }
        }
    }
    count
}

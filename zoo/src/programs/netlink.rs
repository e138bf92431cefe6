//! Netlink sockets at rest: a route socket that listens to groups, one with a destination, one that was never bound.
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, bind, connect, getpeername, getsockname, send, socket_with,
};
use std::os::fd::OwnedFd;

const ADD_MEMBERSHIP: i32 = 1;
const LINK: u32 = 1;
const LIST_MEMBERSHIPS: i32 = 9;
const IPV6_PREFIX: i32 = 18;

/// Asks for the loopback interface; true if the answer is about it.
fn talks(fd: &OwnedFd) -> bool {
    let mut ask = Vec::new();
    ask.extend_from_slice(&32u32.to_ne_bytes());
    ask.extend_from_slice(&18u16.to_ne_bytes()); // RTM_GETLINK
    ask.extend_from_slice(&1u16.to_ne_bytes()); // NLM_F_REQUEST
    ask.extend_from_slice(&[0; 8]);
    ask.extend_from_slice(&[0; 4]);
    ask.extend_from_slice(&1i32.to_ne_bytes());
    ask.extend_from_slice(&[0; 8]);
    let mut answer = [0; 8192];
    send(fd, &ask, SendFlags::empty()) == Ok(32)
        && rustix::io::read(fd, &mut answer).is_ok_and(|n| n > 32)
        && answer[4] == 16
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let make = |kind| zoo::must(socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, None));
    let (bound, aimed, fresh) = (make(SocketType::RAW), make(SocketType::RAW), make(SocketType::RAW));
    zoo::must(bind(&bound, &SocketAddrNetlink::new(0, LINK)));
    zoo::must(zoo::sys::set_option(&bound, libc::SOL_NETLINK, ADD_MEMBERSHIP, IPV6_PREFIX));
    zoo::must(connect(&aimed, &SocketAddrNetlink::new(0, 2)));
    let look = || {
        let name = |fd: &OwnedFd| getsockname(fd).and_then(SocketAddrNetlink::try_from).map(|n| (n.pid(), n.groups()));
        let peer = getpeername(&aimed).map(|a| a.and_then(|a| SocketAddrNetlink::try_from(a).ok()));
        let peer = peer.map(|n| n.map(|n| (n.pid(), n.groups())));
        (name(&bound), name(&aimed), peer, zoo::sys::get_option(&bound, libc::SOL_NETLINK, LIST_MEMBERSHIPS).ok())
    };
    let before = look();
    while zoo.gap() {
        zoo.eq("names, groups and destination", look(), before.clone());
        zoo.ok("the bound one talks", talks(&bound));
    }
    zoo.ok("the fresh one talks", talks(&fresh));
}

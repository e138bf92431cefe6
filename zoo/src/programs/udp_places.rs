//! UDP sockets at addresses that are not free for all: three on one port, one at an address that the machine does not have,
//! a UDP-Lite pair.
use rustix::net::{RecvFlags, SendFlags, bind, getsockname, recv, sendto};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

fn name(fd: &OwnedFd) -> Option<SocketAddr> {
    getsockname(fd).ok().and_then(|a| SocketAddr::try_from(a).ok())
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (sol, reuse) = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
    let make = |protocol| zoo::must(zoo::net::socket(libc::AF_INET, libc::SOCK_DGRAM, protocol));
    let at = zoo::net::place();
    let shared = [(); 3].map(|()| make(libc::IPPROTO_UDP));
    for fd in &shared {
        zoo::must(zoo::sys::set_option(fd, sol, reuse, 1));
        zoo::must(bind(fd, &at));
    }
    // They may stay although two do not allow it any more.
    zoo::must(zoo::sys::set_option(&shared[0], sol, reuse, 0));
    zoo::must(zoo::sys::set_option(&shared[2], sol, reuse, 0));
    // An address for documentation.
    let foreign: SocketAddr = ([192, 0, 2, 17], at.port()).into();
    let free = make(libc::IPPROTO_UDP);
    zoo::must(zoo::sys::set_option(&free, libc::IPPROTO_IP, libc::IP_FREEBIND, 1));
    zoo::must(bind(&free, &foreign));
    zoo::must(zoo::sys::set_option(&free, libc::IPPROTO_IP, libc::IP_FREEBIND, 0));
    let lite = zoo::net::socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE).ok();
    let lite_at = zoo::net::place();
    if let Some(lite) = &lite {
        zoo::must(bind(lite, &lite_at));
    }
    let look = || {
        let reuse = shared.each_ref().map(|fd| zoo::sys::get_option(fd, sol, reuse).ok());
        let free_now = zoo::sys::get_option(&free, libc::IPPROTO_IP, libc::IP_FREEBIND).ok();
        (reuse, free_now, shared.each_ref().map(name), name(&free))
    };
    let before = look();
    while zoo.gap() {
        zoo.eq("addresses and reuse", look(), before.clone());
        if let Some(lite) = &lite {
            zoo.eq("send", sendto(lite, b"hello", SendFlags::empty(), &lite_at), Ok(5));
            zoo.eq("receive", recv(lite, &mut [0u8; 16][..], RecvFlags::empty()).map(|(n, _)| n), Ok(5));
        }
    }
}

//! Raw sockets: headers of one's own, what ICMP lets through, an address; and an echo socket with its number.
use rustix::net::{RecvFlags, SendFlags, bind, getsockname, recv, sendto};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

const ICMP_FILTER: i32 = 1;
const SOL_RAW: i32 = 255;

fn name(fd: &OwnedFd) -> Option<SocketAddr> {
    getsockname(fd).ok().and_then(|a| SocketAddr::try_from(a).ok())
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let make = |family, protocol| zoo::net::socket(family, libc::SOCK_RAW, protocol);
    let (Ok(udp), Ok(icmp), Ok(any)) = (make(libc::AF_INET, 17), make(libc::AF_INET, 1), make(libc::AF_INET, 255))
    else {
        zoo.skip("no raw sockets here")
    };
    let icmp6 = make(libc::AF_INET6, libc::IPPROTO_ICMPV6).ok();
    let (client, server) = (zoo::net::place(), zoo::net::place());
    let SocketAddr::V4(from) = client else { return };
    let SocketAddr::V4(to) = server else { return };
    let receiver = zoo::net::udp(server);
    let no_port: SocketAddr = (*from.ip(), 0).into();
    zoo::must(bind(&udp, &no_port));
    zoo::must(zoo::sys::set_option(&udp, libc::IPPROTO_IP, libc::IP_HDRINCL, 1));
    zoo::must(zoo::sys::set_option(&icmp, SOL_RAW, ICMP_FILTER, 1 << 13));
    // All but one type, in the first of eight words.
    if let Some(fd) = &icmp6 {
        zoo::must(zoo::sys::set_option(fd, libc::IPPROTO_ICMPV6, 1, -5));
    }
    // Not everybody's group may have one; this one's number is its port.
    let echo = zoo::net::socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP).ok();
    if let Some(echo) = &echo {
        let number: SocketAddr = (Ipv4Addr::UNSPECIFIED, client.port()).into();
        zoo::must(bind(echo, &number));
    }
    // A packet from the client: IP header, UDP header, five bytes. The kernel fills in length, id and checksum of the former.
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend_from_slice(&from.ip().octets());
    packet.extend_from_slice(&to.ip().octets());
    for word in [from.port(), to.port(), 13, 0] {
        packet.extend_from_slice(&word.to_be_bytes());
    }
    packet.extend_from_slice(b"hello");
    let look = || {
        let raw = [&udp, &icmp, &any].map(|fd| {
            (name(fd), zoo::net::options(fd, &[libc::IPPROTO_IP]), zoo::sys::get_option(fd, SOL_RAW, ICMP_FILTER).ok())
        });
        let six = icmp6.as_ref().map(|fd| zoo::sys::get_option(fd, libc::IPPROTO_ICMPV6, 1).ok());
        (raw, six, echo.as_ref().map(name))
    };
    let before = look();
    while zoo.gap() {
        zoo.eq("names, headers and filters", look(), before.clone());
        zoo.eq("send", sendto(&udp, &packet, SendFlags::empty(), &server), Ok(packet.len()));
        let mut got = [0u8; 16];
        let (n, _) = zoo.get("receive", recv(&receiver, &mut got[..], RecvFlags::empty()));
        zoo.eq("receive", &got[..n], b"hello");
    }
}

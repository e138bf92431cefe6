//! Datagrams that wait in UDP sockets: of two senders, in a socket with a peer, and in one for both versions of IP.
use rustix::net::{RecvFlags, SendFlags, SocketAddrAny, bind, connect, getsockname, recvfrom, sendto};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use zoo::net::place;

fn name(fd: &OwnedFd) -> SocketAddr {
    zoo::must(SocketAddr::try_from(zoo::must(getsockname(fd))))
}

/// What waits first, and whose it is.
fn next(fd: &OwnedFd) -> Option<(Vec<u8>, SocketAddr)> {
    let mut room = vec![0u8; 40_000];
    let (n, _, from): (usize, usize, Option<SocketAddrAny>) = recvfrom(fd, &mut room[..], RecvFlags::DONTWAIT).ok()?;
    room.truncate(n);
    Some((room, SocketAddr::try_from(from?).ok()?))
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let make = |family, at: SocketAddr| -> Option<OwnedFd> {
        let fd = zoo::net::socket(family, libc::SOCK_DGRAM, libc::IPPROTO_UDP).ok()?;
        bind(&fd, &at).ok()?;
        Some(fd)
    };
    let four = |at: SocketAddr| zoo::must(make(libc::AF_INET, at).ok_or("a socket"));
    let [plain, other, far, with_peer, peer] = [(); 5].map(|()| four(place()));
    zoo::must(connect(&with_peer, &name(&peer)));
    let any = four(([0; 4], place().port()).into());
    // Not every machine has version 6; this one takes both.
    let both = make(libc::AF_INET6, (std::net::Ipv6Addr::UNSPECIFIED, place().port()).into());
    let six = make(libc::AF_INET6, (std::net::Ipv6Addr::LOCALHOST, place().port()).into());
    let long: Vec<u8> = (0..30_000_u32).map(|n| n as u8).collect();
    let local = |fd: &OwnedFd, ip: &str| SocketAddr::new(zoo::must(ip.parse()), name(fd).port());
    loop {
        let mut put = |from: &OwnedFd, to: SocketAddr, bytes: &[u8]| {
            zoo.eq("send", sendto(from, bytes, SendFlags::empty(), &to), Ok(bytes.len()));
        };
        put(&other, name(&plain), b"one");
        put(&far, name(&plain), &long);
        put(&other, name(&plain), b"three");
        put(&far, local(&any, "127.0.0.1"), b"for anybody");
        if let (Some(both), Some(six)) = (&both, &six) {
            put(&other, local(both, "127.0.0.1"), b"version 4");
            put(six, local(both, "::1"), b"version 6");
        }
        zoo.eq("send", sendto(&peer, b"to its own", SendFlags::empty(), &name(&with_peer)), Ok(10));
        let on = zoo.gap();
        zoo.eq("one", next(&plain), Some((b"one".to_vec(), name(&other))));
        zoo.ok("the long one", next(&plain) == Some((long.clone(), name(&far))));
        zoo.eq("three", next(&plain), Some((b"three".to_vec(), name(&other))));
        zoo.eq("no more", next(&plain), None);
        zoo.eq("for anybody", next(&any), Some((b"for anybody".to_vec(), name(&far))));
        zoo.eq("with a peer", next(&with_peer), Some((b"to its own".to_vec(), name(&peer))));
        zoo.eq("no more", (next(&with_peer), next(&any)), (None, None));
        if let (Some(both), Some(six)) = (&both, &six) {
            let std::net::SocketAddr::V4(from) = name(&other) else { panic!("a version 4 socket") };
            let from = SocketAddr::new(from.ip().to_ipv6_mapped().into(), from.port());
            zoo.eq("version 4", next(both), Some((b"version 4".to_vec(), from)));
            zoo.eq("version 6", next(both), Some((b"version 6".to_vec(), name(six))));
            zoo.eq("no more", next(both), None);
        }
        let silent = [&plain, &with_peer, &any].map(|fd| zoo::sys::get_option(fd, libc::SOL_SOCKET, 42).ok());
        zoo.eq("peek offsets", silent, [Some(vec![255; 4]), Some(vec![255; 4]), Some(vec![255; 4])]);
        if !on {
            return;
        }
    }
}

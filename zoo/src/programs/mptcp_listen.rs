//! Listening MPTCP sockets, and one that is only bound: clients of both protocols can still connect.
use rustix::net::{RecvFlags, SendFlags, SocketAddrAny, accept, bind, connect, getsockname, listen, recv, send};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

const PROTOCOL: i32 = libc::IPPROTO_MPTCP;

fn name(fd: &OwnedFd) -> Option<SocketAddr> {
    getsockname(fd).ok().and_then(|a: SocketAddrAny| SocketAddr::try_from(a).ok())
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let make = |family, protocol| zoo::net::socket(family, libc::SOCK_STREAM, protocol);
    let first = match make(libc::AF_INET, PROTOCOL) {
        Ok(fd) => fd,
        Err(e) => zoo.skip(&format!("no MPTCP here: {e}")),
    };
    let bound = zoo::must(make(libc::AF_INET, PROTOCOL));
    let second = zoo::must(make(libc::AF_INET6, PROTOCOL));
    let any = |ip: &str| SocketAddr::new(zoo::must(ip.parse()), 0);
    zoo::must(bind(&first, &any("127.0.0.1")));
    zoo::must(bind(&bound, &any("127.0.0.1")));
    zoo::must(zoo::sys::set_option(&first, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1));
    zoo::must(zoo::sys::set_option(&first, libc::SOL_TCP, libc::TCP_NODELAY, 1));
    zoo::must(zoo::sys::set_option(&first, libc::IPPROTO_IP, libc::IP_TOS, 8));
    zoo::must(listen(&first, 7));
    // Not every machine has version 6.
    let has_6 = bind(&second, &any("::1")).is_ok() && listen(&second, 3).is_ok();
    let all = [&first, &bound, &second];
    let look = || {
        all.map(|fd| {
            let of = |level, name| zoo::sys::get_option(fd, level, name).ok();
            let options = [
                of(libc::SOL_SOCKET, libc::SO_PROTOCOL),
                of(libc::SOL_SOCKET, libc::SO_ACCEPTCONN),
                of(libc::SOL_SOCKET, libc::SO_KEEPALIVE),
                of(libc::SOL_TCP, libc::TCP_NODELAY),
                of(libc::IPPROTO_IP, libc::IP_TOS),
            ];
            (name(fd), options)
        })
    };
    let before = look();
    while zoo.gap() {
        zoo.eq("names and options", look(), before.clone());
        for listener in [&first, &second].into_iter().take(1 + usize::from(has_6)) {
            for protocol in [PROTOCOL, libc::IPPROTO_TCP] {
                let Some(to) = name(listener) else { break };
                let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
                let client = zoo::must(make(family, protocol));
                zoo::must(connect(&client, &to));
                let server = zoo::must(accept(listener));
                zoo.eq("send", send(&client, b"hello", SendFlags::empty()), Ok(5));
                let mut got = [0u8; 5];
                let received = recv(&server, &mut got[..], RecvFlags::WAITALL).map(|(n, _)| n);
                zoo.eq("receive", (received, got), (Ok(5), *b"hello"));
                // Resetting leaves nothing behind that would keep the port.
                zoo::must(rustix::net::sockopt::set_socket_linger(&server, Some(std::time::Duration::ZERO)));
            }
        }
    }
}

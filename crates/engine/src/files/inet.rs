//! Internet sockets without a connection to keep: TCP listeners, fresh TCP sockets, UDP with and without a peer.
//!
//! Established TCP connections need the kernel's repair mode, which this version does not use yet: they are refused.
//! Datagrams that wait in a UDP socket are dropped with a warning, as UDP promises no more: a busy server always has some.
use super::look::FdView;
use super::restore::Opener;
use super::table::Records;
use super::{FdKind, alone, sockopt};
use crate::{Error, Kind, Result, ResultExt};
use crust_image::proto::{FdTypes, FileEntry, InetSkEntry, IpOptsEntry, SkShutdown, TcpOptsEntry};
use crust_kernel::sock_diag::{option, peek, set_option, tcp_info};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketAddrAny, SocketFlags, SocketType};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

pub(super) static KIND: FdKind =
    FdKind { name: "internet socket", fd_type: FdTypes::Inetsk, recognise, dump, group: alone, open };

const LISTEN: u32 = 10;
const ESTABLISHED: u32 = 1;
const CLOSE: u32 = 7;
const SOL: i32 = libc::SOL_SOCKET;
const TCP: i32 = libc::IPPROTO_TCP;
const UDP: i32 = libc::IPPROTO_UDP;

fn recognise(v: &FdView<'_>) -> bool {
    let is = |name: i32| option(v.copy(), SOL, name).unwrap_or(-1);
    v.file_type() == libc::S_IFSOCK
        && v.link.starts_with(b"socket:[")
        && matches!(is(libc::SO_DOMAIN), libc::AF_INET | libc::AF_INET6)
        && matches!((is(libc::SO_TYPE), is(libc::SO_PROTOCOL)), (libc::SOCK_STREAM, TCP) | (libc::SOCK_DGRAM, UDP))
}

fn words(ip: IpAddr) -> Vec<u32> {
    match ip {
        IpAddr::V4(ip) => vec![u32::from_ne_bytes(ip.octets())],
        IpAddr::V6(ip) => ip.octets().chunks_exact(4).map(|c| u32::from_ne_bytes([c[0], c[1], c[2], c[3]])).collect(),
    }
}

fn ip_of(words: &[u32]) -> Option<IpAddr> {
    match words {
        [one] => Some(Ipv4Addr::from(one.to_ne_bytes()).into()),
        [_, _, _, _] => {
            let mut octets = [0; 16];
            for (to, from) in octets.iter_mut().zip(words.iter().flat_map(|w| w.to_ne_bytes())) {
                *to = from;
            }
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}

fn name_of(address: rustix::io::Result<SocketAddrAny>, what: &str) -> Result<Option<SocketAddr>> {
    match address {
        Ok(any) => Ok(SocketAddr::try_from(any).ok()),
        Err(Errno::NOTCONN) => Ok(None),
        Err(e) => Err(Error::kernel(format!("asking for a socket's {what} failed"), e)),
    }
}

fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let fd = v.copy();
    let get = |level: i32, name: i32| option(fd, level, name).during("reading a socket option");
    let family = get(SOL, libc::SO_DOMAIN)?;
    let kind = get(SOL, libc::SO_TYPE)?;
    let proto = get(SOL, libc::SO_PROTOCOL)?;
    let source = name_of(rustix::net::getsockname(fd), "name")?
        .ok_or_else(|| Error::new(Kind::Internal, "an internet socket has no internet address"))?;
    let peer = match rustix::net::getpeername(fd) {
        Ok(Some(any)) => name_of(Ok(any), "peer")?,
        Ok(None) => None,
        Err(e) => name_of(Err(e), "peer")?,
    };
    let mut entry = InetSkEntry {
        id,
        ino: v.stat.st_ino as u32,
        family: family as u32,
        r#type: kind as u32,
        proto: proto as u32,
        state: CLOSE,
        src_port: source.port().into(),
        flags: v.info.flags,
        src_addr: words(source.ip()),
        fown: v.fown()?,
        opts: sockopt::dump(fd, false)?,
        ..InetSkEntry::default()
    };
    if let SocketAddr::V6(a) = source
        && a.scope_id() != 0
    {
        let name =
            rustix::net::netdevice::index_to_name(fd, a.scope_id()).during("asking for a network device's name")?;
        entry.ifname = Some(name);
    }
    let blank = if family == libc::AF_INET { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    entry.dst_addr = words(peer.map_or(blank, |p| p.ip()));
    entry.dst_port = peer.map_or(0, |p| p.port().into());
    let mut ip = IpOptsEntry::default();
    if family == libc::AF_INET6 {
        entry.v6only = Some(get(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)? != 0);
    }
    if get(libc::IPPROTO_IP, libc::IP_FREEBIND)? != 0 {
        ip.freebind = Some(true);
    }
    if get(libc::IPPROTO_IP, libc::IP_PKTINFO)? != 0 {
        ip.pktinfo = Some(true);
    }
    let tos = get(libc::IPPROTO_IP, libc::IP_TOS)?;
    if tos != 0 {
        ip.tos = Some(tos as u32);
    }
    ip.ttl = Some(get(libc::IPPROTO_IP, libc::IP_TTL)? as u32);
    entry.ip_opts = Some(ip);
    if proto == TCP {
        let info = tcp_info(fd).during("asking for a TCP socket's state")?;
        match u32::from(info.state) {
            LISTEN => {
                if info.waiting > 0 {
                    let what = format!("{} connections wait to be accepted, and they cannot be saved", info.waiting);
                    v.in_flight(out.opts, what)?;
                }
                entry.state = LISTEN;
                entry.backlog = info.backlog;
            }
            CLOSE => {}
            _ => {
                let to = peer.map_or_else(|| "a peer that is gone".to_owned(), |p| p.to_string());
                return Err(Error::unsupported(
                    format!("the TCP connection {source} to {to} cannot be saved yet"),
                    "close it before the dump; --tcp-established is not supported by this version",
                ));
            }
        }
        let number = |name: i32| get(TCP, name).map(|n| n as u32);
        let mut tcp = TcpOptsEntry {
            keepcnt: Some(number(libc::TCP_KEEPCNT)?),
            keepidle: Some(number(libc::TCP_KEEPIDLE)?),
            keepintvl: Some(number(libc::TCP_KEEPINTVL)?),
            ..TcpOptsEntry::default()
        };
        if get(TCP, libc::TCP_NODELAY)? != 0 {
            tcp.nodelay = Some(true);
        }
        if get(TCP, libc::TCP_CORK)? != 0 {
            tcp.cork = Some(true);
        }
        entry.tcp_opts = Some(tcp);
    } else {
        entry.state = if peer.is_some() { ESTABLISHED } else { CLOSE };
        if get(UDP_CORK.0, UDP_CORK.1)? != 0 {
            return Err(Error::unsupported(
                "a corked UDP socket is not supported",
                "let the program send its datagram",
            ));
        }
        if peek(fd, 0) != Err(Errno::AGAIN) {
            log::warn!("{v:?}: the datagrams that wait in UDP socket {source} are lost");
        }
        entry.tcp_opts = Some(TcpOptsEntry::default());
    }
    Ok(FileEntry { isk: Some(entry), ..FileEntry::default() })
}

/// `UDP_CORK`: a datagram is half written.
const UDP_CORK: (i32, i32) = (libc::IPPROTO_UDP, 1);

fn address(words: &[u32], port: u32, scope: u32) -> Result<SocketAddr> {
    let bad = || Error::bad_image("files.img", "an impossible internet address");
    let port = u16::try_from(port).map_err(|_| bad())?;
    Ok(match ip_of(words).ok_or_else(bad)? {
        IpAddr::V6(ip) => std::net::SocketAddrV6::new(ip, port, 0, scope).into(),
        ip => SocketAddr::new(ip, port),
    })
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    for e in entries {
        let s = cx.body(e, e.isk.as_ref())?;
        let fd = match cx.inherited(&format!("socket:[{}]", s.ino))? {
            Some(given) => given,
            None => {
                let fd = make(s).map_err(|err| err.on(crate::Object::Path(describe(s))))?;
                cx.settle(&fd, s.flags, &s.fown)?;
                fd
            }
        };
        opened.push((e.id, fd));
    }
    Ok(opened)
}

fn describe(s: &InetSkEntry) -> String {
    let kind = if s.proto == TCP as u32 { "tcp" } else { "udp" };
    match address(&s.src_addr, s.src_port, 0) {
        Ok(a) => format!("{kind} {a}"),
        Err(_) => format!("{kind} socket {}", s.ino),
    }
}

fn make(s: &InetSkEntry) -> Result<OwnedFd> {
    if !matches!((s.proto as i32, s.state), (TCP, LISTEN | CLOSE) | (UDP, CLOSE | ESTABLISHED)) {
        return Err(Error::unsupported(
            "this internet socket cannot be restored by this version (an established connection, or another protocol)",
            "restore the images with CRIU",
        ));
    }
    let family = AddressFamily::from_raw(s.family as u16);
    let protocol = core::num::NonZeroU32::new(s.proto).map(Protocol::from_raw);
    let fd = rustix::net::socket_with(family, SocketType::from_raw(s.r#type), SocketFlags::CLOEXEC, protocol)
        .during("socket")?;
    let set = |level: i32, name: i32, want: i32| -> Result<()> {
        if option(&fd, level, name) == Ok(want) {
            return Ok(());
        }
        set_option(&fd, level, name, want).during("setting a socket option")
    };
    if let Some(only) = s.v6only {
        set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, i32::from(only))?;
    }
    if let Some(ip) = &s.ip_opts {
        if ip.freebind == Some(true) {
            set(libc::IPPROTO_IP, libc::IP_FREEBIND, 1)?;
        }
        if ip.pktinfo == Some(true) {
            set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        }
        if let Some(tos) = ip.tos {
            set(libc::IPPROTO_IP, libc::IP_TOS, tos as i32)?;
        }
        if let Some(ttl) = ip.ttl {
            set(libc::IPPROTO_IP, libc::IP_TTL, ttl as i32)?;
        }
    }
    sockopt::restore(&fd, &s.opts)?;
    let scope = match &s.ifname {
        Some(name) => rustix::net::netdevice::name_to_index(&fd, name).during("finding a network device")?,
        None => 0,
    };
    let source = address(&s.src_addr, s.src_port, scope)?;
    if s.src_port != 0 || !source.ip().is_unspecified() {
        // Connections of the program that was dumped may still be in TIME_WAIT.
        set(SOL, libc::SO_REUSEADDR, 1)?;
        rustix::net::bind(&fd, &source).map_err(|e| {
            let err = Error::kernel("taking the address failed", e);
            if e == Errno::ADDRINUSE {
                err.kind_is(Kind::Taken).help("stop the program that listens there")
            } else {
                err
            }
        })?;
    }
    if let Some(tcp) = s.tcp_opts.as_ref().filter(|_| s.proto == TCP as u32) {
        for (name, want) in [
            (libc::TCP_KEEPCNT, tcp.keepcnt.map(|n| n as i32)),
            (libc::TCP_KEEPIDLE, tcp.keepidle.map(|n| n as i32)),
            (libc::TCP_KEEPINTVL, tcp.keepintvl.map(|n| n as i32)),
            (libc::TCP_NODELAY, tcp.nodelay.map(i32::from)),
            (libc::TCP_CORK, tcp.cork.map(i32::from)),
        ] {
            if let Some(want) = want {
                set(TCP, name, want)?;
            }
        }
    }
    if s.state == LISTEN {
        rustix::net::listen(&fd, s.backlog as i32).during("listen")?;
    } else if s.state == ESTABLISHED {
        let peer = address(&s.dst_addr, s.dst_port, scope)?;
        rustix::net::connect(&fd, &peer).during("connecting a UDP socket to its peer")?;
    }
    set(SOL, libc::SO_REUSEADDR, i32::from(s.opts.reuseaddr == Some(true)))?;
    if let Some(how) = s.shutdown.and_then(|v| SkShutdown::try_from(v).ok()) {
        use rustix::net::Shutdown;
        let how = match how {
            SkShutdown::None => return Ok(fd),
            SkShutdown::Read => Shutdown::Read,
            SkShutdown::Write => Shutdown::Write,
            SkShutdown::Both => Shutdown::Both,
        };
        rustix::net::shutdown(fd.as_fd(), how).during("shutdown")?;
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_network_order() {
        let v4: IpAddr = "127.0.0.1".parse().expect("an address");
        assert_eq!(words(v4), vec![u32::from_ne_bytes([127, 0, 0, 1])]);
        for text in ["10.1.2.3", "::1", "fe80::1:2:3"] {
            let ip: IpAddr = text.parse().expect("an address");
            assert_eq!(ip_of(&words(ip)), Some(ip));
        }
        assert_eq!(ip_of(&[1, 2]), None);
    }
}

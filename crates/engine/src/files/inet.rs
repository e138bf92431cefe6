//! Internet sockets without a connection to keep: TCP and MPTCP listeners, TCP sockets that are new or closed, UDP with and without
//! a peer, echo and raw sockets.
//!
//! Established TCP connections need the kernel's repair mode, which this version does not use yet: they are refused.
//! Datagrams that wait in UDP sockets are kept (`udp_data.rs`). Packets that wait in echo and raw sockets are dropped with a
//! warning, as these promise no more.
use super::look::FdView;
use super::restore::{FileImages, Opener, QueuedPacket};
use super::table::Records;
use super::{FdKind, sockopt, udp_data};
use crate::{Error, Kind, Result, ResultExt};
use crust_image::proto::{
    CrustMembership, FdTypes, FileEntry, InetSkEntry, IpOptsEntry, IpOptsRawEntry, SkPacketEntry, SkShutdown,
    TcpOptsEntry,
};
use crust_kernel::inet_diag::{InetSocket, inet_sockets};
use crust_kernel::sock_diag::{option, set_option, tcp_info};
use crust_kernel::sockopt::{Membership, bytes, join, membership, set_bytes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketAddrAny, SocketFlags, SocketType};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

pub(super) static KIND: FdKind =
    FdKind { name: "internet socket", fd_type: FdTypes::Inetsk, recognise, dump, group, open };

const LISTEN: u32 = 10;
const ESTABLISHED: u32 = 1;
const CLOSE: u32 = 7;
const SOL: i32 = libc::SOL_SOCKET;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
const TCP: i32 = libc::IPPROTO_TCP;
const MPTCP: i32 = libc::IPPROTO_MPTCP;
const UDP: i32 = libc::IPPROTO_UDP;
const UDPLITE: i32 = libc::IPPROTO_UDPLITE;
const ICMP: i32 = libc::IPPROTO_ICMP;
const ICMPV6: i32 = libc::IPPROTO_ICMPV6;
const IPV6_FREEBIND: i32 = 78;
const IPV6_HDRINCL: i32 = 36;
const IP_NODEFRAG: i32 = 22;
/// `UDP_CORK`: a datagram is half written.
const UDP_CORK: i32 = 1;
const UDP_ENCAP: i32 = 100;
/// `TCP_AO_INFO`
const TCP_AO_INFO: i32 = 40;

/// The option that holds what a raw socket of ICMP lets through, and its length.
fn icmp_filter(proto: i32) -> Option<(i32, i32, usize)> {
    match proto {
        ICMP => Some((libc::IPPROTO_RAW, 1, 4)),
        ICMPV6 => Some((ICMPV6, 1, 32)),
        _ => None,
    }
}

/// FREEBIND of a family; raw sockets of version 6 have only the latter.
fn freebind(family: i32) -> (i32, i32) {
    if family == libc::AF_INET { (IP, libc::IP_FREEBIND) } else { (IPV6, IPV6_FREEBIND) }
}

fn recognise(v: &FdView<'_>) -> bool {
    let is = |name: i32| v.copy().map_or(-1, |fd| option(fd, SOL, name).unwrap_or(-1));
    v.file_type() == libc::S_IFSOCK
        && v.link.starts_with(b"socket:[")
        && matches!(is(libc::SO_DOMAIN), libc::AF_INET | libc::AF_INET6)
        && matches!(
            (is(libc::SO_TYPE), is(libc::SO_PROTOCOL)),
            (libc::SOCK_STREAM, TCP | MPTCP) | (libc::SOCK_DGRAM, UDP | UDPLITE | ICMP | ICMPV6) | (libc::SOCK_RAW, _)
        )
}

/// Sockets on one port are opened together: each of them must allow the others to be there.
fn group(e: &FileEntry, _: &FileImages) -> Option<u64> {
    let s = e.isk.as_ref()?;
    let has_ports = s.r#type != libc::SOCK_RAW as u32 && matches!(s.proto as i32, TCP | MPTCP | UDP | UDPLITE);
    // MPTCP has the ports of TCP.
    let proto = if s.proto == MPTCP as u32 { TCP as u32 } else { s.proto };
    (has_ports && s.src_port != 0).then(|| u64::from(proto) << 32 | u64::from(s.src_port))
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

/// What sock_diag(7) says about the socket; nothing if it has no port.
fn ask(v: &FdView<'_>, form: (i32, i32, i32), out: &mut Records<'_>) -> Result<InetSocket> {
    let (family, kind, proto) = form;
    let proto = if kind == libc::SOCK_RAW { libc::IPPROTO_RAW } else { proto };
    // Nor does it list MPTCP where it lists TCP; of such a socket all can be asked otherwise.
    if matches!(proto, ICMP | ICMPV6 | MPTCP) {
        return Ok(InetSocket::default());
    }
    let all = match out.inet.entry((family, proto)) {
        std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
        std::collections::hash_map::Entry::Vacant(slot) => {
            let states = if proto == TCP { 1 << LISTEN } else { u32::MAX };
            match inet_sockets(family, proto, states) {
                Ok(all) => slot.insert(all),
                Err(e) => {
                    return Err(Error::kernel("asking about internet sockets (sock_diag) failed", e)
                        .help("load the kernel modules tcp_diag, udp_diag and raw_diag"));
                }
            }
        }
    };
    Ok(all.get(&(v.stat.st_ino as u32)).cloned().unwrap_or_default())
}

fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let fd = v.copy()?;
    let get = |level: i32, name: i32| option(fd, level, name).during("reading a socket option");
    let form = (get(SOL, libc::SO_DOMAIN)?, get(SOL, libc::SO_TYPE)?, get(SOL, libc::SO_PROTOCOL)?);
    let (family, kind, proto) = form;
    let source = name_of(rustix::net::getsockname(fd), "name")?
        .ok_or_else(|| Error::new(Kind::Internal, "an internet socket has no internet address"))?;
    let seen = ask(v, form, out)?;
    let mut peer = match rustix::net::getpeername(fd) {
        Ok(Some(any)) => name_of(Ok(any), "peer")?,
        Ok(None) => None,
        Err(e) => name_of(Err(e), "peer")?,
    };
    if peer.is_none() && u32::from(seen.state) == ESTABLISHED {
        // A peer without a port has no name.
        let [a, b, c, d, ..] = seen.peer;
        let ip =
            if family == libc::AF_INET { IpAddr::from([a, b, c, d]) } else { IpAddr::from(Ipv6Addr::from(seen.peer)) };
        peer = Some(SocketAddr::new(ip, seen.peer_port));
    }
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
        opts: v.socket_options(&mut out.fresh)?,
        ip_opts: Some(ip_options(fd, form)?),
        tcp_opts: Some(TcpOptsEntry::default()),
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
    if family == libc::AF_INET6 {
        entry.v6only = Some(get(IPV6, libc::IPV6_V6ONLY)? != 0);
    }
    if !source.ip().is_unspecified() {
        let mut any_port = source;
        any_port.set_port(0);
        if !*out.own_addresses.entry(any_port).or_insert_with(|| is_ours(any_port)) {
            entry.crust_freebound = Some(true);
        }
    }
    if kind == libc::SOCK_STREAM {
        tcp(v, source, peer, &seen, &mut entry, out)?;
        return Ok(FileEntry { isk: Some(entry.into()), ..FileEntry::default() });
    }
    entry.crust_groups = memberships(fd, family, out)?;
    entry.state = if peer.is_some() { ESTABLISHED } else { CLOSE };
    entry.shutdown = shutdown_of(seen.shutdown);
    let is_udp = kind == libc::SOCK_DGRAM && matches!(proto, UDP | UDPLITE);
    if is_udp {
        refuse_udp(fd)?;
    }
    datagrams(v, &entry, is_udp, out)?;
    Ok(FileEntry { isk: Some(entry.into()), ..FileEntry::default() })
}

/// Refuses what nothing says how to bring back in a UDP socket.
fn refuse_udp(fd: BorrowedFd<'_>) -> Result<()> {
    let get = |name: i32| option(fd, UDP, name).during("reading a socket option");
    if get(UDP_CORK)? != 0 {
        return Err(Error::unsupported("a corked UDP socket is not supported", "let the program send its datagram"));
    }
    if get(UDP_ENCAP)? != 0 {
        return Err(Error::unsupported(
            "a UDP socket that carries another protocol (UDP_ENCAP) is not supported",
            "close it before the dump",
        ));
    }
    Ok(())
}

/// The datagrams that wait in the socket of `entry`, without taking them from it.
fn datagrams(v: &FdView<'_>, entry: &InetSkEntry, is_udp: bool, out: &mut Records<'_>) -> Result<()> {
    let fd = v.copy()?;
    // Looking by recvmsg would take a pending error away.
    let events = events(fd, PollFlags::IN | PollFlags::RDHUP, Duration::ZERO)?;
    let waits = events.contains(PollFlags::IN) && !events.contains(PollFlags::RDHUP);
    if waits || rustix::io::ioctl_fionread(fd).is_ok_and(|n| n > 0) {
        let found = match is_udp && !events.contains(PollFlags::ERR) {
            true if out.running => Some(Vec::new()),
            true => udp_data::look(fd)?,
            false => None,
        };
        match found {
            Some(datagrams) => out.packets.extend(datagrams.into_iter().map(|d| {
                let crust_from = Some(udp_data::pack(d.from));
                let length = d.bytes.len() as u32;
                (SkPacketEntry { id_for: entry.id, length, crust_from, ..SkPacketEntry::default() }, d.bytes)
            })),
            None => log::warn!("{v:?}: the packets that wait in {} are lost", describe(entry)),
        }
    }
    Ok(())
}

fn shutdown_of(bits: u8) -> Option<i32> {
    let how = match bits & 3 {
        0 => return None,
        1 => SkShutdown::Read,
        2 => SkShutdown::Write,
        _ => SkShutdown::Both,
    };
    Some(how as i32)
}

/// What poll(2) says about a descriptor within a time.
fn events(fd: BorrowedFd<'_>, want: PollFlags, limit: Duration) -> Result<PollFlags> {
    let mut fds = [PollFd::from_borrowed_fd(fd, want)];
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit))).during("asking what a socket is ready for")?;
    Ok(fds.first().map_or(PollFlags::empty(), PollFd::revents))
}

/// True if the machine has the address: sockets may be bound to others (IP_FREEBIND).
fn is_ours(any_port: SocketAddr) -> bool {
    let family = if any_port.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let probe = rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    !probe.is_ok_and(|probe| rustix::net::bind(&probe, &any_port) == Err(Errno::ADDRNOTAVAIL))
}

/// Options of the internet protocol that have a field.
fn ip_options(fd: BorrowedFd<'_>, (family, kind, proto): (i32, i32, i32)) -> Result<IpOptsEntry> {
    let get = |level: i32, name: i32| match option(fd, level, name) {
        // MPTCP has few of them.
        Err(Errno::OPNOTSUPP | Errno::NOPROTOOPT) if proto == MPTCP => Ok(0),
        other => other.during("reading a socket option"),
    };
    let on = |level: i32, name: i32| get(level, name).map(|v| (v != 0).then_some(true));
    let mut ip = IpOptsEntry::default();
    let (level, name) = freebind(family);
    ip.freebind = on(level, name)?;
    if family == libc::AF_INET {
        ip.pktinfo = on(IP, libc::IP_PKTINFO)?;
        ip.tos = Some(get(IP, libc::IP_TOS)? as u32).filter(|tos| *tos != 0);
        ip.ttl = Some(get(IP, libc::IP_TTL)? as u32).filter(|ttl| *ttl != 0);
    } else {
        ip.pktinfo = on(IPV6, libc::IPV6_RECVPKTINFO)?;
    }
    if kind == libc::SOCK_RAW {
        let mut raw = IpOptsRawEntry::default();
        if family == libc::AF_INET {
            raw.hdrincl = Some(get(IP, libc::IP_HDRINCL)? != 0);
            raw.nodefrag = on(IP, IP_NODEFRAG)?;
        } else {
            raw.hdrincl = Some(get(IPV6, IPV6_HDRINCL)? != 0);
        }
        if let Some((level, name, len)) = icmp_filter(proto)
            && (family == libc::AF_INET) == (proto == ICMP)
        {
            let value = bytes(fd, level, name, len).during("reading a socket option")?;
            raw.icmpv_filter =
                value.chunks_exact(4).map(|c| c.iter().rev().fold(0, |w, b| w << 8 | u32::from(*b))).collect();
        }
        ip.raw = Some(raw);
    }
    Ok(ip)
}

/// Multicast groups of a socket. The kernel lists those of a device, and says of each whether a socket listens to it.
fn memberships(fd: BorrowedFd<'_>, family: i32, out: &mut Records<'_>) -> Result<Vec<CrustMembership>> {
    let all = out.multicast.get_or_insert_with(|| groups_4().into_iter().chain(groups_6()).collect());
    let mut found = Vec::new();
    for (ifname, group) in all.iter().filter(|(_, group)| family == libc::AF_INET6 || group.len() == 4) {
        let Ok(index) = rustix::net::netdevice::name_to_index(fd, ifname) else { continue };
        match membership(fd, index, group) {
            Ok(Some(m)) => found.push(CrustMembership {
                ifname: ifname.clone(),
                group: group.clone(),
                sources: m.sources,
                exclude: m.exclude.then_some(true),
            }),
            Ok(None) | Err(Errno::NOPROTOOPT | Errno::OPNOTSUPP | Errno::INVAL) => {}
            Err(e) => return Err(Error::kernel("asking for a socket's multicast groups failed", e)),
        }
    }
    Ok(found)
}

/// All groups of version 4, with the device's name: `/proc/net/igmp` has a line for a device, then one for each group.
fn groups_4() -> Vec<(String, Vec<u8>)> {
    let text = std::fs::read_to_string("/proc/thread-self/net/igmp").unwrap_or_default();
    let mut device = String::new();
    let mut found = Vec::new();
    for line in text.lines().skip(1) {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if line.starts_with(|c: char| c.is_ascii_digit()) {
            device = words.next().unwrap_or_default().trim_end_matches(':').to_owned();
        } else if let Ok(group) = u32::from_str_radix(first, 16) {
            // All hosts: everybody is in it without asking.
            let group = group.to_ne_bytes();
            if group != [224, 0, 0, 1] {
                found.push((device.clone(), group.to_vec()));
            }
        }
    }
    found
}

/// All groups of version 6: index, device and group in each line of `/proc/net/igmp6`.
fn groups_6() -> Vec<(String, Vec<u8>)> {
    let text = std::fs::read_to_string("/proc/thread-self/net/igmp6").unwrap_or_default();
    let parse = |line: &str| -> Option<(String, Vec<u8>)> {
        let mut words = line.split_ascii_whitespace().skip(1);
        let device = words.next()?.to_owned();
        Some((device, u128::from_str_radix(words.next()?, 16).ok()?.to_be_bytes().to_vec()))
    };
    text.lines().filter_map(parse).collect()
}

fn tcp(
    v: &FdView<'_>,
    source: SocketAddr,
    peer: Option<SocketAddr>,
    seen: &InetSocket,
    entry: &mut InetSkEntry,
    out: &mut Records<'_>,
) -> Result<()> {
    let fd = v.copy()?;
    let get = |name: i32| option(fd, TCP, name).during("reading a socket option");
    let is_mptcp = entry.proto == MPTCP as u32;
    if seen.md5 || bytes(fd, TCP, TCP_AO_INFO, 64).is_ok() {
        return Err(Error::unsupported(
            "a TCP socket with keys for signatures (TCP_MD5SIG, TCP_AO) cannot be saved",
            "close it before the dump",
        ));
    }
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
        CLOSE => {
            // A connection that was, or none yet; the former is shut in both directions.
            let events = events(fd, PollFlags::RDHUP, Duration::ZERO)?;
            if events.contains(PollFlags::RDHUP) {
                entry.shutdown = shutdown_of(if sockopt::was_connected(fd) { 3 } else { 1 });
            }
            if is_mptcp && events.contains(PollFlags::RDHUP) {
                return Err(Error::unsupported(
                    "what a closed MPTCP connection left in its socket cannot be saved",
                    "close it before the dump",
                ));
            }
            entry.crust_error = events.contains(PollFlags::ERR).then_some(true);
            let waiting = rustix::io::ioctl_fionread(fd).unwrap_or(0) as usize;
            if waiting > 0 && !is_mptcp {
                let mut data = vec![0; waiting];
                let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
                let (n, _) = rustix::net::recv(fd, &mut data[..], flags).during("looking at a socket's queue")?;
                data.truncate(n);
                let packet = SkPacketEntry { id_for: entry.id, length: data.len() as u32, ..SkPacketEntry::default() };
                out.packets.push((packet, data));
            }
        }
        _ => {
            let to = peer.map_or_else(|| "a peer that is gone".to_owned(), |p| p.to_string());
            return Err(Error::unsupported(
                format!("the TCP connection {source} to {to} cannot be saved yet"),
                "close it before the dump; --tcp-established is not supported by this version",
            ));
        }
    }
    if is_mptcp {
        let known = |name: i32| option(fd, TCP, name).ok();
        let number = |name: i32| known(name).map(|n| n as u32);
        entry.tcp_opts = Some(TcpOptsEntry {
            keepcnt: number(libc::TCP_KEEPCNT),
            keepidle: number(libc::TCP_KEEPIDLE),
            keepintvl: number(libc::TCP_KEEPINTVL),
            nodelay: known(libc::TCP_NODELAY).filter(|n| *n != 0).map(|_| true),
            cork: known(libc::TCP_CORK).filter(|n| *n != 0).map(|_| true),
        });
        return Ok(());
    }
    let number = |name: i32| get(name).map(|n| n as u32);
    entry.tcp_opts = Some(TcpOptsEntry {
        keepcnt: Some(number(libc::TCP_KEEPCNT)?),
        keepidle: Some(number(libc::TCP_KEEPIDLE)?),
        keepintvl: Some(number(libc::TCP_KEEPINTVL)?),
        nodelay: (get(libc::TCP_NODELAY)? != 0).then_some(true),
        cork: (get(libc::TCP_CORK)? != 0).then_some(true),
    });
    Ok(())
}

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
    let mut made: Vec<(&InetSkEntry, OwnedFd)> = Vec::new();
    for e in entries {
        let s = cx.body(e, e.isk.as_ref())?;
        match cx.inherited(&format!("socket:[{}]", s.ino))? {
            Some(given) => opened.push((e.id, given)),
            None => {
                let fd = make(s, cx).map_err(|err| err.on(crate::Object::Path(describe(s))))?;
                made.push((s, fd));
            }
        }
    }
    // In the order in which they were made, for what the first on a port means.
    made.sort_by_key(|(s, _)| s.ino);
    let on = |s: &InetSkEntry, e: Error| e.on(crate::Object::Path(describe(s)));
    for (s, fd) in &made {
        bind(fd, s).map_err(|e| on(s, e))?;
        let data = cx.images.packets.get(&s.id).map(Vec::as_slice).unwrap_or_default();
        if s.state == CLOSE && s.proto == TCP as u32 && (!data.is_empty() || s.crust_error == Some(true)) {
            let source = bound_to(fd, s)?;
            meet_and_part(fd, source, data, s.crust_error == Some(true)).map_err(|e| on(s, e))?;
        }
    }
    for (s, fd) in &made {
        let Some(packets) = cx.images.packets.get(&s.id).filter(|_| s.proto != TCP as u32) else { continue };
        let datagram = |p: &QueuedPacket| {
            let from = p.from.as_deref().and_then(udp_data::unpack)?;
            Some(udp_data::Datagram { bytes: p.bytes.clone(), from })
        };
        let datagrams: Vec<udp_data::Datagram> = packets.iter().filter_map(datagram).collect();
        udp_data::fill(fd, bound_to(fd, s)?, s.proto as u8, &datagrams, &describe(s));
    }
    // All have their addresses before the first takes the port for itself.
    for (s, fd) in &made {
        start(fd, s).map_err(|e| on(s, e))?;
    }
    for (s, fd) in &made {
        for (name, want) in [(libc::SO_REUSEADDR, s.opts.reuseaddr), (libc::SO_REUSEPORT, s.opts.so_reuseport)] {
            set(fd, SOL, name, i32::from(want == Some(true))).map_err(|e| on(s, e))?;
        }
    }
    for (s, fd) in made {
        sockopt::restore_filter(&fd, &s.opts).map_err(|e| on(s, e))?;
        shut(&fd, s).map_err(|e| on(s, e))?;
        cx.settle(&fd, s.flags, &s.fown)?;
        opened.push((s.id, fd));
    }
    Ok(opened)
}

fn describe(s: &InetSkEntry) -> String {
    let kind = match (s.r#type as i32, s.proto as i32) {
        (libc::SOCK_RAW, proto) => format!("raw socket of protocol {proto}"),
        (_, TCP) => "tcp".to_owned(),
        (_, MPTCP) => "mptcp".to_owned(),
        (_, UDP) => "udp".to_owned(),
        (_, UDPLITE) => "udplite".to_owned(),
        _ => "icmp".to_owned(),
    };
    match address(&s.src_addr, s.src_port, 0) {
        Ok(a) => format!("{kind} {a}"),
        Err(_) => format!("{kind} socket {}", s.ino),
    }
}

fn set(fd: &OwnedFd, level: i32, name: i32, want: i32) -> Result<()> {
    if option(fd, level, name) == Ok(want) {
        return Ok(());
    }
    set_option(fd, level, name, want).during("setting a socket option")
}

/// A new socket with its options.
fn make(s: &InetSkEntry, cx: &Opener<'_>) -> Result<OwnedFd> {
    let (kind, proto) = (s.r#type as i32, s.proto as i32);
    let known = match (kind, proto) {
        (libc::SOCK_RAW, _) | (libc::SOCK_DGRAM, UDP | UDPLITE | ICMP | ICMPV6) => {
            matches!(s.state, CLOSE | ESTABLISHED)
        }
        (libc::SOCK_STREAM, TCP | MPTCP) => matches!(s.state, LISTEN | CLOSE),
        _ => false,
    };
    if !known || !matches!(s.family as i32, libc::AF_INET | libc::AF_INET6) {
        return Err(Error::unsupported(
            "this internet socket cannot be restored by this version (an established connection, or another protocol)",
            "restore the images with CRIU",
        ));
    }
    let family = AddressFamily::from_raw(s.family as u16);
    let protocol = core::num::NonZeroU32::new(s.proto).map(Protocol::from_raw);
    let fd = rustix::net::socket_with(family, SocketType::from_raw(s.r#type), SocketFlags::CLOEXEC, protocol)
        .during("socket")
        .map_err(|e| {
            if matches!(proto, ICMP | ICMPV6) && kind != libc::SOCK_RAW {
                e.help("let our group make such sockets: /proc/sys/net/ipv4/ping_group_range")
            } else if e.errno() == Some(Errno::PERM) {
                e.help("give crust CAP_NET_RAW")
            } else {
                e
            }
        })?;
    // Of the options of version 6 sockets this one decides what others mean.
    if let Some(only) = s.v6only {
        set(&fd, IPV6, libc::IPV6_V6ONLY, i32::from(only))?;
    }
    if let Some(ip) = &s.ip_opts {
        let (level, name) = freebind(s.family as i32);
        if ip.freebind == Some(true) {
            set(&fd, level, name, 1)?;
        }
        if ip.pktinfo == Some(true) && s.family == libc::AF_INET6 as u32 {
            set(&fd, IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        } else if ip.pktinfo == Some(true) {
            set(&fd, IP, libc::IP_PKTINFO, 1)?;
        }
        // Version 6 sockets have these among their other options; CRIU writes none for them.
        if s.family == libc::AF_INET as u32 {
            for (name, want) in [(libc::IP_TOS, ip.tos), (libc::IP_TTL, ip.ttl)] {
                if let Some(want) = want {
                    set(&fd, IP, name, want as i32)?;
                }
            }
        }
        if let Some(raw) = ip.raw.as_ref().filter(|_| kind == libc::SOCK_RAW) {
            let (level, name) =
                if s.family == libc::AF_INET as u32 { (IP, libc::IP_HDRINCL) } else { (IPV6, IPV6_HDRINCL) };
            if let Some(on) = raw.hdrincl {
                set(&fd, level, name, i32::from(on))?;
            }
            if raw.nodefrag == Some(true) {
                set(&fd, IP, IP_NODEFRAG, 1)?;
            }
            if let Some((level, name, len)) = icmp_filter(proto)
                && raw.icmpv_filter.len() * 4 == len
            {
                let value: Vec<u8> = raw.icmpv_filter.iter().flat_map(|w| w.to_ne_bytes()).collect();
                set_bytes(&fd, level, name, &value).during("setting what an ICMP socket lets through")?;
            }
        }
    }
    sockopt::restore(&fd, &s.opts, Some((&cx.state.fresh, (s.family as i32, kind, proto))))?;
    Ok(fd)
}

/// The address that a socket is to have.
fn bound_to(fd: &OwnedFd, s: &InetSkEntry) -> Result<SocketAddr> {
    let scope = match &s.ifname {
        Some(name) => rustix::net::netdevice::name_to_index(fd, name).during("finding a network device")?,
        None => 0,
    };
    address(&s.src_addr, s.src_port, scope)
}

fn bind(fd: &OwnedFd, s: &InetSkEntry) -> Result<()> {
    let source = bound_to(fd, s)?;
    let is_raw = s.r#type == libc::SOCK_RAW as u32;
    // The port of a raw socket is its protocol.
    if s.src_port != 0 && !is_raw || !source.ip().is_unspecified() {
        // Connections of the program that was dumped may still be in TIME_WAIT, and others of it be on the same port.
        set(fd, SOL, libc::SO_REUSEADDR, 1)?;
        let mut bound = rustix::net::bind(fd, &source);
        let freely = s.crust_freebound == Some(true) || source.is_ipv6();
        if bound == Err(Errno::ADDRNOTAVAIL) && freely {
            // Not there at the dump either, or, for version 6, not there yet.
            log::warn!("{}: this machine has no such address now", describe(s));
            let (level, name) = freebind(s.family as i32);
            set(fd, level, name, 1)?;
            bound = rustix::net::bind(fd, &source);
            let wanted = s.ip_opts.as_ref().and_then(|ip| ip.freebind) == Some(true);
            set(fd, level, name, i32::from(wanted))?;
        }
        if bound == Err(Errno::ADDRINUSE) && s.state == CLOSE && s.proto == TCP as u32 && s.shutdown.is_some() {
            // What is left of its connection may hold the port, or somebody else: it was free since the connection ended.
            log::warn!("{}: the name of a closed connection is taken; the socket comes back without it", describe(s));
            bound = Ok(());
        }
        bound.map_err(|e| {
            let err = Error::kernel("taking the address failed", e);
            match e {
                Errno::ADDRINUSE => err.kind_is(Kind::Taken).help("stop the program that listens there"),
                Errno::ACCESS => err.help("give crust CAP_NET_BIND_SERVICE"),
                Errno::ADDRNOTAVAIL => err.help("give this machine the address (ip address add)"),
                _ => err,
            }
        })?;
    }
    for m in &s.crust_groups {
        let index = rustix::net::netdevice::name_to_index(fd, &m.ifname)
            .during("finding the network device of a multicast group")
            .map_err(|e| e.on(crate::Object::Path(m.ifname.clone())))?;
        let exclude = m.exclude == Some(true);
        let m = Membership { group: m.group.clone(), sources: m.sources.clone(), exclude };
        join(fd, index, &m).during("listening to a multicast group")?;
    }
    Ok(())
}

/// Gives a socket the data that a closed connection left in it, and its error: it connects to a socket of ours, which sends
/// the data and resets the connection.
fn meet_and_part(fd: &OwnedFd, source: SocketAddr, data: &[QueuedPacket], error: bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let wait = |fd: BorrowedFd<'_>, want: PollFlags| -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        match events(fd, want, left)?.is_empty() {
            true => Err(Error::new(Kind::Internal, "a connection to ourselves takes too long")
                .help("is there a firewall rule against connections of this address to itself?")),
            false => Ok(()),
        }
    };
    let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = rustix::net::socket_with(family, SocketType::STREAM, flags, None).during("socket")?;
    let mut place = source;
    place.set_port(0);
    rustix::net::bind(&listener, &place).during("binding a socket to the same address")?;
    rustix::net::listen(&listener, 1).during("listen")?;
    let to = name_of(rustix::net::getsockname(&listener), "name")?
        .ok_or_else(|| Error::new(Kind::Internal, "an internet socket has no internet address"))?;
    let nonblock = |on: bool| rustix::io::ioctl_fionbio(fd, on).during("making a socket wait no more");
    nonblock(true)?;
    match rustix::net::connect(fd, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(e) => return Err(Error::kernel("connecting to ourselves failed", e)),
    }
    wait(listener.as_fd(), PollFlags::IN)?;
    let peer = rustix::net::accept_with(&listener, flags).during("accepting a connection of our own")?;
    let mut total = 0;
    for packet in data {
        let mut rest = &packet.bytes[..];
        while !rest.is_empty() {
            match rustix::net::send(&peer, rest, rustix::net::SendFlags::NOSIGNAL) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(Errno::AGAIN) => wait(peer.as_fd(), PollFlags::OUT)?,
                Err(e) => return Err(Error::kernel("filling a socket's queue failed", e)),
            }
        }
        total += packet.bytes.len() as u64;
    }
    while rustix::io::ioctl_fionread(fd).during("asking how much waits in a socket")? < total {
        if Instant::now() > deadline {
            return Err(Error::new(Kind::Internal, "data sent to ourselves does not come"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    rustix::net::sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).during("setting how a socket closes")?;
    drop(peer);
    wait(fd.as_fd(), PollFlags::RDHUP)?;
    if !error {
        // Asking takes it away.
        option(fd, SOL, libc::SO_ERROR).during("taking a socket's error")?;
    }
    nonblock(false)
}

/// Options and roles that need an address.
fn start(fd: &OwnedFd, s: &InetSkEntry) -> Result<()> {
    if let Some(tcp) =
        s.tcp_opts.as_ref().filter(|_| matches!(s.proto as i32, TCP | MPTCP) && s.r#type != libc::SOCK_RAW as u32)
    {
        for (name, want) in [
            (libc::TCP_KEEPCNT, tcp.keepcnt.map(|n| n as i32)),
            (libc::TCP_KEEPIDLE, tcp.keepidle.map(|n| n as i32)),
            (libc::TCP_KEEPINTVL, tcp.keepintvl.map(|n| n as i32)),
            (libc::TCP_NODELAY, tcp.nodelay.map(i32::from)),
            (libc::TCP_CORK, tcp.cork.map(i32::from)),
        ] {
            if let Some(want) = want {
                set(fd, TCP, name, want)?;
            }
        }
    }
    if s.state == LISTEN {
        return rustix::net::listen(fd, s.backlog as i32).map_err(|e| {
            let err = Error::kernel("listen failed", e);
            match e {
                Errno::ADDRINUSE => err.kind_is(Kind::Taken).help("stop the program that listens there"),
                _ => err,
            }
        });
    }
    if s.state == ESTABLISHED {
        let peer = address(&s.dst_addr, s.dst_port, bound_to(fd, s).map_or(0, scope_of))?;
        rustix::net::connect(fd, &peer).during("giving a socket its peer")?;
    }
    Ok(())
}

fn scope_of(a: SocketAddr) -> u32 {
    match a {
        SocketAddr::V6(a) => a.scope_id(),
        SocketAddr::V4(_) => 0,
    }
}

fn shut(fd: &OwnedFd, s: &InetSkEntry) -> Result<()> {
    use rustix::net::Shutdown;
    let how = match s.shutdown.and_then(|v| SkShutdown::try_from(v).ok()) {
        Some(SkShutdown::Read) => Shutdown::Read,
        Some(SkShutdown::Write) => Shutdown::Write,
        Some(SkShutdown::Both) => Shutdown::Both,
        Some(SkShutdown::None) | None => return Ok(()),
    };
    match rustix::net::shutdown(fd.as_fd(), how) {
        // The kernel says so and shuts it nevertheless.
        Ok(()) | Err(Errno::NOTCONN) => Ok(()),
        Err(e) => Err(Error::kernel("shutdown failed", e)),
    }
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

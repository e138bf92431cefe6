//! Datagrams that wait in UDP sockets. They are looked at with a peek offset, which is put back at once, and come back the way
//! they came: as packets from their senders' addresses, which a raw socket can give them, over the loopback device.
//!
//! Who may not make raw sockets, a firewall, or a second socket on the port can be in the way of that: then they are lost with
//! a warning, for UDP promises no more. The time of arrival and the device are new.
use crate::{Result, ResultExt};
use crust_kernel::sock_diag::{option, set_option};
use crust_kernel::sockopt::bytes;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

const SOL: i32 = libc::SOL_SOCKET;
const SO_PEEK_OFF: i32 = 42;
const SO_MEMINFO: i32 = 55;
const UDP_GRO: i32 = 104;
const UDPLITE: u8 = 136;
/// No datagram is longer.
const MOST: usize = 1 << 16;

/// A datagram and who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    pub(super) bytes: Vec<u8>,
    pub(super) from: SocketAddr,
}

/// What waits in a socket without an error, in its order; none if it cannot come back.
pub(super) fn look(fd: BorrowedFd<'_>) -> Result<Option<Vec<Datagram>>> {
    let number = |level: i32, name: i32| option(fd, level, name).during("reading a socket option");
    let device = bytes(fd, SOL, libc::SO_BINDTODEVICE, 16).unwrap_or_default();
    // Several datagrams may be one there, or only those of a device come.
    if option(fd, libc::IPPROTO_UDP, UDP_GRO).is_ok_and(|on| on != 0) || device.iter().any(|b| *b != 0) {
        return Ok(None);
    }
    let before = number(SOL, SO_PEEK_OFF)?;
    let set = |to: i32| set_option(fd, SOL, SO_PEEK_OFF, to).during("setting a socket's peek offset");
    set(0)?;
    let found = walk(fd);
    set(before)?;
    found.map(Some)
}

fn walk(fd: BorrowedFd<'_>) -> Result<Vec<Datagram>> {
    let mut found = Vec::new();
    let mut room = vec![0u8; MOST];
    loop {
        match rustix::net::recvfrom(fd, &mut room[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((n, _, from)) => {
                let from = from.and_then(|a| SocketAddr::try_from(a).ok());
                if let (Some(bytes), Some(from)) = (room.get(..n), from) {
                    found.push(Datagram { bytes: bytes.to_vec(), from });
                }
            }
            Err(Errno::AGAIN) => return Ok(found),
            Err(e) => return Err(e).during("looking at a socket's queue"),
        }
    }
}

/// A sender's address as bytes: the port, then the address; `None` for one that a packet cannot simply have.
pub(super) fn pack(from: SocketAddr) -> Vec<u8> {
    let mut packed = from.port().to_be_bytes().to_vec();
    match from.ip() {
        IpAddr::V4(ip) => packed.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => packed.extend_from_slice(&ip.octets()),
    }
    packed
}

/// The address that [`pack`] made so.
pub(super) fn unpack(packed: &[u8]) -> Option<SocketAddr> {
    let (port, ip) = packed.split_first_chunk::<2>()?;
    let ip = match ip.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(ip).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

/// Puts datagrams into a socket that has its address `at`, but no peer and no filter yet. What is lost is logged.
pub(super) fn fill(fd: &OwnedFd, at: SocketAddr, protocol: u8, datagrams: &[Datagram], name: &str) {
    let mut done = 0;
    // Where the one before went: nobody else shall get what is ours.
    let mut known = None;
    let lost = datagrams.iter().try_for_each(|d| {
        let to = destination(at, d);
        if known != Some(to) && !alone_on(to, protocol) {
            return Err("another socket has the same port".to_owned());
        }
        known = Some(to);
        send(fd, to, protocol, d).map_err(|e| match e {
            Errno::TIMEDOUT => "they do not arrive: is there a firewall?".to_owned(),
            e => e.to_string(),
        })?;
        done += 1;
        Ok(())
    });
    if let Err(why) = lost {
        log::warn!("{name}: {} of {} datagrams that waited are lost: {why}", datagrams.len() - done, datagrams.len());
    }
}

/// Where a datagram was sent to; in a socket for all addresses that is not known.
fn destination(at: SocketAddr, d: &Datagram) -> SocketAddr {
    let own = at.ip().to_canonical();
    let ip = match (own.is_unspecified(), d.from.ip().to_canonical()) {
        (false, _) => own,
        (true, IpAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
        (true, IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, at.port())
}

/// True if one socket only can get what is sent there.
fn alone_on(to: SocketAddr, protocol: u8) -> bool {
    let name = if protocol == UDPLITE { "udplite" } else { "udp" };
    let read = |table: String| std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
    let tables = [read(name.to_owned()), read(format!("{name}6"))];
    let all = tables.iter().flat_map(|text| text.lines().skip(1)).filter_map(bound_to);
    all.filter(|at| at.port() == to.port() && (at.ip().is_unspecified() || at.ip().to_canonical() == to.ip())).count()
        == 1
}

/// The address in a line "slot: address:port …": words as they lie in memory, in hexadecimal digits.
fn bound_to(line: &str) -> Option<SocketAddr> {
    let (ip, port) = line.split_ascii_whitespace().nth(1)?.split_once(':')?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::from(word(0)?),
        _ => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            IpAddr::from(<[u8; 16]>::try_from(words.concat()).ok()?)
        }
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

fn send(fd: &OwnedFd, to: SocketAddr, protocol: u8, d: &Datagram) -> rustix::io::Result<()> {
    let from = SocketAddr::new(d.from.ip().to_canonical(), d.from.port());
    let is_local = |at: SocketAddr| matches!(at.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local());
    let packet = packet(from, to, protocol, &d.bytes).filter(|_| !is_local(from) && !is_local(to));
    let packet = packet.ok_or(Errno::ADDRNOTAVAIL)?;
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = Protocol::from_raw(NonZeroU32::new(libc::IPPROTO_RAW as u32).ok_or(Errno::INVAL)?);
    let raw = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(kind))?;
    // SK_MEMINFO_RMEM_ALLOC is the first: what the queue takes.
    let taken = || -> rustix::io::Result<u32> {
        let words = bytes(fd, SOL, SO_MEMINFO, 64)?;
        words.first_chunk().map(|w| u32::from_ne_bytes(*w)).ok_or(Errno::BADMSG)
    };
    let before = taken()?;
    rustix::net::sendto(&raw, &packet, SendFlags::empty(), &SocketAddr::new(to.ip(), 0))?;
    let end = Instant::now() + Duration::from_secs(5);
    while taken()? <= before {
        if Instant::now() > end {
            return Err(Errno::TIMEDOUT);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// An IP packet; `None` if it would be too long, or the addresses are not of one family.
fn packet(from: SocketAddr, to: SocketAddr, protocol: u8, content: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(content.len() + 8).ok()?;
    let mut datagram = Vec::with_capacity(content.len() + 8);
    datagram.extend_from_slice(&from.port().to_be_bytes());
    datagram.extend_from_slice(&to.port().to_be_bytes());
    datagram.extend_from_slice(&length.to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(content);
    let (mut head, pseudo) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = length.checked_add(20)?.to_be_bytes();
            // The kernel sets number and checksum.
            let mut head = vec![0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, protocol, 0, 0];
            let addresses = [from.octets(), to.octets()].concat();
            head.extend_from_slice(&addresses);
            (head, addresses)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let [a, b] = length.to_be_bytes();
            let mut head = vec![0x60, 0, 0, 0, a, b, protocol, 64];
            let addresses = [from.octets(), to.octets()].concat();
            head.extend_from_slice(&addresses);
            (head, addresses)
        }
        _ => return None,
    };
    let sum = sum(&pseudo) + u64::from(protocol) + u64::from(length) + sum(&datagram);
    let checksum = match !fold(sum) {
        0 => u16::MAX, // 0 means that there is none
        other => other,
    };
    datagram.get_mut(6..8)?.copy_from_slice(&checksum.to_be_bytes());
    head.append(&mut datagram);
    Some(head)
}

/// The sum of big endian words, the last one filled up with zeros.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|c| u64::from(c[0]) << 8 | c.get(1).map_or(0, |b| u64::from(*b))).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn addresses_go_there_and_back() {
        for text in ["10.1.2.3:77", "[2001:db8::1]:65535"] {
            assert_eq!(unpack(&pack(address(text))), Some(address(text)));
        }
        assert_eq!(unpack(&[1, 2, 3]), None);
    }

    #[test]
    fn tables_are_understood() {
        let line =
            "  1234: 0100007F:1F90 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 5 2 0 0";
        let known = cfg!(target_endian = "little").then(|| address("127.0.0.1:8080"));
        assert_eq!(bound_to(line).filter(|_| known.is_some()), known);
        let line = "  77: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 0";
        let known = cfg!(target_endian = "little").then(|| address("[::1]:53"));
        assert_eq!(bound_to(line).filter(|_| known.is_some()), known);
        assert_eq!(bound_to("sl local_address"), None);
    }

    #[test]
    fn packets_are_well_formed() {
        let p = packet(address("10.0.0.1:1000"), address("10.0.0.2:2000"), 17, b"abc").expect("a packet");
        assert_eq!((p.len(), p[0], p[9]), (31, 0x45, 17));
        assert_eq!(p.get(20..26), Some(&[0x03, 0xe8, 0x07, 0xd0, 0, 11][..]));
        // With its checksum the whole adds up to all ones.
        let whole = sum(&p[12..20]) + 17 + 11 + sum(&p[20..]);
        assert_eq!(fold(whole), 0xffff);
        assert!(packet(address("10.0.0.1:1"), address("[::1]:1"), 17, b"").is_none());
        assert!(packet(address("10.0.0.1:1"), address("10.0.0.2:1"), 17, &vec![0; 65_500]).is_some());
        assert!(packet(address("10.0.0.1:1"), address("10.0.0.2:1"), 17, &vec![0; 65_530]).is_none());
    }
}

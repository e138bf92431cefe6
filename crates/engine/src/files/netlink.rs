//! Netlink sockets at rest: protocol, port, groups, peer. Messages that wait cannot be put back, so they are refused.
use super::look::FdView;
use super::restore::Opener;
use super::table::Records;
use super::{FdKind, alone, sockopt};
use crate::{Error, Kind, Result, ResultExt};
use crust_image::proto::{FdTypes, FileEntry, NetlinkSkEntry};
use crust_kernel::sock_diag::{self, option, set_option};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;

pub(super) static KIND: FdKind =
    FdKind { name: "netlink socket", fd_type: FdTypes::Netlinksk, recognise, dump, group: alone, open };

const SOL: i32 = libc::SOL_SOCKET;
/// `NETLINK_CONNECTED`: there is a default destination.
const CONNECTED: u32 = 1;
/// NETLINK_PKTINFO, _BROADCAST_ERROR, _NO_ENOBUFS, _LISTEN_ALL_NSID, _CAP_ACK, _EXT_ACK, _GET_STRICT_CHK.
const SWITCHES: [i32; 7] = [3, 4, 5, 8, 10, 11, 12];

fn recognise(v: &FdView<'_>) -> bool {
    v.file_type() == libc::S_IFSOCK
        && v.link.starts_with(b"socket:[")
        && v.copy().is_ok_and(|fd| option(fd, SOL, libc::SO_DOMAIN) == Ok(libc::AF_NETLINK))
}

fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let fd = v.copy()?;
    match sock_diag::peek(fd, 0) {
        Err(Errno::AGAIN) => {}
        Ok(_) => v.in_flight(out.opts, "messages wait in a netlink socket, and they cannot be saved".into())?,
        Err(e) => return Err(Error::kernel("looking at a netlink socket's queue failed", e)),
    }
    let name = rustix::net::getsockname(fd).during("asking for a netlink socket's address")?;
    let own = SocketAddrNetlink::try_from(name).during("asking for a netlink socket's address")?;
    let name = rustix::net::getpeername(fd).during("asking for a netlink socket's destination")?;
    let peer = name.and_then(|n| SocketAddrNetlink::try_from(n).ok()).unwrap_or(SocketAddrNetlink::new(0, 0));
    let number = |name: i32| option(fd, SOL, name).during("reading a socket option");
    let kind = number(libc::SO_TYPE)?;
    let on = SWITCHES.iter().filter(|&&s| option(fd, libc::SOL_NETLINK, s) == Ok(1));
    let options = on.fold(0u32, |bits, s| bits | 1 << s);
    let connected = peer.pid() != 0 || peer.groups() != 0;
    let nlsk = NetlinkSkEntry {
        id,
        ino: v.stat.st_ino as u32,
        protocol: number(libc::SO_PROTOCOL)? as u32,
        state: if connected { CONNECTED } else { 0 },
        flags: v.info.flags,
        portid: own.pid(),
        groups: sock_diag::netlink_groups(fd).during("asking for a netlink socket's groups")?,
        dst_portid: peer.pid(),
        // The number of the first group, as the kernel keeps it.
        dst_group: if peer.groups() == 0 { 0 } else { peer.groups().trailing_zeros() + 1 },
        fown: v.fown()?,
        opts: v.socket_options(&mut out.fresh)?,
        ns_id: None,
        crust_options: (options != 0).then_some(options),
        crust_type: (kind != libc::SOCK_RAW).then_some(kind as u32),
    };
    Ok(FileEntry { nlsk: Some(nlsk.into()), ..FileEntry::default() })
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    for e in entries {
        let r = cx.body(e, e.nlsk.as_ref())?;
        let kind = r.crust_type.map_or(SocketType::RAW, SocketType::from_raw);
        let protocol = NonZeroU32::new(r.protocol).map(Protocol::from_raw);
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, protocol)
            .during("making a netlink socket")?;
        let form = (libc::AF_NETLINK, kind.as_raw() as i32, r.protocol as i32);
        sockopt::restore(&fd, &r.opts, Some((&cx.state.fresh, form)))?;
        for switch in SWITCHES.iter().filter(|&&s| r.crust_options.unwrap_or(0) & 1 << s != 0) {
            set_option(&fd, libc::SOL_NETLINK, *switch, 1).during("setting an option of a netlink socket")?;
        }
        if r.portid != 0 {
            rustix::net::bind(&fd, &SocketAddrNetlink::new(r.portid, 0)).map_err(|errno| {
                let e = Error::kernel(format!("binding a netlink socket to port {}", r.portid), errno);
                match errno {
                    Errno::ADDRINUSE => {
                        e.kind_is(Kind::Taken).help("another program has a netlink socket with this port: stop it")
                    }
                    _ => e,
                }
            })?;
        }
        for (at, word) in r.groups.iter().enumerate() {
            for bit in (0..32).filter(|bit| word & 1 << bit != 0) {
                let group = at as i32 * 32 + bit + 1;
                set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group)
                    .during(&format!("listening to netlink group {group}"))?;
            }
        }
        if r.state == CONNECTED {
            let group = r.dst_group.checked_sub(1).and_then(|g| 1u32.checked_shl(g)).unwrap_or(0);
            rustix::net::connect(&fd, &SocketAddrNetlink::new(r.dst_portid, group))
                .during("giving a netlink socket its destination")?;
        }
        sockopt::restore_filter(&fd, &r.opts)?;
        cx.settle(&fd, r.flags, &r.fown)?;
        opened.push((e.id, fd));
    }
    Ok(opened)
}

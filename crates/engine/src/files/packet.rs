//! Packet sockets (packet(7)): device, protocol, options, memberships, fanout group and rings. Packets that wait, also in
//! rings, are dropped with a warning, as CRIU does: a socket that listens to a device always has some.
use super::look::FdView;
use super::restore::Opener;
use super::table::Records;
use super::{FdKind, alone, sockopt};
use crate::{Error, Kind, Result, ResultExt};
use crust_image::proto::{FdTypes, FileEntry, PacketMclist, PacketRing, PacketSockEntry};
use crust_kernel::inet_diag::{PacketRing as Ring, packet_sockets};
use crust_kernel::sock_diag::{option, set_option};
use crust_kernel::sockopt::{bind_packet, bind_packet_old, set_bytes};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;

pub(super) static KIND: FdKind =
    FdKind { name: "packet socket", fd_type: FdTypes::Packetsk, recognise, dump, group: alone, open };

const SOL: i32 = libc::SOL_SOCKET;
const SOL_PACKET: i32 = 263;
const ADD_MEMBERSHIP: i32 = 1;
const RX_RING: i32 = 5;
const COPY_THRESH: i32 = 7;
const AUXDATA: i32 = 8;
const ORIGDEV: i32 = 9;
const VERSION: i32 = 10;
const RESERVE: i32 = 12;
const TX_RING: i32 = 13;
const LOSS: i32 = 14;
const VNET_HDR: i32 = 15;
const TIMESTAMP: i32 = 17;
const FANOUT: i32 = 18;
const SOCK_PACKET: u32 = 10;

fn recognise(v: &FdView<'_>) -> bool {
    v.file_type() == libc::S_IFSOCK
        && v.link.starts_with(b"socket:[")
        && v.copy().is_ok_and(|fd| option(fd, SOL, libc::SO_DOMAIN) == Ok(libc::AF_PACKET))
}

fn ring_record(r: &Ring) -> PacketRing {
    let [block_size, block_nr, frame_size, frame_nr, retire_tmo, sizeof_priv, features] = *r;
    PacketRing { block_size, block_nr, frame_size, frame_nr, retire_tmo, sizeof_priv, features }
}

fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let fd = v.copy()?;
    if out.packet_sockets.is_none() {
        let all = packet_sockets();
        let all =
            all.during("asking about packet sockets").map_err(|e| e.help("load the kernel module af_packet_diag"))?;
        out.packet_sockets = Some(all);
    }
    let ino = v.stat.st_ino as u32;
    let s = out.packet_sockets.as_ref().and_then(|all| all.get(&ino));
    let s = s.ok_or_else(|| Error::new(Kind::TargetChanged, "the kernel does not list this packet socket"))?.clone();
    let fanout = match s.fanout {
        // This way it has flags too.
        Some(_) => Some(option(fd, SOL_PACKET, FANOUT).during("reading a socket option")? as u32),
        None => None,
    };
    if fanout.is_some_and(|f| matches!(f >> 16 & 0xff, 6 | 7)) {
        return Err(Error::unsupported(
            "a packet socket of a fanout group with a program (PACKET_FANOUT_CBPF, _EBPF) cannot be saved",
            "close it before the dump",
        ));
    }
    let group = |g: &crust_kernel::inet_diag::PacketGroup| {
        let one = PacketMclist { index: g.index, r#type: g.kind.into(), addr: g.address.clone() };
        std::iter::repeat_n(one, g.count as usize)
    };
    let has = |bit: u32| s.flags & bit != 0;
    let entry = PacketSockEntry {
        id,
        r#type: s.kind.into(),
        protocol: s.protocol.to_be().into(),
        flags: v.info.flags,
        ifindex: s.index,
        fown: v.fown()?,
        opts: v.socket_options(&mut out.fresh)?,
        version: s.version,
        reserve: s.reserve,
        aux_data: has(2),
        orig_dev: has(4),
        vnet_hdr: has(8),
        loss: has(16),
        timestamp: s.timestamp,
        copy_thresh: s.copy_thresh,
        mclist: s.groups.iter().flat_map(group).collect(),
        fanout,
        rx_ring: s.rx.as_ref().map(ring_record),
        tx_ring: s.tx.as_ref().map(ring_record),
        ns_id: None,
    };
    if rustix::io::ioctl_fionread(fd).is_ok_and(|n| n > 0) || s.rx.is_some() {
        log::warn!("{v:?}: packets that wait in a packet socket are lost");
    }
    Ok(FileEntry { psk: Some(entry.into()), ..FileEntry::default() })
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    for e in entries {
        let s = cx.body(e, e.psk.as_ref())?;
        let fd = make(s, cx)?;
        cx.settle(&fd, s.flags, &s.fown)?;
        opened.push((e.id, fd));
    }
    Ok(opened)
}

fn make(s: &PacketSockEntry, cx: &Opener<'_>) -> Result<OwnedFd> {
    // Without a protocol it receives nothing before it is ready; sockets of the old sort get theirs only here.
    let first = if s.r#type == SOCK_PACKET { s.protocol } else { 0 };
    let protocol = NonZeroU32::new(first).map(Protocol::from_raw);
    let fd =
        rustix::net::socket_with(AddressFamily::PACKET, SocketType::from_raw(s.r#type), SocketFlags::CLOEXEC, protocol)
            .during("making a packet socket")
            .map_err(|e| e.help("packet sockets need CAP_NET_RAW"))?;
    let form = (libc::AF_PACKET, s.r#type as i32, first as i32);
    sockopt::restore(&fd, &s.opts, Some((&cx.state.fresh, form)))?;
    sockopt::restore_filter(&fd, &s.opts)?;
    if s.r#type == SOCK_PACKET {
        if s.ifindex != 0 {
            let name =
                rustix::net::netdevice::index_to_name(&fd, s.ifindex).during("finding a packet socket's device")?;
            bind_packet_old(&fd, &name).during("binding a packet socket to its device")?;
        }
        return Ok(fd);
    }
    for (name, want) in [
        (VERSION, s.version),
        (RESERVE, s.reserve),
        (TIMESTAMP, s.timestamp),
        (COPY_THRESH, s.copy_thresh),
        (AUXDATA, s.aux_data.into()),
        (ORIGDEV, s.orig_dev.into()),
        (VNET_HDR, s.vnet_hdr.into()),
        (LOSS, s.loss.into()),
    ] {
        if want != 0 {
            set_option(&fd, SOL_PACKET, name, want as i32).during("setting an option of a packet socket")?;
        }
    }
    for m in &s.mclist {
        let Some(len) = u16::try_from(m.addr.len()).ok().filter(|len| *len <= 32) else {
            return Err(Error::bad_image("files.img", "a packet socket's address is too long"));
        };
        // packet_mreq with room for any address.
        let mut request = Vec::from(m.index.to_ne_bytes());
        request.extend_from_slice(&(m.r#type as u16).to_ne_bytes());
        request.extend_from_slice(&len.to_ne_bytes());
        request.extend_from_slice(&m.addr);
        request.resize(8 + 32, 0);
        set_bytes(&fd, SOL_PACKET, ADD_MEMBERSHIP, &request)
            .during(&format!("listening to more packets of network device {}", m.index))?;
    }
    for (name, ring) in [(RX_RING, &s.rx_ring), (TX_RING, &s.tx_ring)] {
        let Some(r) = ring else { continue };
        let words = [r.block_size, r.block_nr, r.frame_size, r.frame_nr, r.retire_tmo, r.sizeof_priv, r.features];
        let request: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        set_bytes(&fd, SOL_PACKET, name, &request).during("making a packet socket's ring")?;
    }
    if s.protocol != 0 || s.ifindex != 0 {
        bind_packet(&fd, s.protocol as u16, s.ifindex)
            .during(&format!("binding a packet socket to network device {}", s.ifindex))?;
    }
    if let Some(fanout) = s.fanout.filter(|f| *f != u32::MAX) {
        set_option(&fd, SOL_PACKET, FANOUT, fanout as i32).during("entering a packet socket's fanout group")?;
    }
    Ok(fd)
}

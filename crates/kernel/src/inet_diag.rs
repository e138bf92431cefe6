//! sock_diag(7): what the kernel tells about internet and packet sockets.
use crate::sock_diag::{attributes, dump, u16_at, u32_at};
use rustix::io::Result;
use std::collections::HashMap;

/// One internet socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InetSocket {
    /// 1 connected, 7 not, 10 listening.
    pub state: u8,
    /// Port of the peer, 0 for none.
    pub peer_port: u16,
    /// Address of the peer: four bytes or sixteen, in network order.
    pub peer: [u8; 16],
    /// `SHUT_*` as bits: 1 receiving, 2 sending.
    pub shutdown: u8,
    /// It has keys for TCP MD5 signatures. Only shown to who has CAP_NET_ADMIN.
    pub md5: bool,
}

/// All sockets of a family and protocol in our network namespace that have a port, by inode. `states` are the wanted
/// ones as bits. `IPPROTO_RAW` stands for raw sockets of all protocols.
///
/// # Errors
/// `ENOENT` if the kernel cannot list them.
pub fn inet_sockets(family: i32, protocol: i32, states: u32) -> Result<HashMap<u32, InetSocket>> {
    // inet_diag_req_v2: family, protocol, extensions, pad, states, then an address that is left open.
    let mut request = vec![family as u8, protocol as u8, 0, 0];
    request.extend_from_slice(&states.to_ne_bytes());
    request.extend_from_slice(&[0; 48]);
    let mut found = HashMap::new();
    dump(&request, |m| found.extend(parse_inet(m)))?;
    Ok(found)
}

/// `inet_diag_msg`: family, state, timer, retransmits; ports, addresses, interface, cookie; expires, rqueue, wqueue, uid, inode.
fn parse_inet(m: &[u8]) -> Option<(u32, InetSocket)> {
    let mut s = InetSocket { state: *m.get(1)?, ..InetSocket::default() };
    s.peer_port = u16::from_be_bytes(m.get(6..8)?.try_into().ok()?);
    s.peer.copy_from_slice(m.get(24..40)?);
    let ino = u32_at(m, 68)?;
    for (number, value) in attributes(m.get(72..)?) {
        match number {
            8 => s.shutdown = *value.first()?,
            18 => s.md5 = !value.is_empty(),
            _ => {}
        }
    }
    Some((ino, s))
}

/// One AF_PACKET socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketSocket {
    /// `SOCK_RAW`, `SOCK_DGRAM`, `SOCK_PACKET`.
    pub kind: u8,
    /// Which packets it gets (`ETH_P_*`), in host order.
    pub protocol: u16,
    /// Its interface, 0 for all.
    pub index: u32,
    /// `TPACKET_V*`.
    pub version: u32,
    /// Bytes before each frame of a ring.
    pub reserve: u32,
    /// How many packets are copied out of a ring.
    pub copy_thresh: u32,
    /// `SOF_TIMESTAMPING_*` of a ring.
    pub timestamp: u32,
    /// `PDI_*`: 1 running, 2 auxdata, 4 original device, 8 virtio header, 16 loss.
    pub flags: u32,
    /// Memberships.
    pub groups: Vec<PacketGroup>,
    /// Id in the low half, type and flags in the high one.
    pub fanout: Option<u32>,
    /// Ring of received packets.
    pub rx: Option<PacketRing>,
    /// Ring of packets to be sent.
    pub tx: Option<PacketRing>,
}

/// What a packet socket listens to beyond its own address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketGroup {
    /// The interface.
    pub index: u32,
    /// How often it was asked for.
    pub count: u32,
    /// `PACKET_MR_*`.
    pub kind: u16,
    /// The address.
    pub address: Vec<u8>,
}

/// Form of a ring, in the order of `struct tpacket_req3`: block size and number, frame size and number, timeout, size of
/// private data, features.
pub type PacketRing = [u32; 7];

/// All packet sockets of our network namespace, by inode.
///
/// # Errors
/// `ENOENT` if the kernel has no CONFIG_PACKET_DIAG.
pub fn packet_sockets() -> Result<HashMap<u32, PacketSocket>> {
    // packet_diag_req: family, protocol, pad, inode, what to show (info, memberships, rings, fanout), cookie.
    let mut request = vec![libc::AF_PACKET as u8, 0, 0, 0];
    request.extend_from_slice(&0u32.to_ne_bytes());
    request.extend_from_slice(&(1u32 | 2 | 4 | 8).to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    let mut found = HashMap::new();
    dump(&request, |m| found.extend(parse_packet(m)))?;
    Ok(found)
}

/// `packet_diag_msg`: family, type, protocol, inode, cookie; and its attributes.
fn parse_packet(m: &[u8]) -> Option<(u32, PacketSocket)> {
    let mut s = PacketSocket { kind: *m.get(1)?, protocol: u16_at(m, 2)?, ..PacketSocket::default() };
    let ino = u32_at(m, 4)?;
    let ring = |v: &[u8]| -> Option<PacketRing> {
        let mut ring = PacketRing::default();
        for (n, word) in ring.iter_mut().enumerate() {
            *word = u32_at(v, n * 4)?;
        }
        Some(ring)
    };
    for (number, v) in attributes(m.get(16..)?) {
        match number {
            0 => {
                (s.index, s.version, s.reserve) = (u32_at(v, 0)?, u32_at(v, 4)?, u32_at(v, 8)?);
                (s.copy_thresh, s.timestamp, s.flags) = (u32_at(v, 12)?, u32_at(v, 16)?, u32_at(v, 20)?);
            }
            // packet_diag_mclist: index, count, type, length, 32 bytes of address.
            1 => {
                for one in v.chunks_exact(44) {
                    let len = usize::from(u16_at(one, 10)?).min(32);
                    s.groups.push(PacketGroup {
                        index: u32_at(one, 0)?,
                        count: u32_at(one, 4)?,
                        kind: u16_at(one, 8)?,
                        address: one.get(12..12 + len)?.to_vec(),
                    });
                }
            }
            2 => s.rx = Some(ring(v)?),
            3 => s.tx = Some(ring(v)?),
            4 => s.fanout = Some(u32_at(v, 0)?),
            _ => {}
        }
    }
    Some((ino, s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_shut_udp_socket() {
        let a = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let b = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        a.connect(b.local_addr().expect("address")).expect("connect");
        rustix::net::shutdown(&a, rustix::net::Shutdown::Write).expect("shutdown");
        let ino = rustix::fs::fstat(&a).expect("fstat").st_ino as u32;
        let all = inet_sockets(libc::AF_INET, libc::IPPROTO_UDP, u32::MAX).expect("diag");
        let found = &all[&ino];
        assert_eq!((found.state, found.shutdown), (1, 2));
        assert_eq!((found.peer_port, &found.peer[..4]), (b.local_addr().expect("address").port(), &[127, 0, 0, 1][..]));
    }

    #[test]
    fn garbage_is_none() {
        assert_eq!(parse_inet(&[0; 71]), None);
        assert_eq!(parse_packet(&[0; 15]), None);
        assert_eq!(parse_packet(&[[0u8; 16].as_slice(), &[8, 0, 0, 0, 1, 1, 1, 1]].concat()), None);
    }
}

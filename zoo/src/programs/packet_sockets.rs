//! Packet sockets: device, protocol, options, memberships, a fanout group, a ring; and one of the old sort.
#![allow(unsafe_code, reason = "socket addresses and options that are structures")]
use std::os::fd::{AsRawFd, OwnedFd};

const SOL_PACKET: i32 = 263;
const LO: u32 = 1;
/// PACKET_AUXDATA, ORIGDEV, VERSION, RESERVE, LOSS, TIMESTAMP, FANOUT, QDISC_BYPASS, IGNORE_OUTGOING.
const OPTIONS: [i32; 9] = [8, 9, 10, 12, 14, 17, 18, 20, 23];
const SOCK_PACKET: i32 = 10;

fn set(fd: &OwnedFd, name: i32, value: &[u8]) {
    // SAFETY: the kernel reads `value`, which lives over the call.
    let ret = unsafe { libc::setsockopt(fd.as_raw_fd(), SOL_PACKET, name, value.as_ptr().cast(), value.len() as u32) };
    assert_eq!(ret, 0, "option {name}: {}", std::io::Error::last_os_error());
}

fn number(fd: &OwnedFd, name: i32, value: i32) {
    set(fd, name, &value.to_ne_bytes());
}

fn words(list: &[u32]) -> Vec<u8> {
    list.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

fn bind(fd: &OwnedFd, address: &[u8]) {
    // SAFETY: the kernel reads `address`, which lives over the call.
    let ret = unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), address.len() as u32) };
    assert_eq!(ret, 0, "bind: {}", std::io::Error::last_os_error());
}

fn name(fd: &OwnedFd) -> Vec<u8> {
    let mut address = [0u8; 32];
    let mut len = 32;
    // SAFETY: the kernel writes at most `len` bytes to `address`, which lives over the call.
    unsafe { libc::getsockname(fd.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut len) };
    address[..len as usize].to_vec()
}

/// The membership of a socket, by taking it away and asking for it again.
fn is_member(fd: &OwnedFd, request: &[u8]) -> bool {
    let ask = |name: i32| {
        // SAFETY: the kernel reads `request`, which lives over the call.
        unsafe {
            libc::setsockopt(fd.as_raw_fd(), SOL_PACKET, name, request.as_ptr().cast(), request.len() as u32) == 0
        }
    };
    ask(2) && ask(1)
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let make = |kind, protocol: u16| zoo::net::socket(libc::AF_PACKET, kind, protocol.to_be().into());
    // ETH_P_IP, and no protocol yet.
    let (Ok(bound), Ok(ring), Ok(old)) =
        (make(libc::SOCK_DGRAM, 0x0800), make(libc::SOCK_RAW, 0), make(SOCK_PACKET, 0x88b5))
    else {
        zoo.skip("no packet sockets here")
    };
    // sockaddr_ll: family, protocol, index.
    let mut address = vec![libc::AF_PACKET as u8, 0, 8, 0];
    address.extend_from_slice(&words(&[LO, 0, 0, 0]));
    bind(&bound, &address);
    let mut device = vec![libc::AF_PACKET as u8, 0];
    device.extend_from_slice(b"lo\0\0\0\0\0\0\0\0\0\0\0\0");
    bind(&old, &device);
    number(&ring, 10, 1); // TPACKET_V2
    number(&ring, 8, 1);
    number(&ring, 14, 1);
    set(&ring, 5, &words(&[4096, 2, 1024, 8]));
    number(&bound, 12, 8);
    number(&bound, 9, 1);
    number(&bound, 17, 1 << 6);
    // A group of this process's own, by hash.
    number(&bound, 18, i32::from(zoo::net::place().port()));
    // PACKET_MR_MULTICAST of 33:33:00:00:07:77; promiscuous mode would be news to all who listen to devices.
    let group = words(&[LO, 6 << 16, 0x3333, 0x7707]);
    set(&ring, 1, &group);
    let look =
        || [&bound, &ring, &old].map(|fd| (name(fd), OPTIONS.map(|o| zoo::sys::get_option(fd, SOL_PACKET, o).ok())));
    let before = look();
    while zoo.gap() {
        zoo.eq("names and options", look(), before.clone());
        zoo.ok("the membership", is_member(&ring, &group));
        zoo.ok("there is a ring", zoo::sys::set_option(&ring, SOL_PACKET, 10, 0).is_err());
    }
}

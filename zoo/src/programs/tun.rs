//! Open /dev/net/tun files: attached to nothing, to a device that ends with the program and carries packets, to one that stays,
//! and to two queues of a tap device, one of them switched off.
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};
use zoo::sys::{ioctl_int, ioctl_number, ioctl_set};
use zoo::tuns::{self, IFF_DETACH_QUEUE, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_PERSIST, IFF_TAP, IFF_TUN, IFF_VNET_HDR};

const TUNSETOWNER: u64 = 0x4004_54cc;
const TUNGETSNDBUF: u64 = 0x8004_54d3;
const TUNSETSNDBUF: u64 = 0x4004_54d4;
const TUNGETVNETHDRSZ: u64 = 0x8004_54d7;
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;
const TUNSETQUEUE: u64 = 0x4004_54d9;

fn attach(zoo: &zoo::Zoo, name: &str, flags: u16) -> OwnedFd {
    tuns::attach(name, flags).unwrap_or_else(|e| zoo.skip(&format!("no network devices can be made here: {e}")))
}

fn sizes(fd: &OwnedFd) -> [Option<i32>; 2] {
    [TUNGETSNDBUF, TUNGETVNETHDRSZ].map(|op| ioctl_int(fd.as_raw_fd(), op).ok())
}

/// Gives a device an address and switches it on.
fn up(name: &str, address: Ipv4Addr) {
    const SIOCSIFFLAGS: u64 = 0x8914;
    const SIOCSIFADDR: u64 = 0x8916;
    const SIOCSIFNETMASK: u64 = 0x891c;
    let socket = zoo::must(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)));
    let place = |ip: Ipv4Addr| [&[libc::AF_INET as u8, 0, 0, 0][..], &ip.octets()].concat();
    for (op, value) in [
        (SIOCSIFADDR, place(address)),
        (SIOCSIFNETMASK, place(Ipv4Addr::new(255, 255, 255, 252))),
        (SIOCSIFFLAGS, Vec::from((libc::IFF_UP as u16).to_ne_bytes())),
    ] {
        zoo::must(tuns::call(&socket, op, name, &value));
    }
}

/// True if what is sent through the device comes to its file.
fn carries(fd: &OwnedFd, from: Ipv4Addr, to: Ipv4Addr) -> bool {
    let text = b"packets for the program";
    let socket = zoo::must(UdpSocket::bind((from, 0)));
    let end = Instant::now() + Duration::from_secs(60);
    let mut packet = [0; 2048];
    while Instant::now() < end {
        // Others, such as the kernel itself, may fill the queue, and a device just attached takes a moment: then once more.
        if socket.send_to(text, (to, 9)).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let moment = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        zoo::must(poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&moment)));
        while let Ok(n) = rustix::io::read(fd, &mut packet) {
            if packet[..n].ends_with(text) {
                return true;
            }
        }
    }
    false
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let place = zoo::net::place();
    let nothing = tuns::file().unwrap_or_else(|e| zoo.skip(&format!("no /dev/net/tun here: {e}")));
    let name = |kind: char| format!("z{kind}{}-{}", std::process::id(), place.port());
    // Of 198.18.0.0/15, which is for tests of networks.
    let net = place.port();
    let own = Ipv4Addr::new(198, 18, (net >> 8) as u8, net as u8 & 0xfc | 1);
    let peer = Ipv4Addr::new(198, 18, (net >> 8) as u8, net as u8 & 0xfc | 2);
    let (n, p, q) = (name('n'), name('p'), name('q'));
    let ends = attach(&zoo, &n, IFF_TUN | IFF_NO_PI);
    up(&n, own);
    zoo::must(ioctl_set(ends.as_raw_fd(), TUNSETSNDBUF, 65536));
    let stays = attach(&zoo, &p, IFF_TUN);
    zoo::must(ioctl_number(stays.as_raw_fd(), TUNSETOWNER, 65534));
    zoo::must(tuns::stay(&stays, true));
    let queues = [(); 2].map(|()| attach(&zoo, &q, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE));
    zoo::must(ioctl_set(queues[0].as_raw_fd(), TUNSETVNETHDRSZ, 12));
    zoo::must(tuns::call(&queues[1], TUNSETQUEUE, "", &IFF_DETACH_QUEUE.to_ne_bytes()));
    zoo.tell("devices", &format!("{n} {p} {q}"));
    let files = [&nothing, &ends, &stays, &queues[0], &queues[1]];
    let look = || files.map(|fd| (tuns::attached(fd), sizes(fd), zoo::proc::fd_link(fd.as_raw_fd())));
    let devices = || {
        [&n, &p, &q].map(|name| ["ifindex", "tun_flags", "owner", "mtu", "address"].map(|what| tuns::about(name, what)))
    };
    let before = (look(), devices());
    zoo.ok("the second queue is off", before.0[4].0.as_ref().is_some_and(|(_, f)| f & IFF_DETACH_QUEUE != 0));
    zoo.ok("packets", carries(&ends, own, peer));
    while zoo.gap() {
        zoo.eq("files", look(), before.0.clone());
        zoo.eq("devices", devices(), before.1.clone());
        zoo.ok(
            "one stays, the others do not",
            files[1..]
                .iter()
                .all(|fd| tuns::attached(fd).is_some_and(|(name, flags)| (flags & IFF_PERSIST != 0) == (name == p))),
        );
        zoo.ok("packets", carries(&ends, own, peer));
    }
    zoo::must(tuns::stay(&stays, false));
}

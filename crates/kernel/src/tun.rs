//! Open /dev/net/tun files: which tun or tap device they are attached to, and the calls that attach and change them.
#![allow(unsafe_code, reason = "ioctls of the tun driver and a netlink socket, which no safe wrapper has")]
use crate::sock_diag::{attributes, last, u16_at, u32_at};
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// A tap device: frames of Ethernet; else a tun device: packets.
pub const IFF_TAP: u32 = 0x2;
/// Several files may be attached, one a queue.
pub const IFF_MULTI_QUEUE: u32 = 0x100;
/// The queue is switched off.
pub const IFF_DETACH_QUEUE: u32 = 0x400;
/// The device stays when nobody is attached.
pub const IFF_PERSIST: u32 = 0x800;
/// No four bytes of flags and protocol before each packet. TUNGETIFF says it of every file without a filter.
pub const IFF_NO_PI: u32 = 0x1000;
/// Each packet has a header for offloading.
pub const IFF_VNET_HDR: u32 = 0x4000;

const NAME: usize = libc::IFNAMSIZ;

#[repr(C)]
struct Ifreq {
    name: [u8; NAME],
    flags: u16,
    rest: [u8; 22],
}

impl Ifreq {
    fn new(name: &str, flags: u32) -> Result<Self> {
        let mut request = Self { name: [0; NAME], flags: flags as u16, rest: [0; 22] };
        let room = request.name.get_mut(..name.len()).filter(|room| room.len() < NAME);
        room.ok_or(Errno::NODEV)?.copy_from_slice(name.as_bytes());
        Ok(request)
    }
}

fn ioctl<T>(fd: impl AsFd, op: libc::Ioctl, arg: &mut T) -> Result<i32> {
    // SAFETY: private to this file: each caller gives a structure of the length that the operation reads and writes.
    let ret = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), op, std::ptr::from_mut(arg)) };
    if ret < 0 { Err(last()) } else { Ok(ret) }
}

/// Name and flags (`IFF_*`) of the device that a file is attached to; `None` if to none.
///
/// # Errors
/// `ENOTTY`: the file is no /dev/net/tun.
pub fn attached(fd: impl AsFd) -> Result<Option<(String, u32)>> {
    const TUNGETIFF: libc::Ioctl = 0x8004_54d2;
    let mut request = Ifreq::new("", 0)?;
    match ioctl(fd, TUNGETIFF, &mut request) {
        Err(Errno::BADFD) => Ok(None),
        Err(e) => Err(e),
        Ok(_) => {
            let name = request.name.split(|b| *b == 0).next().unwrap_or_default();
            Ok(Some((String::from_utf8_lossy(name).into_owned(), request.flags.into())))
        }
    }
}

/// Attaches a file to a device, which is made if there is none of that name.
///
/// # Errors
/// `EBUSY`: somebody else is attached. `EPERM`: the device is another user's. `EINVAL`: it has other flags.
pub fn attach(fd: impl AsFd, name: &str, flags: u32) -> Result<()> {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    ioctl(fd, TUNSETIFF, &mut Ifreq::new(name, flags)?).map(drop)
}

/// Switches the file's queue off.
///
/// # Errors
/// `EINVAL`: it is off, or the device has one queue only.
pub fn detach_queue(fd: impl AsFd) -> Result<()> {
    const TUNSETQUEUE: libc::Ioctl = 0x4004_54d9;
    ioctl(fd, TUNSETQUEUE, &mut Ifreq::new("", IFF_DETACH_QUEUE)?).map(drop)
}

/// Says whether the device stays when nobody is attached.
///
/// # Errors
/// `EBADFD`: the file is attached to none.
pub fn set_persistent(fd: impl AsFd, stays: bool) -> Result<()> {
    const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;
    // SAFETY: the argument of this operation is a plain number.
    let ret = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), TUNSETPERSIST, libc::c_ulong::from(stays)) };
    if ret < 0 { Err(last()) } else { Ok(()) }
}

/// The most bytes that wait to be sent, and the length of the header for offloading.
///
/// # Errors
/// `EBADFD`: the file is attached to no device.
pub fn sizes(fd: impl AsFd) -> Result<(i32, i32)> {
    const TUNGETSNDBUF: libc::Ioctl = 0x8004_54d3;
    const TUNGETVNETHDRSZ: libc::Ioctl = 0x8004_54d7;
    let (mut sndbuf, mut header) = (0i32, 0i32);
    ioctl(&fd, TUNGETSNDBUF, &mut sndbuf)?;
    ioctl(&fd, TUNGETVNETHDRSZ, &mut header)?;
    Ok((sndbuf, header))
}

/// Sets what [`sizes`] tells.
///
/// # Errors
/// `EINVAL`: impossible sizes. `EBADFD`: the file is attached to no device.
pub fn set_sizes(fd: impl AsFd, (mut sndbuf, mut header): (i32, i32)) -> Result<()> {
    const TUNSETSNDBUF: libc::Ioctl = 0x4004_54d4;
    const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
    ioctl(&fd, TUNSETSNDBUF, &mut sndbuf)?;
    ioctl(&fd, TUNSETVNETHDRSZ, &mut header).map(drop)
}

/// True if a filter of packets is attached to the tap device.
///
/// # Errors
/// `EINVAL`: it is a tun device.
pub fn has_filter(fd: impl AsFd) -> Result<bool> {
    const TUNGETFILTER: libc::Ioctl = 0x8010_54db;
    // struct sock_fprog: a count in the first two bytes, and where the program lay in its owner's memory.
    let mut program = [0u64; 2];
    ioctl(fd, TUNGETFILTER, &mut program)?;
    Ok(program[0] & 0xffff != 0)
}

/// The network namespace that the file was opened in, and that of its device if it is attached.
///
/// # Errors
/// `EPERM`: without CAP_NET_ADMIN there.
pub fn namespaces(fd: impl AsFd) -> Result<(OwnedFd, Option<OwnedFd>)> {
    const SIOCGSKNS: libc::Ioctl = 0x894c;
    const TUNGETDEVNETNS: libc::Ioctl = 0x54e3;
    let ask = |op| {
        let raw = ioctl(&fd, op, &mut 0u64)?;
        // SAFETY: the kernel has just made this descriptor for us, and nothing else knows of it.
        Ok(unsafe { OwnedFd::from_raw_fd(raw) })
    };
    let device = match ask(TUNGETDEVNETNS) {
        Err(Errno::BADFD) => None,
        other => Some(other?),
    };
    Ok((ask(SIOCGSKNS)?, device))
}

/// A tun or tap device as the namespace's list of devices has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// `IFF_TUN` or [`IFF_TAP`], [`IFF_NO_PI`], [`IFF_VNET_HDR`], [`IFF_PERSIST`] and [`IFF_MULTI_QUEUE`].
    pub flags: u32,
    /// Who may attach, besides those with CAP_NET_ADMIN; -1: nobody.
    pub owner: i32,
    /// And which group.
    pub group: i32,
}

/// The tun or tap device of that name in our network namespace; `None` if there is none, or one of another kind.
///
/// # Errors
/// What the kernel says to the request.
pub fn device(name: &str) -> Result<Option<Device>> {
    const RTM_GETLINK: u16 = 18;
    const IFLA_IFNAME: u16 = 3;
    // SAFETY: plain numbers.
    let raw = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    if raw < 0 {
        return Err(last());
    }
    // SAFETY: the kernel has just opened it; nothing else knows the number.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    // nlmsghdr, ifinfomsg, one attribute.
    let mut attribute = Vec::from((4 + name.len() as u16 + 1).to_ne_bytes());
    attribute.extend_from_slice(&IFLA_IFNAME.to_ne_bytes());
    attribute.extend_from_slice(name.as_bytes());
    attribute.resize((attribute.len() + 1).next_multiple_of(4), 0);
    let mut message = Vec::from((32 + attribute.len() as u32).to_ne_bytes());
    message.extend_from_slice(&RTM_GETLINK.to_ne_bytes());
    message.extend_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend_from_slice(&[0; 24]);
    message.extend_from_slice(&attribute);
    rustix::io::write(&fd, &message)?;
    let mut answer = vec![0u8; 1 << 16];
    let n = rustix::io::read(&fd, &mut answer)?;
    let answer = answer.get(..n).ok_or(Errno::IO)?;
    if u16_at(answer, 4) == Some(libc::NLMSG_ERROR as u16) {
        let code = u32_at(answer, 16).unwrap_or(0) as i32;
        return if code == -libc::ENODEV { Ok(None) } else { Err(Errno::from_raw_os_error(-code)) };
    }
    Ok(parse(answer))
}

fn find<'a>(of: impl Iterator<Item = (u16, &'a [u8])>, number: u16) -> Option<&'a [u8]> {
    let mut of = of;
    of.find(|(found, _)| *found == number).map(|(_, value)| value)
}

/// The answer to RTM_GETLINK.
fn parse(answer: &[u8]) -> Option<Device> {
    const IFLA_LINKINFO: u16 = 18;
    let info = find(attributes(answer.get(32..)?), IFLA_LINKINFO)?;
    // IFLA_INFO_KIND, IFLA_INFO_DATA.
    if find(attributes(info), 1)? != b"tun\0" {
        return None;
    }
    let data = find(attributes(info), 2)?;
    let id = |number| find(attributes(data), number).and_then(|v| u32_at(v, 0)).map_or(-1, |id| id as i32);
    let is = |number| find(attributes(data), number).and_then(|v| v.first()).copied().unwrap_or(0);
    // IFLA_TUN_*: OWNER, GROUP, TYPE, PI, VNET_HDR, PERSIST, MULTI_QUEUE.
    let mut flags = u32::from(is(3));
    for (flag, set) in
        [(IFF_NO_PI, is(4) == 0), (IFF_VNET_HDR, is(5) != 0), (IFF_PERSIST, is(6) != 0), (IFF_MULTI_QUEUE, is(7) != 0)]
    {
        flags |= if set { flag } else { 0 };
    }
    Some(Device { flags, owner: id(1), group: id(2) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_other_kinds_and_none() {
        assert_eq!(device("lo"), Ok(None));
        assert_eq!(device("no-such-device"), Ok(None));
        assert!(Ifreq::new("a-name-too-long-", 0).is_err() && Ifreq::new("fifteen-letters", 0).is_ok());
    }

    #[test]
    fn an_answer_is_read_and_garbage_is_none() {
        let attribute = |number: u16, value: &[u8]| {
            let mut all = Vec::from((4 + value.len() as u16).to_ne_bytes());
            all.extend_from_slice(&number.to_ne_bytes());
            all.extend_from_slice(value);
            all.resize(all.len().next_multiple_of(4), 0);
            all
        };
        let data = [attribute(1, &7u32.to_ne_bytes()), attribute(3, &[2]), attribute(4, &[1]), attribute(6, &[1])];
        let info = [attribute(1, b"tun\0"), attribute(2 | 0x8000, &data.concat())].concat();
        let answer = [vec![0; 32], attribute(3, b"x\0"), attribute(18 | 0x8000, &info)].concat();
        assert_eq!(parse(&answer), Some(Device { flags: IFF_TAP | IFF_PERSIST, owner: 7, group: -1 }));
        for cut in 0..answer.len() {
            let part = parse(&answer[..cut]);
            assert!(part.is_none_or(|d| d.group == -1));
        }
    }
}

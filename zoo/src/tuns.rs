//! tun and tap devices for programs and tests.
#![allow(missing_docs, reason = "the constants are the kernel's")]
use crate::sys;
use rustix::fs::{Mode, OFlags, open};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

pub const TUNSETIFF: u64 = 0x4004_54ca;
const TUNSETPERSIST: u64 = 0x4004_54cb;
const TUNGETIFF: u64 = 0x8004_54d2;
pub const IFF_TUN: u16 = 0x1;
pub const IFF_TAP: u16 = 0x2;
pub const IFF_MULTI_QUEUE: u16 = 0x100;
pub const IFF_DETACH_QUEUE: u16 = 0x400;
pub const IFF_PERSIST: u16 = 0x800;
pub const IFF_NO_PI: u16 = 0x1000;
pub const IFF_VNET_HDR: u16 = 0x4000;

/// A call about the device `name` with these bytes behind the name; what comes back.
///
/// # Errors
/// As the kernel says.
pub fn call(fd: impl AsFd, request: u64, name: &str, value: &[u8]) -> io::Result<[u8; 40]> {
    let mut all = [0; 40];
    all[..name.len()].copy_from_slice(name.as_bytes());
    all[16..16 + value.len()].copy_from_slice(value);
    sys::ioctl_device(fd.as_fd().as_raw_fd(), request, &mut all)?;
    Ok(all)
}

/// /dev/net/tun, attached to nothing.
///
/// # Errors
/// There is none here.
pub fn file() -> io::Result<OwnedFd> {
    Ok(open("/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?)
}

/// Attached to a device, which is made if there is none of that name.
///
/// # Errors
/// As the kernel says.
pub fn attach(name: &str, flags: u16) -> io::Result<OwnedFd> {
    let fd = file()?;
    call(&fd, TUNSETIFF, name, &flags.to_ne_bytes())?;
    Ok(fd)
}

/// Says whether the device stays when nobody is attached.
///
/// # Errors
/// As the kernel says.
pub fn stay(fd: &OwnedFd, on: bool) -> io::Result<()> {
    sys::ioctl_number(fd.as_raw_fd(), TUNSETPERSIST, i32::from(on))
}

/// Name and flags; of what is attached to nothing, none.
#[must_use]
pub fn attached(fd: &OwnedFd) -> Option<(String, u16)> {
    let found = call(fd, TUNGETIFF, "", &[]).ok()?;
    let name = found[..16].iter().take_while(|b| **b != 0).map(|b| char::from(*b)).collect();
    Some((name, u16::from_ne_bytes([found[16], found[17]])))
}

/// What sysfs says about a device.
#[must_use]
pub fn about(name: &str, what: &str) -> Option<String> {
    Some(std::fs::read_to_string(format!("/sys/class/net/{name}/{what}")).ok()?.trim().to_owned())
}

/// A device's flags; none if there is none.
#[must_use]
pub fn flags(name: &str) -> Option<u16> {
    u16::from_str_radix(about(name, "tun_flags")?.strip_prefix("0x")?, 16).ok()
}

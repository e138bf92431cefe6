//! A signal descriptor: its mask, and a signal that waits to be read.
#![allow(unsafe_code, reason = "signalfd has no safe wrapper")]
use std::os::fd::{FromRawFd, OwnedFd};
use zoo::sys::{bit, queue, set_mask};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mask = bit(libc::SIGUSR1) | bit(50);
    set_mask(mask);
    // SAFETY: the mask is 8 bytes as told; the new descriptor is nobody else's.
    let fd = unsafe {
        let flags = libc::SFD_NONBLOCK | libc::SFD_CLOEXEC;
        let fd = libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8, flags);
        OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1))
    };
    loop {
        zoo.ok("queued", queue(None, 50, 123).is_ok());
        let on = zoo.gap();
        let mut info = [0; 128];
        zoo.eq("read", rustix::io::read(&fd, &mut info), Ok(128));
        zoo.eq("signal", info[..4].to_vec(), 50_u32.to_ne_bytes().to_vec());
        zoo.eq("another", rustix::io::read(&fd, &mut info), Err(rustix::io::Errno::AGAIN));
        let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
        zoo.eq("mask", zoo::proc::fd_info(number, "sigmask"), format!("{mask:016x}"));
        if !on {
            return;
        }
    }
}

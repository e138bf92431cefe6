//! As timed_waits, for calls that the kernel itself ends with EINTR when a task is stopped (signal(7)): epoll, a socket with a time
//! limit, and waits for a signal.
#![allow(unsafe_code, reason = "raw calls: the C library hides interruptions of some")]
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use zoo::sys::{TimedWait, timed_waits};

const MS: i64 = 300;

pub(super) fn main() {
    let epoll = zoo::must(rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC));
    let (socket, _peer) = zoo::must(UnixDatagram::pair());
    let limit = std::time::Duration::from_millis(MS.unsigned_abs());
    zoo::must(socket.set_read_timeout(Some(limit)));
    let (mut events, mut bytes) = (Vec::<libc::epoll_event>::with_capacity(4), [0_u8; 8]);
    let (events, bytes) = (events.as_mut_ptr() as usize, bytes.as_mut_ptr() as usize);
    let (epoll, socket) = (epoll.as_raw_fd(), socket.as_raw_fd());
    // SAFETY: the room for four events outlives the threads, which end with the rounds.
    let wait = || unsafe { libc::syscall(libc::SYS_epoll_wait, epoll, events, 4, MS) };
    // SAFETY: so do the eight bytes; no sender's address is asked for.
    let receive = || unsafe { libc::syscall(libc::SYS_recvfrom, socket, bytes, 8, 0, 0, 0) };
    let signal = || {
        let (set, time) = (1_u64 << 50, libc::timespec { tv_sec: 0, tv_nsec: MS * 1_000_000 });
        // SAFETY: set and time are live through the call; no siginfo is asked for.
        unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &raw const set, 0, &raw const time, 8) }
    };
    let calls: [(&str, &(dyn Fn() -> i64 + Sync)); 3] =
        [("epoll_wait", &wait), ("recvfrom", &receive), ("rt_sigtimedwait", &signal)];
    timed_waits(calls.map(|(name, call)| TimedWait { name, call }), MS);
}

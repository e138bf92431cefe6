//! Descriptors for processes: a child, ourselves, a zombie, and a child that was waited for long ago (twice, one task).
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::{AsRawFd, OwnedFd};

fn open(pid: i32, flags: PidfdFlags) -> OwnedFd {
    zoo::must(pidfd_open(Pid::from_raw(pid).unwrap_or(Pid::INIT), flags))
}

fn ended(fd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&now)) == Ok(1)
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let child = zoo.fork("child", |mut zoo| while zoo.gap() {});
    let alive = open(child, PidfdFlags::NONBLOCK);
    let own = open(std::process::id().cast_signed(), PidfdFlags::empty());
    let dead_child = zoo::sys::fork(|| 5);
    let zombie = open(dead_child, PidfdFlags::empty());
    let gone_child = zoo::sys::fork(|| 7);
    let (gone, twin) = (open(gone_child, PidfdFlags::empty()), open(gone_child, PidfdFlags::NONBLOCK));
    zoo.eq("status", zoo::sys::waitpid(gone_child).ok(), Some(7 << 8));
    while !ended(&zombie) {}
    while zoo.gap() {
        zoo.eq("the child is there", pidfd_send_signal(&alive, Signal::CONT), Ok(()));
        zoo.ok("and has not ended", !ended(&alive) && !ended(&own));
        zoo.eq("pid", zoo::proc::fd_info(alive.as_raw_fd(), "Pid"), child.to_string());
        zoo.eq("our pid", zoo::proc::fd_info(own.as_raw_fd(), "Pid"), std::process::id().to_string());
        zoo.ok("flags", rustix::fs::fcntl_getfl(&alive).is_ok_and(|f| f.contains(rustix::fs::OFlags::NONBLOCK)));
        zoo.eq("pid of the zombie", zoo::proc::fd_info(zombie.as_raw_fd(), "Pid"), dead_child.to_string());
        zoo.ok("zombie and gone have ended", ended(&zombie) && ended(&gone) && ended(&twin));
        zoo.eq("signal to the gone", pidfd_send_signal(&gone, Signal::CONT), Err(Errno::SRCH));
        zoo.eq("pid of the gone", zoo::proc::fd_info(twin.as_raw_fd(), "Pid"), "-1".to_owned());
        let inode = |fd: &OwnedFd| fstat(fd).map(|s| s.st_ino);
        zoo.eq("one task", inode(&gone), inode(&twin));
    }
    zoo.eq("status of the zombie", zoo::sys::waitpid(dead_child).ok(), Some(5 << 8));
}

//! Descriptors for a process that is not in the tree.
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::AsRawFd;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let [plain, other] =
        [PidfdFlags::empty(), PidfdFlags::NONBLOCK].map(|flags| zoo::must(pidfd_open(Pid::INIT, flags)));
    while zoo.gap() {
        for fd in [&plain, &other] {
            zoo.eq("pid", zoo::proc::fd_info(fd.as_raw_fd(), "Pid"), "1".to_owned());
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            zoo.eq("it lives", poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&now)), Ok(0));
        }
        let nonblock = [&plain, &other].map(|fd| fcntl_getfl(fd).is_ok_and(|f| f.contains(OFlags::NONBLOCK)));
        zoo.eq("flags", nonblock, [false, true]);
    }
}

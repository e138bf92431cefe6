//! A descriptor for a child process.
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let child = zoo.fork("child", |mut zoo| while zoo.gap() {});
    let pid = Pid::from_raw(child).unwrap_or(Pid::INIT);
    let fd = zoo::must(pidfd_open(pid, PidfdFlags::empty()));
    while zoo.gap() {
        zoo.eq("the child is there", pidfd_send_signal(&fd, Signal::CONT), Ok(()));
        let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
        zoo.eq("pid", zoo::proc::fd_info(number, "Pid"), child.to_string());
    }
}

//! Refused: a descriptor for a process that is not in the tree.
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::AsRawFd;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let fd = zoo::must(pidfd_open(Pid::INIT, PidfdFlags::empty()));
    super::hold_refused(&mut zoo, fd.as_raw_fd().into(), "not in the tree|not a part of process tree");
}

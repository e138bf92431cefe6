//! Refused: a device that no dump knows: a connection to FUSE, or the control of loop devices.
use rustix::fs::{Mode, OFlags, open};
use std::os::fd::IntoRawFd;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let devices = ["/dev/fuse", "/dev/loop-control"];
    let opened = devices.into_iter().find_map(|name| Some((name, open(name, OFlags::RDWR, Mode::empty()).ok()?)));
    let Some((name, fd)) = opened else { zoo.skip("no such devices") };
    super::hold_refused(&mut zoo, fd.into_raw_fd().into(), name);
}

//! Refused: an event that waits in an inotify queue, which nobody can read without taking it. It is still there afterwards.
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::os::fd::AsRawFd;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let fd = zoo::must(inotify::init(CreateFlags::NONBLOCK));
    zoo::must(inotify::add_watch(&fd, ".", WatchFlags::CREATE));
    zoo::must(std::fs::write("made", "x"));
    super::hold_refused(&mut zoo, fd.as_raw_fd().into(), "inotify events wait");
    zoo.ok("the event", rustix::io::read(&fd, &mut [0; 512]).is_ok_and(|n| n > 16));
}

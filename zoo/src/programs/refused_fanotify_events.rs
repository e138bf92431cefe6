//! Refused: an event in a fanotify queue without a limit, which never says that one was lost. It is still there afterwards.
use std::os::fd::AsRawFd;
use zoo::sys::{fanotify_init, fanotify_mark};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::write("file", "x"));
    let flags = libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | libc::FAN_UNLIMITED_QUEUE | libc::FAN_REPORT_FID;
    let Ok(fd) = fanotify_init(flags, libc::O_RDONLY) else { zoo.skip("fanotify_init is not allowed here") };
    zoo::must(fanotify_mark(&fd, libc::FAN_MARK_ADD, libc::FAN_MODIFY, c"file"));
    zoo::must(std::fs::write("file", "y"));
    super::hold_refused(&mut zoo, fd.as_raw_fd().into(), "FAN_UNLIMITED_QUEUE");
    zoo.ok("the event", rustix::io::read(&fd, &mut [0; 512]).is_ok_and(|n| n > 24));
}

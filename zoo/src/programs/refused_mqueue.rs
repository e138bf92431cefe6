//! A POSIX message queue that lost its name: read as a file it is a line of text, and no queue.
use std::os::fd::AsRawFd;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let name = format!("/zoo-{}-{}", zoo::sys::getpid(), std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos()));
    let name = zoo::must(std::ffi::CString::new(name));
    let fd = match zoo::calls::message_queue(&name) {
        Ok(fd) => fd,
        Err(e) => zoo.skip(&format!("no message queues here: {e}")),
    };
    zoo::must(zoo::calls::unlink_message_queue(&name));
    super::hold_refused(&mut zoo, fd.as_raw_fd().into(), "POSIX message queue");
}

//! POSIX message queues: one that lost its name and holds a message, and one whose next message is a signal.
use std::os::fd::AsRawFd;
use zoo::queues::{make, name, notify, send, unlink};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (one, two) = (name("lost"), name("told"));
    let fd = match make(&one, libc::O_RDWR | libc::O_NONBLOCK, 0o600, 2, 16) {
        Ok(fd) => fd,
        Err(e) => zoo.skip(&format!("no message queues here: {e}")),
    };
    zoo::must(unlink(&one));
    zoo::must(send(&fd, b"one", 1));
    let told = zoo::must(make(&two, libc::O_RDWR, 0o600, 2, 16));
    zoo::must(unlink(&two));
    zoo::must(notify(&told, libc::SIGUSR1));
    let (pid, a, b) = (zoo::sys::getpid(), fd.as_raw_fd(), told.as_raw_fd());
    let names = format!("task {pid}\nfd {a}\n1 messages wait in the POSIX message queue\nfd {b}\nmq_notify");
    zoo.tell("names", &names);
    let links = [a, b].map(zoo::proc::fd_link);
    while zoo.gap() {
        zoo.eq("descriptors", [a, b].map(zoo::proc::fd_link), links.clone());
        zoo.ok("the registration", notify(&told, libc::SIGUSR1).is_err());
    }
}

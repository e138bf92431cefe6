//! Refused: a socket whose other end was closed with a message unread: the error that waits cannot be looked at.
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use std::os::fd::AsRawFd;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (fd, other) = zoo::must(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None));
    zoo.eq("sent", send(&fd, b"unread", SendFlags::empty()), Ok(6));
    drop(other);
    zoo.tell("names", &format!("task {}\nfd {}\nan error", zoo::sys::getpid(), fd.as_raw_fd()));
    while zoo.gap() {}
    let mut bytes = [0; 8];
    let got = recv(&fd, &mut bytes[..], RecvFlags::empty());
    zoo.eq("the error", got.map(|_| ()), Err(rustix::io::Errno::CONNRESET));
}

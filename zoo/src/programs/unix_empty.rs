//! Empty messages that wait, the end of a connection that does not, and sockets that were never connected.
use rustix::io::{Errno, read, write};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, socket_with, socketpair};
use std::os::fd::OwnedFd;

fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    zoo::must(socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None))
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let unconnected = zoo::must(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None));
    let records = pair(SocketType::SEQPACKET);
    let datagrams = pair(SocketType::DGRAM);
    loop {
        // Ends of connections that are over, with and without messages before.
        let (ended, closing) = pair(SocketType::SEQPACKET);
        zoo.eq("write", write(&closing, b""), Ok(0));
        zoo.eq("write", write(&closing, b"last"), Ok(4));
        zoo.eq("write", write(&closing, b""), Ok(0));
        drop(closing);
        let (half, other_half) = pair(SocketType::SEQPACKET);
        zoo::must(rustix::net::shutdown(&other_half, Shutdown::Write));
        for (a, _) in [&records, &datagrams] {
            for text in [&b""[..], b"", b"one", b"", b"four", b""] {
                zoo.eq("write", write(a, text), Ok(text.len()));
            }
        }
        let on = zoo.gap();
        let mut got = [0; 20];
        for (_, b) in [&records, &datagrams] {
            for len in [0, 0, 3, 0, 4, 0] {
                zoo.eq("message", read(b, &mut got), Ok(len));
            }
            zoo.eq("no more", read(b, &mut got), Err(Errno::AGAIN));
        }
        for len in [0, 4, 0, 0, 0] {
            zoo.eq("of one that is gone", read(&ended, &mut got), Ok(len));
        }
        zoo.eq("half closed", read(&half, &mut got), Ok(0));
        zoo.eq("write", write(&half, b"back"), Ok(4));
        zoo.eq("the other way", read(&other_half, &mut got), Ok(4));
        zoo.eq("unconnected", read(&unconnected, &mut got), Err(Errno::NOTCONN));
        if !on {
            return;
        }
    }
}

//! Two UDP sockets that are each other's peer, one shut for sending, one for receiving.
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, connect, recv, send, shutdown};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (here, there) = (zoo::net::place(), zoo::net::place());
    let (a, b) = (zoo::net::udp(here), zoo::net::udp(there));
    zoo::must(connect(&a, &there));
    zoo::must(connect(&b, &here));
    zoo::must(shutdown(&a, Shutdown::Write));
    zoo::must(shutdown(&b, Shutdown::Read));
    while zoo.gap() {
        zoo.eq("send to the one that is shut for sending", send(&b, b"hello", SendFlags::empty()), Ok(5));
        let got = recv(&a, &mut [0u8; 16][..], RecvFlags::empty()).map(|(n, _)| n);
        zoo.eq("receive", got, Ok(5));
        zoo.eq("send from there", send(&a, b"hello", SendFlags::NOSIGNAL), Err(Errno::PIPE));
        let got = recv(&b, &mut [0u8; 16][..], RecvFlags::DONTWAIT).map(|(n, _)| n);
        zoo.ok("the other one is shut for receiving", matches!(got, Ok(0) | Err(Errno::AGAIN)));
        let events = zoo::sys::readable(&b, std::time::Duration::ZERO);
        zoo.ok("and poll says so", events.is_ok_and(|yes| yes));
    }
}

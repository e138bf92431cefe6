//! Refused: a TCP listener with a connection that nobody has accepted yet. It is still there.
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let Ok(listener) = TcpListener::bind("127.0.0.1:0") else { zoo.skip("no loopback interface") };
    let client = listener.local_addr().and_then(TcpStream::connect);
    // The other end is no part of the tree's own descriptors: only the waiting one is.
    let Ok(client) = client else { zoo.skip("no loopback interface") };
    super::hold_refused(&mut zoo, listener.as_raw_fd().into(), "1 connections wait to be accepted");
    zoo.ok("the connection", listener.accept().is_ok());
    drop(client);
}

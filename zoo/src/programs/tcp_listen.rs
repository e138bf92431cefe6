//! A listening TCP socket on a port of its own: a client can still connect.
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let listener = zoo::must(TcpListener::bind("127.0.0.1:0"));
    let address = zoo::must(listener.local_addr());
    while zoo.gap() {
        zoo.eq("address", listener.local_addr().ok(), Some(address));
        let mut client = zoo::must(TcpStream::connect(address));
        zoo::must(client.write_all(b"hello"));
        let (mut server, _) = zoo::must(listener.accept());
        let mut got = [0; 5];
        zoo.ok("it answers", server.read_exact(&mut got).is_ok() && &got == b"hello");
        // The client closes first, or the port would stay busy for minutes; resetting leaves nothing behind.
        zoo::must(rustix::net::sockopt::set_socket_linger(&server, Some(std::time::Duration::ZERO)));
    }
}

//! A listening unix socket with a name: a client can still connect.
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let listener = zoo::must(UnixListener::bind("socket"));
    while zoo.gap() {
        let mut client = zoo::must(UnixStream::connect("socket"));
        zoo::must(client.write_all(b"hello"));
        let (mut server, _) = zoo::must(listener.accept());
        let mut got = [0; 5];
        zoo.ok("it answers", server.read_exact(&mut got).is_ok() && &got == b"hello");
    }
}

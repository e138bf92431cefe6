//! Refused: a unix socket whose connection is not accepted yet and has data: nobody but the accepting program can read it.
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let listener = zoo::must(UnixListener::bind("listener"));
    let mut client = zoo::must(UnixStream::connect("listener"));
    zoo::must(client.write_all(b"early"));
    super::hold_refused(&mut zoo, client.as_raw_fd().into(), "not accepted yet");
    let mut got = [0; 5];
    zoo.ok("the data", listener.accept().is_ok_and(|(mut server, _)| server.read_exact(&mut got).is_ok()));
}

//! Connections that wait to be accepted are accepted in the order they came, whatever their descriptors.
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let listener = zoo::must(UnixListener::bind("socket"));
    loop {
        let mut clients: Vec<(u8, UnixStream)> = Vec::new();
        let places: Vec<_> = (0..4).map(|_| zoo::must(std::fs::File::open("/dev/null"))).collect();
        // The lowest descriptors go free last, so the last client has the lowest.
        for (n, place) in (0..).zip(places.into_iter().rev()) {
            drop(place);
            clients.push((n, zoo::must(UnixStream::connect("socket"))));
        }
        let on = zoo.gap();
        for (n, client) in &mut clients {
            zoo.eq("write", client.write(&[*n]).ok(), Some(1));
        }
        for n in 0..4 {
            let mut got = [u8::MAX];
            let read = listener.accept().and_then(|(mut server, _)| server.read(&mut got));
            zoo.eq("read", read.ok(), Some(1));
            zoo.eq("who comes next", got[0], n);
        }
        if !on {
            return;
        }
    }
}

//! Names that only crust brings back: those of accepted sockets, of a file that was moved, of a socket in a changed root.
use rustix::io::{read, write};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

fn speaks(zoo: &mut zoo::Zoo, what: &str, from: impl AsFd, to: impl AsFd) {
    zoo.eq(what, write(from, b"hello"), Ok(5));
    let mut got = [0; 10];
    zoo.eq(what, read(to, &mut got), Ok(5));
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    // Accepted sockets have their listener's name, whether it lives or not.
    let hidden = zoo::must(SocketAddr::from_abstract_name(format!("zoo-kept-{}", std::process::id())));
    let listener = zoo::must(UnixListener::bind_addr(&hidden));
    let first = zoo::must(UnixStream::connect_addr(&hidden));
    let (first_server, _) = zoo::must(listener.accept());
    let closed = zoo::must(UnixListener::bind("closed"));
    let second = zoo::must(UnixStream::connect("closed"));
    let (second_server, _) = zoo::must(closed.accept());
    drop(closed);
    // What a daemon does that appears all at once.
    let moved = zoo::must(UnixListener::bind("not-yet"));
    zoo::must(std::fs::rename("not-yet", "ready"));
    let relative = zoo::must(UnixListener::bind("not-yet"));
    zoo::must(std::fs::rename("not-yet", "ready-too"));
    // What supervisord does: the second name is there only if it was free.
    let linked = zoo::must(UnixListener::bind("first.name"));
    zoo::must(std::fs::hard_link("first.name", "second.name"));
    zoo::must(std::fs::remove_file("first.name"));
    // A child in another root directory.
    zoo.fork("jailed", |mut zoo| {
        zoo::must(std::os::unix::fs::chroot("."));
        zoo::must(std::env::set_current_dir("/"));
        zoo.base_is("/");
        let inside = zoo::must(UnixListener::bind("/inside"));
        while zoo.gap() {
            let client = zoo.get("connect", UnixStream::connect("/inside").map(Some));
            let server = zoo.get("accept", inside.accept().map(Some));
            if let (Some(client), Some((server, _))) = (client, server) {
                speaks(&mut zoo, "inside", &client, &server);
            }
        }
    });
    while zoo.gap() {
        for (client, server) in [(&first, &first_server), (&second, &second_server)] {
            speaks(&mut zoo, "connection", client, server);
        }
        let name =
            |s: &SocketAddr| (s.as_pathname().map(ToOwned::to_owned), s.as_abstract_name().map(ToOwned::to_owned));
        let own = [first_server.local_addr(), second_server.local_addr()].map(|a| a.map(|a| name(&a)).ok());
        let theirs = [first.peer_addr(), second.peer_addr()].map(|a| a.map(|a| name(&a)).ok());
        let want = [name(&hidden), (Some("closed".into()), None)].map(Some);
        zoo.eq("own names", own, want.clone());
        zoo.eq("names of the others", theirs, want);
        let name = moved.local_addr().ok().and_then(|a| a.as_pathname().map(ToOwned::to_owned));
        zoo.eq("name of the one that moved", name, Some("not-yet".into()));
        zoo.ok("nothing at the first name", !std::path::Path::new("not-yet").exists());
        for (listener, file) in [(&moved, "ready"), (&relative, "ready-too"), (&linked, "second.name"), (&listener, "")]
        {
            let client = match file {
                "" => UnixStream::connect_addr(&hidden),
                _ => UnixStream::connect(file),
            };
            zoo::must(listener.set_nonblocking(true));
            match (client, listener.accept()) {
                (Ok(client), Ok((server, _))) => speaks(&mut zoo, file, &client, &server),
                (client, _) => zoo.ok(&format!("{file:?}: {client:?}"), false),
            }
        }
        zoo.ok("nothing outside", !std::path::Path::new("/inside").exists());
    }
}

//! Sockets whose names lead elsewhere by now: removed, with their directory or replaced by a fifo, taken by another
//! socket, started from a directory that was left. Everybody who was connected still is, and nothing new stands there.
use rustix::fs::{FileType, Mode, OFlags, mknodat, open};
use rustix::io::{read, write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

fn speaks(zoo: &mut zoo::Zoo, what: &str, from: impl AsFd, to: impl AsFd) {
    zoo.eq(what, write(from, b"hello"), Ok(5));
    let mut got = [0; 10];
    zoo.eq(what, read(to, &mut got), Ok(5));
}

fn client(to: &Path) -> UnixDatagram {
    let client = zoo::must(UnixDatagram::unbound());
    zoo::must(client.connect(to));
    client
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let here = zoo::must(std::env::current_dir());
    zoo::must(std::fs::create_dir_all("dir/below"));
    // One name, three sockets one after the other, all gone with their directory.
    let name = Path::new("dir/below/name");
    let mut gone = Vec::new();
    for _ in 0..2 {
        let server = zoo::must(UnixDatagram::bind(name));
        gone.push((client(name), server));
        zoo::must(std::fs::remove_file(name));
    }
    let (a, b) = zoo::must(UnixDatagram::pair());
    zoo::must(rustix::net::bind(&a, &zoo::must(rustix::net::SocketAddrUnix::new(name))));
    zoo::must(std::fs::remove_file(name));
    zoo::must(rustix::net::bind(&b, &zoo::must(rustix::net::SocketAddrUnix::new(name))));
    zoo::must(std::fs::remove_file(name));
    let listener = zoo::must(UnixListener::bind(name));
    let outer = zoo::must(UnixStream::connect(name));
    let (inner, _) = zoo::must(listener.accept());
    zoo::must(std::fs::remove_dir_all("dir"));
    // A fifo has the name now.
    let fifo_server = zoo::must(UnixDatagram::bind("later-a-fifo"));
    let fifo_client = client(Path::new("later-a-fifo"));
    zoo::must(std::fs::remove_file("later-a-fifo"));
    zoo::must(mknodat(rustix::fs::CWD, "later-a-fifo", FileType::Fifo, Mode::from_raw_mode(0o600), 0));
    let fifo: OwnedFd = zoo::must(open("later-a-fifo", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()));
    // Another socket has the name now; the first was there before it, and in between.
    let first = zoo::must(UnixListener::bind("twice"));
    zoo::must(std::fs::rename("twice", "aside"));
    let second = zoo::must(UnixListener::bind("twice"));
    zoo::must(std::fs::rename("aside", "twice"));
    // All connections of a listener that is closed; its file is still there.
    let closed = zoo::must(UnixListener::bind("closed"));
    let mut served = Vec::new();
    for _ in 0..3 {
        let client = zoo::must(UnixStream::connect("closed"));
        served.push((client, zoo::must(closed.accept()).0));
    }
    drop(closed);
    // A relative name whose directory is not ours any more.
    zoo::must(std::fs::create_dir("sub"));
    zoo::must(std::env::set_current_dir("sub"));
    let relative = zoo::must(UnixDatagram::bind("relative"));
    zoo::must(std::env::set_current_dir("/"));
    zoo.base_is(&here);
    loop {
        let late = zoo.round() > 0;
        if late {
            zoo.eq("write", write(&gone[0].0, b"waits"), Ok(5));
        }
        let on = zoo.gap();
        if late {
            let mut got = [0; 10];
            zoo.eq("what waited", read(&gone[0].1, &mut got), Ok(5));
        }
        for (from, to) in &gone {
            speaks(&mut zoo, "a name that is gone", from, to);
        }
        speaks(&mut zoo, "a pair with names that are gone", &a, &b);
        speaks(&mut zoo, "the other way", &b, &a);
        speaks(&mut zoo, "a connection by a name that is gone", &outer, &inner);
        speaks(&mut zoo, "behind a fifo", &fifo_client, &fifo_server);
        speaks(&mut zoo, "the fifo", &fifo, &fifo);
        for (client, server) in &served {
            speaks(&mut zoo, "of a listener that is closed", client, server);
        }
        zoo.ok("no directory", !here.join("dir").exists());
        zoo::must(std::env::set_current_dir(&here));
        let by_name = zoo::must(UnixStream::connect("twice"));
        zoo::must(first.set_nonblocking(true));
        zoo.ok("the first has the name", first.accept().is_ok());
        zoo::must(second.set_nonblocking(true));
        zoo.ok("the second has none", second.accept().is_err());
        drop(by_name);
        let by_name = client(Path::new("sub/relative"));
        speaks(&mut zoo, "a relative name", &by_name, &relative);
        zoo.ok("the closed listener's file", std::fs::metadata("closed").is_ok());
        let refused = UnixStream::connect("closed").map_err(|e| e.kind());
        zoo.eq("nobody listens", refused.err(), Some(std::io::ErrorKind::ConnectionRefused));
        zoo::must(std::env::set_current_dir("/"));
        if !on {
            return;
        }
    }
}

//! Connections that wait to be accepted: of two listeners, from two processes.
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::OwnedFd;

fn socket(kind: SocketType) -> OwnedFd {
    zoo::must(rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None))
}

fn connect(kind: SocketType, to: &SocketAddrUnix) -> OwnedFd {
    let client = socket(kind);
    zoo::must(rustix::net::connect(&client, to));
    client
}

fn send(zoo: &mut zoo::Zoo, client: &OwnedFd, text: &[u8]) {
    zoo.eq("send", rustix::io::write(client, text), Ok(text.len()));
}

/// What the client of the next connection says.
fn accept(listener: &OwnedFd) -> String {
    let Ok(server) = rustix::net::accept(listener) else { return "no connection".to_owned() };
    let mut got = [0; 20];
    let n = rustix::io::read(&server, &mut got).unwrap_or(0);
    String::from_utf8_lossy(&got[..n]).into_owned()
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (stream, records) = (SocketType::STREAM, SocketType::SEQPACKET);
    let listeners = [(stream, socket(stream)), (records, socket(records))];
    let path = zoo::must(SocketAddrUnix::new("listener"));
    let hidden = zoo::must(SocketAddrUnix::new_abstract_name(format!("zoo-{}", std::process::id()).as_bytes()));
    for ((_, listener), name) in listeners.iter().zip([&path, &hidden]) {
        zoo::must(rustix::net::bind(listener, name));
        zoo::must(rustix::net::listen(listener, 5));
    }
    let (stream_name, inner_hidden) = (path.clone(), hidden.clone());
    zoo.fork("child", |mut zoo| {
        loop {
            let round = zoo.round() + 1;
            let clients = [connect(stream, &stream_name), connect(records, &inner_hidden)];
            zoo.tell(&format!("connected.{round}"), "");
            let on = zoo.gap();
            for client in &clients {
                send(&mut zoo, client, b"child");
            }
            zoo.tell(&format!("sent.{round}"), "");
            if !on {
                return;
            }
            let accepted = zoo.hear(&format!("accepted.{round}")).is_some();
            zoo.ok("they were accepted", accepted);
        }
    });
    loop {
        let round = zoo.round() + 1;
        let connected = zoo.hear(&format!("connected.{round}")).is_some();
        zoo.ok("the child connects", connected);
        let first = [connect(stream, &path), connect(records, &hidden)];
        let second = [connect(stream, &path), connect(records, &hidden)];
        let on = zoo.gap();
        for (client, text) in first.iter().zip([b"first"; 2]).chain(second.iter().zip([b"other"; 2])) {
            send(&mut zoo, client, text);
        }
        let sent = zoo.hear(&format!("sent.{round}")).is_some();
        zoo.ok("the child sends", sent);
        for (_, listener) in &listeners {
            // In what order is another program's question (`unix_waiting_order`).
            let mut said = [(); 3].map(|()| accept(listener));
            said.sort();
            zoo.eq("said", said, ["child", "first", "other"].map(str::to_owned));
            let none = zoo::sys::readable(listener, std::time::Duration::ZERO);
            zoo.ok("no further connection", matches!(none, Ok(false)));
        }
        zoo.tell(&format!("accepted.{round}"), "");
        if !on {
            return;
        }
    }
}

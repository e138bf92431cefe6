//! Whom unix sockets show as their peer (SO_PEERCRED): pairs of our own, of ourselves as another user, and of a child that has
//! ended as another; a listener of another user; a connection with a child, from both sides.
use rustix::net::sockopt::socket_peercred;
use rustix::net::{SocketType, UCred};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

fn become_user(uid: u32, gid: u32) {
    // The saved ids stay: root can come back.
    let set = set_thread_res_gid(Gid::ROOT, Gid::from_raw(gid), Gid::ROOT)
        .and_then(|()| set_thread_res_uid(Uid::ROOT, Uid::from_raw(uid), Uid::ROOT));
    zoo::must(set);
}

/// What `make` gives if another user calls it.
fn as_user<T>(uid: u32, gid: u32, make: impl FnOnce() -> T) -> T {
    become_user(uid, gid);
    let made = make();
    zoo::must(
        set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
            .and_then(|()| set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)),
    );
    made
}

fn shown(fd: impl AsFd) -> (i32, u32, u32) {
    let UCred { pid, uid, gid } = zoo::must(socket_peercred(fd));
    (pid.as_raw_nonzero().get(), uid.as_raw(), gid.as_raw())
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let own = zoo::sys::getpid();
    let pairs = [SocketType::STREAM, SocketType::DGRAM].map(zoo::rights::pair);
    let other = as_user(1001, 1002, || zoo::rights::pair(SocketType::SEQPACKET));
    let (to, from) = zoo::rights::pair(SocketType::DGRAM);
    let gone = zoo::sys::fork(|| {
        become_user(2001, 2002);
        let (a, b) = zoo::rights::pair(SocketType::STREAM);
        i32::from(zoo::rights::send(&to, b"x", &[a.as_fd(), b.as_fd()]).is_err())
    });
    zoo.eq("it ended well", zoo::sys::waitpid(gone).ok(), Some(0));
    let (_, of_gone): (_, Vec<OwnedFd>) = zoo::must(zoo::rights::receive(&from, 1));
    drop((to, from));
    let listener = zoo::must(UnixListener::bind("socket"));
    as_user(3001, 3002, || zoo::must(rustix::net::listen(&listener, 16)));
    let child = zoo.fork("client", |mut zoo| {
        let stream = zoo::must(UnixStream::connect("socket"));
        zoo.tell("connected", "");
        while zoo.gap() {
            zoo.eq("whom the client sees", shown(&stream), (own, 3001, 3002));
        }
    });
    zoo.hear("connected");
    let (accepted, _) = zoo::must(listener.accept());
    let from_gone = (gone, 2001, 2002);
    zoo.eq("at first", of_gone.iter().map(shown).collect(), vec![from_gone; 2]);
    zoo.eq("the listener at first", shown(&listener), (own, 3001, 3002));
    while zoo.gap() {
        for (a, b) in &pairs {
            zoo.eq("our own pair", [shown(a), shown(b)], [(own, 0, 0); 2]);
            zoo::rights::works(&mut zoo, "it works", Some(a), Some(b));
        }
        zoo.eq("ours as another user", [shown(&other.0), shown(&other.1)], [(own, 1001, 1002); 2]);
        zoo.eq("of one that ended", of_gone.iter().map(shown).collect(), vec![from_gone; 2]);
        zoo::rights::works(&mut zoo, "it works, too", of_gone.first(), of_gone.last());
        zoo.eq("the listener", shown(&listener), (own, 3001, 3002));
        zoo.eq("the child", shown(&accepted), (child, 0, 0));
        let client = zoo::must(UnixStream::connect("socket"));
        zoo.eq("a new client sees the listener", shown(&client), (own, 3001, 3002));
        drop(zoo::must(listener.accept()));
    }
}

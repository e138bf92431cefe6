//! Files whose signals go to somebody: to us, to a child that is born after them, to its group, to a thread.
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::OwnedFd;
use std::time::Duration;
use zoo::calls::{Owner, fcntl, owner, set_owner};
use zoo::sys::{bit, set_mask, take_signal};

const SIGNAL: i32 = 41;
/// `F_SETSIG`, `F_GETSIG`.
const SETSIG: i32 = 10;
const GETSIG: i32 = 11;

fn pair() -> (OwnedFd, OwnedFd) {
    zoo::must(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None))
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    set_mask(bit(SIGNAL));
    let ends = [pair(), pair(), pair(), pair()];
    let child = zoo.fork("child", |mut zoo| {
        zoo::must(rustix::process::setpgid(None, None));
        zoo.tell("group", "");
        while zoo.gap() {
            let n = zoo.round();
            zoo.ok("the parent wrote", zoo.hear(&format!("wrote.{n}")).is_some());
            let limit = Duration::from_secs(60);
            zoo.eq("a signal of the child's file", take_signal(bit(SIGNAL), limit).map(|s| s.signo), Some(SIGNAL));
            zoo.eq("and of its group's", take_signal(bit(SIGNAL), limit).map(|s| s.signo), Some(SIGNAL));
        }
    });
    zoo.hear("group");
    let (told, tid) = std::sync::mpsc::channel();
    zoo.thread("second", move |seat| {
        zoo::must(told.send(zoo::sys::gettid()));
        while seat.gap() {}
    });
    let tid = zoo::must(tid.recv());
    let wanted = [
        Owner { kind: 1, id: zoo::sys::getpid() },
        Owner { kind: 1, id: child },
        Owner { kind: 2, id: child },
        Owner { kind: 0, id: tid },
    ];
    for ((end, _), to) in ends.iter().zip(wanted) {
        zoo::must(set_owner(end, to));
        zoo::must(fcntl(end, SETSIG, SIGNAL));
        zoo::must(fcntl_setfl(end, OFlags::from_bits_retain(libc::O_ASYNC as u32)));
    }
    while zoo.gap() {
        for ((end, _), to) in ends.iter().zip(wanted) {
            zoo.eq(&format!("owner {to:?}"), owner(end).ok(), Some(to));
            zoo.eq(&format!("signal of {to:?}"), fcntl(end, GETSIG, 0).ok(), Some(SIGNAL));
        }
        zoo.eq("no signal came meanwhile", take_signal(bit(SIGNAL), Duration::ZERO), None);
        // Realtime signals: none stands for two. The thread takes none, so nothing is written for it.
        for (_, other) in &ends[..3] {
            zoo.eq("write", rustix::io::write(other, b"x"), Ok(1));
        }
        zoo.eq("ours", take_signal(bit(SIGNAL), Duration::from_secs(60)).map(|s| s.signo), Some(SIGNAL));
        zoo.tell(&format!("wrote.{}", zoo.round()), "");
        for (end, _) in &ends[..3] {
            zoo.eq("read", rustix::io::read(end, &mut [0; 8]), Ok(1));
        }
    }
    zoo::must(zoo::sys::waitpid(child));
}

//! An epoll set that two processes share, with the rarer events: exclusive, waking, end of writing, urgent data. What one
//! changes the other has.
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::{read, write};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::{AsRawFd, OwnedFd};

fn targets(ep: &OwnedFd) -> Vec<String> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", ep.as_raw_fd())).unwrap_or_default();
    let lines = info.lines().filter(|l| l.starts_with("tfd:"));
    let mut lines: Vec<String> = lines.filter_map(|l| Some(l.split_once(" pos:")?.0.to_owned())).collect();
    lines.sort();
    lines
}

fn ready(ep: &OwnedFd) -> Vec<u64> {
    let mut events = Vec::with_capacity(8);
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    epoll::wait(ep, rustix::buffer::spare_capacity(&mut events), Some(&zero)).unwrap_or(0);
    let mut data: Vec<u64> = events.iter().map(|e| e.data.u64()).collect();
    data.sort_unstable();
    data
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let ep = zoo::must(epoll::create(CreateFlags::CLOEXEC));
    let counter = zoo::must(eventfd(0, EventfdFlags::NONBLOCK));
    let waker = zoo::must(eventfd(0, EventfdFlags::NONBLOCK));
    let (here, there) = zoo::must(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None));
    let add = |file: &OwnedFd, data, flags| epoll::add(&ep, file, EventData::new_u64(data), flags);
    let done = add(&counter, 1, EventFlags::IN | EventFlags::EXCLUSIVE)
        .and_then(|()| add(&waker, 2, EventFlags::IN | EventFlags::WAKEUP))
        .and_then(|()| add(&here, 3, EventFlags::RDHUP | EventFlags::PRI | EventFlags::ET));
    zoo.get("epoll_ctl", done);
    let before = targets(&ep);
    zoo.eq("targets", before.len(), 3);
    let child = zoo.fork("child", |mut zoo| {
        while zoo.gap() {
            zoo.eq("the child's targets", targets(&ep).len(), 3);
            zoo.ok("the parent wrote", zoo.hear(&format!("wrote.{}", zoo.round())).is_some());
            zoo.eq("what the parent wrote", ready(&ep), vec![1]);
            zoo.eq("read", read(&counter, &mut [0; 8]), Ok(8));
            zoo.tell(&format!("read.{}", zoo.round()), "");
        }
        // The set is one: this ends the parent's watch.
        zoo.get("removed", epoll::delete(&ep, &waker));
    });
    while zoo.gap() {
        zoo.eq("targets", targets(&ep), before.clone());
        zoo.eq("write", write(&counter, &1u64.to_ne_bytes()), Ok(8));
        zoo.tell(&format!("wrote.{}", zoo.round()), "");
        zoo.ok("the child read", zoo.hear(&format!("read.{}", zoo.round())).is_some());
        zoo.eq("nothing is left", ready(&ep), vec![]);
        zoo.eq("write", write(&waker, &1u64.to_ne_bytes()), Ok(8));
        zoo.eq("woken", ready(&ep), vec![2]);
        zoo.eq("read", read(&waker, &mut [0; 8]), Ok(8));
    }
    zoo.ok("the child ends", zoo::sys::waitpid(child).is_ok());
    zoo.eq("its change is ours", targets(&ep).len(), 2);
    drop(there);
}

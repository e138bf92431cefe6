//! An epoll set inside another.
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::{read, write};
use rustix::pipe::pipe;
use std::os::fd::OwnedFd;

fn ready(ep: &OwnedFd) -> Vec<u64> {
    let mut events = Vec::with_capacity(8);
    let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    epoll::wait(ep, rustix::buffer::spare_capacity(&mut events), Some(&zero)).unwrap_or(0);
    events.iter().map(|e| e.data.u64()).collect()
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let create = || epoll::create(CreateFlags::CLOEXEC);
    let (Ok(outer), Ok(inner), Ok((reader, writer))) = (create(), create(), pipe()) else { return };
    let done = epoll::add(&inner, &reader, EventData::new_u64(1), EventFlags::IN)
        .and_then(|()| epoll::add(&outer, &inner, EventData::new_u64(2), EventFlags::IN));
    zoo.get("epoll_ctl", done);
    while zoo.gap() {
        zoo.eq("nothing yet", ready(&outer), vec![]);
        zoo.eq("write", write(&writer, b"x"), Ok(1));
        zoo.eq("outer", ready(&outer), vec![2]);
        zoo.eq("inner", ready(&inner), vec![1]);
        zoo::must(read(&reader, &mut [0; 8]));
    }
}

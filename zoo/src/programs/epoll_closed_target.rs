//! An epoll set whose targets live on under other descriptors only: their numbers are closed, or lead to other files of the same
//! kind, the watches are not.
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::pipe;
use std::os::fd::OwnedFd;

/// Adds a file to the epoll, and keeps it by another number.
fn add_and_move(zoo: &mut zoo::Zoo, ep: &OwnedFd, file: OwnedFd, data: u64) -> OwnedFd {
    zoo.get("epoll_ctl", epoll::add(ep, &file, EventData::new_u64(data), EventFlags::IN));
    zoo::must(file.try_clone())
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let ep = zoo::must(epoll::create(CreateFlags::CLOEXEC));
    let (reader, writer) = zoo::must(pipe());
    let reader = add_and_move(&mut zoo, &ep, reader, 5);
    // Counters all have one inode: numbers of closed ones go to the next, which are watched too, and moved again.
    let mut counters = Vec::new();
    for data in 10..18 {
        let counter = zoo::must(eventfd(0, EventfdFlags::NONBLOCK));
        counters.push((data, add_and_move(&mut zoo, &ep, counter, data)));
    }
    let unwatched = zoo::must(eventfd(1, EventfdFlags::NONBLOCK));
    let (dgram, none) = (SocketType::DGRAM, SocketFlags::empty());
    let (socket, peer) = zoo::must(socketpair(AddressFamily::UNIX, dgram, none, None));
    let socket = add_and_move(&mut zoo, &ep, socket, 20);
    // The next socket has the first one's number and is watched by no one; the one after it is, and stays where it is.
    let (other, other_peer) = zoo::must(socketpair(AddressFamily::UNIX, dgram, none, None));
    zoo.get("epoll_ctl", epoll::add(&ep, &other_peer, EventData::new_u64(21), EventFlags::IN));
    let ready = |expected: &[u64], zoo: &mut zoo::Zoo| {
        let mut events = Vec::with_capacity(32);
        let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(&ep, rustix::buffer::spare_capacity(&mut events), Some(&zero)).unwrap_or(0);
        let mut found: Vec<u64> = events.iter().map(|e| e.data.u64()).collect();
        found.sort_unstable();
        zoo.eq("ready", found, expected.to_vec());
    };
    while zoo.gap() {
        ready(&[], &mut zoo);
        zoo.eq("write", write(&writer, b"x"), Ok(1));
        ready(&[5], &mut zoo);
        zoo::must(read(&reader, &mut [0; 8]));
        for (data, counter) in &counters {
            zoo.eq("add", write(counter, &1u64.to_ne_bytes()), Ok(8));
            ready(&[*data], &mut zoo);
            zoo::must(read(counter, &mut [0; 8]));
        }
        zoo.eq("unwatched", read(&unwatched, &mut [0; 8]), Ok(8));
        zoo.eq("add", write(&unwatched, &1u64.to_ne_bytes()), Ok(8));
        for (from, to, data) in [(&peer, &socket, 20), (&other, &other_peer, 21)] {
            zoo.eq("send", write(from, b"x"), Ok(1));
            ready(&[data], &mut zoo);
            zoo::must(read(to, &mut [0; 8]));
        }
        zoo.eq("send", write(&other_peer, b"x"), Ok(1));
        ready(&[], &mut zoo);
        zoo::must(read(&other, &mut [0; 8]));
    }
}

//! An epoll set whose target lives on under another descriptor only: its number is closed, the watch is not.
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::{read, write};
use rustix::pipe::pipe;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (Ok(ep), Ok((reader, writer))) = (epoll::create(CreateFlags::CLOEXEC), pipe()) else { return };
    let Ok(twin) = reader.try_clone() else { return };
    let done = epoll::add(&ep, &reader, EventData::new_u64(5), EventFlags::IN);
    zoo.get("epoll_ctl", done);
    drop(reader);
    while zoo.gap() {
        zoo.eq("write", write(&writer, b"x"), Ok(1));
        let mut events = Vec::with_capacity(8);
        let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(&ep, rustix::buffer::spare_capacity(&mut events), Some(&zero)).unwrap_or(0);
        zoo.eq("ready", events.iter().map(|e| e.data.u64()).collect(), vec![5]);
        zoo::must(read(&twin, &mut [0; 8]));
    }
}

//! An epoll set: its targets, their events (edge-triggered, one-shot) and the data that comes back.
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::write;
use rustix::pipe::pipe;
use std::os::fd::AsRawFd;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (Ok(ep), Ok((reader, writer)), Ok(event)) =
        (epoll::create(CreateFlags::CLOEXEC), pipe(), eventfd(0, EventfdFlags::empty()))
    else {
        return;
    };
    let done = epoll::add(&ep, &reader, EventData::new_u64(u64::MAX - 3), EventFlags::IN | EventFlags::ET)
        .and_then(|()| epoll::add(&ep, &event, EventData::new_u64(11), EventFlags::IN | EventFlags::ONESHOT))
        .and_then(|()| epoll::add(&ep, &writer, EventData::new_u64(12), EventFlags::ERR));
    zoo.get("epoll_ctl", done);
    let ready = || {
        let mut events = Vec::with_capacity(8);
        let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(&ep, rustix::buffer::spare_capacity(&mut events), Some(&zero)).unwrap_or(0);
        let mut data: Vec<u64> = events.iter().map(|e| e.data.u64()).collect();
        data.sort_unstable();
        data
    };
    let targets = || {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", ep.as_raw_fd())).unwrap_or_default();
        let lines = info.lines().filter(|l| l.starts_with("tfd:"));
        // What follows the data names inodes, which are new ones after restore.
        let mut lines: Vec<String> = lines.filter_map(|l| Some(l.split_once(" pos:")?.0.to_owned())).collect();
        lines.sort();
        lines
    };
    loop {
        let before = targets();
        let on = zoo.gap();
        zoo.eq("targets", targets(), before);
        zoo.eq("write", write(&writer, b"x"), Ok(1));
        zoo.eq("write", write(&event, &1_u64.to_ne_bytes()), Ok(8));
        zoo.eq("ready", ready(), vec![11, u64::MAX - 3]);
        zoo.eq("edges and single shots are used up", ready(), vec![]);
        let armed = epoll::modify(&ep, &event, EventData::new_u64(11), EventFlags::IN | EventFlags::ONESHOT);
        zoo.get("arming again", armed);
        zoo.eq("armed again", ready(), vec![11]);
        let mut drain = [0; 8];
        zoo::must(rustix::io::read(&event, &mut drain));
        zoo::must(rustix::io::read(&reader, &mut drain));
        zoo::must(epoll::modify(&ep, &event, EventData::new_u64(11), EventFlags::IN | EventFlags::ONESHOT));
        if !on {
            return;
        }
    }
}

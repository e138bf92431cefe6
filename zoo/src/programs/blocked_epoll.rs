//! A thread blocked in epoll_wait(2), which the kernel itself does not restart after a stop.
use rustix::event::epoll;
use rustix::io::{read, write};
use rustix::pipe::pipe;

pub(super) fn main() {
    let (Ok((reader, writer)), Ok(ep)) = (pipe(), epoll::create(epoll::CreateFlags::CLOEXEC)) else { return };
    zoo::must(epoll::add(&ep, &reader, epoll::EventData::new_u64(99), epoll::EventFlags::IN));
    let call = move || {
        let mut events = Vec::with_capacity(4);
        epoll::wait(&ep, rustix::buffer::spare_capacity(&mut events), None)?;
        read(&reader, &mut [0; 8])?;
        Ok(events.first().map_or(0, |e| e.data.u64()))
    };
    zoo::sys::blocked(call, || assert_eq!(write(&writer, b"wake"), Ok(4)), 99);
}

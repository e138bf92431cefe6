//! A thread blocked in poll(2) with a long limit.
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{read, write};
use rustix::pipe::pipe;

pub(super) fn main() {
    let Ok((reader, writer)) = pipe() else { return };
    let call = move || {
        let limit = Timespec { tv_sec: 3000, tv_nsec: 0 };
        let found = poll(&mut [PollFd::new(&reader, PollFlags::IN)], Some(&limit))?;
        read(&reader, &mut [0; 8])?;
        Ok(found as u64)
    };
    zoo::sys::blocked(call, || assert_eq!(write(&writer, b"wake"), Ok(4)), 1);
}

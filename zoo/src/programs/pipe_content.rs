//! A pipe with unread bytes, and one that is empty.
use rustix::io::{ioctl_fionread, read, write};
use rustix::pipe::{PipeFlags, pipe_with};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let flags = PipeFlags::NONBLOCK | PipeFlags::CLOEXEC;
    let (Ok(full), Ok(empty)) = (pipe_with(flags), pipe_with(flags)) else { return };
    loop {
        let mut bytes = vec![0; 30_000];
        zoo::mem::fill(&mut bytes, zoo.round().into());
        for part in bytes.chunks(7001) {
            zoo.eq("write", write(&full.1, part), Ok(part.len()));
        }
        let on = zoo.gap();
        zoo.eq("bytes inside", ioctl_fionread(&full.0), Ok(30_000));
        let mut got = vec![0; 40_000];
        let len = read(&full.0, &mut got);
        zoo.eq("bytes read", len, Ok(30_000));
        zoo.ok("content", got[..30_000] == bytes);
        zoo.eq("now empty", read(&full.0, &mut [0; 8]), Err(rustix::io::Errno::AGAIN));
        zoo.eq("the empty one", read(&empty.0, &mut [0; 8]), Err(rustix::io::Errno::AGAIN));
        if !on {
            return;
        }
    }
}

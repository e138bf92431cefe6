//! A pipe made larger, with more inside than a common one could hold.
use rustix::io::{read, write};
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let Ok((reader, writer)) = pipe_with(PipeFlags::NONBLOCK) else { return };
    let set = fcntl_setpipe_size(&writer, 512 << 10);
    zoo.get("size", set);
    loop {
        let mut bytes = vec![0; 300_000];
        zoo::mem::fill(&mut bytes, zoo.round().into());
        zoo.eq("write", write(&writer, &bytes), Ok(bytes.len()));
        let on = zoo.gap();
        zoo.eq("size", fcntl_getpipe_size(&reader), Ok(512 << 10));
        let mut got = vec![0; 400_000];
        zoo.eq("read", read(&reader, &mut got), Ok(bytes.len()));
        zoo.ok("content", got[..bytes.len()] == bytes);
        if !on {
            return;
        }
    }
}

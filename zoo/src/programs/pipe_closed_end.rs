//! Pipes with one end closed: content then end of file on one, a broken pipe on the other.
use rustix::io::{Errno, read, write};
use rustix::pipe::pipe;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let Ok((_, write_only)) = pipe() else { return };
    let mut on = true;
    while on {
        let Ok((read_only, writer)) = pipe() else { return };
        zoo.eq("write", write(&writer, b"last words"), Ok(10));
        drop(writer);
        on = zoo.gap();
        let mut got = [0; 64];
        zoo.eq("content", read(&read_only, &mut got), Ok(10));
        zoo.eq("content", &got[..10], b"last words");
        zoo.eq("end of file", read(&read_only, &mut got), Ok(0));
        zoo.eq("nobody reads", write(&write_only, b"x"), Err(Errno::PIPE));
    }
}

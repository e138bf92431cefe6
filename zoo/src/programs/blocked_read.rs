//! A thread blocked in read(2) of an empty pipe: the dump is no interruption.
use rustix::io::{read, write};
use rustix::pipe::pipe;

pub(super) fn main() {
    let Ok((reader, writer)) = pipe() else { return };
    let call = move || read(&reader, &mut [0; 8]).map(|n| n as u64);
    zoo::sys::blocked(call, || assert_eq!(write(&writer, b"wake"), Ok(4)), 4);
}

//! The reading end of a pipe that nobody writes to any more, for tests that give another in its place. Tells what it reads.
use std::os::fd::AsRawFd;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (reader, writer) = zoo::must(rustix::pipe::pipe());
    drop(writer);
    zoo.tell("key", &zoo::proc::fd_link(reader.as_raw_fd()));
    while zoo.gap() {
        let mut text = [0; 64];
        let len = rustix::io::read(&reader, &mut text).unwrap_or(0);
        zoo.tell(&format!("seen.{}", zoo.round()), &String::from_utf8_lossy(&text[..len]));
    }
}

//! Duplicated descriptors: one open file, one position.
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::write("data", "0123456789"));
    let Ok(mut first) = std::fs::File::open("data") else { return };
    let (Ok(mut second), Ok(other)) = (first.try_clone(), std::fs::File::open("data")) else { return };
    while zoo.gap() {
        zoo.ok("one open file", zoo::sys::same_file(first.as_raw_fd(), second.as_raw_fd()));
        zoo.ok("two open files", !zoo::sys::same_file(first.as_raw_fd(), other.as_raw_fd()));
        zoo::must(first.seek(SeekFrom::Start(zoo.round().into())));
        zoo.eq("position by the other", second.stream_position().ok(), Some(zoo.round().into()));
    }
}

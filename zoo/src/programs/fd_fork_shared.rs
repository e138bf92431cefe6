//! Descriptors shared over fork: the child sees the parent's seeks; a file that each opened itself stays apart.
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::write("data", [7; 5000]));
    let Ok(mut shared) = std::fs::File::open("data") else { return };
    let fd = shared.as_raw_fd();
    let child = zoo.fork("child", |mut zoo| {
        let Ok(mut shared) = shared.try_clone() else { return };
        let Ok(mut own) = std::fs::File::open("data") else { return };
        zoo::must(own.seek(SeekFrom::Start(77)));
        while zoo.gap() {
            let want = zoo.hear(&format!("turn.{}", zoo.round())).and_then(|t| t.parse().ok());
            zoo.eq("position that the parent set", shared.stream_position().ok(), want);
            zoo.eq("own position", own.stream_position().ok(), Some(77));
        }
    });
    let Ok(mut own) = std::fs::File::open("data") else { return };
    while zoo.gap() {
        zoo.ok("one open file", zoo::sys::same_file_of(zoo::sys::getpid(), fd, child, fd));
        let at = u64::from(zoo.round()) * 1000;
        zoo::must(shared.seek(SeekFrom::Start(at)));
        zoo.tell(&format!("turn.{}", zoo.round()), &at.to_string());
        zoo.eq("own position", own.stream_position().ok(), Some(0));
    }
}

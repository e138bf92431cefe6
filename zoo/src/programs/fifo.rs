//! A named pipe, open at both ends, with content.
use rustix::fs::{FileType, Mode, OFlags, mknodat, open};
use rustix::io::{read, write};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let made = mknodat(rustix::fs::CWD, "fifo", FileType::Fifo, Mode::from_raw_mode(0o600), 0);
    zoo.get("mkfifo", made);
    let end = |flags| open("fifo", flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    let Ok(reader) = end(OFlags::RDONLY) else { return };
    let Ok(writer) = end(OFlags::WRONLY) else { return };
    loop {
        let text = format!("left in round {}", zoo.round());
        zoo.eq("write", write(&writer, text.as_bytes()), Ok(text.len()));
        let on = zoo.gap();
        let mut got = [0; 100];
        let len = read(&reader, &mut got).unwrap_or(0);
        zoo.eq("content", String::from_utf8_lossy(&got[..len]).into_owned(), text);
        if !on {
            return;
        }
    }
}

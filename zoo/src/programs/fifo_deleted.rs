//! Named pipes without a name: one open at both ends with content, one open for writing only, one for both by one descriptor.
use rustix::fs::{FileType, Mode, OFlags, fstat, mknodat, open};
use rustix::io::{read, write};
use std::os::fd::OwnedFd;

fn make(name: &str, flags: &[OFlags]) -> Vec<OwnedFd> {
    zoo::must(mknodat(rustix::fs::CWD, name, FileType::Fifo, Mode::from_raw_mode(0o620), 0));
    let end = |flags: &OFlags| zoo::must(open(name, *flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()));
    let ends = flags.iter().map(end).collect();
    zoo::must(std::fs::remove_file(name));
    ends
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mut pair = make("pair", &[OFlags::RDONLY, OFlags::WRONLY]);
    let (Some(writer), Some(reader)) = (pair.pop(), pair.pop()) else { return };
    // Without a reader there is no writer.
    let mut lone = make("lone", &[OFlags::RDONLY, OFlags::WRONLY]);
    lone.swap_remove(0);
    let both = make("both", &[OFlags::RDWR]);
    let mode = zoo::must(fstat(&reader)).st_mode;
    zoo::must(write(&both[0], b"kept"));
    loop {
        let text = format!("left in round {}", zoo.round());
        zoo.eq("write", write(&writer, text.as_bytes()), Ok(text.len()));
        let on = zoo.gap();
        let mut got = [0; 100];
        let len = read(&reader, &mut got).unwrap_or(0);
        zoo.eq("content", String::from_utf8_lossy(&got[..len]).into_owned(), text);
        zoo.eq("nothing more", read(&reader, &mut got), Err(rustix::io::Errno::AGAIN));
        zoo.eq("nobody reads the lone one", write(&lone[0], b"x"), Err(rustix::io::Errno::PIPE));
        let len = read(&both[0], &mut got).unwrap_or(0);
        zoo.eq("content of the third", &got[..len], b"kept");
        zoo.eq("write to the third", write(&both[0], b"kept"), Ok(4));
        for fd in [&reader, &lone[0], &both[0]] {
            zoo.eq("no name", fstat(fd).map(|s| s.st_nlink).ok(), Some(0));
        }
        zoo.eq("mode", fstat(&reader).map(|s| s.st_mode).ok(), Some(mode));
        if !on {
            return;
        }
    }
}

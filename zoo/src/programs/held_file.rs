//! A file, a log that is only written, an executable and a device node held open, for tests of what the restore does with files that changed meanwhile or
//! are given to it. Tells what it reads.
use rustix::fs::{FileType, Mode, OFlags, makedev, mknodat, open};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::write("held", "first"));
    let file = zoo::must(File::options().read(true).write(true).open("held"));
    let mount = zoo::proc::fd_info(file.as_raw_fd(), "mnt_id");
    let mount: u32 = zoo::must(mount.trim().parse());
    zoo.tell("key", &format!("file[{mount:x}:{:x}]", zoo::must(file.metadata()).ino()));
    zoo::must(std::fs::copy("/bin/sh", "program"));
    zoo.tell("at", &format!("task {}, fd {}", zoo::sys::getpid(), file.as_raw_fd()));
    let mut log = zoo::must(File::create("log"));
    zoo::must(log.write_all(b"begun"));
    let program = zoo::must(File::open("program"));
    let node = mknodat(rustix::fs::CWD, "node", FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(1, 5));
    let node = node.and_then(|()| open("node", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()));
    let node = node.inspect_err(|e| zoo.tell("no-node", &e.to_string())).ok();
    while zoo.gap() {
        let mut text = [0; 64];
        let len = file.read_at(&mut text, 0).unwrap_or(0);
        zoo.tell(&format!("seen.{}", zoo.round()), &String::from_utf8_lossy(&text[..len]));
        zoo.eq("the log's position", log.stream_position().ok(), Some(5));
        zoo.eq("the program is there", program.read_at(&mut text, 0).ok(), Some(64));
        if let Some(node) = &node {
            let mut zeros = [1; 8];
            zoo.eq("the node", rustix::io::read(node, &mut zeros).map(|_| zeros), Ok([0; 8]));
        }
    }
}

//! A file without a name any more: content, position, shared by two descriptors; its flags are those it was opened with, as
//! shm_open(3) does it.
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let open = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open("ghost");
    let Ok(mut file) = open else { return };
    let Ok(twin) = file.try_clone() else { return };
    let mut bytes = vec![0; 50_000];
    zoo::mem::fill(&mut bytes, 3);
    zoo.ok("write", file.write_all(&bytes).is_ok());
    zoo::must(std::fs::remove_file("ghost"));
    let flags = zoo::must(rustix::fs::fcntl_getfl(&file));
    zoo.ok("a flag that shows", flags.contains(rustix::fs::OFlags::NOFOLLOW));
    while zoo.gap() {
        zoo.eq("flags", rustix::fs::fcntl_getfl(&file), Ok(flags));
        zoo.ok("still without a name", !std::path::Path::new("ghost").exists());
        zoo.ok("one open file", zoo::sys::same_file(file.as_raw_fd(), twin.as_raw_fd()));
        zoo.eq("position", file.stream_position().ok(), Some(50_000));
        let mut got = Vec::new();
        zoo::must(file.seek(SeekFrom::Start(0)));
        zoo.ok("read", file.read_to_end(&mut got).is_ok());
        zoo.ok("content", got == bytes);
    }
}

//! Hundreds of descriptors of one file: some are one open file, some only look alike; pipes and locks among them.
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;

const GROUPS: u64 = 80;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::write("data", [7; 4096]));
    zoo::must(std::fs::write("locked", "lock"));
    let open = || std::fs::OpenOptions::new().read(true).write(true).open("data");
    let mut groups = Vec::new();
    for i in 0..GROUPS {
        // Every second of the open files stands at the same position.
        let (Ok(mut first), Ok(alike), Ok((r, w))) = (open(), open(), std::io::pipe()) else { return };
        zoo::must(first.seek(SeekFrom::Start(i % 2 * i)));
        let Ok(twin) = first.try_clone() else { return };
        let flags = if i.is_multiple_of(3) { FdFlags::CLOEXEC } else { FdFlags::empty() };
        zoo.get("close-on-exec", fcntl_setfd(&twin, flags));
        if i.is_multiple_of(4) {
            zoo::must((&w).write_all(&i.to_le_bytes()));
        }
        groups.push((first, alike, twin, r, w, flags));
    }
    let locked = std::fs::OpenOptions::new().read(true).write(true).open("locked");
    let Ok(locked) = locked else { return };
    zoo.get("lock", fcntl_lock(&locked, FlockOperation::LockExclusive));
    while zoo.gap() {
        for (i, (first, alike, twin, r, w, flags)) in groups.iter_mut().enumerate() {
            let i = i as u64;
            let same = |a: &dyn AsRawFd, b: &dyn AsRawFd| zoo::sys::same_file(a.as_raw_fd(), b.as_raw_fd());
            zoo.ok("twins are one open file", same(first, twin));
            zoo.ok("others only look alike", !same(first, alike) && !same(twin, alike) && !same(r, w));
            zoo.eq("position", twin.stream_position().ok(), Some(i % 2 * i));
            zoo.eq("position of the other", alike.stream_position().ok(), Some(0));
            zoo.eq("close-on-exec", fcntl_getfd(&*twin), Ok(*flags));
            zoo.eq("close-on-exec of the first", fcntl_getfd(&*first), Ok(FdFlags::CLOEXEC));
            let waiting = if i.is_multiple_of(4) { 8 } else { 0 };
            zoo.eq("bytes in the pipe", rustix::io::ioctl_fionread(&*r), Ok(waiting));
        }
        let child = zoo::sys::fork(|| {
            let again = std::fs::OpenOptions::new().read(true).write(true).open("locked");
            let got = again.map(|file| fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive));
            i32::from(!matches!(got, Ok(Err(_))))
        });
        zoo.eq("a rival's lock is refused", zoo::sys::waitpid(child).ok(), Some(0));
    }
}

//! Owner, mode, extended attributes and times of deleted files, directories, fifos and device nodes.
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmod, chown, fstat, getxattr,
    makedev, mkdir, mknodat, open, setxattr, unlinkat, utimensat,
};
use std::os::fd::{AsRawFd, OwnedFd};

fn attribute(fd: &OwnedFd) -> Option<Vec<u8>> {
    let mut value = [0; 64];
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    getxattr(path, "user.zoo", &mut value[..]).ok().map(|len| value[..len].to_vec())
}

fn seen(s: &Stat) -> (u32, u32, u32, u64, i64, u64, u64) {
    // Times are saved by the microsecond.
    (s.st_mode, s.st_uid, s.st_gid, s.st_rdev, s.st_mtime, s.st_mtime_nsec / 1000, s.st_nlink)
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (cwd, file_mode, dir_mode) = (rustix::fs::CWD, Mode::from_raw_mode(0o4751), Mode::from_raw_mode(0o1773));
    let mut kept = Vec::new();
    for (name, kind, mode) in [
        ("file", FileType::RegularFile, file_mode),
        ("directory", FileType::Directory, dir_mode),
        ("fifo", FileType::Fifo, Mode::from_raw_mode(0o662)),
        ("device", FileType::CharacterDevice, Mode::from_raw_mode(0o666)),
    ] {
        match kind {
            FileType::Directory => zoo::must(mkdir(name, mode)),
            _ => zoo::must(mknodat(cwd, name, kind, mode, makedev(1, 5))),
        }
        zoo::must(chown(name, Some(Uid::from_raw(1234)), Some(Gid::from_raw(2345))));
        zoo::must(chmod(name, mode));
        let attributes = matches!(kind, FileType::RegularFile | FileType::Directory)
            && setxattr(name, "user.zoo", name.as_bytes(), XattrFlags::empty()).is_ok();
        let time = |tv_sec| Timespec { tv_sec, tv_nsec: 123_456_000 };
        let times = Timestamps { last_access: time(1_000_000_000), last_modification: time(1_100_000_000) };
        zoo::must(utimensat(cwd, name, &times, AtFlags::empty()));
        let fd = match open(name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => fd,
            Err(e) if name == "device" => {
                zoo.tell("no-device", &e.to_string()); // a mount with nodev
                zoo::must(unlinkat(cwd, name, AtFlags::empty()));
                continue;
            }
            Err(e) => panic!("{name}: {e}"),
        };
        let how = if kind == FileType::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        zoo::must(unlinkat(cwd, name, how));
        // Removing a directory's entry changes its own time, so look at last.
        let was = seen(&zoo::must(fstat(&fd)));
        kept.push((name, fd, was, attributes));
    }
    while zoo.gap() {
        for (name, fd, was, attributes) in &kept {
            zoo.eq(name, seen(&zoo::must(fstat(fd))), *was);
            if *attributes {
                zoo.eq(&format!("{name}: attribute"), attribute(fd), Some(name.as_bytes().to_vec()));
            }
        }
    }
}

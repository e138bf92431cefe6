//! File locks (`--file-locks`): POSIX locks of a table, flock(2) and OFD locks of an open file.
use crate::task::Target;
use crate::{Error, Kind, Object, Result};
use crust_image::proto::FileLockEntry;
use crust_kernel::TargetFd;
use crust_kernel::fd::{self as kfd, LockRange};
use crust_kernel::fdinfo::FdInfo;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

const FL_POSIX: u32 = 1;
const FL_FLOCK: u32 = 2;
const FL_OFDLCK: u32 = 1024;

/// The locks that fdinfo shows at a descriptor.
pub(super) fn look(t: &Target<'_>, fd: TargetFd, info: &FdInfo) -> Result<Vec<FileLockEntry>> {
    info.all("lock").map(|line| parse(line, t, fd).ok_or_else(|| odd(line))).collect()
}

fn odd(line: &str) -> Error {
    Error::unsupported(format!("a lock of this kind is not supported ({line})"), "release it before the dump")
}

/// `1: POSIX  ADVISORY  WRITE 17523 fe:00:762265 0 EOF`
fn parse(line: &str, t: &Target<'_>, fd: TargetFd) -> Option<FileLockEntry> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let flag = match words.next()? {
        "POSIX" => FL_POSIX,
        "FLOCK" => FL_FLOCK,
        "OFDLCK" => FL_OFDLCK,
        _ => return None,
    };
    let mut word = words.next()?;
    if word == "ADVISORY" {
        word = words.next()?;
    }
    let kind = match word {
        "READ" => libc::F_RDLCK,
        "WRITE" => libc::F_WRLCK,
        _ => return None,
    };
    let (_owner, _file) = (words.next()?, words.next()?);
    let start: i64 = words.next()?.parse().ok()?;
    let len = match words.next()? {
        "EOF" => 0,
        end => end.parse::<i64>().ok()?.checked_sub(start)?.checked_add(1)?,
    };
    let pid = t.ns_pid.as_raw();
    Some(FileLockEntry { flag, r#type: kind as u32, pid, fd: fd.0 as i32, start, len })
}

/// The error for a lock that nobody asked to save.
pub(super) fn not_asked() -> Error {
    Error::unsupported("the program holds a lock on this file", "pass `--file-locks` (-l) to save locks")
}

/// Takes a lock again. Never waits.
pub(super) fn restore(lock: &FileLockEntry) -> Result<()> {
    let fd = kfd::borrow_placed(lock.fd);
    let range = LockRange { write: lock.r#type == libc::F_WRLCK as u32, start: lock.start, len: lock.len };
    let taken = match lock.flag {
        FL_POSIX => kfd::lock_range(fd, range, false),
        FL_OFDLCK => kfd::lock_range(fd, range, true),
        FL_FLOCK if range.write => rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive),
        FL_FLOCK => rustix::fs::flock(fd, FlockOperation::NonBlockingLockShared),
        other => {
            return Err(Error::unsupported(
                format!("locks of kind {other} cannot be restored by this version"),
                "restore the images with CRIU",
            ));
        }
    };
    taken.map_err(|e| {
        let err = Error::kernel("taking a file lock again failed", e).on(Object::Fd(lock.pid, lock.fd as u32));
        if matches!(e, Errno::AGAIN | Errno::ACCESS) {
            return err.kind_is(Kind::Taken).help("another program holds the lock: stop it");
        }
        err
    })
}

//! File locks (`--file-locks`): POSIX locks of a table; flock(2), OFD locks and leases of an open file.
use super::restore::Opener;
use crate::task::Target;
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::{FileLockEntry, FownEntry};
use crust_kernel::fd::{self as kfd, LockRange};
use crust_kernel::fdinfo::FdInfo;
use crust_kernel::{TargetFd, lease};
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

const FL_POSIX: u32 = 1;
const FL_FLOCK: u32 = 2;
const FL_OFDLCK: u32 = 4;
/// What the kernel calls it; images of the first versions of crust have this.
const FL_OFDLCK_KERNEL: u32 = 1024;
const FL_LEASE: u32 = 8;
/// Added to the kind of a lease that is being broken; the kind is then what it is to become.
const BREAKING: u32 = 4;

/// The locks that fdinfo shows at a descriptor.
pub(super) fn look(t: &Target<'_>, fd: TargetFd, info: &FdInfo) -> Result<Vec<FileLockEntry>> {
    info.all("lock")
        .map(|line| {
            let mut lock = parse(line, t, fd).ok_or_else(|| odd(line))?;
            if lock.flag == FL_LEASE && lock.r#type & BREAKING != 0 {
                // Kernels differ in what they show of such a lease. The copy is the same open file.
                let number = i32::try_from(fd.0).unwrap_or(-1);
                let copy = pidfd_getfd(t.pidfd, number, PidfdGetfdFlags::empty());
                let to = copy.and_then(lease::get).during("asking for a lease")?;
                lock.r#type = to as u32 | BREAKING;
            }
            Ok(lock)
        })
        .collect()
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
        "LEASE" => FL_LEASE,
        _ => return None,
    };
    let mut word = words.next()?;
    let breaking = flag == FL_LEASE && word == "BREAKING";
    if matches!(word, "ADVISORY") || flag == FL_LEASE && matches!(word, "ACTIVE" | "BREAKING") {
        word = words.next()?;
    }
    let kind = match word {
        "READ" => libc::F_RDLCK,
        "WRITE" => libc::F_WRLCK,
        "UNLCK" if breaking => libc::F_UNLCK,
        _ => return None,
    };
    let kind = kind as u32 | if breaking { BREAKING } else { 0 };
    let (_owner, _file) = (words.next()?, words.next()?);
    let start: i64 = words.next()?.parse().ok()?;
    let len = match words.next()? {
        "EOF" => 0,
        end => end.parse::<i64>().ok()?.checked_sub(start)?.checked_add(1)?,
    };
    let pid = t.ns_pid.as_raw();
    Some(FileLockEntry { flag, r#type: kind, pid, fd: fd.0 as i32, start, len })
}

/// The error for a lock that nobody asked to save.
pub(super) fn not_asked() -> Error {
    Error::unsupported("the program holds a lock on this file", "pass `--file-locks` (-l) to save locks")
}

/// True for a lease: it stays whichever descriptors are closed, and goes by the path to the file if it is being broken.
pub(super) fn is_lease(lock: &FileLockEntry) -> bool {
    lock.flag & FL_LEASE != 0
}

/// Takes a lease again, and breaks it if it was being broken. Whoever waits for it in open(2) will open the file again.
pub(super) fn restore_lease(lock: &FileLockEntry, fown: &FownEntry, cx: &Opener<'_>) -> Result<()> {
    let fd = kfd::borrow_placed(lock.fd);
    let failed = |what: &str, e: Errno| Error::kernel(what, e).on(Object::Fd(lock.pid, lock.fd as u32));
    if lock.r#type & BREAKING == 0 {
        return lease::set(fd, lock.r#type as i32).map_err(|e| {
            let err = failed("taking a lease again failed", e);
            match e {
                Errno::AGAIN => err.kind_is(Kind::Taken).help("another program has the file open: stop it"),
                _ => err,
            }
        });
    }
    let flags = rustix::fs::fcntl_getfl(fd).map_err(|e| failed("asking for a file's flags failed", e))?;
    let read_only = flags & OFlags::RWMODE == OFlags::RDONLY;
    lease::set(fd, if read_only { libc::F_RDLCK } else { libc::F_WRLCK })
        .map_err(|e| failed("taking a lease again failed", e))?;
    // The program has been told, or has the signal waiting: it must not be told twice.
    lease::disown(fd).map_err(|e| failed("silencing a lease failed", e))?;
    let to_unlock = (lock.r#type & !BREAKING) as i32 == libc::F_UNLCK;
    let breaker = if to_unlock { OFlags::WRONLY } else { OFlags::RDONLY };
    match cx.reopen_raw(lock.fd, (breaker | OFlags::NONBLOCK).bits()) {
        Err(Errno::AGAIN) => {}
        Ok(_) => {
            return Err(
                Error::new(Kind::Internal, "a lease was not in the way").on(Object::Fd(lock.pid, lock.fd as u32))
            );
        }
        Err(e) => return Err(failed("breaking a lease again failed", e)),
    }
    cx.set_owner(fd, fown)
}

/// Takes a lock again. Never waits.
pub(super) fn restore(lock: &FileLockEntry) -> Result<()> {
    let fd = kfd::borrow_placed(lock.fd);
    let range = LockRange { write: lock.r#type == libc::F_WRLCK as u32, start: lock.start, len: lock.len };
    let taken = match lock.flag {
        FL_POSIX => kfd::lock_range(fd, range, false),
        FL_OFDLCK | FL_OFDLCK_KERNEL => kfd::lock_range(fd, range, true),
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

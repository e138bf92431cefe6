//! Descriptor calls that rustix lacks: placing at a number, closing ranges, and the owner of SIGIO (fcntl(2)).
#![allow(unsafe_code, reason = "dup3 to a number, close_range and fcntl owner calls are in no safe wrapper")]
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn check(ret: impl Into<i64>) -> Result<i64> {
    let ret = ret.into();
    if ret < 0 { Err(last()) } else { Ok(ret) }
}

/// Makes `number` another descriptor for the file behind `fd`; what `number` held is closed. Nothing owns the result.
///
/// # Errors
/// `EINVAL` if both are the same, `EBADF` if `number` is over RLIMIT_NOFILE.
pub fn place(fd: impl AsFd, number: RawFd, cloexec: bool) -> Result<()> {
    let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: dup3 takes plain numbers; `fd` is open for the call. Callers use it while they build a whole table and own
    // every number in it; nothing in this process holds an `OwnedFd` for `number`.
    check(unsafe { libc::dup3(fd.as_fd().as_raw_fd(), number, flags) }).map(drop)
}

/// A number that [`place`] filled, to work on. It stays open for the rest of this process's life as ours.
pub fn borrow_placed(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: a table that is built belongs to the restored program and is never taken apart by us; a number that is not
    // open only makes calls fail with EBADF.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Raises our soft limit of open files to the hard one, and makes room in our table for about `count` descriptors.
///
/// Call it before there are threads: to grow a table that threads share, the kernel waits for a grace period each time,
/// 10 ms and more (expand_fdtable in Linux's fs/file.c).
///
/// # Errors
/// Of getrlimit(2) and setrlimit(2), or if there is no room at all.
pub fn make_room(count: RawFd) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    if now.current != now.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum })?;
    }
    let most = now.maximum.and_then(|n| RawFd::try_from(n).ok()).unwrap_or(count);
    let any = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
    copy_number(any.as_raw_fd(), count.min(most).max(1) - 1).map(drop)
}

/// Closes every descriptor from `first` to `last` inclusive, open or not.
///
/// # Errors
/// `EINVAL` for an empty range.
pub fn close_range(first: u32, last: u32) -> Result<()> {
    // SAFETY: plain numbers. Callers are about to hand the whole table over, so no `OwnedFd` in that range is used again.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) }).map(drop)
}

/// Sets or clears `FD_CLOEXEC` of a number that nothing owns.
///
/// # Errors
/// `EBADF` if it is closed.
pub fn set_cloexec(number: RawFd, on: bool) -> Result<()> {
    // SAFETY: F_SETFD takes a plain number as argument.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, if on { libc::FD_CLOEXEC } else { 0 }) }).map(drop)
}

/// A copy of descriptor `number` of this process, at the first free number from `from` on, close-on-exec.
///
/// # Errors
/// `EBADF` if `number` is closed, `EMFILE` or `EINVAL` if no number is left.
pub fn copy_number(number: RawFd, from: RawFd) -> Result<OwnedFd> {
    // SAFETY: plain numbers.
    let new = check(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, from) })?;
    let new = RawFd::try_from(new).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just opened `new`; nothing else knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Who gets SIGIO and SIGURG for a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// `F_OWNER_TID` 0, `F_OWNER_PID` 1, `F_OWNER_PGRP` 2.
    pub kind: i32,
    /// Id in our pid namespace, 0 for nobody.
    pub id: i32,
    /// `F_GETSIG`: the signal sent instead of SIGIO, 0 for SIGIO.
    pub signal: i32,
}

#[repr(C)]
struct OwnerEx {
    kind: libc::c_int,
    pid: libc::pid_t,
}

const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
const F_GETOWNER_UIDS: i32 = 17;
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;

/// Reads the owner.
///
/// # Errors
/// `EBADF` for an `O_PATH` descriptor.
pub fn owner(fd: impl AsFd) -> Result<Owner> {
    let raw = fd.as_fd().as_raw_fd();
    let mut ex = OwnerEx { kind: 0, pid: 0 };
    // SAFETY: F_GETOWN_EX fills a `struct f_owner_ex`, two ints; `ex` is that and lives over the call.
    check(unsafe { libc::fcntl(raw, F_GETOWN_EX, &raw mut ex) })?;
    // SAFETY: F_GETSIG takes no argument.
    let signal = check(unsafe { libc::fcntl(raw, F_GETSIG) })?;
    Ok(Owner { kind: ex.kind, id: ex.pid, signal: signal as i32 })
}

/// Real and effective uid of whoever set the owner.
///
/// # Errors
/// `EINVAL` without CONFIG_CHECKPOINT_RESTORE.
pub fn owner_uids(fd: impl AsFd) -> Result<(u32, u32)> {
    let mut uids = [0u32; 2];
    // SAFETY: F_GETOWNER_UIDS writes two uid_t; `uids` has room for them and lives over the call.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), F_GETOWNER_UIDS, uids.as_mut_ptr()) })?;
    Ok((uids[0], uids[1]))
}

/// Sets the signal, then the owner.
///
/// # Errors
/// `ESRCH` if there is no such task or group.
pub fn set_owner(fd: impl AsFd, owner: Owner) -> Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    let ex = OwnerEx { kind: owner.kind, pid: owner.id };
    if owner.signal != 0 {
        // SAFETY: F_SETSIG takes a plain number.
        check(unsafe { libc::fcntl(raw, F_SETSIG, owner.signal) })?;
    }
    if owner.id != 0 {
        // SAFETY: F_SETOWN_EX reads a `struct f_owner_ex`; `ex` is that and lives over the call.
        check(unsafe { libc::fcntl(raw, F_SETOWN_EX, &raw const ex) })?;
    }
    Ok(())
}

/// Sets real and effective uid of the calling thread only, keeping the saved one; `u32::MAX` leaves one as it is.
///
/// # Errors
/// `EPERM`.
pub fn set_thread_uids(real: u32, effective: u32) -> Result<()> {
    // SAFETY: plain numbers; the raw call changes this thread alone, which is what the caller wants.
    check(unsafe { libc::syscall(libc::SYS_setresuid, real, effective, u32::MAX) }).map(drop)
}

/// Sets the effective gid of the calling thread only.
///
/// # Errors
/// `EPERM`; `EINVAL` for one that our user namespace does not have.
pub fn set_thread_gid(effective: u32) -> Result<()> {
    // SAFETY: plain numbers; the raw call changes this thread alone, which is what the caller wants.
    check(unsafe { libc::syscall(libc::SYS_setresgid, u32::MAX, effective, u32::MAX) }).map(drop)
}

/// A range of a file to be locked; `len` 0 is up to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRange {
    /// Exclusive.
    pub write: bool,
    /// First byte.
    pub start: i64,
    /// Number of bytes.
    pub len: i64,
}

/// Locks a range without waiting: for the process (POSIX), or for the open file description (OFD).
///
/// # Errors
/// `EAGAIN` or `EACCES` if somebody else holds it.
pub fn lock_range(fd: impl AsFd, range: LockRange, by_file: bool) -> Result<()> {
    let lock = libc::flock {
        l_type: if range.write { libc::F_WRLCK } else { libc::F_RDLCK } as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: range.start,
        l_len: range.len,
        l_pid: 0,
    };
    let op = if by_file { libc::F_OFD_SETLK } else { libc::F_SETLK };
    // SAFETY: the kernel reads a `struct flock`; `lock` is that and lives over the call.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), op, &raw const lock) }).map(drop)
}

/// Takes ownership of a descriptor that a call just returned.
fn owned(ret: Result<i64>) -> Result<OwnedFd> {
    let raw = RawFd::try_from(ret?).map_err(|_| Errno::BADF)?;
    // SAFETY: every caller passes the result of a call that makes a descriptor; nothing else knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// A signalfd for the signals in `mask` (bit 0 is signal 1), close-on-exec.
///
/// # Errors
/// `EMFILE`, `ENOMEM`.
pub fn signalfd(mask: u64) -> Result<OwnedFd> {
    // SAFETY: the kernel reads the eight bytes of `mask`, which lives over the call; the last number is that size.
    owned(check(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8usize, libc::SFD_CLOEXEC) }))
}

/// A timerfd on any clock the kernel takes, close-on-exec.
///
/// # Errors
/// `EINVAL` for another clock, `EPERM` for alarm clocks without CAP_WAKE_ALARM.
pub fn timerfd_create(clock: u32) -> Result<OwnedFd> {
    // SAFETY: plain numbers.
    owned(check(unsafe { libc::syscall(libc::SYS_timerfd_create, clock, libc::TFD_CLOEXEC) }))
}

/// When a timer fires next, and then again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerSpec {
    /// First expiration; zero disarms.
    pub value: Duration,
    /// Period; zero fires once.
    pub interval: Duration,
}

/// Arms a timerfd; `flags` as timerfd_settime(2).
///
/// # Errors
/// `EINVAL` for times that do not fit.
pub fn timerfd_settime(fd: impl AsFd, flags: u32, spec: TimerSpec) -> Result<()> {
    let of = |d: Duration| -> Result<libc::timespec> {
        let tv_sec = d.as_secs().try_into().map_err(|_| Errno::INVAL)?;
        Ok(libc::timespec { tv_sec, tv_nsec: d.subsec_nanos().into() })
    };
    let new = libc::itimerspec { it_interval: of(spec.interval)?, it_value: of(spec.value)? };
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `new`, which lives over the call; a null pointer for the old value is allowed.
    check(unsafe { libc::timerfd_settime(raw, flags as i32, &raw const new, std::ptr::null_mut()) }).map(drop)
}

/// Sets the expirations that a read will report (needs CONFIG_CHECKPOINT_RESTORE).
///
/// # Errors
/// `ENOTTY` without that option.
pub fn timerfd_set_ticks(fd: impl AsFd, ticks: u64) -> Result<()> {
    const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400; // _IOW('T', 0, u64)
    // SAFETY: the kernel reads the eight bytes of `ticks`, which lives over the call.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) }).map(drop)
}

/// What a clock shows now.
///
/// # Errors
/// `EINVAL` for an unknown clock.
pub fn clock_now(clock: u32) -> Result<Duration> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec; `now` is that and lives over the call.
    check(unsafe { libc::clock_gettime(clock as libc::clockid_t, &raw mut now) })?;
    Ok(Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_round_trip() {
        let (r, _w) = rustix::pipe::pipe().expect("pipe");
        assert_eq!(owner(&r), Ok(Owner::default()));
        let want = Owner { kind: 1, id: std::process::id() as i32, signal: libc::SIGUSR1 };
        set_owner(&r, want).expect("set");
        assert_eq!(owner(&r), Ok(want));
        let uid = rustix::process::getuid().as_raw();
        assert_eq!(owner_uids(&r), Ok((uid, rustix::process::geteuid().as_raw())));
    }

    #[test]
    fn place_and_close() {
        let (r, _w) = rustix::pipe::pipe().expect("pipe");
        place(&r, 777, true).expect("dup3");
        set_cloexec(777, false).expect("F_SETFD");
        assert!(std::fs::read_link("/proc/self/fd/777").is_ok());
        close_range(777, 777).expect("close_range");
        assert!(std::fs::read_link("/proc/self/fd/777").is_err());
        assert_eq!(place(&r, r.as_raw_fd(), false), Err(Errno::INVAL));
    }
}

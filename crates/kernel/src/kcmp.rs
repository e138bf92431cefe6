//! kcmp(2): whether two tasks hold the same kernel object, and in which order objects sort.
#![allow(unsafe_code, reason = "kcmp is in no safe wrapper")]
use crate::{HostTid, TargetFd};
use rustix::io::{Errno, Result};
use std::cmp::Ordering;

/// Objects that two tasks may share. Numbers are the kernel's `enum kcmp_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shared {
    /// Address space.
    Vm = 1,
    /// Descriptor table.
    Files = 2,
    /// Working directory, root and umask.
    Fs = 3,
    /// Signal handlers.
    Sighand = 4,
    /// I/O context.
    Io = 5,
    /// System V semaphore undo list.
    SysvSem = 6,
}

const KCMP_FILE: i32 = 0;
const KCMP_EPOLL_TFD: i32 = 7;

/// The kernel's `struct kcmp_epoll_slot`.
#[repr(C)]
struct EpollSlot {
    efd: u32,
    tfd: u32,
    toff: u32,
}

fn raw(a: HostTid, b: HostTid, kind: i32, x: usize, y: usize) -> Result<Ordering> {
    // SAFETY: for every kind used here `x` is a plain number, and `y` is one too or (KCMP_EPOLL_TFD) the address of an
    // `EpollSlot` that the caller below keeps alive over the call; the kernel only reads it.
    let ret = unsafe { libc::syscall(libc::SYS_kcmp, a.as_raw(), b.as_raw(), kind, x, y) };
    match ret {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        3 => Err(Errno::OPNOTSUPP), // "not equal, and no order": the kernel never says it for these kinds
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

/// Orders two descriptors by the open file description (`struct file`) behind them. The order is the same for one boot.
///
/// # Errors
/// `EBADF` for a closed descriptor, `ESRCH`, `EPERM`, `ENOSYS` without CONFIG_KCMP.
pub fn file(a: (HostTid, TargetFd), b: (HostTid, TargetFd)) -> Result<Ordering> {
    raw(a.0, b.0, KCMP_FILE, a.1.0 as usize, b.1.0 as usize)
}

/// Orders two tasks by the object of kind `what` that each uses.
///
/// # Errors
/// As [`file()`].
pub fn task(a: HostTid, b: HostTid, what: Shared) -> Result<Ordering> {
    raw(a, b, what as i32, 0, 0)
}

/// Orders descriptor `file`, as [`file()`] does, and the file that `epoll` watches as number `tfd`; `nth` counts watched files
/// of that number. The kernel walks through what the epoll watches until it is there.
///
/// # Errors
/// `ENOENT` if the epoll watches no such number; else as [`file()`].
pub fn epoll_target(
    file: (HostTid, TargetFd),
    epoll: (HostTid, TargetFd),
    tfd: TargetFd,
    nth: u32,
) -> Result<Ordering> {
    let slot = EpollSlot { efd: epoll.1.0, tfd: tfd.0, toff: nth };
    let at = std::ptr::from_ref(&slot) as usize;
    raw(file.0, epoll.0, KCMP_EPOLL_TFD, file.1.0 as usize, at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, OwnedFd};

    fn me() -> HostTid {
        HostTid::new(std::process::id() as i32).expect("a pid")
    }

    #[test]
    fn dup_is_equal_reopen_is_not() {
        let a = std::fs::File::open("/dev/null").expect("open");
        let b = a.try_clone().expect("dup");
        let c = std::fs::File::open("/dev/null").expect("open");
        let of = |f: &std::fs::File| (me(), TargetFd(f.as_raw_fd() as u32));
        assert_eq!(file(of(&a), of(&b)), Ok(Ordering::Equal));
        let ac = file(of(&a), of(&c)).expect("kcmp");
        assert_ne!(ac, Ordering::Equal);
        assert_eq!(file(of(&c), of(&b)), Ok(ac.reverse()));
        assert_eq!(task(me(), me(), Shared::Vm), Ok(Ordering::Equal));
    }

    #[test]
    fn epoll_target_is_found_after_dup() {
        use rustix::event::epoll;
        let ep = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
        let (r, _w) = rustix::pipe::pipe().expect("pipe");
        let twin: OwnedFd = r.try_clone().expect("dup");
        epoll::add(&ep, &r, epoll::EventData::new_u64(7), epoll::EventFlags::IN).expect("add");
        let fd = |f: &OwnedFd| TargetFd(f.as_raw_fd() as u32);
        assert_eq!(epoll_target((me(), fd(&twin)), (me(), fd(&ep)), fd(&r), 0), Ok(Ordering::Equal));
        let order = file((me(), fd(&ep)), (me(), fd(&r))).expect("kcmp");
        assert_eq!(epoll_target((me(), fd(&ep)), (me(), fd(&ep)), fd(&r), 0), Ok(order));
        assert_eq!(epoll_target((me(), fd(&twin)), (me(), fd(&ep)), TargetFd(9999), 0), Err(Errno::NOENT));
    }
}

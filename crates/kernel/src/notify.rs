//! inotify(7), fanotify(7), file handles and pidfds: the calls that rustix lacks or ties to types of its own.
#![allow(unsafe_code, reason = "system calls that no safe wrapper has in the form that restore needs")]
use rustix::io::{Errno, Result};
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn owned(ret: libc::c_long) -> Result<OwnedFd> {
    let raw = RawFd::try_from(ret).map_err(|_| Errno::IO)?;
    if raw < 0 {
        return Err(last());
    }
    // SAFETY: the kernel has just made this descriptor for the calling function, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// The most bytes that a file handle has (`MAX_HANDLE_SZ`).
pub const MAX_HANDLE: usize = 128;

#[repr(C)]
struct FileHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; MAX_HANDLE],
}

/// Opens (`O_PATH`) the file that a handle of name_to_handle_at(2) names, on the filesystem that `mount` lies on.
///
/// # Errors
/// `ESTALE`: gone, or no handle of this filesystem. `EPERM`: needs CAP_DAC_READ_SEARCH. `EINVAL`: too long.
pub fn open_by_handle(mount: BorrowedFd<'_>, kind: i32, handle: &[u8]) -> Result<OwnedFd> {
    let mut given = FileHandle { bytes: handle.len() as u32, kind, handle: [0; MAX_HANDLE] };
    given.handle.get_mut(..handle.len()).ok_or(Errno::INVAL)?.copy_from_slice(handle);
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: `given` has the layout of struct file_handle, with room for as many bytes as it says; the kernel only reads it.
    owned(unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw mut given, flags) })
}

/// name_to_handle_at(2).
fn handle_at(dir: RawFd, path: &CStr, flags: i32) -> Result<FileHandle> {
    let mut handle = FileHandle { bytes: MAX_HANDLE as u32, kind: 0, handle: [0; MAX_HANDLE] };
    let mut mount = 0i32;
    // SAFETY: `handle` has the layout of struct file_handle and room for as many bytes as it says, `mount` is an int, `path` ends
    // in a zero byte; all live over the call.
    let ret = unsafe {
        libc::syscall(libc::SYS_name_to_handle_at, dir, path.as_ptr(), &raw mut handle, &raw mut mount, flags)
    };
    if ret < 0 { Err(last()) } else { Ok(handle) }
}

/// What tells the file of a path (a symbolic link itself), or `at` if it is empty, from all others of its filesystem, as fdinfo of
/// a watch shows it: type and bytes. Filesystems whose files cannot be opened by handle have it too (Linux 6.6).
///
/// # Errors
/// `EOPNOTSUPP`, `EINVAL`: the filesystem or the kernel has none. What open(2) says.
pub fn file_id(at: BorrowedFd<'_>, path: &CStr) -> Result<(i32, Vec<u8>)> {
    const AT_HANDLE_FID: i32 = 0x200;
    let handle = handle_at(at.as_raw_fd(), path, AT_HANDLE_FID | libc::AT_EMPTY_PATH)?;
    let bytes = handle.handle.get(..handle.bytes as usize).ok_or(Errno::IO)?;
    Ok((handle.kind, bytes.to_vec()))
}

/// Opens the very file behind a descriptor again by its handle: flags stay as given, where a way through /proc would not take
/// O_NOFOLLOW.
///
/// # Errors
/// `EOPNOTSUPP`, `ESTALE`: the filesystem has no handle for it. `EPERM`: needs CAP_DAC_READ_SEARCH. What open(2) says.
pub fn reopen_by_handle(file: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    let mut handle = handle_at(file.as_raw_fd(), c"", libc::AT_EMPTY_PATH)?;
    // SAFETY: `handle` has the layout of struct file_handle, as the kernel filled it; it only reads it now.
    owned(unsafe { libc::syscall(libc::SYS_open_by_handle_at, file.as_raw_fd(), &raw mut handle, flags) })
}

/// The path under which a descriptor of ours can be opened again.
fn own_path(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}

/// A watch on the very file behind `target`; the watch's number.
///
/// # Errors
/// What inotify_add_watch(2) says; `ENOENT` without /proc.
pub fn inotify_watch(inotify: BorrowedFd<'_>, target: BorrowedFd<'_>, mask: u32) -> Result<i32> {
    inotify_watch_path(inotify, &own_path(target), mask)
}

/// A watch on the file that a path leads to; the watch's number.
///
/// # Errors
/// What inotify_add_watch(2) says.
pub fn inotify_watch_path(inotify: BorrowedFd<'_>, path: &CStr, mask: u32) -> Result<i32> {
    // SAFETY: `path` ends in a zero byte and lives over the call.
    let ret = unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), mask) };
    if ret < 0 { Err(last()) } else { Ok(ret) }
}

/// Says which number the next watch gets (`INOTIFY_IOC_SETNEXTWD`).
///
/// # Errors
/// `ENOTTY` if the kernel was built without CONFIG_CHECKPOINT_RESTORE.
pub fn inotify_next(inotify: BorrowedFd<'_>, wd: i32) -> Result<()> {
    const INOTIFY_IOC_SETNEXTWD: libc::Ioctl = 0x4004_4900;
    // SAFETY: the argument of this ioctl is a plain number.
    let ret = unsafe { libc::ioctl(inotify.as_raw_fd(), INOTIFY_IOC_SETNEXTWD, wd) };
    if ret < 0 { Err(last()) } else { Ok(()) }
}

/// fanotify_init(2).
///
/// # Errors
/// `EPERM`: what is asked for needs CAP_SYS_ADMIN.
pub fn fanotify_init(flags: u32, event_flags: u32) -> Result<OwnedFd> {
    // SAFETY: takes numbers only.
    owned(unsafe { libc::syscall(libc::SYS_fanotify_init, flags, event_flags) })
}

/// fanotify_mark(2) on the very file behind `target`, or on its mount or filesystem as `flags` say.
///
/// # Errors
/// What fanotify_mark(2) says; `ENOENT` without /proc.
pub fn fanotify_mark(fanotify: BorrowedFd<'_>, flags: u32, mask: u64, target: BorrowedFd<'_>) -> Result<()> {
    let path = own_path(target);
    // SAFETY: `path` ends in a zero byte and lives over the call; all other arguments are numbers, and on this 64-bit
    // architecture the mask is a single one.
    let ret = unsafe {
        libc::syscall(libc::SYS_fanotify_mark, fanotify.as_raw_fd(), flags, mask, libc::AT_FDCWD, path.as_ptr())
    };
    if ret < 0 { Err(last()) } else { Ok(()) }
}

/// pidfd_open(2) with any flags.
///
/// # Errors
/// `ESRCH`: there is no such task. `EINVAL`: not a leader, or flags that the kernel does not know.
pub fn pidfd_open(pid: i32, flags: u32) -> Result<OwnedFd> {
    // SAFETY: takes numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })
}

/// `struct pidfd_info` as of Linux 6.15.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// The wait status of a task that ended, if the kernel (Linux 6.15) still tells it.
pub fn pidfd_exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    const PIDFD_GET_INFO: libc::Ioctl = 0xc040_ff0b;
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: `info` has the 64 bytes that the number of the request promises; the kernel writes at most as many.
    let ret = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    (ret == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn watches_get_the_numbers_asked_for() {
        assert_eq!(size_of::<PidfdInfo>(), 64);
        let fd = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).unwrap();
        let dir = std::fs::File::open("/").unwrap();
        inotify_next(fd.as_fd(), 77).unwrap();
        assert_eq!(inotify_watch(fd.as_fd(), dir.as_fd(), libc::IN_CREATE).unwrap(), 77);
        assert_eq!(open_by_handle(dir.as_fd(), 1, &[0; 129]).unwrap_err(), Errno::INVAL);
        let me = std::process::id() as i32;
        assert!(pidfd_open(me, 0).is_ok() && pidfd_exit_status(pidfd_open(me, 0).unwrap().as_fd()).is_none());
    }
}

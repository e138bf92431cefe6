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

/// What a read(2) from a fanotify group took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// How many events.
    pub events: u64,
    /// Whether one of them says that others were lost (`FAN_Q_OVERFLOW`).
    pub overflow: bool,
}

/// Takes events from a fanotify group, as many as have room in `buffer`. Descriptors that come with them are closed.
///
/// # Errors
/// `EAGAIN`: none waits. `EINVAL`: the buffer is too small for the first one, which still waits. What read(2) says.
pub fn fanotify_take(fanotify: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Taken> {
    let len = rustix::io::read(fanotify, &mut *buffer)?;
    let mut rest = buffer.get(..len).unwrap_or_default();
    let mut taken = Taken::default();
    while let Some(event) = FanotifyEvent::parse(rest) {
        taken.events += 1;
        taken.overflow |= event.mask & libc::FAN_Q_OVERFLOW != 0;
        for fd in event.descriptors() {
            // SAFETY: the kernel has just made this descriptor for the calling function, and nothing else knows of it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        rest = rest.get(event.bytes.len()..).unwrap_or_default();
    }
    Ok(taken)
}

/// One event as read(2) gives it.
struct FanotifyEvent<'a> {
    /// All of it, with its information records.
    bytes: &'a [u8],
    /// Where those begin.
    head: usize,
    mask: u64,
    fd: RawFd,
}

impl<'a> FanotifyEvent<'a> {
    /// The first event; `None` at the end, and for what is none.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let len = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let bytes = bytes.get(..len)?;
        Some(Self {
            bytes,
            head: u16::from_ne_bytes(*bytes.get(6..)?.first_chunk()?).into(),
            mask: u64::from_ne_bytes(*bytes.get(8..)?.first_chunk()?),
            fd: RawFd::from_ne_bytes(*bytes.get(16..)?.first_chunk()?),
        })
    }

    /// Those that came with it: for the file and, with FAN_REPORT_PIDFD, for the process.
    fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let mut records = self.bytes.get(self.head..).unwrap_or_default();
        let pidfds = std::iter::from_fn(move || {
            let len: usize = u16::from_ne_bytes(*records.get(2..)?.first_chunk()?).into();
            // Every record has a head of four bytes.
            let record = records.get(..len).filter(|record| record.len() >= 4)?;
            records = records.get(len..)?;
            let number = record.get(4..).and_then(<[u8]>::first_chunk).map(|bytes| RawFd::from_ne_bytes(*bytes));
            Some(number.filter(|_| record.first() == Some(&libc::FAN_EVENT_INFO_TYPE_PIDFD)).unwrap_or(-1))
        });
        std::iter::once(self.fd).chain(pidfds).filter(|fd| *fd >= 0)
    }
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
    fn descriptors_of_an_event() {
        let mut bytes = vec![0; 56];
        bytes[..4].copy_from_slice(&48u32.to_ne_bytes());
        bytes[6..8].copy_from_slice(&24u16.to_ne_bytes());
        bytes[8..16].copy_from_slice(&libc::FAN_Q_OVERFLOW.to_ne_bytes());
        bytes[16..20].copy_from_slice(&7i32.to_ne_bytes());
        // A file handle's record, which has no descriptor, and one of a process.
        bytes[24..28].copy_from_slice(&[libc::FAN_EVENT_INFO_TYPE_FID, 0, 16, 0]);
        bytes[28] = 99;
        bytes[40..48].copy_from_slice(&[libc::FAN_EVENT_INFO_TYPE_PIDFD, 0, 8, 0, 9, 0, 0, 0]);
        let event = FanotifyEvent::parse(&bytes).unwrap();
        assert_eq!((event.bytes.len(), event.mask), (48, libc::FAN_Q_OVERFLOW));
        assert_eq!(event.descriptors().collect::<Vec<_>>(), [7, 9]);
        assert!(FanotifyEvent::parse(&bytes[48..]).is_none());
        assert!(FanotifyEvent::parse(&bytes[..20]).is_none());
        // Records that lie about their length end the list.
        bytes[26] = 200;
        bytes[16..20].copy_from_slice(&(-1i32).to_ne_bytes());
        assert_eq!(FanotifyEvent::parse(&bytes).unwrap().descriptors().count(), 0);
        bytes[26] = 0;
        assert_eq!(FanotifyEvent::parse(&bytes).unwrap().descriptors().count(), 0);
    }

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

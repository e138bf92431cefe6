//! Reading and writing another process's memory, in the two ways the kernel has.
//!
//! `process_vm_*` copies straight between the two address spaces and obeys the target's protections, but pins the pages
//! and thereby *unshares* what fork shares. `/proc/PID/mem` shares and ignores protections (that is how code is put into
//! an executable mapping), and keeps meaning the same address space even when the pid is reused.
#![allow(unsafe_code, reason = "process_vm_readv and process_vm_writev have no safe wrapper")]

use crate::{HostTid, VirtAddr};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, IoSlice, IoSliceMut, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn count(ret: libc::ssize_t) -> Result<usize> {
    usize::try_from(ret).map_err(|_| last_errno())
}

/// A range of the target's memory, laid out as `struct iovec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RemoteRange {
    /// First byte.
    pub start: VirtAddrRaw,
    /// Length in bytes.
    pub len_bytes: usize,
}

impl RemoteRange {
    /// Eight bytes.
    pub fn word(at: VirtAddr) -> Self {
        Self { start: at.as_raw() as usize, len_bytes: 8 }
    }
}

/// An address as the kernel's iovec wants it.
pub type VirtAddrRaw = usize;

/// Copies from the target into `buf`. May be short where the target's memory ends: callers loop.
///
/// # Errors
/// `EFAULT`: nothing readable there. `EPERM`: no right to ptrace it. `ESRCH`: gone.
pub fn process_vm_read(pid: HostTid, from: VirtAddr, buf: &mut [u8]) -> Result<usize> {
    let ranges = [RemoteRange { start: from.as_raw() as usize, len_bytes: buf.len() }];
    process_vm_readv(pid, &mut [IoSliceMut::new(buf)], &ranges)
}

/// Copies from `ranges` of the target into `bufs`, in order. At most 1024 of each; may be short.
///
/// # Errors
/// As [`process_vm_read`]; `EINVAL` for too many ranges.
pub fn process_vm_readv(pid: HostTid, bufs: &mut [IoSliceMut<'_>], ranges: &[RemoteRange]) -> Result<usize> {
    let (local, remote) = (bufs.as_mut_ptr().cast::<libc::iovec>(), ranges.as_ptr().cast::<libc::iovec>());
    let (locals, remotes) = (bufs.len() as libc::c_ulong, ranges.len() as libc::c_ulong);
    // SAFETY: IoSliceMut has the layout of iovec and each names a buffer borrowed mutably for the whole call, so the
    // kernel may fill them. RemoteRange has the layout of iovec too; its addresses are never dereferenced in this
    // process: a bad one is EFAULT, not undefined behaviour.
    count(unsafe { libc::process_vm_readv(pid.as_raw(), local, locals, remote, remotes, 0) })
}

/// Fills `buf` from `ranges`, of which there are at most 1024 and which are as long as it, together.
///
/// # Errors
/// As [`process_vm_readv`], `EFAULT` also if only some of them can be read.
pub fn process_vm_read_all(pid: HostTid, buf: &mut [u8], ranges: &[RemoteRange]) -> Result<()> {
    let wanted = buf.len();
    match process_vm_readv(pid, &mut [IoSliceMut::new(buf)], ranges)? {
        got if got == wanted => Ok(()),
        _ => Err(Errno::FAULT),
    }
}

/// Copies `bytes` into the target, obeying its protections. May be short.
///
/// # Errors
/// As [`process_vm_read`].
pub fn process_vm_write(pid: HostTid, to: VirtAddr, bytes: &[u8]) -> Result<usize> {
    let ranges = [RemoteRange { start: to.as_raw() as usize, len_bytes: bytes.len() }];
    process_vm_writev(pid, &[IoSlice::new(bytes)], &ranges)
}

/// Copies `bufs` into `ranges` of the target, in order. At most 1024 of each; may be short.
///
/// # Errors
/// As [`process_vm_readv`].
pub fn process_vm_writev(pid: HostTid, bufs: &[IoSlice<'_>], ranges: &[RemoteRange]) -> Result<usize> {
    let (local, remote) = (bufs.as_ptr().cast::<libc::iovec>(), ranges.as_ptr().cast::<libc::iovec>());
    let (locals, remotes) = (bufs.len() as libc::c_ulong, ranges.len() as libc::c_ulong);
    // SAFETY: IoSlice has the layout of iovec and each names bytes borrowed for the whole call, which the kernel only
    // reads. The remote addresses mean the target's memory, not ours: a process cannot name itself here by a HostTid
    // of another, and a bad address is EFAULT.
    count(unsafe { libc::process_vm_writev(pid.as_raw(), local, locals, remote, remotes, 0) })
}

/// `/proc/PID/mem`, held open: the address space the process had when this was opened.
#[derive(Debug)]
pub struct RemoteMem(OwnedFd);

impl RemoteMem {
    /// Opens for reading and writing.
    ///
    /// # Errors
    /// `EACCES`/`EPERM`: no right to ptrace it. `ENOENT`: gone.
    pub fn open(pid: HostTid) -> Result<Self> {
        let path = format!("/proc/{pid}/mem");
        rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map(Self)
    }

    /// Opens for reading only.
    ///
    /// # Errors
    /// As [`RemoteMem::open`].
    pub fn open_read_only(pid: HostTid) -> Result<Self> {
        let path = format!("/proc/{pid}/mem");
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(Self)
    }

    /// Fills `buf` from `from` on.
    ///
    /// # Errors
    /// `EIO`: not all of it is mapped, or the address space is gone.
    pub fn read(&self, from: VirtAddr, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = from.as_raw().checked_add(done as u64).ok_or(Errno::FAULT)?;
            match rustix::io::pread(&self.0, &mut buf[done..], at) {
                Ok(0) => return Err(Errno::IO),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Writes all of `bytes` at `to`, also where the mapping is not writable (private mappings get their own copy).
    ///
    /// # Errors
    /// As [`RemoteMem::read`]; part of the bytes may have been written.
    pub fn write(&self, to: VirtAddr, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let at = to.as_raw().checked_add(done as u64).ok_or(Errno::FAULT)?;
            match rustix::io::pwrite(&self.0, &bytes[done..], at) {
                Ok(0) => return Err(Errno::IO),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Reads one little piece of plain data: an integer in the target's byte order, which is ours.
    ///
    /// # Errors
    /// As [`RemoteMem::read`].
    pub fn read_u64(&self, from: VirtAddr) -> Result<u64> {
        let mut raw = [0; 8];
        self.read(from, &mut raw)?;
        Ok(u64::from_ne_bytes(raw))
    }
}

impl AsFd for RemoteMem {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_iovecs() {
        assert_eq!(size_of::<RemoteRange>(), size_of::<libc::iovec>());
        assert_eq!(std::mem::offset_of!(RemoteRange, len_bytes), std::mem::offset_of!(libc::iovec, iov_len));
    }

    #[test]
    fn both_ways_read_the_same_and_bad_addresses_are_errors() {
        let me = HostTid::new(i32::try_from(std::process::id()).unwrap()).unwrap();
        let here = *b"what the target holds";
        let at = VirtAddr(here.as_ptr() as u64);
        let (mut one, mut two) = ([0; 21], [0; 21]);
        assert_eq!(process_vm_read(me, at, &mut one), Ok(21));
        let mem = RemoteMem::open_read_only(me).unwrap();
        mem.read(at, &mut two).unwrap();
        assert_eq!((one, two), (here, here));
        assert_eq!(process_vm_read(me, VirtAddr(8), &mut one), Err(Errno::FAULT));
        assert_eq!(mem.read(VirtAddr(8), &mut one), Err(Errno::IO));
        assert!(mem.read(VirtAddr(u64::MAX - 3), &mut one).is_err());
    }

    #[test]
    fn vectored_copies_keep_order() {
        let me = HostTid::new(i32::try_from(std::process::id()).unwrap()).unwrap();
        let (a, b) = (*b"abcd", *b"efgh");
        let ranges = [
            RemoteRange { start: b.as_ptr() as usize, len_bytes: 4 },
            RemoteRange { start: a.as_ptr() as usize, len_bytes: 2 },
        ];
        let (mut x, mut y) = ([0; 3], [0; 3]);
        let got = process_vm_readv(me, &mut [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)], &ranges);
        assert_eq!((got, &x, &y), (Ok(6), b"efg", b"hab"));
    }
}

//! Memory calls of this process and reads of another's memory, with addresses as numbers.
//!
//! [`Area`] owns a mapping that the kernel placed and gives its bytes only as raw pointers or copies. The functions that act
//! on given addresses are `unsafe` exactly where a wrong address could pull memory from under Rust's references.
#![allow(unsafe_code, reason = "mapping and copying memory")]
use crate::HostTid;
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// `MADV_COLLAPSE` (Linux 6.1).
pub const MADV_COLLAPSE: i32 = 25;
/// `MADV_GUARD_INSTALL` (Linux 6.13).
pub const MADV_GUARD_INSTALL: i32 = 102;
/// Size of a huge page, in bytes.
pub const HUGE_PAGE: u64 = 2 << 20;

pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// A mapping made by us and unmapped when dropped.
#[derive(Debug)]
pub struct Area {
    start: u64,
    len: u64,
}

// SAFETY: an Area is an address range; the memory behind it is reached only through the methods, whose callers keep
// threads apart themselves.
unsafe impl Send for Area {}
// SAFETY: as above: methods that hand out the memory are unsafe and say who may use it.
unsafe impl Sync for Area {}

impl Area {
    /// Private anonymous memory.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn anonymous(len: u64) -> Result<Self> {
        Self::map(
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    }

    /// Shared anonymous memory, inherited over fork. `reserve`: charged as committed memory at once.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn shared_anonymous(len: u64, reserve: bool) -> Result<Self> {
        let noreserve = if reserve { 0 } else { libc::MAP_NORESERVE };
        Self::map(len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS | noreserve, -1, 0)
    }

    /// Shared anonymous memory of hugetlbfs; `size` holds the bits of MAP_HUGE_… that name the pages' size.
    ///
    /// # Errors
    /// As mmap(2): `ENOMEM` if there are not enough such pages.
    pub fn shared_hugetlb(len: u64, size: u32, reserve: bool) -> Result<Self> {
        let noreserve = if reserve { 0 } else { libc::MAP_NORESERVE };
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | noreserve | size as i32;
        Self::map(len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    }

    /// A window on a file, shared.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn file(fd: BorrowedFd<'_>, offset: u64, len: u64, write: bool) -> Result<Self> {
        let prot = if write { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        Self::map(len, prot, libc::MAP_SHARED, fd.as_raw_fd(), offset)
    }

    /// A shared, writable window on a file at an address that is congruent with its offset modulo 2 MiB, as huge pages need.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn file_huge_aligned(fd: BorrowedFd<'_>, len: u64) -> Result<Self> {
        let reserve = Self::map(
            len + HUGE_PAGE,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )?;
        let at = reserve.start.next_multiple_of(HUGE_PAGE);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: MAP_FIXED over a part of `reserve`, which is ours, holds nothing and is referred to by nobody else.
        let got = unsafe {
            libc::mmap(at as *mut _, len as usize, prot, libc::MAP_SHARED | libc::MAP_FIXED, fd.as_raw_fd(), 0)
        };
        if got == libc::MAP_FAILED {
            return Err(last_errno());
        }
        let (start, end) = (reserve.start, reserve.start + reserve.len);
        std::mem::forget(reserve);
        for (from, to) in [(start, at), (at + len.next_multiple_of(crate::ids::PAGE_SIZE), end)] {
            if from < to {
                // SAFETY: the rest of the reservation on both sides of the window, ours and unused.
                unsafe { libc::munmap(from as *mut _, (to - from) as usize) };
            }
        }
        Ok(Self { start: at, len })
    }

    fn map(len: u64, prot: i32, flags: i32, fd: i32, offset: u64) -> Result<Self> {
        // SAFETY: no MAP_FIXED and no hint: the kernel picks a range where nothing is mapped.
        let got = unsafe { libc::mmap(std::ptr::null_mut(), len as usize, prot, flags, fd, offset as i64) };
        if got == libc::MAP_FAILED { Err(last_errno()) } else { Ok(Self { start: got as u64, len }) }
    }

    /// First address.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len
    }

    /// Leaves the mapping in place for ever (a forked child inherits it, a plan moves it).
    pub fn leak(self) -> (u64, u64) {
        let pair = (self.start, self.len);
        std::mem::forget(self);
        pair
    }

    /// A part as bytes.
    ///
    /// # Safety
    /// The range must be inside the area, readable (for a file: no further than its end), and nobody may write to it while
    /// the slice lives.
    pub unsafe fn slice(&self, from: u64, len: u64) -> &[u8] {
        debug_assert!(from + len <= self.len);
        // SAFETY: by this function's own contract the range is mapped, readable and unchanging.
        unsafe { std::slice::from_raw_parts((self.start + from) as *const u8, len as usize) }
    }

    /// A part as bytes to be written.
    ///
    /// # Safety
    /// As [`Area::slice`], and the range must be writable and referred to by nobody else.
    #[allow(clippy::mut_from_ref, reason = "threads fill separate parts of one area; the contract keeps them apart")]
    pub unsafe fn slice_mut(&self, from: u64, len: u64) -> &mut [u8] {
        debug_assert!(from + len <= self.len);
        // SAFETY: by this function's own contract the range is mapped, writable and not aliased.
        unsafe { std::slice::from_raw_parts_mut((self.start + from) as *mut u8, len as usize) }
    }

    /// Gives advice about a part of the area.
    ///
    /// # Errors
    /// As madvise(2).
    pub fn advise(&self, from: u64, len: u64, advice: i32) -> Result<()> {
        // SAFETY: the caller of `Area` methods holds the area; the advice used here (DONTNEED and SEQUENTIAL on file windows,
        // COLLAPSE, HUGEPAGE, POPULATE) changes no byte that a shared file window or fresh memory shows.
        unsafe { madvise(self.start + from, len, advice) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by this value's constructor and slices borrow from it, so none is left.
        unsafe { libc::munmap(self.start as *mut _, self.len as usize) };
    }
}

/// mmap(2) with everything given.
///
/// # Errors
/// As mmap(2).
///
/// # Safety
/// With `MAP_FIXED` the range must hold nothing that this process still uses.
pub unsafe fn mmap(at: u64, len: u64, prot: i32, flags: i32, fd: Option<BorrowedFd<'_>>, offset: u64) -> Result<u64> {
    let raw = fd.map_or(-1, |f| f.as_raw_fd());
    // SAFETY: by this function's own contract nothing in use is replaced.
    let got = unsafe { libc::mmap(at as *mut _, len as usize, prot, flags, raw, offset as i64) };
    if got == libc::MAP_FAILED { Err(last_errno()) } else { Ok(got as u64) }
}

/// munmap(2).
///
/// # Errors
/// As munmap(2).
///
/// # Safety
/// Nothing in the range may be used any more.
pub unsafe fn munmap(at: u64, len: u64) -> Result<()> {
    // SAFETY: by this function's own contract.
    if unsafe { libc::munmap(at as *mut _, len as usize) } == 0 { Ok(()) } else { Err(last_errno()) }
}

/// mprotect(2).
///
/// # Errors
/// As mprotect(2).
///
/// # Safety
/// Nothing may use the range in a way that the new protection forbids.
pub unsafe fn mprotect(at: u64, len: u64, prot: i32) -> Result<()> {
    // SAFETY: by this function's own contract.
    if unsafe { libc::mprotect(at as *mut _, len as usize, prot) } == 0 { Ok(()) } else { Err(last_errno()) }
}

/// mremap(2) to a given address (`MREMAP_FIXED | MREMAP_MAYMOVE`). `old_len` 0 duplicates a shared mapping.
///
/// # Errors
/// As mremap(2).
///
/// # Safety
/// Nothing may use the old range, nor what lies at the new one.
pub unsafe fn mremap(from: u64, old_len: u64, new_len: u64, to: u64) -> Result<()> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: by this function's own contract.
    let got =
        unsafe { libc::mremap(from as *mut _, old_len as usize, new_len as usize, flags, to as *mut libc::c_void) };
    if got == libc::MAP_FAILED { Err(last_errno()) } else { Ok(()) }
}

/// mremap(2) that makes a mapping longer where it is, or fails.
///
/// # Errors
/// As mremap(2); `ENOMEM` if something is in the way.
///
/// # Safety
/// `from` and `old_len` are a mapping to its end, which may grow.
pub unsafe fn grow(from: u64, old_len: u64, new_len: u64) -> Result<()> {
    // SAFETY: by this function's own contract; without MREMAP_MAYMOVE nothing is moved or replaced.
    let got = unsafe { libc::mremap(from as *mut _, old_len as usize, new_len as usize, 0) };
    if got == libc::MAP_FAILED { Err(last_errno()) } else { Ok(()) }
}

/// madvise(2).
///
/// # Errors
/// As madvise(2).
///
/// # Safety
/// Advice that drops content (DONTNEED, FREE, REMOVE) must not hit memory that somebody relies on.
pub unsafe fn madvise(at: u64, len: u64, advice: i32) -> Result<()> {
    // SAFETY: by this function's own contract.
    if unsafe { libc::madvise(at as *mut _, len as usize, advice) } == 0 { Ok(()) } else { Err(last_errno()) }
}

/// mlock2(2); `on_fault` locks only what is touched.
///
/// # Errors
/// As mlock2(2).
///
/// # Safety
/// The range must be mapped by the caller; nothing is changed in it.
pub unsafe fn mlock(at: u64, len: u64, on_fault: bool) -> Result<()> {
    // SAFETY: by this function's own contract.
    let rc = unsafe { libc::syscall(libc::SYS_mlock2, at, len, if on_fault { libc::MLOCK_ONFAULT } else { 0 }) };
    if rc == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Names anonymous memory (PR_SET_VMA_ANON_NAME, Linux 5.17).
///
/// # Errors
/// `EINVAL` for a name with characters the kernel does not print, and without CONFIG_ANON_VMA_NAME.
pub fn set_name(at: u64, len: u64, name: &std::ffi::CStr) -> Result<()> {
    // SAFETY: the kernel reads `name` up to its NUL; no memory is changed, only what /proc prints about it.
    let rc = unsafe { libc::prctl(libc::PR_SET_VMA, libc::PR_SET_VMA_ANON_NAME, at, len, name.as_ptr()) };
    if rc == 0 { Ok(()) } else { Err(last_errno()) }
}

/// preadv(2) into ranges given as address and length; at most 1024 of them. Returns the bytes read.
///
/// # Errors
/// As preadv(2).
///
/// # Safety
/// The ranges must be ours to fill: referred to by no reference.
pub unsafe fn preadv(fd: BorrowedFd<'_>, ranges: &[(u64, u64)], offset: u64) -> Result<u64> {
    let mut iov = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 1024];
    let n = fill_iov(&mut iov, ranges);
    // SAFETY: `iov` holds `n` ranges, which by this function's own contract may be written to.
    check(|| unsafe { libc::preadv(fd.as_raw_fd(), iov.as_ptr(), n as i32, offset as i64) })
}

fn fill_iov(iov: &mut [libc::iovec], ranges: &[(u64, u64)]) -> usize {
    let mut n = 0;
    for (slot, &(at, len)) in iov.iter_mut().zip(ranges) {
        *slot = libc::iovec { iov_base: at as *mut _, iov_len: len as usize };
        n += 1;
    }
    n
}

fn check(mut call: impl FnMut() -> isize) -> Result<u64> {
    loop {
        let n = call();
        if n >= 0 {
            return Ok(n as u64);
        }
        match last_errno() {
            Errno::INTR => {}
            e => return Err(e),
        }
    }
}

/// Another process's memory, read by process_vm_readv(2). It pins pages, and pinning *unshares* what fork shares: use
/// [`read_mem`] for memory that more than one process maps.
///
/// Reads the ranges one after the other into `into`, whose length is their sum; at most 1024 ranges. Returns the bytes read:
/// fewer than asked if a range is not readable.
///
/// # Errors
/// As process_vm_readv(2).
pub fn process_vm_readv(pid: HostTid, ranges: &[(u64, u64)], into: &mut [u8]) -> Result<u64> {
    let mut iov = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 1024];
    let n = fill_iov(&mut iov, ranges);
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: `local` is exactly `into`, borrowed mutably for the whole call; the kernel writes at most its length. The
    // remote addresses are never dereferenced here: a bad one ends the copy there.
    check(|| unsafe { libc::process_vm_readv(pid.as_raw(), &raw const local, 1, iov.as_ptr(), n as u64, 0) })
}

/// Reads from an open /proc/PID/mem. Sees memory that has no read permission too, and never unshares a page.
///
/// # Errors
/// As pread(2); `EIO` where nothing is mapped.
pub fn read_mem(mem: BorrowedFd<'_>, at: u64, into: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < into.len() {
        // rustix refuses no offset: addresses above 2^63 do not exist in user space.
        let n = rustix::io::retry_on_intr(|| rustix::io::pread(mem.as_fd(), &mut into[done..], at + done as u64))?;
        if n == 0 {
            return Err(Errno::IO);
        }
        done += n;
    }
    Ok(())
}

/// True if every byte is zero. Ends at the first 64 bytes that are not.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut blocks = bytes.chunks_exact(64);
    blocks.all(|b| {
        let mut all = 0u64;
        for word in b.chunks_exact(8) {
            all |= u64::from_ne_bytes(word.try_into().unwrap_or([1; 8]));
        }
        all == 0
    }) && bytes.chunks_exact(64).remainder().iter().all(|&b| b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> HostTid {
        HostTid::new(std::process::id() as i32).expect("a pid")
    }

    #[test]
    fn remote_ranges_arrive_in_order() {
        let (a, b) = ([1u8; 100], [2u8; 50]);
        let mut got = [0u8; 150];
        let ranges = [(a.as_ptr() as u64, 100), (b.as_ptr() as u64, 50)];
        assert_eq!(process_vm_readv(own(), &ranges, &mut got), Ok(150));
        assert_eq!((&got[..100], &got[100..]), (&a[..], &b[..]));
        assert_eq!(process_vm_readv(own(), &[(8, 8)], &mut got[..8]), Err(Errno::FAULT));
    }

    #[test]
    fn mem_reads_what_has_no_read_permission() {
        let area = Area::anonymous(8192).expect("mmap");
        // SAFETY: a fresh area with no other reference.
        unsafe { area.slice_mut(0, 8192) }.fill(7);
        // SAFETY: nobody reads it until it is unmapped.
        unsafe { mprotect(area.start(), 8192, libc::PROT_NONE) }.expect("mprotect");
        let mem =
            rustix::fs::open("/proc/self/mem", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).expect("mem");
        let mut got = [0; 4096];
        read_mem(mem.as_fd(), area.start() + 4096, &mut got).expect("reads");
        assert_eq!(got, [7; 4096]);
    }

    #[test]
    fn zeros() {
        assert!(is_zero(&[0; 4096]) && is_zero(&[]) && is_zero(&[0; 65]));
        for at in [0, 63, 64, 4095] {
            let mut page = [0u8; 4096];
            page[at] = 1;
            assert!(!is_zero(&page));
        }
        assert!(!is_zero(&[0, 0, 1]));
    }

    #[test]
    fn an_area_is_gone_after_its_end() {
        let area = Area::shared_anonymous(1 << 20, true).expect("mmap");
        let start = area.start();
        drop(area);
        let mut byte = [0];
        assert_eq!(process_vm_readv(own(), &[(start, 1)], &mut byte), Err(Errno::FAULT));
    }
}

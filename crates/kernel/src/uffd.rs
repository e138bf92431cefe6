//! userfaultfd(2) as a way to give fresh memory its content: a page made by UFFDIO_COPY is neither cleared nor faulted in.
#![allow(unsafe_code, reason = "ioctls of userfaultfd on memory given by address")]
use crate::mman::last_errno;
use rustix::io::{Errno, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `UFFD_USER_MODE_ONLY`: all that is allowed without privileges, and enough: the pages come before anybody touches them.
const USER_MODE_ONLY: i32 = 1;
/// `UFFD_API`.
const API: u64 = 0xaa;
/// `UFFDIO_API`, `…_REGISTER`, `…_UNREGISTER` and `…_COPY` (uapi/linux/userfaultfd.h).
const IO_API: libc::c_ulong = 0xc018_aa3f;
const IO_REGISTER: libc::c_ulong = 0xc020_aa00;
const IO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const IO_COPY: libc::c_ulong = 0xc028_aa03;
/// `UFFDIO_REGISTER_MODE_MISSING`.
const MISSING: u64 = 1;

/// Ranges of our own memory whose missing pages only [`Uffd::copy`] makes. All are let go when dropped.
#[derive(Debug)]
pub struct Uffd(OwnedFd);

impl Uffd {
    /// An empty set.
    ///
    /// # Errors
    /// `ENOSYS` without CONFIG_USERFAULTFD, `EPERM` where a filter forbids it.
    pub fn new() -> Result<Self> {
        // SAFETY: plain numbers in, a descriptor out.
        let made = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY) };
        if made < 0 {
            return Err(last_errno());
        }
        // SAFETY: a new descriptor that nobody else has.
        let uffd = Self(unsafe { OwnedFd::from_raw_fd(made as i32) });
        uffd.control(IO_API, &mut [API, 0, 0])?;
        Ok(uffd)
    }

    /// From now on a page missing in the range comes by [`Uffd::copy`] alone.
    ///
    /// # Errors
    /// `EINVAL` for anything but anonymous memory (and tmpfs, hugetlbfs).
    ///
    /// # Safety
    /// Nobody may touch what is missing there, the kernel for a system call included, before it was copied or the range let
    /// go: whoever does stands still or gets SIGBUS.
    pub unsafe fn register(&self, start: u64, len: u64) -> Result<()> {
        self.control(IO_REGISTER, &mut [start, len, MISSING, 0])
    }

    /// Missing pages of the range are again made at the first touch.
    ///
    /// # Errors
    /// `EINVAL` for memory that could not have been registered.
    pub fn unregister(&self, start: u64, len: u64) -> Result<()> {
        self.control(IO_UNREGISTER, &mut [start, len])
    }

    /// Makes the missing pages at `to` with the bytes at `from`; all three are multiples of the page's size. Says how many
    /// bytes were copied, which can be fewer.
    ///
    /// # Errors
    /// `EEXIST` if the first page is there already, `EFAULT` if the source cannot be read, `EINVAL` for what is no whole page,
    /// `ENOENT` outside of the registered ranges.
    ///
    /// # Safety
    /// No reference may point into the range at `to`.
    pub unsafe fn copy(&self, to: u64, from: u64, len: u64) -> Result<u64> {
        let mut order = [to, from, len, 0, 0];
        match self.control(IO_COPY, &mut order) {
            Ok(()) => Ok(len),
            Err(_) if (order[4] as i64) > 0 => Ok(order[4]),
            Err(e) => Err(e),
        }
    }

    fn control<const N: usize>(&self, what: libc::c_ulong, order: &mut [u64; N]) -> Result<()> {
        loop {
            // SAFETY: every order is exactly the structure of its ioctl, all of 64-bit fields.
            if unsafe { libc::ioctl(self.0.as_raw_fd(), what, order.as_mut_ptr()) } == 0 {
                return Ok(());
            }
            match last_errno() {
                Errno::INTR => {}
                e => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PAGE_SIZE;
    use crate::mman::{self, Area};

    #[test]
    fn pages_are_made_with_their_content() {
        let uffd = Uffd::new().expect("a kernel with CONFIG_USERFAULTFD, and no filter against it");
        let from = Area::anonymous(4 * PAGE_SIZE).unwrap();
        let to = Area::anonymous(4 * PAGE_SIZE).unwrap();
        // SAFETY: both areas are ours alone, and no page of `to` is touched before it was copied or the range let go.
        unsafe {
            std::ptr::write_bytes(from.start() as *mut u8, 7, 4 * PAGE_SIZE as usize);
            assert_eq!(uffd.copy(to.start(), from.start(), PAGE_SIZE), Err(Errno::NOENT));
            uffd.register(to.start(), to.len_bytes()).unwrap();
            assert_eq!(uffd.copy(to.start() + PAGE_SIZE, from.start(), PAGE_SIZE), Ok(PAGE_SIZE));
            // The second page is there: only the first of two can be made.
            assert_eq!(uffd.copy(to.start(), from.start(), 2 * PAGE_SIZE), Ok(PAGE_SIZE));
            assert_eq!(uffd.copy(to.start(), from.start(), PAGE_SIZE), Err(Errno::EXIST));
            assert_eq!(uffd.copy(to.start() + 2 * PAGE_SIZE + 8, from.start(), PAGE_SIZE), Err(Errno::INVAL));
            assert_eq!(uffd.copy(to.start() + 2 * PAGE_SIZE, PAGE_SIZE, PAGE_SIZE), Err(Errno::FAULT));
            uffd.unregister(to.start(), to.len_bytes()).unwrap();
            assert_eq!(to.slice(PAGE_SIZE - 1, 2 * PAGE_SIZE)[..=PAGE_SIZE as usize], [7; PAGE_SIZE as usize + 1]);
            assert_eq!(to.slice(3 * PAGE_SIZE, 1), [0]);
            uffd.register(to.start(), to.len_bytes()).unwrap();
            drop(uffd);
            mman::madvise(to.start(), to.len_bytes(), libc::MADV_DONTNEED).unwrap();
            assert_eq!(to.slice(0, 1), [0], "let go when dropped");
        }
    }
}

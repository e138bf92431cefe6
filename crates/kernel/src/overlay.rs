//! What overlayfs does not show of itself: which layer a file is in.
#![allow(unsafe_code, reason = "FIDEDUPERANGE is in no safe wrapper")]
use rustix::io::{Errno, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct file_dedupe_range` with one destination.
#[repr(C)]
struct DedupeOne {
    from: u64,
    len: u64,
    count: u16,
    reserved: [u16; 3],
    to_fd: i64,
    to: u64,
    done: u64,
    status: i32,
    reserved_one: u32,
}

/// The answer of a destination to a request to share `len` of its first bytes with a place far beyond its end: nothing is shared.
fn ask(file: BorrowedFd<'_>, len: u64) -> Result<i32> {
    const FIDEDUPERANGE: libc::Ioctl = 0xc018_9436;
    const BEYOND: u64 = 1 << 50;
    let fd = file.as_raw_fd();
    let mut range = DedupeOne {
        from: 0,
        len,
        count: 1,
        reserved: [0; 3],
        to_fd: i64::from(fd),
        to: BEYOND,
        done: 0,
        status: 0,
        reserved_one: 0,
    };
    // SAFETY: `range` has the layout that the request reads, with one destination as its count says, and lives over the call.
    let ret = unsafe { libc::ioctl(fd, FIDEDUPERANGE, &raw mut range) };
    if ret < 0 {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    } else {
        Ok(range.status)
    }
}

/// True for a file of overlayfs that is in a lower layer only. The kernel refuses to share blocks with such a file before it
/// looks at anything else, so that it need not be copied up for it.
///
/// # Errors
/// `EINVAL`: an empty file, or not open for reading. `EPERM`, `EROFS`: who asks may not change the file, and learns nothing.
pub fn is_lower(file: BorrowedFd<'_>) -> Result<bool> {
    // Whether the caller may ask at all says a request about no bytes.
    match ask(file, 0)? {
        0 => Ok(ask(file, 1)? == -Errno::PERM.raw_os_error()),
        refused => Err(Errno::from_raw_os_error(-refused)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn other_filesystems_have_no_lower_files() {
        assert_eq!(size_of::<DedupeOne>(), 56);
        let here = std::fs::File::open(std::env::current_exe().expect("a path")).expect("opens");
        assert_ne!(is_lower(here.as_fd()), Ok(true));
        let null = std::fs::File::open("/dev/null").expect("opens");
        assert!(is_lower(null.as_fd()).is_err());
    }
}

//! Descriptors that a parent left open for us under an agreed number (`swrk N`, `--status-fd N`, `--close N`).
#![allow(unsafe_code, reason = "a bare number becomes an owned descriptor")]
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Mutex;

static TAKEN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Takes over the inherited descriptor `number` and sets CLOEXEC on it.
///
/// # Errors
/// `EBADF` if it is not open, or was taken before.
pub fn take(number: i32) -> io::Result<OwnedFd> {
    let bad = || io::Error::from_raw_os_error(libc::EBADF);
    if number < 0 {
        return Err(bad());
    }
    let mut taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: fcntl on any number is harmless, and this borrow ends before anything could close it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    if !taken.insert(number) {
        return Err(bad());
    }
    // SAFETY: it is open (fcntl said so), it came from our parent under an agreed number, and `TAKEN` makes sure that
    // it is handed out only once. Callers take inherited numbers before they open descriptors of their own.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

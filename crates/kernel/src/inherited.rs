//! Descriptors that a parent left open for us under an agreed number (`swrk N`, `--status-fd N`, `--close N`).
#![allow(unsafe_code, reason = "a bare number becomes an owned descriptor")]
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, OnceLock};

static GIVEN: OnceLock<BTreeSet<i32>> = OnceLock::new();
static TAKEN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Notes which descriptors are open. Called first of all in a program, these are the ones its parent gave it.
///
/// # Errors
/// Of reading `/proc/self/fd`; then every number counts as given.
pub fn note() -> io::Result<()> {
    let listed: BTreeSet<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    // The directory read from was in the list, and is closed by now.
    // SAFETY: F_GETFD on any number is harmless, and this borrow ends before anything could close it.
    let is_open = |fd: &i32| rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(*fd) }).is_ok();
    let _first = GIVEN.set(listed.into_iter().filter(is_open).collect());
    Ok(())
}

/// Whether `number` was open when [`note`] was called; true if it never was.
pub fn was_given(number: i32) -> bool {
    GIVEN.get().is_none_or(|given| given.contains(&number))
}

/// Takes over the inherited descriptor `number` and sets CLOEXEC on it.
///
/// # Errors
/// `EBADF` if it is not open, was not when we started, or was taken before.
pub fn take(number: i32) -> io::Result<OwnedFd> {
    let bad = || io::Error::from_raw_os_error(libc::EBADF);
    if number < 0 || !was_given(number) {
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

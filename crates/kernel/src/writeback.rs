//! Telling the kernel to write a file's dirty pages to disk, without waiting for it.
#![allow(unsafe_code, reason = "sync_file_range has no wrapper in rustix")]
use std::os::fd::{AsRawFd, BorrowedFd};

/// Starts writing everything dirty in the file. Only a hint: filesystems without writeback ignore it, and errors of the
/// disk are reported by a later fsync.
pub fn start(fd: BorrowedFd<'_>) {
    // SAFETY: sync_file_range takes numbers only; offset and length 0 mean the whole file, and `fd` is open while borrowed.
    // Its result is ignored on purpose: nothing depends on the hint.
    unsafe { libc::sync_file_range(fd.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

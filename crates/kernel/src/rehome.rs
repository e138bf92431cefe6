//! Memory of this process moved into a file under its own feet, so that forks need not copy its page tables.
#![allow(unsafe_code, reason = "replaces memory in use by a copy of itself")]
use crate::mman;
use rustix::io::{Errno, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Writes the memory at `at` to `file` at `offset`, and maps that privately in its place, with protection `prot`. What is
/// written to this memory later is this process's own, as before.
///
/// # Errors
/// As pwrite(2) and mmap(2); the memory is then as it was.
///
/// # Safety
/// The range is private memory of this process, mapped readable, and writable only as `prot` says. No other thread runs, and
/// nobody changes the file afterwards.
pub unsafe fn rehome(file: BorrowedFd<'_>, offset: u64, (at, len): (u64, u64), prot: i32) -> Result<()> {
    // From the first byte written to the new mapping nothing may change in the range: no allocation, and no call but these.
    let mut done = 0;
    while done < len {
        // SAFETY: the kernel reads the rest of the range, which the caller says is mapped.
        let n = unsafe {
            libc::pwrite(
                file.as_raw_fd(),
                (at + done) as *const libc::c_void,
                (len - done) as usize,
                (offset + done) as libc::off_t,
            )
        };
        match n {
            1.. => done += n.unsigned_abs() as u64,
            0 => return Err(Errno::IO),
            _ => return Err(mman::last_errno()),
        }
    }
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
    // SAFETY: what is replaced comes back with the same bytes, as nothing ran in between that would have changed them.
    unsafe { mman::mmap(at, len, prot, flags, Some(file), offset) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mman::Area;
    use std::os::fd::AsFd;

    #[test]
    fn memory_stays_as_it_is_and_is_a_file_s() {
        const LEN: u64 = 3 * 4096;
        let area = Area::anonymous(LEN).expect("memory");
        // SAFETY: the area is this test's alone.
        unsafe { area.slice_mut(5000, 3) }.copy_from_slice(b"abc");
        let file = rustix::fs::memfd_create("home", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        // SAFETY: no other thread knows of the area.
        unsafe { rehome(file.as_fd(), 4096, (area.start(), LEN), libc::PROT_READ | libc::PROT_WRITE) }.expect("moves");
        // SAFETY: as above.
        unsafe {
            assert_eq!(area.slice(5000, 3), b"abc");
            area.slice_mut(5001, 1)[0] = b'x';
            assert_eq!(area.slice(5000, 3), b"axc");
        }
        let mut byte = [0];
        rustix::io::pread(&file, &mut byte, 4096 + 5001).expect("reads");
        assert_eq!(byte, *b"b", "changes stay private");
        let own = crate::maps::read_own_maps().expect("maps");
        let mapping = own.iter().find(|m| m.start <= area.start() && area.start() < m.end).expect("is there");
        assert!(!mapping.shared && mapping.inode != 0);
    }
}

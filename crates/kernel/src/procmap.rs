//! PROCMAP_QUERY (Linux 6.11): one mapping looked up by address, without reading all of `/proc/PID/maps`.
#![allow(unsafe_code, reason = "rustix has no wrapper for this ioctl")]
use crate::VirtAddr;
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd};

#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

const PROCMAP_QUERY: libc::Ioctl = 0xC068_6611u32 as libc::Ioctl;

/// The mapping that covers an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covering {
    /// First byte.
    pub start: VirtAddr,
    /// First byte behind it.
    pub end: VirtAddr,
    /// `x` of the protection.
    pub executable: bool,
    /// `w` of the protection.
    pub writable: bool,
    /// MAP_SHARED.
    pub shared: bool,
}

/// Asks an open `/proc/PID/maps`.
///
/// # Errors
/// `ENOENT`: nothing mapped there. `ENOTTY`: an older kernel.
pub fn query(maps: impl AsFd, at: VirtAddr) -> Result<Covering> {
    let size = size_of::<ProcmapQuery>() as u64;
    let mut q = ProcmapQuery { size, query_addr: at.as_raw(), ..ProcmapQuery::default() };
    // SAFETY: the ioctl reads and writes one procmap_query of the size it is told; name and build id are not asked for,
    // so no other pointer is followed.
    let ret = unsafe { libc::ioctl(maps.as_fd().as_raw_fd(), PROCMAP_QUERY, &raw mut q) };
    if ret < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(Covering {
        start: VirtAddr(q.vma_start),
        end: VirtAddr(q.vma_end),
        writable: q.vma_flags & 2 != 0,
        executable: q.vma_flags & 4 != 0,
        shared: q.vma_flags & 8 != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_this_function() {
        assert_eq!(size_of::<ProcmapQuery>(), 104);
        let maps = std::fs::File::open("/proc/self/maps").unwrap();
        let here = VirtAddr(finds_this_function as *const () as u64);
        match query(&maps, here) {
            Ok(found) => {
                assert!(found.start <= here && here < found.end);
                assert!(found.executable && !found.writable && !found.shared);
                assert_eq!(query(&maps, VirtAddr(8)), Err(Errno::NOENT));
            }
            Err(errno) => assert_eq!(errno, Errno::NOTTY, "only a kernel before 6.11 may refuse"),
        }
    }
}

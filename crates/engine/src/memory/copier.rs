//! Fresh small pages made with their content, by userfaultfd: neither cleared before they are written nor faulted in, which
//! is half of what a page costs.
//!
//! Whatever it cannot do is left to a read, which also knows the better error.
#![allow(unsafe_code, reason = "copies windows on files into memory given by address")]
use crust_kernel::ids::PAGE_SIZE;
use crust_kernel::mman::Area;
use crust_kernel::uffd::Uffd;
use std::os::fd::{AsFd, OwnedFd};

/// Ranges that are filled by copies from windows on the pages images.
#[derive(Debug)]
pub(super) struct Copier {
    uffd: Uffd,
    windows: Vec<Option<Area>>,
    /// What is registered: start and end, in the order of addresses.
    ground: Vec<(u64, u64)>,
    first_job: usize,
}

/// As much is copied at once as both caches and whoever waits to change mappings like.
const PIECE: u64 = 512 << 10;

impl Copier {
    /// Shorter ranges are read.
    pub(super) const WORTH: u64 = 64 << 10;

    /// Takes over the ranges (file, address, length) of all jobs from `first_job` on, as far as it can.
    pub(super) fn new(
        first_job: usize,
        ranges: impl Iterator<Item = (u32, u64, u64)>,
        files: &[OwnedFd],
    ) -> Option<Self> {
        let uffd = Uffd::new().ok()?;
        let window = |file: &OwnedFd| {
            let len = rustix::fs::fstat(file).ok()?.st_size as u64;
            // Whole pages only: what is cut off must be told, not taken for zeros.
            let area = Area::file(file.as_fd(), 0, len - len % PAGE_SIZE, false).ok()?;
            area.advise(0, area.len_bytes(), libc::MADV_SEQUENTIAL).ok()?;
            Some(area)
        };
        let windows: Vec<_> = files.iter().map(window).collect();
        let mut ground: Vec<(u64, u64)> = Vec::new();
        for (file, at, len) in ranges {
            match ground.last_mut() {
                _ if !matches!(windows.get(file as usize), Some(Some(_))) => {}
                Some(last) if last.1 == at => last.1 += len,
                _ => ground.push((at, at + len)),
            }
        }
        // SAFETY: fresh memory mapped by the stage, which nobody touches but who fills it: by `fill`, or after it let go.
        ground.retain(|&(start, end)| unsafe { uffd.register(start, end - start) }.is_ok());
        ground.sort_unstable();
        (!ground.is_empty()).then_some(Self { uffd, windows, ground, first_job })
    }

    /// Jobs before this one were taken by others.
    pub(super) fn first_job(&self) -> usize {
        self.first_job
    }

    /// Fills the range as far as possible and says how many bytes that was. The rest is open to reads.
    pub(super) fn fill(&self, file: u32, offset: u64, at: u64, len: u64) -> u64 {
        let after = self.ground.partition_point(|g| g.1 <= at);
        let Some(Some(window)) = self.windows.get(file as usize) else { return 0 };
        if self.ground.get(after).is_none_or(|g| g.0 > at || g.1 < at + len) {
            return 0;
        }
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(PIECE);
            let from = offset + done;
            let there = from + piece <= window.len_bytes();
            if !there || window.advise(from, piece, libc::MADV_POPULATE_READ).is_err() {
                break;
            }
            // SAFETY: this range belongs to the caller's job alone, and no reference points into it.
            match unsafe { self.uffd.copy(at + done, window.start() + from, piece) } {
                Ok(copied) if copied > 0 => done += copied,
                _ => break,
            }
        }
        // What is mapped counts as ours.
        window.advise(offset, done, libc::MADV_DONTNEED).unwrap_or_default();
        if done < len {
            // Should this fail, so does the read, loudly.
            self.uffd.unregister(at + done, len - done).unwrap_or_default();
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::MemfdFlags;

    #[test]
    fn what_cannot_be_copied_is_left_to_reads() {
        let image: OwnedFd = rustix::fs::memfd_create("pages", MemfdFlags::CLOEXEC).unwrap();
        let bytes: Vec<u8> = (0..(1 << 20) + 100_u32).map(|n| (n / 4096 + n) as u8).collect();
        assert_eq!(rustix::io::write(&image, &bytes).unwrap(), bytes.len());
        let files = [image];
        let (to, other) = (Area::anonymous(2 << 20).unwrap(), Area::anonymous(1 << 20).unwrap());
        let filled = |area: &Area, from, len| {
            // SAFETY: both areas are ours; only what was copied or let go is looked at.
            unsafe { area.slice(from, len).to_vec() }
        };
        let shared = Area::file(files[0].as_fd(), 0, 1 << 20, true).unwrap();
        let (at, page) = (to.start(), PAGE_SIZE);
        let ranges = [(0, at, 256 << 10), (0, at + (256 << 10), 256 << 10), (0, at + (1 << 20), 1 << 20)];
        let beside = (0, shared.start(), 64 << 10);
        let ranges = ranges.into_iter().chain([beside, (1, other.start(), 64 << 10)]);
        let copier =
            Copier::new(3, ranges, &files).expect("a kernel with CONFIG_USERFAULTFD, and no filter against it");
        assert_eq!(copier.first_job(), 3);
        // Across the border of two ranges that were handed in, and in pieces.
        assert_eq!(copier.fill(0, page, at, 512 << 10), 512 << 10);
        assert_eq!(filled(&to, 0, 512 << 10), bytes[page as usize..][..512 << 10]);
        assert_eq!(copier.fill(0, 0, at + (600 << 10), page), 0, "not registered");
        assert_eq!(copier.fill(0, 0, shared.start(), 64 << 10), 0, "not anonymous");
        assert_eq!(copier.fill(1, 0, other.start(), 64 << 10), 0, "no such file");
        // The image's last page is no whole one; what was done before it counts, and what is left is open.
        let last = at + (1 << 20);
        assert_eq!(copier.fill(0, 512 << 10, last, 512 << 10), 512 << 10);
        assert_eq!(copier.fill(0, 1 << 20, last + (512 << 10), page), 0, "cut off");
        assert_eq!(filled(&to, (1 << 20) + (512 << 10), page), [0; 4096]);
        // A page that is there already.
        assert_eq!(copier.fill(0, 0, last + (512 << 10) - page, 2 * page), 0);
    }
}

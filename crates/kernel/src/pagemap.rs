//! Which pages of a process exist: PAGEMAP_SCAN (Linux 6.7), else the entries of /proc/PID/pagemap.
//!
//! The caller gets the same regions from both; [`Pagemap::open`] finds out by trying which one the kernel has.
#![allow(unsafe_code, reason = "the PAGEMAP_SCAN ioctl takes a structure with pointers")]
use crate::ids::PAGE_SIZE;
use crate::procfs::ProcDir;
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::OnceLock;

/// What is known of a page; combinable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Categories(u64);

impl Categories {
    /// The page is write-protect tracked asynchronously.
    pub const WP_ALLOWED: Self = Self(1 << 0);
    /// Written since the tracking was armed.
    pub const WRITTEN: Self = Self(1 << 1);
    /// Belongs to a file or to shared memory. Costs a look at every struct page: do not ask about anonymous memory.
    pub const FILE: Self = Self(1 << 2);
    /// In memory.
    pub const PRESENT: Self = Self(1 << 3);
    /// In swap, or another entry that is no page (under migration, a guard).
    pub const SWAPPED: Self = Self(1 << 4);
    /// The shared zero page.
    pub const ZERO: Self = Self(1 << 5);
    /// Mapped by a huge page table entry.
    pub const HUGE: Self = Self(1 << 6);
    /// Soft-dirty.
    pub const SOFT_DIRTY: Self = Self(1 << 7);
    /// A guard region (MADV_GUARD_INSTALL; Linux 6.15 tells).
    pub const GUARD: Self = Self(1 << 8);

    /// Both together.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// True if all of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
    /// True if any of `other` is set.
    pub const fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
    const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// Neighbouring pages of the same categories. May reach over the border of two adjoining mappings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PageRegion {
    /// Address of the first page.
    pub start: u64,
    /// First address behind the last page.
    pub end: u64,
    /// What was asked for and holds.
    pub categories: Categories,
}

#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const _: () = assert!(size_of::<ScanArg>() == 0x60);

/// A process's page table as /proc shows it.
#[derive(Debug)]
pub struct Pagemap {
    file: OwnedFd,
    scan: bool,
    guards: bool,
    regions: Vec<PageRegion>,
}

/// Regions fetched by one call.
const CHUNK: usize = 4096;

impl Pagemap {
    /// Opens /proc/PID/pagemap and finds out what it can do.
    ///
    /// # Errors
    /// As openat(2).
    pub fn open(proc: &ProcDir) -> Result<Self> {
        static ABILITIES: OnceLock<(bool, bool)> = OnceLock::new();
        let mut map = Self { file: proc.open_file("pagemap")?, scan: true, guards: true, regions: Vec::new() };
        (map.scan, map.guards) = *ABILITIES.get_or_init(|| map.abilities());
        Ok(map)
    }

    /// Whether the kernel has the scan, and whether that tells guards.
    fn abilities(&self) -> (bool, bool) {
        // An empty range is answered without walking anything; an unknown category is EINVAL.
        match self.scan_once(0, 0, Categories::GUARD, Categories::GUARD, &mut []) {
            Ok(_) => (true, true),
            // Since 6.15 the entries themselves tell guards (bit 58); before, nobody can ask.
            Err(Errno::INVAL) => {
                let wanted = Categories::PRESENT;
                (self.scan_once(0, 0, wanted, wanted, &mut []).is_ok(), false)
            }
            Err(_) => (false, false),
        }
    }

    /// The same by reading entries, as on kernels before 6.7.
    ///
    /// # Errors
    /// As openat(2).
    pub fn open_without_scan(proc: &ProcDir) -> Result<Self> {
        Ok(Self { file: proc.open_file("pagemap")?, scan: false, guards: false, regions: Vec::new() })
    }

    /// True if a walk costs what is there, not what there could be: holes are free.
    pub fn scans(&self) -> bool {
        self.scan
    }

    /// True if guard regions are told apart.
    pub fn knows_guards(&self) -> bool {
        self.guards
    }

    /// Finds the pages in `start..end` that have any of `any`, and calls `with` for each region in address order;
    /// a region names those of `tell` that hold for it. At most 4096 regions are held at once.
    ///
    /// # Errors
    /// As ioctl_pagemap_scan(2) or pread(2): `ESRCH`-like conditions mean that the process is gone.
    pub fn walk(
        &mut self,
        start: u64,
        end: u64,
        any: Categories,
        tell: Categories,
        mut with: impl FnMut(PageRegion),
    ) -> Result<()> {
        if !self.scan {
            return self.walk_entries(start, end, any, tell, &mut with);
        }
        let (any, tell) = if self.guards {
            (any, tell)
        } else {
            let known = Categories(!Categories::GUARD.0);
            (any.and(known), tell.and(known))
        };
        let mut regions = std::mem::take(&mut self.regions);
        regions.resize(CHUNK, PageRegion::default());
        let mut at = start;
        let mut result = Ok(());
        while at < end && result.is_ok() {
            result = self.scan_once(at, end, any, tell, &mut regions).and_then(|(n, walked)| {
                let found = regions.get(..n).ok_or(Errno::RANGE)?;
                found.iter().for_each(|region| with(*region));
                // The kernel fills the vector in steps of 512 and leaves `walk_end` at the beginning of the last step when
                // the walk then comes to its end: a vector that is not full says that nothing is left.
                at = match found.last() {
                    Some(last) if n == CHUNK => last.end.max(walked),
                    _ => end,
                };
                Ok(())
            });
        }
        self.regions = regions;
        result
    }

    fn scan_once(
        &self,
        start: u64,
        end: u64,
        any: Categories,
        tell: Categories,
        regions: &mut [PageRegion],
    ) -> Result<(usize, u64)> {
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            flags: 0,
            start,
            end,
            walk_end: 0,
            vec: if regions.is_empty() { 0 } else { regions.as_mut_ptr() as u64 },
            vec_len: regions.len() as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: 0,
            category_anyof_mask: any.0,
            return_mask: tell.0,
        };
        loop {
            // SAFETY: `arg` has the kernel's layout and names its own size; `vec` is `regions`, borrowed mutably for the
            // whole call, and `vec_len` its length, so the kernel writes only into it. PageRegion is three u64 as the
            // kernel's page_region, and any bits are a valid value.
            let n = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
            if n >= 0 {
                return Ok((n as usize, arg.walk_end));
            }
            match Errno::from_io_error(&std::io::Error::last_os_error()) {
                Some(Errno::INTR) => {}
                e => return Err(e.unwrap_or(Errno::IO)),
            }
        }
    }

    fn walk_entries(
        &self,
        start: u64,
        end: u64,
        any: Categories,
        tell: Categories,
        with: &mut impl FnMut(PageRegion),
    ) -> Result<()> {
        const ENTRIES: u64 = 8192;
        let mut buf = vec![0u8; ENTRIES as usize * 8];
        let mut open: Option<PageRegion> = None;
        let mut at = start;
        while at < end {
            let want = ENTRIES.min((end - at) / PAGE_SIZE) as usize * 8;
            let offset = at / PAGE_SIZE * 8;
            let n = rustix::io::retry_on_intr(|| rustix::io::pread(self.file.as_fd(), &mut buf[..want], offset))?;
            if n == 0 {
                break; // above the end of user space, or the process has no memory left
            }
            for word in buf[..n].chunks_exact(8) {
                let found = entry_categories(u64::from_le_bytes(word.try_into().unwrap_or([0; 8])));
                let told = found.and(tell);
                match &mut open {
                    Some(region) if found.any(any) && region.end == at && region.categories == told => {
                        region.end += PAGE_SIZE;
                    }
                    _ => {
                        if let Some(region) = open.take() {
                            with(region);
                        }
                        if found.any(any) {
                            open = Some(PageRegion { start: at, end: at + PAGE_SIZE, categories: told });
                        }
                    }
                }
                at += PAGE_SIZE;
            }
        }
        if let Some(region) = open {
            with(region);
        }
        Ok(())
    }
}

fn entry_categories(entry: u64) -> Categories {
    let mut found = Categories::default();
    let mut add = |bit: u32, category| {
        if entry & (1 << bit) != 0 {
            found = found.or(category);
        }
    };
    add(55, Categories::SOFT_DIRTY);
    add(58, Categories::GUARD);
    add(61, Categories::FILE);
    add(62, Categories::SWAPPED);
    add(63, Categories::PRESENT);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostTid;
    use rustix::mm::{MapFlags, ProtFlags};

    fn regions(mut map: Pagemap, start: u64, end: u64, tell: Categories) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        let any = Categories::PRESENT.or(Categories::SWAPPED);
        map.walk(start, end, any, tell, |r| found.push(((r.start - start) / PAGE_SIZE, (r.end - start) / PAGE_SIZE)))
            .expect("walks");
        found
    }

    #[test]
    fn many_regions_are_found_once() {
        let pages = 3 * CHUNK + 700;
        let len = 2 * pages * PAGE_SIZE as usize;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh private anonymous mapping where the kernel likes; nothing else lives there.
        let area =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::PRIVATE) }.expect("mmap");
        for page in 0..pages {
            // SAFETY: every second page of the mapping above, writable, without references.
            unsafe { area.cast::<u8>().add(2 * page * PAGE_SIZE as usize).write(1) };
        }
        let proc = ProcDir::open(HostTid::new(std::process::id() as i32).expect("a pid")).expect("own /proc");
        let (start, end) = (area as u64, area as u64 + len as u64);
        let expected: Vec<_> = (0..pages as u64).map(|page| (2 * page, 2 * page + 1)).collect();
        assert!(regions(Pagemap::open(&proc).expect("opens"), start, end, Categories::PRESENT) == expected);
        assert!(
            regions(Pagemap::open_without_scan(&proc).expect("opens"), start, end, Categories::PRESENT) == expected
        );
        // SAFETY: the mapping made above, and no reference into it is left.
        unsafe { rustix::mm::munmap(area, len) }.expect("munmap");
    }

    #[test]
    fn both_ways_find_the_touched_pages() {
        let len = 64 * PAGE_SIZE as usize;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh private anonymous mapping where the kernel likes; nothing else lives there.
        let area =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::PRIVATE) }.expect("mmap");
        for page in [1, 2, 3, 10, 63] {
            // SAFETY: inside the 64 pages mapped above, writable, of which there are no references.
            unsafe { area.cast::<u8>().add(page * PAGE_SIZE as usize).write(1) };
        }
        let proc = ProcDir::open(HostTid::new(std::process::id() as i32).expect("a pid")).expect("own /proc");
        let (start, end) = (area as u64, area as u64 + len as u64);
        let expected = vec![(1, 4), (10, 11), (63, 64)];
        assert_eq!(regions(Pagemap::open(&proc).expect("opens"), start, end, Categories::PRESENT), expected);
        assert_eq!(
            regions(Pagemap::open_without_scan(&proc).expect("opens"), start, end, Categories::PRESENT),
            expected
        );
        // SAFETY: the mapping made above, and no reference into it is left.
        unsafe { rustix::mm::munmap(area, len) }.expect("munmap");
    }
}

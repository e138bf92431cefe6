//! Memory of hugetlbfs: pages of a size of their own, from a pool that the administrator sets aside.
use crate::{Error, Kind};
use crust_image::proto::VmaEntry;
use rustix::io::Errno;

/// MAP_HUGETLB, as it stands in a record's flags beside the size.
pub(super) const HUGETLB: u32 = libc::MAP_HUGETLB as u32;
/// Where the size of its pages stands in a mapping's flags, and in memfd_create(2)'s: as a power of two.
const SHIFT: u32 = libc::MAP_HUGE_SHIFT as u32;
const MASK: u32 = (libc::MAP_HUGE_MASK as u32) << SHIFT;
/// What the kernel calls the file behind an anonymous mapping.
pub(super) const ANONYMOUS: &[u8] = b"/anon_hugepage";

/// The bits that say how large pages of `bytes` are.
pub(super) fn size_bits(bytes: u64) -> u32 {
    bytes.trailing_zeros() << SHIFT & MASK
}

/// Those bits of a record, with MAP_HUGETLB; nothing for other memory.
pub(super) fn bits(vma: &VmaEntry) -> u32 {
    if is(vma) { vma.flags & (HUGETLB | MASK) } else { 0 }
}

/// True for a mapping of huge pages from hugetlbfs.
pub(super) fn is(vma: &VmaEntry) -> bool {
    vma.flags & HUGETLB != 0
}

/// What its addresses are a multiple of, for huge pages of the kernel's default size: `None`.
pub(super) fn grain(vma: &VmaEntry) -> Option<u64> {
    let power = (vma.flags & MASK) >> SHIFT;
    (is(vma) && power > 12).then(|| 1 << power)
}

/// The error for a mapping that could not be made; where pages of the pool lack, it says so.
pub(super) fn no_room(e: Errno, vma: &VmaEntry) -> Error {
    let error = Error::kernel("mapping huge pages failed", e);
    if e != Errno::NOMEM {
        return error;
    }
    let kib = grain(vma).map_or_else(|| "the default".to_owned(), |bytes| format!("{} kB", bytes >> 10));
    error.kind_is(Kind::NoSpace).help(format!(
        "the pool of huge pages ({kib}) is too small: raise nr_hugepages in /sys/kernel/mm/hugepages/hugepages-*"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two() {
        let vma = |size: u64| VmaEntry { flags: HUGETLB | size_bits(size) | 2, ..VmaEntry::default() };
        for size in [1 << 16, 1 << 21, 1 << 30, 1 << 34] {
            assert_eq!(grain(&vma(size)), Some(size));
            assert_eq!(bits(&vma(size)), vma(size).flags & !2);
        }
        assert_eq!(size_bits(1 << 21), libc::MAP_HUGE_2MB as u32);
        assert_eq!((grain(&VmaEntry { flags: HUGETLB, ..vma(4096) }), bits(&VmaEntry::default())), (None, 0));
    }
}

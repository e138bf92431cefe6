//! What a task's private memory lacks to become that of another with the same mappings: the pages that differ, read from the
//! other's image, and those that only the first has, dropped. A fork of the first then shares all others with it, as
//! programs that forked did before the dump.
use super::collect;
use super::load::{Extent, Images};
use super::status as st;
use crate::Result;
use crate::error::{Error, Object, ResultExt};
use crate::images::Source;
use crust_image::proto::VmaEntry;
use crust_inject::plan::{Arg, Expect, PlanId, Program};
use crust_kernel::ids::PAGE_SIZE;
use rustix::io::Errno;
use std::os::fd::{OwnedFd, RawFd};

/// Pages compared at a time.
const WINDOW: usize = 16 * PAGE_SIZE as usize;
/// Ranges of one read, and its bytes: what preadv(2) does in one call.
const MAX_RANGES: usize = 1024;
const MAX_BYTES: u64 = 1 << 30;

/// Neighbouring bytes of the image and where they belong.
#[derive(Debug, Default)]
struct Read {
    offset: u64,
    bytes: u64,
    ranges: Vec<(u64, u64)>,
}

/// The way from one task's memory to another's.
#[derive(Debug, Default)]
pub struct Changes {
    /// The other's pages image, if anything is read from it.
    file: Option<String>,
    reads: Vec<Read>,
    /// Ranges that are empty in the other.
    drops: Vec<(u64, u64)>,
    /// Mappings that must be writable for a moment: start, length, protection.
    opened: Vec<(u64, u64, u32)>,
}

/// True if `b`'s memory can be made by forking `a`: equal mappings, all of which a fork inherits whole, and pages that lie in
/// the image directory itself.
pub fn alike(a: &Images, b: &Images) -> bool {
    const INHERITED: u32 = st::REGULAR
        | st::VSYSCALL
        | st::VDSO
        | st::HEAP
        | st::FILE_PRIVATE
        | st::FILE_SHARED
        | st::ANON_SHARED
        | st::ANON_PRIVATE
        | st::VVAR
        | st::MEMFD
        | st::UPROBES;
    let odd_flags = (libc::MAP_LOCKED | libc::MAP_HUGETLB) as u32 | collect::MAP_DROPPABLE;
    let odd_advice = 1u64 << libc::MADV_DONTFORK | 1 << libc::MADV_WIPEONFORK;
    let whole = |v: &VmaEntry| {
        v.status & !INHERITED == 0
            && v.flags & odd_flags == 0
            && v.madv.unwrap_or(0) & odd_advice == 0
            && v.crust_flags.unwrap_or(0) & collect::SEALED == 0
    };
    a.mm == b.mm && a.mm.vmas.iter().all(whole) && a.pages.here() && b.pages.here()
}

/// Extents of one image, cut to what lies in one mapping.
pub(super) struct Cursor<'a> {
    extents: &'a [Extent],
    next: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(images: &'a Images) -> Self {
        Self { extents: &images.pages.extents, next: 0 }
    }

    /// Whether there are bytes for `at`, from which file and offset, and up to where that answer holds.
    pub(super) fn at(&mut self, at: u64, end: u64) -> (Option<(u32, u64)>, u64) {
        while self.extents.get(self.next).is_some_and(|e| e.end <= at) {
            self.next += 1;
        }
        match self.extents.get(self.next) {
            Some(e) if e.start <= at => (Some((e.file, e.offset + (at - e.start))), e.end.min(end)),
            Some(e) => (None, e.start.min(end)),
            None => (None, end),
        }
    }
}

fn is_filled(vma: &VmaEntry) -> bool {
    let special = st::VSYSCALL | st::VDSO | st::VVAR | st::GUARD | st::UPROBES;
    vma.status & special == 0 && vma.status & (st::ANON_PRIVATE | st::FILE_PRIVATE) != 0
}

/// What must change in `a`'s memory to make it `b`'s; they are [`alike`].
///
/// # Errors
/// If a pages image cannot be read.
pub fn changes(source: &Source, a: &Images, b: &Images) -> Result<Changes> {
    let mut found = Changes::default();
    let (open_a, open_b) = (a.pages.open(source)?, b.pages.open(source)?);
    let mut buffers = [vec![0; WINDOW], vec![0; WINDOW]];
    let (mut in_a, mut in_b) = (Cursor::new(a), Cursor::new(b));
    for vma in a.mm.vmas.iter().filter(|v| is_filled(v)) {
        let (reads, mut at) = (found.bytes(), vma.start);
        while at < vma.end {
            let (ours, end_a) = in_a.at(at, vma.end);
            let (theirs, end_b) = in_b.at(at, vma.end);
            let end = end_a.min(end_b);
            match (ours, theirs) {
                (None, None) => {}
                (Some(_), None) => match found.drops.last_mut() {
                    Some(last) if last.1 == at => last.1 = end,
                    _ => found.drops.push((at, end)),
                },
                (None, Some((_, offset))) => found.read(offset, at, end - at),
                (Some(from_a), Some(from_b)) => {
                    let sides = [(open_a.as_slice(), from_a, a), (open_b.as_slice(), from_b, b)];
                    found.compare(sides, at, end, &mut buffers)?;
                }
            }
            at = end;
        }
        if found.bytes() > reads && vma.prot & libc::PROT_WRITE as u32 == 0 {
            found.opened.push((vma.start, vma.end - vma.start, vma.prot));
        }
    }
    if !found.reads.is_empty() {
        found.file = Some(b.pages.file_name(0).to_owned());
    }
    Ok(found)
}

type Side<'a> = (&'a [OwnedFd], (u32, u64), &'a Images);

impl Changes {
    /// Bytes to be read.
    pub fn bytes(&self) -> u64 {
        self.reads.iter().map(|r| r.bytes).sum()
    }

    /// Upper bound of what these changes take in a plan.
    pub fn plan_bytes(&self) -> u64 {
        let ranges: usize = self.reads.iter().map(|r| r.ranges.len()).sum();
        (4 + self.reads.len() + self.drops.len() + 2 * self.opened.len()) as u64 * 256 + ranges as u64 * 16
    }

    fn read(&mut self, mut offset: u64, mut at: u64, mut len: u64) {
        while len > 0 {
            let fits = |r: &Read| r.offset + r.bytes == offset && r.ranges.len() < MAX_RANGES && r.bytes < MAX_BYTES;
            if !self.reads.last().is_some_and(fits) {
                self.reads.push(Read { offset, bytes: 0, ranges: Vec::new() });
            }
            let Some(last) = self.reads.last_mut() else { return };
            let part = len.min(MAX_BYTES - last.bytes);
            last.bytes += part;
            match last.ranges.last_mut() {
                Some(range) if range.0 + range.1 == at => range.1 += part,
                _ => last.ranges.push((at, part)),
            }
            (offset, at, len) = (offset + part, at + part, len - part);
        }
    }

    /// Notes the pages of `start..end` that differ.
    fn compare(&mut self, sides: [Side<'_>; 2], start: u64, end: u64, buffers: &mut [Vec<u8>; 2]) -> Result<()> {
        let [left, right] = buffers;
        let mut at = start;
        while at < end {
            let len = ((end - at) as usize).min(WINDOW);
            for ((files, (file, offset), images), buffer) in sides.iter().zip([&mut *left, &mut *right]) {
                let fd = files.get(*file as usize);
                let fd = fd.ok_or_else(|| Error::new(crate::Kind::Internal, "a pages image is not open"))?;
                read_whole(fd, *file, offset + (at - start), &mut buffer[..len], images)?;
            }
            let pages = left[..len].chunks(PAGE_SIZE as usize).zip(right[..len].chunks(PAGE_SIZE as usize));
            for (i, (x, y)) in pages.enumerate() {
                if x != y {
                    let page = at + i as u64 * PAGE_SIZE;
                    self.read(sides[1].1.1 + (page - start), page, PAGE_SIZE);
                }
            }
            at += len as u64;
        }
        Ok(())
    }

    /// Adds the calls that make the changes, for a task that was just forked. `images` is the number of a descriptor of the
    /// image directory.
    pub fn plan(&self, p: &mut Program, plan: PlanId, images: RawFd) {
        let protect = |p: &mut Program, label: &'static str, at: u64, len: u64, prot: u64| {
            p.syscall(plan, label, libc::SYS_mprotect, &[at.into(), len.into(), prot.into()]);
        };
        let open = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        for &(at, len, _) in &self.opened {
            protect(p, "making memory writable to fill it", at, len, open);
        }
        for &(start, end) in &self.drops {
            let args = [start.into(), (end - start).into(), libc::MADV_DONTNEED.into()];
            p.syscall(plan, "dropping pages", libc::SYS_madvise, &args);
        }
        if let Some(name) = &self.file {
            let name = p.cstr(name.as_bytes());
            let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NONBLOCK;
            let args = [images.into(), name.into(), flags.into()];
            let fd = p.syscall_slot(plan, "opening the pages image", libc::SYS_openat, &args, Expect::Ok);
            for read in &self.reads {
                let iov: Vec<u8> =
                    read.ranges.iter().flat_map(|&(at, len)| [at, len]).flat_map(u64::to_le_bytes).collect();
                let iov = p.data(&iov);
                // The sixth argument would be the upper half of the offset, where that does not fit into a register.
                let args: [Arg; 5] = [fd.into(), iov.into(), read.ranges.len().into(), read.offset.into(), 0u64.into()];
                let whole = Expect::Equals(read.bytes);
                p.syscall_expect(plan, "reading the pages image", libc::SYS_preadv, &args, whole);
            }
            p.syscall(plan, "closing the pages image", libc::SYS_close, &[fd.into()]);
        }
        for &(at, len, prot) in &self.opened {
            protect(p, "setting the protection", at, len, prot.into());
        }
    }
}

/// Reads from pages image number `file` of `images`, which is open as `fd`.
pub(super) fn read_whole(fd: &OwnedFd, file: u32, offset: u64, into: &mut [u8], images: &Images) -> Result<()> {
    let named = |e: Error| e.on(Object::Image(images.pages.file_name(file).to_owned()));
    let mut done = 0;
    while done < into.len() {
        let n = rustix::io::retry_on_intr(|| rustix::io::pread(fd, &mut into[done..], offset + done as u64))
            .during("reading the pages image")
            .map_err(named)?;
        if n == 0 {
            return Err(named(Error::kernel("the pages image ends too early", Errno::IO)));
        }
        done += n;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_joined_and_cut() {
        let mut c = Changes::default();
        c.read(0, 0x1000, 4096);
        c.read(4096, 0x2000, 4096);
        c.read(8192, 0x9000, 4096);
        c.read(0x10000, 0xa000, 4096);
        assert_eq!(c.reads.len(), 2);
        assert_eq!(c.reads[0].ranges, [(0x1000, 8192), (0x9000, 4096)]);
        c.read(0x11000, 0x4000_0000, 3 << 30);
        assert!(c.reads.iter().all(|r| r.bytes <= MAX_BYTES && r.bytes == r.ranges.iter().map(|r| r.1).sum::<u64>()));
        assert_eq!(c.bytes(), 4 * 4096 + (3 << 30));
    }

    #[test]
    fn an_answer_holds_up_to_the_next_border() {
        let extents = [Extent { start: 0x2000, end: 0x4000, file: 0, offset: 0x8000 }];
        let mut c = Cursor { extents: &extents, next: 0 };
        assert_eq!(c.at(0x1000, 0x3000), (None, 0x2000));
        assert_eq!(c.at(0x3000, 0x9000), (Some((0, 0x9000)), 0x4000));
        assert_eq!(c.at(0x4000, 0x9000), (None, 0x9000));
    }
}

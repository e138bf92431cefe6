//! Memory that a task's children share with it: mapped and filled before they are forked. Each child inherits the pages,
//! keeps what is equal in its own image and changes the rest, so that both share pages again as they did before the dump;
//! and so do their children.
#![allow(unsafe_code, reason = "maps, compares and changes memory by address")]
use super::collect::{MAP_DROPPABLE, SEALED};
use super::fill::{Filler, Ground, huge_pages_allowed};
use super::layout;
use super::load::Images;
use super::stage::{MAP_FIXED_NOREPLACE, MapFiles};
use super::status as st;
use super::twin::Cursor;
use crate::error::{Error, Kind, Object, ResultExt};
use crate::images::Source;
use crate::{Result, Watch};
use crust_image::proto::VmaEntry;
use crust_kernel::ids::PAGE_SIZE;
use crust_kernel::mman;
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// Bytes compared at a time.
const WINDOW: u64 = 256 << 10;

/// Part of a mapping that stands at its final address, with its content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Whose part it is.
    vma: VmaEntry,
    start: u64,
    end: u64,
    /// Its protection now; readable in any case.
    pub(super) prot: u32,
}

/// What stands already of a task's memory, in address order. A fork inherits it with the pages.
#[derive(Clone, Debug, Default)]
pub struct Held {
    pieces: Vec<Piece>,
    /// The task whose content it is.
    owner: Option<usize>,
    /// Bytes read from images.
    pub(super) bytes: u64,
}

impl Held {
    /// The task whose content this memory has, if there is any.
    pub fn owner(&self) -> Option<usize> {
        self.owner.filter(|_| !self.pieces.is_empty())
    }

    /// The piece that is all of this mapping.
    pub(super) fn whole(&self, vma: &VmaEntry) -> Option<&Piece> {
        let at = self.pieces.partition_point(|p| p.start < vma.start);
        self.pieces.get(at).filter(|p| p.start == vma.start && p.end == vma.end)
    }
}

/// True if a fork passes on such a mapping as it is, and its pages may be shared by copying on write.
fn is_passed_on(vma: &VmaEntry) -> bool {
    let special = st::VSYSCALL | st::VDSO | st::VVAR | st::GUARD | st::UPROBES;
    let odd = (libc::MAP_LOCKED | libc::MAP_HUGETLB) as u32 | MAP_DROPPABLE;
    let advice = 1u64 << libc::MADV_DONTFORK | 1 << libc::MADV_WIPEONFORK;
    vma.status & special == 0
        && vma.status & (st::ANON_PRIVATE | st::FILE_PRIVATE) != 0
        && vma.flags & odd == 0
        && vma.madv.unwrap_or(0) & advice == 0
        && vma.crust_flags.unwrap_or(0) & !SEALED == 0
}

/// True if the mapping `heir` may begin as what was inherited of `vma`: the same object at the same place. It may have
/// grown or lost parts since the fork, or have another protection.
fn continues(vma: &VmaEntry, heir: &VmaEntry) -> bool {
    let file =
        |v: &VmaEntry| (v.status & st::FILE_PRIVATE != 0).then(|| (v.shmid, v.fdflags, v.pgoff.wrapping_sub(v.start)));
    let sort = |v: &VmaEntry| (v.status & !st::HEAP, v.flags);
    is_passed_on(vma)
        && is_passed_on(heir)
        && (vma.start..vma.end).contains(&heir.start)
        && sort(vma) == sort(heir)
        && file(vma) == file(heir)
}

/// True if the images have content in `start..end`.
fn has_content(images: &Images, start: u64, end: u64) -> bool {
    let extents = &images.pages.extents;
    let next = extents.partition_point(|e| e.end <= start);
    extents.get(next).is_some_and(|e| e.start < end)
}

/// Marks those mappings of `parent` (by number) from which a child may take pages: both have content there.
pub fn mark_common(parent: &Images, child: &Images, marks: &mut Vec<bool>) {
    let (ours, theirs) = (&parent.mm.vmas, &child.mm.vmas);
    marks.resize(ours.len(), false);
    for heir in theirs.iter().filter(|v| is_passed_on(v)) {
        let at = ours.partition_point(|v| v.end <= heir.start);
        // Guards stand behind all mappings; the order ends there.
        let Some(vma) = ours.get(at) else { continue };
        if !marks[at] && continues(vma, heir) {
            let end = vma.end.min(heir.end);
            marks[at] = has_content(parent, heir.start, end) && has_content(child, heir.start, end);
        }
    }
}

/// Makes what was inherited this task's own: what it has no use for goes, what differs is changed. Then maps and fills those
/// mappings that its children will need (`marks`). `before`: images of the task that `held` is from.
///
/// # Errors
/// If images cannot be read, or memory not be mapped.
pub fn hold(
    held: &mut Held,
    (task, images): (usize, &Images),
    before: Option<&Images>,
    marks: &[bool],
    source: &Source,
    files: &mut dyn MapFiles,
    threads: usize,
) -> Result<()> {
    let inherited = std::mem::take(held);
    held.owner = Some(task);
    let content =
        if inherited.pieces.is_empty() && !marks.contains(&true) { Vec::new() } else { images.pages.open(source)? };
    if let Some(before) = before {
        held.adopt(inherited, before, images, &content)?;
    }
    held.add(images, marks, &content, files, threads)
}

fn on(start: u64, end: u64) -> Object {
    Object::Vma(rustix::process::getpid().as_raw_nonzero().get(), start, end)
}

impl Held {
    /// Lets all of it go.
    ///
    /// # Errors
    /// If memory cannot be unmapped.
    pub fn give_up(&mut self) -> Result<()> {
        for piece in std::mem::take(self).pieces {
            unmap(piece.start, piece.end)?;
        }
        Ok(())
    }

    fn adopt(&mut self, inherited: Held, before: &Images, images: &Images, content: &[OwnedFd]) -> Result<()> {
        let mut claims: Vec<(Piece, VmaEntry)> = Vec::new();
        for vma in images.mm.vmas.iter().filter(|v| is_passed_on(v)) {
            let at = inherited.pieces.partition_point(|p| p.end <= vma.start);
            let Some(piece) = inherited.pieces.get(at).filter(|p| p.start <= vma.start && continues(&p.vma, vma))
            else {
                continue;
            };
            claims.push((Piece { vma: *vma, start: vma.start, end: vma.end.min(piece.end), prot: piece.prot }, *vma));
        }
        let mut next = claims.iter().peekable();
        for piece in &inherited.pieces {
            let mut at = piece.start;
            while let Some((claim, _)) = next.next_if(|(c, _)| c.start < piece.end) {
                unmap(at, claim.start)?;
                at = claim.end;
            }
            unmap(at, piece.end)?;
        }
        let mut buffer = vec![0; WINDOW as usize];
        let mut had = Cursor::new(before);
        let mut has = Cursor::new(images);
        for (mut piece, vma) in claims {
            let found = piece.end;
            if piece.end < vma.end {
                // It has grown since.
                // SAFETY: the piece is inherited memory of the program; growing in place moves nothing and replaces nothing.
                let grown = unsafe { mman::grow(piece.start, piece.end - piece.start, vma.end - vma.start) };
                if grown.is_err() {
                    unmap(piece.start, piece.end)?;
                    continue;
                }
                piece.end = vma.end;
            }
            self.change(&piece, found, (&mut had, &mut has), images, content, &mut buffer)?;
            self.pieces.push(piece);
        }
        Ok(())
    }

    /// Gives a piece the content of `images`. Up to `found` it has that of another task's.
    fn change(
        &mut self,
        piece: &Piece,
        found: u64,
        (had, has): (&mut Cursor<'_>, &mut Cursor<'_>),
        images: &Images,
        content: &[OwnedFd],
        buffer: &mut [u8],
    ) -> Result<()> {
        let mut lid = Lid { piece, open: piece.prot & libc::PROT_WRITE as u32 != 0 };
        let mut at = piece.start;
        while at < piece.end {
            let (old, end_old) = if at < found { had.at(at, found) } else { (None, piece.end) };
            let (new, end_new) = has.at(at, piece.end);
            let end = end_old.min(end_new);
            match (old, new) {
                (None, None) => {}
                // SAFETY: pages of this piece, which the program's own code alone will use.
                (Some(_), None) => unsafe { mman::madvise(at, end - at, libc::MADV_DONTNEED) }
                    .during("dropping pages that were inherited")
                    .map_err(|e| e.on(on(piece.start, piece.end)))?,
                (old, Some((file, mut offset))) => {
                    let fd = content
                        .get(file as usize)
                        .ok_or_else(|| Error::new(Kind::Internal, "a pages image is not open"))?;
                    while at < end {
                        let len = (end - at).min(WINDOW);
                        let bytes = &mut buffer[..len as usize];
                        super::twin::read_whole(fd, file, offset, bytes, images)?;
                        put(at, bytes, old.is_some(), &mut lid)?;
                        self.bytes += len;
                        (at, offset) = (at + len, offset + len);
                    }
                }
            }
            at = end;
        }
        lid.shut()
    }

    /// Maps and fills what the children need and the task did not inherit, where the place is free.
    fn add(
        &mut self,
        images: &Images,
        marks: &[bool],
        content: &[OwnedFd],
        files: &mut dyn MapFiles,
        threads: usize,
    ) -> Result<()> {
        let missing = |(vma, mark): (&VmaEntry, &bool)| (*mark && self.whole(vma).is_none()).then_some(*vma);
        let wanted: Vec<VmaEntry> = images.mm.vmas.iter().zip(marks).filter_map(missing).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let busy = layout::busy(&layout::own()?);
        let huge_allowed = huge_pages_allowed() && images.mm.thp_disabled != Some(true);
        let mut filler = Filler::default();
        let mut has = Cursor::new(images);
        let mut opened: Option<((u64, Option<u32>), OwnedFd)> = None;
        for vma in wanted.into_iter().filter(|v| layout::is_free(&busy, v.start, v.end)) {
            let prot = vma.prot | (libc::PROT_READ | libc::PROT_WRITE) as u32;
            let kept = (libc::MAP_GROWSDOWN | libc::MAP_NORESERVE | libc::MAP_PRIVATE) as u32;
            let mut flags = vma.flags & kept | MAP_FIXED_NOREPLACE;
            let mut fd = None;
            let mut offset = 0;
            if vma.status & st::ANON_PRIVATE != 0 {
                flags |= libc::MAP_ANONYMOUS as u32;
            } else {
                let key = (vma.shmid, vma.fdflags);
                if opened.as_ref().is_none_or(|o| o.0 != key) {
                    opened = Some((key, files.open(&vma).map_err(|e| e.on(on(vma.start, vma.end)))?));
                }
                fd = opened.as_ref().map(|o| o.1.as_fd());
                offset = vma.pgoff;
            }
            let len = vma.end - vma.start;
            // SAFETY: FIXED_NOREPLACE takes only what is free.
            match unsafe { mman::mmap(vma.start, len, prot as i32, flags as i32, fd, offset) } {
                Ok(_) => {}
                // The stage finds it another place for a while.
                Err(Errno::EXIST) => continue,
                Err(e) => return Err(Error::kernel("mapping memory failed", e).on(on(vma.start, vma.end))),
            }
            let ground = Ground::of(&vma, huge_allowed);
            let mut at = vma.start;
            while at < vma.end {
                let (bytes, end) = has.at(at, vma.end);
                if let Some((file, offset)) = bytes {
                    filler.add(file, offset, at, end - at, ground);
                }
                at = end;
            }
            self.pieces.push(Piece { vma, start: vma.start, end: vma.end, prot });
        }
        self.bytes += filler.bytes();
        if filler.bytes() > 0 {
            filler.run(&images.pages, content, threads, &Watch::default())?;
        }
        // Here, where it is cheap: neighbours that differ in nothing else have become one mapping, and to divide it costs
        // each descendant more than the one before.
        for piece in self.pieces.iter_mut().filter(|p| p.prot != p.vma.prot && is_readable(p.vma.prot)) {
            protect(piece, piece.vma.prot)?;
            piece.prot = piece.vma.prot;
        }
        self.pieces.sort_unstable_by_key(|p| p.start);
        Ok(())
    }
}

/// Unmaps (part of) an inherited piece.
fn unmap(start: u64, end: u64) -> Result<()> {
    if start >= end {
        return Ok(());
    }
    // SAFETY: inherited from the task that forked this one, mapped for its own program; nothing of ours is there.
    unsafe { mman::munmap(start, end - start) }.during("unmapping what was inherited")
}

fn is_readable(prot: u32) -> bool {
    prot & libc::PROT_READ as u32 != 0
}

fn protect(piece: &Piece, prot: u32) -> Result<()> {
    // SAFETY: memory of the program to come, which nothing in this process uses but `Held`, by what it says in `prot`.
    unsafe { mman::mprotect(piece.start, piece.end - piece.start, prot as i32) }
        .during("setting the protection")
        .map_err(|e| e.on(on(piece.start, piece.end)))
}

/// Lets a piece be written to once there is something to write.
struct Lid<'a> {
    piece: &'a Piece,
    open: bool,
}

impl Lid<'_> {
    fn lift(&mut self) -> Result<()> {
        if !std::mem::replace(&mut self.open, true) {
            protect(self.piece, self.piece.prot | libc::PROT_WRITE as u32)?;
        }
        Ok(())
    }

    /// As it was.
    fn shut(self) -> Result<()> {
        let changed = self.open && self.piece.prot & libc::PROT_WRITE as u32 == 0;
        if changed { protect(self.piece, self.piece.prot) } else { Ok(()) }
    }
}

/// Puts `bytes` to `at`, page by page. Pages that are equal already stay untouched if there `may_be` any, and shared.
fn put(at: u64, bytes: &[u8], may_be: bool, lid: &mut Lid<'_>) -> Result<()> {
    for (i, page) in bytes.chunks(PAGE_SIZE as usize).enumerate() {
        let to = (at + i as u64 * PAGE_SIZE) as *mut u8;
        // SAFETY: `to` is a page of a piece, readable private memory of the program to come, which nothing in this process
        // refers to.
        if may_be && unsafe { std::slice::from_raw_parts(to, page.len()) } == page {
            continue;
        }
        lid.lift()?;
        // SAFETY: as above, and writable while the lid is open; `page` is our own buffer elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), to, page.len()) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::load::Extent;
    use super::*;

    fn vma(start: u64, end: u64) -> VmaEntry {
        VmaEntry {
            start,
            end,
            prot: 3,
            flags: (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32,
            status: st::REGULAR | st::ANON_PRIVATE,
            fd: -1,
            ..VmaEntry::default()
        }
    }

    fn images(vmas: &[VmaEntry], pages: &[(u64, u64)]) -> Images {
        let mm = crust_image::proto::MmEntry { vmas: vmas.to_vec(), ..Default::default() };
        let extents = pages.iter().map(|&(start, end)| Extent { start, end, file: 0, offset: start }).collect();
        Images { mm, pages: super::super::load::Pages::of_extents(extents) }
    }

    #[test]
    fn a_mapping_is_continued_by_what_it_became() {
        let parent = vma(0x10000, 0x20000);
        for (start, end, want) in [
            (0x10000, 0x20000, true),
            (0x10000, 0x80000, true),
            (0x18000, 0x1c000, true),
            (0xf000, 0x20000, false),
            (0x20000, 0x30000, false),
        ] {
            assert_eq!(continues(&parent, &vma(start, end)), want, "{start:#x}-{end:#x}");
        }
        let heap = VmaEntry { status: parent.status | st::HEAP, prot: 1, ..parent };
        assert!(continues(&parent, &heap));
        let locked = VmaEntry { flags: parent.flags | libc::MAP_LOCKED as u32, ..parent };
        let wiped = VmaEntry { madv: Some(1 << libc::MADV_WIPEONFORK), ..parent };
        let file =
            VmaEntry { status: st::REGULAR | st::FILE_PRIVATE, flags: libc::MAP_PRIVATE as u32, shmid: 3, ..parent };
        for other in [locked, wiped, file] {
            assert!(!continues(&parent, &other) && !continues(&other, &parent));
        }
        assert!(continues(&file, &VmaEntry { start: 0x11000, pgoff: 0x1000, ..file }));
        assert!(!continues(&file, &VmaEntry { start: 0x11000, pgoff: 0, ..file }));
        assert!(!continues(&file, &VmaEntry { shmid: 4, ..file }));
    }

    #[test]
    fn only_what_both_have_content_in_is_held() {
        let vmas = [vma(0x10000, 0x20000), vma(0x30000, 0x40000), vma(0x50000, 0x60000)];
        let parent = images(&vmas, &[(0x10000, 0x11000), (0x5f000, 0x60000)]);
        let child = images(&vmas, &[(0x18000, 0x19000), (0x30000, 0x31000)]);
        let mut marks = Vec::new();
        mark_common(&parent, &child, &mut marks);
        assert_eq!(marks, [true, false, false]);
        mark_common(&parent, &images(&vmas[2..], &[(0x50000, 0x51000)]), &mut marks);
        assert_eq!(marks, [true, false, true]);
    }
}

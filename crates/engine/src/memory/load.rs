//! The memory images of one process, or of one shared segment: records checked, and where the bytes of each page lie.
use super::{hugetlb, page_flags as pf, status as st};
use crate::Result;
use crate::error::{Error, Kind, Object, ResultExt};
use crate::images::Source;
use crust_image::proto::{MmEntry, PagemapEntry, PagemapHead, VmaEntry};
use crust_image::{ImageKind, Reader};
use crust_kernel::ids::PAGE_SIZE;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// Neighbouring pages with their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Address in the process, or offset in the segment.
    pub(super) start: u64,
    pub(super) end: u64,
    /// Index into [`Pages::files`].
    pub(super) file: u32,
    /// Where the bytes begin in it.
    pub(super) offset: u64,
}

/// A pages image: how many parents up, and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PagesFile {
    level: usize,
    name: String,
}

/// Where the pages of a process or segment are, parents included.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    pub(super) extents: Vec<Extent>,
    files: Vec<PagesFile>,
}

/// Parents beyond this are a loop.
const MAX_LEVELS: usize = 4096;

impl Pages {
    /// Reads the pagemap `kind`/`id` and, where it refers to them, those of the parents. No image: no pages.
    ///
    /// # Errors
    /// [`Kind::BadImage`] if records are out of order, pages are missing or a parent does not have what it should.
    pub fn read(source: &Source, kind: ImageKind, id: u64) -> Result<Self> {
        let mut levels = vec![Level::read(source, kind, id)?];
        let mut parents: Vec<Source> = Vec::new();
        while levels.last().is_some_and(|l| l.needs_parent) {
            if levels.len() == MAX_LEVELS {
                return Err(Error::bad_image("parent", "the chain of parents has no end"));
            }
            let parent = parents.last().unwrap_or(source).parent()?.ok_or_else(|| {
                Error::bad_image(kind.file_name(id), "pages are in a parent checkpoint, and there is no parent link")
                    .help("put the parent images next to these, with the link `parent`")
            })?;
            levels.push(Level::read(&parent, kind, id)?);
            parents.push(parent);
        }
        // From the oldest to the newest: each level replaces its references by what the older ones give.
        let mut merged = Pages::default();
        for (number, level) in levels.into_iter().enumerate().rev() {
            merged = level.over(merged, number, &kind.file_name(id))?;
        }
        Ok(merged)
    }

    #[cfg(test)]
    pub(super) fn of_extents(extents: Vec<Extent>) -> Self {
        Self { extents, files: Vec::new() }
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> u64 {
        self.extents.iter().map(|e| e.end - e.start).sum()
    }

    /// True if all bytes lie in one file of the image directory itself, none in a parent's.
    pub(super) fn here(&self) -> bool {
        self.files.len() <= 1 && self.files.iter().all(|f| f.level == 0)
    }

    /// Every range with where its bytes are: start, end, how many parents up, offset in the pages image there.
    pub fn places(&self) -> Vec<(u64, u64, usize, u64)> {
        let level = |e: &Extent| self.files.get(e.file as usize).map_or(0, |f| f.level);
        self.extents.iter().map(|e| (e.start, e.end, level(e), e.offset)).collect()
    }

    /// Opens the pages images.
    pub(super) fn open(&self, source: &Source) -> Result<Vec<OwnedFd>> {
        let mut parents: Vec<Source> = Vec::new();
        let mut open = Vec::with_capacity(self.files.len());
        for file in &self.files {
            while parents.len() < file.level {
                let next = parents.last().unwrap_or(source).parent()?;
                parents.push(next.ok_or_else(|| Error::bad_image("parent", "the parent images are gone"))?);
            }
            let at = if file.level == 0 { source } else { &parents[file.level - 1] };
            let fd = at.open_file(&file.name)?;
            open.push(fd.ok_or_else(|| Error::bad_image(&file.name, "the image is missing"))?);
        }
        Ok(open)
    }

    /// Copies bytes out; what is in no image reads as zeros.
    pub(super) fn read_bytes(&self, source: &Source, at: u64, into: &mut [u8]) -> Result<()> {
        into.fill(0);
        let end = at + into.len() as u64;
        let files = self.open(source)?.into_iter().map(File::from).collect::<Vec<_>>();
        for e in self.extents.iter().filter(|e| e.start < end && e.end > at) {
            let from = e.start.max(at);
            let to = e.end.min(end);
            let part = &mut into[(from - at) as usize..(to - at) as usize];
            files[e.file as usize]
                .read_exact_at(part, e.offset + (from - e.start))
                .during("reading the pages image")
                .map_err(|e2| e2.on(Object::Image(self.files[e.file as usize].name.clone())))?;
        }
        Ok(())
    }

    /// Name of a pages image, for errors.
    pub(super) fn file_name(&self, file: u32) -> &str {
        self.files.get(file as usize).map_or("pages", |f| &f.name)
    }
}

/// One pagemap as read.
struct Level {
    entries: Vec<(u64, u64, bool)>,
    pages: Option<String>,
    needs_parent: bool,
}

impl Level {
    fn read(source: &Source, kind: ImageKind, id: u64) -> Result<Self> {
        let name = kind.file_name(id);
        let Some(bytes) = source.read(&name)? else {
            return Ok(Self { entries: Vec::new(), pages: None, needs_parent: false });
        };
        let mut reader = Reader::open_named(&name, &bytes, kind)?;
        let head: PagemapHead = reader.expect()?;
        let pages = ImageKind::Pages.file_name(u64::from(head.pages_id));
        let mut level = Self { entries: Vec::new(), pages: None, needs_parent: false };
        let mut last = 0;
        let mut total = 0u64;
        while let Some(e) = reader.next::<PagemapEntry>()? {
            let flags = e.flags.unwrap_or(if e.in_parent == Some(true) { pf::PARENT } else { pf::PRESENT });
            let count = e.nr_pages.unwrap_or(u64::from(e.compat_nr_pages));
            let end = count.checked_mul(PAGE_SIZE).and_then(|len| e.vaddr.checked_add(len));
            let Some(end) = end.filter(|_| e.vaddr % PAGE_SIZE == 0 && e.vaddr >= last) else {
                return Err(Error::bad_image(&name, format!("the entry for {:#x} is out of order", e.vaddr)));
            };
            last = end;
            let in_parent = flags & pf::PARENT != 0;
            if !in_parent && flags & pf::PRESENT == 0 {
                if flags & pf::LAZY != 0 {
                    return Err(Error::bad_image(
                        &name,
                        format!("the pages at {:#x} were left with a page server", e.vaddr),
                    )
                    .help("restore with --lazy-pages and the page server running"));
                }
                continue;
            }
            if e.vaddr == end {
                continue;
            }
            level.needs_parent |= in_parent;
            total += if in_parent { 0 } else { end - e.vaddr };
            level.entries.push((e.vaddr, end, in_parent));
        }
        if total > 0 {
            let size = source.file_len(&pages)?.ok_or_else(|| Error::bad_image(&pages, "the image is missing"))?;
            if size < total {
                return Err(Error::bad_image(&pages, format!("it has {size} bytes, and {name} lists {total}"))
                    .help("copy the whole image directory again, or repeat the dump"));
            }
            level.pages = Some(pages);
        }
        Ok(level)
    }

    fn over(self, older: Pages, number: usize, name: &str) -> Result<Pages> {
        let mut merged = Pages { extents: Vec::with_capacity(self.entries.len()), files: older.files };
        let own = merged.files.len() as u32;
        if let Some(pages) = self.pages {
            merged.files.push(PagesFile { level: number, name: pages });
        }
        let mut offset = 0;
        let mut next = 0;
        for (start, end, in_parent) in self.entries {
            if !in_parent {
                merged.push(Extent { start, end, file: own, offset });
                offset += end - start;
                continue;
            }
            while older.extents.get(next).is_some_and(|e| e.end <= start) {
                next += 1;
            }
            let mut at = start;
            for e in older.extents[next..].iter().take_while(|e| e.start < end) {
                if e.start > at {
                    break;
                }
                let to = e.end.min(end);
                merged.push(Extent { start: at, end: to, file: e.file, offset: e.offset + (at - e.start) });
                at = to;
            }
            if at < end {
                return Err(Error::bad_image(name, format!("the page at {at:#x} should be in the parent, and is not"))
                    .help("the parent link leads to another checkpoint than the one this was made on"));
            }
        }
        Ok(merged)
    }
}

impl Pages {
    fn push(&mut self, extent: Extent) {
        match self.extents.last_mut() {
            Some(last)
                if last.end == extent.start
                    && last.file == extent.file
                    && last.offset + (last.end - last.start) == extent.offset =>
            {
                last.end = extent.end;
            }
            _ => self.extents.push(extent),
        }
    }
}

/// The memory of one process as the images have it, checked: what it says can be built.
#[derive(Clone, Debug)]
pub struct Images {
    /// The mm's own fields and all mappings, guards among them.
    pub mm: MmEntry,
    /// Where the content of private memory is.
    pub pages: Pages,
}

impl Images {
    /// Reads mm-PID.img and pagemap-PID.img.
    ///
    /// # Errors
    /// [`Kind::BadImage`] for records that cannot be; [`Kind::Unsupported`] names mappings that this version cannot build.
    pub fn read(source: &Source, pid: u64) -> Result<Self> {
        let mut mm: MmEntry = source.read_one(ImageKind::Mm, pid)?;
        // Before CRIU 2.0 mappings had an image of their own.
        if mm.vmas.is_empty() {
            mm.vmas = source.read_all(ImageKind::Vmas, pid)?;
        }
        let name = ImageKind::Mm.file_name(pid);
        let mut last = 0;
        let mut refused = Vec::new();
        for vma in &mm.vmas {
            let bad = vma.start >= vma.end || vma.start % PAGE_SIZE != 0 || vma.end % PAGE_SIZE != 0;
            let guard = vma.status & st::GUARD != 0;
            if bad || (!guard && vma.start < last) {
                return Err(Error::bad_image(name, format!("the mapping {:#x}-{:#x} cannot be", vma.start, vma.end)));
            }
            if !guard {
                last = vma.end;
            }
            if let Err(e) = check(vma)
                && refused.len() < 16
            {
                refused.push(e.on(Object::Vma(pid as i32, vma.start, vma.end)));
            }
        }
        if let Some(error) = Error::all(refused) {
            return Err(error);
        }
        if mm.mm_saved_auxv.len() > 128 {
            return Err(Error::bad_image(name, "the auxiliary vector is longer than any kernel's"));
        }
        Ok(Self { pages: Pages::read(source, ImageKind::Pagemap, pid)?, mm })
    }

    /// Ranges that the process occupies, for whoever looks for a hole: sorted and merged.
    pub fn occupied(&self) -> Vec<(u64, u64)> {
        let ranges = self.mm.vmas.iter().filter(|v| v.end <= super::TASK_SIZE).map(|v| (v.start, v.end));
        super::layout::merged(ranges)
    }
}

/// True for a mapping that shows a file of files.img; its id stands in `shmid`.
pub fn needs_file(vma: &VmaEntry) -> bool {
    vma.status & (st::FILE_PRIVATE | st::FILE_SHARED) != 0
}

fn check(vma: &VmaEntry) -> Result<()> {
    let unsupported = |what: &str| {
        Err(Error::unsupported(format!("{what} cannot be restored yet"), "restore these images with CRIU"))
    };
    if vma.status & st::VSYSCALL != 0 {
        return Ok(());
    }
    if vma.end > super::TASK_SIZE {
        return Err(Error::new(Kind::BadImage, "the mapping lies outside of user space"));
    }
    for (bit, what) in [
        (st::SOCKET, "a packet socket's ring"),
        (st::SHADOW_STACK, "a shadow stack"),
        (st::PLUGIN, "device memory that a CRIU plugin saved"),
    ] {
        if vma.status & bit != 0 {
            return unsupported(what);
        }
    }
    if hugetlb::is(vma) && vma.status & st::SYSVIPC != 0 {
        return unsupported("a System V segment of huge pages");
    }
    if let Some(grain) = hugetlb::grain(vma)
        && (!vma.start.is_multiple_of(grain) || !vma.end.is_multiple_of(grain))
    {
        return Err(Error::new(Kind::BadImage, "the mapping lies across huge pages"));
    }
    Ok(())
}

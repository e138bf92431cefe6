//! Anonymous shared memory: one segment for all the processes that map it. Dump writes each once; restore makes each once,
//! before the first fork, and every task takes its windows from the inherited mapping.
#![allow(unsafe_code, reason = "windows of inherited mappings are placed by address")]
use super::collect::Mm;
use super::dump::{self, PagesDump};
use super::fill::{Filler, Ground};
use super::hugetlb;
use super::load::{Images, Pages};
use super::status as st;
use super::sysv;
use crate::error::{Error, Kind, ResultExt};
use crate::images::{Outlet, Partial, Source};
use crate::task::Target;
use crate::{Object, OnObject, Result, Watch};
use crust_image::ImageKind;
use crust_image::proto::{IpcShmEntry, VmaEntry};
use crust_kernel::ids::PAGE_SIZE;
use crust_kernel::mman::{self, Area};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The anonymous shared segments of a tree, gathered process by process.
#[derive(Debug, Default)]
pub struct SharedMemory {
    segments: BTreeMap<u64, Segment>,
    sysv: sysv::Attached,
}

#[derive(Debug)]
struct Segment {
    /// Bytes, as far as anybody maps it.
    len: u64,
    /// Bytes of all of it, as far as known: a mapping can grow again over what nobody maps now.
    whole: u64,
    /// The segment itself, from /proc/PID/map_files, where we may open that.
    file: Option<OwnedFd>,
    /// Windows of some process, for reading without the file: start, end, offset.
    mem: Option<OwnedFd>,
    windows: Vec<(u64, u64, u64)>,
    pid: i32,
    /// A System V segment: those have numbers of their own.
    is_sysv: bool,
    /// Size of its pages, as bits of mmap(2)'s flags: those of hugetlbfs have numbers of their own, too.
    huge: u32,
}

impl SharedMemory {
    /// Notes the segments that `t` maps. Descriptors are kept, so the process may be gone when they are written.
    ///
    /// # Errors
    /// If neither the segment nor the process's memory can be opened.
    pub fn collect(&mut self, t: &Target<'_>, mm: &Mm) -> Result<()> {
        self.note_sysv(t, mm);
        for vma in mm.vmas.iter().filter(|v| v.is(st::ANON_SHARED)) {
            let (is_sysv, huge) = (vma.is(st::SYSVIPC), hugetlb::bits(&vma.entry));
            let e = &vma.entry;
            let len = e.pgoff + (e.end - e.start);
            let pid = t.pid.as_raw();
            let segment = match self.segments.entry(e.shmid) {
                std::collections::btree_map::Entry::Occupied(o) => o.into_mut(),
                std::collections::btree_map::Entry::Vacant(v) => {
                    let name = format!("map_files/{:x}-{:x}", e.start, e.end);
                    let (file, mem) = match t.proc.open_file(&name) {
                        Ok(file) => (Some(file), None),
                        Err(_) => {
                            (None, Some(t.proc.open_file("mem").during("opening the task's memory").on_task(pid)?))
                        }
                    };
                    if file.is_none() && huge != 0 {
                        return Err(Error::unsupported(
                            "shared huge pages cannot be read by us without changing them",
                            "dump as root, or with CAP_CHECKPOINT_RESTORE",
                        )
                        .on(Object::Vma(pid, e.start, e.end)));
                    }
                    let stat = file.as_ref().map(rustix::fs::fstat).transpose();
                    let stat = stat.during("asking for the length of shared memory")?;
                    let whole = stat.map_or(0, |s| s.st_size as u64);
                    v.insert(Segment { len: 0, whole, file, mem, windows: Vec::new(), pid, is_sysv, huge })
                }
            };
            if (segment.is_sysv, segment.huge) != (is_sysv, huge) {
                return Err(Error::unsupported(
                    format!("shared segments of different kinds both have the number {}", e.shmid),
                    "start the program again: the numbers differ then",
                ));
            }
            segment.len = segment.len.max(len);
            if segment.pid == pid {
                segment.windows.push((e.start, e.end, e.pgoff));
            }
        }
        Ok(())
    }

    /// Leaves an anonymous segment out: its content is written with the file that leads to it.
    pub fn forget(&mut self, segment: u64) {
        self.segments.remove(&segment);
    }

    /// Notes the System V segments that `t` has attached.
    pub fn note_sysv(&mut self, t: &Target<'_>, mm: &Mm) {
        self.sysv.note(t.pid.as_raw(), mm);
    }

    /// System V segments that cannot be saved, one error each. Asked when all processes were looked at.
    pub fn check_sysv(&self) -> Vec<Error> {
        self.sysv.look().1
    }

    /// Writes the records of System V segments, if there are any.
    ///
    /// # Errors
    /// If the image directory cannot be written.
    pub fn write_sysv(&mut self, out: &Partial) -> Result<()> {
        let (records, errors) = self.sysv.look();
        if let Some(e) = Error::all(errors) {
            return Err(e);
        }
        // What nobody maps is content too, and its file ends where the program said, not at a page's end.
        for r in &records {
            if let Some(segment) = self.segments.get_mut(&u64::from(r.desc.id)).filter(|s| s.file.is_some()) {
                (segment.len, segment.whole) = (r.size, r.size);
            }
        }
        if records.is_empty() { Ok(()) } else { out.put_all(ImageKind::IpcnsShm, sysv::HOST_IPC, &records) }
    }

    /// Segments that nobody maps to the end, and their lengths in bytes.
    pub fn longer_than_mapped(&self) -> impl Iterator<Item = (u64, u64)> {
        self.segments.iter().filter(|(_, s)| s.whole > s.len).map(|(&id, s)| (id, s.whole))
    }

    /// Ids of all segments: the number in `pagemap-shmem-ID.img`.
    pub fn ids(&self) -> Vec<u64> {
        self.segments.keys().copied().collect()
    }

    /// Writes the content of a segment into `out`, an empty file open for reading and writing.
    ///
    /// # Errors
    /// As [`super::dump_pages`].
    pub fn dump(&self, id: u64, out: &mut Outlet) -> Result<PagesDump> {
        let segment =
            self.segments.get(&id).ok_or_else(|| Error::new(Kind::Internal, format!("no shared segment {id}")))?;
        let (file, mem, len) = (segment.file.as_ref(), segment.mem.as_ref(), segment.whole.max(segment.len));
        let mut dump = dump::copy_segment(file, mem, &segment.windows, len, segment.pid, out)?;
        // CRIU's segment ends there, and it takes no run of pages that goes on.
        dump.split_at(segment.len.next_multiple_of(PAGE_SIZE));
        Ok(dump)
    }
}

/// The data of a file, hole by hole: nothing is allocated by looking.
pub(super) fn data_ranges(file: BorrowedFd<'_>, len: u64) -> rustix::io::Result<Vec<(u64, u64)>> {
    use rustix::fs::SeekFrom;
    let mut found = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start / PAGE_SIZE * PAGE_SIZE,
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.next_multiple_of(PAGE_SIZE).min(len);
        if start >= end {
            break;
        }
        found.push((start, end));
        at = end;
    }
    Ok(found)
}

/// The anonymous shared segments of a tree, made in the coordinator and inherited by every task.
#[derive(Debug, Default)]
pub struct Segments {
    by_id: BTreeMap<u64, (u64, u64)>,
    /// Of segments of huge pages also the file: those mappings cannot be doubled.
    huge: BTreeMap<u64, OwnedFd>,
    /// System V segments to be removed again, and the process that made them.
    undo: Vec<i32>,
    maker: u32,
}

impl Segments {
    /// The tree is complete: what was made stays, and this process needs its windows no more.
    pub fn keep(mut self) {
        self.undo.clear();
        for (base, len) in std::mem::take(&mut self.by_id).into_values() {
            // SAFETY: mapped by `create`, and nothing of this process refers to it.
            if let Err(e) = unsafe { mman::munmap(base, len) } {
                log::warn!("shared memory of the restored tree stays mapped here: {e}");
            }
        }
    }
}

impl Drop for Segments {
    fn drop(&mut self) {
        // Tasks of the tree are copies of the process that made them.
        if self.maker != std::process::id() {
            return;
        }
        for id in &self.undo {
            if let Err(e) = crust_kernel::sysv::shm_remove(*id) {
                log::warn!("System V shared memory segment {id} stays: {e}");
            }
        }
    }
}

impl Segments {
    /// Makes and fills every segment that the tree's images name. To be called before the first fork, once.
    ///
    /// # Errors
    /// If memory or images are missing.
    pub fn create<'a>(source: &Source, tree: impl IntoIterator<Item = &'a Images>, watch: &Watch) -> Result<Self> {
        let mut made = Self::default();
        made.maker = std::process::id();
        let mut lengths: BTreeMap<u64, (u64, bool, VmaEntry)> = BTreeMap::new();
        let mut attached = BTreeSet::new();
        for vma in tree.into_iter().flat_map(|i| &i.mm.vmas) {
            if vma.status & st::ANON_SHARED != 0 {
                let len = vma
                    .pgoff
                    .checked_add(vma.end - vma.start)
                    .filter(|&len| len <= super::TASK_SIZE)
                    .ok_or_else(|| Error::new(Kind::BadImage, "a shared mapping has an impossible offset"))?;
                let len = len.max(vma.crust_segment_bytes());
                if len > super::TASK_SIZE {
                    return Err(Error::new(Kind::BadImage, "a shared segment is impossibly long"));
                }
                let reserve = vma.flags & libc::MAP_NORESERVE as u32 == 0;
                if vma.status & st::SYSVIPC != 0 {
                    attached.insert(vma.shmid);
                    continue;
                }
                let known = lengths.entry(vma.shmid).or_insert((len, reserve, *vma));
                *known = (len.max(known.0), reserve && known.1, known.2);
            }
        }
        made.attach(source, &attached, watch)?;
        for (id, (len, reserve, vma)) in lengths {
            let pages = Pages::read(source, ImageKind::ShmemPagemap, id)?;
            let area = match hugetlb::bits(&vma) {
                0 => Area::shared_anonymous(len, reserve).during("mapping shared memory")?,
                size => {
                    let area = Area::shared_hugetlb(len, size, reserve).map_err(|e| hugetlb::no_room(e, &vma))?;
                    made.huge.insert(id, file_behind(&area)?);
                    area
                }
            };
            fill_area(source, &pages, &area, &ImageKind::ShmemPagemap.file_name(id), watch)?;
            made.by_id.insert(id, area.leak());
        }
        Ok(made)
    }

    /// The System V segments, each attached once here.
    fn attach(&mut self, source: &Source, attached: &BTreeSet<u64>, watch: &Watch) -> Result<()> {
        if attached.is_empty() {
            return Ok(());
        }
        let records: Vec<IpcShmEntry> = source.read_all(ImageKind::IpcnsShm, sysv::HOST_IPC)?;
        for id in attached {
            let missing = || Error::bad_image("ipcns-shm-3.img", format!("System V segment {id} is missing"));
            let record = records.iter().find(|r| u64::from(r.desc.id) == *id).ok_or_else(missing)?;
            let pages = Pages::read(source, ImageKind::ShmemPagemap, *id)?;
            let segment = sysv::open(record)?;
            self.undo.extend(segment.undo);
            self.by_id.insert(*id, (segment.base, segment.len));
            let name = ImageKind::ShmemPagemap.file_name(*id);
            fill_mapped(source, &pages, segment.base, segment.len, &name, watch)?;
        }
        Ok(())
    }

    /// Puts a window of the segment at `at`.
    pub(super) fn place(&self, vma: &VmaEntry, at: u64) -> Result<()> {
        let (base, len) = self
            .by_id
            .get(&vma.shmid)
            .copied()
            .ok_or_else(|| Error::new(Kind::BadImage, format!("no shared segment {}", vma.shmid)))?;
        let window = vma.end - vma.start;
        if vma.pgoff + window > len {
            return Err(Error::new(Kind::Internal, "a window reaches beyond its segment"));
        }
        if let Some(file) = self.huge.get(&vma.shmid) {
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let noreserve = vma.flags as i32 & libc::MAP_NORESERVE;
            let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE | noreserve;
            // SAFETY: FIXED_NOREPLACE takes only what is free.
            return unsafe { mman::mmap(at, window, prot, flags, Some(file.as_fd()), vma.pgoff) }
                .map(drop)
                .during("placing shared huge pages");
        }
        // Reserve first: mremap would replace whatever stands there.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: FIXED_NOREPLACE takes only what is free.
        unsafe { mman::mmap(at, window, libc::PROT_NONE, flags, None, 0) }.during("reserving addresses")?;
        // SAFETY: length 0 duplicates the shared mapping at `base`, made by `create` and never unmapped; the reservation
        // at `at` was made just now and holds nothing.
        unsafe { mman::mremap(base + vma.pgoff, 0, window, at) }.during("placing shared memory")
    }
}

/// The nameless file that a shared anonymous mapping shows.
fn file_behind(area: &Area) -> Result<OwnedFd> {
    let (start, end) = (area.start(), area.start() + area.len_bytes());
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/self/map_files/{start:x}-{end:x}"), flags, rustix::fs::Mode::empty())
        .during("opening shared huge pages")
        .map_err(|e| e.help("restore as root, or with CAP_CHECKPOINT_RESTORE"))
}

/// Fills a shared mapping from images, and lets go of the pages (the segment keeps them).
pub(super) fn fill_area(source: &Source, pages: &Pages, area: &Area, name: &str, watch: &Watch) -> Result<()> {
    if fill_mapped(source, pages, area.start(), area.len_bytes(), name, watch)? {
        area.advise(0, area.len_bytes(), libc::MADV_DONTNEED).during("letting go of filled memory")?;
    }
    Ok(())
}

/// Fills shared memory mapped at `base`; true if there was anything to fill.
fn fill_mapped(source: &Source, pages: &Pages, base: u64, len: u64, name: &str, watch: &Watch) -> Result<bool> {
    let mut filler = Filler::default();
    for e in &pages.extents {
        if e.end > len.next_multiple_of(PAGE_SIZE) {
            return Err(Error::bad_image(name, format!("it has content at {:#x}, beyond the segment", e.start)));
        }
        filler.add(e.file, e.offset, base + e.start, e.end - e.start, Ground::Any);
    }
    if filler.bytes() == 0 {
        return Ok(false);
    }
    filler.run(pages, &pages.open(source)?, 0, watch)?;
    Ok(true)
}

/// Writes the data of a file (a memfd, a deleted file on tmpfs) as a segment of `len` bytes.
///
/// # Errors
/// As [`super::dump_pages`].
pub fn dump_file(file: BorrowedFd<'_>, len: u64, out: &mut Outlet) -> Result<PagesDump> {
    dump::copy_file(file, len, out)
}

/// Fills a file from the pagemap `kind`/`id`: the counterpart of [`dump_file`].
///
/// # Errors
/// If images or room are missing.
pub fn fill_file(source: &Source, kind: ImageKind, id: u64, file: BorrowedFd<'_>, len: u64) -> Result<()> {
    let pages = Pages::read(source, kind, id)?;
    if pages.bytes() == 0 || len == 0 {
        return Ok(());
    }
    // Allocated first: a full file system is an error here and would be a signal below.
    for e in &pages.extents {
        let end = e.end.min(len);
        if e.start < end {
            let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(file, flags, e.start, end - e.start) {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(err) => return Err(Error::kernel("allocating a file's content failed", err)),
            }
        }
    }
    let area = Area::file(file.as_fd(), 0, len, true).during("mapping a file to fill it")?;
    fill_area(source, &pages, &area, &kind.file_name(id), &Watch::default())
}

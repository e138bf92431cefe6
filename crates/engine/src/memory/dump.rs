//! The content of memory into pages-*.img: read from outside, in order, without ever holding more than a few MiB.
//!
//! Where the image lies on tmpfs, what costs most is the page-wise allocation of its pages: there each 2 MiB of the file are
//! made one huge page (MADV_COLLAPSE) and the target's memory is read straight into a mapping of it, as long as huge pages
//! come cheap (`huge.rs`). Elsewhere a buffer and large writes, into a preallocated file on disks. Chunks may be read by two
//! threads at once; a chunk's place in the file is settled in order, because pages of zeros are left out and shift what
//! follows. Pages are hashed while they are in the processor's cache: to read the file again would cost five times as much.
#![allow(unsafe_code, reason = "chunks are read straight into a mapping of the image, shared by two workers")]
use super::collect::Mm;
use super::huge::Price;
use super::page_flags as pf;
use super::pages::{How, Run};
use crate::error::{Error, Kind, Object, ResultExt};
use crate::images::Outlet;
use crate::{OnObject, Result, Watch, together};
use crust_image::manifest::{ContentHash, PageHash, PageSum};
use crust_image::proto::PagemapEntry;
use crust_kernel::HostTid;
use crust_kernel::ids::PAGE_SIZE;
use crust_kernel::mman::{self, Area, HUGE_PAGE};
use crust_kernel::procfs::ProcDir;
use rustix::io::Errno;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What [`dump_pages`] wrote.
#[derive(Debug, Default)]
pub struct PagesDump {
    /// The pagemap's records behind its head, in order.
    pub entries: Vec<PagemapEntry>,
    /// Pages in the pages image.
    pub written: u64,
    /// Pages found present.
    pub scanned: u64,
    /// Present pages that held only zeros.
    pub zero: u64,
    /// Of the pages image; `None` for a stream, which hashes what it takes.
    pub hash: Option<ContentHash>,
}

/// Pages of several dumps together.
#[derive(Debug, Clone, Copy, Default)]
pub struct PageCount {
    /// Pages found present.
    pub scanned: u64,
    /// Pages written to pages images.
    pub written: u64,
}

impl PageCount {
    /// Adds those of one dump.
    pub fn add(&mut self, pages: &PagesDump) {
        *self += Self { scanned: pages.scanned, written: pages.written };
    }
}

impl std::ops::AddAssign for PageCount {
    fn add_assign(&mut self, other: Self) {
        self.scanned += other.scanned;
        self.written += other.written;
    }
}

impl PagesDump {
    /// No run of pages goes on over `at`.
    pub(super) fn split_at(&mut self, at: u64) {
        let end = |e: &PagemapEntry| e.vaddr + e.nr_pages() * PAGE_SIZE;
        let Some(i) = self.entries.iter().position(|e| e.vaddr < at && at < end(e)) else { return };
        let Some(first) = self.entries.get_mut(i) else { return };
        let pages = (at - first.vaddr) / PAGE_SIZE;
        let mut rest = *first;
        (rest.vaddr, rest.nr_pages) = (at, Some(first.nr_pages() - pages));
        rest.compat_nr_pages = rest.nr_pages() as u32;
        (first.nr_pages, first.compat_nr_pages) = (Some(pages), pages as u32);
        self.entries.insert(i + 1, rest);
    }

    /// The pagemap image for these pages; `pages_id` is the number in the pages image's name.
    ///
    /// # Errors
    /// Never for pages of one address space.
    pub fn pagemap(&self, kind: crust_image::ImageKind, pages_id: u32) -> Result<Vec<u8>> {
        let mut out = crust_image::Writer::new(Vec::with_capacity(64 + 24 * self.entries.len()), kind)?;
        out.entry(&crust_image::proto::PagemapHead { pages_id })?;
        for entry in &self.entries {
            out.entry(entry)?;
        }
        Ok(out.into_inner())
    }
}

/// Writes the content of the private memory of a task into `out`, an empty file open for reading and writing, or a stream.
///
/// # Errors
/// A mapping that cannot be read is named; `NoSpace` if the file system is full.
pub fn dump_pages(proc: &ProcDir, mm: &Mm, out: &mut Outlet) -> Result<PagesDump> {
    dump_pages_into(proc, mm, out, Ahead::default())
}

/// As [`dump_pages`] into a file that room was made in before.
///
/// # Errors
/// As [`dump_pages`].
pub fn dump_pages_into(proc: &ProcDir, mm: &Mm, out: &mut Outlet, ahead: Ahead) -> Result<PagesDump> {
    let mem = proc.open_file("mem").during("opening the task's memory").on_task(proc.id().as_raw())?;
    let source = Remote { pid: proc.id(), mem };
    let mut dump = copy(&source, &mm.runs, out, ahead)?;
    dump.scanned = mm.scanned;
    Ok(dump)
}

/// Room made in a pages image while nobody knows yet what will come: huge pages, which cost more than the copying into them.
#[derive(Debug, Default)]
pub struct Ahead {
    window: Option<Window>,
    /// Huge pages that stand ready, and how many are wanted.
    extents: u64,
    wanted: u64,
    price: Price,
}

impl Ahead {
    /// Begins for content of about so many bytes; `None` where that does not pay or not work.
    pub fn begin(out: &mut Outlet, about: u64) -> Option<Self> {
        let out = out.file().filter(|_| about >= SMALL)?;
        let room = rustix::fs::fstatvfs(out).ok()?;
        // Never what others might lack.
        if room.f_blocks > 0 && room.f_bavail.saturating_mul(room.f_frsize) / 2 < about {
            return None;
        }
        let mut price = Price::default();
        let window = Window::open(out, about, &mut price)?;
        Some(Self { window: Some(window), extents: 1, wanted: about / HUGE_PAGE, price })
    }

    /// Makes one more huge page ready; false if there is nothing left to do.
    pub fn step(&mut self, out: &mut Outlet) -> bool {
        let (Some(out), Some(window)) = (out.file(), &self.window) else { return false };
        let ready = self.extents < self.wanted
            && !self.price.is_too_high()
            && self.price.pay(|| window.prepare(out, self.extents)).is_ok()
            && window.area.advise(self.extents * HUGE_PAGE, HUGE_PAGE, libc::MADV_DONTNEED).is_ok();
        if ready {
            self.extents += 1;
        } else {
            self.window = None;
        }
        ready
    }
}

/// Where a copy's bytes come from.
trait Source: Sync {
    /// Fills `into` with the ranges, one after the other; all have the same [`How`].
    fn read(&self, ranges: &[(u64, u64)], how: How, into: &mut [u8]) -> Result<()>;
}

struct Remote {
    pid: HostTid,
    mem: OwnedFd,
}

impl Source for Remote {
    fn read(&self, ranges: &[(u64, u64)], how: How, into: &mut [u8]) -> Result<()> {
        let mut done = 0;
        if !how.by_mem {
            done = match mman::process_vm_readv(self.pid, ranges, into) {
                Ok(n) => n,
                Err(Errno::FAULT) => 0,
                Err(e) => return Err(Error::kernel("reading memory failed", e)).on_task(self.pid.as_raw()),
            };
            if done == into.len() as u64 {
                return Ok(());
            }
        }
        // /proc/PID/mem reads where process_vm_readv may not, and its refusal names the place.
        let mut at = 0;
        for &(start, len) in ranges {
            let skip = done.saturating_sub(at).min(len);
            if skip < len {
                let part = &mut into[(at + skip) as usize..(at + len) as usize];
                mman::read_mem(self.mem.as_fd(), start + skip, part).map_err(|e| {
                    let object = Object::Vma(self.pid.as_raw(), start, start + len);
                    match e {
                        Errno::IO | Errno::FAULT => Error::kernel("its memory cannot be read", e).on(object).help(
                            "the page is poisoned or a guard page this kernel does not tell (Linux 6.13 and 6.14 do not)",
                        ),
                        _ => Error::kernel("reading memory failed", e).on(object),
                    }
                })?;
            }
            at += len;
        }
        Ok(())
    }
}

/// A file's bytes; ranges are offsets.
struct Content<'a> {
    file: BorrowedFd<'a>,
    len: u64,
}

impl Source for Content<'_> {
    fn read(&self, ranges: &[(u64, u64)], _: How, into: &mut [u8]) -> Result<()> {
        let mut at = 0;
        for &(start, len) in ranges {
            let part = &mut into[at..at + len as usize];
            let mut done = 0;
            while done < part.len() {
                let from = start + done as u64;
                let n = rustix::io::retry_on_intr(|| rustix::io::pread(self.file, &mut part[done..], from))
                    .during("reading shared memory")?;
                if n == 0 {
                    if from < self.len {
                        return Err(Error::new(Kind::TargetChanged, "a shared segment became shorter"));
                    }
                    part[done..].fill(0);
                    break;
                }
                done += n;
            }
            at += len as usize;
        }
        Ok(())
    }
}

/// A segment seen through one process's windows; ranges are offsets in the segment.
struct Windows<'a> {
    mem: BorrowedFd<'a>,
    windows: &'a [(u64, u64, u64)],
    pid: i32,
}

impl Source for Windows<'_> {
    fn read(&self, ranges: &[(u64, u64)], _: How, into: &mut [u8]) -> Result<()> {
        into.fill(0);
        let mut at = 0;
        for &(start, len) in ranges {
            for &(from, to, offset) in self.windows {
                let first = start.max(offset);
                let last = (start + len).min(offset + (to - from));
                if first < last {
                    let part = &mut into[(at + first - start) as usize..(at + last - start) as usize];
                    mman::read_mem(self.mem, from + (first - offset), part).map_err(|e| {
                        Error::kernel("reading shared memory failed", e).on(Object::Vma(self.pid, from, to))
                    })?;
                }
            }
            at += len;
        }
        Ok(())
    }
}

const SEGMENT: How = How { by_mem: true, drop_zeros: true, lazy: false };

pub(super) fn copy_file(file: BorrowedFd<'_>, len: u64, out: &mut Outlet) -> Result<PagesDump> {
    let ranges = super::shared::data_ranges(file, len.next_multiple_of(PAGE_SIZE)).during("looking for data")?;
    let runs: Vec<Run> = ranges.iter().map(|&(start, end)| Run { start, end, how: SEGMENT }).collect();
    let mut dump = copy(&Content { file, len }, &runs, out, Ahead::default())?;
    dump.scanned = runs.iter().map(|r| (r.end - r.start) / PAGE_SIZE).sum();
    Ok(dump)
}

pub(super) fn copy_segment(
    file: Option<&OwnedFd>,
    mem: Option<&OwnedFd>,
    windows: &[(u64, u64, u64)],
    len: u64,
    pid: i32,
    out: &mut Outlet,
) -> Result<PagesDump> {
    if let Some(file) = file {
        return copy_file(file.as_fd(), len, out);
    }
    let Some(mem) = mem else { return Err(Error::new(Kind::Internal, "a shared segment without a way to read it")) };
    let runs = [Run { start: 0, end: len.next_multiple_of(PAGE_SIZE), how: SEGMENT }];
    let mut dump = copy(&Windows { mem: mem.as_fd(), windows, pid }, &runs, out, Ahead::default())?;
    dump.scanned = len / PAGE_SIZE;
    Ok(dump)
}

/// Bytes read at once. Buffers stay in the second-level cache; windows need whole huge pages.
const BUFFER_CHUNK: u64 = 512 << 10;
const WINDOW_CHUNK: u64 = 2 << 20;
/// Ranges in one process_vm_readv (IOV_MAX).
const MAX_RANGES: usize = 1024;
/// Below this a second thread or a mapping costs more than it saves.
const SMALL: u64 = 8 << 20;
/// Finished parts of the window are let go in steps of this.
const RELEASE: u64 = 8 << 20;
/// Zeros may push the plan this far ahead of the file's end before the workers line up again.
const DRIFT: u64 = 16 << 20;

fn copy(source: &dyn Source, runs: &[Run], out: &mut Outlet, ahead: Ahead) -> Result<PagesDump> {
    let total: u64 = runs.iter().map(|r| r.end - r.start).sum();
    let Ahead { window, extents, mut price, .. } = ahead;
    drop(window);
    if let Some(out) = out.file()
        && extents > 0
        && total < SMALL
    {
        rustix::fs::ftruncate(out, 0).during("giving back room in the pages image")?;
    }
    out.expect(total)?;
    if total == 0 {
        return Ok(PagesDump::default());
    }
    let watch = out.watch().clone();
    let Some(out) = out.file() else { return copy_to_stream(source, runs, out) };
    let window = if total >= SMALL && !price.is_too_high() { Window::open(out, total, &mut price) } else { None };
    if window.is_none() && total >= SMALL && !is_tmpfs(out) {
        // One call instead of an allocation for each write. Not every file system can, and zeros may make it too much.
        // On tmpfs each page costs the same in a write, where two threads share it.
        let _unsupported_is_fine = rustix::fs::fallocate(out, rustix::fs::FallocateFlags::KEEP_SIZE, 0, total);
    }
    let prepared = if window.is_some() { extents } else { 0 };
    let state = State { prepared, price, ..State::default() };
    let job = Job { source, runs, out, window, watch, state: Mutex::new(state), moved: Condvar::new() };
    if total < SMALL || together::hands() == 1 {
        job.work()?;
    } else {
        let (_kept_in_state, other) = together::by_two(|| job.work().map_err(|e| job.fail(e)));
        if let Some(Err(_)) = other {
            job.fail(Error::new(Kind::Internal, "a worker panicked"));
        }
    }
    let state = job.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = state.error {
        return Err(error);
    }
    drop(job.window);
    if total >= SMALL {
        rustix::fs::ftruncate(out, state.end).during("setting the size of the pages image")?;
    }
    let hash = Some(state.sum.finish());
    Ok(PagesDump { entries: state.entries, written: state.end / PAGE_SIZE, scanned: 0, zero: state.zero, hash })
}

/// As [`copy`] for an output that takes each byte once: one piece after the other, by one thread.
fn copy_to_stream(source: &dyn Source, runs: &[Run], out: &mut Outlet) -> Result<PagesDump> {
    let mut dump = PagesDump::default();
    let mut buffer = vec![0; BUFFER_CHUNK as usize];
    let (mut kept, mut entries, mut ranges) = (Vec::new(), Vec::new(), Vec::new());
    let mut pieces: Vec<Run> = Vec::new();
    let mut left = runs.iter().copied();
    let mut next = left.next();
    while next.is_some() {
        out.watch().go_on()?;
        pieces.clear();
        let mut len = 0;
        while let Some(run) = next.filter(|_| len < BUFFER_CHUNK && pieces.len() < MAX_RANGES) {
            let part = (run.end - run.start).min(BUFFER_CHUNK - len);
            pieces.push(Run { end: run.start + part, ..run });
            len += part;
            let rest = Run { start: run.start + part, ..run };
            next = if rest.start < rest.end { Some(rest) } else { left.next() };
        }
        let bytes = &mut buffer[..len as usize];
        read_pieces(source, &pieces, &mut ranges, bytes)?;
        dump.zero += sift(&pieces, bytes, &mut kept, &mut entries);
        for &(from, n) in &kept {
            out.write(&bytes[from as usize..(from + n) as usize])?;
            dump.written += n / PAGE_SIZE;
        }
        for entry in entries.drain(..) {
            merge_entry(&mut dump.entries, entry);
        }
    }
    Ok(dump)
}

/// Reads `pieces`, one after the other, into `bytes`.
fn read_pieces(source: &dyn Source, pieces: &[Run], ranges: &mut Vec<(u64, u64)>, bytes: &mut [u8]) -> Result<()> {
    let mut rest = bytes;
    for group in pieces.chunk_by(|a, b| a.how.by_mem == b.how.by_mem) {
        ranges.clear();
        ranges.extend(group.iter().map(|p| (p.start, p.end - p.start)));
        let len: u64 = ranges.iter().map(|r| r.1).sum();
        let (part, behind) = rest.split_at_mut(len as usize);
        source.read(ranges, group[0].how, part)?;
        rest = behind;
    }
    Ok(())
}

/// The whole pages file mapped, with huge pages allocated ahead of the copy.
#[derive(Debug)]
struct Window {
    area: Area,
    len: u64,
}

fn is_tmpfs(file: BorrowedFd<'_>) -> bool {
    const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;
    rustix::fs::fstatfs(file).is_ok_and(|fs| fs.f_type == TMPFS_MAGIC)
}

impl Window {
    /// `None` where the file is not on tmpfs, or this tmpfs gives no huge pages.
    fn open(out: BorrowedFd<'_>, total: u64, price: &mut Price) -> Option<Self> {
        if !is_tmpfs(out) {
            return None;
        }
        let len = total.next_multiple_of(HUGE_PAGE);
        rustix::fs::ftruncate(out, len).ok()?;
        let area = Area::file_huge_aligned(out, len).ok()?;
        let window = Self { area, len };
        if price.pay(|| window.prepare(out, 0)).is_err() {
            drop(window);
            rustix::fs::ftruncate(out, 0).ok()?;
            return None;
        }
        Some(window)
    }

    /// Makes 2 MiB of the file one huge page; an entirely empty extent would be refused, so a byte is written first.
    fn prepare(&self, out: BorrowedFd<'_>, extent: u64) -> rustix::io::Result<()> {
        let at = extent * HUGE_PAGE;
        rustix::io::pwrite(out, &[0], at)?;
        self.area.advise(at, HUGE_PAGE, mman::MADV_COLLAPSE)
    }
}

/// A worker's buffer, made at its first use. The thread keeps it for its next copy: mapping it and touching its pages anew
/// for each of a thousand small processes costs as much as the copy.
struct Buffer(Option<Area>);

thread_local! {
    static SPARE: Cell<Option<Area>> = const { Cell::new(None) };
}

impl Drop for Buffer {
    fn drop(&mut self) {
        SPARE.set(self.0.take());
    }
}

impl Buffer {
    fn area(&mut self) -> Result<&Area> {
        let area = match self.0.take().or_else(|| SPARE.take()) {
            Some(area) => area,
            None => Area::anonymous(BUFFER_CHUNK).during("mapping a buffer")?,
        };
        Ok(self.0.insert(area))
    }
}

struct Job<'a> {
    source: &'a dyn Source,
    runs: &'a [Run],
    out: BorrowedFd<'a>,
    window: Option<Window>,
    watch: Watch,
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    /// Next page to be claimed.
    run: usize,
    inside: u64,
    /// Number of the next claim, and of the next chunk whose place is settled.
    claims: u64,
    settled: u64,
    /// What lies in the window and waits for the chunks before it.
    waiting: BTreeMap<u64, Done>,
    /// Where the next claim may put its bytes, if nothing before it shrinks.
    planned: u64,
    /// The file's end so far.
    end: u64,
    /// Huge pages made ready, and bytes let go again.
    prepared: u64,
    released: u64,
    entries: Vec<PagemapEntry>,
    zero: u64,
    sum: PageSum,
    /// Of the huge pages made so far. Once it is too high, all later claims go through buffers.
    price: Price,
    error: Option<Error>,
}

/// What a worker takes at once.
struct Chunk {
    number: u64,
    /// Planned place in the file.
    at: u64,
    len: u64,
    pieces: Vec<Run>,
    /// Whether it goes straight into the window, and the huge pages to be made there before.
    in_window: bool,
    extents: std::ops::Range<u64>,
}

/// A chunk that was read, before it has its place.
#[derive(Default)]
struct Done {
    /// Planned place in the file.
    at: u64,
    in_window: bool,
    /// Ranges of the chunk that stay, their pages' hashes and records.
    kept: Vec<(u64, u64)>,
    hashes: Vec<PageHash>,
    entries: Vec<PagemapEntry>,
    zeros: u64,
}

impl Job<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: Error) {
        self.lock().error.get_or_insert(error);
        self.moved.notify_all();
    }

    fn claim(&self, chunk: &mut Chunk) -> bool {
        let mut state = self.lock();
        while state.error.is_none() && state.planned - state.end > DRIFT && state.settled < state.claims {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.settled == state.claims {
            state.planned = state.end;
        }
        chunk.in_window = self.window.is_some() && !state.price.is_too_high();
        let limit = if chunk.in_window { WINDOW_CHUNK } else { BUFFER_CHUNK };
        chunk.pieces.clear();
        chunk.len = 0;
        while chunk.len < limit && chunk.pieces.len() < MAX_RANGES {
            let Some(run) = self.runs.get(state.run) else { break };
            let start = run.start + state.inside;
            let len = (run.end - start).min(limit - chunk.len);
            chunk.pieces.push(Run { start, end: start + len, how: run.how });
            chunk.len += len;
            if start + len == run.end {
                (state.run, state.inside) = (state.run + 1, 0);
            } else {
                state.inside += len;
            }
        }
        if chunk.pieces.is_empty() || state.error.is_some() {
            return false;
        }
        chunk.number = state.claims;
        chunk.at = state.planned;
        state.claims += 1;
        state.planned += chunk.len;
        let needed = if chunk.in_window { state.planned.div_ceil(HUGE_PAGE) } else { 0 };
        chunk.extents = state.prepared..needed.max(state.prepared);
        state.prepared = chunk.extents.end;
        true
    }

    fn work(&self) -> Result<()> {
        let mut buffer = Buffer(None);
        let mut chunk = Chunk { number: 0, at: 0, len: 0, pieces: Vec::new(), in_window: false, extents: 0..0 };
        let mut ranges = Vec::new();
        while self.claim(&mut chunk) {
            self.watch.go_on()?;
            // SAFETY: the buffer belongs to this worker alone; in the window every claim has its own range, which ends
            // before the next claim's starts and lies inside the mapped file.
            let bytes = unsafe {
                match &self.window {
                    Some(window) if chunk.in_window => {
                        self.make_ready(window, chunk.extents.clone())?;
                        window.area.slice_mut(chunk.at, chunk.len)
                    }
                    _ => buffer.area()?.slice_mut(0, chunk.len),
                }
            };
            read_pieces(self.source, &chunk.pieces, &mut ranges, bytes)?;
            let mut done = Done { at: chunk.at, in_window: chunk.in_window, ..Done::default() };
            done.zeros = sift(&chunk.pieces, bytes, &mut done.kept, &mut done.entries);
            for &(from, n) in &done.kept {
                let pages = bytes[from as usize..(from + n) as usize].chunks_exact(PAGE_SIZE as usize);
                done.hashes.extend(pages.map(PageHash::of));
            }
            if chunk.in_window {
                self.settle_later(chunk.number, done)?;
                continue;
            }
            let Some(at) = self.settle_now(chunk.number, &mut done)? else { return Ok(()) };
            self.write_out(bytes, &done.kept, at)?;
        }
        Ok(())
    }

    fn make_ready(&self, window: &Window, extents: std::ops::Range<u64>) -> Result<()> {
        let mut price = Price::default();
        for extent in extents {
            if extent * HUGE_PAGE >= window.len || price.pay(|| window.prepare(self.out, extent)).is_ok() {
                continue;
            }
            // Small pages then; allocated here, so that a full file system is an error and not a signal.
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(self.out, flags, extent * HUGE_PAGE, HUGE_PAGE)
                .during("allocating the pages image")?;
        }
        self.lock().price.add(price);
        Ok(())
    }

    /// Gives a chunk in the window its place, and all that waited for it; if others come first, they will.
    fn settle_later(&self, number: u64, done: Done) -> Result<()> {
        let mut state = self.lock();
        state.waiting.insert(number, done);
        loop {
            let turn = state.settled;
            let Some(mut done) = state.waiting.remove(&turn) else { break };
            self.place(&mut state, &mut done)?;
        }
        drop(state);
        self.moved.notify_all();
        Ok(())
    }

    /// Waits for this chunk's turn and gives it its place. `None`: somebody failed.
    fn settle_now(&self, number: u64, done: &mut Done) -> Result<Option<u64>> {
        let mut state = self.lock();
        while state.error.is_none() && state.settled != number {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.error.is_some() {
            return Ok(None);
        }
        let at = self.place(&mut state, done)?;
        drop(state);
        self.moved.notify_all();
        Ok(Some(at))
    }

    /// The place of the next chunk. In a window the bytes are moved there if it is not the planned one.
    fn place(&self, state: &mut State, done: &mut Done) -> Result<u64> {
        let at = state.end;
        let len: u64 = done.kept.iter().map(|k| k.1).sum();
        let window = self.window.as_ref().filter(|_| done.in_window);
        if let Some(window) = window.filter(|_| at != done.at || done.zeros > 0) {
            let base = window.area.start();
            let mut to = at;
            for &(from, n) in &done.kept {
                // SAFETY: both ranges lie in the window: the source is this chunk's own claim, which its reader has done
                // with; the destination starts at the file's end and so ends no later than the source does. Later claims
                // start behind the source, earlier chunks are settled and in use by nobody. Pages at the destination were
                // made ready by earlier claims or this one. Overlap is allowed by `copy`.
                unsafe {
                    std::ptr::copy((base + done.at + from) as *const u8, (base + to) as *mut u8, n as usize);
                }
                to += n;
            }
        }
        state.end += len;
        state.zero += done.zeros;
        state.sum.add_hashed(at / PAGE_SIZE, &done.hashes);
        for entry in done.entries.drain(..) {
            merge_entry(&mut state.entries, entry);
        }
        state.settled += 1;
        if let Some(window) = window {
            // A mapped page counts as ours: let go of what is finished.
            let whole = state.end / HUGE_PAGE * HUGE_PAGE;
            if whole - state.released >= RELEASE {
                let from = state.released;
                window.area.advise(from, whole - from, libc::MADV_DONTNEED).during("letting go of written memory")?;
                state.released = whole;
            }
        }
        Ok(at)
    }

    fn write_out(&self, bytes: &mut [u8], kept: &[(u64, u64)], at: u64) -> Result<()> {
        let mut len = 0;
        for &(from, n) in kept {
            if from != len {
                bytes.copy_within(from as usize..(from + n) as usize, len as usize);
            }
            len += n;
        }
        let mut done = 0;
        while done < len {
            let part = &bytes[done as usize..len as usize];
            let write = || rustix::io::pwrite(self.out, crate::fault::cut(part), at + done);
            let n =
                crate::fault::io().and_then(|()| rustix::io::retry_on_intr(write)).during("writing the pages image")?;
            if n == 0 {
                return Err(Error::kernel("writing the pages image failed", Errno::NOSPC));
            }
            done += n as u64;
        }
        Ok(())
    }
}

/// Finds pages of zeros that may go: `kept` gets the ranges of `bytes` that stay, `entries` the records for them.
fn sift(pieces: &[Run], bytes: &[u8], kept: &mut Vec<(u64, u64)>, entries: &mut Vec<PagemapEntry>) -> u64 {
    kept.clear();
    entries.clear();
    let mut zeros = 0;
    let mut at = 0;
    for piece in pieces {
        let len = piece.end - piece.start;
        if !piece.how.drop_zeros {
            keep(kept, at, len);
            push_entry(entries, piece.start, len, piece.how);
            at += len;
            continue;
        }
        let mut from = 0;
        let mut page = 0;
        while page < len {
            if mman::is_zero(&bytes[(at + page) as usize..(at + page + PAGE_SIZE) as usize]) {
                if from < page {
                    keep(kept, at + from, page - from);
                    push_entry(entries, piece.start + from, page - from, piece.how);
                }
                zeros += 1;
                from = page + PAGE_SIZE;
            }
            page += PAGE_SIZE;
        }
        if from < len {
            keep(kept, at + from, len - from);
            push_entry(entries, piece.start + from, len - from, piece.how);
        }
        at += len;
    }
    zeros
}

fn keep(kept: &mut Vec<(u64, u64)>, from: u64, len: u64) {
    match kept.last_mut() {
        Some((start, n)) if *start + *n == from => *n += len,
        _ => kept.push((from, len)),
    }
}

fn push_entry(entries: &mut Vec<PagemapEntry>, start: u64, len: u64, how: How) {
    let flags = pf::PRESENT | if how.lazy { pf::LAZY } else { 0 };
    let entry = PagemapEntry {
        vaddr: start,
        compat_nr_pages: 0,
        in_parent: None,
        flags: Some(flags),
        nr_pages: Some(len / PAGE_SIZE),
    };
    merge_entry(entries, entry);
}

fn merge_entry(all: &mut Vec<PagemapEntry>, entry: PagemapEntry) {
    match all.last_mut() {
        Some(last)
            if last.flags == entry.flags && last.vaddr + last.nr_pages.unwrap_or(0) * PAGE_SIZE == entry.vaddr =>
        {
            last.nr_pages = Some(last.nr_pages.unwrap_or(0) + entry.nr_pages.unwrap_or(0));
        }
        _ => all.push(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However large the memory: between two pieces somebody may end it.
    #[test]
    fn a_copy_ends_when_it_is_not_wanted_any_more() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicU32, Ordering};
        let memfd = || rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let len = 4 * SMALL;
        let content = memfd();
        for at in (0..len).step_by(PAGE_SIZE as usize) {
            rustix::io::pwrite(&content, &[1], at + PAGE_SIZE - 1).unwrap();
        }
        let most = u32::try_from(len / BUFFER_CHUNK).unwrap();
        for asked_before in [0, 1, 3] {
            let asked = Arc::new(AtomicU32::new(0));
            let counter = asked.clone();
            let mut out = Outlet::from(std::fs::File::from(memfd()));
            out.set_watch(Watch::new(move || counter.fetch_add(1, Ordering::Relaxed) >= asked_before));
            let e = copy_file(content.as_fd(), len, &mut out).unwrap_err();
            assert_eq!(e.kind(), Kind::Cancelled, "{e}");
            assert!(asked.load(Ordering::Relaxed) < most, "asked {asked:?} times");
        }
        let whole = copy_file(content.as_fd(), len, &mut Outlet::from(std::fs::File::from(memfd()))).unwrap();
        assert_eq!(whole.written, len / PAGE_SIZE);
    }

    #[test]
    fn a_run_is_split_where_it_must_not_go_on() {
        let run = |page: u64, pages: u64| PagemapEntry {
            vaddr: page * PAGE_SIZE,
            compat_nr_pages: pages as u32,
            nr_pages: Some(pages),
            ..PagemapEntry::default()
        };
        let split = |at: u64| {
            let mut dump = PagesDump { entries: vec![run(0, 2), run(3, 4)], ..PagesDump::default() };
            dump.split_at(at * PAGE_SIZE);
            dump.entries
        };
        assert_eq!(split(5), [run(0, 2), run(3, 2), run(5, 2)]);
        for at in [0, 2, 3, 7, 9] {
            assert_eq!(split(at), [run(0, 2), run(3, 4)], "page {at}");
        }
    }
}

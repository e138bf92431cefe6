//! Fills fresh memory from pages images: in large pieces, by two threads where it is much, with huge pages where a whole
//! aligned 2 MiB range has content.
//!
//! A huge page costs a fifth of 512 small ones, where it comes cheap (`huge.rs`). It is made by MADV_COLLAPSE after one page
//! was touched, because MADV_HUGEPAGE would leave a flag on the mapping that no call can clear again. Where small pages are
//! the better choice, they are made with their content (`copier.rs`) instead of being cleared first and read over.
#![allow(unsafe_code, reason = "reads files into memory given by address")]
use super::copier::Copier;
use super::huge::Price;
use super::hugetlb;
use super::load::Pages;
use super::status as st;
use crate::error::{Error, Object, ResultExt};
use crate::{Result, Watch, together};
use crust_image::proto::VmaEntry;
use crust_kernel::ids::PAGE_SIZE;
use crust_kernel::mman::{self, HUGE_PAGE};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// One read: neighbouring bytes of one file into ranges of memory.
#[derive(Clone, Debug)]
struct Job {
    file: u32,
    offset: u64,
    first: usize,
    count: usize,
}

/// What stands where content is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ground {
    /// Anything that takes a read.
    Any,
    /// Private anonymous memory of small pages that nobody has touched.
    Fresh,
    /// Such memory where huge pages may be made.
    Huge,
}

impl Ground {
    /// That of a mapping just made. `huge_allowed`: its process may have huge pages, and this machine makes them.
    pub(super) fn of(vma: &VmaEntry, huge_allowed: bool) -> Self {
        let small_only =
            vma.madv.unwrap_or(0) & (1 << libc::MADV_NOHUGEPAGE) != 0 || vma.flags & libc::MAP_GROWSDOWN as u32 != 0;
        match (vma.status & st::ANON_PRIVATE != 0 && !hugetlb::is(vma), huge_allowed && !small_only) {
            (false, _) => Self::Any,
            (true, false) => Self::Fresh,
            (true, true) => Self::Huge,
        }
    }
}

/// Memory to be filled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) ground: Ground,
}

/// Collects what is to be filled, then does it.
#[derive(Debug, Default)]
pub(super) struct Filler {
    jobs: Vec<Job>,
    ranges: Vec<Range>,
    bytes: u64,
    job_bytes: u64,
}

/// A filler at work: whose turn it is, and how pages are made.
#[derive(Debug)]
struct Work<'a> {
    filler: &'a Filler,
    pages: &'a Pages,
    files: &'a [OwnedFd],
    turn: Mutex<Turn>,
    /// Made once, and then for all jobs not yet taken.
    copier: OnceLock<Copier>,
}

#[derive(Debug, Default)]
struct Turn {
    next: usize,
    price: Price,
    /// Whether a copier was made or cannot be.
    settled: bool,
}

/// One read's size: far above the cost of a call, small enough to share work evenly.
const JOB_BYTES: u64 = 4 << 20;
const MAX_RANGES: usize = 256;
/// Below this a second thread is not worth its start: a touched page costs two to four microseconds, a thread some fifty.
const SMALL: u64 = 1 << 20;

impl Filler {
    /// `len` bytes at `offset` of `file` belong at `at`.
    pub(super) fn add(&mut self, file: u32, mut offset: u64, mut at: u64, mut len: u64, ground: Ground) {
        let huge = ground == Ground::Huge;
        self.bytes += len;
        while len > 0 {
            let room = JOB_BYTES.saturating_sub(self.job_bytes);
            let fits = self.jobs.last().is_some_and(|j| {
                let tight = huge && len > room && room < 2 * HUGE_PAGE;
                room > 0 && !tight && j.file == file && j.offset + self.job_bytes == offset && j.count < MAX_RANGES
            });
            if !fits {
                self.jobs.push(Job { file, offset, first: self.ranges.len(), count: 0 });
                self.job_bytes = 0;
                continue;
            }
            let mut part = len.min(room);
            if huge && part < len {
                // Cut at a huge page's border, so that each lies in one job.
                let cut = (at + part) / HUGE_PAGE * HUGE_PAGE;
                if cut > at {
                    part = cut - at;
                }
            }
            self.ranges.push(Range { at, len: part, ground });
            self.job_bytes = if part < len { JOB_BYTES } else { self.job_bytes + part };
            if let Some(job) = self.jobs.last_mut() {
                job.count += 1;
            }
            (offset, at, len) = (offset + part, at + part, len - part);
        }
    }

    /// Bytes to be filled.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads everything, by at most `threads` threads (0: as many as pay), as long as `watch` lets them.
    pub(super) fn run(&self, pages: &Pages, files: &[OwnedFd], threads: usize, watch: &Watch) -> Result<()> {
        let work = Work { filler: self, pages, files, turn: Mutex::default(), copier: OnceLock::new() };
        let limit = if threads == 0 { 2 } else { threads };
        if self.bytes < SMALL || self.jobs.len() < 2 || limit < 2 || !several_processors() {
            return work.do_all(watch);
        }
        let (ours, theirs) = together::by_two(|| work.do_all(watch));
        let panicked = |_| Err(Error::new(crate::Kind::Internal, "a worker panicked"));
        ours.and(theirs.map_or(Ok(()), |done| done.unwrap_or_else(panicked)))
    }

    fn ranges_of(&self, job: &Job) -> &[Range] {
        &self.ranges[job.first..job.first + job.count]
    }

    /// What the jobs from `first` on would put on fresh memory: file, its offset, address and length.
    fn fresh_from(&self, first: usize) -> impl Iterator<Item = (u32, u64, u64)> {
        let ranges = self.jobs[first..].iter().flat_map(|job| self.ranges_of(job).iter().map(move |r| (job.file, r)));
        ranges.filter(|(_, r)| r.ground != Ground::Any && r.len >= Copier::WORTH).map(|(file, r)| (file, r.at, r.len))
    }
}

impl Work<'_> {
    fn do_all(&self, watch: &Watch) -> Result<()> {
        let mut iov = Vec::new();
        while let Some((number, job)) = self.take() {
            let done = watch.go_on().and_then(|()| self.fill(number, job, &mut iov));
            done.inspect_err(|_| self.turn().next = self.filler.jobs.len())?;
        }
        Ok(())
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job. Before it is handed out, what it and all later ones fill may become the copier's: nobody reads there
    /// yet.
    fn take(&self) -> Option<(usize, &Job)> {
        let mut turn = self.turn();
        let number = turn.next;
        let job = self.filler.jobs.get(number)?;
        turn.next += 1;
        let huge = || self.filler.ranges.iter().any(|r| r.ground == Ground::Huge);
        if !turn.settled && self.filler.bytes >= SMALL && (turn.price.is_too_high() || !huge()) {
            turn.settled = true;
            if let Some(copier) = Copier::new(number, self.filler.fresh_from(number), self.files) {
                self.copier.get_or_init(|| copier);
            }
        }
        Some((number, job))
    }

    fn fill(&self, number: usize, job: &Job, iov: &mut Vec<(u64, u64)>) -> Result<()> {
        let copier = self.copier.get().filter(|c| number >= c.first_job());
        let mut offset = job.offset;
        let mut from = offset;
        iov.clear();
        for &Range { at, len, ground } in self.filler.ranges_of(job) {
            let copied = match copier {
                Some(copier) if ground != Ground::Any => copier.fill(job.file, offset, at, len),
                None if ground == Ground::Huge => {
                    self.make_huge(at, len);
                    0
                }
                _ => 0,
            };
            if copied > 0 {
                self.read(job.file, from, iov)?;
                iov.clear();
                from = offset + copied;
            }
            if copied < len {
                iov.push((at + copied, len - copied));
            }
            offset += len;
        }
        self.read(job.file, from, iov)
    }

    /// Neighbouring bytes into ranges of memory.
    fn read(&self, file: u32, mut offset: u64, iov: &mut [(u64, u64)]) -> Result<()> {
        let named = |e: Error| e.on(Object::Image(self.pages.file_name(file).to_owned()));
        let from_file = self
            .files
            .get(file as usize)
            .ok_or_else(|| Error::new(crate::Kind::Internal, "a pages image is not open"))?;
        let mut from = 0;
        while from < iov.len() {
            // SAFETY: the ranges lie in mappings that the stage made for this purpose and nobody else refers to; each
            // belongs to one job only.
            let mut n = unsafe { mman::preadv(from_file.as_fd(), &iov[from..], offset) }
                .during("reading the pages image")
                .map_err(named)?;
            if n == 0 {
                return Err(named(Error::new(crate::Kind::BadImage, "the pages image ends too early")));
            }
            offset += n;
            while n > 0 {
                let (at, len) = iov[from];
                let part = n.min(len);
                iov[from] = (at + part, len - part);
                n -= part;
                if iov[from].1 == 0 {
                    from += 1;
                }
            }
        }
        Ok(())
    }

    /// Makes every whole huge page inside the range one. A refusal costs only time: small pages do as well.
    fn make_huge(&self, at: u64, len: u64) {
        let mut page = at.next_multiple_of(HUGE_PAGE);
        while page + HUGE_PAGE <= at + len && !self.turn().price.is_too_high() {
            let mut paid = Price::default();
            // SAFETY: `page` lies in a private mapping made for filling, of which no reference exists; a byte of zero
            // changes nothing in fresh memory. Collapsing keeps the content.
            let made = paid.pay(|| unsafe {
                (page as *mut u8).write_volatile(0);
                mman::madvise(page, HUGE_PAGE, mman::MADV_COLLAPSE)
            });
            if made.is_err() {
                return;
            }
            self.turn().price.add(paid);
            page += HUGE_PAGE;
        }
    }
}

/// True if two threads can run at once.
fn several_processors() -> bool {
    static SEVERAL: OnceLock<bool> = OnceLock::new();
    // Not std's count, which reads a dozen files for what groups are allowed: a second thread does no harm there.
    *SEVERAL.get_or_init(|| rustix::thread::sched_getaffinity(None).is_ok_and(|set| set.count() > 1))
}

/// True if this machine makes huge pages where it is asked to.
pub(super) fn huge_pages_allowed() -> bool {
    // One answer for a whole tree: the tasks inherit it.
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| {
        std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
            .is_ok_and(|text| text.contains("[madvise]") || text.contains("[always]"))
    })
}

// Less than two huge pages to a job, and none would ever take one whose start lies between.
const _: () =
    assert!(JOB_BYTES >= 2 * HUGE_PAGE && JOB_BYTES.is_multiple_of(HUGE_PAGE) && HUGE_PAGE.is_multiple_of(PAGE_SIZE));

#[cfg(test)]
mod tests {
    use super::*;
    use crust_kernel::mman::Area;

    #[test]
    fn jobs_are_cut_and_joined() {
        let mut f = Filler::default();
        f.add(0, 0, 0x1000, 4096, Ground::Any);
        f.add(0, 4096, 0x9000, 8192, Ground::Any);
        f.add(1, 0, 0x20000, 4096, Ground::Any);
        assert_eq!(f.jobs.len(), 2);
        assert_eq!((f.jobs[0].count, f.jobs[1].file), (2, 1));
        f.add(1, 4096, 0x1000_1000, 20 << 20, Ground::Huge);
        let cut: Vec<_> = f.jobs.iter().map(|j| (j.offset, f.ranges[j.first].at, j.count)).collect();
        let huge: u64 = f.ranges[3..].iter().map(|r| r.len).sum();
        assert_eq!(huge, 20 << 20);
        for r in &f.ranges[3..] {
            assert!(r.at == 0x1000_1000 || r.at % HUGE_PAGE == 0, "{cut:x?}");
            assert!(r.len <= JOB_BYTES);
        }
        assert_eq!(f.bytes(), 4096 + 8192 + 4096 + (20 << 20));
        // Offsets within a job go on without a gap.
        let mut at = 0;
        for job in f.jobs.iter().filter(|j| j.file == 1) {
            assert_eq!(job.offset, at);
            at += f.ranges[job.first..job.first + job.count].iter().map(|r| r.len).sum::<u64>();
        }
    }

    /// Fresh ranges by copies, the others and short ones by reads, from two files, among holes.
    #[test]
    fn content_comes_to_its_place_whichever_way() {
        const LEN: u64 = 24 << 20;
        let file = |salt: u64| -> OwnedFd {
            let fd = rustix::fs::memfd_create("pages", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            let words = (0..LEN / 8).flat_map(|n| (n * 0x9e37_79b9 + salt).to_le_bytes());
            std::io::Write::write_all(&mut std::fs::File::from(fd.try_clone().unwrap()), &words.collect::<Vec<_>>())
                .unwrap();
            fd
        };
        let word = |salt: u64, offset: u64| offset / 8 * 0x9e37_79b9 + salt;
        let files = [file(1), file(2)];
        let (private, shared) = (Area::anonymous(3 * LEN).unwrap(), Area::shared_anonymous(LEN, true).unwrap());
        let mut filler = Filler::default();
        let mut expected = Vec::new();
        let mut add = |file: u32, offset, at, len, ground| {
            filler.add(file, offset, at, len, ground);
            expected.push((u64::from(file) + 1, offset, at, len));
        };
        let start = private.start();
        add(0, 0, start, 9 << 20, Ground::Fresh);
        // Neighbours in the file, not in memory: long, shorter than a copy is worth, long, and one that takes reads only.
        let (mut offset, mut at) = (9 << 20, start + (12 << 20));
        for (pages, ground) in [(300, Ground::Fresh), (3, Ground::Fresh), (16, Ground::Fresh), (17, Ground::Any)] {
            add(0, offset, at, pages * PAGE_SIZE, ground);
            offset += pages * PAGE_SIZE;
            at += (pages + 1) * PAGE_SIZE;
        }
        add(0, offset, shared.start(), 2 << 20, Ground::Fresh);
        add(1, 4 << 20, start + LEN + PAGE_SIZE, 20 << 20, Ground::Fresh);
        for (threads, round) in [(1, 0_u64), (2, 1)] {
            // SAFETY: fresh memory of this test's own.
            unsafe { mman::madvise(start, 3 * LEN, libc::MADV_DONTNEED).unwrap() };
            filler.run(&Pages::default(), &files, threads, &Watch::default()).unwrap();
            let peek = |at: u64| {
                // SAFETY: inside the areas, filled by now.
                unsafe { (at as *const u64).read_volatile() }
            };
            for &(salt, offset, at, len) in &expected {
                for from in (0..len).step_by(512) {
                    assert_eq!(peek(at + from), word(salt, offset + from), "{at:#x} + {from:#x}, round {round}");
                }
            }
            assert_eq!((peek(start + (9 << 20)), peek(start + LEN + (20 << 20) + PAGE_SIZE)), (0, 0), "beside");
        }
        // SAFETY: as above.
        unsafe { mman::madvise(start, 3 * LEN, libc::MADV_DONTNEED).unwrap() };
        let pages = Pages::default();
        let work =
            Work { filler: &filler, pages: &pages, files: &files, turn: Mutex::default(), copier: OnceLock::new() };
        work.do_all(&Watch::default()).unwrap();
        assert_eq!(work.copier.get().is_some(), crust_kernel::uffd::Uffd::new().is_ok(), "copies where they can be");
        drop(work);
        // An image that ends too early is told, not taken for zeros.
        rustix::fs::ftruncate(&files[1], LEN - 100).unwrap();
        // SAFETY: as above.
        unsafe { mman::madvise(start, 3 * LEN, libc::MADV_DONTNEED).unwrap() };
        let e = filler.run(&pages, &files, 2, &Watch::default()).unwrap_err();
        assert!(e.to_string().contains("ends too early"), "{e}");
    }
}

//! Fills fresh memory from pages images: in large reads, by two threads where it is much, with huge pages where a whole
//! aligned 2 MiB range has content.
//!
//! A huge page costs a fifth of 512 small ones, where it comes cheap (`huge.rs`). It is made by MADV_COLLAPSE after one page
//! was touched, because MADV_HUGEPAGE would leave a flag on the mapping that no call can clear again.
#![allow(unsafe_code, reason = "reads files into memory given by address")]
use super::huge::Price;
use super::load::Pages;
use crate::error::{Error, Object, ResultExt};
use crate::{Result, Watch, together};
use crust_kernel::ids::PAGE_SIZE;
use crust_kernel::mman::{self, HUGE_PAGE};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// One read: neighbouring bytes of one file into ranges of memory.
#[derive(Clone, Debug)]
struct Job {
    file: u32,
    offset: u64,
    first: usize,
    count: usize,
}

/// Collects what is to be filled, then does it.
#[derive(Debug, Default)]
pub(super) struct Filler {
    jobs: Vec<Job>,
    /// Address, length, and whether huge pages may be made there.
    ranges: Vec<(u64, u64, bool)>,
    bytes: u64,
    job_bytes: u64,
    price: Mutex<Price>,
}

/// One read's size: far above the cost of a call, small enough to share work evenly.
const JOB_BYTES: u64 = 4 << 20;
const MAX_RANGES: usize = 256;
/// Below this a second thread is not worth its start: a touched page costs two to four microseconds, a thread some fifty.
const SMALL: u64 = 1 << 20;

impl Filler {
    /// `len` bytes at `offset` of `file` belong at `at`.
    pub(super) fn add(&mut self, file: u32, mut offset: u64, mut at: u64, mut len: u64, huge: bool) {
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
            self.ranges.push((at, part, huge));
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
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            let mut iov = Vec::new();
            while let Some(job) = self.jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let go_on = watch.go_on();
                go_on
                    .and_then(|()| self.read(job, pages, files, &mut iov))
                    .inspect_err(|_| next.store(self.jobs.len(), Ordering::Relaxed))?;
            }
            Ok(())
        };
        let limit = if threads == 0 { 2 } else { threads };
        if self.bytes < SMALL || self.jobs.len() < 2 || limit < 2 || !several_processors() {
            return work();
        }
        let (ours, theirs) = together::by_two(work);
        let panicked = |_| Err(Error::new(crate::Kind::Internal, "a worker panicked"));
        ours.and(theirs.map_or(Ok(()), |done| done.unwrap_or_else(panicked)))
    }

    fn read(&self, job: &Job, pages: &Pages, files: &[OwnedFd], iov: &mut Vec<(u64, u64)>) -> Result<()> {
        let named = |e: Error| e.on(Object::Image(pages.file_name(job.file).to_owned()));
        let file = files
            .get(job.file as usize)
            .ok_or_else(|| Error::new(crate::Kind::Internal, "a pages image is not open"))?;
        let ranges = &self.ranges[job.first..job.first + job.count];
        iov.clear();
        for &(at, len, huge) in ranges {
            if huge {
                self.make_huge(at, len);
            }
            iov.push((at, len));
        }
        let mut offset = job.offset;
        let mut from = 0;
        while from < iov.len() {
            // SAFETY: the ranges lie in mappings that the stage made for this purpose and nobody else refers to; each
            // belongs to one job only.
            let mut n = unsafe { mman::preadv(file.as_fd(), &iov[from..], offset) }
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
        let price = || self.price.lock().unwrap_or_else(PoisonError::into_inner);
        let mut page = at.next_multiple_of(HUGE_PAGE);
        while page + HUGE_PAGE <= at + len && !price().is_too_high() {
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
            price().add(paid);
            page += HUGE_PAGE;
        }
    }
}

/// True if two threads can run at once.
fn several_processors() -> bool {
    static SEVERAL: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    // Not std's count, which reads a dozen files for what groups are allowed: a second thread does no harm there.
    *SEVERAL.get_or_init(|| rustix::thread::sched_getaffinity(None).is_ok_and(|set| set.count() > 1))
}

/// True if this machine makes huge pages where it is asked to.
pub(super) fn huge_pages_allowed() -> bool {
    // One answer for a whole tree: the tasks inherit it.
    static ALLOWED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
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

    #[test]
    fn jobs_are_cut_and_joined() {
        let mut f = Filler::default();
        f.add(0, 0, 0x1000, 4096, false);
        f.add(0, 4096, 0x9000, 8192, false);
        f.add(1, 0, 0x20000, 4096, false);
        assert_eq!(f.jobs.len(), 2);
        assert_eq!((f.jobs[0].count, f.jobs[1].file), (2, 1));
        f.add(1, 4096, 0x1000_1000, 20 << 20, true);
        let cut: Vec<_> = f.jobs.iter().map(|j| (j.offset, f.ranges[j.first].0, j.count)).collect();
        let huge: u64 = f.ranges[3..].iter().map(|r| r.1).sum();
        assert_eq!(huge, 20 << 20);
        for r in &f.ranges[3..] {
            assert!(r.0 == 0x1000_1000 || r.0 % HUGE_PAGE == 0, "{cut:x?}");
            assert!(r.1 <= JOB_BYTES);
        }
        assert_eq!(f.bytes(), 4096 + 8192 + 4096 + (20 << 20));
        // Offsets within a job go on without a gap.
        let mut at = 0;
        for job in f.jobs.iter().filter(|j| j.file == 1) {
            assert_eq!(job.offset, at);
            at += f.ranges[job.first..job.first + job.count].iter().map(|r| r.1).sum::<u64>();
        }
    }
}

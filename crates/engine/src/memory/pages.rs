//! Which pages of a process hold content of their own, found in one walk over its page table.
use super::collect::{MAP_DROPPABLE, Vma};
use super::hugetlb;
use super::status as st;
use crate::Result;
use crate::error::ResultExt;
use crate::task::Target;
use crust_kernel::ids::PAGE_SIZE;
use crust_kernel::maps::VmFlag;
use crust_kernel::pagemap::{Categories, PageRegion, Pagemap};

/// Neighbouring pages to be saved, all of one sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) how: How,
}

/// How the pages of a mapping are read and what may be left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct How {
    /// Through /proc/PID/mem: pages that fork shares (a pin would copy them), and pages without read permission.
    pub(super) by_mem: bool,
    /// A page of zeros need not be saved: nothing else would show through.
    pub(super) drop_zeros: bool,
    /// A lazy-pages server may bring them.
    pub(super) lazy: bool,
}

/// What one walk found.
#[derive(Debug, Default)]
pub(super) struct Selection {
    pub(super) runs: Vec<Run>,
    pub(super) guards: Vec<(u64, u64)>,
    pub(super) scanned: u64,
}

impl How {
    pub(super) fn of(vma: &Vma) -> Self {
        let anonymous = vma.is(st::ANON_PRIVATE);
        let special = vma.entry.status & (st::VDSO | st::VVAR | st::AIORING) != 0;
        // Without smaps nobody says what fork shares.
        let shared = vma.mapping.detail.is_none_or(|d| d.shared_kib > 0);
        Self {
            // The kernel counts none of hugetlbfs as shared.
            by_mem: shared || special || !vma.mapping.read || hugetlb::is(&vma.entry),
            drop_zeros: anonymous && !special,
            lazy: anonymous && !special && !vma.mapping.has(VmFlag::Locked),
        }
    }
}

fn wants_walk(vma: &Vma) -> bool {
    vma.is(st::REGULAR | st::ANON_PRIVATE)
        && vma.entry.status & (st::VDSO | st::VVAR) == 0
        && vma.entry.flags & MAP_DROPPABLE == 0
}

/// True for private file mappings that hold pages of their own.
fn has_copies(vma: &Vma) -> bool {
    vma.is(st::FILE_PRIVATE) && hugetlb::is(&vma.entry)
        || vma.is(st::FILE_PRIVATE) && vma.mapping.detail.is_none_or(|d| d.anonymous_kib > 0 || d.swap_kib > 0)
}

/// False for mappings that the kernel says hold nothing.
fn may_have_pages(vma: &Vma) -> bool {
    vma.mapping.detail.is_none_or(|d| d.rss_kib > 0 || d.swap_kib > 0)
}

/// Up to so many pages in memory one walk for everything is quicker.
const FEW_PAGES: u64 = 4 << 10;

/// What a walk looks for in anonymous memory.
const PRESENT: Categories = Categories::PRESENT.or(Categories::SWAPPED);

/// Finds the pages to be saved of one mapping after the other.
pub(super) struct Selector {
    pagemap: Pagemap,
    /// One walk tells file pages from copies too.
    at_once: bool,
    tell: Categories,
    found: Selection,
}

impl Selector {
    /// `resident_pages`: how many pages of `t` are in memory, more or less; unknown is many.
    pub(super) fn new(t: &Target<'_>, resident_pages: Option<u64>) -> Result<Self> {
        let pagemap = Pagemap::open(t.proc).during("opening the page map")?;
        let at_once = resident_pages.is_some_and(|pages| pages < FEW_PAGES);
        let tell = Categories::ZERO.or(Categories::GUARD);
        let tell = if at_once { tell.or(Categories::FILE) } else { tell };
        Ok(Self { pagemap, at_once, tell, found: Selection::default() })
    }

    /// Walks the page table once for anonymous memory and guards, and once more for each private file mapping that has pages
    /// of its own: there the kernel must tell file pages from copies, which is slow where there is much memory. `vmas` follow
    /// those of the last call.
    pub(super) fn walk(&mut self, vmas: &[Vma]) -> Result<()> {
        self.walk_user(&vmas[..vmas.partition_point(|v| v.entry.end <= super::TASK_SIZE)])
            .during("reading the page map")
    }

    fn walk_user(&mut self, user: &[Vma]) -> rustix::io::Result<()> {
        let Self { pagemap, at_once, tell, found } = self;
        let (Some(first), Some(last)) = (user.first(), user.last()) else { return Ok(()) };
        let is_copy = |region: &PageRegion| !region.categories.has(Categories::FILE);
        let mut next = 0;
        // Entries are read one by one, also those of the holes, of which there are a hundred terabytes.
        let ranges = match pagemap.scans() {
            true => vec![(first.entry.start, last.entry.end)],
            false => user.iter().filter(|v| may_have_pages(v)).map(|v| (v.entry.start, v.entry.end)).collect(),
        };
        for (start, end) in ranges {
            pagemap.walk(start, end, PRESENT.or(Categories::GUARD), *tell, |region| {
                while next < user.len() && user[next].entry.end <= region.start {
                    next += 1;
                }
                for vma in user[next..].iter().take_while(|v| v.entry.start < region.end) {
                    found.add(vma, region, wants_walk(vma) || (*at_once && has_copies(vma) && is_copy(&region)));
                }
            })?;
        }
        for vma in user {
            if vma.entry.status & (st::VDSO | st::AIORING) != 0 {
                // Saved whole: restore compares a vDSO with its own, and a ring has events that the program never looked at.
                found.runs.push(Run { start: vma.entry.start, end: vma.entry.end, how: How::of(vma) });
            }
            if !*at_once && has_copies(vma) {
                pagemap.walk(vma.entry.start, vma.entry.end, PRESENT, tell.or(Categories::FILE), |region| {
                    if is_copy(&region) && !region.categories.has(Categories::GUARD) {
                        found.add(vma, region, true);
                    }
                })?;
            }
        }
        Ok(())
    }

    /// What was found, in address order.
    pub(super) fn finish(mut self) -> Selection {
        self.found.runs.sort_unstable_by_key(|r| r.start);
        self.found
    }
}

impl Selection {
    fn add(&mut self, vma: &Vma, region: PageRegion, save: bool) {
        let start = region.start.max(vma.entry.start);
        let end = region.end.min(vma.entry.end);
        self.scanned += (end - start) / PAGE_SIZE;
        if region.categories.has(Categories::GUARD) {
            match self.guards.last_mut() {
                Some((_, last)) if *last == start => *last = end,
                _ => self.guards.push((start, end)),
            }
            return;
        }
        if !save || region.categories.has(Categories::ZERO) {
            return;
        }
        let how = How::of(vma);
        match self.runs.last_mut() {
            Some(run) if run.end == start && run.how == how => run.end = end,
            _ => self.runs.push(Run { start, end, how }),
        }
    }
}

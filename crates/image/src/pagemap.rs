//! Pagemaps: which pages of an address space an image holds, where their bytes are, and which are further up the chain of
//! parents.
//!
//! A pagemap is a list of runs in ascending order. The bytes of all runs with [`PRESENT`] lie one after another in the pages
//! file; runs with [`PARENT`] have none here but in the parent checkpoint. A page in no run was never touched: it reads as
//! zeros in anonymous memory, and as the file in a file mapping.
//!
//! [`Chain`] answers the one question that restore, lazy pages, deduplication and the tools share: where do the bytes of the
//! page at this address come from.
use crate::proto::{PagemapEntry, PagemapHead};
use crate::{Error, ImageKind, Reader, Result, What, Writer};

/// The pages are in the parent checkpoint.
pub const PARENT: u32 = 1 << 0;
/// The pages may be brought in after the task runs.
pub const LAZY: u32 = 1 << 1;
/// The pages are in the pages file.
pub const PRESENT: u32 = 1 << 2;

/// Bytes in a page.
pub const PAGE_BYTES: u64 = 4096;
/// More levels than anybody dumps; keeps a chain that leads into itself short.
pub const MAX_LEVELS: usize = 1024;

/// A run of pages with the same flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Address of the first page.
    pub vaddr: u64,
    /// How many pages; at least one.
    pub nr_pages: u64,
    /// [`PARENT`], [`LAZY`], [`PRESENT`].
    pub flags: u32,
    /// Where the bytes begin in the pages file, if it has them.
    pub offset: Option<u64>,
}

impl Run {
    /// The address after the last page.
    pub fn end(&self) -> u64 {
        // Checked when the run was made.
        self.vaddr + self.nr_pages * PAGE_BYTES
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.nr_pages * PAGE_BYTES
    }
}

/// One pagemap image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pagemap {
    pages_id: u32,
    runs: Vec<Run>,
    present_bytes: u64,
}

impl Pagemap {
    /// Starts one whose bytes are in `pages-{pages_id}.img`.
    pub fn new(pages_id: u32) -> Self {
        Self { pages_id, runs: Vec::new(), present_bytes: 0 }
    }

    /// Appends pages after all there are; joins them to the last run if they continue it.
    ///
    /// # Errors
    /// If the run is empty, not aligned, wraps, or lies before the end of the last one.
    pub fn push(&mut self, vaddr: u64, nr_pages: u64, flags: u32) -> Result<()> {
        self.append(vaddr, nr_pages, flags)?;
        // What is adjacent in memory is adjacent in the file: nothing was in between.
        if let [.., before, last] = &mut self.runs[..]
            && before.end() == last.vaddr
            && before.flags == last.flags
        {
            before.nr_pages += last.nr_pages;
            self.runs.pop();
        }
        Ok(())
    }

    /// Appends a run as it is.
    fn append(&mut self, vaddr: u64, nr_pages: u64, flags: u32) -> Result<()> {
        let len = nr_pages.checked_mul(PAGE_BYTES);
        let why = match (len, len.and_then(|len| vaddr.checked_add(len))) {
            _ if nr_pages == 0 => "is empty",
            _ if !vaddr.is_multiple_of(PAGE_BYTES) => "does not begin at a page",
            (None, _) | (_, None) => "ends beyond the address space",
            _ if self.runs.last().is_some_and(|last| vaddr < last.end()) => {
                "begins before the end of the run before it"
            }
            _ if flags & PRESENT != 0 && flags & PARENT != 0 => "is both here and in the parent",
            (Some(len), Some(_)) => {
                let present = flags & PRESENT != 0;
                let offset = present.then_some(self.present_bytes);
                if present {
                    self.present_bytes = self.present_bytes.saturating_add(len);
                }
                self.runs.push(Run { vaddr, nr_pages, flags, offset });
                return Ok(());
            }
        };
        let what = format!("the run of {nr_pages} pages at {vaddr:#x} {why}");
        Err(Error::new(ImageKind::Pagemap.file_name(0), 0, None, What::Impossible(what)))
    }

    /// Reads a pagemap image, its runs as they are; `kind` is [`ImageKind::Pagemap`] or [`ImageKind::ShmemPagemap`].
    ///
    /// # Errors
    /// With the record that is not a run of pages in ascending order, or as [`Reader::open`] and [`Reader::next`].
    pub fn parse(name: &str, bytes: &[u8], kind: ImageKind) -> Result<Self> {
        let mut r = Reader::open_named(name, bytes, kind)?;
        let head: PagemapHead = r.expect()?;
        let mut map = Self::new(head.pages_id);
        while let Some(entry) = r.next::<PagemapEntry>()? {
            // Older dumps: 32-bit counts, and a bool instead of flags.
            let nr_pages = entry.nr_pages.unwrap_or(u64::from(entry.compat_nr_pages));
            let flags = match (entry.in_parent, entry.flags) {
                (Some(true), flags) => flags.unwrap_or(0) | PARENT,
                (_, Some(flags)) => flags,
                (_, None) => PRESENT,
            };
            map.append(entry.vaddr, nr_pages, flags).map_err(|e| match e.what() {
                What::Impossible(why) => r.impossible(why.clone()),
                _ => e,
            })?;
        }
        Ok(map)
    }

    /// The image of this pagemap.
    ///
    /// # Errors
    /// As [`Writer::entry`].
    pub fn encode(&self, kind: ImageKind) -> Result<Vec<u8>> {
        let mut w = Writer::new(Vec::new(), kind)?;
        w.entry(&PagemapHead { pages_id: self.pages_id })?;
        for run in &self.runs {
            w.entry(&PagemapEntry {
                vaddr: run.vaddr,
                nr_pages: Some(run.nr_pages),
                flags: Some(run.flags),
                ..PagemapEntry::default()
            })?;
        }
        Ok(w.into_inner())
    }

    /// Number of the pages file.
    pub fn pages_id(&self) -> u32 {
        self.pages_id
    }

    /// All runs, ascending.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Bytes in the pages file that belong to this pagemap. Nothing else shares a pages file.
    pub fn present_bytes(&self) -> u64 {
        self.present_bytes
    }

    /// The first run that ends after `addr`: the one that holds it, or the next.
    fn position(&self, addr: u64) -> usize {
        self.runs.partition_point(|run| run.end() <= addr)
    }

    /// The run that holds this address.
    pub fn find(&self, addr: u64) -> Option<&Run> {
        self.runs.get(self.position(addr)).filter(|run| run.vaddr <= addr)
    }
}

/// Where the bytes of some pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a pages file: how far up the chain (0 = the newest checkpoint), which file, and where in it.
    File {
        /// Index in the chain.
        level: usize,
        /// Number of the pages file of that checkpoint.
        pages_id: u32,
        /// Bytes from its start.
        offset: u64,
    },
    /// Recorded without bytes: a lazy dump whose pages wait at the source.
    Remote {
        /// Index in the chain.
        level: usize,
    },
}

/// A run of pages whose bytes lie in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Address of the first page.
    pub vaddr: u64,
    /// How many pages.
    pub nr_pages: u64,
    /// Whether the newest checkpoint lets them come later.
    pub lazy: bool,
    /// Where the bytes are.
    pub origin: Origin,
}

impl Piece {
    /// The address after the last page.
    pub fn end(&self) -> u64 {
        self.vaddr + self.nr_pages * PAGE_BYTES
    }
}

/// A pagemap with those of its parents, newest first.
#[derive(Clone, Debug)]
pub struct Chain {
    levels: Vec<Pagemap>,
}

impl Chain {
    /// `levels` are the newest checkpoint's pagemap and then its parents', as far as they have one for this memory.
    ///
    /// # Errors
    /// If there are more than [`MAX_LEVELS`] levels, or none.
    pub fn new(levels: Vec<Pagemap>) -> Result<Self> {
        if levels.is_empty() || levels.len() > MAX_LEVELS {
            let what = format!("a chain of {} checkpoints cannot be", levels.len());
            return Err(Error::new(ImageKind::Pagemap.file_name(0), 0, None, What::Impossible(what)));
        }
        Ok(Self { levels })
    }

    /// The pagemaps, newest first.
    pub fn levels(&self) -> &[Pagemap] {
        &self.levels
    }

    /// All pages, ascending, merged from all levels.
    ///
    /// # Errors
    /// As [`Chain::pieces_in`].
    pub fn pieces(&self) -> Result<Vec<Piece>> {
        self.pieces_in(0, u64::MAX)
    }

    /// The pages between two addresses (both at the start of a page, or `u64::MAX`), ascending. What is missing between the
    /// pieces is recorded nowhere.
    ///
    /// # Errors
    /// If a page is said to be in a parent that has no record of it.
    pub fn pieces_in(&self, start: u64, end: u64) -> Result<Vec<Piece>> {
        let mut out = Vec::new();
        self.collect(0, start, end, None, &mut out)?;
        Ok(out)
    }

    /// Where the page at this address comes from; `None` if it is recorded nowhere.
    ///
    /// # Errors
    /// As [`Chain::pieces_in`].
    pub fn lookup(&self, addr: u64) -> Result<Option<Piece>> {
        let start = addr - addr % PAGE_BYTES;
        Ok(self.pieces_in(start, start.saturating_add(PAGE_BYTES))?.first().copied())
    }

    /// Appends the pieces of `[start, end)` as `level` and its parents have them. `lazy` is set when a younger level sent us
    /// here: then every page must be found.
    fn collect(&self, level: usize, start: u64, end: u64, lazy: Option<bool>, out: &mut Vec<Piece>) -> Result<()> {
        let missing = |at: u64, until: u64| {
            let what = format!("pages {at:#x}-{until:#x} should be in checkpoint {level} of the chain, but are not");
            Err(Error::new(ImageKind::Pagemap.file_name(0), 0, None, What::Impossible(what)))
        };
        let Some(map) = self.levels.get(level) else {
            return missing(start, end);
        };
        let mut at = start;
        for run in map.runs.get(map.position(start)..).unwrap_or_default() {
            if run.vaddr >= end {
                break;
            }
            let (from, until) = (run.vaddr.max(start), run.end().min(end));
            if lazy.is_some() && from > at {
                return missing(at, from);
            }
            at = until;
            let lazy = lazy.unwrap_or(run.flags & LAZY != 0);
            let origin = match run.offset {
                Some(offset) => Origin::File { level, pages_id: map.pages_id, offset: offset + (from - run.vaddr) },
                None if run.flags & PARENT != 0 => {
                    // Depth is bounded: the chain has at most MAX_LEVELS levels.
                    self.collect(level + 1, from, until, Some(lazy), out)?;
                    continue;
                }
                None => Origin::Remote { level },
            };
            append(out, Piece { vaddr: from, nr_pages: (until - from) / PAGE_BYTES, lazy, origin });
        }
        if lazy.is_some() && at < end { missing(at, end) } else { Ok(()) }
    }
}

/// Appends a piece, or lengthens the last one if it continues there in memory and in the file.
fn append(out: &mut Vec<Piece>, piece: Piece) {
    if let Some(last) = out.last_mut()
        && last.end() == piece.vaddr
        && last.lazy == piece.lazy
    {
        let continues = match (last.origin, piece.origin) {
            (Origin::File { level: a, pages_id: i, offset }, Origin::File { level: b, pages_id: j, offset: next }) => {
                a == b && i == j && offset + last.nr_pages * PAGE_BYTES == next
            }
            (Origin::Remote { level: a }, Origin::Remote { level: b }) => a == b,
            _ => false,
        };
        if continues {
            last.nr_pages += piece.nr_pages;
            return;
        }
    }
    out.push(piece);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode_all;

    fn map(pages_id: u32, runs: &[(u64, u64, u32)]) -> Pagemap {
        let mut m = Pagemap::new(pages_id);
        for &(page, nr, flags) in runs {
            m.push(page * PAGE_BYTES, nr, flags).unwrap();
        }
        m
    }

    #[test]
    fn encodes_and_parses() -> Result<()> {
        let m = map(3, &[(1, 2, PRESENT), (3, 1, PRESENT), (4, 1, PRESENT | LAZY), (9, 5, PARENT), (20, 1, PRESENT)]);
        assert_eq!(m.runs().len(), 4, "adjacent runs are joined");
        assert_eq!(m.present_bytes(), 5 * PAGE_BYTES);
        assert_eq!(m.find(20 * PAGE_BYTES).and_then(|r| r.offset), Some(4 * PAGE_BYTES));
        assert_eq!(m.find(19 * PAGE_BYTES), None);
        let back = Pagemap::parse("pagemap-1.img", &m.encode(ImageKind::Pagemap)?, ImageKind::Pagemap)?;
        assert_eq!(back, m);
        Ok(())
    }

    #[test]
    fn older_entries_are_understood() -> Result<()> {
        let mut w = Writer::new(Vec::new(), ImageKind::Pagemap)?;
        w.entry(&PagemapHead { pages_id: 1 })?;
        w.entry(&PagemapEntry { vaddr: 4096, compat_nr_pages: 2, ..Default::default() })?;
        w.entry(&PagemapEntry { vaddr: 65536, compat_nr_pages: 1, in_parent: Some(true), ..Default::default() })?;
        let m = Pagemap::parse("pagemap-1.img", &w.into_inner(), ImageKind::Pagemap)?;
        let flags: Vec<(u64, u32)> = m.runs().iter().map(|r| (r.nr_pages, r.flags)).collect();
        assert_eq!(flags, [(2, PRESENT), (1, PARENT)]);
        Ok(())
    }

    #[test]
    fn impossible_runs_are_refused() -> Result<()> {
        for (entries, said) in [
            (vec![(4097, 1, PRESENT)], "does not begin at a page"),
            (vec![(4096, 0, PRESENT)], "is empty"),
            (vec![(4096, u64::MAX, PRESENT)], "beyond the address space"),
            (vec![(u64::MAX - 4095, 2, PRESENT)], "beyond the address space"),
            (vec![(8192, 1, PRESENT), (4096, 1, PRESENT)], "before the end"),
            (vec![(4096, 1, PRESENT | PARENT)], "both"),
        ] {
            let mut w = Writer::new(Vec::new(), ImageKind::Pagemap)?;
            w.entry(&PagemapHead { pages_id: 1 })?;
            for (vaddr, nr, flags) in entries {
                let entry = PagemapEntry { vaddr, nr_pages: Some(nr), flags: Some(flags), ..Default::default() };
                w.entry(&entry)?;
            }
            let e = Pagemap::parse("pagemap-7.img", &w.into_inner(), ImageKind::Pagemap).unwrap_err();
            assert!(e.to_string().contains(said), "{e}");
            assert_eq!(e.file(), "pagemap-7.img");
        }
        assert!(Pagemap::parse("x", &encode_all::<PagemapHead>(ImageKind::Pagemap, [])?, ImageKind::Pagemap).is_err());
        Ok(())
    }

    /// Three dumps of one memory, against a page table filled page by page.
    #[test]
    fn a_chain_finds_every_page() -> Result<()> {
        let oldest = map(1, &[(2, 10, PRESENT), (20, 4, PRESENT)]);
        let middle = map(2, &[(2, 4, PARENT), (6, 2, PRESENT), (8, 4, PARENT), (12, 1, PRESENT), (22, 2, PARENT)]);
        let newest = map(
            3,
            &[(1, 1, PRESENT), (2, 5, PARENT), (7, 1, PRESENT), (8, 5, PARENT | LAZY), (22, 1, PARENT), (30, 2, LAZY)],
        );
        let chain = Chain::new(vec![newest, middle, oldest])?;
        let pieces = chain.pieces()?;
        let file = |page: u64, nr_pages: u64, lazy: bool, level: usize, offset: u64| Piece {
            vaddr: page * PAGE_BYTES,
            nr_pages,
            lazy,
            origin: Origin::File { level, pages_id: 3 - level as u32, offset: offset * PAGE_BYTES },
        };
        let remote = Piece { vaddr: 30 * PAGE_BYTES, nr_pages: 2, lazy: true, origin: Origin::Remote { level: 0 } };
        assert_eq!(
            pieces,
            [
                file(1, 1, false, 0, 0),
                file(2, 4, false, 2, 0),
                file(6, 1, false, 1, 0),
                file(7, 1, false, 0, 1),
                file(8, 4, true, 2, 6),
                file(12, 1, true, 1, 2),
                file(22, 1, false, 2, 12),
                remote,
            ]
        );
        for page in 0..40 {
            let whole = pieces.iter().find(|p| (p.vaddr..p.end()).contains(&(page * PAGE_BYTES)));
            let single = chain.lookup(page * PAGE_BYTES + 17)?;
            assert_eq!(whole.is_some(), single.is_some(), "page {page}");
            if let (Some(whole), Some(single)) = (whole, single) {
                let ahead = page * PAGE_BYTES - whole.vaddr;
                let expected = match whole.origin {
                    Origin::File { level, pages_id, offset } => {
                        Origin::File { level, pages_id, offset: offset + ahead }
                    }
                    remote => remote,
                };
                assert_eq!((single.vaddr, single.nr_pages, single.origin), (page * PAGE_BYTES, 1, expected));
            }
        }
        Ok(())
    }

    #[test]
    fn a_parent_without_the_page_is_refused() -> Result<()> {
        let newest = map(2, &[(1, 4, PARENT)]);
        let gap = map(1, &[(1, 1, PRESENT), (3, 2, PRESENT)]);
        let e = Chain::new(vec![newest.clone(), gap])?.pieces().unwrap_err().to_string();
        assert!(e.contains("pages 0x2000-0x3000 should be in checkpoint 1"), "{e}");
        let e = Chain::new(vec![newest])?.pieces().unwrap_err().to_string();
        assert!(e.contains("pages 0x1000-0x5000"), "{e}");
        Ok(())
    }
}

//! /proc/PID/smaps and /proc/PID/maps: every mapping of a process, read in one pass and without keeping the text.
//!
//! smaps is needed for its VmFlags line; its sums (Rss, Shared, Anonymous, Swap) tell beforehand which mappings hold pages.
//! A kernel without smaps (CONFIG_PROC_PAGE_MONITOR off) still has maps: [`read_maps`] leaves the sums at `None`.
use crate::elsewhere;
use crate::procfs::{ProcDir, Stat};
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;

/// One mapping as the kernel prints it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First byte.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
    /// `PROT_READ`.
    pub read: bool,
    /// `PROT_WRITE`.
    pub write: bool,
    /// `PROT_EXEC`.
    pub exec: bool,
    /// `s` in the permissions: made by `MAP_SHARED`.
    pub shared: bool,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Major and minor number of the file system.
    pub dev: (u32, u32),
    /// Inode number, 0 without a file.
    pub inode: u64,
    /// Path or `[name]` as printed, empty for plain anonymous memory. A line feed in a path reads `\012`.
    pub name: Vec<u8>,
    /// What only smaps tells.
    pub detail: Option<Detail>,
}

/// The part of a mapping that only smaps tells. Sizes in KiB, as printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// Page size the kernel uses: more than 4 only for hugetlbfs and some device memory.
    pub page_kib: u64,
    /// Mapped pages, without the zero page.
    pub rss_kib: u64,
    /// Pages mapped by more than one process (clean and dirty).
    pub shared_kib: u64,
    /// Anonymous pages (in a private file mapping: the copied ones).
    pub anonymous_kib: u64,
    /// Swapped out.
    pub swap_kib: u64,
    /// Anonymous huge pages.
    pub anon_huge_kib: u64,
    /// The VmFlags line.
    pub flags: VmFlags,
}

/// The two-letter codes of a VmFlags line (proc_pid_smaps(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmFlags {
    bits: u64,
    /// The first code this version does not know; zeros if there is none.
    pub unknown: [u8; 2],
}

macro_rules! vm_flags {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        /// One flag of a mapping.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum VmFlag { $($(#[$doc])* $name),* }
        impl VmFlag {
            fn from_code(code: [u8; 2]) -> Option<Self> {
                match &code { $($code => Some(Self::$name),)* _ => None }
            }
        }
    };
}

vm_flags! {
    /// Readable.
    Read = b"rd";
    /// Writable.
    Write = b"wr";
    /// Executable.
    Exec = b"ex";
    /// Shared, and may be written.
    Shared = b"sh";
    /// May be made readable.
    MayRead = b"mr";
    /// May be made writable: a shared mapping of a file opened read-only lacks it.
    MayWrite = b"mw";
    /// May be made executable.
    MayExec = b"me";
    /// May be shared.
    MayShare = b"ms";
    /// Grows down.
    GrowsDown = b"gd";
    /// Page frames without struct page.
    PfnMap = b"pf";
    /// mlock()ed.
    Locked = b"lo";
    /// Device memory.
    Io = b"io";
    /// MADV_SEQUENTIAL.
    Sequential = b"sr";
    /// MADV_RANDOM.
    Random = b"rr";
    /// MADV_DONTFORK.
    DontCopy = b"dc";
    /// Not expandable by mremap.
    DontExpand = b"de";
    /// Pages locked when touched only (MLOCK_ONFAULT).
    LockOnFault = b"lf";
    /// Accounted.
    Account = b"ac";
    /// MAP_NORESERVE.
    NoReserve = b"nr";
    /// hugetlbfs.
    HugeTlb = b"ht";
    /// Synchronous page faults (MAP_SYNC).
    Sync = b"sf";
    /// Architecture-specific.
    Arch = b"ar";
    /// MADV_WIPEONFORK.
    WipeOnFork = b"wf";
    /// MADV_DONTDUMP.
    DontDump = b"dd";
    /// Soft-dirty.
    SoftDirty = b"sd";
    /// Mixed map.
    Mixed = b"mm";
    /// MADV_HUGEPAGE.
    HugePage = b"hg";
    /// MADV_NOHUGEPAGE.
    NoHugePage = b"nh";
    /// MADV_MERGEABLE.
    Mergeable = b"mg";
    /// BTI guarded page (arm64).
    Bti = b"bt";
    /// Memory tags (arm64).
    Mte = b"mt";
    /// userfaultfd: missing pages.
    UffdMissing = b"um";
    /// userfaultfd: write protection.
    UffdWp = b"uw";
    /// userfaultfd: minor faults.
    UffdMinor = b"ui";
    /// Shadow stack.
    ShadowStack = b"ss";
    /// mseal()ed.
    Sealed = b"sl";
    /// MAP_DROPPABLE.
    Droppable = b"dp";
    /// May hold guard regions.
    MaybeGuard = b"gu";
}

impl VmFlags {
    /// Parses what stands behind `VmFlags:`.
    pub fn parse(text: &[u8]) -> Self {
        let mut flags = Self::default();
        for word in text.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty()) {
            match <[u8; 2]>::try_from(word).ok().map(|c| (c, VmFlag::from_code(c))) {
                Some((_, Some(flag))) => flags.bits |= 1 << flag as u8,
                Some((code, None)) if flags.unknown == [0; 2] && code != *b"??" => flags.unknown = code,
                _ => {}
            }
        }
        flags
    }

    /// The flags without this one, for comparing what two kernels' moods may differ in.
    pub fn forget(&mut self, flag: VmFlag) {
        self.bits &= !(1 << flag as u8);
    }

    /// True if the flag is set.
    pub fn has(self, flag: VmFlag) -> bool {
        self.bits & (1 << flag as u8) != 0
    }
}

impl Mapping {
    /// Length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.end - self.start
    }

    /// True if smaps said so.
    pub fn has(&self, flag: VmFlag) -> bool {
        self.detail.is_some_and(|d| d.flags.has(flag))
    }

    /// Parses the first line of an entry; `None` if it is none.
    pub fn parse_line(line: &[u8]) -> Option<Self> {
        let (start, rest) = hex(line)?;
        let (end, rest) = hex(rest.strip_prefix(b"-")?)?;
        let rest = rest.strip_prefix(b" ")?;
        let (perms, rest) = rest.split_at_checked(4)?;
        let (offset, rest) = hex(rest.strip_prefix(b" ")?)?;
        let (major, rest) = hex(rest.strip_prefix(b" ")?)?;
        let (minor, rest) = hex(rest.strip_prefix(b":")?)?;
        let (inode, rest) = decimal(rest.strip_prefix(b" ")?)?;
        if end <= start {
            return None;
        }
        Some(Self {
            start,
            end,
            read: perms[0] == b'r',
            write: perms[1] == b'w',
            exec: perms[2] == b'x',
            shared: perms[3] == b's',
            offset,
            dev: (u32::try_from(major).ok()?, u32::try_from(minor).ok()?),
            inode,
            name: rest.trim_ascii_start().to_vec(),
            detail: None,
        })
    }
}

/// Gives every mapping with its details, in address order, as soon as it is known. `resident_pages` says how many pages of the
/// process are in memory, as its stat file has it: where there are many, the walk over them counts.
///
/// # Errors
/// As openat(2) and read(2): `ENOENT`, before anything is given, where the kernel has no smaps; `EINVAL` if a line cannot be
/// understood.
pub fn each_of_smaps(proc: &ProcDir, resident_pages: u64, give: impl FnMut(Mapping)) -> Result<()> {
    let read_bytes = if resident_pages > MUCH_PAGES { SMAPS_READ } else { ENTRIES_READ };
    Parser::read(proc.open_file("smaps")?, read_bytes, true, give)
}

/// Every mapping with its details, in address order.
///
/// # Errors
/// As [`each_of_smaps`].
pub fn read_smaps(proc: &ProcDir) -> Result<Vec<Mapping>> {
    let resident_pages = proc.read("stat").ok().and_then(|text| Stat::parse(&text)).map_or(0, |s| s.resident_pages);
    let mut all = Vec::new();
    each_of_smaps(proc, resident_pages, |mapping| all.push(mapping))?;
    Ok(all)
}

/// Every mapping, in address order, without details.
///
/// # Errors
/// As openat(2) and read(2); `EINVAL` if a line cannot be understood.
pub fn read_maps(proc: &ProcDir) -> Result<Vec<Mapping>> {
    maps_of(proc.open_file("maps")?)
}

/// The mappings of this process, as [`read_maps`].
///
/// # Errors
/// As [`read_maps`].
pub fn read_own_maps() -> Result<Vec<Mapping>> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    maps_of(rustix::fs::open("/proc/self/maps", flags, rustix::fs::Mode::empty())?)
}

fn maps_of(file: OwnedFd) -> Result<Vec<Mapping>> {
    let mut all = Vec::new();
    Parser::read(file, 64 << 10, false, |mapping| all.push(mapping))?;
    Ok(all)
}

struct Parser<F> {
    /// The mapping whose lines come just now.
    last: Option<Mapping>,
    smaps: bool,
    give: F,
}

impl<F: FnMut(Mapping)> Parser<F> {
    fn read(file: OwnedFd, read_bytes: usize, smaps: bool, give: F) -> Result<()> {
        let mut parser = Self { last: None, smaps, give };
        each_line(file, read_bytes, |line| parser.line(line))?;
        if let Some(last) = parser.last.take() {
            (parser.give)(last);
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> Result<()> {
        // A header starts with a lower-case hexadecimal digit, a detail line with a capital letter.
        if !line.first().is_some_and(u8::is_ascii_uppercase) {
            let mut mapping = Mapping::parse_line(line).ok_or(Errno::INVAL)?;
            if self.smaps {
                mapping.detail = Some(Detail::default());
            }
            if let Some(whole) = self.last.replace(mapping) {
                (self.give)(whole);
            }
            return Ok(());
        }
        let Some(detail) = self.last.as_mut().and_then(|m| m.detail.as_mut()) else { return Ok(()) };
        // Told apart by length and first letters: this runs some 25 times for each of perhaps 10,000 mappings.
        let kib = |key: &[u8]| line.strip_prefix(key).and_then(|v| decimal(v.trim_ascii_start())).map(|(n, _)| n);
        match line[0] {
            b'R' => detail.rss_kib = kib(b"Rss:").unwrap_or(detail.rss_kib),
            b'K' => detail.page_kib = kib(b"KernelPageSize:").unwrap_or(detail.page_kib),
            b'S' => match line.get(1) {
                Some(b'h') => {
                    if let Some(n) = kib(b"Shared_Clean:").or_else(|| kib(b"Shared_Dirty:")) {
                        detail.shared_kib += n;
                    }
                }
                Some(b'w') => detail.swap_kib = kib(b"Swap:").unwrap_or(detail.swap_kib),
                _ => {}
            },
            b'A' => {
                if let Some(n) = kib(b"Anonymous:") {
                    detail.anonymous_kib = n;
                } else if let Some(n) = kib(b"AnonHugePages:") {
                    detail.anon_huge_kib = n;
                }
            }
            b'V' => {
                if let Some(text) = line.strip_prefix(b"VmFlags:") {
                    detail.flags = VmFlags::parse(text);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// From here on the walk over the pages counts for more than the number of calls.
const MUCH_PAGES: u64 = 32 << 10;

/// Less than one entry. The kernel makes entries until its buffer of a page is full, throws the one away that does not fit and
/// makes it again at the next read: a large mapping's pages would be counted twice (20 ms/GiB). It makes no second entry for a
/// read that the first one fills.
const SMAPS_READ: usize = 512;

/// Gives the entries of a small process one after the other without waste: as many as the kernel's buffer holds fill it.
const ENTRIES_READ: usize = 3000;

/// A longer text is read by another thread while this one understands it: the kernel takes 4 µs for an entry of smaps.
const LONG_TEXT: usize = 256 << 10;
/// As much is handed over at once.
const PIECE: usize = 32 << 10;

/// Cuts text that comes in pieces into lines.
struct Lines<F> {
    /// The beginning of a line whose end has not come yet.
    begun: Vec<u8>,
    with: F,
}

impl<F: FnMut(&[u8]) -> Result<()>> Lines<F> {
    fn take(&mut self, mut text: &[u8]) -> Result<()> {
        while let Some(len) = find_line_feed(text) {
            let (line, rest) = (&text[..len], &text[len + 1..]);
            if self.begun.is_empty() {
                (self.with)(line)?;
            } else {
                self.begun.extend_from_slice(line);
                (self.with)(&self.begun)?;
                self.begun.clear();
            }
            text = rest;
        }
        self.begun.extend_from_slice(text);
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        if self.begun.is_empty() { Ok(()) } else { (self.with)(&self.begun) }
    }
}

/// Calls `with` for every line, without its line feed.
fn each_line(file: OwnedFd, read_bytes: usize, with: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut lines = Lines { begun: Vec::new(), with };
    if read_here(&file, read_bytes, LONG_TEXT, &mut lines)? {
        return lines.end();
    }
    std::thread::scope(|scope| {
        let (give, pieces) = mpsc::sync_channel::<Result<Vec<u8>>>(8);
        let (back, used) = mpsc::channel();
        let file = &file;
        if elsewhere::spawn(scope, "read", move || read_pieces(file, read_bytes, &used, &give)).is_err() {
            read_here(file, read_bytes, usize::MAX, &mut lines)?;
        }
        for piece in pieces {
            let piece = piece?;
            lines.take(&piece)?;
            // The reader may have come to the end.
            back.send(piece).unwrap_or_default();
        }
        lines.end()
    })
}

/// Reads some `most` bytes. True if that was the rest.
fn read_here<F: FnMut(&[u8]) -> Result<()>>(
    file: &OwnedFd,
    read_bytes: usize,
    most: usize,
    lines: &mut Lines<F>,
) -> Result<bool> {
    let mut buf = vec![0; read_bytes];
    let mut read = 0;
    while read < most {
        let n = rustix::io::retry_on_intr(|| rustix::io::read(file.as_fd(), &mut buf))?;
        if n == 0 {
            return Ok(true);
        }
        lines.take(&buf[..n])?;
        read += n;
    }
    Ok(false)
}

/// Reads to the end, or until nobody takes what was read. Buffers that come back are used again.
fn read_pieces(
    file: &OwnedFd,
    read_bytes: usize,
    used: &mpsc::Receiver<Vec<u8>>,
    give: &mpsc::SyncSender<Result<Vec<u8>>>,
) {
    loop {
        let mut piece = used.try_recv().unwrap_or_default();
        piece.resize(PIECE + read_bytes, 0);
        let mut filled = 0;
        let mut last = Ok(1);
        while filled < PIECE && last.is_ok_and(|n| n > 0) {
            last =
                rustix::io::retry_on_intr(|| rustix::io::read(file.as_fd(), &mut piece[filled..filled + read_bytes]));
            filled += last.unwrap_or(0);
        }
        piece.truncate(filled);
        let taken = give.send(Ok(piece));
        match last {
            Ok(n) if n > 0 && taken.is_ok() => {}
            Err(errno) if taken.is_ok() => return give.send(Err(errno)).unwrap_or_default(),
            _ => return,
        }
    }
}

fn find_line_feed(text: &[u8]) -> Option<usize> {
    // Eight bytes at a time; std has no public memchr for slices.
    const ONES: u64 = 0x0101_0101_0101_0101;
    let mut chunks = text.chunks_exact(8);
    let mut at = 0;
    for chunk in &mut chunks {
        let word = u64::from_le_bytes(chunk.try_into().unwrap_or([0; 8])) ^ (ONES * 0x0a);
        let found = word.wrapping_sub(ONES) & !word & (ONES << 7);
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    chunks.remainder().iter().position(|&b| b == b'\n').map(|p| at + p)
}

fn hex(text: &[u8]) -> Option<(u64, &[u8])> {
    let mut n = 0u64;
    let mut len = 0;
    for &b in text {
        let digit = match b {
            b'0'..=b'9' => b - b'0',
            b'a'..=b'f' => b - b'a' + 10,
            _ => break,
        };
        n = n.checked_mul(16)? | u64::from(digit);
        len += 1;
    }
    (len > 0).then(|| (n, &text[len..]))
}

fn decimal(text: &[u8]) -> Option<(u64, &[u8])> {
    let mut n = 0u64;
    let mut len = 0;
    for &b in text {
        if !b.is_ascii_digit() {
            break;
        }
        n = n.checked_mul(10)?.checked_add(u64::from(b - b'0'))?;
        len += 1;
    }
    (len > 0).then(|| (n, &text[len..]))
}

#[cfg(test)]
mod tests {
    #[test]
    fn long_and_short_texts_come_line_by_line() {
        for count in [0usize, 1, 100, 40_000] {
            let text: String = (0..count).map(|n| format!("{n}{}\n", "x".repeat(n % 90))).collect();
            let file = rustix::fs::memfd_create("lines", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
            let file = std::fs::File::from(file);
            std::os::unix::fs::FileExt::write_all_at(&file, text.as_bytes(), 0).expect("write");
            let mut lines = Vec::new();
            let with = |line: &[u8]| {
                lines.push(String::from_utf8_lossy(line).into_owned());
                Ok(())
            };
            super::each_line(file.into(), 700, with).expect("reads");
            assert_eq!(lines, text.lines().collect::<Vec<_>>(), "{count} lines");
        }
    }

    #[test]
    fn a_line_that_is_refused_ends_the_reading() {
        let file = rustix::fs::memfd_create("lines", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        let file = std::fs::File::from(file);
        std::os::unix::fs::FileExt::write_all_at(&file, "line\n".repeat(400_000).as_bytes(), 0).expect("write");
        let mut seen = 0;
        let result = super::each_line(file.into(), 3000, |_| {
            seen += 1;
            if seen == 100_000 { Err(super::Errno::INVAL) } else { Ok(()) }
        });
        assert_eq!((result, seen), (Err(super::Errno::INVAL), 100_000));
    }

    use super::*;
    use crate::HostTid;

    fn own() -> ProcDir {
        ProcDir::open(HostTid::new(std::process::id() as i32).expect("a pid")).expect("own /proc entry")
    }

    #[test]
    fn smaps_and_maps_agree_about_this_process() {
        let smaps = read_smaps(&own()).expect("smaps");
        let probe = &smaps as *const _ as u64;
        let vma = smaps.iter().find(|m| m.start <= probe && probe < m.end).expect("our stack is mapped");
        assert!(vma.read && vma.write && vma.has(VmFlag::Read) && vma.has(VmFlag::Write) && vma.has(VmFlag::MayWrite));
        assert!(vma.detail.is_some_and(|d| d.rss_kib >= 4 && d.anonymous_kib >= 4 && d.page_kib == 4));
        assert!(smaps.is_sorted_by(|a, b| a.end <= b.start));
        let text = smaps
            .iter()
            .find(|m| m.start <= read_smaps as *const () as u64 && (read_smaps as *const () as u64) < m.end);
        let text = text.expect("our code is mapped");
        assert!(text.exec && text.inode != 0 && text.name.starts_with(b"/"));
        let maps = read_maps(&own()).expect("maps");
        assert!(
            maps.iter().any(|m| (m.start, m.dev, m.inode) == (text.start, text.dev, text.inode) && m.detail.is_none())
        );
    }

    #[test]
    fn lines() {
        let m = Mapping::parse_line(b"7f00-8f00 r-xs 0001f000 fe:00 762242                     /a b (deleted)")
            .expect("parses");
        assert_eq!((m.start, m.end, m.offset, m.dev, m.inode), (0x7f00, 0x8f00, 0x1f000, (0xfe, 0), 762242));
        assert!(m.read && !m.write && m.exec && m.shared);
        assert_eq!(m.name, b"/a b (deleted)");
        let m =
            Mapping::parse_line(b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]");
        assert_eq!(m.expect("parses").name, b"[vsyscall]");
        for bad in
            [&b""[..], b"-", b"1-", b"2-1 rwxp 0 0:0 0", b"1-2 rw", b"1-2 rwxp x", b"11111111111111111-2 rwxp 0 0:0 0"]
        {
            assert_eq!(Mapping::parse_line(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn flags_known_and_unknown() {
        let flags = VmFlags::parse(b" rd wr mr gd lo hg zz yy ");
        assert!(flags.has(VmFlag::GrowsDown) && flags.has(VmFlag::Locked) && flags.has(VmFlag::HugePage));
        assert!(!flags.has(VmFlag::Exec));
        assert_eq!(flags.unknown, *b"zz");
    }

    #[test]
    fn line_feeds_are_found_at_every_place() {
        for len in 0..40 {
            for at in 0..len {
                let mut text = vec![0x8a; len];
                text[at] = b'\n';
                assert_eq!(find_line_feed(&text), Some(at));
            }
            assert_eq!(find_line_feed(&vec![0x0b; len]), None);
        }
    }
}

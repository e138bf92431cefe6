//! Mappings that check themselves.
#![allow(unsafe_code, reason = "mmap and what is done to mappings")]
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::AtomicU64;

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// A mapping of this process, unmapped when dropped.
#[derive(Debug)]
pub struct Map {
    at: *mut u8,
    len: usize,
}

// SAFETY: the memory belongs to the process, not to a thread; access rules are those of &self and &mut self.
unsafe impl Send for Map {}
// SAFETY: through &self only reads and atomics.
unsafe impl Sync for Map {}

impl Map {
    /// Maps `len` bytes with `flags` (`MAP_PRIVATE | MAP_ANONYMOUS` and the like).
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn new(len: usize, prot: i32, flags: i32, file: Option<(BorrowedFd<'_>, i64)>) -> Self {
        let (fd, offset) = file.map_or((-1, 0), |(fd, offset)| (fd.as_raw_fd(), offset));
        // SAFETY: the kernel picks the place (no MAP_FIXED in the zoo's flags), so no mapping in use is replaced.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, offset) };
        assert_ne!(at, libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        Self { at: at.cast(), len }
    }

    /// Private anonymous memory, readable and writable.
    pub fn anon(len: usize) -> Self {
        Self::new(len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)
    }

    /// Shared anonymous memory, readable and writable.
    pub fn shared(len: usize) -> Self {
        Self::new(len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, None)
    }

    /// A new System V segment and its id; it is marked for removal at its last use.
    ///
    /// # Errors
    /// As the calls.
    pub fn sysv(len: usize) -> io::Result<(i32, Self)> {
        // SAFETY: takes numbers only.
        let id = crate::sys::cvt(unsafe { libc::shmget(libc::IPC_PRIVATE, len, libc::IPC_CREAT | 0o640) })?;
        // SAFETY: without an address the kernel takes only what is free.
        let at = unsafe { libc::shmat(id, std::ptr::null(), 0) };
        let failed = (at as isize == -1).then(io::Error::last_os_error);
        // SAFETY: the third argument is not used.
        crate::sys::cvt(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) })?;
        failed.map_or(Ok((id, Self { at: at.cast(), len })), Err)
    }

    /// Private memory with room behind it that nothing else takes, and a page without permissions before it.
    pub fn guarded(len: usize, room: usize) -> Self {
        let all = Self::new(PAGE + room, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None);
        all.protect(PAGE, len, libc::PROT_READ | libc::PROT_WRITE);
        let at = all.at.wrapping_add(PAGE);
        std::mem::forget(all);
        Self { at, len }
    }

    /// Makes it longer where it is, into the room that [`Self::guarded`] left.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn grow(&mut self, len: usize) {
        assert!(len > self.len);
        // SAFETY: the room behind belongs to this mapping and holds nothing.
        let got = unsafe {
            libc::munmap(self.at.add(self.len).cast(), len - self.len);
            libc::mremap(self.at.cast(), self.len, len, 0)
        };
        assert_ne!(got, libc::MAP_FAILED, "mremap: {}", io::Error::last_os_error());
        self.len = len;
    }

    /// Unmaps all but these bytes.
    pub fn cut(&mut self, from: usize, to: usize) {
        assert!(from < to && to <= self.len);
        // SAFETY: parts of this mapping, which nothing borrows.
        unsafe {
            libc::munmap(self.at.cast(), from);
            libc::munmap(self.at.add(to).cast(), self.len - to);
        }
        (self.at, self.len) = (self.at.wrapping_add(from), to - from);
    }

    /// Where it is.
    pub fn addr(&self) -> u64 {
        self.at as u64
    }

    /// How long it is, in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a mapping has a page at least.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes; the mapping must be readable and not shared with a writer.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is `len` bytes and lives as long as self.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }

    /// The bytes for writing; the mapping must be writable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and self is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }

    /// Word `i` of memory that several processes or threads write.
    ///
    /// # Panics
    /// If it is outside.
    pub fn word(&self, i: usize) -> &AtomicU64 {
        assert!((i + 1) * 8 <= self.len);
        // SAFETY: inside the mapping by the check, aligned because mappings are, and atomics may be shared.
        unsafe { &*self.at.cast::<AtomicU64>().add(i) }
    }

    /// Writes a pattern that differs from page to page and from seed to seed.
    pub fn fill(&mut self, seed: u64) {
        fill(self.bytes_mut(), seed);
    }

    /// True if the pattern of `seed` is there, byte for byte.
    pub fn holds(&self, seed: u64) -> bool {
        holds(self.bytes(), seed)
    }

    /// mprotect on `len` bytes from `offset`.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn protect(&self, offset: usize, len: usize, prot: i32) {
        assert!(offset + len <= self.len);
        // SAFETY: inside this mapping; the caller touches only what its protection allows.
        let done = unsafe { libc::mprotect(self.at.add(offset).cast(), len, prot) };
        assert_eq!(done, 0, "mprotect: {}", io::Error::last_os_error());
    }

    /// madvise on the whole.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn advise(&self, advice: i32) -> io::Result<()> {
        // SAFETY: the whole of this mapping; advice that drops pages is only used where the content is not needed.
        crate::sys::cvt(unsafe { libc::madvise(self.at.cast(), self.len, advice) }).map(|_| ())
    }

    /// madvise on `len` bytes from `offset`.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn advise_at(&self, offset: usize, len: usize, advice: i32) -> io::Result<()> {
        assert!(offset + len <= self.len);
        // SAFETY: inside this mapping; advice that drops pages is only used where the content is not needed.
        crate::sys::cvt(unsafe { libc::madvise(self.at.add(offset).cast(), len, advice) }).map(|_| ())
    }

    /// True for each page that the kernel could read here: a write(2) from it into a pipe does not fail with EFAULT.
    pub fn readable_at(&self, offset: usize) -> bool {
        assert!(offset < self.len);
        let Ok((_read, write)) = rustix::pipe::pipe() else { return false };
        // SAFETY: the kernel checks the address; one byte inside this mapping.
        unsafe { libc::write(write.as_raw_fd(), self.at.add(offset).cast(), 1) == 1 }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows it any more.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// The pattern of [`Map::fill`].
fn pattern(word: usize, seed: u64) -> u64 {
    (word as u64 ^ seed.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ seed
}

/// Writes the pattern into any bytes.
pub fn fill(bytes: &mut [u8], seed: u64) {
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&pattern(i, seed).to_ne_bytes());
    }
}

/// True if the bytes hold the pattern.
pub fn holds(bytes: &[u8], seed: u64) -> bool {
    bytes.chunks_exact(8).enumerate().all(|(i, word)| word == pattern(i, seed).to_ne_bytes())
}

/// One line of /proc/self/maps without the device and inode, and the `VmFlags` of smaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// `rwxp`.
    pub perms: String,
    /// Path or `[name]`.
    pub name: String,
    /// Two-letter flags, in the kernel's order.
    pub flags: String,
}

/// All mappings of this process.
pub fn vmas() -> Vec<Vma> {
    let (text, mut found) = (std::fs::read_to_string("/proc/self/smaps").unwrap_or_default(), Vec::<Vma>::new());
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if let Some(last) = found.last_mut() {
                // Soft-dirty comes and goes; accounting of what was once writable cannot be seen by the program.
                let kept = flags.split_whitespace().filter(|f| !matches!(*f, "sd" | "ac"));
                last.flags = kept.collect::<Vec<_>>().join(" ");
            }
        } else if let Some(((start, end), rest)) =
            line.split_once(' ').and_then(|(range, rest)| Some((range.split_once('-')?, rest)))
        {
            let number = |hex| u64::from_str_radix(hex, 16);
            if let (Ok(start), Ok(end)) = (number(start), number(end)) {
                let words: Vec<&str> = rest.split_whitespace().collect();
                let name = words.get(4..).unwrap_or_default().join(" ");
                found.push(Vma { start, end, perms: words[0].to_owned(), name, flags: String::new() });
            }
        }
    }
    found
}

/// The mappings that overlap `map`.
pub fn vmas_of(map: &Map) -> Vec<Vma> {
    let (start, end) = (map.addr(), map.addr() + map.len() as u64);
    vmas().into_iter().filter(|v| v.start < end && v.end > start).collect()
}

/// Where the kernel has page number `page` of `map` in process `pid`: its frame, or its place in swap. `None` if it does not say.
pub fn frames(pid: i32, map: &Map, page: usize) -> Option<u64> {
    use std::os::unix::fs::FileExt;
    let pagemap = std::fs::File::open(format!("/proc/{pid}/pagemap")).ok()?;
    let mut word = [0; 8];
    pagemap.read_exact_at(&mut word, (map.addr() / PAGE as u64 + page as u64) * 8).ok()?;
    let place = u64::from_ne_bytes(word) & ((1 << 55) - 1);
    (place != 0).then_some(place)
}

/// Kilobytes of `map` that are in memory.
pub fn resident_kib(map: &Map) -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let head = format!("{:x}-", map.addr());
    let from_here = text.lines().skip_while(|l| !l.starts_with(&head));
    let rss = from_here.skip(1).find_map(|l| l.strip_prefix("Rss:"));
    rss.and_then(|r| r.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(u64::MAX)
}

//! The hashes of files that lie in the image directory.
use crust_image::manifest::{ContentHash, Hasher, PageSum, is_pages};
use crust_image::pagemap::PAGE_BYTES;
use rustix::io::Errno;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

/// The hash that the manifest has for a file of this name. Large files of pages are read by two threads.
pub(super) fn hash_of(file: &File, name: &str) -> std::io::Result<ContentHash> {
    if is_pages(name) {
        return pages_hash(file);
    }
    let mut hasher = Hasher::for_file(name);
    each_piece(file, 0, u64::MAX, |_, bytes| hasher.update(bytes))?;
    Ok(hasher.finish())
}

/// What is read at once: it stays in the second-level cache until it is hashed.
const PIECE: u64 = 256 << 10;

/// Parts that threads take; below this one thread does all.
const PART: u64 = 8 << 20;

fn pages_hash(file: &File) -> std::io::Result<ContentHash> {
    let len = file.metadata()?.len();
    let next = AtomicU64::new(0);
    let work = || -> std::io::Result<PageSum> {
        let mut sum = PageSum::default();
        loop {
            let start = next.fetch_add(PART, Ordering::Relaxed);
            if start >= len {
                return Ok(sum);
            }
            each_piece(file, start, start.saturating_add(PART), |at, bytes| sum.add(at / PAGE_BYTES, bytes))?;
        }
    };
    let several = len > PART && std::thread::available_parallelism().is_ok_and(|n| n.get() > 1);
    if !several {
        return Ok(work()?.finish());
    }
    std::thread::scope(|scope| {
        // Without another thread (pids.max) this one does it all.
        let other = crust_kernel::elsewhere::spawn(scope, "hash", work).ok();
        let mut sum = work()?;
        if let Some(other) = other {
            sum.join(other.join().unwrap_or_else(|_| Err(std::io::Error::other("a thread panicked")))?);
        }
        Ok(sum.finish())
    })
}

/// Calls `take` with the bytes from `at` to `end` or the file's end, in order; every piece but the file's last is [`PIECE`]
/// bytes long.
pub(super) fn each_piece(file: &File, mut at: u64, end: u64, mut take: impl FnMut(u64, &[u8])) -> std::io::Result<()> {
    let mut buffer = vec![0; PIECE as usize];
    while at < end {
        let mut filled = 0;
        while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
            match rustix::io::pread(file, room, at + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        take(at, buffer.get(..filled).unwrap_or_default());
        if filled < buffer.len() {
            break;
        }
        at += PIECE;
    }
    Ok(())
}

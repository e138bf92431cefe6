//! A page of counters shared between the harness, a target and its tracer: watching it disturbs nobody.
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Words of the page.
#[derive(Clone, Copy)]
pub(crate) enum Word {
    /// Set by the target once it is in its loop; the number of its progress words.
    Ready,
    /// Wrong state found by the target itself.
    Corrupt,
    /// Calls that returned EINTR.
    Eintr,
    /// Longest oversleep in microseconds.
    Oversleep,
    /// What the tracer is doing.
    Phase,
    /// The tracer waits for this before its round.
    Go,
    /// Rounds the tracer has finished.
    Rounds,
    /// A reader has got this many messages.
    Messages,
}

/// First progress word.
const PROGRESS: usize = 16;

pub(crate) struct Page(&'static [AtomicU64; 512]);

impl Page {
    pub(crate) fn open(path: &Path) -> Self {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        file.set_len(4096).unwrap();
        let (prot, flags) = (rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE, rustix::mm::MapFlags::SHARED);
        // SAFETY: a new mapping of a whole page of a file that keeps its size; it is never unmapped, all access is by
        // atomics, and every bit pattern is a valid word.
        Self(unsafe { &*rustix::mm::mmap(std::ptr::null_mut(), 4096, prot, flags, &file, 0).unwrap().cast() })
    }
    pub(crate) fn get(&self, word: Word) -> u64 {
        self.0[word as usize].load(SeqCst)
    }
    pub(crate) fn set(&self, word: Word, value: u64) {
        self.0[word as usize].store(value, SeqCst);
    }
    pub(crate) fn add(&self, word: Word, value: u64) {
        self.0[word as usize].fetch_add(value, SeqCst);
    }
    pub(crate) fn max(&self, word: Word, value: u64) {
        self.0[word as usize].fetch_max(value, SeqCst);
    }
    pub(crate) fn step(&self, lane: usize) {
        self.0[PROGRESS + lane].fetch_add(1, SeqCst);
    }
    pub(crate) fn progress(&self) -> Vec<u64> {
        let lanes = self.get(Word::Ready) as usize;
        (0..lanes).map(|i| self.0[PROGRESS + i].load(SeqCst)).collect()
    }
}

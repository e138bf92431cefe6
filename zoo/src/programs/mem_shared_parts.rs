//! Shared memory of which two processes have different parts and protections.
#![allow(unsafe_code, reason = "unmaps a part of a mapping")]
use std::sync::atomic::Ordering::SeqCst;
use zoo::mem::{Map, PAGE};

const WORDS: usize = PAGE / 8;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let map = Map::shared(12 * PAGE);
    for page in 0..12 {
        map.word(page * WORDS).store(page as u64 + 50, SeqCst);
    }
    let look = |pages: std::ops::Range<usize>| pages.map(|p| map.word(p * WORDS).load(SeqCst)).collect::<Vec<_>>();
    let cut = |from: usize, pages: usize| {
        // SAFETY: inside the mapping, and nothing reads this part any more in this process.
        let done = unsafe { libc::munmap((map.addr() as usize + from * PAGE) as *mut _, pages * PAGE) };
        assert_eq!(done, 0);
    };
    zoo.fork("child", |mut zoo| {
        cut(0, 4);
        map.protect(10 * PAGE, 2 * PAGE, libc::PROT_READ);
        while zoo.gap() {
            zoo.eq("what the child sees", look(4..12), (54..62).collect());
            let round = u64::from(zoo.round());
            map.word(5 * WORDS + 1).store(round, SeqCst);
            zoo.tell(&format!("stored.{round}"), "");
        }
    });
    cut(8, 4);
    while zoo.gap() {
        zoo.eq("what the parent sees", look(0..8), (50..58).collect());
        let told = zoo.hear(&format!("stored.{}", zoo.round()));
        zoo.ok("the child stores", told.is_some());
        zoo.eq("the child's store", map.word(5 * WORDS + 1).load(SeqCst), zoo.round().into());
    }
    // Part of it is gone already; the process ends now anyway.
    std::mem::forget(map);
}

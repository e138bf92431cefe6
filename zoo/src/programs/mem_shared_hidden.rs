//! Shared memory of which nobody maps the end: a mapping that grows again shows what was written there.
#![allow(unsafe_code, reason = "a mapping shrinks and grows")]
use std::sync::atomic::Ordering::SeqCst;
use zoo::mem::{Map, PAGE};

const WORDS: usize = PAGE / 8;
const ALL: usize = 12;
const SEEN: usize = 8;

fn resize(map: &Map, from: usize, to: usize) -> bool {
    // SAFETY: the pages that go are not used until they are back, at the same place.
    let at = unsafe { libc::mremap(map.addr() as *mut _, from * PAGE, to * PAGE, 0) };
    at as u64 == map.addr()
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let map = Map::shared(ALL * PAGE);
    for page in 0..ALL - 1 {
        map.word(page * WORDS).store(page as u64 + 50, SeqCst);
    }
    zoo.ok("it shrinks", resize(&map, ALL, SEEN));
    while zoo.gap() {
        zoo.ok("it grows", resize(&map, SEEN, ALL));
        let seen: Vec<u64> = (0..ALL).map(|page| map.word(page * WORDS).load(SeqCst)).collect();
        let want: Vec<u64> = (50..61).chain([0]).collect();
        zoo.eq("what lies there", seen, want);
        zoo.ok("it shrinks", resize(&map, ALL, SEEN));
    }
}

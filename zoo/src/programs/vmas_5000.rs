//! Five thousand mappings, each with a word of its own.
use std::sync::atomic::Ordering::SeqCst;
use zoo::mem::{Map, PAGE, vmas_of};

const PAGES: usize = 5000;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let map = Map::anon(PAGES * PAGE);
    for page in 0..PAGES {
        map.word(page * PAGE / 8).store(page as u64 * 7, SeqCst);
    }
    for page in (0..PAGES).step_by(2) {
        map.protect(page * PAGE, PAGE, libc::PROT_READ);
    }
    let before = vmas_of(&map);
    zoo.ok("there are that many", before.len() >= PAGES - 1);
    while zoo.gap() {
        zoo.ok("mappings", vmas_of(&map) == before);
        let wrong = (0..PAGES).find(|page| map.word(page * PAGE / 8).load(SeqCst) != *page as u64 * 7);
        zoo.eq("first wrong page", wrong, None);
    }
}

//! Mappings that a child inherited and made longer, shorter or partly read-only still share their other pages with the
//! parent's.
use zoo::mem::{Map, PAGE, fill, frames, holds, vmas_of};

const PAGES: usize = 16;

/// `map` begins with page number `first`.
fn pages_hold(map: &Map, first: usize, mut pages: std::ops::Range<usize>) -> bool {
    pages.all(|p| holds(&map.bytes()[(p - first) * PAGE..][..PAGE], 7 + p as u64))
}

/// First address, end and protection of what lies at `map`.
fn shape(map: &Map) -> Vec<(u64, u64, String)> {
    vmas_of(map).into_iter().map(|v| (v.start, v.end, v.perms)).collect()
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    // Guards around each keep the kernel from joining them.
    let mut maps: Vec<Map> = (0..3).map(|_| Map::guarded(PAGES * PAGE, 4 * PAGES * PAGE)).collect();
    for map in &mut maps {
        for p in 0..PAGES {
            fill(&mut map.bytes_mut()[p * PAGE..][..PAGE], 7 + p as u64);
        }
    }
    let me = zoo::sys::getpid();
    if frames(me, &maps[0], 0).is_none() {
        zoo.skip("page frames are hidden from us");
    }
    let child = zoo.fork("child", |mut zoo| {
        maps[0].grow(2 * PAGES * PAGE);
        fill(&mut maps[0].bytes_mut()[PAGES * PAGE..][..PAGE], 7 + PAGES as u64);
        // Written while it can be, then read-only.
        fill(&mut maps[1].bytes_mut()[4 * PAGE..][..PAGE], 999);
        maps[1].protect(4 * PAGE, 4 * PAGE, libc::PROT_READ);
        maps[2].cut(4 * PAGE, 12 * PAGE);
        let shapes: Vec<_> = maps.iter().map(shape).collect();
        while zoo.gap() {
            zoo.ok("the longer one", pages_hold(&maps[0], 0, 0..PAGES + 1));
            zoo.ok("its end is empty", maps[0].bytes()[(PAGES + 1) * PAGE..].iter().all(|&b| b == 0));
            zoo.ok("the protected one", pages_hold(&maps[1], 0, 0..4) && pages_hold(&maps[1], 0, 5..PAGES));
            zoo.ok("its own page", holds(&maps[1].bytes()[4 * PAGE..][..PAGE], 999));
            zoo.ok("the shorter one", pages_hold(&maps[2], 4, 4..12));
            zoo.eq("mappings", maps.iter().map(shape).collect(), shapes.clone());
        }
    });
    while zoo.gap() {
        for (i, (map, pages)) in maps.iter().zip([0..PAGES, 0..PAGES, 4..12]).enumerate() {
            zoo.ok(&format!("mapping {i}"), pages_hold(map, 0, 0..PAGES));
            let same = |p: usize| (i == 1 && p == 4) || frames(me, map, p) == frames(child, map, p);
            // The kernel may move a page between two looks.
            let lost: Vec<usize> = pages.filter(|&p| !(0..50).any(|_| same(p))).collect();
            zoo.ok(&format!("mapping {i}: pages {lost:?} are not shared"), lost.is_empty());
        }
    }
}

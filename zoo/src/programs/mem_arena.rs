//! One arena cut by mprotect into pieces of every protection.
use zoo::mem::{Map, PAGE, vmas_of};

const PAGES: usize = 96;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mut map = Map::anon(PAGES * PAGE);
    let (r, w, x) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    let prots = [r | w, r, libc::PROT_NONE, r | x, w, r | w | x];
    loop {
        let seed = u64::from(zoo.round());
        map.fill(seed);
        for page in 0..PAGES {
            map.protect(page * PAGE, PAGE, prots[(page / 3) % prots.len()]);
        }
        let before = vmas_of(&map);
        let on = zoo.gap();
        zoo.eq("mappings", vmas_of(&map), before);
        map.protect(0, PAGES * PAGE, r | w);
        zoo.ok("content", map.holds(seed));
        if !on {
            return;
        }
    }
}

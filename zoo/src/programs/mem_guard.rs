//! Guard pages that nobody may touch, with content below the protection.
use zoo::mem::{Map, PAGE, fill, holds, vmas_of};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mut map = Map::anon(12 * PAGE);
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    loop {
        let seed = u64::from(zoo.round());
        map.fill(seed);
        fill(&mut map.bytes_mut()[4 * PAGE..5 * PAGE], seed + 9);
        map.protect(4 * PAGE, 3 * PAGE, libc::PROT_NONE);
        let before = vmas_of(&map);
        let on = zoo.gap();
        zoo.eq("mappings", vmas_of(&map), before);
        let can: Vec<bool> = (0..12).map(|page| map.readable_at(page * PAGE)).collect();
        zoo.eq("readable pages", can, (0..12).map(|page| !(4..7).contains(&page)).collect());
        map.protect(4 * PAGE, 3 * PAGE, rw);
        zoo.ok("content below the guard", holds(&map.bytes()[4 * PAGE..5 * PAGE], seed + 9));
        fill(&mut map.bytes_mut()[..PAGE], seed);
        if !on {
            return;
        }
    }
}

//! Every piece of advice that leaves a mark on a mapping.
use zoo::mem::{Map, PAGE, vmas_of};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let advice = [
        libc::MADV_DONTFORK,
        libc::MADV_WIPEONFORK,
        libc::MADV_DONTDUMP,
        libc::MADV_NOHUGEPAGE,
        libc::MADV_HUGEPAGE,
        libc::MADV_SEQUENTIAL,
        libc::MADV_RANDOM,
        libc::MADV_MERGEABLE,
    ];
    // A guard page on each side keeps neighbours with equal flags from merging.
    let mut maps = Vec::new();
    for advice in advice {
        let mut map = Map::anon(6 * PAGE);
        map.bytes_mut()[PAGE..5 * PAGE].fill(advice.unsigned_abs().to_le_bytes()[0]);
        map.protect(0, PAGE, libc::PROT_NONE);
        map.protect(5 * PAGE, PAGE, libc::PROT_NONE);
        if map.advise(advice).is_ok() {
            maps.push((advice, vmas_of(&map), map));
        }
    }
    zoo.ok("most advice is taken", maps.len() >= 5);
    while zoo.gap() {
        for (advice, before, map) in &maps {
            zoo.eq(&format!("mappings with advice {advice}"), &vmas_of(map), before);
            let want = advice.unsigned_abs().to_le_bytes()[0];
            zoo.ok("content", map.bytes()[PAGE..5 * PAGE].iter().all(|&b| b == want));
        }
    }
}

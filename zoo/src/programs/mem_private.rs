//! Private anonymous memory: content, holes that stay holes, and pages written and zeroed again.
use zoo::mem::{Map, PAGE, fill, holds, resident_kib};

/// More than one thread reads at a time.
const FULL: usize = 1300;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (mut full, mut sparse) = (Map::anon(FULL * PAGE), Map::anon(4096 * PAGE));
    let touched: Vec<usize> = (0..4096).filter(|i| i % 511 == 3).collect();
    sparse.advise(libc::MADV_NOHUGEPAGE).unwrap_or_default();
    loop {
        let seed = u64::from(zoo.round());
        full.fill(seed);
        full.bytes_mut()[7 * PAGE..8 * PAGE].fill(0);
        for &page in &touched {
            fill(&mut sparse.bytes_mut()[page * PAGE..][..PAGE], seed + page as u64);
        }
        let on = zoo.gap();
        let rss = resident_kib(&sparse);
        zoo.ok(&format!("{rss} KiB are resident of {} pages", touched.len()), rss <= 4 * touched.len() as u64);
        for &page in &touched {
            zoo.ok(&format!("page {page}"), holds(&sparse.bytes()[page * PAGE..][..PAGE], seed + page as u64));
        }
        zoo.ok("a hole reads as zero", sparse.bytes()[100 * PAGE..][..PAGE].iter().all(|&b| b == 0));
        zoo.ok("zeroed page", full.bytes()[7 * PAGE..8 * PAGE].iter().all(|&b| b == 0));
        fill(&mut full.bytes_mut()[7 * PAGE..8 * PAGE], seed);
        zoo.ok("first page", holds(&full.bytes()[..7 * PAGE], seed));
        let mut want = vec![0; FULL * PAGE];
        fill(&mut want, seed);
        zoo.ok("the rest", full.bytes()[8 * PAGE..] == want[8 * PAGE..]);
        if !on {
            return;
        }
    }
}

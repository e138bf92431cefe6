//! Shared anonymous memory of a parent and a child: content, and writes seen by the other side afterwards.
use std::sync::atomic::Ordering::SeqCst;
use zoo::mem::{Map, PAGE};

const LAST: usize = 16 * PAGE / 8 - 1;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let map = Map::shared(16 * PAGE);
    map.word(LAST).store(0xfeed, SeqCst);
    let wait_for = |word: usize, want: u64| {
        (0..4000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            map.word(word).load(SeqCst) == want
        })
    };
    zoo.fork("child", |mut zoo| {
        while zoo.gap() {
            let n = u64::from(zoo.round());
            zoo.eq("old content, child", map.word(LAST).load(SeqCst), 0xfeed);
            zoo.ok("the parent's write arrives", wait_for(0, n));
            map.word(PAGE).store(n * 10, SeqCst);
        }
    });
    while zoo.gap() {
        let n = u64::from(zoo.round());
        zoo.eq("old content, parent", map.word(LAST).load(SeqCst), 0xfeed);
        map.word(0).store(n, SeqCst);
        zoo.ok("the child's write arrives", wait_for(PAGE, n * 10));
    }
}

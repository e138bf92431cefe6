//! A System V shared memory segment of two processes, larger than what was written, that goes with its last user.
use std::sync::atomic::Ordering::SeqCst;
use zoo::mem::{Map, PAGE, fill, holds};

const LEN: usize = 64 * PAGE + 100;
const PARENT: usize = 10 * PAGE / 8;
const CHILD: usize = 20 * PAGE / 8;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let Ok((id, mut map)) = Map::sysv(LEN) else { zoo.skip("no System V shared memory") };
    fill(&mut map.bytes_mut()[..2 * PAGE], 5);
    let wait_for = |word: usize, want: u64| {
        (0..12_000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            map.word(word).load(SeqCst) == want
        })
    };
    zoo.fork("child", |mut zoo| {
        while zoo.gap() {
            let n = u64::from(zoo.round());
            zoo.ok("the parent's write arrives", wait_for(PARENT, n));
            map.word(CHILD).store(n * 10, SeqCst);
        }
    });
    let before = zoo::sys::shm_look(id);
    zoo.ok("the segment is there", before.as_ref().is_some_and(|b| b.len() == 9));
    while zoo.gap() {
        let n = u64::from(zoo.round());
        zoo.eq("the segment", zoo::sys::shm_look(id), before.clone());
        zoo.ok("content", holds(&map.bytes()[..2 * PAGE], 5));
        zoo.ok("nothing behind it", map.bytes()[30 * PAGE..].iter().all(|&b| b == 0));
        map.word(PARENT).store(n, SeqCst);
        zoo.ok("the child's write arrives", wait_for(CHILD, n * 10));
    }
}

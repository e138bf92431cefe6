//! A thread that counts all the time, and a hash that depends on every step.
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

static COUNT: AtomicU64 = AtomicU64::new(0);
static HASH: AtomicU64 = AtomicU64::new(1);

fn step(hash: u64, n: u64) -> u64 {
    (hash ^ n).wrapping_mul(0x0100_0000_01b3).rotate_left(7)
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    std::thread::spawn(|| {
        for n in 1.. {
            HASH.store(step(HASH.load(SeqCst), n), SeqCst);
            COUNT.store(n, SeqCst);
            if n % 1000 == 0 {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    });
    let (mut seen, mut hash) = (0, 1);
    while COUNT.load(SeqCst) < 1000 {
        std::thread::yield_now();
    }
    while zoo.gap() {
        let from = COUNT.load(SeqCst);
        zoo.ok("the count never goes back", from >= seen);
        let end = Instant::now() + Duration::from_secs(20);
        while COUNT.load(SeqCst) < from + 2000 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        zoo.ok("the thread counts on", COUNT.load(SeqCst) >= from + 2000);
        // The thread may be between its two stores: the hash is that of the count or of the next.
        let (now, got) = loop {
            let (a, h, b) = (COUNT.load(SeqCst), HASH.load(SeqCst), COUNT.load(SeqCst));
            if a == b {
                break (a, h);
            }
        };
        while seen < now {
            seen += 1;
            hash = step(hash, seen);
        }
        zoo.ok("the hash follows the count", got == hash || got == step(hash, now + 1));
    }
}

//! A thread in one nanosleep after the other: none is interrupted and none is too short.
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

static SLEPT: AtomicU64 = AtomicU64::new(0);
static INTERRUPTED: AtomicU64 = AtomicU64::new(0);
static SHORT: AtomicU64 = AtomicU64::new(0);
const NAP: Duration = Duration::from_millis(400);

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    std::thread::spawn(|| {
        loop {
            let from = Instant::now();
            let slept = zoo::sys::sleep_once(NAP);
            INTERRUPTED.fetch_add(slept.is_err().into(), SeqCst);
            SHORT.fetch_add((from.elapsed() < NAP).into(), SeqCst);
            SLEPT.fetch_add(1, SeqCst);
        }
    });
    // Ready only when the thread has settled: its start changes the address space and its mask.
    while SLEPT.load(SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    while zoo.gap() {
        let (from, end) = (SLEPT.load(SeqCst), Instant::now() + Duration::from_secs(30));
        while SLEPT.load(SeqCst) < from + 2 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        zoo.ok("it wakes again", SLEPT.load(SeqCst) >= from + 2);
        zoo.eq("naps that were interrupted", INTERRUPTED.load(SeqCst), 0);
        zoo.eq("naps that were too short", SHORT.load(SeqCst), 0);
    }
}

//! A real interval timer that goes on firing.
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

static TICKS: AtomicU64 = AtomicU64::new(0);

extern "C" fn tick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    TICKS.fetch_add(1, SeqCst);
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::sys::handle(libc::SIGALRM, libc::SA_RESTART, tick);
    zoo::sys::set_itimer(0, 20_000, 20_000);
    while zoo.gap() {
        let (from, end) = (TICKS.load(SeqCst), Instant::now() + Duration::from_secs(20));
        while TICKS.load(SeqCst) < from + 5 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        zoo.ok("it ticks on", TICKS.load(SeqCst) >= from + 5);
    }
}

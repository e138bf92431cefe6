//! Threads of a 32-bit program that wait for a time: each wait ends by itself, in the first call and not too early. It may take its
//! whole time again.
use super::i386::Program;
use std::time::{Duration, Instant};
use zoo::i386::{EINTR, LANES, WAIT_SECONDS, WAITS};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    loop {
        let begun = Instant::now();
        let program = Program::start(&zoo, "w");
        // Each is in its wait, a while ago.
        std::thread::sleep(Duration::from_secs(1));
        if !zoo.gap() {
            return;
        }
        let whole = Duration::from_secs(WAIT_SECONDS);
        while begun.elapsed() < whole {
            // Before the look at the clock that ends this.
            let ended = (0..WAITS.len()).filter(|i| program.get(LANES + i) > 0).count();
            if begun.elapsed() < whole && ended > 0 {
                zoo.eq("waits that ended too early", ended, 0);
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for (i, what) in WAITS.iter().enumerate() {
            zoo.ok(&format!("{what} ends"), program.exceeds(LANES + i, 0));
        }
        zoo.eq("interrupted waits", program.get(EINTR), 0);
    }
}

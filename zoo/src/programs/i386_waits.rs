//! Threads of a 32-bit program whose waits are half over: each ends by itself, in the first call, when it would have.
use super::i386::Program;
use std::time::{Duration, Instant};
use zoo::i386::{EINTR, LANES, WAIT_SECONDS, WAITS};

/// Waited before the gap.
const BEFORE: Duration = Duration::from_secs(8);

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    loop {
        let from = Instant::now();
        let program = Program::start(&zoo, "w");
        let begun = Instant::now();
        std::thread::sleep(BEFORE);
        if !zoo.gap() {
            return;
        }
        let whole = Duration::from_secs(WAIT_SECONDS);
        // The whole time again would be BEFORE too long. On a busy machine the gap itself may be.
        let late = begun + whole.max(begun.elapsed()) + BEFORE.mul_f32(0.8);
        let waiting = || WAITS.iter().enumerate().filter(|(i, _)| program.get(LANES + i) == 0).map(|w| *w.1);
        let mut early = 0;
        while waiting().next().is_some() && Instant::now() < late {
            // Before the look at the clock.
            let ended = WAITS.len() - waiting().count();
            if from.elapsed() < whole {
                early = ended;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        zoo.eq("waits that ended too early", early, 0);
        zoo.eq("waits that did not end in time", waiting().collect::<Vec<_>>(), Vec::new());
        zoo.eq("interrupted waits", program.get(EINTR), 0);
    }
}

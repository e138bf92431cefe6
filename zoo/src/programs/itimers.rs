//! The three interval timers: what is left and their intervals.
use zoo::sys::{itimer, set_itimer};

const SECOND: u64 = 1_000_000;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let timers = [(0, 5000 * SECOND, 7 * SECOND + 77), (1, 6000 * SECOND, 0), (2, 7000 * SECOND, 11 * SECOND)];
    for (which, value, interval) in timers {
        set_itimer(which, value, interval);
    }
    let before = timers.map(|(which, ..)| itimer(which));
    while zoo.gap() {
        for ((which, _, interval), (left, _)) in timers.into_iter().zip(before) {
            let (now, every) = itimer(which);
            zoo.eq(&format!("interval of timer {which}"), every, interval);
            zoo.ok(
                &format!("timer {which}: {now} us left, {left} before"),
                now <= left + SECOND && now + 600 * SECOND > left,
            );
        }
    }
}

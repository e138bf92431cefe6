//! Timer descriptors: time left and interval; expirations not yet read; one that ends when the clock is set.
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use rustix::time::{timerfd_create, timerfd_gettime, timerfd_settime};
use std::os::fd::AsRawFd;

fn spec(value_ms: i64, interval_ms: i64) -> Itimerspec {
    let time = |ms: i64| Timespec { tv_sec: ms / 1000, tv_nsec: ms % 1000 * 1_000_000 };
    Itimerspec { it_interval: time(interval_ms), it_value: time(value_ms) }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let create = |clock| timerfd_create(clock, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC);
    let (Ok(long), Ok(fired)) = (create(TimerfdClockId::Monotonic), create(TimerfdClockId::Realtime)) else { return };
    zoo::must(timerfd_settime(&long, TimerfdTimerFlags::empty(), &spec(5_000_000, 7_001)));
    // Read, it tells when somebody has set the clock.
    let watch = zoo::must(create(TimerfdClockId::Realtime));
    let now = zoo::must(std::time::UNIX_EPOCH.elapsed()).as_millis() as i64;
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    zoo::must(timerfd_settime(&watch, flags, &spec(now + 5_000_000, 0)));
    loop {
        zoo::must(timerfd_settime(&fired, TimerfdTimerFlags::empty(), &spec(1, 0)));
        std::thread::sleep(std::time::Duration::from_millis(5));
        let on = zoo.gap();
        let now = timerfd_gettime(&long).unwrap_or(spec(0, 0));
        zoo.ok("interval", now.it_interval == spec(0, 7_001).it_interval);
        zoo.ok("time left", (4_400..=5_000).contains(&now.it_value.tv_sec));
        zoo.eq(
            "flags of the one that watches the clock",
            zoo::proc::fd_info(watch.as_raw_fd(), "settime flags"),
            "03".to_owned(),
        );
        let left = timerfd_gettime(&watch).unwrap_or(spec(0, 0)).it_value.tv_sec;
        zoo.ok("time left of it", (4_400..=5_000).contains(&left));
        let mut ticks = [0; 8];
        zoo.eq("read", rustix::io::read(&fired, &mut ticks), Ok(8));
        zoo.eq("expirations", u64::from_ne_bytes(ticks), 1);
        if !on {
            return;
        }
    }
}

//! Timer descriptors of every clock: with a time from now and an interval, and with a point in time; and one that goes on
//! firing with nobody reading.
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use rustix::time::{timerfd_create, timerfd_gettime, timerfd_settime};
use std::os::fd::{AsRawFd, OwnedFd};

fn time(tv_sec: i64, tv_nsec: i64) -> Timespec {
    Timespec { tv_sec, tv_nsec }
}

pub(super) fn main() {
    use TimerfdClockId::{Boottime, BoottimeAlarm, Monotonic, Realtime, RealtimeAlarm};
    let mut zoo = zoo::Zoo::start();
    let now = |clock| {
        let id = match clock {
            Realtime | RealtimeAlarm => rustix::time::ClockId::Realtime,
            Monotonic => rustix::time::ClockId::Monotonic,
            _ => rustix::time::ClockId::Boottime,
        };
        rustix::time::clock_gettime(id).tv_sec
    };
    let mut timers: Vec<(OwnedFd, i64)> = Vec::new();
    for clock in [Realtime, Monotonic, Boottime, RealtimeAlarm, BoottimeAlarm] {
        // Alarms need a clock that wakes the machine, and the right to.
        let create = || timerfd_create(clock, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK);
        let (Ok(relative), Ok(absolute)) = (create(), create()) else { continue };
        let from_now = Itimerspec { it_interval: time(70, 7), it_value: time(5000, 0) };
        zoo::must(timerfd_settime(&relative, TimerfdTimerFlags::empty(), &from_now));
        let at = Itimerspec { it_interval: time(0, 0), it_value: time(now(clock) + 9000, 0) };
        zoo::must(timerfd_settime(&absolute, TimerfdTimerFlags::ABSTIME, &at));
        timers.extend([(relative, 5000), (absolute, 9000)]);
    }
    zoo.ok("clocks", timers.len() >= 6);
    let busy = zoo::must(timerfd_create(Monotonic, TimerfdFlags::CLOEXEC));
    let often = Itimerspec { it_interval: time(0, 1_000_000), it_value: time(0, 1_000_000) };
    zoo::must(timerfd_settime(&busy, TimerfdTimerFlags::empty(), &often));
    let info = |fd: &OwnedFd, key| zoo::proc::fd_info(fd.as_raw_fd(), key);
    let known = || timers.iter().map(|(t, _)| [info(t, "clockid"), info(t, "settime flags")]).collect::<Vec<_>>();
    let before = known();
    while zoo.gap() {
        zoo.eq("clocks and flags", known(), before.clone());
        for (timer, seconds) in &timers {
            let left = zoo::must(timerfd_gettime(timer));
            zoo.ok("time left", (seconds - 600..=*seconds).contains(&left.it_value.tv_sec));
            let interval = if *seconds == 5000 { time(70, 7) } else { time(0, 0) };
            zoo.eq("interval", left.it_interval, interval);
        }
        let mut ticks = [0; 8];
        zoo.eq("read", rustix::io::read(&busy, &mut ticks), Ok(8));
        zoo.ok("it fires", u64::from_ne_bytes(ticks) > 0);
        zoo.eq("read", rustix::io::read(&busy, &mut ticks), Ok(8));
        zoo.ok("it fires on", u64::from_ne_bytes(ticks) > 0);
    }
}

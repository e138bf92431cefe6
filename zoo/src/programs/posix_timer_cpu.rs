//! POSIX timers on the CPU clocks of threads: the caller's own, and one named by the thread's id.
use std::time::{Duration, Instant};
use zoo::sys::{Notify, bit, cpu_time, gettid, set_mask, take_signal, timer_create, timer_get, timer_set};

const FAR: Duration = Duration::from_secs(1000);

/// Uses the processor for `time` of this thread's own time.
fn work(time: Duration) {
    let end = cpu_time() + time;
    while cpu_time() < end {}
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    set_mask(bit(41) | bit(42));
    for name in ["first", "second"] {
        zoo.thread(name, move |seat| {
            let named = (!gettid() << 3) | 4 | 2;
            let clocks = [(libc::CLOCK_THREAD_CPUTIME_ID, 41), (named, 42)];
            let timers = clocks.map(|(clock, signo)| {
                let notify = Notify { signo, how: libc::SIGEV_THREAD_ID, tid: gettid(), ..Notify::default() };
                let timer = timer_create(clock, &notify).and_then(|id| timer_set(id, FAR, Duration::ZERO).map(|()| id));
                (timer.unwrap_or(-1), signo)
            });
            while seat.gap() {
                for (timer, signo) in timers {
                    // What is left shrinks by exactly the time that this thread works, and by nobody else's.
                    let left = || timer_get(timer).map_or(Duration::ZERO, |t| t.0);
                    let (a, before, b) = (cpu_time(), left(), cpu_time());
                    work(Duration::from_millis(5));
                    let (c, after, d) = (cpu_time(), left(), cpu_time());
                    let (ran, least, most) = (before.saturating_sub(after), c - b, d - a);
                    seat.ok(&format!("timer {timer}: {before:?} left"), before > FAR / 2 && before <= FAR);
                    seat.ok(
                        &format!("timer {timer} ran {ran:?}, not {least:?} to {most:?}"),
                        ran >= least && ran <= most,
                    );
                    let armed = timer_set(timer, Duration::from_millis(2), Duration::ZERO);
                    seat.ok("armed", armed.is_ok());
                    let end = Instant::now() + Duration::from_secs(60);
                    let mut got = None;
                    while got.is_none() && Instant::now() < end {
                        work(Duration::from_millis(1));
                        got = take_signal(bit(signo), Duration::ZERO).map(|s| (s.signo, s.code, s.pid));
                    }
                    seat.eq("its signal", got, Some((signo, libc::SI_TIMER, timer)));
                    seat.ok("armed again", timer_set(timer, FAR, Duration::ZERO).is_ok());
                }
            }
        });
    }
    while zoo.gap() {}
}

//! One point in time that bounds every wait of a request, and the back-off used where the kernel offers no timed wait.
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// The moment a request must be done or rolled back. Cheap to copy; pass it down unchanged.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// `limit` of wall time from now on.
    pub fn after(limit: Duration) -> Self {
        let now = Instant::now();
        // A limit beyond the clock's range means "very late": about 30 years, without overflow.
        Self(now.checked_add(limit).unwrap_or_else(|| now + Duration::from_secs(1_000_000_000)))
    }
    /// At `when`.
    pub fn at(when: Instant) -> Self {
        Self(when)
    }
    /// The earlier of this deadline and `limit` from now.
    pub fn capped(self, limit: Duration) -> Self {
        Self(self.0.min(Self::after(limit).0))
    }
    /// True once the time has come.
    pub fn expired(self) -> bool {
        Instant::now() >= self.0
    }
    /// Time left, zero when expired.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// Polling without burning a processor and without giving it away: a few looks at once (a stopping thread on another
/// processor needs 2–10 µs), then sleeps from 10 µs up to 1 ms. Yielding instead would be quicker on an idle machine, but on a
/// busy one it costs a whole time slice of everybody else, while a sleeper that wakes up gets its turn soon.
#[derive(Debug)]
pub struct Backoff {
    started: Option<Instant>,
    sleep: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

impl Backoff {
    const SPIN_FOR: Duration = Duration::from_micros(15);
    const SHORT_FOR: Duration = Duration::from_micros(500);
    const SHORT: Duration = Duration::from_micros(10);
    const LONGEST: Duration = Duration::from_millis(1);

    /// Fresh: the next pauses are the short ones.
    pub fn new() -> Self {
        Self { started: None, sleep: Self::SHORT }
    }
    /// Something happened: start again with short pauses.
    pub fn reset(&mut self) {
        *self = Self::new();
    }
    /// One pause. Returns false, without pausing, once `deadline` has passed.
    pub fn pause(&mut self, deadline: Deadline) -> bool {
        let now = Instant::now();
        if now >= deadline.0 {
            return false;
        }
        let waited = now - *self.started.get_or_insert(now);
        if waited < Self::SPIN_FOR {
            std::hint::spin_loop();
            return true;
        }
        precise_sleep(self.sleep.min(deadline.0 - now));
        if waited > Self::SHORT_FOR {
            self.sleep = (self.sleep * 2).min(Self::LONGEST);
        }
        true
    }
}

/// Sleeps without the usual 50 µs of timer slack, which are put back at once: children inherit them.
fn precise_sleep(time: Duration) {
    let slack = rustix::thread::current_timer_slack().ok().and_then(NonZeroU64::new);
    let exact = slack.filter(|_| rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).is_ok());
    std::thread::sleep(time);
    if exact.is_some() && rustix::thread::set_current_timer_slack(exact).is_err() {
        // It was accepted a moment ago; 0 would mean the default of the thread.
        debug_assert!(false, "timer slack refused");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_far_limit_does_not_overflow() {
        let d = Deadline::after(Duration::MAX);
        assert!(!d.expired());
        assert!(d.remaining() > Duration::from_secs(1_000_000));
        assert!(d.capped(Duration::from_secs(1)).remaining() <= Duration::from_secs(1));
    }

    #[test]
    fn backoff_ends_at_the_deadline() {
        let limit = Duration::from_millis(5);
        let (start, deadline) = (Instant::now(), Deadline::after(limit));
        let mut backoff = Backoff::new();
        let mut pauses = 0;
        while backoff.pause(deadline) {
            pauses += 1;
        }
        assert!(pauses > 2 && start.elapsed() >= limit);
        assert!(deadline.expired() && deadline.remaining().is_zero());
    }
}

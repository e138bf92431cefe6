//! Wall times of the named steps of a dump or a restore.
use std::time::{Duration, Instant};

/// What each step took, told one after the other.
pub(crate) struct Clock {
    pub(crate) started: Instant,
    last: Instant,
    pub(crate) phases: Vec<(&'static str, Duration)>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let now = Instant::now();
        Self { started: now, last: now, phases: Vec::new() }
    }

    /// The step `name` ends here.
    pub(crate) fn done(&mut self, name: &'static str) {
        let now = Instant::now();
        self.phases.push((name, now - self.last));
        self.last = now;
    }
}

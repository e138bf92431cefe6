//! Counts what was compared, what differed, what differed for a listed reason, and what could not run.
#![allow(clippy::print_stdout, clippy::exit, reason = "a test program without libtest reports by itself")]
use std::collections::BTreeMap;

/// One run of the test program.
#[derive(Default)]
pub(crate) struct Report {
    passed: Vec<String>,
    failed: Vec<String>,
    skipped: Vec<String>,
    filter: Option<String>,
}

/// What one test found.
#[derive(Default)]
pub(crate) struct Findings {
    /// Questions to which both sides answered.
    pub(crate) compared: usize,
    /// Unequal answers that nothing explains.
    pub(crate) unequal: Vec<String>,
    /// Unequal answers with a reason, by reason.
    pub(crate) explained: BTreeMap<&'static str, usize>,
}

impl Findings {
    /// Notes one comparison.
    pub(crate) fn same<T: PartialEq + std::fmt::Debug>(&mut self, what: impl FnOnce() -> String, theirs: &T, ours: &T) {
        self.compared += 1;
        if theirs != ours {
            self.unequal.push(format!("{}\n      libsystemd: {theirs:?}\n      ours:       {ours:?}", what()));
        }
    }

    /// Notes a difference that is wanted.
    pub(crate) fn explain(&mut self, reason: &'static str) {
        *self.explained.entry(reason).or_default() += 1;
    }
}

impl Report {
    /// Takes a name filter from the command line, as libtest would.
    pub(crate) fn new() -> Report {
        let filter = std::env::args().skip(1).find(|a| !a.starts_with('-'));
        Report { filter, ..Report::default() }
    }

    /// Runs one test. `Err`: it cannot run here, for this reason.
    pub(crate) fn run(&mut self, name: &str, test: impl FnOnce(&mut Findings) -> Result<(), String>) {
        if self.filter.as_ref().is_some_and(|f| !name.contains(f.as_str())) {
            return;
        }
        let mut found = Findings::default();
        match test(&mut found) {
            Err(reason) => {
                println!("test {name} ... SKIPPED: {reason}");
                self.skipped.push(format!("{name}: {reason}"));
            }
            Ok(()) if found.unequal.is_empty() && found.compared > 0 => {
                println!("test {name} ... ok ({} compared)", found.compared);
                for (reason, count) in &found.explained {
                    println!("    {count} differ as listed: {reason}");
                }
                self.passed.push(name.into());
            }
            Ok(()) => {
                println!("test {name} ... FAILED ({} of {} unequal)", found.unequal.len(), found.compared);
                for case in found.unequal.iter().take(15) {
                    println!("    {case}");
                }
                self.failed.push(name.into());
            }
        }
    }

    /// Prints the sums; fails if a test failed, or if one was skipped where `SD_DAEMON_NO_SKIP` forbids it.
    pub(crate) fn finish(self) -> ! {
        for reason in &self.skipped {
            println!("skipped: {reason}");
        }
        println!("{} passed, {} failed, {} skipped", self.passed.len(), self.failed.len(), self.skipped.len());
        let strict = std::env::var_os("SD_DAEMON_NO_SKIP").is_some() && !self.skipped.is_empty();
        std::process::exit(i32::from(!self.failed.is_empty() || strict))
    }
}

/// A small generator of numbers (xorshift), seeded by `SD_DAEMON_SEED` or a constant, so that failures come again.
#[derive(Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Random {
        Random(std::env::var("SD_DAEMON_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x5eed_cafe_f00d_d00d))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Once in `n`.
    pub(crate) fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

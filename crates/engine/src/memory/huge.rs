//! What huge pages cost on this machine, as it shows while they are made.
//!
//! To make one is mostly to clear it: 0.1 to 0.3 ms, less than 512 small pages take. But under a hypervisor that takes free
//! memory back, whole free huge pages are just what it took, and each must come from the host again: 5 to 20 ms, where
//! small pages are found among what was in use a moment ago. Which of the two it is nothing tells but a try.
use std::time::{Duration, Instant};

/// Above this, small pages are the better choice: 2 GB/s, less than any machine writes to memory it has.
const TOO_HIGH: Duration = Duration::from_millis(1);
/// One may have been interrupted.
const TRIES: u32 = 3;
/// The first hundreds may come cheap and the next not: older ones count less and less.
const RECENT: u32 = 16;

/// Of the huge pages made lately.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Price {
    made: u32,
    spent: Duration,
}

impl Price {
    /// Measures the making of one.
    pub(super) fn pay<T>(&mut self, make: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let made = make();
        self.add(Self { made: 1, spent: start.elapsed() });
        made
    }

    /// Takes what was measured elsewhere.
    pub(super) fn add(&mut self, other: Self) {
        self.made = self.made.saturating_add(other.made);
        self.spent = self.spent.saturating_add(other.spent);
        while self.made > RECENT {
            (self.made, self.spent) = (self.made / 2, self.spent / 2);
        }
    }

    /// Whether no more should be made.
    pub(super) fn is_too_high(self) -> bool {
        self.made >= TRIES && self.spent > TOO_HIGH.saturating_mul(self.made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_judged_by_several() {
        let one = |ms| Price { made: 1, spent: Duration::from_millis(ms) };
        let mut price = Price::default();
        for (ms, too_high) in [(9, false), (9, false), (9, true), (0, true)] {
            price.add(one(ms));
            assert_eq!(price.is_too_high(), too_high, "{price:?}");
        }
        let mut cheap = Price { made: 100, spent: Duration::from_millis(30) };
        cheap.add(one(9));
        assert!(!cheap.is_too_high(), "once is nothing");
        assert_eq!(cheap.pay(|| 7), 7);
        for bad in 1.. {
            cheap.add(one(9));
            assert!(bad < 4, "hundreds of cheap ones count no more");
            if cheap.is_too_high() {
                break;
            }
        }
    }
}

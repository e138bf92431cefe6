//! Storms: processes that start children and reap them as fast as they can, and count.
use crate::mem::{Map, PAGE};
use crate::sys::{fork, waitpid};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

/// Storms that blow beside a program, until it tells them to stop.
#[derive(Debug)]
pub struct Storms {
    /// A word for the rounds of each storm, then one that tells them to stop, then one that counts faults.
    map: Map,
    pids: Vec<i32>,
}

impl Storms {
    /// `count` processes that do `round` over and over; a round tells whether its children came to their right end.
    pub fn start(count: usize, round: impl Fn() -> bool + Copy) -> Self {
        let mut storms = Self { map: Map::shared(PAGE), pids: Vec::new() };
        storms.pids = (0..count).map(|i| fork(|| storms.blow(count, i, round))).collect();
        storms
    }

    /// What storm `i` does. At its end no child may be left.
    fn blow(&self, count: usize, i: usize, round: impl Fn() -> bool) -> i32 {
        while self.map.word(count).load(SeqCst) == 0 {
            if !round() {
                self.map.word(count + 1).fetch_add(1, SeqCst);
            }
            self.map.word(i).fetch_add(1, SeqCst);
        }
        i32::from(waitpid(-1).is_ok())
    }

    /// The program's whole life: between dump and restore every storm goes on, and no child comes to another end.
    pub fn live(self, zoo: &mut crate::Zoo) {
        zoo.ok("it begins to blow", self.goes_on());
        while zoo.gap() {
            zoo.ok("it still blows", self.goes_on());
            zoo.eq("children that came to another end", self.map.word(self.pids.len() + 1).load(SeqCst), 0);
        }
        self.map.word(self.pids.len()).store(1, SeqCst);
        for storm in self.pids {
            zoo.eq("a storm's end", waitpid(storm).ok(), Some(0));
        }
    }

    /// Each storm does three rounds more.
    fn goes_on(&self) -> bool {
        let rounds = || (0..self.pids.len()).map(|i| self.map.word(i).load(SeqCst)).collect::<Vec<_>>();
        let (since, end) = (rounds(), Instant::now() + Duration::from_secs(60));
        while rounds().iter().zip(&since).any(|(now, since)| *now < since + 3) {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

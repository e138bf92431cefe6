//! A thousand children (`ZOO_CHILDREN` says how many), each with a page of its own; all answer a signal after the gap.
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use zoo::mem::{Map, PAGE};
use zoo::sys::{bit, fork, kill, set_mask, take_signal};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let count = zoo::size("ZOO_CHILDREN", 1000);
    let answers = Map::shared((count * 8).next_multiple_of(PAGE));
    set_mask(bit(libc::SIGUSR1) | bit(libc::SIGUSR2));
    let children: Vec<i32> = (0..count)
        .map(|i| {
            fork(|| {
                let mut own = Map::anon(PAGE);
                own.fill(i as u64);
                loop {
                    match take_signal(bit(libc::SIGUSR1) | bit(libc::SIGUSR2), Duration::from_secs(3600)) {
                        Some(s) if s.signo == libc::SIGUSR1 && own.holds(i as u64) => {
                            answers.word(i).fetch_add(1, SeqCst);
                        }
                        Some(_) => return 0,
                        None => {}
                    }
                }
            })
        })
        .collect();
    while zoo.gap() {
        let (round, end) = (u64::from(zoo.round()), Instant::now() + Duration::from_secs(40));
        for child in &children {
            zoo.ok("child is there", kill(*child, libc::SIGUSR1).is_ok());
        }
        let answered = || (0..count).filter(|&i| answers.word(i).load(SeqCst) == round).count();
        while answered() < count && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        zoo.eq("children that answered", answered(), count);
    }
    for child in children {
        zoo::must(kill(child, libc::SIGUSR2));
        zoo::must(zoo::sys::waitpid(child));
    }
}

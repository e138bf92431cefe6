//! A hundred watches: with gaps between their numbers, on files of two directories, on one with two names and one that was
//! renamed.
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

const FILES: i32 = 100;

fn name(n: i32) -> String {
    format!("{}/{n}", if n % 3 == 0 { "a" } else { "b" })
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::create_dir("a"));
    zoo::must(std::fs::create_dir("b"));
    let fd = zoo::must(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC));
    let mut watches = Vec::new();
    for n in 0..FILES {
        zoo::must(std::fs::write(name(n), "x"));
        watches.push((n, zoo::must(inotify::add_watch(&fd, name(n), WatchFlags::MODIFY))));
    }
    for (_, watch) in watches.extract_if(.., |(n, _)| *n % 10 == 7) {
        zoo::must(inotify::remove_watch(&fd, watch));
    }
    zoo::must(std::fs::hard_link(name(1), "b/one"));
    zoo::must(std::fs::rename(name(2), "a/two"));
    // That of the removed watches.
    zoo::watches::seen(&fd);
    while zoo.gap() {
        let mut expected = Vec::new();
        for &(n, watch) in &watches {
            let at = if n == 2 { "a/two".to_owned() } else { name(n) };
            zoo::must(std::fs::write(at, "changed"));
            expected.push(watch);
        }
        let mut seen: Vec<i32> = zoo::watches::seen(&fd).into_iter().map(|(watch, _)| watch).collect();
        seen.dedup();
        zoo.eq("watches that saw something", seen, expected);
    }
}

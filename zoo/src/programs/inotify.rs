//! Watches on a directory and a file.
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::create_dir("sub"));
    zoo::must(std::fs::write("sub/old", "x"));
    let fd = zoo::must(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC));
    let dir = zoo::must(inotify::add_watch(&fd, "sub", WatchFlags::CREATE | WatchFlags::DELETE));
    let file = zoo::must(inotify::add_watch(&fd, "sub/old", WatchFlags::MODIFY));
    while zoo.gap() {
        zoo::must(std::fs::write(format!("sub/new.{}", zoo.round()), ""));
        zoo::must(std::fs::write("sub/old", "changed"));
        let mut bytes = [0; 4096];
        let len = rustix::io::read(&fd, &mut bytes).unwrap_or(0);
        let mut seen: Vec<i32> = Vec::new();
        let mut at = 0;
        while at + 16 <= len {
            let word = |i: usize| i32::from_ne_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
            seen.push(word(at));
            at += 16 + usize::try_from(word(at + 12)).unwrap_or(0);
        }
        seen.dedup();
        zoo.eq("watches that saw something", seen, vec![dir, file]);
    }
}

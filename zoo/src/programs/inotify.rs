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
        let mut seen: Vec<i32> = zoo::watches::seen(&fd).into_iter().map(|(watch, _)| watch).collect();
        seen.dedup();
        zoo.eq("watches that saw something", seen, vec![dir, file]);
    }
}

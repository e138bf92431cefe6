//! Watches with numbers that have gaps, on a deleted file that we hold open, and one that ends with its first event.
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::io::Write;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::create_dir("here"));
    for name in ["a", "b", "deleted"] {
        zoo::must(std::fs::write(name, "x"));
    }
    let fd = zoo::must(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC));
    let add = |name: &str, mask| zoo::must(inotify::add_watch(&fd, name, mask));
    let mut deleted = zoo::must(std::fs::OpenOptions::new().append(true).open("deleted"));
    let first = add("a", WatchFlags::MODIFY);
    let second = add("b", WatchFlags::MODIFY | WatchFlags::ONESHOT);
    let third = add("deleted", WatchFlags::MODIFY);
    let fourth = add("here", WatchFlags::ALL_EVENTS);
    zoo::must(inotify::remove_watch(&fd, first));
    zoo::must(std::fs::remove_file("deleted"));
    // What was seen up to here.
    let read = || zoo::watches::seen(&fd);
    read();
    let (modify, ignored) = (0x2, 0x8000);
    while zoo.gap() {
        zoo.eq("nothing happened while we were away", read(), vec![]);
        zoo.ok("write", deleted.write_all(b"more").is_ok());
        zoo.eq("the deleted file was written to", read(), vec![(third, modify)]);
        if zoo.round() == 1 {
            zoo::must(std::fs::write("b", "changed"));
            zoo.eq("the watch for one event", read(), vec![(second, modify), (second, ignored)]);
        }
        zoo.ok("make", std::fs::create_dir(format!("here/{}", zoo.round())).is_ok());
        zoo.eq("the directory", read().first().map(|e| e.0), Some(fourth));
    }
}

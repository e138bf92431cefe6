//! A watch on a symbolic link itself, beside one on what it leads to.
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::write("file", "x"));
    zoo::must(std::os::unix::fs::symlink("file", "link"));
    let fd = zoo::must(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC));
    let link = zoo::must(inotify::add_watch(&fd, "link", WatchFlags::ATTRIB | WatchFlags::DONT_FOLLOW));
    let file = zoo::must(inotify::add_watch(&fd, "link", WatchFlags::ATTRIB));
    while zoo.gap() {
        for (flags, watch) in [(AtFlags::SYMLINK_NOFOLLOW, link), (AtFlags::empty(), file)] {
            let time = Timespec { tv_sec: 1 + i64::from(zoo.round()), tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            zoo::must(rustix::fs::utimensat(CWD, "link", &times, flags));
            let seen: Vec<i32> = zoo::watches::seen(&fd).into_iter().map(|(watch, _)| watch).collect();
            zoo.eq("the watch that saw it", seen, vec![watch]);
        }
    }
}

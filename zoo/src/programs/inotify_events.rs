//! Events that wait unread are lost, and the queue says so first, once: also if that is not read before the next dump. Watches
//! keep their numbers.
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// IN_Q_OVERFLOW, of no watch.
const LOST: (i32, i32) = (-1, 0x4000);
const CREATE: i32 = 0x100;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    for dir in ["gone", "busy", "lazy"] {
        zoo::must(std::fs::create_dir(dir));
    }
    let busy = zoo::must(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC));
    let gone = zoo::must(inotify::add_watch(&busy, "gone", WatchFlags::CREATE));
    let dir = zoo::must(inotify::add_watch(&busy, "busy", WatchFlags::CREATE));
    zoo::must(inotify::remove_watch(&busy, gone));
    let lazy = zoo::must(inotify::init(CreateFlags::empty()));
    let first = zoo::must(inotify::add_watch(&lazy, "lazy", WatchFlags::CREATE));
    let make = |dir: &str, n: u32| zoo::must(std::fs::write(format!("{dir}/{n}"), ""));
    for n in 100..110 {
        make("busy", n);
        make("lazy", n);
    }
    while zoo.gap() {
        let round = zoo.round();
        let lost = if round == 1 { vec![LOST] } else { vec![] };
        zoo.eq("what was lost", zoo::watches::seen(&busy), lost);
        make("busy", round);
        zoo.eq("what is new", zoo::watches::seen(&busy), vec![(dir, CREATE)]);
        if round <= 2 {
            zoo.eq("bytes that wait", rustix::io::ioctl_fionread(&lazy), Ok(16));
        }
        zoo.ok(
            "waits for events",
            rustix::fs::fcntl_getfl(&lazy).is_ok_and(|f| !f.contains(rustix::fs::OFlags::NONBLOCK)),
        );
        if round == 2 {
            zoo.eq("what was lost, unread for a while", zoo::watches::seen(&lazy), vec![LOST]);
        }
        make("lazy", round);
        if round >= 2 {
            zoo.eq("what is new there", zoo::watches::seen(&lazy), vec![(first, CREATE)]);
        }
    }
}

//! A fanotify group with a mark on a file and what it ignores on a directory.
use rustix::io::Errno;
use zoo::sys::{adopt, fanotify_init, fanotify_mark};

const FAN_MARK_ADD: u32 = 1;
const FAN_MARK_IGNORED_SURV: u32 = 0x60;
const FAN_MODIFY: u64 = 2;
const FAN_OPEN: u64 = 0x20;
const FAN_EVENT_ON_CHILD: u64 = 0x0800_0000;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::create_dir("dir"));
    for name in ["file", "dir/seen", "dir/ignored"] {
        zoo::must(std::fs::write(name, "x"));
    }
    let Ok(fd) = fanotify_init(libc::FAN_CLOEXEC | libc::FAN_NONBLOCK, libc::O_RDONLY) else {
        zoo.skip("fanotify_init is not allowed here")
    };
    let mark = |flags, mask, path| fanotify_mark(&fd, flags, mask, path).is_ok();
    zoo.ok("mark a file", mark(FAN_MARK_ADD, FAN_MODIFY, c"file"));
    zoo.ok("mark a directory", mark(FAN_MARK_ADD, FAN_OPEN | FAN_EVENT_ON_CHILD, c"dir"));
    zoo.ok("ignore a file", mark(FAN_MARK_ADD | FAN_MARK_IGNORED_SURV, FAN_OPEN, c"dir/ignored"));
    // Masks of the events that wait; their descriptors are closed.
    let read = || {
        let mut bytes = [0u8; 4096];
        let mut seen = Vec::new();
        match rustix::io::read(&fd, &mut bytes) {
            Ok(len) => {
                for event in bytes[..len].chunks_exact(24) {
                    let word = |at: usize| i32::from_ne_bytes([event[at], event[at + 1], event[at + 2], event[at + 3]]);
                    seen.push(word(8));
                    drop(adopt(word(16)));
                }
            }
            Err(e) => assert_eq!(e, Errno::AGAIN),
        }
        seen
    };
    while zoo.gap() {
        zoo.eq("nothing happened while we were away", read(), vec![]);
        zoo.ok(
            "write",
            std::fs::OpenOptions::new().append(true).open("file").is_ok_and(|f| rustix::io::write(f, b"y") == Ok(1)),
        );
        zoo.eq("the file was changed", read(), vec![2]);
        zoo.ok("open", std::fs::File::open("dir/ignored").is_ok());
        zoo.eq("the ignored file was opened", read(), vec![]);
        zoo.ok("open", std::fs::File::open("dir/seen").is_ok());
        zoo.eq("the other file was opened", read(), vec![0x20]);
    }
}

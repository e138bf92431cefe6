//! Events that wait unread at a fanotify are lost, and its queue says so first, once: with descriptors, and with handles.
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};
use zoo::sys::{adopt, fanotify_init, fanotify_mark};

/// Masks of the events that wait; their descriptors are closed.
fn seen(fd: &OwnedFd) -> Vec<u64> {
    let mut bytes = [0u8; 4096];
    let len = match rustix::io::read(fd, &mut bytes) {
        Ok(len) => len,
        Err(e) => {
            assert_eq!(e, Errno::AGAIN);
            0
        }
    };
    let (mut at, mut seen) = (0, Vec::new());
    while at + 24 <= len {
        let word =
            |i: usize| u32::from_ne_bytes([bytes[at + i], bytes[at + i + 1], bytes[at + i + 2], bytes[at + i + 3]]);
        seen.push(word(8).into());
        drop(adopt(word(16).cast_signed()));
        at += word(0) as usize;
    }
    seen
}

/// The flags it was made with, as the kernel shows them.
fn flags(fd: &OwnedFd) -> Option<String> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    info.lines().find(|line| line.starts_with("fanotify flags")).map(str::to_owned)
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::write("file", "x"));
    let mut groups = Vec::new();
    for sort in [libc::FAN_CLOEXEC, libc::FAN_REPORT_FID, libc::FAN_REPORT_FID | libc::FAN_REPORT_DFID_NAME] {
        let Ok(fd) = fanotify_init(libc::FAN_NONBLOCK | sort, libc::O_RDONLY) else {
            zoo.skip("fanotify_init is not allowed here")
        };
        zoo::must(fanotify_mark(&fd, libc::FAN_MARK_ADD, libc::FAN_MODIFY, c"file"));
        let flags = flags(&fd);
        groups.push((fd, flags));
    }
    zoo::must(std::fs::write("file", "y"));
    while zoo.gap() {
        let lost = if zoo.round() == 1 { vec![libc::FAN_Q_OVERFLOW] } else { vec![] };
        for (fd, made_with) in &groups {
            zoo.eq("what was lost", seen(fd), lost.clone());
            zoo.eq("flags", flags(fd), made_with.clone());
        }
        zoo::must(std::fs::write("file", "z"));
        for (fd, _) in &groups {
            zoo.eq("what is new", seen(fd), vec![libc::FAN_MODIFY]);
        }
    }
}

//! A tree of 100 levels (`ZOO_LEVELS` says how many): each process has one child, and all end when the root does.
use std::io::Read;

/// Forks the levels below this one, tells their pids, and waits for the end of the root.
fn descend(level: usize, levels: usize, mut end: std::io::PipeReader) -> i32 {
    zoo::must(std::fs::write(format!("part.{level}"), zoo::sys::getpid().to_string()));
    zoo::must(std::fs::rename(format!("part.{level}"), format!("pid.{level}")));
    if level < levels {
        let below = zoo::must(end.try_clone());
        zoo::sys::fork(|| descend(level + 1, levels, below));
    }
    let mut byte = [0];
    // The root alone has the other end.
    i32::from(!matches!(end.read(&mut byte), Ok(0)))
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let levels = zoo::size("ZOO_LEVELS", 100);
    let (end, root) = zoo::must(std::io::pipe());
    let writer = std::os::fd::AsRawFd::as_raw_fd(&root);
    zoo::sys::fork(|| {
        zoo::sys::close_raw(writer);
        descend(1, levels, end)
    });
    let mut pids = vec![zoo::sys::getpid()];
    for level in 1..=levels {
        let pid = zoo.hear(&format!("pid.{level}")).and_then(|p| p.parse().ok());
        pids.push(pid.unwrap_or(-1));
    }
    while zoo.gap() {
        let wrong = pids.windows(2).filter(|w| zoo::proc::shape(w[1]).map_or(-1, |s| s.ppid) != w[0]).count();
        zoo.eq("levels whose parent is not the level above", wrong, 0);
    }
}

//! A tree of 100 levels (`ZOO_LEVELS` says how many): each process has one child, and all end when the root does.
use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;

/// Says to a process that it is begun anew, at which level.
const LEVEL: &str = "ZOO_LEVEL";
/// Each so many generations begin with memory of their own: the kernel links every page to those of all ancestors by fork, so
/// that a fork costs the more the deeper it is.
const FRESH: usize = 50;

/// Forks the levels below this one, tells their pids, and waits for the end of the root.
fn descend(level: usize, levels: usize, mut end: PipeReader) -> i32 {
    zoo::must(std::fs::write(format!("part.{level}"), zoo::sys::getpid().to_string()));
    zoo::must(std::fs::rename(format!("part.{level}"), format!("pid.{level}")));
    if level < levels {
        let below = zoo::must(end.try_clone());
        zoo::sys::fork(|| match (level + 1).is_multiple_of(FRESH) {
            true => begin_anew(level + 1, below),
            false => descend(level + 1, levels, below),
        });
    }
    let mut byte = [0];
    // The root alone has the other end.
    i32::from(!matches!(end.read(&mut byte), Ok(0)))
}

/// Executes this program for the levels from `level` on; the end of the root stands in its standard input.
fn begin_anew(level: usize, end: PipeReader) -> i32 {
    let mut command = std::process::Command::new("/proc/self/exe");
    let e = command.arg("tree_deep").env(LEVEL, level.to_string()).stdin(OwnedFd::from(end)).exec();
    panic!("exec: {e}");
}

pub(super) fn main() {
    let levels = zoo::size("ZOO_LEVELS", 100);
    let level = zoo::size(LEVEL, 0);
    if level > 0 {
        let end = zoo::must(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3));
        zoo::sys::exit_now(descend(level, levels, PipeReader::from(end)));
    }
    let mut zoo = zoo::Zoo::start();
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

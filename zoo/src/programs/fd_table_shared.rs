//! Two processes with one descriptor table (`CLONE_FILES`): what one opens, the other has.
use std::os::fd::{IntoRawFd, RawFd};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let child = zoo::sys::fork_sharing(libc::CLONE_FILES, || {
        for n in 1_u32.. {
            while !std::path::Path::new(&format!("look.{n}")).exists() {
                if std::path::Path::new("quit").exists() {
                    return 0;
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            let fd = std::fs::read_to_string(format!("look.{n}")).unwrap_or_default();
            let link = zoo::proc::fd_link(fd.parse().unwrap_or(-1));
            zoo::must(std::fs::write(format!("part.{n}"), link));
            zoo::must(std::fs::rename(format!("part.{n}"), format!("seen.{n}")));
        }
        0
    });
    zoo.ok("clone", child > 0);
    let mut last: Option<RawFd> = None;
    while zoo.gap() {
        let n = zoo.round();
        let name = format!("opened.{n}");
        let fd = zoo::must(std::fs::File::create(&name)).into_raw_fd();
        zoo.tell(&format!("look.{n}"), &fd.to_string());
        let seen = zoo.hear(&format!("seen.{n}")).unwrap_or_default();
        zoo.ok(&format!("the other sees {seen:?}"), seen.ends_with(&name));
        if let Some(fd) = last.replace(fd) {
            zoo::sys::close_raw(fd);
        }
    }
}

//! Refused: a child whose working directory has a path of more than 4096 bytes, which the kernel does not tell.
use std::io::Read;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (mut end, held) = zoo::must(std::io::pipe());
    let writer = std::os::fd::AsRawFd::as_raw_fd(&held);
    let child = zoo::sys::fork(|| {
        zoo::sys::close_raw(writer);
        let name = "d".repeat(200);
        for _ in 0..25 {
            zoo::must(std::fs::create_dir(&name));
            zoo::must(std::env::set_current_dir(&name));
        }
        // The root alone has the other end.
        i32::from(end.read(&mut [0]).is_err())
    });
    let is_deep = || {
        zoo::must(
            std::fs::read_link(format!("/proc/{child}/cwd"))
                .map(|_| false)
                .or_else(|e| if e.raw_os_error() == Some(libc::ENAMETOOLONG) { Ok(true) } else { Err(e) }),
        )
    };
    while !is_deep() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    zoo.tell("names", &format!("/proc/{child}/cwd\n4096 bytes\nshorter name"));
    while zoo.gap() {
        zoo.eq("is still there", is_deep(), true);
    }
    drop(held);
}

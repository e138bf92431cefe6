//! POSIX message queues: one with a name and messages, by two open files; one without a name; one with a name, empty.
use std::os::fd::AsRawFd;
use zoo::queues::{attributes, make, name, open, receive, send, unlink};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (full_name, gone_name, empty_name) = (name("full"), name("gone"), name("empty"));
    let full = match make(&full_name, libc::O_RDWR | libc::O_NONBLOCK, 0o640, 4, 64) {
        Ok(fd) => fd,
        Err(e) => zoo.skip(&format!("no message queues here: {e}")),
    };
    let reader = zoo::must(open(&full_name, libc::O_RDONLY | libc::O_NONBLOCK));
    let gone = zoo::must(make(&gone_name, libc::O_WRONLY, 0o606, 3, 33));
    let gone_reader = zoo::must(open(&gone_name, libc::O_RDONLY | libc::O_NONBLOCK));
    zoo::must(unlink(&gone_name));
    let empty = zoo::must(make(&empty_name, libc::O_RDWR | libc::O_NONBLOCK, 0o600, 2, 16));
    zoo.tell("queues", &[&full_name, &empty_name].map(|n| n.to_string_lossy().into_owned()).join("\n"));
    // Its position is where reading the queue as a file goes on.
    let mut text = [0; 5];
    zoo::must(rustix::io::read(&reader, &mut text));
    let all = [&full, &reader, &gone, &gone_reader, &empty];
    let look = || {
        all.map(|fd| {
            let stat = zoo::must(rustix::fs::fstat(fd));
            let of = |key: &str| zoo::proc::fd_info(fd.as_raw_fd(), key);
            let link = zoo::proc::fd_link(fd.as_raw_fd());
            (attributes(fd).ok(), link, of("flags"), of("pos"), stat.st_mode, stat.st_nlink)
        })
    };
    let mut on = true;
    while on {
        zoo.ok("sending", send(&full, b"later", 1).is_ok() && send(&full, b"first", 9).is_ok());
        let before = look();
        on = zoo.gap();
        zoo.eq("queues", look(), before);
        zoo.eq("by priority", receive(&reader).ok(), Some((b"first".to_vec(), 9)));
        zoo.eq("then the other", receive(&full).ok(), Some((b"later".to_vec(), 1)));
        zoo.ok("nothing more", receive(&full).is_err() && receive(&empty).is_err());
        for (to, from) in [(&gone, &gone_reader), (&empty, &empty)] {
            zoo.ok("sending", send(to, b"new", 3).is_ok());
            zoo.eq("receiving", receive(from).ok(), Some((b"new".to_vec(), 3)));
        }
    }
    zoo::must(unlink(&full_name));
    zoo::must(unlink(&empty_name));
}

//! Many children alike, each with files of its own at the same numbers: at positions of their own, copied, to be appended to,
//! closed at exec; and each with its end of another pipe.
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{FdFlags, fcntl_getfd};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;

const CHILDREN: u8 = 12;

fn member(mut zoo: zoo::Zoo, n: u8, pipe: &std::io::PipeWriter, elder: Option<i32>) {
    let position = 10 * u64::from(n);
    let mut own = zoo::must(std::fs::File::open("data"));
    zoo::must(own.seek(SeekFrom::Start(position)));
    let copy = zoo::must(own.try_clone());
    zoo::must(rustix::io::fcntl_setfd(&copy, FdFlags::empty()));
    let mut log = zoo::must(std::fs::OpenOptions::new().append(true).create(true).open(format!("log{n:02}")));
    let mut end = zoo::must(pipe.try_clone());
    zoo::must(rustix::io::fcntl_setfd(&end, FdFlags::empty()));
    let mut written = 0;
    while zoo.gap() {
        zoo.eq("position", own.stream_position().ok(), Some(position));
        zoo.ok("copies are one open file", zoo::sys::same_file(own.as_raw_fd(), copy.as_raw_fd()));
        zoo.eq("close-on-exec", fcntl_getfd(&own), Ok(FdFlags::CLOEXEC));
        zoo.eq("close-on-exec of the copy", fcntl_getfd(&copy), Ok(FdFlags::empty()));
        zoo.eq("close-on-exec of the pipe", fcntl_getfd(&end), Ok(FdFlags::empty()));
        zoo.ok("appends", fcntl_getfl(&log).is_ok_and(|f| f.contains(OFlags::APPEND)));
        if let Some(elder) = elder {
            let shared = |fd: i32| zoo::sys::same_file_of(elder, fd, zoo::sys::getpid(), fd);
            let all = [own.as_raw_fd(), copy.as_raw_fd(), log.as_raw_fd(), end.as_raw_fd()];
            zoo.ok("nobody else has these", !all.into_iter().any(shared));
        }
        let mut byte = [0];
        zoo.eq("byte", own.read(&mut byte).map(|_| byte[0]).ok(), Some(position as u8));
        zoo.eq("the copy has moved on", (&copy).stream_position().ok(), Some(position + 1));
        zoo::must(own.seek(SeekFrom::Start(position)));
        zoo::must(log.write_all(&[n]));
        written += 1;
        zoo.eq("log", std::fs::read(format!("log{n:02}")).ok(), Some(vec![n; written]));
        zoo::must(end.write_all(&[n]));
    }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::write("data", (0..=255).collect::<Vec<u8>>()));
    let pipes: Vec<_> = (0..CHILDREN).map(|_| zoo::must(std::io::pipe())).collect();
    let mut elder = None;
    for (n, (_, w)) in (0..CHILDREN).zip(&pipes) {
        let child = zoo.fork(&format!("child{n:02}"), |zoo| member(zoo, n, w, elder));
        elder = elder.or(Some(child));
    }
    while zoo.gap() {
        for (n, (r, _)) in (0..CHILDREN).zip(&pipes) {
            let mut byte = [255];
            zoo.eq("byte", (&*r).read(&mut byte).map(|_| byte[0]).ok(), Some(n));
        }
    }
}

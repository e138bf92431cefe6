//! A descriptor table that three generations share, beside a child that has its own copy: pipes, a memory file that one of
//! them maps, a deleted file, and what each of them opens.
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};
use zoo::mem::Map;

/// What the table has at these numbers. Others come and go, as everybody here reads and writes files.
fn table(numbers: &[i32]) -> String {
    let line = |fd: &i32| {
        let link = zoo::proc::fd_link(*fd);
        format!("{fd} {}\n", if link.starts_with("pipe:") { "pipe" } else { &link })
    };
    numbers.iter().map(line).collect()
}

/// Each round: tells what it sees at the start, then waits for the root's new file and tells again.
fn look(zoo: &mut zoo::Zoo, name: &str, numbers: &[i32]) {
    let n = zoo.round();
    zoo.tell(&format!("before.{n}.{name}"), &table(numbers));
    let opened = zoo.hear(&format!("opened.{n}")).and_then(|fd| fd.parse().ok()).unwrap_or(-1);
    zoo.tell(&format!("after.{n}.{name}"), &table(&[opened]));
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mut deleted = zoo::must(std::fs::File::options().read(true).write(true).create_new(true).open("deleted"));
    zoo::must(deleted.write_all(b"deleted content"));
    zoo::must(std::fs::remove_file("deleted"));
    let memfd = zoo::must(rustix::fs::memfd_create("shared by the family", rustix::fs::MemfdFlags::empty()));
    zoo::must(rustix::fs::ftruncate(&memfd, 4096));
    let (mut reader, mut writer) = zoo::must(std::io::pipe());
    let numbers = [0, 1, 2, deleted.as_raw_fd(), memfd.as_raw_fd(), reader.as_raw_fd(), writer.as_raw_fd()];
    zoo.expect("grandchild");
    zoo.expect("stranger");
    zoo.fork_sharing(libc::CLONE_FILES, "child", |mut zoo| {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let mut map = Map::new(4096, rw, libc::MAP_SHARED, Some((memfd.as_fd(), 0)));
        map.fill(77);
        zoo.fork_sharing(libc::CLONE_FILES, "grandchild", |mut zoo| {
            while zoo.gap() {
                look(&mut zoo, "grandchild", &numbers);
            }
        });
        zoo.fork("stranger", |mut zoo| {
            // Its own: nobody else loses this one, and it does not see what the others open.
            zoo::sys::close_raw(deleted.as_raw_fd());
            let mine = table(&numbers);
            while zoo.gap() {
                zoo.eq("the stranger's table", table(&numbers), mine.clone());
            }
        });
        while zoo.gap() {
            zoo.ok("the mapped memory file", map.holds(77));
            look(&mut zoo, "child", &numbers);
        }
    });
    let mut last: Option<i32> = None;
    while zoo.gap() {
        let n = zoo.round();
        let ours = table(&numbers);
        for other in ["child", "grandchild"] {
            let theirs = zoo.hear(&format!("before.{n}.{other}")).unwrap_or_default();
            zoo.eq(&format!("table of the {other}"), theirs, ours.clone());
        }
        // One is closed, one is new: for all three. The number stays taken between the two.
        let fd = zoo::must(std::fs::File::create(format!("file.{n}"))).into_raw_fd();
        if let Some(old) = last.replace(fd) {
            zoo::sys::close_raw(old);
        }
        let ours = table(&[fd]);
        zoo.ok("the new file is there", ours.ends_with(&format!("/file.{n}\n")));
        zoo.tell(&format!("opened.{n}"), &fd.to_string());
        for other in ["child", "grandchild"] {
            let theirs = zoo.hear(&format!("after.{n}.{other}")).unwrap_or_default();
            zoo.eq(&format!("table of the {other} afterwards"), theirs, ours.clone());
        }
        let (mut byte, mut content) = ([0], String::new());
        zoo::must(writer.write_all(b"x"));
        zoo::must(reader.read_exact(&mut byte));
        zoo::must(deleted.rewind());
        zoo::must(deleted.read_to_string(&mut content));
        zoo.eq("the deleted file", content.as_str(), "deleted content");
        let mut page = [0; 4096];
        let size = rustix::io::pread(&memfd, &mut page, 0);
        zoo.ok("the memory file", size == Ok(4096) && zoo::mem::holds(&page, 77));
    }
}

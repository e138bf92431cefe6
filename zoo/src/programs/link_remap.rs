//! Files that lost the name they were opened by and live on under another (`--link-remap`).
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let open = || File::options().create(true).truncate(false).read(true).write(true).open("first");
    let mut file = zoo::must(open());
    let again = zoo::must(open());
    zoo::must(std::fs::hard_link("first", "second"));
    zoo::must(std::fs::remove_file("first"));
    zoo::must(file.write_all(b"begun"));
    let inode = zoo::must(file.metadata()).ino();
    let mut end = 5;
    while zoo.gap() {
        for (name, f) in [("first", &file), ("again", &again)] {
            zoo.eq(&format!("{name}: inode"), f.metadata().map(|m| m.ino()).ok(), Some(inode));
            let link = zoo::proc::fd_link(f.as_raw_fd());
            zoo.ok(&format!("{name}: its name is shown as gone ({link})"), link.ends_with("/first (deleted)"));
        }
        zoo.eq("the other name", std::fs::metadata("second").map(|m| m.ino()).ok(), Some(inode));
        zoo.ok("the first name is free", !std::path::Path::new("first").exists());
        zoo.eq("position", file.stream_position().ok(), Some(end));
        zoo.ok("write", file.write_all(b" more").is_ok());
        end += 5;
        let mut got = vec![0; end as usize];
        zoo.ok("read", again.read_exact_at(&mut got, 0).is_ok());
        zoo.eq(
            "content",
            String::from_utf8_lossy(&got).into_owned(),
            format!("begun{}", " more".repeat(got.len() / 5 - 1)),
        );
    }
}

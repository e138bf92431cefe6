//! What a package upgrade leaves behind in a container: files of an overlay's lower layer that were deleted or replaced while
//! they were open, mapped or executed, directories of it, and one that lives on under another name.
use rustix::fs::{AtFlags, Mode, OFlags};
use std::fs::{File, create_dir, hard_link, read, remove_dir, remove_file, rename, write};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use zoo::mem::{Map, PAGE};
use zoo::proc::fd_link;

const LOWER: [&str; 5] = ["open", "linked", "replaced", "library", "renamed"];
const HOLE: u64 = 1 << 20;

fn fill() {
    for name in LOWER {
        zoo::must(write(format!("t/lower/{name}"), format!("lower {name}").repeat(1000)));
    }
    // Two names of one file are two files here.
    zoo::must(hard_link("t/lower/linked", "t/lower/other"));
    let sparse = zoo::must(File::create("t/lower/sparse"));
    zoo::must(sparse.write_all_at(b"end", HOLE));
    ["t/lower/dir", "t/lower/cwd", "t/lower/merged"].iter().for_each(|dir| zoo::must(create_dir(dir)));
    zoo::must(std::fs::copy("/bin/cat", "t/lower/cat"));
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::overlay::make(&mut zoo, fill);
    let base = zoo::must(std::env::current_dir());
    zoo.base_is(&base);
    zoo::must(std::env::set_current_dir("both"));
    let mut cat = zoo::must(Command::new("./cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn());
    let exe = format!("/proc/{}/exe", cat.id());
    // It is the new program when it says so.
    while !zoo::must(std::fs::read_link(&exe)).ends_with("both/cat") {
        std::thread::yield_now();
    }
    let program = zoo::must(read("/bin/cat"));
    let map = |name: &str| {
        let file = zoo::must(File::open(name));
        Map::new(2 * PAGE, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE, Some((file.as_fd(), 0)))
    };
    let library = map("library");
    zoo::must(write("merged/above", ""));
    let dirs = ["dir", "merged"].map(|name| (name, zoo::must(File::open(name))));
    let mut files = ["open", "linked", "replaced"].map(|name| (name, zoo::must(File::open(name))));
    let sparse = zoo::must(File::open("sparse"));
    let renamed = zoo::must(File::options().read(true).write(true).open("renamed"));
    let o_path = zoo::must(rustix::fs::open("linked", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()));
    ["open", "linked", "sparse", "library", "cat"].iter().for_each(|name| zoo::must(remove_file(name)));
    zoo::must(write("new", "another file"));
    zoo::must(rename("new", "replaced"));
    zoo::must(hard_link("renamed", "lives_on"));
    zoo::must(remove_file("renamed"));
    zoo::must(remove_file("merged/above"));
    ["dir", "merged"].iter().for_each(|name| zoo::must(remove_dir(name)));
    zoo::must(std::env::set_current_dir("cwd"));
    zoo::must(remove_dir(base.join("both/cwd")));
    while zoo.gap() {
        for (name, file) in &mut files {
            // Where another file has the name, the deleted one comes back under one beside it.
            let link = fd_link(file.as_raw_fd());
            zoo.ok(&link, link.contains(&format!("both/{name}")) && link.ends_with(" (deleted)"));
            let mut found = String::new();
            zoo::must(file.seek(SeekFrom::Start(0)));
            zoo.ok("readable", file.read_to_string(&mut found).is_ok());
            zoo.ok("content", found == format!("lower {name}").repeat(1000));
        }
        let stat = zoo::must(sparse.metadata());
        zoo.eq("size", stat.size(), HOLE + 3);
        zoo.ok("the hole is one", stat.blocks() * 512 < HOLE / 2);
        let mut end = [0; 3];
        zoo.ok("read", sparse.read_exact_at(&mut end, HOLE).is_ok() && &end == b"end");
        let path_only = rustix::fs::statat(&o_path, "", AtFlags::EMPTY_PATH);
        zoo.eq("O_PATH", path_only.map(|s| s.st_size).ok(), zoo::must(files[1].1.metadata()).len().try_into().ok());
        zoo.ok("the mapped library", library.bytes().starts_with(b"lower librarylower library"));
        let mapped = zoo::mem::vmas_of(&library);
        zoo.ok(&format!("its name in maps: {mapped:?}"), format!("{mapped:?}").contains("both/library (deleted)"));
        for (name, dir) in &dirs {
            zoo.ok(name, fd_link(dir.as_raw_fd()).ends_with(&format!("both/{name} (deleted)")));
        }
        zoo.ok("the working directory is gone", std::env::current_dir().is_err());
        zoo.ok(
            "the program",
            std::fs::read_link(&exe).is_ok_and(|p| p.as_os_str().as_encoded_bytes().ends_with(b"both/cat (deleted)")),
        );
        zoo.ok("its code", read(&exe).is_ok_and(|code| code == program));
        // The one that lives on is the same file under both names, not a copy.
        let other = zoo::must(std::fs::metadata(base.join("both/lives_on")));
        zoo.eq("inode", zoo::must(renamed.metadata()).ino(), other.ino());
        zoo.ok("a write", renamed.write_all_at(&[zoo.round() as u8], 0).is_ok());
        zoo.eq("is one to it", read(base.join("both/lives_on")).ok().map(|b| b[0]), Some(zoo.round() as u8));
        zoo.ok("the new file stays", read(base.join("both/replaced")).is_ok_and(|b| b == b"another file"));
        zoo.ok("nothing else is left", !Path::new(&base).join("both/open").exists());
        zoo.eq("the second name", read(base.join("both/other")).ok().map(|b| b.len()), Some(12000));
    }
    drop(cat.stdin.take());
    zoo.ok("cat ends well", cat.wait().is_ok_and(|end| end.success()));
}

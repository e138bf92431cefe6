//! Files at odd places: on a tmpfs, below a bind mount, in both layers of an overlay (a deleted one too), opened by a symbolic
//! link, below a directory that was renamed later, and one that nobody may change any more (immutable, where the filesystem
//! knows that).
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::mount::{MountFlags, mount, mount_bind};
use std::fs::{File, OpenOptions, create_dir, remove_file, rename, write};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    for dir in ["t", "t/src", "bind", "was"] {
        if dir == "t/src" {
            zoo.get("tmpfs", mount("none", "t", "tmpfs", MountFlags::empty(), None));
        }
        zoo::must(create_dir(dir));
    }
    zoo.get("bind mount", mount_bind("t/src", "bind"));
    let layers = ["t/lower", "t/upper", "t/work", "t/both"];
    layers.iter().for_each(|dir| zoo::must(create_dir(dir)));
    zoo::must(write("t/lower/below", "the lower layer"));
    let options = c"lowerdir=t/lower,upperdir=t/upper,workdir=t/work";
    let overlay = mount("none", "t/both", "overlay", MountFlags::empty(), options).is_ok();
    let fresh = |path: &str| {
        zoo::must(write(path, format!("content of {path}")));
        zoo::must(OpenOptions::new().read(true).write(true).open(path))
    };
    zoo::must(write("target", "by a link"));
    zoo::must(std::os::unix::fs::symlink("target", "link"));
    let mut files: Vec<(File, String)> =
        ["t/on_tmpfs", "t/deleted", "bind/bound", "was/renamed"].map(|p| (fresh(p), format!("content of {p}"))).into();
    zoo::must(remove_file("t/deleted"));
    zoo::must(rename("was", "is"));
    files.push((zoo::must(File::open("link")), "by a link".to_owned()));
    if overlay {
        files.push((zoo::must(File::open("t/both/below")), "the lower layer".to_owned()));
        files.push((fresh("t/both/above"), "content of t/both/above".to_owned()));
        files.push((fresh("t/both/gone"), "content of t/both/gone".to_owned()));
        zoo::must(remove_file("t/both/gone"));
    }
    let fixed = fresh("fixed");
    let immutable = ioctl_getflags(&fixed).and_then(|f| ioctl_setflags(&fixed, f | IFlags::IMMUTABLE)).is_ok();
    drop(fixed);
    files.push((zoo::must(File::open("fixed")), "content of fixed".to_owned()));
    let links = |files: &[(File, String)]| files.iter().map(|(f, _)| zoo::proc::fd_link(f.as_raw_fd())).collect();
    let before: Vec<String> = links(&files);
    while zoo.gap() {
        zoo.eq("names", links(&files), before.clone());
        for (file, content) in &mut files {
            let mut found = String::new();
            zoo::must(file.seek(SeekFrom::Start(0)));
            zoo.ok("readable", file.read_to_string(&mut found).is_ok());
            zoo.eq("content", found, content.clone());
        }
        // Not a copy beside it.
        zoo.ok("a write", files[3].0.write_all_at(b"C", 0).is_ok());
        zoo.eq("is one to the file", std::fs::read("is/renamed").ok().map(|b| b[0]), Some(b'C'));
        zoo.ok("and back", files[3].0.write_all_at(b"c", 0).is_ok());
        zoo.eq("immutable", OpenOptions::new().write(true).open("fixed").is_err(), immutable);
    }
    if immutable {
        // Or nobody can remove the directory.
        let file = zoo::must(File::open("fixed"));
        zoo.get("mutable", ioctl_getflags(&file).and_then(|f| ioctl_setflags(&file, f.difference(IFlags::IMMUTABLE))));
    }
}

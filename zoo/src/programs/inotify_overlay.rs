//! Watches on an overlay, whose files cannot be opened by handle: on a directory, on files of both layers, and on one of the
//! lower layer that was deleted while it is open; its layers are on two filesystems, so that watches number files otherwise.
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::fs::{File, create_dir_all, remove_file, write};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(create_dir_all("lower/dir"));
    for name in ["below", "gone", "dir/deep"] {
        zoo::must(write(format!("lower/{name}"), name));
    }
    zoo::overlay::make_over(&mut zoo, "lower", || ());
    zoo::must(write("both/above", "x"));
    let fd = zoo::must(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC));
    let add = |name: &str, mask| zoo::must(inotify::add_watch(&fd, name, mask));
    let gone = zoo::must(File::open("both/gone"));
    let watches = [
        add("both/dir", WatchFlags::CREATE),
        add("both/below", WatchFlags::OPEN),
        add("both/above", WatchFlags::MODIFY),
        add("both/gone", WatchFlags::ACCESS),
        add("both/dir/deep", WatchFlags::ATTRIB),
    ];
    zoo::must(remove_file("both/gone"));
    while zoo.gap() {
        let mut away = zoo::watches::seen(&fd);
        // A dump that lets us run has read the deleted file.
        away.retain(|(watch, _)| *watch != watches[3]);
        zoo.eq("nothing happened while we were away", away, vec![]);
        zoo::must(write(format!("both/dir/{}", zoo.round()), ""));
        drop(zoo::must(File::open("both/below")));
        zoo::must(write("both/above", "changed"));
        let mut bytes = [0; 4];
        zoo.eq("content", rustix::io::pread(&gone, &mut bytes, 0).map(|_| bytes), Ok(*b"gone"));
        zoo::must(std::fs::set_permissions("both/dir/deep", std::os::unix::fs::PermissionsExt::from_mode(0o600)));
        let mut seen: Vec<i32> = zoo::watches::seen(&fd).into_iter().map(|(watch, _)| watch).collect();
        seen.dedup();
        zoo.eq("watches that saw something", seen, watches.to_vec());
    }
}

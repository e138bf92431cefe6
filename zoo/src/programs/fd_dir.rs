//! An open directory: relative opens go through it, and it can be listed.
use rustix::fs::{Dir, Mode, OFlags, open, openat};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::create_dir("sub"));
    for name in ["a", "b", "c"] {
        zoo::must(std::fs::write(format!("sub/{name}"), name));
    }
    let Ok(dir) = open("sub", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) else { return };
    while zoo.gap() {
        zoo.ok("opening below it", openat(&dir, "a", OFlags::RDONLY, Mode::empty()).is_ok());
        let entries = Dir::read_from(&dir).map(|d| {
            let names = d.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
            let mut names: Vec<String> = names.filter(|n| !n.starts_with('.')).collect();
            names.sort();
            names
        });
        zoo.eq("entries", entries.ok(), Some(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]));
    }
}

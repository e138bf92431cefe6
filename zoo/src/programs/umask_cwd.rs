//! Umask and working directory.
use std::os::unix::fs::PermissionsExt;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::create_dir("sub"));
    let set = std::env::set_current_dir("sub");
    zoo.get("chdir", set);
    zoo.base_is("..");
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o135));
    let before = std::env::current_dir().ok();
    while zoo.gap() {
        zoo.eq("directory", std::env::current_dir().ok(), before.clone());
        let file = zoo.path(&format!("made.{}", zoo.round()));
        zoo::must(std::fs::write(&file, ""));
        let mode = std::fs::metadata(&file).map_or(0, |m| m.permissions().mode() & 0o777);
        zoo.eq("mode of a new file", mode, 0o666 & !0o135);
    }
}

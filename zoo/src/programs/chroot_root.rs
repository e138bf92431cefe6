//! A root directory that is not the system's.
pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::create_dir("cage"));
    zoo::must(std::fs::write("cage/marker", "inside"));
    let set = rustix::process::chroot(".").and_then(|()| rustix::process::chdir("/cage"));
    zoo.get("chroot", set);
    zoo.base_is("/");
    while zoo.gap() {
        zoo.eq("root", std::fs::read_to_string("/cage/marker").unwrap_or_default(), "inside".to_owned());
        zoo.eq("directory", std::fs::read_to_string("marker").unwrap_or_default(), "inside".to_owned());
        zoo.ok("the system is out of reach", !std::path::Path::new("/usr/bin").exists());
        zoo.eq("cwd", std::env::current_dir().ok(), Some("/cage".into()));
    }
}

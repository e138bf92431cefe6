//! Refused: a process whose children would live in another time namespace than itself.
use rustix::thread::UnshareFlags;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mine = || std::fs::read_link("/proc/self/ns/time_for_children").ok();
    let before = mine();
    zoo.ok("unshare", zoo::sys::unshare(UnshareFlags::NEWTIME).is_ok());
    let after = mine();
    zoo.ok("another namespace", before != after);
    zoo.tell("names", &format!("task {}\ntime namespace", zoo::sys::getpid()));
    while zoo.gap() {
        zoo.eq("the children's namespace", mine(), after.clone());
    }
}

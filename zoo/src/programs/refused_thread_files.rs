//! Refused: a thread that has left the descriptor table and the directories of its process.
use rustix::thread::UnshareFlags;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (tell, hear) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let left = zoo::sys::unshare(UnshareFlags::FILES | UnshareFlags::FS);
        tell.send((zoo::sys::gettid(), left.is_ok())).unwrap_or_default();
        loop {
            std::thread::park();
        }
    });
    let (tid, left) = hear.recv().unwrap_or_default();
    zoo.ok("unshare", left);
    zoo.tell("names", &format!("thread {tid}\ndescriptor table"));
    while zoo.gap() {
        zoo.ok("it is there", std::path::Path::new(&format!("/proc/self/task/{tid}")).exists());
    }
}

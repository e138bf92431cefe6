//! Locks on files: flock and POSIX byte ranges.
use rustix::fs::{FlockOperation, fcntl_lock, flock};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::write("a", "lock"));
    zoo::must(std::fs::write("b", "lock"));
    let open = |name| std::fs::OpenOptions::new().read(true).write(true).open(name);
    let (Ok(a), Ok(b), Ok(rival)) = (open("a"), open("b"), open("a")) else { return };
    let done = flock(&a, FlockOperation::LockExclusive).and_then(|()| fcntl_lock(&b, FlockOperation::LockExclusive));
    zoo.get("lock", done);
    while zoo.gap() {
        let got = flock(&rival, FlockOperation::NonBlockingLockShared);
        zoo.eq("a rival's flock", got, Err(rustix::io::Errno::WOULDBLOCK));
        let child = zoo::sys::fork(|| {
            let got = open("b").map(|b| fcntl_lock(&b, FlockOperation::NonBlockingLockShared));
            i32::from(!matches!(got, Ok(Err(_))))
        });
        zoo.eq("a rival's POSIX lock is refused", zoo::sys::waitpid(child).ok(), Some(0));
    }
}

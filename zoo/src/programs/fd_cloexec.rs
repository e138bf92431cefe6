//! The close-on-exec flag, which belongs to the descriptor and not to the open file.
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let Ok(set) = std::fs::File::open("/dev/null") else { return };
    let Ok(clear) = set.try_clone() else { return };
    let done = fcntl_setfd(&clear, FdFlags::empty());
    zoo.get("clear", done);
    while zoo.gap() {
        zoo.eq("set", fcntl_getfd(&set), Ok(FdFlags::CLOEXEC));
        zoo.eq("clear", fcntl_getfd(&clear), Ok(FdFlags::empty()));
    }
}

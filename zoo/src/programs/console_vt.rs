//! The system's console and a virtual terminal, opened by names of one's own. Whether they can be opened depends on the
//! machine.
use rustix::fs::{FileType, Mode, OFlags, fstat, makedev, mknodat};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mut held = Vec::new();
    for (name, dev) in [("console", makedev(5, 1)), ("vt", makedev(4, 5))] {
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let made = mknodat(rustix::fs::CWD, name, FileType::CharacterDevice, mode, dev);
        if let Ok(fd) = made.and_then(|()| rustix::fs::open(name, flags, Mode::empty())) {
            held.push((fd, dev));
        }
    }
    if held.is_empty() {
        zoo.skip("neither console nor virtual terminals");
    }
    while zoo.gap() {
        for (fd, dev) in &held {
            zoo.eq("device", fstat(fd).map(|s| s.st_rdev), Ok(*dev));
            zoo.ok("a terminal", rustix::termios::tcgetattr(fd).is_ok());
        }
    }
}

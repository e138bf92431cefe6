//! Descriptors that only name a place (`O_PATH`): a file and a directory.
use rustix::fs::{Mode, OFlags, fcntl_getfl, open, openat};
use std::os::fd::AsRawFd;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::create_dir("sub"));
    zoo::must(std::fs::write("sub/data", "found"));
    let name = |path| open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let (Ok(file), Ok(dir)) = (name("sub/data"), name("sub")) else { return };
    let look = || [&file, &dir].map(|f| (fcntl_getfl(f), zoo::proc::fd_link(f.as_raw_fd())));
    let before = look();
    while zoo.gap() {
        zoo.eq("flags and links", look(), before.clone());
        zoo.eq("reading", rustix::io::read(&file, &mut [0; 4]), Err(rustix::io::Errno::BADF));
        zoo.ok("opening below it", openat(&dir, "data", OFlags::RDONLY, Mode::empty()).is_ok());
    }
}

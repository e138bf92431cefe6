//! Descriptors with large numbers and holes between them.
#![allow(unsafe_code, reason = "dup2 to chosen numbers")]
pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::write("data", "0123456789"));
    let Ok(file) = std::fs::File::open("data") else { return };
    for fd in [100, 255, 256, 900, 1023] {
        // SAFETY: nobody owns these numbers.
        let got = unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&file), fd) };
        zoo.eq("dup2", got, fd);
    }
    let look = || zoo::proc::fds().into_iter().map(|fd| (fd, zoo::proc::fd_link(fd))).collect::<Vec<_>>();
    let before = look();
    while zoo.gap() {
        zoo.eq("descriptors", look(), before.clone());
    }
}

//! A program that runs from a file in memory, which it has open for writing: only what made such a file may be.
use rustix::fs::{MemfdFlags, memfd_create};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The number of the descriptor, once it runs from there.
const FROM: &str = "ZOO_PROGRAM_FD";

fn start_again() -> ! {
    let file = std::fs::File::from(zoo::must(memfd_create("zoo program", MemfdFlags::empty())));
    zoo::must(std::io::copy(&mut zoo::must(std::fs::File::open("/proc/self/exe")), &mut &file));
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let failed = Command::new(path).args(std::env::args_os().skip(1)).env(FROM, file.as_raw_fd().to_string()).exec();
    panic!("exec: {failed}");
}

pub(super) fn main() {
    let Some(fd) = std::env::var(FROM).ok().and_then(|fd| fd.parse::<i32>().ok()) else { start_again() };
    let mut zoo = zoo::Zoo::start();
    let at = || std::fs::read_link("/proc/self/exe").map_err(|e| e.to_string());
    let path = std::path::PathBuf::from("/memfd:zoo program (deleted)");
    let end = zoo::proc::fd_info(fd, "pos");
    while zoo.gap() {
        zoo.eq("program", at(), Ok(path.clone()));
        zoo.eq("the file it has open", zoo::proc::fd_link(fd), path.display().to_string());
        zoo.eq("position", zoo::proc::fd_info(fd, "pos"), end.clone());
        let writes = std::fs::File::options().write(true).open(format!("/proc/self/fd/{fd}"));
        zoo.eq("opened for writing", writes.map(drop).map_err(|e| e.raw_os_error()), Err(Some(libc::ETXTBSY)));
    }
}

//! Refused: a process whose main thread has ended while another lives on.
#![allow(unsafe_code, reason = "ends the main thread alone")]
pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let pid = zoo::sys::getpid();
    std::thread::spawn(move || {
        while zoo::proc::shape(pid).is_ok_and(|s| s.state != 'Z') {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        zoo.tell("names", &format!("task {pid}|process {pid}\nmain thread|zombie|leader"));
        while zoo.gap() {
            zoo.ok("still so", zoo::proc::shape(pid).is_ok_and(|s| s.state == 'Z' && s.tids.len() == 2));
        }
        std::process::exit(0);
    });
    // SAFETY: ends this thread; the process lives as long as the other.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

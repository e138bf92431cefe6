//! Refused: a task that somebody traces already.
#![allow(unsafe_code, reason = "ptrace has no safe wrapper")]
pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let target = zoo.fork("target", |mut zoo| while zoo.gap() {});
    // SAFETY: seizes a child without stopping it; no pointers.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, target, 0, 0) };
    zoo.eq("seize", seized, 0);
    zoo.tell("names", &format!("{target}\ntrace"));
    while zoo.gap() {
        let tracer = std::fs::read_to_string(format!("/proc/{target}/status")).unwrap_or_default();
        zoo.ok("still traced", tracer.contains(&format!("TracerPid:\t{}", zoo::sys::getpid())));
    }
}

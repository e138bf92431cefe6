//! Refused: a thread whose system calls may be turned into signals (syscall user dispatch).
pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    // On, with a range from which all calls are allowed, and no selector: the program itself notices nothing.
    if zoo::sys::prctl(59, [1, 0, 1 << 47, 0]).is_err() {
        zoo.skip("this kernel has no syscall user dispatch");
    }
    zoo.tell("names", &format!("task {0}|process {0}\nsyscall user dispatch", zoo::sys::getpid()));
    while zoo.gap() {
        zoo.ok("it runs on", true);
    }
}

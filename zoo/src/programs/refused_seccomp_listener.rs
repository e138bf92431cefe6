//! Refused: a filter that asks a listener, which the program holds itself.
pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo.ok("no_new_privs", zoo::bpf::no_new_privs());
    let listener = zoo::bpf::install(libc::SYS_getpgrp, 0x7fc0_0000, zoo::bpf::NEW_LISTENER);
    if listener < 0 {
        zoo.skip("this kernel has no seccomp listeners");
    }
    zoo.tell("names", &format!("task {0}|process {0}\nseccomp", zoo::sys::getpid()));
    while zoo.gap() {
        let link = zoo::proc::fd_link(i32::try_from(listener).unwrap_or(-1));
        zoo.ok(&format!("the listener is there: {link}"), link.contains("seccomp"));
    }
}

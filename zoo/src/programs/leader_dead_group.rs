//! A process group whose leader has died.
use rustix::process::{Pid, getpgrp, setpgid};
use zoo::sys::{fork, prctl, waitpid};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let set = prctl(libc::PR_SET_CHILD_SUBREAPER, [1, 0, 0, 0]);
    zoo.get("subreaper", set);
    zoo.expect("survivor");
    let leader = fork(|| {
        zoo::must(setpgid(None, None));
        let group = zoo::sys::getpid();
        zoo.fork("survivor", |mut zoo| {
            while zoo.gap() {
                zoo.eq("group", Pid::as_raw(Some(getpgrp())), group);
            }
        });
        0
    });
    let status = waitpid(leader);
    zoo.eq("the leader ended", status.ok(), Some(0));
    while zoo.gap() {}
}

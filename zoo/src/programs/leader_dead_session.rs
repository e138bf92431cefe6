//! A session whose leader has died.
use rustix::process::{Pid, getpgrp, getsid, setpgid, setsid};
use zoo::sys::{fork, prctl, waitpid};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let set = prctl(libc::PR_SET_CHILD_SUBREAPER, [1, 0, 0, 0]);
    zoo.get("subreaper", set);
    zoo.expect("survivor");
    let leader = fork(|| {
        let sid = setsid().map_or(0, |pid| Pid::as_raw(Some(pid)));
        zoo.fork("survivor", |mut zoo| {
            zoo::must(setpgid(None, None));
            while zoo.gap() {
                zoo.eq("session", getsid(None).map(|s| Pid::as_raw(Some(s))), Ok(sid));
                zoo.eq("group", Pid::as_raw(Some(getpgrp())), zoo::sys::getpid());
            }
        });
        0
    });
    let status = waitpid(leader);
    zoo.eq("the leader ended", status.ok(), Some(0));
    while zoo.gap() {}
}

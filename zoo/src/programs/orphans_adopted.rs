//! Orphans of sessions whose leaders are dead but not waited for, or gone; below a subreaper that is not the tree's root.
use rustix::process::{Pid, WaitId, WaitIdOptions, getsid, setsid, waitid};
use std::os::unix::process::parent_id;
use zoo::sys::{fork, getpid, prctl, waitpid};

/// Forks a session leader that forks `name`, which stays, and ends; tells the leader's pid.
fn daemon(zoo: &mut zoo::Zoo, name: &'static str) -> i32 {
    zoo.expect(name);
    let above = getpid();
    fork(|| {
        let sid = setsid().map_or(0, |pid| Pid::as_raw(Some(pid)));
        zoo.fork(name, |mut zoo| {
            while zoo.gap() {
                zoo.eq("session", getsid(None).map(|s| Pid::as_raw(Some(s))), Ok(sid));
                zoo.eq("parent", parent_id().cast_signed(), above);
            }
        });
        0
    })
}

fn adopts(zoo: &mut zoo::Zoo, names: [&'static str; 2]) -> i32 {
    zoo.get("subreaper", prctl(libc::PR_SET_CHILD_SUBREAPER, [1, 0, 0, 0]));
    let [zombie, gone] = names.map(|name| daemon(zoo, name));
    zoo.eq("a leader ended", waitpid(gone).ok(), Some(0));
    let ended = waitid(
        WaitId::Pid(zoo::must(Pid::from_raw(zombie).ok_or("pid"))),
        WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
    );
    zoo.ok("the other leader ended", ended.is_ok());
    zombie
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let zombie = adopts(&mut zoo, ["of a zombie", "of nobody"]);
    zoo.fork("middle", |mut zoo| {
        let zombie = adopts(&mut zoo, ["of a zombie below", "of nobody below"]);
        while zoo.gap() {}
        zoo.eq("the zombie below", waitpid(zombie).ok(), Some(0));
    });
    while zoo.gap() {}
    zoo.eq("the zombie", waitpid(zombie).ok(), Some(0));
}

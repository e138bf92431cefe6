//! Sessions and process groups: a child that leads a session, its children in groups of their own.
use rustix::process::{Pid, getpgrp, getsid, setpgid, setsid};

fn ids() -> [i32; 2] {
    [Some(getpgrp()), getsid(None).ok()].map(Pid::as_raw)
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let outer = ids();
    zoo.fork("leader", |mut zoo| {
        let sid = setsid().map_or(0, |pid| Pid::as_raw(Some(pid)));
        for i in 0..2 {
            zoo.fork(&format!("job{i}"), |mut zoo| {
                zoo::must(setpgid(None, None));
                let me = zoo::sys::getpid();
                zoo.fork(&format!("member{i}"), |mut zoo| {
                    while zoo.gap() {
                        zoo.eq("group and session", ids(), [me, sid]);
                    }
                });
                while zoo.gap() {
                    zoo.eq("group and session", ids(), [me, sid]);
                }
            });
        }
        while zoo.gap() {
            zoo.eq("group and session", ids(), [sid, sid]);
        }
    });
    zoo.fork("group", |mut zoo| {
        zoo::must(setpgid(None, None));
        while zoo.gap() {
            zoo.eq("group and session", ids(), [zoo::sys::getpid(), outer[1]]);
        }
    });
    while zoo.gap() {
        zoo.eq("group and session", ids(), outer);
    }
}

//! Flags that only prctl shows: dumpable, child subreaper, timer slack, THP off, machine check policy; and the
//! parent-death signal in a child.
use zoo::sys::{prctl, prctl_read};

fn look() -> [i32; 5] {
    let ask = |what| prctl(what, [0; 4]).unwrap_or(-1);
    let subreaper = prctl_read(libc::PR_GET_CHILD_SUBREAPER).unwrap_or(-1);
    [ask(libc::PR_GET_DUMPABLE), subreaper, ask(libc::PR_GET_THP_DISABLE), ask(libc::PR_GET_TIMERSLACK), ask(34)]
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo.fork("child", |mut zoo| {
        let set = prctl(libc::PR_SET_PDEATHSIG, [40, 0, 0, 0]);
        zoo.get("set", set);
        while zoo.gap() {
            zoo.eq("parent-death signal", prctl_read(libc::PR_GET_PDEATHSIG).ok(), Some(40));
            zoo.eq("dumpable", prctl(libc::PR_GET_DUMPABLE, [0; 4]).ok(), Some(1));
        }
    });
    for (option, value) in [
        (libc::PR_SET_CHILD_SUBREAPER, 1),
        (libc::PR_SET_THP_DISABLE, 1),
        (libc::PR_SET_TIMERSLACK, 123_456),
        (libc::PR_SET_DUMPABLE, 0),
    ] {
        let set = prctl(option, [value, 0, 0, 0]);
        zoo.get(&format!("option {option}"), set);
    }
    let before = look();
    zoo.eq("set", before[..4].to_vec(), vec![0, 1, 1, 123_456]);
    while zoo.gap() {
        zoo.eq("dumpable, subreaper, THP off, timer slack, machine check", look(), before);
    }
}

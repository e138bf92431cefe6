//! A filter that all threads share (TSYNC), so that a later one can be given to all of them again; inherited over fork.
use zoo::bpf;

fn probe() -> [Option<i32>; 3] {
    [libc::SYS_getppid, libc::SYS_getpgrp, libc::SYS_getegid].map(bpf::errno_of)
}

/// The next call that all threads are to lose, with its errno.
fn next(round: u32) -> [Option<i32>; 3] {
    [Some(80), (round >= 1).then_some(81), (round >= 2).then_some(82)]
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo.ok("no_new_privs", bpf::no_new_privs());
    for name in ["one", "two"] {
        zoo.thread(name, |seat| {
            let mut round = 0;
            while seat.gap() {
                round += 1;
                // The root's next filter may come at any time from here on: what is refused already stays so.
                let (now, least) = (probe(), next(round - 1));
                let holds = now.iter().zip(least).all(|(now, least)| least.is_none() || *now == least);
                seat.ok(&format!("calls in round {round}: {now:?}"), holds);
            }
        });
    }
    zoo.ok("filter for all", bpf::refuse(libc::SYS_getppid, 80, bpf::TSYNC));
    zoo.fork("heir", |mut zoo| {
        while zoo.gap() {
            zoo.eq("calls", probe(), [Some(80), None, None]);
        }
    });
    while zoo.gap() {
        zoo.eq("calls", probe(), next(zoo.round() - 1));
        let call = if zoo.round() == 1 { libc::SYS_getpgrp } else { libc::SYS_getegid };
        // Works only if every thread's filters are the same ones as ours.
        zoo.ok("another for all", bpf::refuse(call, 80 + zoo.round().min(2), bpf::TSYNC));
        zoo.eq("calls now", probe(), next(zoo.round()));
    }
}

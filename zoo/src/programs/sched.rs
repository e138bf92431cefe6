//! Scheduling of each thread: nice value, policy, priority, reset-on-fork.
use zoo::sys::{SchedAttr, sched_attr, set_sched_attr};

const RESET_ON_FORK: u64 = 1;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let attrs = [
        SchedAttr { policy: 3, nice: 3, ..Default::default() },
        SchedAttr { policy: 5, nice: 19, ..Default::default() },
        SchedAttr { policy: 0, nice: -4, flags: RESET_ON_FORK, ..Default::default() },
        SchedAttr { policy: 1, priority: 7, ..Default::default() },
        SchedAttr { policy: 2, priority: 9, flags: RESET_ON_FORK, ..Default::default() },
    ];
    for (i, attr) in attrs.into_iter().enumerate() {
        zoo.thread(&i.to_string(), move |seat| {
            let set = set_sched_attr(attr);
            // A group without real-time bandwidth refuses FIFO and RR: then the thread stays what it was.
            seat.ok("set", set.is_ok() || attr.priority > 0);
            let before = sched_attr();
            while seat.gap() {
                seat.eq("attributes", sched_attr(), before);
            }
        });
    }
    zoo::must(rustix::process::nice(4));
    while zoo.gap() {
        zoo.eq("nice", sched_attr().nice, 4);
    }
}

//! A process whose parent has died, adopted by the subreaper at the root of the tree.
use zoo::sys::{fork, getpid, prctl, waitpid};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let set = prctl(libc::PR_SET_CHILD_SUBREAPER, [1, 0, 0, 0]);
    zoo.get("subreaper", set);
    let root = getpid();
    zoo.expect("orphan");
    // The middle process ends at once, and its child is the root's from then on.
    let middle = fork(|| {
        zoo.fork("orphan", |mut zoo| {
            while zoo.gap() {
                zoo.eq("parent", std::os::unix::process::parent_id().cast_signed(), root);
            }
        });
        0
    });
    let status = waitpid(middle);
    zoo.eq("the middle one ended", status.ok(), Some(0));
    while zoo.gap() {}
}

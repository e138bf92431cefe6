//! A crowd of threads, one of which has children: one that lives, and one that has ended and waits to be asked for.
use zoo::sys::{exit_now, fork, getpid, kill, set_mask, waitpid};

/// More than the dump asks one by one whether they have children.
const THREADS: usize = 80;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    for i in 1..THREADS {
        zoo.thread(&i.to_string(), |seat| while seat.gap() {});
    }
    let (done, all_gone) = std::sync::mpsc::channel();
    zoo.thread("parent", move |seat| {
        let mut on = true;
        while on {
            let dead = fork(|| exit_now(7));
            let living = fork(|| {
                set_mask(0);
                loop {
                    std::thread::sleep(std::time::Duration::from_secs(1000));
                }
            });
            while zoo::proc::shape(dead).is_ok_and(|s| s.state != 'Z') {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            on = seat.gap();
            seat.eq("status of the dead child", waitpid(dead).ok(), Some(7 << 8));
            seat.eq("parent of the living child", zoo::proc::shape(living).ok().map(|s| s.ppid), Some(getpid()));
            zoo::must(kill(living, libc::SIGTERM));
            seat.eq("status of the other child", waitpid(living).ok(), Some(libc::SIGTERM));
        }
        zoo::must(done.send(()));
    });
    while zoo.gap() {}
    // The process must not end before its children.
    zoo::must(all_gone.recv());
}

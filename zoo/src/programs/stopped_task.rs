//! A child stopped by SIGSTOP: it stays stopped, and goes on when told to.
use zoo::sys::kill;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let child = zoo::sys::fork(|| {
        for n in 1_u32.. {
            zoo::must(kill(zoo::sys::getpid(), libc::SIGSTOP));
            zoo::must(std::fs::write(format!("went.{n}"), ""));
        }
        0
    });
    let stopped = || zoo::proc::shape(child).is_ok_and(|s| s.state == 'T');
    let settle = || {
        (0..4000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            stopped()
        })
    };
    zoo.ok("it stops", settle());
    while zoo.gap() {
        zoo.ok("it is still stopped", stopped());
        zoo.ok("SIGCONT", kill(child, libc::SIGCONT).is_ok());
        let went = zoo.hear(&format!("went.{}", zoo.round()));
        zoo.ok("it goes on", went.is_some());
        zoo.ok("it stops again", settle());
    }
    zoo::must(kill(child, libc::SIGKILL));
}

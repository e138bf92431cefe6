//! Dead children that nobody has waited for yet: their exit codes and signals.
use zoo::sys::{exit_now, fork, kill, set_mask, waitpid};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mut on = true;
    while on {
        let codes = [0, 7, 255].map(|code| (fork(|| exit_now(code)), code << 8));
        let signals = [libc::SIGTERM, libc::SIGKILL, 40].map(|signal| {
            let child = fork(|| {
                set_mask(0);
                loop {
                    std::thread::sleep(std::time::Duration::from_secs(1000));
                }
            });
            zoo::must(kill(child, signal));
            (child, signal)
        });
        let dead: Vec<(i32, i32)> = codes.into_iter().chain(signals).collect();
        for (child, _) in &dead {
            while zoo::proc::shape(*child).is_ok_and(|s| s.state != 'Z') {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
        on = zoo.gap();
        for (child, status) in dead {
            zoo.eq(&format!("status of {child}"), waitpid(child).ok(), Some(status));
        }
    }
}

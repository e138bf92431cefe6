//! Children stopped by SIGTSTP, SIGTTIN, SIGTTOU and SIGSTOP: a parent that waits is told the same signal, and they go on.
#![allow(unsafe_code, reason = "waitid with a look that takes nothing")]
const SIGNALS: [i32; 4] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU, libc::SIGSTOP];

/// The signal that stopped a child, as its parent is told, without taking the news. Waits for it.
fn stopped_by(child: i32) -> i32 {
    // SAFETY: all zeros is a siginfo without news; it lives through the call.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let got = libc::waitid(libc::P_PID, child.unsigned_abs(), &raw mut info, libc::WSTOPPED | libc::WNOWAIT);
        if got == 0 { info.si_status() } else { -1 }
    }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let children = SIGNALS.map(|signal| {
        let child = zoo::sys::fork(|| {
            // A group of its own, which its parent looks after: nobody stops an orphaned one.
            // SAFETY: numbers only.
            unsafe {
                libc::setpgid(0, 0);
                libc::raise(signal);
            }
            // Going on means ending well.
            0
        });
        (child, signal)
    });
    for (child, signal) in children {
        zoo.eq("stopped", stopped_by(child), signal);
    }
    let mut all = children.to_vec();
    while zoo.gap() {
        for &(child, signal) in &all {
            zoo.eq("stopped by", stopped_by(child), signal);
        }
        // One goes on in each round.
        if let Some((child, _)) = all.pop() {
            let mut status = -1;
            // SAFETY: numbers, and a live integer.
            let ended = unsafe {
                libc::kill(child, libc::SIGCONT);
                libc::waitpid(child, &raw mut status, 0)
            };
            zoo.eq("goes on and ends", (ended, status), (child, 0));
        }
    }
    for (child, _) in all {
        // SAFETY: numbers only.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
    }
}

//! A thread in one vfork after the other, each waiting for its child. The test ends the first child while a dump waits for
//! the thread to stop.
#![allow(unsafe_code, reason = "vfork from a thread of its own")]
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

static ENDED: AtomicU32 = AtomicU32::new(0);
static FAULTS: AtomicU32 = AtomicU32::new(0);

/// The child's life, on a stack of its own. It ends with the file of its number, or with the program.
pub(super) extern "C" fn wait_for_end(number: *mut libc::c_void) -> i32 {
    let name = [c"end.1".as_ptr(), c"end.2".as_ptr()][number as usize & 1];
    // SAFETY: the paths are constants; the calls touch only the child's own stack and this thread's errno.
    while unsafe { libc::access(name, 0) != 0 && libc::access(c"quit".as_ptr(), 0) != 0 } {
        zoo::sys::sleep_once(Duration::from_millis(10)).unwrap_or_default();
    }
    0
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    std::thread::spawn(|| {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let stack = Box::leak(vec![0_u128; 8192].into_boxed_slice());
        for number in 0..2_usize {
            let number_at = number as *mut libc::c_void;
            // SAFETY: the stack is leaked, and this thread waits until the child has ended, so that each has it alone.
            let child = unsafe { libc::clone(wait_for_end, stack.as_mut_ptr_range().end.cast(), flags, number_at) };
            let mut status = -1;
            // SAFETY: the status is a live integer.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            FAULTS.fetch_add((child <= 0 || waited != child || status != 0).into(), SeqCst);
            ENDED.fetch_add(1, SeqCst);
        }
    });
    while zoo::proc::all().map_or(0, |all| all.iter().filter(|p| p.ppid == zoo::sys::getpid()).count()) == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    while zoo.gap() {
        let end = Instant::now() + Duration::from_secs(60);
        while ENDED.load(SeqCst) < zoo.round() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        zoo.eq("children that ended", ENDED.load(SeqCst), zoo.round());
        zoo.eq("children that did not end well", FAULTS.load(SeqCst), 0);
        // The other one is under way.
    }
}

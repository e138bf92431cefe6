//! Refused: a parent waiting in vfork, which cannot be stopped, so that the freeze times out and is taken back.
#![allow(unsafe_code, reason = "vfork from a thread of its own")]
pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    std::thread::spawn(|| {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        extern "C" fn wait_for_quit(_: *mut libc::c_void) -> i32 {
            // SAFETY: the path is a constant; the calls touch only the child's own stack and this errno.
            while unsafe { libc::access(c"quit".as_ptr(), 0) } != 0 {
                zoo::sys::sleep_once(std::time::Duration::from_millis(20)).unwrap_or_default();
            }
            0
        }
        let stack = Box::leak(vec![0_u128; 8192].into_boxed_slice());
        // SAFETY: the stack is leaked, and this thread waits until the child has ended.
        unsafe { libc::clone(wait_for_quit, stack.as_mut_ptr_range().end.cast(), flags, std::ptr::null_mut()) };
    });
    std::thread::sleep(std::time::Duration::from_millis(50));
    zoo.tell("names", "task \nvfork");
    while zoo.gap() {
        let ours = zoo::proc::all().map_or(0, |all| all.iter().filter(|p| p.ppid == zoo::sys::getpid()).count());
        zoo.eq("children", ours, 1);
    }
}

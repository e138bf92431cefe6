//! Refused: a process that shares its memory with its parent without being a thread of it.
#![allow(unsafe_code, reason = "clone with chosen flags and a stack")]
extern "C" fn idle(_: *mut libc::c_void) -> i32 {
    loop {
        // SAFETY: pause(2) by hand: the C library would write an errno that parent and child share.
        unsafe {
            std::arch::asm!("syscall", inout("rax") 34_u64 => _, out("rcx") _, out("r11") _);
        }
    }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let stack = Box::leak(vec![0_u128; 4096].into_boxed_slice());
    let top = stack.as_mut_ptr_range().end;
    // SAFETY: the stack is leaked; the child touches nothing else.
    let child = unsafe { libc::clone(idle, top.cast(), libc::CLONE_VM | libc::SIGCHLD, std::ptr::null_mut()) };
    zoo.ok("clone", child > 0);
    zoo.tell("names", &format!("task {child}\nmemory"));
    while zoo.gap() {
        zoo.ok("it is there", zoo::sys::kill(child, 0).is_ok());
    }
    zoo::must(zoo::sys::kill(child, libc::SIGKILL));
    zoo::must(zoo::sys::waitpid(child));
}

//! Refused: a process with a table of segments of its own.
#![allow(unsafe_code, reason = "modify_ldt(2) has no wrapper")]

/// `struct user_desc`: a page of data, 32-bit, useable.
static SEGMENT: [u32; 4] = [0, 0, 0xfff, 1 | 1 << 6];

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    // SAFETY: the call reads the 16 bytes. Nobody selects the segment.
    let made = unsafe { libc::syscall(libc::SYS_modify_ldt, 1, SEGMENT.as_ptr(), size_of_val(&SEGMENT)) };
    if made as i32 != 0 {
        zoo.skip("this kernel has no tables of segments");
    }
    zoo.tell("names", &format!("task {}\nmodify_ldt", zoo::sys::getpid()));
    while zoo.gap() {
        zoo.ok("it runs on", true);
    }
}

//! A child in seccomp's strict mode, which echoes bytes, and at the end dies of a forbidden call.
#![allow(unsafe_code, reason = "strict mode leaves only raw read, write and exit")]
use std::io::{Read, Write};

/// What tells the child to make a call that strict mode kills for.
const POISON: u8 = 0xff;

fn echo(from: i32, to: i32) -> i32 {
    let mut byte = 0_u8;
    // SAFETY: one byte that lives through the calls; the descriptors are the pipe ends this child was forked with.
    unsafe {
        if libc::prctl(libc::PR_SET_SECCOMP, 1, 0, 0, 0) != 0 {
            libc::syscall(libc::SYS_exit, 1);
        }
        while libc::syscall(libc::SYS_read, from, &raw mut byte, 1_usize) == 1 {
            if byte == POISON {
                libc::syscall(libc::SYS_getpid);
            }
            byte += 1;
            libc::syscall(libc::SYS_write, to, &raw const byte, 1_usize);
        }
        libc::syscall(libc::SYS_exit, 2);
    }
    3
}

pub(super) fn main() {
    use std::os::fd::AsRawFd;
    let mut zoo = zoo::Zoo::start();
    let (child_in, mut to_child) = zoo::must(std::io::pipe());
    let (mut from_child, child_out) = zoo::must(std::io::pipe());
    let child = zoo::sys::fork(|| echo(child_in.as_raw_fd(), child_out.as_raw_fd()));
    let mut ask = move |n: u8| {
        let mut byte = [0];
        zoo::must(to_child.write_all(&[n]));
        from_child.read_exact(&mut byte).map(|()| byte[0]).ok()
    };
    drop(child_out);
    zoo.eq("echo", ask(1), Some(2));
    let mode = || zoo::proc::field_of(child, "status", "Seccomp:");
    while zoo.gap() {
        zoo.eq("mode", mode(), "1".to_owned());
        zoo.eq("echo", ask(10), Some(11));
        if zoo.round() == 2 {
            zoo.eq("answer to a forbidden call", ask(POISON), None);
            zoo.eq("wait status", zoo::sys::waitpid(child).ok(), Some(libc::SIGKILL));
        }
    }
    if mode() == "1" {
        zoo::must(zoo::sys::kill(child, libc::SIGKILL));
    }
}

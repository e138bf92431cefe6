//! Processes that are nearly always in a vfork, whose child is in one itself: neither can be stopped before its child ends, so a
//! freeze must not hold that one. No child comes to another end.
#![allow(unsafe_code, reason = "vfork on a stack of its own")]
use std::time::Duration;
use zoo::storms::Storms;

const STACK: usize = 1 << 16;

/// Waits for a child that has this memory, lives on `stack` and does `life`. Its exit code.
pub(super) fn vfork(stack: &mut [u128], life: extern "C" fn(*mut libc::c_void) -> i32, with: *mut libc::c_void) -> i32 {
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is the child's alone, for the caller waits in the kernel until the child has ended.
    let child = unsafe { libc::clone(life, stack.as_mut_ptr_range().end.cast(), flags, with) };
    let mut status = -1;
    // SAFETY: the status is a live integer.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    if child > 0 && waited == child && libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 }
}

extern "C" fn child(stack: *mut libc::c_void) -> i32 {
    // SAFETY: it is the second half of what `round` has for both, and nobody else's.
    let stack = unsafe { std::slice::from_raw_parts_mut(stack.cast::<u128>(), STACK / 16) };
    vfork(stack, grandchild, std::ptr::null_mut()) + 1
}

extern "C" fn grandchild(_: *mut libc::c_void) -> i32 {
    zoo::sys::sleep_once(Duration::from_millis(1)).unwrap_or_default();
    6
}

/// A child and its child, each on half of a stack.
fn round() -> bool {
    let mut stacks = vec![0_u128; 2 * STACK / 16];
    let (first, second) = stacks.split_at_mut(STACK / 16);
    vfork(first, child, second.as_mut_ptr().cast()) == 7
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    Storms::start(3, round).live(&mut zoo);
}

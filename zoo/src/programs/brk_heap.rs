//! The heap below the program break: content, and the break moves on from where it was.
#![allow(unsafe_code, reason = "moves the program break")]
use zoo::mem::{fill, holds};

const STEP: usize = 300 * 1024;

/// Grows the heap by one step; `None` if the kernel or another mapping is in the way.
fn grow() -> Option<&'static mut [u8]> {
    // SAFETY: the break moves up, and the new bytes belong to nobody else: the C library copes with foreign moves.
    unsafe {
        let at = libc::sbrk(STEP as isize);
        (at as isize != -1).then(|| std::slice::from_raw_parts_mut(at.cast(), STEP))
    }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mut parts: Vec<&'static mut [u8]> = Vec::new();
    loop {
        // SAFETY: only asks where the break is.
        let before = unsafe { libc::sbrk(0) } as usize;
        let Some(part) = grow() else { return zoo.tell("fail.0", "sbrk") };
        zoo.eq("the break moved from where it was", part.as_ptr() as usize, before);
        parts.push(part);
        for (i, part) in parts.iter_mut().enumerate() {
            fill(part, (i as u64) << 8);
        }
        if !zoo.gap() {
            return;
        }
        for (i, part) in parts.iter().enumerate() {
            zoo.ok(&format!("part {i}"), holds(part, (i as u64) << 8));
        }
    }
}

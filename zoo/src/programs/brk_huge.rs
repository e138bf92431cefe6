//! A heap larger than the machine's memory, as the kernel allows to whoever takes it bit by bit; little of it is used.
#![allow(unsafe_code, reason = "moves the program break")]
use zoo::mem::{PAGE, fill, holds};

const STEP: usize = 1 << 28;

/// Bytes of memory and swap that the machine has.
fn all_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name| {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    [kib("MemTotal:"), kib("SwapTotal:")].into_iter().flatten().sum::<u64>() << 10
}

/// Grows the heap by one step; its last page.
fn grow() -> Option<&'static mut [u8]> {
    // SAFETY: the break moves up, and the new bytes belong to nobody else: the C library copes with foreign moves.
    unsafe {
        let at = libc::sbrk(STEP as isize);
        (at as isize != -1).then(|| std::slice::from_raw_parts_mut(at.cast::<u8>().add(STEP - PAGE), PAGE))
    }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let overcommit = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap_or_default();
    if overcommit.trim() == "2" {
        zoo.skip("vm.overcommit_memory is 2: no heap can be larger than what is left of the memory");
    }
    let steps = all_memory() as usize / STEP + 4;
    let mut last_pages = Vec::new();
    for i in 0..steps {
        let Some(page) = grow() else { return zoo.tell("fail.0", "sbrk") };
        // Some holes are larger than others.
        if i % 7 == 0 || i + 1 == steps {
            fill(page, i as u64);
            last_pages.push((i, page));
        }
    }
    while zoo.gap() {
        for (i, page) in &last_pages {
            zoo.ok(&format!("step {i}"), holds(page, *i as u64));
        }
        match grow() {
            Some(page) => {
                fill(page, last_pages.len() as u64 + 1000);
                last_pages.push((last_pages.len() + 1000, page));
            }
            None => return zoo.tell("fail.0", "sbrk after the restore"),
        }
    }
}

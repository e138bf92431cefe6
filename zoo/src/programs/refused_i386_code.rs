//! Refused: a thread of a 64-bit program in 32-bit code. Its handlers are those of 64-bit code.
#![allow(unsafe_code, reason = "jumps into another code segment")]
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// pause(2), for ever.
const CODE: [u8; 9] = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    if std::fs::read_dir("/proc/sys/abi").is_err() {
        zoo.skip("this kernel runs no 32-bit code");
    }
    let (tell, hear) = channel();
    std::thread::spawn(move || {
        let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        // SAFETY: new memory, which the code fits into; the thread never comes back from it, and needs nothing there.
        unsafe {
            let at = libc::mmap(std::ptr::null_mut(), CODE.len(), prot, flags, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            std::ptr::copy_nonoverlapping(CODE.as_ptr(), at.cast(), CODE.len());
            tell.send(zoo::sys::gettid()).unwrap_or_default();
            std::arch::asm!("push 0x23", "push {at}", "retfq", at = in(reg) at, options(noreturn));
        }
    });
    let tid = hear.recv().unwrap_or_default();
    // i386's number of pause, which is another call's in 64-bit code. Just let go, it may not be there yet.
    let there = || {
        let call = || std::fs::read_to_string(format!("/proc/self/task/{tid}/syscall")).unwrap_or_default();
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let found = call().starts_with("29 ");
            if found || Instant::now() > end {
                break found;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    zoo.ok("it comes there", there());
    zoo.tell("names", &format!("task {tid}\n32-bit code"));
    while zoo.gap() {
        zoo.ok("it is there", there());
    }
}

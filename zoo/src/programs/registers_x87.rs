//! A thread spinning with a full x87 stack and its own rounding modes (control word, MXCSR).
#![allow(unsafe_code, reason = "a leaf function that the compiler cannot be asked for")]
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// 0: flag; 1: x87 control word; 2: MXCSR; 3–10: doubles to load; 17–26: what was found, in the same order;
/// 31: it spins.
#[repr(C)]
struct Block([AtomicU64; 32]);

static BLOCK: Block = Block([const { AtomicU64::new(0) }; 32]);

unsafe extern "C" {
    fn zoo_spin_x87(block: *const Block);
}

std::arch::global_asm!(
    ".globl zoo_spin_x87",
    "zoo_spin_x87:",
    "fninit",
    "fldcw [rdi+8]; ldmxcsr [rdi+16]",
    "fld qword ptr [rdi+24]; fld qword ptr [rdi+32]; fld qword ptr [rdi+40]; fld qword ptr [rdi+48]",
    "fld qword ptr [rdi+56]; fld qword ptr [rdi+64]; fld qword ptr [rdi+72]; fld qword ptr [rdi+80]",
    "mov qword ptr [rdi+248], 1",
    "2: pause",
    "cmp qword ptr [rdi], 0",
    "je 2b",
    "fnstcw [rdi+136]; stmxcsr [rdi+144]",
    "fstp qword ptr [rdi+208]; fstp qword ptr [rdi+200]; fstp qword ptr [rdi+192]; fstp qword ptr [rdi+184]",
    "fstp qword ptr [rdi+176]; fstp qword ptr [rdi+168]; fstp qword ptr [rdi+160]; fstp qword ptr [rdi+152]",
    "fninit",
    "ret",
);

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    // Round to zero in both; the single precision of the control word would round the doubles, so it stays extended.
    let mut want = vec![0x0f7f, 0x7f80];
    let mut running = true;
    while running {
        want.truncate(2);
        want.extend((0..8).map(|i| (f64::from(zoo.round()) + 1.0 / f64::from(i + 3)).to_bits()));
        for (slot, value) in BLOCK.0[1..].iter().zip(&want) {
            slot.store(*value, SeqCst);
        }
        BLOCK.0[0].store(0, SeqCst);
        BLOCK.0[31].store(0, SeqCst);
        // SAFETY: the function follows the C calling convention, writes only into the block, and puts the x87 unit
        // back; the thread ends before any arithmetic under the changed MXCSR.
        let spinner = std::thread::spawn(|| unsafe { zoo_spin_x87(&raw const BLOCK) });
        while BLOCK.0[31].load(SeqCst) == 0 {
            std::thread::yield_now();
        }
        running = zoo.gap();
        BLOCK.0[0].store(1, SeqCst);
        zoo.ok("the thread ends", spinner.join().is_ok());
        let found: Vec<u64> = BLOCK.0[17..27].iter().map(|slot| slot.load(SeqCst)).collect();
        zoo.eq("control word, MXCSR, stack", found, want.clone());
    }
}

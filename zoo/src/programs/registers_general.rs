//! A thread spinning with every general register and the red zone live; nothing of it may change.
#![allow(unsafe_code, reason = "a leaf function that the compiler cannot be asked for")]
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// 0: flag; 1–14: values to load; 17–30: values found; 31, 32: two words of the red zone; 33: it spins.
#[repr(C)]
struct Block([AtomicU64; 40]);

static BLOCK: Block = Block([const { AtomicU64::new(0) }; 40]);

unsafe extern "C" {
    fn zoo_spin_general(block: *const Block);
}

std::arch::global_asm!(
    ".globl zoo_spin_general",
    "zoo_spin_general:",
    "push rbx; push rbp; push r12; push r13; push r14; push r15",
    "mov rax, [rdi+8]; mov rbx, [rdi+16]; mov rcx, [rdi+24]; mov rdx, [rdi+32]; mov rsi, [rdi+40]",
    "mov rbp, [rdi+48]; mov r8, [rdi+56]; mov r9, [rdi+64]; mov r10, [rdi+72]; mov r11, [rdi+80]",
    "mov r12, [rdi+88]; mov r13, [rdi+96]; mov r14, [rdi+104]; mov r15, [rdi+112]",
    "mov [rsp-8], r15; mov [rsp-128], r14",
    "mov qword ptr [rdi+264], 1",
    "2: pause",
    "cmp qword ptr [rdi], 0",
    "je 2b",
    "mov [rdi+136], rax; mov [rdi+144], rbx; mov [rdi+152], rcx; mov [rdi+160], rdx; mov [rdi+168], rsi",
    "mov [rdi+176], rbp; mov [rdi+184], r8; mov [rdi+192], r9; mov [rdi+200], r10; mov [rdi+208], r11",
    "mov [rdi+216], r12; mov [rdi+224], r13; mov [rdi+232], r14; mov [rdi+240], r15",
    "mov rax, [rsp-8]; mov [rdi+248], rax; mov rax, [rsp-128]; mov [rdi+256], rax",
    "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx",
    "ret",
);

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let value = |i: usize, round: u32| 0x0101_0101_0101_0101 * i as u64 + u64::from(round);
    let mut running = true;
    while running {
        let round = zoo.round();
        BLOCK.0[0].store(0, SeqCst);
        BLOCK.0[33].store(0, SeqCst);
        for i in 1..=14 {
            BLOCK.0[i].store(value(i, round), SeqCst);
        }
        // SAFETY: the function follows the C calling convention and writes only into the block.
        let spinner = std::thread::spawn(|| unsafe { zoo_spin_general(&raw const BLOCK) });
        while BLOCK.0[33].load(SeqCst) == 0 {
            std::thread::yield_now();
        }
        running = zoo.gap();
        BLOCK.0[0].store(1, SeqCst);
        zoo.ok("the thread ends", spinner.join().is_ok());
        for i in 1..=14 {
            zoo.eq(&format!("register {i}"), BLOCK.0[16 + i].load(SeqCst), value(i, round));
        }
        zoo.eq("red zone, near", BLOCK.0[31].load(SeqCst), value(14, round));
        zoo.eq("red zone, far", BLOCK.0[32].load(SeqCst), value(13, round));
    }
}

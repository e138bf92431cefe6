//! The plan interpreter: position-independent, without stack or data, walks records and makes their syscalls.
//!
//! It runs inside a dumped program (as agent) and inside a task that is being restored, after that task's own memory is
//! gone, so it may use registers and the plan's memory only. Register use: r14 header, r12 current record, rbx and rbp scratch;
//! the kernel keeps all of them over `syscall`. The layout of header and record is defined in [`crate::plan`].
#![allow(unsafe_code, reason = "the only assembly of the project")]
use std::arch::global_asm;

global_asm!(
    ".pushsection .text.crust_interp,\"ax\",@progbits",
    ".balign 64",
    ".hidden crust_interp_start",
    ".globl crust_interp_start",
    "crust_interp_start:",
    // Entry: r14 = header.
    "2:",
    "mov dword ptr [r14], 1", // status: running
    "mov r12, [r14 + 32]",    // first record
    "3:",                     // next record
    "movzx eax, byte ptr [r12]",
    "cmp eax, 1",
    "je 10f",
    "cmp eax, 2",
    "je 20f",
    "cmp eax, 3",
    "je 30f",
    "cmp eax, 4",
    "je 40f",
    "cmp eax, 5",
    "je 50f",
    "cmp eax, 6",
    "je 60f",
    "cmp eax, 7",
    "je 70f",
    "cmp eax, 8",
    "je 80f",
    "cmp eax, 9",
    "je 90f",
    "mov rax, -38", // unknown op: -ENOSYS
    "jmp 8f",
    // Loads argument i into a register; where the reference bit is set the value is slot[low 16 bits] + (rest >> 16).
    ".macro crust_ld i, reg",
    "mov \\reg, [r12 + 8 + 8 * \\i]",
    "test byte ptr [r12 + 2], (1 << \\i)",
    "jz 9f",
    "mov rbx, \\reg",
    "and ebx, 0xffff",
    "sar \\reg, 16",
    "add \\reg, [r14 + rbx * 8]",
    "9:",
    ".endm",
    // SYSCALL
    "10:",
    "crust_ld 0, rdi",
    "crust_ld 1, rsi",
    "crust_ld 2, rdx",
    "crust_ld 3, r10",
    "crust_ld 4, r8",
    "crust_ld 5, r9",
    "mov eax, [r12 + 4]",
    "syscall",
    "11:", // result in rax: store, judge, go on
    "test byte ptr [r12 + 3], 1",
    "jz 12f",
    "mov ebx, [r12 + 64]",
    "mov [r14 + rbx * 8], rax",
    "12:",
    "movzx ebx, byte ptr [r12 + 1]",
    "cmp ebx, 1",
    "jb 7f",
    "ja 13f",
    "cmp rax, -4095", // expect 1: anything but -errno
    "jae 8f",
    "jmp 7f",
    "13:",
    "cmp rax, [r12 + 56]", // expect 2: exactly this
    "jne 8f",
    "7:",
    "add r12, 72",
    "jmp 3b",
    // Unexpected result: note record and value, then the error path of the plan, or the end of the process.
    "8:",
    "mov [r14 + 8], r12",
    "mov [r14 + 16], rax",
    "mov dword ptr [r14], 2",
    "mov r12, [r14 + 40]",
    "test r12, r12",
    "jnz 3b",
    "mov edi, 112",
    "mov eax, 231", // exit_group
    "syscall",
    "ud2",
    // BARRIER a = {arrived, n, go, value}: counts itself in, wakes whoever waits when n have come, waits until go >= value.
    "20:",
    "crust_ld 0, rdi",
    "crust_ld 1, rbp",
    "mov eax, 1",
    "lock xadd dword ptr [rdi], eax",
    "inc eax",
    "cmp eax, ebp",
    "jne 21f",
    "mov esi, 1", // FUTEX_WAKE, shared
    "mov edx, 0x7fffffff",
    "mov eax, 202",
    "syscall",
    "21:",
    "crust_ld 2, rdi",
    "crust_ld 3, rbp",
    "22:",
    "mov edx, [rdi]",
    "cmp edx, ebp",
    "jae 7b",
    "xor esi, esi", // FUTEX_WAIT, shared, no timeout
    "xor r10d, r10d",
    "mov eax, 202",
    "syscall",
    "jmp 22b",
    // COPY a = {to, from, bytes}
    "30:",
    "crust_ld 0, rdi",
    "crust_ld 1, rsi",
    "crust_ld 2, rcx",
    "cld",
    "rep movsb",
    "jmp 7b",
    // THREAD a = {clone3 arguments, their size, header of the new thread}
    "40:",
    "crust_ld 0, rdi",
    "crust_ld 1, rsi",
    "crust_ld 2, rdx",
    "mov eax, 435",
    "syscall",
    "test rax, rax",
    "jnz 11b",
    "mov r14, rdx",
    "jmp 2b",
    // SIGRETURN a = {address of the signal frame's ucontext}
    "50:",
    "crust_ld 0, rsp",
    "mov eax, 15",
    "syscall",
    "ud2",
    // CALLOUT nr, a = {rip, rsp, rdi, rsi, rdx, r10}: leaves the interpreter
    "60:",
    "crust_ld 0, rbp",
    "crust_ld 1, rsp",
    "crust_ld 2, rdi",
    "crust_ld 3, rsi",
    "crust_ld 4, rdx",
    "crust_ld 5, r10",
    "mov eax, [r12 + 4]",
    "jmp rbp",
    // WAKEALL a = {word, n}: until n waiters have really been woken
    "70:",
    "crust_ld 0, rdi",
    "crust_ld 1, rbp",
    "71:",
    "test ebp, ebp",
    "jle 7b",
    "mov esi, 1",
    "mov edx, ebp",
    "mov eax, 202",
    "syscall",
    "test rax, rax",
    "js 8b",
    "sub ebp, eax",
    "jmp 71b",
    // SYSCALL32: as SYSCALL, with the kernel's numbers and argument registers for i386
    "80:",
    "crust_ld 1, rcx",
    "crust_ld 2, rdx",
    "crust_ld 3, rsi",
    "crust_ld 4, rdi",
    "crust_ld 5, rbp",
    "crust_ld 0, rax",
    "mov rbx, rax",
    "mov eax, [r12 + 4]",
    "int 0x80",
    "jmp 11b",
    // TILES a = {a configuration with a first tile}: uses an AMX tile, whereupon the kernel has room for the thread's tiles
    "90:",
    "crust_ld 0, rdi",
    "ldtilecfg [rdi]",
    "tilezero tmm0",
    "tilerelease",
    "jmp 7b",
    ".hidden crust_interp_end",
    ".globl crust_interp_end",
    "crust_interp_end:",
    ".purgem crust_ld",
    ".popsection",
);

unsafe extern "C" {
    static crust_interp_start: u8;
    static crust_interp_end: u8;
}

/// The interpreter's machine code. It may be copied to any address; its entry is its first byte, with the
/// header's address in the register that [`enter`] and [`ENTRY_HEADER_REG`] name.
pub fn code() -> &'static [u8] {
    // SAFETY: both symbols are labels in one section of our own text, start before end, which is never written.
    unsafe {
        let start = &raw const crust_interp_start;
        let end = &raw const crust_interp_end;
        std::slice::from_raw_parts(start, end.offset_from_unsigned(start))
    }
}

/// Name of the register that holds the header's address at the interpreter's entry.
pub const ENTRY_HEADER_REG: &str = "r14";

/// Jumps into a copy of the interpreter and never comes back.
///
/// # Safety
/// `entry` must be the start of an executable copy of [`code`], `header` that of a linked program's header, both mapped for as
/// long as the program runs; nothing of the calling thread's Rust state may be needed any more.
pub unsafe fn enter(entry: u64, header: u64) -> ! {
    // SAFETY: the caller vouches for both addresses; control never returns, so nothing needs to be restored.
    unsafe { std::arch::asm!("jmp {entry}", entry = in(reg) entry, in("r14") header, options(noreturn)) }
}

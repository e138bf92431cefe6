//! General registers and the XSAVE area of a stopped thread, and how a syscall is put into registers.
#![allow(unsafe_code, reason = "the register struct has no safe way to be zero")]
use crust_kernel::HostTid;
use crust_kernel::ptrace::{self, RegSet};
use crust_kernel::ptrace_x86;
use rustix::io::{Errno, Result};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

/// All that may hold an address.
pub fn words(regs: &Regs) -> impl Iterator<Item = u64> {
    [
        regs.rip, regs.rsp, regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.r8, regs.r9,
        regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ]
    .into_iter()
}

/// General registers as the kernel gives them (`NT_PRSTATUS`).
pub type Regs = libc::user_regs_struct;

/// The content of AMX tiles, among the components of XSAVE.
const TILE_DATA: u64 = 1 << 18;
const USER_CS_64: u64 = 0x33;
const USER_CS_32: u64 = 0x23;
/// Direction flag: string instructions of borrowed code expect it clear.
const EFLAGS_DF: u64 = 1 << 10;

/// The kernel's codes for "start this call again", seen only by tracers.
const ERESTARTSYS: i64 = 512;
const ERESTARTNOINTR: i64 = 513;
const ERESTARTNOHAND: i64 = 514;
const ERESTART_RESTARTBLOCK: i64 = 516;

/// All registers zero.
pub fn zeroed() -> Regs {
    // SAFETY: the struct holds integers only, for which all-zero bytes are a value.
    unsafe { std::mem::zeroed() }
}

/// Reads the registers of a stopped thread.
///
/// # Errors
/// `ENOEXEC`: it runs code in a segment that is not the kernel's. `ESRCH`: gone or running.
pub fn read(tid: HostTid) -> Result<Regs> {
    let regs = ptrace_x86::get_registers(tid)?;
    if matches!(regs.cs, USER_CS_64 | USER_CS_32) { Ok(regs) } else { Err(Errno::NOEXEC) }
}

/// Writes the registers of a stopped thread, `orig_rax` included.
///
/// # Errors
/// `ESRCH`: gone or running. `EIO`: values no task may have.
pub fn write(tid: HostTid, regs: &Regs) -> Result<()> {
    ptrace_x86::set_registers(tid, regs)
}

/// True for a thread in 32-bit code.
pub fn is_32bit(regs: &Regs) -> bool {
    regs.cs == USER_CS_32
}

/// Reads the vector and floating point state: NT_X86_XSTATE, or the 512 bytes of FXSAVE where the CPU has no XSAVE.
/// What `keep` makes of it is kept: with AMX it has 11 KiB, mostly of state that is not in use.
///
/// # Errors
/// `ESRCH`: gone or running.
pub fn read_xsave<T>(tid: HostTid, keep: impl FnOnce(&[u8]) -> T) -> Result<T> {
    /// NT_PRFPREG: the FXSAVE image.
    const FXSAVE: RegSet = RegSet::Note(2);
    // AVX-512 takes 2.7 KiB, AMX 11 KiB. All threads of a machine have the same size: it is looked for once.
    static ENOUGH: AtomicUsize = AtomicUsize::new(4096);
    let mut area = vec![0; ENOUGH.load(Relaxed)];
    loop {
        let got = match ptrace::get_regset(tid, RegSet::XState, &mut area) {
            Ok(got) => got,
            Err(Errno::NODEV | Errno::INVAL) => ptrace::get_regset(tid, FXSAVE, &mut area)?,
            Err(errno) => return Err(errno),
        };
        if got < area.len() {
            return Ok(keep(&area[..got]));
        }
        let double = area.len() * 2;
        area.resize(double, 0);
        ENOUGH.fetch_max(double, Relaxed);
    }
}

/// Whether the kernel has room for the thread's AMX tiles, as it has once the thread has used one; its signal frames are longer
/// then. Only a try tells: state with tiles is taken or refused. They are all zero where none are in use, which is how tiles
/// begin, and the state is then put back as it was: no thread can tell, not even if we die in between.
///
/// # Errors
/// `ESRCH`: gone or running.
pub fn has_tile_room(tid: HostTid) -> Result<bool> {
    const XSTATE_BV: std::ops::Range<usize> = 512..520;
    let before = read_xsave(tid, <[u8]>::to_vec)?;
    let Some(in_use) = before.get(XSTATE_BV).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes) else {
        return Ok(false);
    };
    if in_use & TILE_DATA != 0 {
        return Ok(true);
    }
    let mut with_tiles = before.clone();
    with_tiles[XSTATE_BV].copy_from_slice(&(in_use | TILE_DATA).to_le_bytes());
    match ptrace::set_regset(tid, RegSet::XState, &with_tiles) {
        Ok(()) => ptrace::set_regset(tid, RegSet::XState, &before).map(|()| true),
        Err(Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// True if the thread was stopped inside a system call (as opposed to user mode).
pub fn in_syscall(regs: &Regs) -> bool {
    regs.orig_rax as i64 >= 0
}

/// The number of the interrupted call.
pub fn syscall_nr(regs: &Regs) -> u64 {
    regs.orig_rax
}

/// What a finished call returned.
pub fn result(regs: &Regs) -> i64 {
    regs.rax as i64
}

/// True for results that ask for a restart and must never be taken for an answer.
pub fn wants_restart(value: i64) -> bool {
    matches!(-value, ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK)
}

/// True if the kernel goes on with the interrupted call by restart_syscall(2).
pub fn goes_on_by_restart(regs: &Regs) -> bool {
    regs.rax as i64 == -ERESTART_RESTARTBLOCK
}

/// True if the interrupted call begins again unless a handler runs first, as after [`call_again`].
pub fn begins_again(regs: &Regs) -> bool {
    regs.rax as i64 == -ERESTARTNOHAND
}

/// A call that has ended, as one that begins again with another fourth argument, unless a handler runs first: that ends it with
/// EINTR.
pub fn call_again(regs: &mut Regs, fourth: u64) {
    regs.rax = -ERESTARTNOHAND as u64;
    *(if is_32bit(regs) { &mut regs.rsi } else { &mut regs.r10 }) = fourth;
}

/// Where the thread would go on.
pub fn ip(regs: &Regs) -> u64 {
    regs.rip
}

/// Sets where it goes on.
pub fn set_ip(regs: &mut Regs, ip: u64) {
    regs.rip = ip;
}

/// Where the stack is.
pub fn sp(regs: &Regs) -> u64 {
    regs.rsp
}

/// The thread-local base registers: fs and gs.
pub fn tls(regs: &Regs) -> (u64, u64) {
    (regs.fs_base, regs.gs_base)
}

/// `from`, about to make system call `nr` with the syscall instruction at `at`, in 64-bit code.
pub fn with_syscall(from: &Regs, at: u64, nr: u64, args: [u64; 6]) -> Regs {
    let mut regs = at_call(from, USER_CS_64, at, nr);
    [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
    regs
}

/// As [`with_syscall`], as 32-bit code makes it with the `int 0x80` at `at`: other numbers, other registers.
pub fn with_syscall32(from: &Regs, at: u64, nr: u64, args: [u64; 6]) -> Regs {
    let mut regs = at_call(from, USER_CS_32, at, nr);
    [regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp] = args;
    regs
}

/// `from` at an instruction for system calls, in code of the segment `cs`. The kernel must not think that an older call waits
/// for its restart, hence `orig_rax`.
fn at_call(from: &Regs, cs: u64, at: u64, nr: u64) -> Regs {
    Regs { cs, rip: at, rax: nr, orig_rax: u64::MAX, ..*from }
}

/// The arguments of the call that a thread is in.
pub fn syscall_args(regs: &Regs) -> [u64; 6] {
    if is_32bit(regs) {
        [regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp].map(|word| word & u64::from(u32::MAX))
    } else {
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9]
    }
}

/// `from`, about to enter the plan interpreter at `at` with the header at `header`.
pub fn with_plan(from: &Regs, at: u64, header: u64) -> Regs {
    let mut regs = *from;
    regs.cs = USER_CS_64;
    regs.rip = at;
    regs.r14 = header;
    regs.orig_rax = u64::MAX;
    regs.eflags &= !EFLAGS_DF;
    regs
}

/// What the registers become when user code itself, not the kernel, has to carry on: an interrupted call that the kernel
/// would start again is put right before its syscall instruction.
pub fn as_resumed_by_hand(regs: &Regs) -> Regs {
    const SYSCALL_INSN_BYTES: u64 = 2;
    let nr_restart_syscall = if is_32bit(regs) { 0 } else { 219 };
    let mut out = *regs;
    if in_syscall(regs) {
        match -(regs.rax as i64) {
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
                out.rax = regs.orig_rax;
                out.rip = regs.rip.wrapping_sub(SYSCALL_INSN_BYTES);
            }
            ERESTART_RESTARTBLOCK => {
                out.rax = nr_restart_syscall;
                out.rip = regs.rip.wrapping_sub(SYSCALL_INSN_BYTES);
            }
            _ => {}
        }
    }
    out.orig_rax = u64::MAX;
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked_in(nr: u64, rax: i64) -> Regs {
        Regs { rip: 0x1002, orig_rax: nr, rax: rax as u64, ..zeroed() }
    }

    #[test]
    fn interrupted_calls_start_again_and_finished_ones_do_not() {
        for code in [ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND] {
            let out = as_resumed_by_hand(&blocked_in(0, -code));
            assert_eq!((out.rip, out.rax), (0x1000, 0));
        }
        let out = as_resumed_by_hand(&blocked_in(35, -ERESTART_RESTARTBLOCK));
        assert_eq!((out.rip, out.rax), (0x1000, 219));
        let out = as_resumed_by_hand(&Regs { cs: USER_CS_32, ..blocked_in(162, -ERESTART_RESTARTBLOCK) });
        assert_eq!((out.rip, out.rax), (0x1000, 0));
        let out = as_resumed_by_hand(&blocked_in(35, -4));
        assert_eq!((out.rip, out.rax as i64), (0x1002, -4));
        // In user mode rax is the program's own, whatever it looks like.
        let out = as_resumed_by_hand(&blocked_in(u64::MAX, -512));
        assert_eq!((out.rip, out.rax as i64), (0x1002, -512));
    }

    #[test]
    fn a_syscall_keeps_everything_it_does_not_need() {
        let from = Regs { rbx: 7, rsp: 9, eflags: 0x246, fs_base: 5, orig_rax: 35, ..zeroed() };
        let regs = with_syscall(&from, 0x77, 9, [1, 2, 3, 4, 5, 6]);
        assert_eq!((regs.rip, regs.rax, regs.orig_rax as i64), (0x77, 9, -1));
        assert_eq!((regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9), (1, 2, 3, 4, 5, 6));
        assert_eq!((regs.rbx, regs.rsp, regs.eflags, regs.fs_base), (7, 9, 0x246, 5));
        let regs = with_syscall32(&regs, 0x77, 9, [1, 2, 3, 4, 5, 6]);
        assert_eq!(syscall_args(&regs), [1, 2, 3, 4, 5, 6]);
        assert_eq!((regs.cs, regs.rsp), (USER_CS_32, 9));
        let regs = with_plan(&Regs { eflags: 0x646, ..from }, 0x88, 0x99);
        assert_eq!((regs.rip, regs.r14, regs.eflags, regs.orig_rax as i64), (0x88, 0x99, 0x246, -1));
    }
}

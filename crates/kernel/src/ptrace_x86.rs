//! What ptrace(2) has on x86 only: all registers of a thread whatever code it runs, and its segments in the GDT.
#![allow(unsafe_code, reason = "ptrace has no safe wrapper, and its structures go to and from the kernel as bytes")]
use crate::HostTid;
use crate::ptrace::request_ptr;
use rustix::io::Result;

/// Reads the 64-bit registers. PTRACE_GETREGSET would give a thread in 32-bit code as i386 saw it, which is not all.
///
/// # Errors
/// `ESRCH`: gone or not stopped.
pub fn get_registers(tid: HostTid) -> Result<libc::user_regs_struct> {
    // SAFETY: the struct holds integers only, for which all-zero bytes are a value.
    let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: GETREGS ignores `addr` and writes exactly one `user_regs_struct`, which `regs` is.
    unsafe { request_ptr(libc::PTRACE_GETREGS, tid, 0, (&raw mut regs).cast()) }?;
    Ok(regs)
}

/// Writes them, `orig_rax` and the code segment included.
///
/// # Errors
/// `ESRCH`: gone or not stopped. `EIO`: values no task may have.
pub fn set_registers(tid: HostTid, regs: &libc::user_regs_struct) -> Result<()> {
    let data = std::ptr::from_ref(regs).cast_mut().cast();
    // SAFETY: SETREGS ignores `addr` and only reads one `user_regs_struct` through `data`, borrowed for the call.
    unsafe { request_ptr(libc::PTRACE_SETREGS, tid, 0, data) }.map(drop)
}

/// Components of CPU state that a process may use if it asks for them (ARCH_GET_XCOMP_SUPP), by their bits.
///
/// # Errors
/// `EINVAL`: the kernel or the CPU has none.
pub fn supported_xstate() -> Result<u64> {
    const ARCH_GET_XCOMP_SUPP: i32 = 0x1021;
    let mut mask = 0_u64;
    // SAFETY: the call writes one u64, which `mask` is.
    let ret = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_XCOMP_SUPP, &raw mut mask) };
    if ret < 0 { Err(crate::mman::last_errno()) } else { Ok(mask) }
}

/// A segment of a thread's own: `struct user_desc`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Which entry of the GDT.
    pub entry: u32,
    /// Where it begins.
    pub base: u32,
    /// Its last byte, or page.
    pub limit: u32,
    /// seg_32bit 1, contents 2, read_exec_only 1, limit_in_pages 1, seg_not_present 1, useable 1 bits, from the lowest.
    pub bits: u32,
}

const PTRACE_GET_THREAD_AREA: libc::c_uint = 25;
const PTRACE_SET_THREAD_AREA: libc::c_uint = 26;

/// Reads entry `entry` of the GDT, one of three that are each thread's own.
///
/// # Errors
/// `EINVAL`: no such entry. `EIO`: a kernel without 32-bit programs. `ESRCH`: gone or not stopped.
pub fn get_segment(tid: HostTid, entry: u32) -> Result<Segment> {
    let mut found = Segment::default();
    // SAFETY: the request writes exactly one `struct user_desc`, which `found` is.
    unsafe { request_ptr(PTRACE_GET_THREAD_AREA, tid, entry.into(), (&raw mut found).cast()) }?;
    Ok(found)
}

/// Sets the entry that `segment` names.
///
/// # Errors
/// As [`get_segment`].
pub fn set_segment(tid: HostTid, segment: &Segment) -> Result<()> {
    let data = std::ptr::from_ref(segment).cast_mut().cast();
    // SAFETY: the request only reads one `struct user_desc` through `data`, borrowed for the call.
    unsafe { request_ptr(PTRACE_SET_THREAD_AREA, tid, segment.entry.into(), data) }.map(drop)
}

/// Reads debug register `number`, of 0 to 7 (4 and 5 are 0).
///
/// # Errors
/// `EIO`: no such register. `ESRCH`: gone or not stopped.
pub fn get_debug_register(tid: HostTid, number: usize) -> Result<u64> {
    let mut value = 0_u64;
    // The C library's ptrace would return the value itself, which may look like an error.
    // SAFETY: the request writes one word, which `value` is.
    let done = unsafe {
        libc::syscall(libc::SYS_ptrace, libc::PTRACE_PEEKUSER, tid.as_raw(), debug_offset(number), &raw mut value)
    };
    crate::ptrace::check(done).map(|_| value)
}

/// Writes it.
///
/// # Errors
/// `EINVAL`: an address that is not the program's, or no such kind of breakpoint. `ENOSPC`: others have all of the processor's
/// breakpoints. `ESRCH`: gone or not stopped.
pub fn set_debug_register(tid: HostTid, number: usize, value: u64) -> Result<()> {
    let value = std::ptr::without_provenance_mut(value as usize);
    // SAFETY: the request takes the word itself, not what lies there.
    unsafe { request_ptr(libc::PTRACE_POKEUSER, tid, debug_offset(number), value) }.map(drop)
}

/// Where the kernel has it in its `struct user`.
fn debug_offset(number: usize) -> libc::c_ulong {
    (std::mem::offset_of!(libc::user, u_debugreg) + number * size_of::<u64>()) as libc::c_ulong
}

const _: () = assert!(size_of::<Segment>() == 16);

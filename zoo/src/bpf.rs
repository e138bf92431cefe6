//! Small seccomp filters, for the programs that live under one.
#![allow(unsafe_code, reason = "installs filters, and reads their flags through ptrace")]
use std::io;

/// SECCOMP_FILTER_FLAG_TSYNC
pub const TSYNC: u32 = 1;
/// SECCOMP_FILTER_FLAG_LOG
pub const LOG: u32 = 2;
/// SECCOMP_FILTER_FLAG_NEW_LISTENER
pub const NEW_LISTENER: u32 = 8;

/// A classic BPF instruction.
#[repr(C)]
struct Op(u16, u8, u8, u32);

/// Gives up new privileges; true if that worked.
pub fn no_new_privs() -> bool {
    crate::sys::prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0]).is_ok()
}

/// Makes `call` give `action` in this thread from now on; what seccomp(2) returned.
pub fn install(call: i64, action: u32, flags: u32) -> i64 {
    let call = u32::try_from(call).unwrap_or(u32::MAX);
    // Load the number; if it is the call: the action; else allow.
    let ops = [Op(0x20, 0, 0, 0), Op(0x15, 0, 1, call), Op(0x06, 0, 0, action), Op(0x06, 0, 0, 0x7fff_0000)];
    let program = (ops.len() as u64, ops.as_ptr());
    // SAFETY: the program is four instructions as its length says, and the kernel copies it.
    unsafe { libc::syscall(libc::SYS_seccomp, 1, flags, &raw const program) }
}

/// Makes `call` fail with `errno` from now on; true if that worked.
pub fn refuse(call: i64, errno: u32, flags: u32) -> bool {
    install(call, 0x0005_0000 | errno, flags) == 0
}

/// The errno that a call without arguments fails with.
pub fn errno_of(call: i64) -> Option<i32> {
    // SAFETY: the programs ask calls that take no arguments.
    let got = unsafe { libc::syscall(call) };
    (got < 0).then(|| io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

/// The flags of all filters of a child, the oldest first.
pub fn flags(pid: i32) -> Vec<u64> {
    let mut found = Vec::new();
    // SAFETY: ptrace with numbers, and with a pair of words that lives through the call, whose size the kernel is told.
    unsafe {
        if libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) != 0 || libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0) != 0 {
            return found;
        }
        let mut status = 0;
        libc::waitpid(pid, &raw mut status, libc::__WALL);
        loop {
            let mut metadata = [found.len() as u64, 0];
            if libc::ptrace(0x420d, pid, 16, &raw mut metadata) < 0 {
                break;
            }
            found.push(metadata[1]);
        }
        libc::ptrace(libc::PTRACE_DETACH, pid, 0, 0);
    }
    found
}

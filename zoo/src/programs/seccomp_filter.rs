//! A seccomp filter that refuses one call with an errno of its own, and a thread under a second filter.
#![allow(unsafe_code, reason = "installs filters")]
/// A classic BPF instruction.
#[repr(C)]
struct Op(u16, u8, u8, u32);

/// Makes `call` fail with `errno` in this thread from now on.
fn refuse(call: i64, errno: u32) -> bool {
    let call = u32::try_from(call).unwrap_or(u32::MAX);
    // Load the number; if it is the call: return the errno; else allow.
    let ops =
        [Op(0x20, 0, 0, 0), Op(0x15, 0, 1, call), Op(0x06, 0, 0, 0x0005_0000 | errno), Op(0x06, 0, 0, 0x7fff_0000)];
    let program = (ops.len() as u64, ops.as_ptr());
    // SAFETY: the program is four instructions as its length says, and the kernel copies it.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(libc::SYS_seccomp, 1, 0, &raw const program) == 0
    }
}

/// The errno of two harmless calls: getppid and getpgrp's old form.
fn probe() -> [Option<i32>; 2] {
    [libc::SYS_getppid, libc::SYS_getpgrp].map(|call| {
        // SAFETY: neither takes arguments.
        let got = unsafe { libc::syscall(call) };
        (got < 0).then(|| std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    })
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo.ok("filter", refuse(libc::SYS_getppid, 77));
    zoo.thread("second", |seat| {
        seat.ok("filter", refuse(libc::SYS_getpgrp, 78));
        while seat.gap() {
            seat.eq("both calls", probe(), [Some(77), Some(78)]);
        }
    });
    while zoo.gap() {
        zoo.eq("both calls", probe(), [Some(77), None]);
        zoo.eq("mode", zoo::proc::field("status", "Seccomp:"), "2".to_owned());
    }
}

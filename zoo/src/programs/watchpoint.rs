//! A hardware breakpoint that a debugger set in one thread and left there: writes of that thread to a variable are signalled,
//! those of another are not.
#![allow(unsafe_code, reason = "ptrace has no safe wrapper")]
use std::cell::Cell;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use zoo::sys::{fork, waitpid};

static WATCHED: AtomicU64 = AtomicU64::new(0);
const TRAP_HWBKPT: i32 = 4;
/// Breakpoint 0, of this task, on writes of eight bytes.
const CONTROL: u64 = 1 | 0b01 << 16 | 0b10 << 18;

thread_local! {
    static TRAPS: Cell<u64> = const { Cell::new(0) };
    static OTHERS: Cell<u64> = const { Cell::new(0) };
}

/// Runs on the thread that wrote.
extern "C" fn trapped(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a whole siginfo.
    let code = unsafe { (*info).si_code };
    let count = if code == TRAP_HWBKPT { &TRAPS } else { &OTHERS };
    count.set(count.get() + 1);
}

fn ptrace(request: libc::c_uint, pid: i32, addr: usize, data: u64) -> bool {
    // SAFETY: the requests below take numbers only.
    unsafe { libc::ptrace(request, pid, addr, std::ptr::without_provenance_mut::<u8>(data as usize)) == 0 }
}

/// What the debugger does; 1 where there are no breakpoints.
fn debug(pid: i32) -> i32 {
    let register = |n: usize| std::mem::offset_of!(libc::user, u_debugreg) + n * 8;
    if !ptrace(libc::PTRACE_SEIZE, pid, 0, 0) || !ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0) {
        return 2;
    }
    let mut status = 0;
    // SAFETY: the status is a live integer.
    if unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } != pid {
        return 3;
    }
    let set = ptrace(libc::PTRACE_POKEUSER, pid, register(0), WATCHED.as_ptr() as u64)
        && ptrace(libc::PTRACE_POKEUSER, pid, register(7), CONTROL);
    if !ptrace(libc::PTRACE_DETACH, pid, 0, 0) {
        return 4;
    }
    i32::from(!set)
}

fn traps_of_a_write() -> u64 {
    let before = TRAPS.get();
    WATCHED.store(before, SeqCst);
    TRAPS.get() - before
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::sys::handle(libc::SIGTRAP, libc::SA_SIGINFO, trapped);
    let me = zoo::sys::getpid();
    // Where a process may not be traced by its child.
    let _not_everywhere = zoo::sys::prctl(libc::PR_SET_PTRACER, [libc::PR_SET_PTRACER_ANY, 0, 0, 0]);
    zoo.thread("without", |seat| {
        while seat.gap() {
            seat.eq("traps of another thread's write", traps_of_a_write(), 0);
        }
    });
    match waitpid(fork(|| debug(me))) {
        Ok(0) => {}
        Ok(status) if status == 1 << 8 => zoo.skip("no hardware breakpoints here"),
        other => panic!("the debugger ended with {other:?}"),
    }
    zoo.eq("traps of a write", traps_of_a_write(), 1);
    while zoo.gap() {
        zoo.eq("traps of a write", traps_of_a_write(), 1);
        zoo.eq("other traps", OTHERS.get(), 0);
    }
}

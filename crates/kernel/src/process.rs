//! Making processes: fork with a chosen id (clone3 set_tid), leaving without Rust's exit handlers, prctl in small pieces.
#![allow(unsafe_code, reason = "clone3 and prctl are not in rustix in the form needed")]
use crate::HostTid;
use rustix::io::{Errno, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct clone_args` (clone(2)), as far as Linux 5.7 has it.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs {
    /// CLONE_* flags.
    pub flags: u64,
    /// Where to store a pidfd.
    pub pidfd: u64,
    /// For CLONE_CHILD_SETTID and CLONE_CHILD_CLEARTID.
    pub child_tid: u64,
    /// For CLONE_PARENT_SETTID.
    pub parent_tid: u64,
    /// Signal to the parent at exit.
    pub exit_signal: u64,
    /// Lowest byte of the stack.
    pub stack: u64,
    /// Its size in bytes.
    pub stack_size: u64,
    /// New thread pointer for CLONE_SETTLS.
    pub tls: u64,
    /// Array of ids, innermost namespace first.
    pub set_tid: u64,
    /// Its length.
    pub set_tid_size: u64,
    /// Cgroup for CLONE_INTO_CGROUP.
    pub cgroup: u64,
}

impl CloneArgs {
    /// The structure's bytes, for a plan's data.
    pub fn to_bytes(self) -> Vec<u8> {
        let words = [
            self.flags,
            self.pidfd,
            self.child_tid,
            self.parent_tid,
            self.exit_signal,
            self.stack,
            self.stack_size,
            self.tls,
            self.set_tid,
            self.set_tid_size,
            self.cgroup,
        ];
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }
}

/// Where the C library keeps this thread's errno: what it writes to by itself in any call lies beside it.
pub fn errno_address() -> u64 {
    // SAFETY: gives an address and changes nothing.
    unsafe { libc::__errno_location() as u64 }
}

/// Ends this process at once: no destructors, no flushing, as a forked child must.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no precondition.
    unsafe { libc::_exit(status) }
}

/// prctl(2) with plain numbers.
///
/// # Errors
/// As prctl(2).
///
/// # Safety
/// An option that takes an address must be given a valid one for the size it expects.
pub unsafe fn prctl(option: i32, args: [u64; 4]) -> Result<i32> {
    // SAFETY: the caller vouches for addresses among the arguments.
    let ret = unsafe { libc::prctl(option, args[0], args[1], args[2], args[3]) };
    if ret < 0 { Err(last()) } else { Ok(ret) }
}

/// Lets the C library's heap grow in steps of so many bytes, instead of 128 KiB. A hint: other libraries take none.
pub fn grow_heap_in_steps(bytes: i32) {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two numbers; called or not, the heap works the same.
    unsafe {
        libc::mallopt(libc::M_TOP_PAD, bytes);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = bytes;
}

/// Sends the calling process `signal` when its parent's thread ends (0: none).
///
/// # Errors
/// `EINVAL` for no signal number.
pub fn set_parent_death_signal(signal: i32) -> Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a number only.
    unsafe { prctl(libc::PR_SET_PDEATHSIG, [signal as u64, 0, 0, 0]) }.map(drop)
}

/// Makes the calling process adopt orphaned descendants.
///
/// # Errors
/// None are documented.
pub fn set_child_subreaper(on: bool) -> Result<()> {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes a number only.
    unsafe { prctl(libc::PR_SET_CHILD_SUBREAPER, [u64::from(on), 0, 0, 0]) }.map(drop)
}

/// Switches PR_TIMER_CREATE_RESTORE_IDS (Linux 6.15): timer_create then takes the id it is given.
///
/// # Errors
/// `EINVAL` on older kernels.
pub fn timer_restore_ids(on: bool) -> Result<()> {
    // SAFETY: the option takes a number only.
    unsafe { prctl(77, [u64::from(on), 0, 0, 0]) }.map(drop)
}

/// Sends a signal to the calling process; any number, real-time ones too.
pub fn raise(signal: i32) {
    // SAFETY: takes numbers only.
    unsafe { libc::kill(libc::getpid(), signal) };
}

/// How a task is scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sched {
    /// `SCHED_*`, with SCHED_RESET_ON_FORK (0x40000000) in it.
    pub policy: u32,
    /// Nice value, also of tasks whose policy does not heed it.
    pub nice: i32,
    /// Real-time priority, 0 for other policies.
    pub rt_priority: u32,
    /// Smallest and largest utilization that the task is taken to have; both 0 where the kernel has no such clamps.
    pub clamp: (u32, u32),
    /// Time slice in nanoseconds of a task with a fair policy, if the kernel tells it (Linux 6.12), else 0.
    pub slice_ns: u64,
}

impl Sched {
    /// True if the utilization clamps are not those that every task of its policy begins with.
    pub fn is_clamped(&self) -> bool {
        const ALL: u32 = 1024;
        let (least, most) = self.clamp;
        let usual = matches!((least, most), (0, 0 | ALL)) || (self.rt_priority != 0 && most == ALL);
        !usual
    }
}

/// `struct sched_attr` of Linux 5.3.
#[derive(Default)]
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

/// Asks how a task is scheduled.
///
/// # Errors
/// `ESRCH` if the task is gone.
pub fn sched(tid: HostTid) -> Result<Sched> {
    const RESET_ON_FORK: u64 = 1;
    const REAL_TIME: [i32; 2] = [libc::SCHED_FIFO, libc::SCHED_RR];
    let mut attr = SchedAttr::default();
    // SAFETY: the kernel fills as many bytes as it is told, the size of `attr`, which lives over the call.
    let got =
        unsafe { libc::syscall(libc::SYS_sched_getattr, tid.as_raw(), &raw mut attr, size_of::<SchedAttr>(), 0u32) };
    if got != 0 {
        return Err(last());
    }
    let rt = REAL_TIME.contains(&(attr.policy as i32));
    let nice = if rt {
        // The raw call gives 1 to 40, so that it can tell errors: 20 is nice 0.
        // SAFETY: takes numbers only.
        let raised = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, tid.as_raw()) };
        if raised < 0 {
            return Err(last());
        }
        20 - raised as i32
    } else {
        attr.nice
    };
    let reset = if attr.flags & RESET_ON_FORK != 0 { libc::SCHED_RESET_ON_FORK as u32 } else { 0 };
    let clamp = (attr.util_min, attr.util_max);
    let fair = [libc::SCHED_OTHER, libc::SCHED_BATCH].contains(&(attr.policy as i32));
    Ok(Sched {
        policy: attr.policy | reset,
        nice,
        rt_priority: if rt { attr.priority } else { 0 },
        clamp,
        slice_ns: if fair { attr.runtime } else { 0 },
    })
}

/// unshare(2).
///
/// # Errors
/// As unshare(2).
pub fn unshare(flags: i32) -> Result<()> {
    // SAFETY: takes a number only. What is unshared stays valid for this process.
    if unsafe { libc::unshare(flags) } == 0 { Ok(()) } else { Err(last()) }
}

/// setns(2).
///
/// # Errors
/// As setns(2).
pub fn set_namespace(fd: BorrowedFd<'_>, kind: i32) -> Result<()> {
    // SAFETY: an open descriptor and a number.
    if unsafe { libc::setns(fd.as_raw_fd(), kind) } == 0 { Ok(()) } else { Err(last()) }
}

/// The calling thread's securebits.
///
/// # Errors
/// None are documented.
pub fn securebits() -> Result<u32> {
    // SAFETY: the option takes nothing.
    unsafe { prctl(libc::PR_GET_SECUREBITS, [0; 4]) }.map(|bits| bits as u32)
}

/// Blocks every signal for the calling thread (SIGKILL and SIGSTOP excepted by the kernel).
pub fn block_all_signals() {
    let all = u64::MAX;
    // SAFETY: `all` is a kernel sigset of the size given; no old set is asked for.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, std::ptr::null_mut::<u64>(), 8usize);
    }
}

/// Unblocks every signal and sets all actions to their defaults, as a fresh restored task needs before its own are set.
pub fn default_signals() {
    let none = 0u64;
    for signal in 1..=64 {
        // kernel sigaction: handler, flags, restorer, mask
        let action = [0u64; 4];
        // SAFETY: `action` is a kernel sigaction of the size given; SIGKILL and SIGSTOP fail with EINVAL, harmlessly.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), std::ptr::null_mut::<u64>(), 8usize);
        }
    }
    // SAFETY: as in `block_all_signals`.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut::<u64>(),
            8usize,
        );
    }
}

fn last() -> Errno {
    Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clone_args_have_the_kernels_size() {
        assert_eq!(size_of::<CloneArgs>(), 88);
        assert_eq!(CloneArgs { flags: 1, cgroup: 2, ..Default::default() }.to_bytes().len(), 88);
    }

    #[test]
    fn shared_memory_is_refused() {
        // SAFETY: refused before anything is forked.
        assert_eq!(unsafe { crate::fork::fork_as(None, libc::CLONE_VM as u64) }, Err(Errno::INVAL));
    }
}

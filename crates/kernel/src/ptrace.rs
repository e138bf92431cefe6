//! ptrace(2) and the waits that belong to it, one typed function per request. Nothing here decides anything.
//!
//! All requests must come from the thread that seized the task. Register sets are plain bytes here: their layout is
//! the architecture's and lives with the assembly.
#![allow(unsafe_code, reason = "ptrace and wait4 have no safe wrapper that covers SEIZE, regsets and signal masks")]

use crate::{HostTid, VirtAddr};
use rustix::io::{Errno, Result};
use std::mem::{MaybeUninit, size_of};
use std::time::Duration;

/// Options of a seize. `TRACESYSGOOD` is always on: without it a tracer killed at the wrong moment leaves a real SIGTRAP
/// behind, which kills the target (measured: 72 % of the kills around a blocked read).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The kernel kills the tracee when its tracer ends. For restore only: in a dump the target must survive us.
    pub exit_kill: bool,
    /// Seccomp filters are not run while traced. Needs CAP_SYS_ADMIN, and that the caller runs without seccomp itself.
    pub suspend_seccomp: bool,
}

impl Options {
    fn bits(self) -> libc::c_ulong {
        let mut bits = libc::PTRACE_O_TRACESYSGOOD;
        if self.exit_kill {
            bits |= libc::PTRACE_O_EXITKILL;
        }
        if self.suspend_seccomp {
            bits |= libc::PTRACE_O_SUSPEND_SECCOMP;
        }
        bits as libc::c_ulong
    }
}

/// A register set of the task (`NT_*` of ELF core files).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegSet {
    /// General registers: `user_regs_struct`.
    General,
    /// The XSAVE area of x86.
    XState,
    /// Any other note number.
    Note(u32),
}

impl RegSet {
    fn note(self) -> libc::c_ulong {
        match self {
            Self::General => libc::NT_PRSTATUS as libc::c_ulong,
            Self::XState => 0x202,
            Self::Note(nr) => libc::c_ulong::from(nr),
        }
    }
}

/// Why a tracee stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Entry to or exit from a system call, after [`resume_to_syscall`].
    Syscall,
    /// `PTRACE_EVENT_STOP` after an interrupt: inside the kernel's signal code, before user mode.
    Interrupted,
    /// `PTRACE_EVENT_STOP` because the whole thread group is stopped by this signal.
    GroupStop(i32),
    /// About to get this signal; the resume decides whether it does.
    Signal(i32),
    /// Any other `PTRACE_EVENT_*`, with its number.
    Event(i32),
}

/// What a wait reported about one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// It stands still.
    Stopped(Stop),
    /// It ended with this status; the task is reaped.
    Exited(i32),
    /// It was killed by this signal; the task is reaped.
    Killed(i32),
}

const PTRACE_EVENT_STOP: i32 = 128;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: libc::c_uint = 0x420d;
const PTRACE_PEEKSIGINFO_SHARED: u32 = 1;

impl Waited {
    /// Decodes the status word of wait4(2).
    pub fn from_status(status: i32) -> Option<Self> {
        if libc::WIFEXITED(status) {
            return Some(Self::Exited(libc::WEXITSTATUS(status)));
        }
        if libc::WIFSIGNALED(status) {
            return Some(Self::Killed(libc::WTERMSIG(status)));
        }
        if !libc::WIFSTOPPED(status) {
            return None;
        }
        let sig = libc::WSTOPSIG(status);
        Some(Self::Stopped(match status >> 16 {
            0 if sig == (libc::SIGTRAP | 0x80) => Stop::Syscall,
            0 => Stop::Signal(sig),
            PTRACE_EVENT_STOP if sig == libc::SIGTRAP => Stop::Interrupted,
            PTRACE_EVENT_STOP => Stop::GroupStop(sig),
            event => Stop::Event(event),
        }))
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

pub(crate) fn check(ret: libc::c_long) -> Result<usize> {
    usize::try_from(ret).map_err(|_| last_errno())
}

/// A request whose two arguments are plain numbers for the kernel.
fn request(req: libc::c_uint, tid: HostTid, addr: libc::c_ulong, data: libc::c_ulong) -> Result<usize> {
    // SAFETY: callers below pass only requests that take numbers (or nothing) in `addr` and `data`, so the kernel
    // reads and writes no memory of ours.
    check(unsafe { libc::ptrace(req, tid.as_raw(), addr, data) })
}

/// A request whose `data` points to memory of ours that the kernel fills or reads.
///
/// # Safety
/// `data` must be valid for what `req` does with it: reads or writes of the size that the request and `addr` imply.
pub(crate) unsafe fn request_ptr(
    req: libc::c_uint,
    tid: HostTid,
    addr: libc::c_ulong,
    data: *mut libc::c_void,
) -> Result<usize> {
    // SAFETY: validity of `data` for this request is the caller's promise.
    check(unsafe { libc::ptrace(req, tid.as_raw(), addr, data) })
}

/// Becomes the tracer of `tid` without stopping it.
///
/// # Errors
/// `EPERM`: no right to, already traced, a kernel thread, one of our own threads, or a zombie. `ESRCH`: gone.
pub fn seize(tid: HostTid, options: Options) -> Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, options.bits()).map(drop)
}

/// Asks a seized task to stop; the stop itself comes later, through [`poll_wait`].
///
/// # Errors
/// `ESRCH`: gone, or not seized by this thread. `EIO`: attached in another way than by seize.
pub fn interrupt(tid: HostTid) -> Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets a stopped task run, delivering `signal` (0: none).
///
/// # Errors
/// `ESRCH`: gone or not stopped. `EIO`: no such signal.
pub fn resume(tid: HostTid, signal: i32) -> Result<()> {
    request(libc::PTRACE_CONT, tid, 0, signal as libc::c_ulong).map(drop)
}

/// Lets a stopped task run up to the next entry to or exit from a system call.
///
/// # Errors
/// As [`resume`].
pub fn resume_to_syscall(tid: HostTid, signal: i32) -> Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, signal as libc::c_ulong).map(drop)
}

/// Keeps a task in group stop while letting it react to SIGCONT.
///
/// # Errors
/// `EIO`: the task is not in a stop that allows it.
pub fn listen(tid: HostTid) -> Result<()> {
    request(libc::PTRACE_LISTEN, tid, 0, 0).map(drop)
}

/// Stops tracing. The task must stand still; it runs on, or stays in its group stop.
///
/// # Errors
/// `ESRCH`: gone or not stopped.
pub fn detach(tid: HostTid, signal: i32) -> Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, signal as libc::c_ulong).map(drop)
}

/// Changes the options of a stopped task.
///
/// # Errors
/// `EPERM`: `suspend_seccomp` without the right to. `EINVAL`: unknown to this kernel.
pub fn set_options(tid: HostTid, options: Options) -> Result<()> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, options.bits()).map(drop)
}

/// Reads a register set into `buf` and returns how many bytes the kernel has of it, at most `buf.len()`.
///
/// # Errors
/// `EINVAL`/`ENODEV`: no such set here. `ESRCH`: gone or not stopped.
pub fn get_regset(tid: HostTid, set: RegSet, buf: &mut [u8]) -> Result<usize> {
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: GETREGSET takes a pointer to an iovec, which lives on our stack; it names exactly `buf`, which is
    // borrowed mutably for the call, and the kernel writes at most `iov_len` bytes there.
    unsafe { request_ptr(libc::PTRACE_GETREGSET, tid, set.note(), (&raw mut iov).cast()) }?;
    Ok(iov.iov_len)
}

/// Writes a register set.
///
/// # Errors
/// `EINVAL`: wrong size or contents. `ESRCH`: gone or not stopped.
pub fn set_regset(tid: HostTid, set: RegSet, bytes: &[u8]) -> Result<()> {
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: SETREGSET only reads through the iovec; it names exactly `bytes`, borrowed for the call. The kernel
    // stores the length it used back into `iov`, which is ours and mutable.
    unsafe { request_ptr(libc::PTRACE_SETREGSET, tid, set.note(), (&raw mut iov).cast()) }.map(drop)
}

/// The blocked signals, bit `n - 1` for signal `n`. Inside sigsuspend and its like: the mask that comes back afterwards.
///
/// # Errors
/// `ESRCH`: gone or not stopped.
pub fn get_sigmask(tid: HostTid) -> Result<u64> {
    let mut mask = 0u64;
    // SAFETY: GETSIGMASK with `addr` 8 writes exactly 8 bytes, the size of `mask`.
    unsafe { request_ptr(libc::PTRACE_GETSIGMASK, tid, size_of::<u64>() as libc::c_ulong, (&raw mut mask).cast()) }?;
    Ok(mask)
}

/// Sets the blocked signals.
///
/// # Errors
/// `ESRCH`: gone or not stopped.
pub fn set_sigmask(tid: HostTid, mut mask: u64) -> Result<()> {
    // SAFETY: SETSIGMASK with `addr` 8 reads exactly 8 bytes, the size of `mask`.
    unsafe { request_ptr(libc::PTRACE_SETSIGMASK, tid, size_of::<u64>() as libc::c_ulong, (&raw mut mask).cast()) }
        .map(drop)
}

/// One queued signal, as the kernel's `siginfo_t` lays it out.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct SigInfo(pub [u8; 128]);

impl SigInfo {
    fn word(&self, at: usize) -> i32 {
        let mut raw = [0; 4];
        raw.copy_from_slice(&self.0[at..at + 4]);
        i32::from_ne_bytes(raw)
    }
    /// `si_signo`.
    pub fn signo(&self) -> i32 {
        self.word(0)
    }
    /// `si_errno`.
    pub fn errno(&self) -> i32 {
        self.word(4)
    }
    /// `si_code`.
    pub fn code(&self) -> i32 {
        self.word(8)
    }
    /// `si_pid`, meaningful for the codes that carry a sender.
    pub fn pid(&self) -> i32 {
        self.word(16)
    }
}

impl std::fmt::Debug for SigInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigInfo").field("signo", &self.signo()).field("code", &self.code()).finish_non_exhaustive()
    }
}

#[repr(C)]
struct PeekArgs {
    off: u64,
    flags: u32,
    nr: i32,
}

/// Copies queued signals without taking them: of the thread, or those `shared` by its thread group.
///
/// # Errors
/// `ESRCH`: gone or not stopped.
pub fn peek_siginfo(tid: HostTid, shared: bool) -> Result<Vec<SigInfo>> {
    const BATCH: usize = 32;
    let mut all = Vec::new();
    loop {
        let mut batch = [SigInfo([0; 128]); BATCH];
        let flags = if shared { PTRACE_PEEKSIGINFO_SHARED } else { 0 };
        let args = PeekArgs { off: all.len() as u64, flags, nr: BATCH as i32 };
        // SAFETY: `addr` points to the argument struct, read only during the call; `data` to BATCH siginfo_t of
        // 128 bytes, and the kernel writes at most `nr` = BATCH of them.
        let got = unsafe {
            let addr = (&raw const args) as libc::c_ulong;
            request_ptr(libc::PTRACE_PEEKSIGINFO, tid, addr, batch.as_mut_ptr().cast())
        }?;
        all.extend_from_slice(batch.get(..got).unwrap_or(&batch));
        if got < BATCH {
            return Ok(all);
        }
    }
}

/// The signal a task stopped in [`Stop::Signal`] is about to get.
///
/// # Errors
/// `EINVAL`: not in such a stop. `ESRCH`: gone or not stopped.
pub fn get_siginfo(tid: HostTid) -> Result<SigInfo> {
    let mut info = SigInfo([0; 128]);
    // SAFETY: GETSIGINFO writes one siginfo_t: 128 bytes, the size of `info`, which is aligned for it.
    unsafe { request_ptr(libc::PTRACE_GETSIGINFO, tid, 0, (&raw mut info).cast()) }?;
    Ok(info)
}

/// Number that belongs to the last event stop.
///
/// # Errors
/// `ESRCH`: gone or not stopped.
pub fn get_event_message(tid: HostTid) -> Result<u64> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: GETEVENTMSG writes one unsigned long.
    unsafe { request_ptr(libc::PTRACE_GETEVENTMSG, tid, 0, (&raw mut message).cast()) }?;
    Ok(message)
}

/// A thread's registered restartable-sequence area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RseqConfig {
    /// Address of the area; 0 when none is registered.
    pub address: u64,
    /// Its size in bytes, as registered.
    pub size: u32,
    /// The signature that precedes abort handlers.
    pub signature: u32,
    /// Always 0 so far.
    pub flags: u32,
    pad: u32,
}

impl RseqConfig {
    /// Where the area lies, if one is registered.
    pub fn area(&self) -> Option<VirtAddr> {
        (self.address != 0).then_some(VirtAddr(self.address))
    }
}

/// Reads the rseq registration of a stopped thread (Linux 5.13).
///
/// # Errors
/// `EIO`/`EINVAL`: a kernel without rseq. `ESRCH`: gone or not stopped.
pub fn get_rseq_configuration(tid: HostTid) -> Result<RseqConfig> {
    let mut config = RseqConfig::default();
    // SAFETY: with `addr` = the size of the struct the kernel writes at most that many bytes to it.
    unsafe {
        let size = size_of::<RseqConfig>() as libc::c_ulong;
        request_ptr(PTRACE_GET_RSEQ_CONFIGURATION, tid, size, (&raw mut config).cast())
    }?;
    Ok(config)
}

/// One instruction of classic BPF, as seccomp uses it (`struct sock_filter`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BpfInsn {
    /// Operation.
    pub code: u16,
    /// Jump distance when true.
    pub jt: u8,
    /// Jump distance when false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Seccomp filter number `index` of a stopped thread, 0 being the one installed first.
///
/// # Errors
/// `ENOENT`: fewer filters than that. `EINVAL`: not in filter mode. `EACCES`: no CAP_SYS_ADMIN in the first user
/// namespace. `EMEDIUMTYPE`: a filter that is no classic BPF.
pub fn get_seccomp_filter(tid: HostTid, index: u32) -> Result<Vec<BpfInsn>> {
    // SAFETY: with a null `data` the kernel only counts instructions and writes nothing.
    let count =
        unsafe { request_ptr(PTRACE_SECCOMP_GET_FILTER, tid, libc::c_ulong::from(index), std::ptr::null_mut()) }?;
    let mut insns = vec![BpfInsn::default(); count];
    // SAFETY: the kernel writes as many instructions as it just counted; an installed filter never changes, and the
    // thread is stopped, so `index` still names the same one.
    unsafe { request_ptr(PTRACE_SECCOMP_GET_FILTER, tid, libc::c_ulong::from(index), insns.as_mut_ptr().cast()) }?;
    Ok(insns)
}

/// Syscall user dispatch of a thread (PR_SET_SYSCALL_USER_DISPATCH), as `struct ptrace_sud_config` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Dispatch {
    /// 0: off; 1: on; 2, for setting only: on, calls from the range are sent, not those from elsewhere (Linux 6.17).
    pub mode: u64,
    /// Where the byte lies that says whether calls are sent; 0: they always are.
    pub selector: u64,
    /// Start and length of the range from where calls are never sent.
    pub offset: u64,
    /// See `offset`.
    pub len: u64,
}

const DISPATCH_BYTES: libc::c_ulong = size_of::<Dispatch>() as libc::c_ulong;

/// How a stopped thread has system calls turned into signals.
///
/// # Errors
/// `EIO` before Linux 6.4.
pub fn get_dispatch(tid: HostTid) -> Result<Dispatch> {
    const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;
    let mut config = Dispatch::default();
    let request = PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG;
    // SAFETY: the kernel takes exactly this length and writes as many bytes to `config`, which is borrowed for the call.
    unsafe { request_ptr(request, tid, DISPATCH_BYTES, (&raw mut config).cast()) }?;
    Ok(config)
}

/// Sets it.
///
/// # Errors
/// `EIO` before Linux 6.4; `EINVAL`, `EFAULT`: no such mode, range or place.
pub fn set_dispatch(tid: HostTid, mut config: Dispatch) -> Result<()> {
    const PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4210;
    let request = PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG;
    // SAFETY: the kernel takes exactly this length and reads as many bytes of `config`, which is borrowed for the call.
    unsafe { request_ptr(request, tid, DISPATCH_BYTES, (&raw mut config).cast()) }.map(drop)
}

/// Flags that seccomp filter number `index` was installed with, as far as the kernel tells them (SECCOMP_FILTER_FLAG_LOG).
///
/// # Errors
/// As [`get_seccomp_filter`]; `EIO` before Linux 4.16.
pub fn get_seccomp_flags(tid: HostTid, index: u32) -> Result<u64> {
    // struct seccomp_metadata: which filter (read), its flags (written).
    let mut metadata = [u64::from(index), 0];
    let len = size_of_val(&metadata) as libc::c_ulong;
    // SAFETY: the kernel reads and writes at most `len` bytes of `metadata`, which is borrowed for the call.
    unsafe { request_ptr(PTRACE_SECCOMP_GET_METADATA, tid, len, metadata.as_mut_ptr().cast()) }?;
    Ok(metadata[1])
}

/// What [`Waited`] news there is of `tid`, without waiting. `None`: none yet.
///
/// # Errors
/// `ECHILD`: neither our child nor traced by us: it ended, or took over another id in an exec.
pub fn poll_wait(tid: HostTid) -> Result<Option<Waited>> {
    let mut status = MaybeUninit::<libc::c_int>::uninit();
    loop {
        // SAFETY: `status` is one writable int; no rusage is asked for.
        let got = unsafe {
            libc::wait4(tid.as_raw(), status.as_mut_ptr(), libc::WNOHANG | libc::__WALL, std::ptr::null_mut())
        };
        match got {
            0 => return Ok(None),
            id if id > 0 => {
                // SAFETY: wait4 returned a child, so it has stored its status.
                let status = unsafe { status.assume_init() };
                if let Some(news) = Waited::from_status(status) {
                    return Ok(Some(news));
                }
            }
            _ => match last_errno() {
                Errno::INTR => {}
                errno => return Err(errno),
            },
        }
    }
}

/// The pause between two looks with [`poll_wait`], bounded, and ended early by the SIGCHLD that every stop sends.
///
/// wait4 has no timeout and pidfds do not tell of stops; yielding costs a whole time slice on a busy machine. So SIGCHLD is
/// blocked in this thread and awaited with sigtimedwait. Where somebody in this process cares for SIGCHLD (a handler, a
/// signalfd) it is left alone and short sleeps do the work, as they do should another thread take the signal.
#[derive(Debug)]
pub struct StopWaiter {
    backoff: crate::Backoff,
    armed: Option<Option<libc::sigset_t>>,
    looks: u32,
}

impl Default for StopWaiter {
    fn default() -> Self {
        Self::new()
    }
}

impl StopWaiter {
    /// Looks before the first real pause: a thread on another processor stops within a few microseconds.
    const EAGER_LOOKS: u32 = 8;
    /// Longest trust in the signal alone.
    const SLICE: Duration = Duration::from_millis(1);

    /// Ready; nothing is changed in this process before the first pause.
    pub fn new() -> Self {
        Self { backoff: crate::Backoff::new(), armed: None, looks: 0 }
    }

    /// Something happened: look eagerly again.
    pub fn reset(&mut self) {
        self.backoff.reset();
        self.looks = 0;
    }

    /// One pause. Returns false, without pausing, once `deadline` has passed.
    pub fn pause(&mut self, deadline: crate::Deadline) -> bool {
        if self.armed.is_none() {
            self.armed = Some(block_sigchld());
            // What stopped before the signal was blocked must be looked for once more.
            return !deadline.expired();
        }
        self.looks += 1;
        if self.looks <= Self::EAGER_LOOKS {
            std::hint::spin_loop();
            return !deadline.expired();
        }
        if !matches!(self.armed, Some(Some(_))) {
            return self.backoff.pause(deadline);
        }
        let left = deadline.remaining().min(Self::SLICE);
        if left.is_zero() {
            return false;
        }
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        let timeout = libc::timespec { tv_sec: 0, tv_nsec: libc::c_long::from(left.subsec_nanos()) };
        // SAFETY: sigemptyset initialises the set before it is read; no siginfo is asked for; the timeout is complete.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
            // Whatever it returns, the caller looks again.
            libc::sigtimedwait(set.as_ptr(), std::ptr::null_mut(), &raw const timeout);
        }
        true
    }
}

impl Drop for StopWaiter {
    fn drop(&mut self) {
        if let Some(Some(old)) = self.armed.take() {
            // SAFETY: `old` is the complete mask this thread had before. A SIGCHLD still pending is dropped by its default
            // action, as it would have been.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, std::ptr::null_mut()) };
        }
    }
}

/// Blocks SIGCHLD in this thread if nobody here uses it; gives the mask from before.
fn block_sigchld() -> Option<libc::sigset_t> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    let mut old = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: every struct is filled by the call it is given to before anything reads it, and read only if that call
    // succeeded; the mask changed is this thread's alone.
    unsafe {
        if libc::sigaction(libc::SIGCHLD, std::ptr::null(), action.as_mut_ptr()) != 0 {
            return None;
        }
        let action = action.assume_init();
        if action.sa_sigaction != libc::SIG_DFL || action.sa_flags & libc::SA_NOCLDSTOP != 0 {
            return None;
        }
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        if libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), old.as_mut_ptr()) != 0 {
            return None;
        }
        let old = old.assume_init();
        // Blocked already: somebody reads it from a signalfd, and taking it would rob them.
        (libc::sigismember(&raw const old, libc::SIGCHLD) == 0).then_some(old)
    }
}

/// Waits for news of `tid` until `deadline`.
///
/// # Errors
/// `ETIMEDOUT` at the deadline; otherwise as [`poll_wait`].
pub fn wait(tid: HostTid, deadline: crate::Deadline) -> Result<Waited> {
    let mut waiter = StopWaiter::new();
    loop {
        if let Some(news) = poll_wait(tid)? {
            return Ok(news);
        }
        if !waiter.pause(deadline) {
            // The news may have come between the last look and the deadline.
            return poll_wait(tid)?.ok_or(Errno::TIMEDOUT);
        }
    }
}

/// Head and length of a thread's robust futex list.
///
/// # Errors
/// `EPERM` without ptrace access, `ESRCH` if the thread is gone.
pub fn get_robust_list(tid: HostTid) -> Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: the kernel stores a pointer and a size at the two addresses, which live over the call.
    check(unsafe { libc::syscall(libc::SYS_get_robust_list, tid.as_raw(), &raw mut head, &raw mut len) })?;
    Ok((head, len))
}

/// Sends `signal` to one thread of thread group `pid`; 0 only checks that it is there.
///
/// # Errors
/// `ESRCH`: gone. `EPERM`: not ours to signal.
pub fn tgkill(pid: HostTid, tid: HostTid, signal: i32) -> Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_tgkill, pid.as_raw(), tid.as_raw(), signal) }).map(drop)
}

/// True if some task has this id: a process, a thread, a zombie. Cheaper than a look into /proc.
pub fn is_taken(id: HostTid) -> bool {
    // SAFETY: takes numbers only; signal 0 is no signal.
    let sent = check(unsafe { libc::syscall(libc::SYS_tkill, id.as_raw(), 0) });
    // What we may not signal is there as well.
    sent != Err(Errno::SRCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn ids_of_threads_and_processes_are_taken() {
        let own = HostTid::new(rustix::thread::gettid().as_raw_nonzero().get()).expect("has one");
        assert!(is_taken(own) && is_taken(HostTid::new(1).expect("positive")));
        // Above the largest limit of ids there is.
        assert!(!is_taken(HostTid::new(i32::MAX).expect("positive")));
    }

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(size_of::<SigInfo>(), size_of::<libc::siginfo_t>());
        assert_eq!(size_of::<PeekArgs>(), 16);
        assert_eq!(size_of::<RseqConfig>(), 24);
        assert_eq!(offset_of!(RseqConfig, signature), 12);
        assert_eq!(size_of::<BpfInsn>(), size_of::<libc::sock_filter>());
    }

    #[test]
    fn status_words() {
        let stopped = |sig: i32, event: i32| Waited::from_status((event << 16) | (sig << 8) | 0x7f);
        assert_eq!(stopped(libc::SIGTRAP | 0x80, 0), Some(Waited::Stopped(Stop::Syscall)));
        assert_eq!(stopped(libc::SIGTRAP, 128), Some(Waited::Stopped(Stop::Interrupted)));
        assert_eq!(stopped(libc::SIGSTOP, 128), Some(Waited::Stopped(Stop::GroupStop(libc::SIGSTOP))));
        assert_eq!(stopped(libc::SIGSTOP, 0), Some(Waited::Stopped(Stop::Signal(libc::SIGSTOP))));
        assert_eq!(stopped(libc::SIGTRAP, 6), Some(Waited::Stopped(Stop::Event(6))));
        assert_eq!(Waited::from_status(3 << 8), Some(Waited::Exited(3)));
        assert_eq!(Waited::from_status(9), Some(Waited::Killed(9)));
        assert_eq!(Waited::from_status(0xffff), None);
    }

    #[test]
    fn a_stranger_is_no_child() {
        let one = HostTid::new(1).unwrap();
        assert_eq!(poll_wait(one), Err(Errno::CHILD));
        assert!(interrupt(one).is_err());
    }
}

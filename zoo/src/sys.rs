//! The system calls that rustix lacks or makes unsafe to offer, for programs that check their own kernel state.
#![allow(unsafe_code, reason = "raw system calls, one each")]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// The signal mask that blocks everything.
pub const ALL_SIGNALS: u64 = u64::MAX;

/// -1 becomes errno.
///
/// # Errors
/// The errno of the call that returned `value`.
pub fn cvt<T: Into<i64> + Copy>(value: T) -> io::Result<T> {
    if value.into() == -1 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Forks; the child runs `body` and exits with its result, 101 if it panics. Tells the child's pid.
pub fn fork(body: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the programs fork before they start threads, or the child touches only what the forking thread owns.
    match unsafe { libc::fork() } {
        0 => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
            // SAFETY: ends the child at once, without the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
        -1 => panic!("fork: {}", io::Error::last_os_error()),
        pid => pid,
    }
}

/// Ends this process at once.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: takes no pointers and does not come back.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from `first` on: what a careless parent let us inherit.
pub fn close_from(first: u32) {
    // SAFETY: the caller owns no descriptor object for any of these.
    unsafe { libc::close_range(first, u32::MAX, 0) };
}

/// The raw wait status of a child.
///
/// # Errors
/// If `pid` is no child of ours.
pub fn waitpid(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: `status` is a live i32 for the call.
    while cvt(unsafe { libc::waitpid(pid, &raw mut status, 0) })
        .map_or_else(|e| if e.kind() == io::ErrorKind::Interrupted { Ok(true) } else { Err(e) }, |_| Ok(false))?
    {}
    Ok(status)
}

/// kill(2).
///
/// # Errors
/// As the kernel says.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes no pointers.
    cvt(unsafe { libc::kill(pid, signal) }).map(|_| ())
}

/// tgkill(2) within this process.
///
/// # Errors
/// As the kernel says.
pub fn tgkill(tid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes no pointers.
    cvt(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal) }).map(|_| ())
}

/// This thread's id.
pub fn gettid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// This process's id.
pub fn getpid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Waits until `fd` has something to read or is at its end; false after `limit`.
///
/// # Errors
/// As poll(2) says; an interruption counts as "not yet".
pub fn readable(fd: impl AsFd, limit: Duration) -> io::Result<bool> {
    let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)) {
        Ok(n) => Ok(n > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// The bit of `signal` in a mask.
pub fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Sets this thread's signal mask, tells the old one. Past the C library, which hides the two signals it uses itself.
pub fn set_mask(mask: u64) -> u64 {
    let mut old = 0_u64;
    // SAFETY: both masks are live u64, the size the kernel is told.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, &raw mut old, 8) };
    old
}

/// This thread's signal mask.
pub fn mask() -> u64 {
    let mut old = 0_u64;
    // SAFETY: the kernel is given no new mask and writes 8 bytes into `old`.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, 0_usize, &raw mut old, 8) };
    old
}

/// The parts of a siginfo that tell signals apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SigInfo {
    /// Number.
    pub signo: i32,
    /// `SI_USER`, `SI_QUEUE` …
    pub code: i32,
    /// Sender, or timer id.
    pub pid: i32,
    /// Sender's uid, or timer overrun.
    pub uid: u32,
    /// The value sent along.
    pub value: u64,
}

/// The kernel's siginfo, 128 bytes, as far as the programs read it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct RawInfo {
    signo: i32,
    errno: i32,
    code: i32,
    pad: i32,
    pid: i32,
    uid: u32,
    value: u64,
    rest: [u64; 12],
}

const _: () = assert!(size_of::<RawInfo>() == 128);

impl From<SigInfo> for RawInfo {
    fn from(i: SigInfo) -> Self {
        Self { signo: i.signo, errno: 0, code: i.code, pad: 0, pid: i.pid, uid: i.uid, value: i.value, rest: [0; 12] }
    }
}

/// Queues a signal with a value to the process, or to one thread of it.
///
/// # Errors
/// As the kernel says.
pub fn queue(tid: Option<i32>, signal: i32, value: u64) -> io::Result<()> {
    let uid = rustix::process::getuid().as_raw();
    let info = RawInfo::from(SigInfo { signo: signal, code: libc::SI_QUEUE, pid: getpid(), uid, value });
    let at = &raw const info;
    cvt(match tid {
        // SAFETY: `info` is a whole siginfo and the kernel only reads it.
        None => unsafe { libc::syscall(libc::SYS_rt_sigqueueinfo, getpid(), signal, at) },
        // SAFETY: the same siginfo, to one thread.
        Some(tid) => unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, getpid(), tid, signal, at) },
    })
    .map(|_| ())
}

/// Takes one pending signal of `mask` that this thread may take; `None` if there is none within `limit`.
pub fn take_signal(mask: u64, limit: Duration) -> Option<SigInfo> {
    let mut info = RawInfo::from(SigInfo::default());
    let limit = libc::timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    // SAFETY: the mask is 8 bytes as told, `info` a whole siginfo, and both outlive the call.
    let got = unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &raw const mask, &raw mut info, &raw const limit, 8) };
    let RawInfo { signo, code, pid, uid, value, .. } = info;
    (got > 0).then_some(SigInfo { signo, code, pid, uid, value })
}

/// Installs a handler that gets siginfo, on the alternate stack if the thread has one.
pub fn handle(signal: i32, flags: i32, handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void)) {
    // SAFETY: an all-zero sigaction is a valid value; the handler has the three-argument shape that SA_SIGINFO means.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = flags | libc::SA_SIGINFO;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

/// prctl(2) with plain numbers.
///
/// # Errors
/// As the kernel says.
pub fn prctl(option: i32, args: [u64; 4]) -> io::Result<i32> {
    // SAFETY: the programs pass options whose arguments are numbers.
    cvt(unsafe { libc::prctl(option, args[0], args[1], args[2], args[3]) })
}

/// prctl(2) for options that write one i32 through their first argument.
///
/// # Errors
/// As the kernel says.
pub fn prctl_read(option: i32) -> io::Result<i32> {
    let mut value = 0_i32;
    // SAFETY: `value` is live, and the options this is used for write an int.
    cvt(unsafe { libc::prctl(option, &raw mut value) })?;
    Ok(value)
}

/// True if both descriptors of this process are the same open file (kcmp).
pub fn same_file(a: i32, b: i32) -> bool {
    same_file_of(getpid(), a, getpid(), b)
}

/// True if the descriptors of two processes are the same open file (kcmp).
pub fn same_file_of(pid_a: i32, a: i32, pid_b: i32, b: i32) -> bool {
    // SAFETY: numbers only; 0 is KCMP_FILE.
    unsafe { libc::syscall(libc::SYS_kcmp, pid_a, pid_b, 0, a, b) == 0 }
}

/// ioctl that writes one i32.
///
/// # Errors
/// As the kernel says.
pub fn ioctl_int(fd: i32, request: u64) -> io::Result<i32> {
    let mut value = 0_i32;
    // SAFETY: the programs use this for requests that write an int.
    cvt(unsafe { libc::ioctl(fd, request, &raw mut value) })?;
    Ok(value)
}

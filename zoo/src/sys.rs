//! The system calls that rustix lacks or makes unsafe to offer, for programs that check their own kernel state.
#![allow(unsafe_code, reason = "raw system calls, one each")]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
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

/// Takes ownership of a descriptor that the kernel has just made for us.
///
/// # Errors
/// The errno of the call that returned `value`.
pub fn adopt(value: i32) -> io::Result<OwnedFd> {
    let number = cvt(value)?;
    // SAFETY: callers pass what a system call has just returned to them, and nothing else knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// fanotify_init(2).
///
/// # Errors
/// As the call.
pub fn fanotify_init(flags: u32, event_flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    adopt(unsafe { libc::fanotify_init(flags, event_flags as u32) })
}

/// fanotify_mark(2) by path.
///
/// # Errors
/// As the call.
pub fn fanotify_mark(fd: &OwnedFd, flags: u32, mask: u64, path: &CStr) -> io::Result<()> {
    // SAFETY: the path ends in a zero byte and lives over the call; everything else is a number.
    cvt(unsafe { libc::fanotify_mark(fd.as_raw_fd(), flags, mask, libc::AT_FDCWD, path.as_ptr()) }).map(drop)
}

/// Sets a socket option that is one number.
///
/// # Errors
/// As setsockopt(2).
pub fn set_option(fd: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let len = size_of::<i32>() as u32;
    // SAFETY: the kernel reads the four bytes of `value`, which lives over the call.
    cvt(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len) }).map(drop)
}

/// A socket option as bytes.
///
/// # Errors
/// As getsockopt(2).
pub fn get_option(fd: &OwnedFd, level: i32, name: i32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; 256];
    let mut len = 256;
    // SAFETY: the kernel writes at most `len` bytes to `bytes`, which has that room.
    cvt(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, bytes.as_mut_ptr().cast(), &raw mut len) })?;
    bytes.truncate(len as usize);
    Ok(bytes)
}

/// Key, mode, owner and attachments of a segment that we have attached, as /proc shows them.
#[must_use]
pub fn shm_look(id: i32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string("/proc/sysvipc/shm").ok()?;
    let words = text.lines().map(|l| l.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let mut found = words.into_iter().find(|w| w.get(1) == Some(&id.to_string()))?;
    found.truncate(11);
    // Who made it and who used it last are other processes after a restore.
    found.drain(4..6);
    Some(found)
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

/// As [`fork`], with flags of clone(2) that say what the child shares: `CLONE_FILES`, `CLONE_FS`.
pub fn fork_sharing(flags: i32, body: impl FnOnce() -> i32) -> i32 {
    assert_eq!(flags & !(libc::CLONE_FILES | libc::CLONE_FS), 0);
    // SAFETY: without a new stack and without sharing memory this is fork; as there.
    match unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) } {
        0 => exit_now(std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101)),
        pid => i32::try_from(pid).unwrap_or(-1),
    }
}

/// unshare(2), for a thread that then holds no descriptors by itself.
///
/// # Errors
/// As unshare(2).
pub fn unshare(flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    // SAFETY: the caller's descriptors stay open in the table it leaves and in the copy it gets.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Ends this process at once.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: takes no pointers and does not come back.
    unsafe { libc::_exit(code) }
}

/// Signals that whoever started us ignores (nohup does) act as usual again: a shell cannot trap what it finds ignored.
pub fn default_signals() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        // SAFETY: SIG_DFL is a valid action for these signals, and this process has no handler that could be lost.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
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

/// Queues a signal with a value to another process.
///
/// # Errors
/// As the kernel says.
pub fn queue_to(pid: i32, signal: i32, value: u64) -> io::Result<()> {
    let uid = rustix::process::getuid().as_raw();
    let info = RawInfo::from(SigInfo { signo: signal, code: libc::SI_QUEUE, pid: getpid(), uid, value });
    // SAFETY: `info` is a whole siginfo and the kernel only reads it.
    cvt(unsafe { libc::syscall(libc::SYS_rt_sigqueueinfo, pid, signal, &raw const info) }).map(drop)
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

/// An ioctl that reads one number through an address.
///
/// # Errors
/// As ioctl(2).
pub fn ioctl_set(fd: i32, request: u64, value: i32) -> io::Result<()> {
    // SAFETY: the kernel reads at most the four bytes of `value`, which lives over the call.
    cvt(unsafe { libc::ioctl(fd, request, &raw const value) }).map(drop)
}

/// An ioctl whose argument is the number itself.
///
/// # Errors
/// As ioctl(2).
pub fn ioctl_number(fd: i32, request: u64, value: i32) -> io::Result<()> {
    // SAFETY: the programs use this for requests that take a number.
    cvt(unsafe { libc::ioctl(fd, request, libc::c_long::from(value)) }).map(drop)
}

/// An ioctl of a network device: reads and writes an ifreq at most.
///
/// # Errors
/// As the kernel says.
pub fn ioctl_device(fd: i32, request: u64, room: &mut [u8; 40]) -> io::Result<()> {
    // SAFETY: the zoo uses this for operations on an int or an ifreq, which is as long as `room`.
    cvt(unsafe { libc::ioctl(fd, request, room.as_mut_ptr()) }).map(drop)
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

/// This thread's FS base: where its thread-local storage is.
pub fn fs_base() -> u64 {
    arch_base(0x1003)
}

/// This thread's GS base, which programs may use as they like.
pub fn gs_base() -> u64 {
    arch_base(0x1004)
}

fn arch_base(code: i32) -> u64 {
    let mut base = 0_u64;
    // SAFETY: ARCH_GET_FS and ARCH_GET_GS write a u64 through the pointer.
    unsafe { libc::syscall(libc::SYS_arch_prctl, code, &raw mut base) };
    base
}

/// Sets this thread's GS base.
pub fn set_gs_base(base: u64) {
    // SAFETY: no code of ours addresses memory through GS.
    unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1001, base) };
}

/// Value and interval of an interval timer, in microseconds.
pub fn itimer(which: u32) -> (u64, u64) {
    // SAFETY: all zero is a valid itimerval, which the kernel then fills.
    let now = unsafe {
        let mut now: libc::itimerval = std::mem::zeroed();
        libc::syscall(libc::SYS_getitimer, which, &raw mut now);
        now
    };
    let micros = |t: libc::timeval| t.tv_sec.unsigned_abs() * 1_000_000 + t.tv_usec.unsigned_abs();
    (micros(now.it_value), micros(now.it_interval))
}

/// Arms an interval timer; both in microseconds.
pub fn set_itimer(which: u32, value: u64, interval: u64) {
    let time =
        |us: u64| libc::timeval { tv_sec: (us / 1_000_000).cast_signed(), tv_usec: (us % 1_000_000).cast_signed() };
    let new = libc::itimerval { it_interval: time(interval), it_value: time(value) };
    // SAFETY: `new` is a live itimerval and the old one is not asked for.
    unsafe { libc::syscall(libc::SYS_setitimer, which, &raw const new, 0_usize) };
}

/// How a POSIX timer tells: `SIGEV_SIGNAL`, `SIGEV_NONE` or `SIGEV_THREAD_ID` with a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Notify {
    /// Comes back in the siginfo.
    pub value: u64,
    /// Signal number.
    pub signo: i32,
    /// `SIGEV_…`
    pub how: i32,
    /// Thread for `SIGEV_THREAD_ID`.
    pub tid: i32,
    /// Fills the kernel's 64 bytes.
    pub pad: [i32; 11],
}

const _: () = assert!(size_of::<Notify>() == 64);

/// Creates a POSIX timer; tells the kernel's id, which the C library hides.
///
/// # Errors
/// As the kernel says.
pub fn timer_create(clock: i32, notify: &Notify) -> io::Result<i32> {
    let mut id = 0_i32;
    // SAFETY: `notify` is a whole sigevent, `id` a live int.
    cvt(unsafe { libc::syscall(libc::SYS_timer_create, clock, &raw const *notify, &raw mut id) })?;
    Ok(id)
}

/// Deletes a POSIX timer.
pub fn timer_delete(id: i32) {
    // SAFETY: takes a number.
    unsafe { libc::syscall(libc::SYS_timer_delete, id) };
}

/// Arms a POSIX timer.
///
/// # Errors
/// As the kernel says.
pub fn timer_set(id: i32, value: Duration, interval: Duration) -> io::Result<()> {
    let new = libc::itimerspec { it_interval: timespec(interval), it_value: timespec(value) };
    // SAFETY: `new` is a live itimerspec and the old one is not asked for.
    cvt(unsafe { libc::syscall(libc::SYS_timer_settime, id, 0, &raw const new, 0_usize) }).map(|_| ())
}

/// Time left and interval of a POSIX timer.
///
/// # Errors
/// As the kernel says.
pub fn timer_get(id: i32) -> io::Result<(Duration, Duration)> {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut now = libc::itimerspec { it_interval: zero, it_value: zero };
    // SAFETY: the kernel fills a live itimerspec.
    cvt(unsafe { libc::syscall(libc::SYS_timer_gettime, id, &raw mut now) })?;
    let duration = |t: libc::timespec| {
        Duration::from_secs(t.tv_sec.unsigned_abs()) + Duration::from_nanos(t.tv_nsec.unsigned_abs())
    };
    Ok((duration(now.it_value), duration(now.it_interval)))
}

/// The time that this thread has had a processor.
pub fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::from_secs(now.tv_sec.unsigned_abs()) + Duration::from_nanos(now.tv_nsec.unsigned_abs())
}

fn timespec(d: Duration) -> libc::timespec {
    libc::timespec { tv_sec: d.as_secs().cast_signed(), tv_nsec: d.subsec_nanos().into() }
}

/// clock_nanosleep on the monotonic clock, once: an interruption is an error and not slept out.
///
/// # Errors
/// `EINTR`, if anything interrupts it.
pub fn sleep_once(time: Duration) -> io::Result<()> {
    let time = timespec(time);
    // SAFETY: `time` is a live timespec and the rest is not asked for.
    match unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &raw const time, std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// The kernel's `sched_attr`, its first version.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// Bytes of this struct.
    pub size: u32,
    /// `SCHED_…`
    pub policy: u32,
    /// `SCHED_FLAG_…`
    pub flags: u64,
    /// For the fair policies.
    pub nice: i32,
    /// For FIFO and RR.
    pub priority: u32,
    /// Deadline's three, in nanoseconds; `runtime` is also the fair slice.
    pub runtime: u64,
    /// See `runtime`.
    pub deadline: u64,
    /// See `runtime`.
    pub period: u64,
}

/// This thread's scheduling attributes.
pub fn sched_attr() -> SchedAttr {
    let mut attr = SchedAttr::default();
    // SAFETY: the kernel writes at most the size it is told, that of the struct.
    unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size_of::<SchedAttr>(), 0) };
    attr
}

/// Sets this thread's scheduling attributes.
///
/// # Errors
/// As the kernel says.
pub fn set_sched_attr(attr: SchedAttr) -> io::Result<()> {
    let attr = SchedAttr { size: 48, ..attr };
    // SAFETY: a live struct of the size that it names.
    cvt(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) }).map(|_| ())
}

/// Head and length of this thread's robust futex list.
pub fn robust_list() -> (u64, u64) {
    let (mut head, mut len) = (0_u64, 0_u64);
    // SAFETY: both are live u64, as large as the pointer and the size_t the kernel writes.
    unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
    (head, len)
}

/// The kernel's view of a signal's action.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawAction {
    /// Address, `SIG_DFL` or `SIG_IGN`.
    pub handler: u64,
    /// `SA_…`, `SA_RESTORER` too.
    pub flags: u64,
    /// Address of the return trampoline.
    pub restorer: u64,
    /// Blocked while the handler runs.
    pub mask: u64,
}

/// Reads a signal's action as the kernel has it.
pub fn action(signal: i32) -> RawAction {
    let mut old = RawAction::default();
    // SAFETY: the kernel fills a live struct with an 8-byte mask as told.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, 0_usize, &raw mut old, 8) };
    old
}

/// Sets a signal's action.
///
/// # Safety
/// Handler and restorer must be what the kernel may jump to, or the signal must never come.
pub unsafe fn set_action(signal: i32, new: RawAction) {
    // SAFETY: the kernel reads a live struct with an 8-byte mask as told; addresses are the caller's promise.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const new, 0_usize, 8) };
}

/// Start, flags and size of this thread's alternate signal stack.
pub fn altstack() -> (u64, i32, usize) {
    // SAFETY: all zero is a valid stack_t, which the kernel then fills.
    let old = unsafe {
        let mut old: libc::stack_t = std::mem::zeroed();
        libc::sigaltstack(std::ptr::null(), &raw mut old);
        old
    };
    (old.ss_sp as u64, old.ss_flags, old.ss_size)
}

/// Makes `stack` this thread's alternate signal stack for good.
pub fn set_altstack(stack: &'static mut [u8]) {
    let new = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: the memory is given away for good, so that nothing else uses it.
    unsafe { libc::sigaltstack(&raw const new, std::ptr::null_mut()) };
}

/// Leaves this thread without an alternate signal stack: Rust gives one to each.
pub fn no_altstack() {
    let none = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
    // SAFETY: no memory is handed over; what was the stack stays mapped.
    unsafe { libc::sigaltstack(&raw const none, std::ptr::null_mut()) };
}

/// A thread that repeats `call`, which must block through the gap: nothing may come back before `wake`, and then `want`.
pub fn blocked(call: impl Fn() -> Result<u64, rustix::io::Errno> + Send + 'static, mut wake: impl FnMut(), want: u64) {
    let mut zoo = crate::Zoo::start();
    let (tx, rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || while tx.send(call()).is_ok() {});
    std::thread::sleep(Duration::from_millis(30));
    while zoo.gap() {
        zoo.eq("before it was woken, the call returned", rx.try_recv().ok(), None);
        wake();
        zoo.eq("the call returned", rx.recv_timeout(Duration::from_secs(20)), Ok(Ok(want)));
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// Closes a descriptor of a forked child whose owner lives on in the parent; the owner is never dropped in the child.
pub fn close_raw(fd: i32) {
    // SAFETY: the child leaves through _exit, so that the owner never closes the number again.
    unsafe { libc::close(fd) };
}

/// One of the waits of [`timed_waits`].
#[derive(Clone, Copy)]
pub struct TimedWait<'a> {
    /// For messages.
    pub name: &'a str,
    /// Waits once; what the kernel returned (-1 with errno).
    pub call: &'a (dyn Fn() -> i64 + Sync),
}

impl std::fmt::Debug for TimedWait<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A zoo program: each wait of `ms` milliseconds in a thread of its own, over and over. None may be interrupted or too short.
pub fn timed_waits<const N: usize>(waits: [TimedWait<'_>; N], ms: i64) {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
    use std::time::Instant;
    let mut zoo = crate::Zoo::start();
    let least = Duration::from_millis(ms.unsigned_abs());
    let (done, faults) = ([const { AtomicU64::new(0) }; N], std::sync::Mutex::new(Vec::new()));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (wait, done) in waits.iter().zip(&done) {
            let (faults, over) = (&faults, &over);
            scope.spawn(move || {
                while !over.load(SeqCst) {
                    let from = Instant::now();
                    let got = (wait.call)();
                    let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
                    let took = from.elapsed();
                    // Their limit is the only end these waits may have.
                    if (got < 0 && errno == libc::EINTR) || took < least {
                        let fault = format!("{} returned {got}, errno {errno} after {took:?}", wait.name);
                        faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(fault);
                    }
                    done.fetch_add(1, SeqCst);
                }
            });
        }
        // Every thread has to be in a wait, and again in one after the gap.
        let progress = || {
            let from: Vec<u64> = done.iter().map(|d| d.load(SeqCst)).collect();
            let end = Instant::now() + Duration::from_secs(60);
            let moved = || done.iter().zip(&from).all(|(d, from)| d.load(SeqCst) >= from + 2);
            while !moved() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
            moved()
        };
        zoo.ok("all wait", progress());
        while zoo.gap() {
            zoo.ok("all wake again", progress());
            let found = std::mem::take(&mut *faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
            zoo.eq("faults", found, Vec::new());
        }
        over.store(true, SeqCst);
    });
}

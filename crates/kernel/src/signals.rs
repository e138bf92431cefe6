//! Signals that ask our own process to stop: a flag set by a handler, and a signalfd for loops that poll.
#![allow(unsafe_code, reason = "sigaction, sigprocmask and signalfd have no safe wrapper in std or rustix")]
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

static CAUGHT: AtomicI32 = AtomicI32::new(0);
/// One bit for each signal that [`catch`] has ever caught.
static SEEN: AtomicU64 = AtomicU64::new(0);

fn bit(signal: libc::c_int) -> u64 {
    u32::try_from(signal).ok().and_then(|n| 1u64.checked_shl(n)).unwrap_or(0)
}

extern "C" fn remember(signal: libc::c_int) {
    CAUGHT.store(signal, Ordering::Relaxed);
    SEEN.fetch_or(bit(signal), Ordering::Relaxed);
}

fn act(signal: i32, handler: libc::sighandler_t) -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: sigaction is plain old data for which all zero is valid: no flags, an empty mask, SIG_DFL.
    let mut action = unsafe {
        (*action.as_mut_ptr()).sa_sigaction = handler;
        action.assume_init()
    };
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is initialised and lives through the call; the old action is not asked for. The handler, where
    // one is set, only stores to an atomic, which is async-signal-safe.
    match unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn is_ignored(signal: i32) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: no new action is given; the old one is written into `action`, which is large enough and initialised.
    match unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) } {
        // SAFETY: zeroed above and filled by the kernel; all bit patterns are valid.
        0 => Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Calls `act` for those of `signals` that our parent did not have ignored: nohup and `&` mean what they say.
fn act_unless_ignored(signals: &[i32], handler: libc::sighandler_t) -> io::Result<()> {
    for &signal in signals {
        if !is_ignored(signal)? {
            act(signal, handler)?;
        }
    }
    Ok(())
}

/// From now on these signals only set the flag that [`caught`] reads. Interrupted calls are restarted. A signal that is
/// ignored stays so.
///
/// # Errors
/// `EINVAL` for a signal that cannot be caught.
pub fn catch(signals: &[i32]) -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int) = remember;
    act_unless_ignored(signals, handler as libc::sighandler_t)
}

/// The end of [`catch`]: these signals do again what they do by default, unless they are ignored.
///
/// # Errors
/// `EINVAL` for a signal that cannot be caught.
pub fn release(signals: &[i32]) -> io::Result<()> {
    act_unless_ignored(signals, libc::SIG_DFL)
}

/// The last signal that arrived, if any did.
pub fn caught() -> Option<i32> {
    match CAUGHT.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(signal),
    }
}

/// True if `signal` arrived since it was first caught, whatever came after it.
pub fn seen(signal: i32) -> bool {
    SEEN.load(Ordering::Relaxed) & bit(signal) != 0
}

/// Blocks all signals in the calling thread, so that they go to another one.
pub fn block_all_here() {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is filled before it is read; the mask changed is this thread's alone, and the old one is not asked for.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), ptr::null_mut());
    }
}

static TICKS: AtomicU64 = AtomicU64::new(0);

extern "C" fn tick(_: libc::c_int) {
    TICKS.fetch_add(1, Ordering::Relaxed);
}

/// Counts SIGALRMs of an interval timer (ITIMER_REAL) from now on; the count goes on with the timer.
///
/// # Errors
/// `EINVAL` for an interval that the timer cannot have.
pub fn tick_every(interval: Duration) -> io::Result<&'static AtomicU64> {
    let handler: extern "C" fn(libc::c_int) = tick;
    act(libc::SIGALRM, handler as libc::sighandler_t)?;
    let seconds = i64::try_from(interval.as_secs()).map_err(io::Error::other)?;
    let time = libc::timeval { tv_sec: seconds, tv_usec: interval.subsec_micros().into() };
    let value = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: `value` is initialised and outlives the call; the old value is not asked for.
    match unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const value, ptr::null_mut()) } {
        0 => Ok(&TICKS),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Puts the default action back, whatever the parent left us with.
///
/// # Errors
/// `EINVAL` for a signal that has no other action.
pub fn set_default(signals: &[i32]) -> io::Result<()> {
    signals.iter().try_for_each(|&signal| act(signal, libc::SIG_DFL))
}

fn mask(how: libc::c_int, signals: &[i32]) -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set it is given; sigaddset only changes that initialised set.
    let set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for &signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    };
    // SAFETY: `set` is initialised and outlives the call; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(how, &raw const set, ptr::null_mut()) } {
        0 => Ok(set),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Takes the signals out of this thread's mask.
///
/// # Errors
/// None is known for a valid set.
pub fn unblock(signals: &[i32]) -> io::Result<()> {
    mask(libc::SIG_UNBLOCK, signals).map(drop)
}

/// Blocks the signals in this thread and gives a descriptor (non-blocking, CLOEXEC) that is readable when one pends.
///
/// # Errors
/// No descriptor is free.
pub fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = mask(libc::SIG_BLOCK, signals)?;
    // SAFETY: -1 asks for a new descriptor; `set` is initialised and outlives the call.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes one pending signal from a [`signal_fd`]; `None` if there is none.
///
/// # Errors
/// The read failed.
pub fn take(fd: &OwnedFd) -> io::Result<Option<i32>> {
    // struct signalfd_siginfo is 128 bytes; its first word is the signal's number.
    let mut info = [0u8; 128];
    match rustix::io::read(fd, &mut info) {
        Ok(128) => Ok(Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_stays_ignored() {
        act(libc::SIGHUP, libc::SIG_IGN).unwrap();
        catch(&[libc::SIGHUP]).unwrap();
        assert!(is_ignored(libc::SIGHUP).unwrap());
        release(&[libc::SIGHUP]).unwrap();
        assert!(is_ignored(libc::SIGHUP).unwrap());
        set_default(&[libc::SIGHUP]).unwrap();
        assert!(!is_ignored(libc::SIGHUP).unwrap());
    }

    #[test]
    fn a_caught_signal_is_remembered_and_a_blocked_one_is_read() {
        catch(&[libc::SIGUSR1]).unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::USR1).unwrap();
        // Whichever thread takes the signal, it is noted in two steps.
        while !seen(libc::SIGUSR1) {
            std::thread::yield_now();
        }
        assert_eq!(caught(), Some(libc::SIGUSR1));
        assert!(!seen(libc::SIGUSR2));

        let fd = signal_fd(&[libc::SIGUSR2]).unwrap();
        assert_eq!(take(&fd).unwrap(), None);
        let me = rustix::thread::gettid();
        // SAFETY: tgkill takes numbers only; the signal is blocked in exactly this thread.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), me.as_raw_pid(), libc::SIGUSR2) };
        assert_eq!(sent, 0);
        assert_eq!(take(&fd).unwrap(), Some(libc::SIGUSR2));
    }
}

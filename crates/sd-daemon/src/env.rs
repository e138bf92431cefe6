//! Reading the protocol's variables, and unsetting them only when no other thread can be reading the environment.
#![allow(unsafe_code, reason = "removing environment variables is unsafe in Rust; the proof is made here, once")]
use crate::{Error, Result};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// The variables of socket activation.
pub(crate) const LISTEN: &[&str] = &["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"];
/// The variable of notification.
pub(crate) const NOTIFY: &[&str] = &["NOTIFY_SOCKET"];
/// The variables of the watchdog.
pub(crate) const WATCHDOG: &[&str] = &["WATCHDOG_USEC", "WATCHDOG_PID"];

/// Reads a number from the environment. `None`: not set.
pub(crate) fn number<T>(
    name: &'static str,
    parse: impl Fn(&[u8]) -> std::result::Result<T, crate::number::NotANumber>,
) -> Result<Option<T>> {
    let Some(value) = std::env::var_os(name) else { return Ok(None) };
    match parse(value.as_bytes()) {
        Ok(n) => Ok(Some(n)),
        Err(e) => Err(Error::Variable { name, value, errno: e.errno() }),
    }
}

/// The variable's value.
pub(crate) fn get(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Unsets variables when dropped, whatever happened in between, as libsystemd does.
pub(crate) struct Unset(&'static [&'static str]);

impl Unset {
    /// If `wanted`, proves that this thread is the only one, and promises to unset `names` at the end of the scope.
    pub(crate) fn at_end(wanted: bool, names: &'static [&'static str]) -> Result<Unset> {
        if !wanted || names.iter().all(|n| std::env::var_os(n).is_none()) {
            return Ok(Unset(&[]));
        }
        if !only_thread() {
            return Err(Error::Threads);
        }
        Ok(Unset(names))
    }
}

impl Drop for Unset {
    fn drop(&mut self) {
        for name in self.0 {
            // SAFETY: `at_end` saw that the process has this one thread, and this crate starts none in between: nobody
            // else can be reading or writing `environ`.
            unsafe { std::env::remove_var(name) };
        }
    }
}

/// Whether the calling thread is the only one. `false` also when /proc does not tell. A thread that was just joined is
/// still counted for a moment, hence the short wait.
fn only_thread() -> bool {
    let until = Instant::now() + Duration::from_millis(50);
    loop {
        // The directory has one link per thread, besides its own two.
        match std::fs::metadata("/proc/self/task") {
            Ok(m) if m.nlink() == 3 => return true,
            Ok(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
            _ => return false,
        }
    }
}

macro_rules! unset {
    ($($(#[$doc:meta])* $name:ident = $vars:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// No other thread may read or write the environment during the call, not even through C code such as
        /// `getenv`, `localtime` or `getaddrinfo`.
        pub unsafe fn $name() {
            for name in $vars {
                // SAFETY: handed on to the caller.
                unsafe { std::env::remove_var(name) };
            }
        }
    )*};
}

unset! {
    /// Unsets `LISTEN_PID`, `LISTEN_PIDFDID`, `LISTEN_FDS` and `LISTEN_FDNAMES`, for programs with several threads,
    /// where `unset = true` is refused.
    unset_listen = LISTEN;
    /// Unsets `NOTIFY_SOCKET`, for programs with several threads, where `unset = true` is refused.
    unset_notify = NOTIFY;
    /// Unsets `WATCHDOG_USEC` and `WATCHDOG_PID`, for programs with several threads, where `unset = true` is refused.
    unset_watchdog = WATCHDOG;
}

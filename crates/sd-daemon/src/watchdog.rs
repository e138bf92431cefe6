//! The watchdog the service manager keeps on this process, if any.
use crate::env::{self, Unset};
use crate::{Error, Result, number};
use std::time::Duration;

/// Within what time the service manager expects [`NotifyState::Watchdog`](crate::NotifyState::Watchdog), or `None` if
/// it does not. Send it at half that time.
///
/// # Errors
/// [`Error::Variable`] for a value that does not parse, [`Error::Threads`] if `unset` is asked for while other threads
/// run (then nothing was done).
pub fn watchdog_enabled(unset: bool) -> Result<Option<Duration>> {
    let _unset = Unset::at_end(unset, env::WATCHDOG)?;
    if cfg!(feature = "disable-systemd") {
        return Ok(None);
    }
    let Some(usec) = env::number("WATCHDOG_USEC", number::unsigned)? else { return Ok(None) };
    if usec == 0 || usec == u64::MAX {
        let value = env::get("WATCHDOG_USEC").unwrap_or_default();
        return Err(Error::Variable { name: "WATCHDOG_USEC", value, errno: libc::EINVAL });
    }
    match env::number("WATCHDOG_PID", number::pid)? {
        Some(pid) if pid != std::process::id() => Ok(None),
        _ => Ok(Some(Duration::from_micros(usec))),
    }
}

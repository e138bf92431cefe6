//! Whether systemd runs this machine.
use crate::Result;
use crate::error::During;

/// Was the system booted with systemd? Looks for the directory systemd makes first of all.
///
/// # Errors
/// [`Error::Sys`](crate::Error::Sys) if it cannot be looked at.
pub fn booted() -> Result<bool> {
    if cfg!(feature = "disable-systemd") {
        return Ok(false);
    }
    match std::fs::symlink_metadata("/run/systemd/system/") {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).during("looking for /run/systemd/system/"),
    }
}

//! Failure on demand, in builds with debug assertions only: tests see that nothing is lost by it.
//!
//! `CRUST_FAULT=STAGE` makes a dump fail at that stage. `CRUST_FAULT_IO=N:ERRNO` makes the Nth call on the image directory
//! fail with that number, `CRUST_FAULT_IO=0:0` cuts every write of images to a few bytes.
use crate::{Error, Kind, Result, Stage};
use rustix::io::Errno;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The variable's value, where tests may set one.
fn asked(name: &str) -> Option<String> {
    if cfg!(debug_assertions) { std::env::var(name).ok() } else { None }
}

/// Fails if the environment asks for a failure at this stage.
///
/// # Errors
/// `Internal`, saying that it was asked for.
pub(crate) fn point(stage: Stage) -> Result<()> {
    let name = format!("{stage:?}").to_lowercase();
    match asked("CRUST_FAULT") {
        Some(asked) if asked == name => {
            Err(Error::new(Kind::Internal, format!("CRUST_FAULT asked for a failure at {name}")).at(stage))
        }
        _ => Ok(()),
    }
}

/// `CRUST_FAULT_IO`, read once.
fn plan() -> Option<(u64, i32)> {
    static PLAN: OnceLock<Option<(u64, i32)>> = OnceLock::new();
    *PLAN.get_or_init(|| {
        let (nth, errno) = asked("CRUST_FAULT_IO")?.split_once(':').map(|(n, e)| (n.parse().ok(), e.parse().ok()))?;
        nth.zip(errno)
    })
}

/// Goes before every call that changes the image directory or a file in it.
///
/// # Errors
/// The number asked for, if this call's turn has come.
pub(crate) fn io() -> rustix::io::Result<()> {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    match plan() {
        Some((nth, errno)) if nth > 0 && CALLS.fetch_add(1, Ordering::Relaxed) + 1 == nth => {
            Err(Errno::from_raw_os_error(errno))
        }
        _ => Ok(()),
    }
}

/// As much of `bytes` as one write may take.
pub(crate) fn cut(bytes: &[u8]) -> &[u8] {
    match plan() {
        Some((0, _)) => bytes.get(..1000.min(bytes.len().div_ceil(2))).unwrap_or(bytes),
        _ => bytes,
    }
}

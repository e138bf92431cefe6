//! Questions without consequences: what this kernel offers, and what in a tree would block a dump.
use crate::{Error, Kind, Options, Result};

/// One answer of [`host`].
#[derive(Clone, Debug)]
pub struct Feature {
    /// CRIU's name for `check --feature`, or our own for what CRIU does not know.
    pub name: &'static str,
    /// Found by trying it.
    pub present: bool,
    /// False where crust works without it, only slower or with less.
    pub required: bool,
    /// What is lost without it and what to do.
    pub help: &'static str,
}

/// Tries every kernel interface that crust can use.
pub fn host() -> Vec<Feature> {
    crate::features::all()
}

/// CRIU's 45 names for `check --feature`: `None` for a name nobody knows.
pub fn feature(name: &str) -> Option<bool> {
    crate::features::one(name).map(|f| f.present)
}

/// Everything in the tree below `pid` that would make a dump fail, one error each; looks only, stops nothing.
///
/// # Errors
/// Only if the tree cannot be looked at; blockers are the `Ok` value.
pub fn tree(pid: i32, opts: &Options) -> Result<Vec<Error>> {
    let _ = (pid, opts);
    Err(Error::new(Kind::Internal, "check --pid is not built yet"))
}

//! `crust demo`: a program checkpointed and restored before your eyes.
pub(crate) mod sample;

use crate::exit::Exit;
use std::ffi::OsString;

/// Runs the demonstration.
pub(crate) fn run(_args: &[OsString]) -> Exit {
    log::error!("demo is not supported yet");
    Exit::Failure
}

//! The program that the demonstration checkpoints.
use crate::exit::Exit;
use std::ffi::OsString;

/// Runs the sample.
pub(crate) fn run(_args: &[OsString]) -> Exit {
    log::error!("demo is not supported yet");
    Exit::Failure
}

//! `crust image …`: the tools of the image crate.
use crate::exit::Exit;
use crate::out;
use std::ffi::OsString;

const USAGE: &str = "Usage:\n  crust image show FILE     print an image file as JSON\n";

/// Runs `crust image ARGS`.
pub(crate) fn run(args: &[OsString]) -> Exit {
    match args {
        [verb] if verb == "--help" || verb == "-h" => {
            out(USAGE);
            Exit::Good
        }
        [verb, _file] if verb == "show" => {
            log::error!("image show is not supported yet");
            Exit::Failure
        }
        _ => {
            log::error!("`crust image` takes: show FILE");
            out(USAGE);
            Exit::Failure
        }
    }
}

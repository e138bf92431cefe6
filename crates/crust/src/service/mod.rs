//! RPC: `crust swrk` for one caller, `crust service` for many.
use crate::cli::Invocation;
use crate::exit::Exit;

/// Serves the caller that started us.
pub(crate) fn swrk(_invocation: Invocation) -> Exit {
    log::error!("swrk is not supported yet");
    Exit::Failure
}

/// Serves everybody who connects.
pub(crate) fn serve(_invocation: Invocation) -> Exit {
    log::error!("service is not supported yet");
    Exit::Failure
}

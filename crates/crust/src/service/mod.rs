//! RPC: `crust swrk` for the one caller that started us, `crust service` for everybody who connects.
mod daemon;
mod events;
mod handover;
mod listen;
mod peer;
mod request;
mod worker;

use crate::cli::Invocation;
use crate::exit::Exit;
use crate::logging;
use crust_kernel::inherited;
use crust_rpc::Connection;
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use worker::{Mode as WorkerMode, Worker};

pub(crate) use daemon::serve;

/// Serves the caller that started us as `swrk FD`. Reads nothing, closes nothing and opens nothing before its request.
pub(crate) fn swrk(invocation: Invocation) -> Exit {
    let number = invocation.rest.first().and_then(|w| w.to_str()).and_then(|w| w.parse().ok());
    let Some(number) = number else {
        log::error!("swrk takes the number of a descriptor");
        return Exit::Minus1;
    };
    let connection = match adopt(number) {
        Ok(fd) => Connection::new(fd),
        Err(e) => {
            log::error!("swrk: descriptor {number} cannot be used: {e}");
            return Exit::Minus1;
        }
    };
    if let Err(e) = connection.check() {
        log::error!("swrk: descriptor {number} is {e}");
        return Exit::Minus1;
    }
    Worker::new(connection, WorkerMode::Swrk).serve(Some(invocation.settings))
}

/// Takes the socket. libcriu may pass 0, 1 or 2; then it moves up and /dev/null takes that place, so that no log line
/// is ever read as a reply.
fn adopt(number: i32) -> io::Result<OwnedFd> {
    let fd = inherited::take(number)?;
    if number > 2 {
        return Ok(fd);
    }
    let up = rustix::io::fcntl_dupfd_cloexec(&fd, 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // The slot stays in use: what replaces the socket there must not be closed by dropping its old owner.
    let _slot = fd.into_raw_fd();
    match number {
        0 => rustix::stdio::dup2_stdin(&null)?,
        1 => rustix::stdio::dup2_stdout(&null)?,
        _ => {
            logging::set_sink(logging::Sink::Nowhere);
            rustix::stdio::dup2_stderr(&null)?;
        }
    }
    Ok(up)
}

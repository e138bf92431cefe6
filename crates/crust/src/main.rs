//! The `crust` binary: command line, service, swrk, demo. Called through a link named `criu` it is the same.
mod cli;
mod commands;
mod demo;
mod events;
mod exit;
mod logging;
mod rootless;
mod service;
mod stats;

use std::io::Write;
use std::process::ExitCode;

/// The CRIU version whose behaviour and images we follow; LXC, crun and go-criu compare it.
pub(crate) const CLAIMED_VERSION: &str = "4.2";

/// Much of a dump of many mappings was the heap that grew beside it, by small steps.
const HEAP_STEP_BYTES: i32 = 2 << 20;

fn main() -> ExitCode {
    crust_kernel::process::grow_heap_in_steps(HEAP_STEP_BYTES);
    let noted = crust_kernel::inherited::note();
    logging::init();
    if let Err(e) = noted {
        log::debug!("our descriptors cannot be listed: {e}");
    }
    if let Err(why) = not_setuid() {
        log::error!("{why}");
        return ExitCode::from(exit::Exit::Failure.code());
    }
    // A parent may have left SIGCHLD ignored: our waits would then never see a child.
    if let Err(e) = crust_kernel::signals::set_default(&[libc::SIGCHLD]) {
        log::warn!("SIGCHLD cannot be reset: {e}");
    }
    ExitCode::from(cli::run(std::env::args_os()).code())
}

/// A program that reads environment, configuration and images of its caller must not have more rights than it.
fn not_setuid() -> Result<(), String> {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    if getuid() == geteuid() && getgid() == getegid() {
        return Ok(());
    }
    Err(format!(
        "this program does not run setuid or setgid (user {}, acting as {}): call it as root, or let its service act for you",
        getuid().as_raw(),
        geteuid().as_raw()
    ))
}

/// Prints text that was asked for. A reader that went away is no failure of ours.
pub(crate) fn out(text: &str) {
    let mut stdout = std::io::stdout().lock();
    if let Err(e) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        log::debug!("standard output: {e}");
    }
}

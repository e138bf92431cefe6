//! Tasks: what resource modules see of one process while it is looked at, and the modules for task state.
pub mod breakpoints;
pub mod compat;
pub mod creds;
pub mod dispatch;
pub mod ended;
pub mod landlock;
pub mod limits;
pub mod lockall;
pub mod lsm;
pub mod odds;
pub mod regs_x86_64;
pub mod seccomp;
pub mod settings;
pub mod signals;
pub mod thread;
pub mod tiles;
pub mod timers;
pub mod wait;

pub use regs_x86_64 as regs;

use crust_kernel::procfs::ProcDir;
use crust_kernel::{HostTid, NsTid};
use std::os::fd::BorrowedFd;

/// One frozen process as the resource modules see it during a dump. Holding it proves that every thread is stopped.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The process here.
    pub pid: HostTid,
    /// The process in its own pid namespace: the number in image names and records.
    pub ns_pid: NsTid,
    /// `/proc/PID`.
    pub proc: &'a ProcDir,
    /// For pidfd_getfd.
    pub pidfd: BorrowedFd<'a>,
}

//! A stopped thread borrowed and given back: remote syscalls, plans, and the only assembly of the project.
//!
//! Start with [`SeizedProcess`]: it stops a process, reads its threads, borrows them for single calls
//! ([`SeizedProcess::borrow_thread`]) or whole plans ([`SeizedProcess::run`]), and lets them go. Whenever this process dies,
//! however it dies, the target goes on as if it had never been stopped.
pub mod arch;
pub mod bpf;
mod each;
mod error;
mod home;
pub mod plan;
mod reclaim;
mod remote;
mod run;
mod seccomp;
mod seize;
mod site;
mod tail;

pub use each::{Job, run_each};
pub use error::{Error, Kind, MORE_FILES, Result};
pub use reclaim::{Leftovers, leftovers};
pub use remote::Remote;
pub use run::{PlanFailure, Ran};
pub use seccomp::CrashSafety;
pub use seize::{Asked, SeizedProcess, SeizedThread};
pub use site::elf_content_len;

//! A thin typed layer over the Linux interfaces that rustix lacks. `unsafe` lives here; nothing here decides anything.
pub mod deadline;
pub mod fork;
pub mod ids;
pub mod inherited;
pub mod maps;
pub mod mman;
pub mod pagemap;
pub mod peer;
pub mod pidfd;
pub mod process;
pub mod procfs;
pub mod ptrace;
pub mod remote_mem;
pub mod signals;
pub mod writeback;
pub use deadline::{Backoff, Deadline};
pub use ids::{HostTid, NsTid, TargetFd, VirtAddr};

//! A thin typed layer over the Linux interfaces that rustix lacks. `unsafe` lives here; nothing here decides anything.
pub mod ids;
pub mod maps;
pub mod mman;
pub mod pagemap;
pub mod procfs;
pub use ids::{HostTid, NsTid, TargetFd, VirtAddr};

//! The engine: dump and restore of process trees. One module per kernel resource, both halves in it.
pub(crate) mod cgroup;
pub mod check;
pub mod cleanup;
pub(crate) mod clock;
pub mod cpu;
pub mod dump;
pub mod error;
pub mod events;
pub(crate) mod fault;
mod features;
pub mod files;
pub mod images;
pub(crate) mod lend;
pub mod memory;
pub mod namespaces;
pub mod needs;
pub mod options;
pub mod plugins;
pub mod restore;
pub mod task;
pub(crate) mod together;

pub use dump::{DumpReport, dump, pre_dump};
pub use error::{Error, Kind, Object, OnObject, Result, ResultExt, Stage};
pub use events::{Event, Events, NoEvents, Reply, Watch};
pub use options::Options;
pub use restore::{RestoreReport, restore};

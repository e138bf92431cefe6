//! The dump, readable top to bottom: find → freeze → look → write → commit → kill or resume.
use crate::{Error, Events, Kind, Options, Result};
use std::time::Duration;

/// What a dump did; becomes `stats-dump` and the lines people read.
#[derive(Clone, Debug, Default)]
pub struct DumpReport {
    /// Root task, in our pid namespace.
    pub pid: i32,
    /// Processes and threads saved.
    pub tasks: usize,
    /// Threads saved, leaders included.
    pub threads: usize,
    /// How long the freeze itself took.
    pub freezing: Duration,
    /// How long the tree did not run.
    pub frozen: Duration,
    /// Time spent on memory.
    pub memdump: Duration,
    /// Time spent writing memory out.
    pub memwrite: Duration,
    /// Pages looked at.
    pub pages_scanned: u64,
    /// Pages written to `pages-*.img`.
    pub pages_written: u64,
    /// Pages found in the parent images.
    pub pages_skipped_parent: u64,
    /// Bytes of all images together.
    pub image_bytes: u64,
    /// Named steps with their wall time, in order.
    pub phases: Vec<(&'static str, Duration)>,
}

/// Checkpoints the tree below `opts.pid` into `opts.images_dir`.
///
/// # Errors
/// Any error leaves the tree running as before and no image directory that could be taken for a good one.
pub fn dump(opts: &Options, events: &mut dyn Events) -> Result<DumpReport> {
    let _ = (opts, events);
    Err(Error::new(Kind::Internal, "dump is not built yet"))
}

/// Writes the memory of the tree while it runs on, for a later dump with `prev_images_dir`.
///
/// # Errors
/// As [`dump`].
pub fn pre_dump(opts: &Options, events: &mut dyn Events) -> Result<DumpReport> {
    let _ = (opts, events);
    Err(Error::unsupported("pre-dump is not supported yet", "dump at once, without --prev-images-dir"))
}

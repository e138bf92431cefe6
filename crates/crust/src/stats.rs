//! `stats-dump` and `stats-restore`: what it cost, as CRIU's clients read it from the work directory, and as text.
use crust_engine::{DumpReport, Options, RestoreReport};
use crust_image::{ImageKind, encode_one, proto};
use rustix::fs::{Mode, OFlags};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// Writes the file into the work directory. The work itself is done: a failure here is only told.
fn write(opts: &Options, kind: ImageKind, entry: &proto::StatsEntry) {
    let Some(dir) = opts.work_dir.as_ref().or(opts.images_dir.as_ref()) else { return };
    let name = kind.file_name(0);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let outcome = encode_one(kind, entry).map_err(|e| e.to_string()).and_then(|bytes| {
        let fd = rustix::fs::openat(dir, &name, flags, Mode::from_raw_mode(0o644)).map_err(|e| e.to_string())?;
        File::from(fd).write_all(&bytes).map_err(|e| e.to_string())
    });
    if let Err(e) = outcome {
        log::warn!("{name} cannot be written: {e}");
    }
}

/// Tells what a dump cost, in its file and in the log.
pub(crate) fn dumped(opts: &Options, r: &DumpReport) {
    let dump = proto::DumpStatsEntry {
        freezing_time: micros(r.freezing),
        frozen_time: micros(r.frozen),
        memdump_time: micros(r.memdump),
        memwrite_time: micros(r.memwrite),
        pages_scanned: r.pages_scanned,
        pages_skipped_parent: r.pages_skipped_parent,
        pages_written: r.pages_written,
        pages_lazy: 0,
        // Optional in the format, but what reads this file takes them for given, and adds the shared pages up.
        irmap_resolve: Some(0),
        page_pipes: Some(0),
        page_pipe_bufs: Some(0),
        shpages_scanned: Some(r.shared_pages_scanned),
        shpages_skipped_parent: Some(0),
        shpages_written: Some(r.shared_pages_written),
    };
    write(opts, ImageKind::StatsDump, &proto::StatsEntry { dump: Some(dump), restore: None });
    dump_text(r).lines().for_each(|line| log::info!("{line}"));
    log::info!("Dumping finished successfully");
}

/// Tells what a restore cost.
pub(crate) fn restored(opts: &Options, r: &RestoreReport) {
    let restore = proto::RestoreStatsEntry {
        pages_compared: 0,
        pages_skipped_cow: 0,
        forking_time: micros(r.forking),
        restore_time: micros(r.restoring),
        pages_restored: Some(r.pages_restored),
    };
    write(opts, ImageKind::StatsRestore, &proto::StatsEntry { dump: None, restore: Some(restore) });
    restore_text(r).lines().for_each(|line| log::info!("{line}"));
    log::info!("Restore finished successfully. Tasks resumed.");
}

/// For `--display-stats`.
pub(crate) fn dump_text(r: &DumpReport) -> String {
    let mut text = String::from("Displaying dump stats:\n");
    for (what, time) in [
        ("Freezing time", r.freezing),
        ("Frozen time", r.frozen),
        ("Memory dump time", r.memdump),
        ("Memory write time", r.memwrite),
    ] {
        let _infallible = writeln!(text, "{what}: {} us", time.as_micros());
    }
    for (what, pages) in [
        ("Memory pages scanned", r.pages_scanned),
        ("Memory pages skipped from parent", r.pages_skipped_parent),
        ("Memory pages written", r.pages_written),
        ("Shared memory pages scanned", r.shared_pages_scanned),
        ("Shared memory pages written", r.shared_pages_written),
    ] {
        let _infallible = writeln!(text, "{what}: {pages} ({pages:#x})");
    }
    let _infallible = writeln!(text, "Image bytes: {}", r.image_bytes);
    phases(&mut text, &r.phases);
    text
}

/// For `--display-stats`.
pub(crate) fn restore_text(r: &RestoreReport) -> String {
    let mut text = String::from("Displaying restore stats:\n");
    let _infallible = write!(
        text,
        "Pages restored: {} ({:#x})\nRestore time: {} us\nForking time: {} us\n",
        r.pages_restored,
        r.pages_restored,
        r.restoring.as_micros(),
        r.forking.as_micros(),
    );
    phases(&mut text, &r.phases);
    text
}

fn phases(text: &mut String, phases: &[(&'static str, Duration)]) {
    for (name, time) in phases {
        let _infallible = writeln!(text, "{PHASE}{name}: {} us", time.as_micros());
    }
}

/// How a line about one step starts.
pub(crate) const PHASE: &str = "Phase ";

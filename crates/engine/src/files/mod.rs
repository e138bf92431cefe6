//! Open files: identity over the whole tree, a registry of kinds with both halves each, and the restore of tables.
//!
//! Dump: [`FileTable`] looks at every descriptor, gives each open file description (`struct file`) one id, and asks the
//! kind that recognises it for a record. There is no default kind: what nobody recognises is an error.
//! Restore: [`FileImages`] reads the records, checks them all, opens what several tables share once in the root task,
//! and builds each table exactly as it was.
//! Invariant: looking never changes the target's files (no lseek, no F_SETFL, no read on a copy).

mod bpfmap;
mod epoll;
mod eventfd;
mod fanotify;
mod fifo;
mod fs;
mod ghost;
pub mod ids;
mod inet;
mod inotify;
mod locks;
mod look;
mod memfd;
mod mqueue;
mod netlink;
mod nsfs;
mod overflow;
mod owners;
mod packet;
mod pidfd;
mod pipe;
mod plugged;
mod procfs;
mod regular;
mod restore;
mod signalfd;
mod sockopt;
mod table;
mod timerfd;
mod tty;
mod tty_data;
mod tun;
pub mod twin;
mod udp_data;
mod unix;
mod watch;

pub use fs::PathLink;
pub use look::Known;
pub use restore::{FileImages, TaskFiles};
pub use table::{Changed, FileTable};

use crate::Result;
use crust_image::proto::{FdTypes, FileEntry};
use look::FdView;
use restore::Opener;
use std::os::fd::OwnedFd;
use table::Records;

/// Descriptor numbers above all of the tree's and above the files it shares that a restore takes for itself at most.
const SERVICE_NUMBERS: u64 = 64;

/// Opens files that belong together; gives each with its id.
type OpenUnit = fn(&[&FileEntry], &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>>;

/// A kind of file: how to know it, how to save it, how to bring it back.
struct FdKind {
    /// Noun for messages.
    name: &'static str,
    fd_type: FdTypes,
    /// Whether a descriptor is of this kind. Kinds are asked in the order of [`KINDS`].
    recognise: fn(&FdView<'_>) -> bool,
    /// Looks; the entry's `type` and `id` are filled in by the caller.
    dump: fn(&FdView<'_>, u32, &mut Records<'_>) -> Result<FileEntry>,
    /// Entries with an equal key stand for one object in the kernel and must be opened together.
    group: fn(&FileEntry, &FileImages) -> Option<u64>,
    /// Opens all files of one group. Positions, flags and signal owners are set when this returns.
    open: OpenUnit,
}

/// Every kind. Order matters only where two would recognise the same descriptor.
static KINDS: &[&FdKind] = &[
    &pipe::KIND,
    &fifo::KIND,
    &eventfd::KIND,
    &epoll::KIND,
    &signalfd::KIND,
    &timerfd::KIND,
    &inotify::KIND,
    &fanotify::KIND,
    &pidfd::KIND,
    &tty::KIND,
    &unix::KIND,
    &inet::KIND,
    &netlink::KIND,
    &nsfs::KIND,
    &packet::KIND,
    &bpfmap::KIND,
    &memfd::KIND,
    &mqueue::KIND,
    &tun::KIND,
    &regular::KIND,
];

/// The kind of a record.
fn kind_of(e: &FileEntry) -> Option<&'static FdKind> {
    if e.ext.as_ref().is_some_and(|ext| ext.crust_mqueue.is_none()) {
        return Some(&plugged::KIND);
    }
    KINDS.iter().copied().find(|k| k.fd_type as i32 == e.r#type)
}

/// For kinds whose files stand alone.
fn alone(_: &FileEntry, _: &FileImages) -> Option<u64> {
    None
}

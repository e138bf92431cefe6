//! eventfd(2): a counter. CRIU's record lacks the semaphore mode: it goes into a field of ours.
use super::look::FdView;
use super::restore::Opener;
use super::table::Records;
use super::{FdKind, alone};
use crate::{Error, Kind, Result, ResultExt};
use crust_image::proto::{EventfdFileEntry, FdTypes, FileEntry};
use rustix::event::EventfdFlags;
use std::os::fd::OwnedFd;

pub(super) static KIND: FdKind = FdKind {
    name: "eventfd",
    fd_type: FdTypes::Eventfd,
    recognise: |v| v.is_anon("[eventfd]"),
    dump,
    group: alone,
    open,
};

fn dump(v: &FdView<'_>, id: u32, _: &mut Records<'_>) -> Result<FileEntry> {
    let semaphore = v.info.number::<u32>("eventfd-semaphore").unwrap_or(0) != 0;
    let counter =
        v.info.hex("eventfd-count").ok_or_else(|| Error::new(Kind::Internal, "fdinfo of an eventfd has no count"))?;
    let efd = EventfdFileEntry {
        id,
        flags: v.info.flags,
        fown: v.fown()?,
        counter,
        crust_semaphore: semaphore.then_some(true),
    };
    Ok(FileEntry { efd: Some(Box::new(efd)), ..FileEntry::default() })
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    for e in entries {
        let r = cx.body(e, e.efd.as_ref())?;
        let mode = if r.crust_semaphore == Some(true) { EventfdFlags::SEMAPHORE } else { EventfdFlags::empty() };
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | mode).during("eventfd")?;
        if r.counter != 0 {
            // The initial value of eventfd(2) has only 32 bits.
            rustix::io::write(&fd, &r.counter.to_ne_bytes()).during("setting an eventfd's counter")?;
        }
        cx.settle(&fd, r.flags, &r.fown)?;
        opened.push((e.id, fd));
    }
    Ok(opened)
}

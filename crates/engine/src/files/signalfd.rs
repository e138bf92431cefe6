//! signalfd(2): a mask of signals.
use super::look::FdView;
use super::restore::Opener;
use super::table::Records;
use super::{FdKind, alone};
use crate::{Error, Kind, Result, ResultExt};
use crust_image::proto::{FdTypes, FileEntry, SignalfdEntry};
use std::os::fd::OwnedFd;

pub(super) static KIND: FdKind = FdKind {
    name: "signalfd",
    fd_type: FdTypes::Signalfd,
    recognise: |v| v.is_anon("[signalfd]"),
    dump,
    group: alone,
    open,
};

fn dump(v: &FdView<'_>, id: u32, _: &mut Records<'_>) -> Result<FileEntry> {
    let sigmask =
        v.info.hex("sigmask").ok_or_else(|| Error::new(Kind::Internal, "fdinfo of a signalfd has no mask"))?;
    let sgfd = SignalfdEntry { id, flags: v.info.flags, fown: v.fown()?, sigmask };
    Ok(FileEntry { sgfd: Some(Box::new(sgfd)), ..FileEntry::default() })
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    for e in entries {
        let r = cx.body(e, e.sgfd.as_ref())?;
        let fd = crust_kernel::fd::signalfd(r.sigmask).during("signalfd")?;
        cx.settle(&fd, r.flags, &r.fown)?;
        opened.push((e.id, fd));
    }
    Ok(opened)
}

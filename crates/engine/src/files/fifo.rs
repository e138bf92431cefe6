//! Named pipes: a path like a regular file, and content like a pipe. The record points at a regular file's record.
use super::look::FdView;
use super::pipe::{content, fill};
use super::restore::{FileImages, Opener};
use super::table::Records;
use super::{FdKind, ghost, regular};
use crate::{Error, Result, ResultExt};
use crust_image::proto::{FdTypes, FifoEntry, FileEntry};
use rustix::fs::OFlags;
use std::os::fd::{AsRawFd, OwnedFd};

pub(super) static KIND: FdKind = FdKind {
    name: "fifo",
    fd_type: FdTypes::Fifo,
    recognise: |v| v.file_type() == libc::S_IFIFO && v.is_path() && !v.is_o_path(),
    dump,
    group,
    open,
};

fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let regf_id = out.new_id();
    let mut path = regular::dump(v, regf_id, out)?;
    path.r#type = FdTypes::Reg as i32;
    path.id = regf_id;
    out.files.push(path);
    let pipe_id = v.stat.st_ino as u32;
    let can_read = v.info.flags & libc::O_ACCMODE as u32 != OFlags::WRONLY.bits();
    if can_read && out.pipes_seen.insert((v.stat.st_dev, v.stat.st_ino)) {
        let content = content(v.copy()?, pipe_id, &mut out.scratch)?;
        out.fifo_data.extend(content);
    }
    let fifo = FifoEntry { id, pipe_id, regf_id: Some(regf_id) };
    Ok(FileEntry { fifo: Some(Box::new(fifo)), ..FileEntry::default() })
}

fn group(e: &FileEntry, _: &FileImages) -> Option<u64> {
    e.fifo.as_ref().map(|f| u64::from(f.pipe_id))
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut all = Vec::new();
    for e in entries {
        let f = cx.body(e, e.fifo.as_ref())?;
        let regf_id = f.regf_id.ok_or_else(|| Error::bad_image("files.img", format!("fifo {} has no path", e.id)))?;
        all.push((e.id, f.pipe_id, cx.images.regular(regf_id)?));
    }
    let Some((_, pipe_id, first)) = all.first().copied() else { return Ok(Vec::new()) };
    // Open for both directions first: it never waits, and keeps the content while the others are opened.
    let both = OFlags::RDWR.bits() | OFlags::NONBLOCK.bits();
    let base = if cx.images.ghost_of(first.id).is_some() {
        let (ghost, _) = ghost::base(first, cx)?;
        cx.reopen_number(ghost, both)?
    } else {
        regular::open_entry(first, Some(both), cx)?
    };
    if let Some(data) = cx.images.fifo_data.get(&pipe_id) {
        if rustix::io::ioctl_fionread(&base).during("asking how much waits in a fifo")? != 0 {
            return Err(Error::new(crate::Kind::Taken, "the fifo is in use: it holds bytes already")
                .on(crate::Object::Path(String::from_utf8_lossy(&first.name).into_owned()))
                .help("stop the program that uses it"));
        }
        fill(&base, data)?;
    }
    let mut opened = Vec::new();
    for (id, _, reg) in all {
        let fd = cx.reopen_number(base.as_raw_fd(), reg.flags | OFlags::NONBLOCK.bits())?;
        cx.settle(&fd, reg.flags, &reg.fown)?;
        opened.push((id, fd));
    }
    Ok(opened)
}

//! fanotify(7): a group with marks on files and mounts. For events that wait to be read see `overflow.rs`.
use super::look::FdView;
use super::overflow::{self, Queue};
use super::restore::Opener;
use super::table::Records;
use super::watch::{self, Line, Mounts};
use super::{FdKind, alone};
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::{
    FanotifyFileEntry, FanotifyInodeMarkEntry, FanotifyMarkEntry, FanotifyMountMarkEntry, FdTypes, FileEntry, MarkType,
};
use crust_kernel::fd as kfd;
use crust_kernel::notify::{fanotify_init, fanotify_mark};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

pub(super) static KIND: FdKind = FdKind {
    name: "fanotify",
    fd_type: FdTypes::Fanotify,
    recognise: |v| v.is_anon("[fanotify]"),
    dump,
    group: alone,
    open,
};

const FAN_MARK_ADD: u32 = 1;
const FAN_MARK_MOUNT: u32 = 0x10;
const FAN_MARK_IGNORED_MASK: u32 = 0x20;
/// Flags of a mark that fdinfo shows and fanotify_mark(2) takes: FAN_MARK_IGNORED_SURV_MODIFY, FAN_MARK_EVICTABLE.
const MARK_FLAGS: u32 = 0x40 | 0x200;

fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let mut lines = v.info.lines().filter_map(|l| Line::parse(l, "fanotify"));
    let head = lines.next().ok_or_else(|| Error::new(Kind::Internal, "fdinfo of a fanotify has an unknown form"))?;
    let faflags = head.need("flags")? as u32;
    let mut ffy = FanotifyFileEntry {
        id,
        flags: v.info.flags,
        fown: v.fown()?,
        faflags,
        evflags: head.need("event-flags")? as u32,
        mark: Vec::new(),
        crust_overflow: overflow::look(v, Queue::Fanotify(faflags), out.opts)?,
    };
    for line in lines {
        let mut mark = FanotifyMarkEntry {
            id,
            mflags: line.need("mflags")? as u32,
            mask: line.need("mask")? as u32,
            ignored_mask: line.need("ignored_mask")? as u32,
            ..FanotifyMarkEntry::default()
        };
        if mark.mflags & !MARK_FLAGS != 0 {
            return Err(Error::unsupported(
                format!("a fanotify mark has flags {:#x}, which is not supported yet", mark.mflags),
                "close it before the dump",
            ));
        }
        if let Some(mnt_id) = line.hex("mnt_id") {
            let mnt_id = mnt_id as u32;
            let text = v.target.proc.read_text("mountinfo").during("reading the list of mounts")?;
            let mounts = Mounts::look(&text);
            let (path, dev) = mounts.point(mnt_id).ok_or_else(|| {
                Error::unsupported(
                    format!("a fanotify mark sits on mount {mnt_id}, which the program does not see"),
                    "close it before the dump",
                )
            })?;
            // CRIU leaves the first slash out.
            let path = path.strip_prefix(b"/").unwrap_or(path).to_vec();
            mark.r#type = MarkType::Mount as i32;
            mark.s_dev = dev;
            mark.me = Some(FanotifyMountMarkEntry { mnt_id, path: Some(path) });
        } else if line.hex("ino").is_some() {
            mark.r#type = MarkType::Inode as i32;
            mark.s_dev = line.need("sdev")? as u32;
            let f_handle = watch::look(std::slice::from_ref(&line), v, out)?.pop().unwrap_or_default();
            mark.ie = Some(FanotifyInodeMarkEntry { i_ino: line.need("ino")?, f_handle });
        } else {
            return Err(Error::unsupported(
                "a fanotify mark on a whole filesystem is not supported (the image format has no place for it)",
                "close it before the dump",
            ));
        }
        ffy.mark.push(mark);
    }
    Ok(FileEntry { ffy: Some(Box::new(ffy)), ..FileEntry::default() })
}

/// Opens groups without marks: those are added when nobody opens files any more.
fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    for e in entries {
        let r = cx.body(e, e.ffy.as_ref())?;
        // The kernel shows these flags for ever, whatever those of the descriptor are later.
        let fd = fanotify_init(r.faflags, r.evflags).during("fanotify_init")?;
        kfd::set_cloexec(fd.as_raw_fd(), true).during("setting close-on-exec")?;
        if r.crust_overflow == Some(true) {
            overflow::make(Queue::Fanotify(r.faflags), fd.as_fd())?;
        }
        cx.settle(&fd, r.flags, &r.fown)?;
        opened.push((e.id, fd));
    }
    Ok(opened)
}

/// Adds the marks.
pub(super) fn mark(fd: BorrowedFd<'_>, record: &FanotifyFileEntry, cx: &mut Opener<'_>) -> Result<()> {
    for m in &record.mark {
        let (target, kind) = match (&m.ie, &m.me) {
            (Some(ie), _) => (watch::open(&ie.f_handle, m.s_dev, ie.i_ino, cx)?, 0),
            (None, Some(me)) => (open_mount(me)?, FAN_MARK_MOUNT),
            (None, None) => return Err(Error::bad_image("files.img", "a fanotify mark on nothing")),
        };
        let flags = FAN_MARK_ADD | kind | m.mflags & MARK_FLAGS;
        if m.mask != 0 {
            fanotify_mark(fd, flags & !0x40, m.mask.into(), target.as_fd()).during("fanotify_mark")?;
        }
        if m.ignored_mask != 0 {
            fanotify_mark(fd, flags | FAN_MARK_IGNORED_MASK, m.ignored_mask.into(), target.as_fd())
                .during("fanotify_mark (what is ignored)")?;
        }
    }
    Ok(())
}

fn open_mount(me: &FanotifyMountMarkEntry) -> Result<OwnedFd> {
    let path = me.path.as_deref().ok_or_else(|| Error::bad_image("files.img", "a mark on a mount without a path"))?;
    let path = [b"/", path].concat();
    rustix::fs::open(path.as_slice(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .during("opening a marked mount point")
        .map_err(|e| e.on(Object::Path(String::from_utf8_lossy(&path).into_owned())))
}

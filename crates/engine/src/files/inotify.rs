//! inotify(7): watches with their numbers. For events that wait to be read see `overflow.rs`.
use super::look::FdView;
use super::overflow::{self, Queue};
use super::restore::Opener;
use super::table::Records;
use super::watch::{self, Line};
use super::{FdKind, alone};
use crate::{Error, Result, ResultExt};
use crust_image::proto::{FdTypes, FileEntry, InotifyFileEntry, InotifyWdEntry};
use crust_kernel::notify::{inotify_next, inotify_watch, inotify_watch_path};
use rustix::fs::FileType;
use rustix::fs::inotify::CreateFlags;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(super) static KIND: FdKind = FdKind {
    name: "inotify",
    fd_type: FdTypes::Inotify,
    recognise: |v| v.link == b"anon_inode:inotify" || v.is_anon("[inotify]"),
    dump,
    group: alone,
    open,
};

/// What inotify_add_watch(2) takes: all events, IN_EXCL_UNLINK and IN_ONESHOT. CRIU's images have bits of the kernel besides.
const MASK: u32 = libc::IN_ALL_EVENTS | libc::IN_EXCL_UNLINK | libc::IN_ONESHOT;

fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let crust_overflow = overflow::look(v, Queue::Inotify, out.opts)?;
    let lines: Vec<Line<'_>> = v.info.lines().filter_map(|l| Line::parse(l, "inotify")).collect();
    let mut wd = Vec::with_capacity(lines.len());
    for (line, f_handle) in lines.iter().zip(watch::look(&lines, v, out)?) {
        wd.push(InotifyWdEntry {
            id,
            i_ino: line.need("ino")?,
            mask: line.need("mask")? as u32,
            ignored_mask: 0,
            s_dev: line.need("sdev")? as u32,
            wd: line.need("wd")? as u32,
            f_handle,
        });
    }
    wd.sort_by_key(|w| w.wd);
    let ify = InotifyFileEntry { id, flags: v.info.flags, fown: v.fown()?, wd, crust_overflow };
    Ok(FileEntry { ify: Some(Box::new(ify)), ..FileEntry::default() })
}

/// Opens instances without watches: those are added when nobody opens, makes or removes files any more.
fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    for e in entries {
        let r = cx.body(e, e.ify.as_ref())?;
        let fd = rustix::fs::inotify::init(CreateFlags::CLOEXEC).during("inotify_init")?;
        if r.crust_overflow == Some(true) {
            overflow::make(Queue::Inotify, fd.as_fd())?;
        }
        cx.settle(&fd, r.flags, &r.fown)?;
        opened.push((e.id, fd));
    }
    Ok(opened)
}

/// A watch on a symbolic link itself stays one.
fn on_link(path: &CStr, ino: u64) -> u32 {
    let is_it = |s: &rustix::fs::Stat| s.st_ino == ino && FileType::from_raw_mode(s.st_mode) == FileType::Symlink;
    if rustix::fs::lstat(path).is_ok_and(|s| is_it(&s)) { libc::IN_DONT_FOLLOW } else { 0 }
}

/// Adds the watches with their numbers.
pub(super) fn watch(fd: BorrowedFd<'_>, record: &InotifyFileEntry, cx: &mut Opener<'_>) -> Result<()> {
    let mut wanted: Vec<&InotifyWdEntry> = record.wd.iter().collect();
    wanted.sort_by_key(|w| w.wd);
    let mut next = 1;
    for w in wanted {
        let number = w.wd as i32;
        if number != next {
            inotify_next(fd, number).during("choosing the number of a watch (INOTIFY_IOC_SETNEXTWD)")?;
        }
        next = number.wrapping_add(1);
        let path = w.f_handle.path.as_ref().and_then(|path| CString::new(path.as_slice()).ok());
        let got = match path {
            Some(path) => inotify_watch_path(fd, &path, w.mask & MASK | on_link(&path, w.i_ino))
                .during("watching a file")
                .map_err(|e| watch::misplaced(e, path.as_bytes()))?,
            None => {
                let target = watch::open(&w.f_handle, w.s_dev, w.i_ino, cx)?;
                inotify_watch(fd, target.as_fd(), w.mask & MASK).during("inotify_add_watch")?
            }
        };
        if got != number {
            return Err(Error::bad_image("files.img", format!("watches {} and {got} are on one file", w.wd)));
        }
    }
    Ok(())
}

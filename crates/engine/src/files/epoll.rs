//! epoll(7): what is watched, by the numbers it was added under. Targets are found again by kcmp(2), closed numbers too.
//!
//! The record tells a target by its number in the table. A target whose number was closed, while a copy of it lives on
//! under another number, is recorded under that other number, as CRIU does.
use super::look::FdView;
use super::restore::Opener;
use super::table::Records;
use super::{FdKind, alone};
use crate::task::Target;
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::{EventpollFileEntry, EventpollTfdEntry, FdTypes, FileEntry};
use crust_kernel::fdinfo::EpollTarget;
use crust_kernel::{TargetFd, kcmp};
use rustix::event::epoll;
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};

pub(super) static KIND: FdKind = FdKind {
    name: "epoll",
    fd_type: FdTypes::Eventpoll,
    recognise: |v| v.is_anon("[eventpoll]"),
    dump,
    group: alone,
    open,
};

fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let mut tfd = Vec::new();
    let mut nth: HashMap<u32, u32> = HashMap::new();
    for target in v.info.lines().filter_map(EpollTarget::parse) {
        let count = nth.entry(target.tfd).or_default();
        let found = find(v, &target, *count)?;
        *count += 1;
        tfd.push(EventpollTfdEntry {
            id: 0,
            tfd: found,
            events: target.events,
            data: target.data,
            dev: Some(target.sdev as u32),
            inode: Some(target.ino),
            pos: Some(target.pos),
        });
    }
    let _: &mut Records<'_> = out;
    let epfd = EventpollFileEntry { id, flags: v.info.flags, fown: v.fown()?, tfd };
    Ok(FileEntry { epfd: Some(Box::new(epfd)), ..FileEntry::default() })
}

/// The number under which the watched file can be reached in the same table.
fn find(v: &FdView<'_>, target: &EpollTarget, nth: u32) -> Result<u32> {
    let t = v.target;
    let is = |fd: u32| kcmp::epoll_target((t.pid, TargetFd(fd)), v.at(), TargetFd(target.tfd), nth);
    match is(target.tfd) {
        Ok(true) => return Ok(target.tfd),
        Ok(false) | Err(Errno::BADF) => {}
        Err(e) => return Err(Error::kernel("finding what an epoll watches (kcmp) failed", e)),
    }
    for fd in t.proc.numbers("fd").during("listing descriptors")? {
        if fd != target.tfd && same_inode(t, fd, target) && is(fd) == Ok(true) {
            return Ok(fd);
        }
    }
    Err(Error::unsupported(
        format!(
            "the epoll watches a file added as fd {}, which the task has closed while others keep it open",
            target.tfd
        ),
        "let the program remove the file from the epoll before it closes it",
    ))
}

/// Cheap look before kcmp is asked.
fn same_inode(t: &Target<'_>, fd: u32, target: &EpollTarget) -> bool {
    t.proc.stat_file(&format!("fd/{fd}")).is_ok_and(|s| s.st_ino == target.ino)
}

/// Opens the empty instance; what it watches is added when the table is in place.
fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    for e in entries {
        let r = cx.body(e, e.epfd.as_ref())?;
        let fd = epoll::create(epoll::CreateFlags::CLOEXEC).during("epoll_create")?;
        cx.settle(&fd, r.flags, &r.fown)?;
        opened.push((e.id, fd));
    }
    Ok(opened)
}

/// Adds what an epoll watched. `at` gives the file now at a number of the finished table.
pub(super) fn watch<'f>(
    epfd: BorrowedFd<'_>,
    record: &EventpollFileEntry,
    at: impl Fn(u32) -> Option<BorrowedFd<'f>>,
) -> Result<()> {
    for t in &record.tfd {
        let on = |e: Error| e.on(Object::Fd(std::process::id() as i32, t.tfd));
        let Some(file) = at(t.tfd) else {
            return Err(on(Error::new(
                Kind::BadImage,
                "an epoll watches this number, but the table has no such descriptor",
            )));
        };
        let flags = epoll::EventFlags::from_bits_retain(t.events);
        match epoll::add(epfd, file, epoll::EventData::new_u64(t.data), flags) {
            Ok(()) => {}
            // Two numbers for one file, one of them closed since: the image names the living one twice.
            Err(Errno::EXIST) => add_twin(epfd, file, t).map_err(on)?,
            Err(e) => return Err(on(Error::kernel("adding a file to an epoll failed", e))),
        }
    }
    Ok(())
}

/// Adds a file under a number of its own that is closed again, as the program had done.
fn add_twin(epfd: BorrowedFd<'_>, file: BorrowedFd<'_>, t: &EventpollTfdEntry) -> Result<()> {
    let twin = file.try_clone_to_owned().during("copying a watched descriptor")?;
    let flags = epoll::EventFlags::from_bits_retain(t.events);
    epoll::add(epfd, &twin, epoll::EventData::new_u64(t.data), flags).during("adding a file to an epoll")
}

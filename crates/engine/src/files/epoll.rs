//! epoll(7): what is watched, by the numbers it was added under. Targets are found again by kcmp(2), closed numbers too.
//!
//! The record tells a target by its number in the table. A target whose number was closed, while a copy of it lives on
//! under another number, is recorded under that other number, as CRIU does.
use super::ghost::kernel_dev;
use super::look::FdView;
use super::restore::Opener;
use super::table::Records;
use super::{FdKind, alone};
use crate::task::Target;
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::{EventpollFileEntry, EventpollTfdEntry, FdTypes, FileEntry};
use crust_kernel::fdinfo::EpollTarget;
use crust_kernel::{HostTid, TargetFd, kcmp};
use rustix::event::epoll;
use rustix::io::Errno;
use std::cmp::Ordering;
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
        let found = find(v, &target, *count, &mut out.watchable)?;
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
    let epfd = EventpollFileEntry { id, flags: v.info.flags, fown: v.fown()?, tfd };
    Ok(FileEntry { epfd: Some(Box::new(epfd)), ..FileEntry::default() })
}

/// The number under which the watched file can be reached in the same table.
fn find(v: &FdView<'_>, target: &EpollTarget, nth: u32, known: &mut Watchable) -> Result<u32> {
    let t = v.target;
    let asking = |e| Error::kernel("finding what an epoll watches (kcmp) failed", e);
    let order = |fd: u32| kcmp::epoll_target((t.pid, TargetFd(fd)), v.at(), TargetFd(target.tfd), nth);
    if known.is_that_socket(t, target) {
        return Ok(target.tfd);
    }
    match order(target.tfd) {
        Ok(Ordering::Equal) => return Ok(target.tfd),
        Ok(_) | Err(Errno::BADF) => {}
        Err(e) => return Err(asking(e)),
    }
    let files = known.of_inode(t, target.ino)?;
    if let Ok(at) = search(files, order).map_err(asking)?
        && let Some(fd) = files.get(at)
    {
        return Ok(*fd);
    }
    Err(Error::unsupported(
        format!(
            "the epoll watches a file added as fd {}, which the task has closed while others keep it open",
            target.tfd
        ),
        "let the program remove the file from the epoll before it closes it",
    ))
}

/// Files of one table that an epoll may watch.
#[derive(Debug, Default)]
pub(super) struct Watchable {
    /// The device of all sockets, in the kernel's own encoding.
    sockets: Option<u64>,
    /// Whose table it is.
    of: Option<HostTid>,
    /// Numbers by inode, looked at when a file is first missed at the number it was added by.
    by_inode: HashMap<u64, Numbers>,
}

#[derive(Debug)]
enum Numbers {
    Any(Vec<u32>),
    /// One for each open file, in the order that kcmp(2) gives them.
    Sorted(Vec<u32>),
}

impl Watchable {
    /// True if the number that a socket was added by still leads to it. A socket has an inode of its own, so that stat tells,
    /// where kcmp would walk through all that the epoll watches.
    fn is_that_socket(&mut self, t: &Target<'_>, target: &EpollTarget) -> bool {
        let device = || {
            let (any, _) = rustix::net::socketpair(
                rustix::net::AddressFamily::UNIX,
                rustix::net::SocketType::DGRAM,
                rustix::net::SocketFlags::CLOEXEC,
                None,
            )?;
            Ok::<_, Errno>(u64::from(kernel_dev(rustix::fs::fstat(any)?.st_dev)))
        };
        let sockets = *self.sockets.get_or_insert_with(|| device().unwrap_or(u64::MAX));
        target.sdev == sockets
            && t.proc
                .stat_file(&format!("fd/{}", target.tfd))
                .is_ok_and(|s| u64::from(kernel_dev(s.st_dev)) == sockets && s.st_ino == target.ino)
    }

    /// The open files of the table with this inode, each by one of its numbers, in the order of kcmp(2).
    fn of_inode(&mut self, t: &Target<'_>, ino: u64) -> Result<&[u32]> {
        if self.of != Some(t.pid) {
            self.of = None;
            self.by_inode.clear();
            for fd in t.proc.numbers("fd").during("listing descriptors")? {
                if let Ok(stat) = t.proc.stat_file(&format!("fd/{fd}"))
                    && let Numbers::Any(all) = self.by_inode.entry(stat.st_ino).or_insert(Numbers::Any(Vec::new()))
                {
                    all.push(fd);
                }
            }
            self.of = Some(t.pid);
        }
        let Some(numbers) = self.by_inode.get_mut(&ino) else { return Ok(&[]) };
        if let Numbers::Any(all) = numbers {
            let mut sorted: Vec<u32> = Vec::new();
            for fd in std::mem::take(all) {
                let order = |other| kcmp::file((t.pid, TargetFd(other)), (t.pid, TargetFd(fd)));
                match search(&sorted, order) {
                    Ok(Err(place)) => sorted.insert(place, fd),
                    // Another number of a file we have, or closed meanwhile by a program that runs.
                    Ok(Ok(_)) | Err(Errno::BADF) => {}
                    Err(e) => return Err(Error::kernel("comparing open files (kcmp) failed", e)),
                }
            }
            *numbers = Numbers::Sorted(sorted);
        }
        match numbers {
            Numbers::Any(all) | Numbers::Sorted(all) => Ok(all),
        }
    }
}

/// Binary search by an order that the kernel tells; where it is not found, its place.
fn search(
    sorted: &[u32],
    mut order: impl FnMut(u32) -> rustix::io::Result<Ordering>,
) -> rustix::io::Result<std::result::Result<usize, usize>> {
    let (mut from, mut to) = (0, sorted.len());
    while let Some(fd) = sorted.get(from..to).and_then(|left| left.get(left.len() / 2)) {
        let middle = from + (to - from) / 2;
        match order(*fd)? {
            Ordering::Equal => return Ok(Ok(middle)),
            Ordering::Less => from = middle + 1,
            Ordering::Greater => to = middle,
        }
    }
    Ok(Err(from))
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

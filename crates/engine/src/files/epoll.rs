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
use crate::{Error, Kind, Object, Result, ResultExt, together};
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
    let mut nth: HashMap<u32, u32> = HashMap::new();
    let all = v.info.lines().filter_map(EpollTarget::parse).map(|target| {
        let count = nth.entry(target.tfd).or_default();
        *count += 1;
        Watched { target, nth: *count - 1, epoll: v.at(), of: v.target }
    });
    let all: Vec<Watched<'_>> = all.collect();
    let sockets = if all.is_empty() { 0 } else { out.watchable.sockets() };
    let there = together::each(all.len(), |i| all.get(i).is_some_and(|watched| watched.is_there(sockets)));
    let mut tfd = Vec::with_capacity(all.len());
    for (watched, there) in all.into_iter().zip(there) {
        let target = watched.target;
        tfd.push(EventpollTfdEntry {
            id: 0,
            tfd: if there { target.tfd } else { watched.find(&mut out.watchable)? },
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

/// A file that an epoll watches.
struct Watched<'t> {
    target: EpollTarget,
    /// Counts files that were added by one number.
    nth: u32,
    epoll: (HostTid, TargetFd),
    of: &'t Target<'t>,
}

impl Watched<'_> {
    /// Orders the file behind a number of the table and this one.
    fn order(&self, fd: u32) -> rustix::io::Result<Ordering> {
        kcmp::epoll_target((self.of.pid, TargetFd(fd)), self.epoll, TargetFd(self.target.tfd), self.nth)
    }

    /// True if the number that the file was added by still leads to it. A socket has an inode of its own, so that stat tells, where
    /// kcmp would walk through all that the epoll watches.
    fn is_there(&self, sockets: u64) -> bool {
        let is_that_socket = || {
            self.of
                .proc
                .stat_file(&format!("fd/{}", self.target.tfd))
                .is_ok_and(|s| u64::from(kernel_dev(s.st_dev)) == sockets && s.st_ino == self.target.ino)
        };
        (self.target.sdev == sockets && is_that_socket()) || self.order(self.target.tfd) == Ok(Ordering::Equal)
    }

    /// Another number under which the file can be reached in the same table.
    fn find(&self, known: &mut Watchable) -> Result<u32> {
        let asking = |e| Error::kernel("finding what an epoll watches (kcmp) failed", e);
        match self.order(self.target.tfd) {
            Ok(_) | Err(Errno::BADF) => {}
            Err(e) => return Err(asking(e)),
        }
        let files = known.of_inode(self.of, self.target.ino)?;
        if let Ok(at) = search(files, |fd| self.order(fd)).map_err(asking)?
            && let Some(fd) = files.get(at)
        {
            return Ok(*fd);
        }
        Err(Error::unsupported(
            format!(
                "the epoll watches a file added as fd {}, which the task has closed while others keep it open",
                self.target.tfd
            ),
            "let the program remove the file from the epoll before it closes it",
        ))
    }
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
    fn sockets(&mut self) -> u64 {
        let device = || {
            let (any, _) = rustix::net::socketpair(
                rustix::net::AddressFamily::UNIX,
                rustix::net::SocketType::DGRAM,
                rustix::net::SocketFlags::CLOEXEC,
                None,
            )?;
            Ok::<_, Errno>(u64::from(kernel_dev(rustix::fs::fstat(any)?.st_dev)))
        };
        *self.sockets.get_or_insert_with(|| device().unwrap_or(u64::MAX))
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

//! POSIX message queues (mq_overview(7)). One with a name belongs to the machine: it stays as it is, with its messages, and
//! is opened again if it is still that one. One without a name is made again, and refused while messages wait in it, for
//! they cannot be read without taking them. CRIU has no record for queues: ours rides on that for files of plugins.
use super::look::FdView;
use super::regular::reopen_for_reading;
use super::restore::{FileImages, Opener};
use super::table::{FileTable, Records};
use super::{FdKind, alone};
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::{CrustMqueue, ExtFileEntry, FdTypes, FileEntry};
use crust_kernel::mqueue::{self, Attributes};
use rustix::fs::{Gid, Mode, SeekFrom, Uid};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

pub(super) static KIND: FdKind =
    FdKind { name: "POSIX message queue", fd_type: FdTypes::Ext, recognise, dump, group, open };

/// What a queue's file is said to be long (`FILENT_SIZE`): asked first, for it costs nothing.
const LENGTH: i64 = 80;

fn recognise(v: &FdView<'_>) -> bool {
    v.file_type() == libc::S_IFREG
        && v.stat.st_size == LENGTH
        && v.stat.st_blocks == 0
        && !v.is_o_path()
        && v.copy()
            .is_ok_and(|fd| rustix::fs::fstatfs(fd).is_ok_and(|s| s.f_type as u64 & 0xffff_ffff == mqueue::MAGIC))
}

/// The queue's name: the last part of its path, which has no slash.
fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').next().unwrap_or_default()
}

fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let fd = v.copy()?;
    let seen = mqueue::attributes(fd).during("asking for a message queue's attributes")?;
    let reader = reopen_for_reading(fd).during("opening a message queue to look at it")?;
    let status = mqueue::status(&reader).during("reading a message queue's file")?;
    if status.notified != 0 {
        out.mqueues.push((status.notified, v.object()));
    }
    let unlinked = v.stat.st_nlink == 0;
    let path = if unlinked { v.link.strip_suffix(b" (deleted)").unwrap_or(&v.link) } else { &v.link };
    let shown = String::from_utf8_lossy(path);
    if unlinked && seen.messages > 0 {
        let what = format!("{} messages wait in the POSIX message queue {shown}, which has no name", seen.messages);
        v.in_flight(out.opts, format!("{what} any more, and they cannot be saved"))?;
    }
    if !unlinked {
        let found = mqueue::open(name_of(path), libc::O_RDONLY as u32, None).and_then(rustix::fs::fstat);
        if !found.is_ok_and(|s| (s.st_dev, s.st_ino) == (v.stat.st_dev, v.stat.st_ino)) {
            return Err(Error::unsupported(
                format!("the POSIX message queue {shown} cannot be found by its name"),
                "does it belong to another IPC namespace? close it before the dump",
            ));
        }
    }
    let number = |n: i64| n.unsigned_abs();
    let queue = CrustMqueue {
        path: path.to_vec(),
        ino: v.stat.st_ino,
        flags: v.info.flags,
        pos: (v.info.pos != 0).then_some(v.info.pos),
        unlinked: unlinked.then_some(true),
        max_messages: number(seen.max_messages),
        message_size: number(seen.message_size),
        messages: if unlinked { 0 } else { number(seen.messages) },
        bytes: if unlinked { 0 } else { status.bytes },
        mode: v.stat.st_mode & 0o7777,
        uid: v.stat.st_uid,
        gid: v.stat.st_gid,
    };
    let ext = ExtFileEntry { id, fown: v.fown()?, crust_mqueue: Some(queue), crust_plugin: None };
    Ok(FileEntry { ext: Some(ext.into()), ..FileEntry::default() })
}

impl FileTable<'_> {
    /// What a process is told with the signal for a message (mq_notify(3)) the kernel does not show.
    pub(super) fn check_mqueues(&mut self) -> Vec<Error> {
        let r = self.records();
        let inside = |(pid, object): &(i32, Object)| {
            r.tasks.contains(pid).then(|| {
                let what = format!("process {pid} waits for a signal of this POSIX message queue (mq_notify)");
                Error::unsupported(
                    format!("{what}, and the kernel does not show with which value"),
                    "let the program take that back (mq_notify without an event) before the dump",
                )
                .on(object.clone())
            })
        };
        std::mem::take(&mut r.mqueues).iter().filter_map(inside).collect()
    }
}

fn group(e: &FileEntry, images: &FileImages) -> Option<u64> {
    match e.ext.as_ref().and_then(|ext| ext.crust_mqueue.as_ref()) {
        Some(queue) => Some(queue.ino),
        None => alone(e, images),
    }
}

/// A queue that is gone or another now, before anything is made.
pub(super) fn check(e: &FileEntry, errors: &mut Vec<Error>) {
    if e.r#type != FdTypes::Ext as i32 {
        return;
    }
    let checked = match e.ext.as_ref().and_then(|ext| ext.crust_mqueue.as_ref()) {
        Some(queue) if queue.unlinked != Some(true) => {
            find(queue, libc::O_RDONLY as u32).map(drop).map_err(|err| err.on(object(queue)))
        }
        Some(_) | None => Ok(()),
    };
    errors.extend(checked.err());
}

fn object(queue: &CrustMqueue) -> Object {
    Object::Path(format!("message queue {}", String::from_utf8_lossy(&queue.path)))
}

fn attributes(queue: &CrustMqueue) -> Attributes {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    Attributes {
        max_messages: number(queue.max_messages),
        message_size: number(queue.message_size),
        messages: number(queue.messages),
    }
}

/// The queue that has the name now, if it can be the one that was dumped; none if there is no such name and none is missed.
fn find(queue: &CrustMqueue, access: u32) -> Result<Option<OwnedFd>> {
    let wanted = attributes(queue);
    let changed = |what: String| Err(Error::new(Kind::TargetChanged, what).help("put the queue back as it was"));
    let fd = match mqueue::open(name_of(&queue.path), access, None) {
        Ok(fd) => fd,
        Err(Errno::NOENT) if wanted.messages == 0 => return Ok(None),
        Err(Errno::NOENT) => {
            return changed(format!("the queue is gone, with the {} messages that waited in it", wanted.messages));
        }
        Err(e) => return Err(Error::kernel("opening a message queue failed", e)),
    };
    let now = mqueue::attributes(&fd).during("asking for a message queue's attributes")?;
    if (now.max_messages, now.message_size) != (wanted.max_messages, wanted.message_size) {
        return changed(format!(
            "the queue took {} messages of {} bytes at the dump, now it takes {} of {}",
            wanted.max_messages, wanted.message_size, now.max_messages, now.message_size
        ));
    }
    let stat = rustix::fs::fstat(&fd).during("fstat")?;
    if stat.st_ino != queue.ino && wanted.messages > 0 {
        return changed(format!("another queue has the name now, and {} messages are gone", wanted.messages));
    }
    if now.messages < wanted.messages {
        return changed(format!(
            "{} messages waited in the queue at the dump, now there are {}",
            wanted.messages, now.messages
        ));
    }
    if now.messages > wanted.messages {
        log::info!("{:?}: {} messages came since the dump", object(queue), now.messages - wanted.messages);
    }
    Ok(Some(fd))
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    let mut lent: Option<LentName> = None;
    for e in entries {
        let ext = cx.body(e, e.ext.as_ref())?;
        let queue = cx.part(e, ext.crust_mqueue.as_ref())?;
        let fd = open_one(queue, &mut lent).map_err(|err| err.on(object(queue)))?;
        if let Some(pos) = queue.pos {
            rustix::fs::seek(&fd, SeekFrom::Start(pos)).during("setting the position")?;
        }
        cx.settle(&fd, queue.flags, &ext.fown)?;
        opened.push((e.id, fd));
    }
    Ok(opened)
}

/// A name that a queue has only while its files are opened.
#[derive(Debug)]
struct LentName {
    name: Vec<u8>,
    _queue: OwnedFd,
}

impl LentName {
    /// Makes a nameless queue again; the name that it had may belong to another by now.
    fn make(queue: &CrustMqueue) -> Result<Self> {
        let own = name_of(&queue.path);
        match make(queue, own, libc::O_RDWR as u32) {
            Err(e) if e.kind() == Kind::Taken => {
                let name = format!("crust-{}-{}", std::process::id(), queue.ino).into_bytes();
                let fd = make(queue, &name, libc::O_RDWR as u32)?;
                Ok(Self { name, _queue: fd })
            }
            made => Ok(Self { name: own.to_vec(), _queue: made? }),
        }
    }
}

impl Drop for LentName {
    fn drop(&mut self) {
        if let Err(e) = mqueue::unlink(&self.name) {
            log::warn!("the message queue {} stays: {e}", String::from_utf8_lossy(&self.name));
        }
    }
}

fn open_one(queue: &CrustMqueue, lent: &mut Option<LentName>) -> Result<OwnedFd> {
    if queue.unlinked == Some(true) {
        let base = match lent.take() {
            Some(base) => base,
            None => LentName::make(queue)?,
        };
        let fd = mqueue::open(&base.name, queue.flags, None).during("opening a message queue");
        *lent = Some(base);
        return fd;
    }
    let found = match find(queue, queue.flags)? {
        Some(fd) => fd,
        None => make(queue, name_of(&queue.path), queue.flags)?,
    };
    if queue.path.iter().filter(|b| **b == b'/').count() < 2 {
        return Ok(found);
    }
    // Opened through a mount of the queues' filesystem.
    let flags = super::regular::open_flags(queue.flags);
    rustix::fs::open(queue.path.as_slice(), flags, Mode::empty()).during("opening a message queue by its path")
}

/// A new queue with this one's mode and owner.
fn make(queue: &CrustMqueue, name: &[u8], access: u32) -> Result<OwnedFd> {
    let fd = mqueue::open(name, access, Some((queue.mode, attributes(queue)))).map_err(|errno| {
        let e = Error::kernel("making a message queue failed", errno);
        match errno {
            Errno::MFILE | Errno::INVAL | Errno::NOSPC => e.help(
                "it must fit into the limits: `ulimit -q`, and msg_max, msgsize_max, queues_max in /proc/sys/fs/mqueue",
            ),
            Errno::EXIST => e.kind_is(Kind::Taken),
            _ => e,
        }
    })?;
    settle(queue, fd.as_fd())?;
    Ok(fd)
}

fn settle(queue: &CrustMqueue, fd: std::os::fd::BorrowedFd<'_>) -> Result<()> {
    let stat = rustix::fs::fstat(fd).during("fstat")?;
    if (stat.st_uid, stat.st_gid) != (queue.uid, queue.gid) {
        let (uid, gid) = (Uid::from_raw(queue.uid), Gid::from_raw(queue.gid));
        rustix::fs::fchown(fd, Some(uid), Some(gid)).during("giving a message queue to its owner")?;
    }
    if stat.st_mode & 0o7777 != queue.mode & 0o7777 {
        rustix::fs::fchmod(fd, Mode::from_bits_retain(queue.mode & 0o7777)).during("setting a message queue's mode")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_last_parts() {
        assert_eq!(name_of(b"/queue"), b"queue");
        assert_eq!(name_of(b"/dev/mqueue/queue"), b"queue");
    }
}

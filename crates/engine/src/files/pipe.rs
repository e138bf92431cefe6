//! pipe(2): content, capacity, ends. Content is copied by tee(2), which consumes nothing.
use super::FdKind;
use super::look::FdView;
use super::restore::{FileImages, Opener};
use super::table::Records;
use crate::{Error, Kind, Result, ResultExt};
use crust_image::proto::{FdTypes, FileEntry, FownEntry, PipeDataEntry, PipeEntry};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(super) static KIND: FdKind = FdKind { name: "pipe", fd_type: FdTypes::Pipe, recognise: is_pipe, dump, group, open };

const ACCESS: u32 = libc::O_ACCMODE as u32;

/// What waits in a pipe, with its capacity: one item, or one per packet (`O_DIRECT`).
pub(super) type Content = Vec<(PipeDataEntry, Vec<u8>)>;

pub(super) fn is_pipe(v: &FdView<'_>) -> bool {
    v.link.starts_with(b"pipe:[")
}

/// The name of the pipe in images.
pub(super) fn id(v: &FdView<'_>) -> u32 {
    v.stat.st_ino as u32
}

/// True for an end that content can be read from.
pub(super) fn can_read(v: &FdView<'_>) -> bool {
    v.info.flags & ACCESS != OFlags::WRONLY.bits() && !v.is_o_path()
}

fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let pipe = PipeEntry { id, pipe_id: self::id(v), flags: v.info.flags, fown: v.fown()? };
    if can_read(v) && out.pipes_seen.insert((v.stat.st_dev, v.stat.st_ino)) {
        out.pipe_data.extend(v.pipe_content(&mut out.scratch)?);
    }
    Ok(FileEntry { pipe: Some(Box::new(pipe)), ..FileEntry::default() })
}

/// The content and capacity of a pipe, taken without consuming anything.
pub(super) fn content(pipe: BorrowedFd<'_>, pipe_id: u32, scratch: &mut Scratch) -> Result<Content> {
    let size = rustix::pipe::fcntl_getpipe_size(pipe).during("asking for a pipe's capacity")?;
    let waiting = rustix::io::ioctl_fionread(pipe).during("asking how much waits in a pipe")?;
    let entry = |bytes: &[u8]| PipeDataEntry { pipe_id, bytes: bytes.len() as u32, size: Some(size as u32) };
    if waiting == 0 {
        return Ok(vec![(entry(&[]), Vec::new())]);
    }
    let (read_end, write_end) = scratch.take(size)?;
    let copied = match rustix::pipe::tee(pipe, &write_end, size.max(waiting as usize), SpliceFlags::NONBLOCK) {
        Ok(n) => n as u64,
        Err(Errno::AGAIN) => 0,
        Err(e) => return Err(Error::kernel("copying a pipe's content (tee) failed", e)),
    };
    // Packets show as reads that end early: the scratch pipe carries their marks.
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let mut left = copied;
    while left > 0 {
        let mut piece = vec![0; left as usize];
        let n = rustix::io::read(&read_end, &mut piece).during("reading a copied pipe")?;
        if n == 0 {
            return Err(Error::new(Kind::Internal, "a copied pipe ended early"));
        }
        piece.truncate(n);
        left -= n as u64;
        pieces.push(piece);
    }
    scratch.0 = Some((read_end, write_end, size));
    if copied != waiting {
        return Err(Error::unsupported(
            format!("a pipe holds {waiting} bytes, but only {copied} can be copied without consuming them"),
            "raise /proc/sys/fs/pipe-max-size and the pipe limits of our user",
        ));
    }
    Ok(pieces.into_iter().map(|p| (entry(&p), p)).collect())
}

/// A pipe of ours that content is copied into, empty, with its capacity.
#[derive(Debug, Default)]
pub(super) struct Scratch(Option<(OwnedFd, OwnedFd, usize)>);

impl Scratch {
    /// One with at least `size` bytes of room.
    fn take(&mut self, size: usize) -> Result<(OwnedFd, OwnedFd)> {
        if let Some((r, w, have)) = self.0.take()
            && have == size
        {
            return Ok((r, w));
        }
        let (r, w) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).during("making a pipe")?;
        if rustix::pipe::fcntl_getpipe_size(&w).during("asking for a pipe's capacity")? < size {
            rustix::pipe::fcntl_setpipe_size(&w, size).during("making a pipe as large as the target's")?;
        }
        Ok((r, w))
    }
}

fn group(e: &FileEntry, _: &FileImages) -> Option<u64> {
    e.pipe.as_ref().map(|p| u64::from(p.pipe_id))
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut ends = Vec::new();
    for e in entries {
        let r = cx.body(e, e.pipe.as_ref())?;
        ends.push((e.id, r.flags, r.fown));
    }
    let pipe_id = entries.first().and_then(|e| e.pipe.as_ref()).map_or(0, |p| p.pipe_id);
    if let Some(given) = cx.inherited(&format!("pipe:[{pipe_id}]"))? {
        let mut opened = Vec::new();
        for (id, flags, _) in ends {
            let fd = match cx.reopen(&given, flags) {
                Ok(fd) => fd,
                // A socket stands for the pipe: it cannot be opened again, so both sides share it.
                Err(_) => given.try_clone().during("copying an inherited descriptor")?,
            };
            opened.push((id, fd));
        }
        return Ok(opened);
    }
    let (r, w) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).during("pipe")?;
    if let Some(data) = cx.images.pipe_data.get(&pipe_id) {
        fill(&w, data)?;
    }
    make_ends(r, w, &ends, cx)
}

/// What an image says about the inside of a pipe.
#[derive(Debug, Default)]
pub(super) struct PipeContent {
    pub(super) size: Option<u32>,
    pub(super) pieces: Vec<Vec<u8>>,
}

/// Sets the capacity and writes the content.
pub(super) fn fill(w: &OwnedFd, data: &PipeContent) -> Result<()> {
    let mut room = 0;
    if data.size.is_some() {
        room = rustix::pipe::fcntl_getpipe_size(w).during("asking for a pipe's capacity")?;
    }
    if let Some(size) = data.size.filter(|&size| size as usize != room) {
        room = size as usize;
        rustix::pipe::fcntl_setpipe_size(w, size as usize)
            .during("setting a pipe's capacity")
            .map_err(|e| e.help("raise /proc/sys/fs/pipe-max-size"))?;
    }
    match data.pieces.as_slice() {
        [] => return Ok(()),
        // One write into an empty pipe that has the room never waits.
        [all] if all.len() <= room => {
            let n = rustix::io::retry_on_intr(|| rustix::io::write(w, all)).during("filling a pipe")?;
            return if n == all.len() {
                Ok(())
            } else {
                Err(Error::new(Kind::Internal, "a pipe took less than it has room for"))
            };
        }
        _ => {}
    }
    let old = rustix::fs::fcntl_getfl(w).during("asking for a pipe's flags")?;
    let packets = if data.pieces.len() > 1 { OFlags::DIRECT } else { OFlags::empty() };
    // Never wait: what does not fit is an error.
    rustix::fs::fcntl_setfl(w, old | OFlags::NONBLOCK | packets).during("setting a pipe's flags")?;
    for piece in &data.pieces {
        let mut rest = &piece[..];
        while !rest.is_empty() {
            match rustix::io::write(w, rest) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    return Err(Error::bad_image("pipes-data.img", "more content than fits into the pipe"));
                }
                Err(e) => return Err(Error::kernel("filling a pipe failed", e)),
            }
        }
    }
    rustix::fs::fcntl_setfl(w, old).during("setting a pipe's flags")
}

/// Gives each entry its open file: the first reader and writer those of pipe(2), others are opened again.
fn make_ends(r: OwnedFd, w: OwnedFd, ends: &[(u32, u32, FownEntry)], cx: &Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    const LARGEFILE: u32 = 0o100_000; // set by open(2), never by pipe(2): such an end was opened through /proc
    let (mut r, mut w) = (Some(r), Some(w));
    let mut opened = Vec::new();
    let source = |r: &Option<OwnedFd>, w: &Option<OwnedFd>, opened: &[(u32, OwnedFd)]| -> Option<std::os::fd::RawFd> {
        use std::os::fd::AsRawFd;
        r.as_ref().or(w.as_ref()).or(opened.first().map(|(_, fd)| fd)).map(AsRawFd::as_raw_fd)
    };
    // Ends that must be reopened come first, while an end of pipe(2) is still there to open them through.
    let mut order: Vec<_> = ends.iter().collect();
    order.sort_by_key(|(_, flags, _)| flags & LARGEFILE == 0 && flags & ACCESS != libc::O_RDWR as u32);
    for (id, flags, fown) in order {
        let through_proc = flags & LARGEFILE != 0 || flags & OFlags::PATH.bits() != 0;
        let taken = match flags & ACCESS {
            _ if through_proc => None,
            x if x == libc::O_RDONLY as u32 => r.take(),
            x if x == libc::O_WRONLY as u32 => w.take(),
            _ => None,
        };
        let known = taken.is_some();
        let fd = match taken {
            Some(fd) => fd,
            None => {
                let from =
                    source(&r, &w, &opened).ok_or_else(|| Error::new(Kind::Internal, "a pipe lost both ends"))?;
                cx.reopen_number(from, flags | OFlags::NONBLOCK.bits()).map_err(|e| e.help("mount /proc"))?
            }
        };
        if known && !through_proc {
            // As pipe(2) makes them.
            let have = OFlags::from_bits_retain(flags & ACCESS);
            cx.settle_from(fd.as_fd(), have, *flags, fown)?;
        } else {
            cx.settle(fd.as_fd(), *flags, fown)?;
        }
        opened.push((*id, fd));
    }
    Ok(opened)
}

//! Files without a name: deleted ones travel inside the images, those that still have another name get a link.
use super::regular::{self, Seen};
use super::restore::Opener;
use super::table::{Records, send_range};
use crate::images::{Partial, Source};
use crate::{Error, Kind, Object, Options, Result, ResultExt};
use crust_image::proto::{GhostChunkEntry, GhostFileEntry, RegFileEntry, RemapFilePathEntry, RemapType, Timeval};
use crust_image::{ImageKind, Reader, Writer};
use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom, Timespec, Timestamps};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// From this size on CRIU stores only the filled pieces.
const CHUNKS_FROM: u64 = 3 << 20;

/// A deleted file to be written into the images.
#[derive(Debug)]
pub(super) struct Ghost {
    id: u32,
    entry: GhostFileEntry,
    /// Opened for reading on its own; `None` for what has no content.
    content: Option<OwnedFd>,
    size: u64,
}

/// Takes note of a deleted file. Descriptors of one inode share its content.
pub(super) fn dump(seen: &Seen<'_>, orig_id: u32, name: &[u8], out: &mut Records<'_>) -> Result<()> {
    let stat = seen.stat;
    let shown = String::from_utf8_lossy(name).into_owned();
    let inode = (stat.st_dev, stat.st_ino);
    let id = match out.ghost_of.get(&inode).copied() {
        Some(id) => id,
        None => {
            let used = (stat.st_blocks as u64).saturating_mul(512);
            let limit = out.opts.ghost_limit.unwrap_or(Options::DEFAULT_GHOST_LIMIT);
            if used > limit {
                return Err(Error::unsupported(
                    format!("the deleted file {shown} takes {used} bytes, more than the limit of {limit}"),
                    format!("pass `--ghost-limit {used}` or more"),
                ));
            }
            let id = out.ghosts.len() as u32 + 1;
            let ghost = look(seen, id, &shown)?;
            out.ghosts.push(ghost);
            out.ghost_of.insert(inode, id);
            id
        }
    };
    out.remaps.push(RemapFilePathEntry { orig_id, remap_id: id, remap_type: Some(RemapType::Ghost as i32) });
    Ok(())
}

fn look(seen: &Seen<'_>, id: u32, shown: &str) -> Result<Ghost> {
    let stat = seen.stat;
    let time = |sec: i64, nsec: u64| Timeval { tv_sec: sec as u64, tv_usec: nsec / 1000 };
    let mut entry = GhostFileEntry {
        uid: stat.st_uid,
        gid: stat.st_gid,
        mode: stat.st_mode,
        dev: Some(kernel_dev(stat.st_dev)),
        ino: Some(stat.st_ino),
        atim: Some(time(stat.st_atime, stat.st_atime_nsec)),
        mtim: Some(time(stat.st_mtime, stat.st_mtime_nsec)),
        ..GhostFileEntry::default()
    };
    let size = stat.st_size as u64;
    let mut content = None;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => {
            let fd = regular::reopen_for_reading(seen.fd).during("opening a deleted file to read it")?;
            content = Some(fd);
            if size >= CHUNKS_FROM {
                entry.chunks = Some(true);
                entry.size = Some(size);
            }
        }
        libc::S_IFCHR | libc::S_IFBLK => entry.rdev = Some(stat.st_rdev as u32),
        libc::S_IFDIR | libc::S_IFIFO => {}
        libc::S_IFLNK => {
            let target = rustix::fs::readlinkat(seen.fd, "", Vec::new()).during("reading a deleted link")?;
            entry.symlnk_target = Some(target.into_bytes());
        }
        _ => {
            return Err(Error::unsupported(
                format!("the deleted file {shown} is of a kind that cannot be made again"),
                "close it before the dump",
            ));
        }
    }
    Ok(Ghost { id, entry, content, size })
}

/// The kernel's 32-bit form of a device number for programs, which records of terminals use.
pub(super) fn encode_dev(dev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The kernel's own form of a device number, which fdinfo shows and records of ghosts and watches use.
pub(super) fn kernel_dev(dev: u64) -> u32 {
    rustix::fs::major(dev) << 20 | rustix::fs::minor(dev)
}

impl Ghost {
    /// True for the ghost of this inode.
    pub(super) fn is(&self, dev: u32, ino: u64) -> bool {
        self.entry.dev == Some(dev) && self.entry.ino == Some(ino)
    }

    /// Writes ghost-file-N.img.
    pub(super) fn write(&self, out: &Partial) -> Result<()> {
        let name = ImageKind::GhostFile.file_name(u64::from(self.id));
        let on = |e: Error| e.on(Object::Image(name.clone()));
        let mut head = Writer::new(Vec::new(), ImageKind::GhostFile)?;
        head.entry(&self.entry)?;
        let head = head.into_inner();
        // Content with what goes before each part: all of it, or chunk by chunk.
        let mut parts = Vec::new();
        match &self.content {
            None => {}
            Some(content) if self.entry.chunks == Some(true) => {
                for chunk in self.chunks(content) {
                    parts.push((content, prost_record(&chunk)?, chunk.off, chunk.len));
                }
            }
            Some(content) => parts.push((content, Vec::new(), 0, self.size)),
        }
        let mut file = out.outlet(&name)?;
        file.expect(head.len() as u64 + parts.iter().map(|p| p.1.len() as u64 + p.3).sum::<u64>())?;
        file.write(&head)?;
        for (content, record, from, len) in &parts {
            file.write(record)?;
            send_range(content, *from, *len, &mut file).map_err(on)?;
        }
        out.close(file)
    }

    /// Where the file has data.
    fn chunks(&self, content: &OwnedFd) -> Vec<GhostChunkEntry> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < self.size {
            let off = match rustix::fs::seek(content, SeekFrom::Data(at)) {
                Ok(off) => off,
                Err(Errno::NXIO) => break, // a hole up to the end
                Err(_) => at,              // no holes on this filesystem
            };
            let end = rustix::fs::seek(content, SeekFrom::Hole(off)).unwrap_or(self.size).min(self.size);
            if end <= off {
                break;
            }
            found.push(GhostChunkEntry { len: end - off, off });
            at = end;
        }
        found
    }
}

/// One record with its length, no magic before it.
fn prost_record(chunk: &GhostChunkEntry) -> Result<Vec<u8>> {
    let mut w = Writer::new(Vec::new(), ImageKind::GhostFile)?;
    let magic = w.len() as usize;
    w.entry(chunk)?;
    Ok(w.into_inner().split_off(magic))
}

/// A file whose name is gone while others lead to it: give it a name of ours beside the old one.
pub(super) fn dump_linked(seen: &Seen<'_>, orig_id: u32, name: &[u8], out: &mut Records<'_>) -> Result<()> {
    let shown = String::from_utf8_lossy(name).into_owned();
    if !out.opts.link_remap {
        return Err(Error::unsupported(
            format!("the name {shown} is gone, but the file lives on under another name"),
            "pass `--link-remap` to let the dump make a link beside the old name",
        ));
    }
    let dir_end = name.iter().rposition(|b| *b == b'/').map_or(0, |p| p + 1);
    let remap_id = out.new_id();
    let mut path = name.get(..dir_end).unwrap_or_default().to_vec();
    path.extend_from_slice(format!("link_remap.{remap_id}").as_bytes());
    let source = format!("/proc/self/fd/{}", seen.fd.as_raw_fd());
    let Some(root) = &out.root else { return Err(Error::new(Kind::Internal, "no root directory")) };
    let relative = path.strip_prefix(b"/").unwrap_or(&path);
    rustix::fs::linkat(rustix::fs::CWD, source.as_str(), root, relative, AtFlags::SYMLINK_FOLLOW)
        .during("making a link to a file without a name")
        .map_err(|e| e.on(Object::Path(String::from_utf8_lossy(&path).into_owned())))?;
    out.links_made.push(path.clone());
    let reg = RegFileEntry { id: remap_id, name: path, mode: Some(seen.stat.st_mode), ..RegFileEntry::default() };
    out.files.push(crust_image::proto::FileEntry {
        r#type: crust_image::proto::FdTypes::Reg as i32,
        id: remap_id,
        reg: Some(reg),
        ..Default::default()
    });
    out.remaps.push(RemapFilePathEntry { orig_id, remap_id, remap_type: Some(RemapType::Linked as i32) });
    Ok(())
}

/// A ghost that was made again and is kept for further openers.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) fd: OwnedFd,
}

/// Opens files of ghosts: all of one content share one new inode, whose name is gone when this returns.
pub(super) fn open<'e>(regs: &[&'e RegFileEntry], cx: &mut Opener<'_>) -> Result<Vec<(&'e RegFileEntry, OwnedFd)>> {
    let mut opened = Vec::new();
    for reg in regs {
        let Some(id) = cx.images.ghost_of(reg.id) else { continue };
        if !cx.state.ghosts.contains_key(&id) {
            let made = make(id, reg, cx)?;
            // The file made by O_TMPFILE is itself the open file, with its flags.
            if let Some(fd) = made.1 {
                cx.state.ghosts.insert(id, made.0);
                opened.push((*reg, fd));
                continue;
            }
            cx.state.ghosts.insert(id, made.0);
        }
        let base = cx.state.ghosts.get(&id).map(|m| m.fd.as_raw_fd()).unwrap_or(-1);
        let mut flags = reg.flags;
        if regular::is_tmpfile(flags) {
            flags &= !(libc::O_DIRECTORY as u32);
        }
        let fd = cx.reopen_number(base, flags).map_err(|e| e.on(regular::path_object(reg)))?;
        opened.push((*reg, fd));
    }
    Ok(opened)
}

/// Makes the inode with its content. Second: the open file of `reg` itself, where making it had to give its flags.
fn make(id: u32, reg: &RegFileEntry, cx: &mut Opener<'_>) -> Result<(Made, Option<OwnedFd>)> {
    let image = ImageKind::GhostFile.file_name(u64::from(id));
    let on = |e: Error| e.on(regular::path_object(reg));
    let bytes = cx.source.read(&image)?.ok_or_else(|| Error::bad_image(&image, "the image is missing"))?;
    let mut reader = Reader::open_named(&image, &bytes, ImageKind::GhostFile)?;
    let entry: GhostFileEntry = reader.expect()?;
    let mode = Mode::from_bits_retain(entry.mode & 0o7777);
    let path = &reg.name;
    let dir_end = path.iter().rposition(|b| *b == b'/').map_or(0, |p| p + 1);
    let dir = path.get(..dir_end).filter(|d| !d.is_empty()).unwrap_or(b".");
    if regular::is_tmpfile(reg.flags) {
        let flags = regular::open_flags(reg.flags) | OFlags::TMPFILE;
        match rustix::fs::open(dir, flags, mode) {
            Ok(fd) => {
                let base = regular_base(&fd, cx).map_err(on)?;
                fill(&base, &entry, &mut reader, cx.source).map_err(on)?;
                return Ok((Made { fd: base }, Some(fd)));
            }
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {} // this filesystem has no such files: by name
            Err(e) => return Err(on(Error::kernel("making a nameless file failed", e))),
        }
    }
    // The old name if it is free, else one beside it; gone again in an instant either way.
    let mut names = vec![path.clone()];
    for n in 0..16 {
        names.push([path.as_slice(), format!(".cr.{:x}.{n}.ghost", id).as_bytes()].concat());
    }
    for name in &names {
        let made = match entry.mode & libc::S_IFMT {
            libc::S_IFREG => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::open(name, flags, Mode::RUSR | Mode::WUSR).map(Some)
            }
            libc::S_IFDIR => rustix::fs::mkdir(name, mode).map(|()| None),
            libc::S_IFLNK => {
                let target = entry.symlnk_target.clone().unwrap_or_default();
                rustix::fs::symlink(target, name).map(|()| None)
            }
            kind @ (libc::S_IFIFO | libc::S_IFCHR | libc::S_IFBLK) => {
                let kind = rustix::fs::FileType::from_raw_mode(kind);
                let rdev = u64::from(entry.rdev.unwrap_or(0));
                rustix::fs::mknodat(rustix::fs::CWD, name, kind, mode, rdev).map(|()| None)
            }
            other => return Err(Error::bad_image(&image, format!("a deleted file of mode {other:o}"))),
        };
        let fd = match made {
            Ok(fd) => fd,
            Err(Errno::EXIST) => continue,
            Err(e) => {
                return Err(on(Error::kernel("making a deleted file again failed", e)
                    .help("the directory it was in must exist and be writable")));
            }
        };
        let result = (|| {
            let base = match fd {
                Some(fd) => fd,
                None => {
                    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    rustix::fs::open(name, flags, Mode::empty()).during("opening a file just made")?
                }
            };
            fill(&base, &entry, &mut reader, cx.source)?;
            cx.hold(base)
        })();
        let flags = if entry.mode & libc::S_IFMT == libc::S_IFDIR { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(rustix::fs::CWD, name, flags).during("removing the name of a deleted file").map_err(on)?;
        return Ok((Made { fd: result.map_err(on)? }, None));
    }
    Err(on(Error::new(Kind::Taken, "no free name is left for a deleted file")))
}

/// A descriptor with full access to a file just made by `O_TMPFILE`, kept out of the way.
fn regular_base(fd: &OwnedFd, cx: &Opener<'_>) -> Result<OwnedFd> {
    let base = cx.reopen_number(fd.as_raw_fd(), OFlags::RDWR.bits())?;
    cx.hold(base)
}

/// Content, owner, mode and times.
fn fill(base: &OwnedFd, entry: &GhostFileEntry, reader: &mut Reader<'_>, _: &Source) -> Result<()> {
    let is_file = entry.mode & libc::S_IFMT == libc::S_IFREG;
    if is_file && entry.chunks == Some(true) {
        let size = entry.size.unwrap_or(0);
        rustix::fs::ftruncate(base, size).during("sizing a deleted file")?;
        while let Some(chunk) = reader.next::<GhostChunkEntry>()? {
            let bytes = reader.extra(chunk.len)?;
            write_at(base, bytes, chunk.off)?;
        }
    } else if is_file {
        write_at(base, reader.rest(), 0)?;
    }
    let (uid, gid) = (rustix::fs::Uid::from_raw(entry.uid), rustix::fs::Gid::from_raw(entry.gid));
    let stat = rustix::fs::fstat(base).during("fstat")?;
    if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
        rustix::fs::chownat(base, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)
            .during("giving a deleted file to its owner")?;
    }
    if is_file {
        rustix::fs::fchmod(base, Mode::from_bits_retain(entry.mode & 0o7777))
            .during("setting a deleted file's mode")?;
        let spec = |t: Option<Timeval>| {
            let t = t.unwrap_or_default();
            Timespec { tv_sec: t.tv_sec as i64, tv_nsec: (t.tv_usec * 1000) as _ }
        };
        if entry.atim.is_some() && entry.mtim.is_some() {
            let times = Timestamps { last_access: spec(entry.atim), last_modification: spec(entry.mtim) };
            rustix::fs::futimens(base, &times).during("setting a deleted file's times")?;
        }
    }
    Ok(())
}

fn write_at(fd: &OwnedFd, mut bytes: &[u8], mut at: u64) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(fd, bytes, at) {
            Ok(0) => return Err(Error::new(Kind::Kernel, "writing a deleted file made no progress")),
            Ok(n) => {
                at += n as u64;
                bytes = bytes.get(n..).unwrap_or_default();
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(Error::kernel("writing a deleted file failed", e)),
        }
    }
    Ok(())
}

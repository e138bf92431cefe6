//! Files without a name: deleted ones travel inside the images, those that still have another name get a link.
use super::memfd;
use super::regular::{self, Seen};
use super::restore::Opener;
use super::table::{Records, send_range};
use crate::images::Partial;
use crate::{Error, Kind, Object, Options, Result, ResultExt};
use crust_image::proto::{
    CrustXattr, GhostChunkEntry, GhostFileEntry, RegFileEntry, RemapFilePathEntry, RemapType, Timeval,
};
use crust_image::{ImageKind, Reader, Writer};
use crust_kernel::{Backoff, Deadline};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, SeekFrom, Timespec, Timestamps};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

/// From this size on CRIU stores only the filled pieces. It reads smaller files so, too.
const CHUNKS_FROM: u64 = 3 * 4096;

/// A deleted file to be written into the images.
#[derive(Debug)]
pub(super) struct Ghost {
    id: u32,
    entry: GhostFileEntry,
    /// `None` for what has no content.
    content: Option<Content>,
    size: u64,
}

/// Where a deleted file is read from.
#[derive(Debug)]
struct Content {
    fd: OwnedFd,
    /// Opened by us; else it is the program's own open file, whose position must stay where it is.
    own: bool,
}

/// Takes note of a deleted file. Descriptors of one inode share its content.
pub(super) fn dump(seen: &Seen<'_>, orig_id: u32, name: &[u8], out: &mut Records<'_>) -> Result<()> {
    let stat = seen.stat;
    let shown = String::from_utf8_lossy(name).into_owned();
    memfd::refuse_foreign(&shown, stat)?;
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
    if stat.st_mode & libc::S_IFMT != libc::S_IFLNK {
        entry.crust_xattrs = xattrs(seen.fd()?)?;
    }
    let mut content = None;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => {
            let readable = seen.flags & (libc::O_ACCMODE | libc::O_PATH) as u32 != libc::O_WRONLY as u32
                && seen.flags & libc::O_PATH as u32 == 0;
            content = Some(match regular::reopen_for_reading(seen.fd()?) {
                Ok(fd) => Content { fd, own: true },
                // Its lease would be broken.
                Err(Errno::AGAIN) if readable => {
                    let fd = seen.fd()?.try_clone_to_owned().during("copying a descriptor")?;
                    Content { fd, own: false }
                }
                Err(Errno::AGAIN) => {
                    return Err(Error::unsupported(
                        format!("the deleted file {shown} has a lease, which reading it would break"),
                        "let the program give up the lease (F_SETLEASE, F_UNLCK), or open the file for reading too",
                    ));
                }
                Err(e) => return Err(Error::kernel("opening a deleted file to read it failed", e)),
            });
            let has_holes = (stat.st_blocks as u64).saturating_mul(512) < size;
            if size >= CHUNKS_FROM || has_holes {
                entry.chunks = Some(true);
                entry.size = Some(size);
            }
        }
        libc::S_IFCHR | libc::S_IFBLK => entry.rdev = Some(stat.st_rdev as u32),
        libc::S_IFDIR | libc::S_IFIFO => {}
        libc::S_IFLNK => {
            let target = rustix::fs::readlinkat(seen.fd()?, "", Vec::new()).during("reading a deleted link")?;
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

    /// What tells a file with content from all others of its filesystem.
    pub(super) fn file_id(&self) -> Option<(i32, Vec<u8>)> {
        crust_kernel::notify::file_id(self.content.as_ref()?.fd.as_fd(), c"").ok()
    }

    /// Watches find it by these numbers.
    pub(super) fn is_known_as(&mut self, dev: u32, ino: u64) {
        (self.entry.dev, self.entry.ino) = (Some(dev), Some(ino));
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
                let chunks = if content.own { self.chunks(&content.fd) } else { self.chunks_by_content(&content.fd)? };
                for chunk in chunks {
                    parts.push((&content.fd, prost_record(&chunk)?, chunk.off, chunk.len));
                }
            }
            Some(content) => parts.push((&content.fd, Vec::new(), 0, self.size)),
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

    /// Where the file has anything but zeros: its position is not touched.
    fn chunks_by_content(&self, content: &OwnedFd) -> Result<Vec<GhostChunkEntry>> {
        let mut found: Vec<GhostChunkEntry> = Vec::new();
        let mut block = vec![0; 1 << 16];
        let mut at = 0;
        while at < self.size {
            let n = rustix::io::pread(content, &mut block[..], at).during("reading a deleted file")?;
            if n == 0 {
                break;
            }
            for (i, part) in block.get(..n).unwrap_or_default().chunks(4096).enumerate() {
                let (off, len) = (at + 4096 * i as u64, part.len() as u64);
                match found.last_mut() {
                    _ if part.iter().all(|b| *b == 0) => {}
                    Some(last) if last.off + last.len == off => last.len += len,
                    _ => found.push(GhostChunkEntry { len, off }),
                }
            }
            at += n as u64;
        }
        Ok(found)
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
    let source = format!("/proc/self/fd/{}", seen.fd()?.as_raw_fd());
    let (remap_id, path) = loop {
        let remap_id = out.new_id();
        let mut path = name.get(..dir_end).unwrap_or_default().to_vec();
        path.extend_from_slice(format!("link_remap.{remap_id}").as_bytes());
        let Some(root) = &out.root else { return Err(Error::new(Kind::Internal, "no root directory")) };
        let relative = path.strip_prefix(b"/").unwrap_or(&path);
        match rustix::fs::linkat(rustix::fs::CWD, source.as_str(), root, relative, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => break (remap_id, path),
            // Another checkpoint's name: its images need it.
            Err(Errno::EXIST) => {}
            Err(e) => {
                return Err(Error::kernel("making a link to a file without a name failed", e)
                    .on(Object::Path(String::from_utf8_lossy(&path).into_owned())));
            }
        }
    };
    out.links_made.push(path.clone());
    let reg = RegFileEntry { id: remap_id, name: path, mode: Some(seen.stat.st_mode), ..RegFileEntry::default() };
    out.files.push(crust_image::proto::FileEntry {
        r#type: crust_image::proto::FdTypes::Reg as i32,
        id: remap_id,
        reg: Some(Box::new(reg)),
        ..Default::default()
    });
    out.remaps.push(RemapFilePathEntry { orig_id, remap_id, remap_type: Some(RemapType::Linked as i32) });
    Ok(())
}

/// Opens a file by the name that the dump gave it, so that /proc shows the name it had.
pub(super) fn open_linked(path: &[u8], name: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    if rustix::fs::link(path, name).is_err() {
        // Another file has the name by now, or its directory is gone.
        return rustix::fs::open(path, flags, Mode::empty());
    }
    let opened = rustix::fs::open(name, flags, Mode::empty());
    if let Err(e) = rustix::fs::unlink(name) {
        log::warn!("the name {} stays: {e}", String::from_utf8_lossy(name));
    }
    opened
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
        let (base, own) = base(reg, cx)?;
        // The file made by O_TMPFILE is itself the open file, with its flags.
        if let Some(fd) = own {
            opened.push((*reg, fd));
            continue;
        }
        let mut flags = reg.flags;
        if regular::is_tmpfile(flags) {
            flags &= !(libc::O_DIRECTORY as u32);
        }
        let fd = cx.reopen_number(base, flags).map_err(|e| e.on(regular::path_object(reg)))?;
        opened.push((*reg, fd));
    }
    Ok(opened)
}

/// The number of a descriptor for the ghost of `reg`, made if it is not there yet. Second: the open file of `reg` itself,
/// where making the ghost had to give its flags.
pub(super) fn base(reg: &RegFileEntry, cx: &mut Opener<'_>) -> Result<(RawFd, Option<OwnedFd>)> {
    let Some(id) = cx.images.ghost_of(reg.id) else {
        return Err(Error::new(Kind::Internal, "not the record of a deleted file").on(regular::path_object(reg)));
    };
    if let Some(made) = cx.state.ghosts.get(&id) {
        return Ok((made.fd.as_raw_fd(), None));
    }
    let (made, own) = make(id, reg, cx)?;
    let number = made.fd.as_raw_fd();
    cx.state.ghosts.insert(id, made);
    Ok((number, own))
}

/// Makes the inode with its content. Second: the open file of `reg` itself, where making it had to give its flags.
fn make(id: u32, reg: &RegFileEntry, cx: &mut Opener<'_>) -> Result<(Made, Option<OwnedFd>)> {
    let image = ImageKind::GhostFile.file_name(u64::from(id));
    let on = |e: Error| e.on(regular::path_object(reg));
    let bytes = cx.source.read(&image)?.ok_or_else(|| Error::bad_image(&image, "the image is missing"))?;
    let mut reader = Reader::open_named(&image, &bytes, ImageKind::GhostFile)?;
    let entry: GhostFileEntry = reader.expect()?;
    let (base, own) = make_empty(id, reg, &image, &entry, cx).map_err(on)?;
    fill(&base, &entry, &mut reader).map_err(on)?;
    // What is kept must not count as an opener: a lease may have to be taken on the file.
    if entry.mode & libc::S_IFMT != libc::S_IFREG {
        return Ok((Made { fd: base }, own));
    }
    let path = format!("/proc/self/fd/{}", base.as_raw_fd());
    let kept =
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).during("keeping a deleted file")?;
    Ok((Made { fd: cx.hold(kept)? }, own))
}

/// The inode, without a name and without content.
fn make_empty(
    id: u32,
    reg: &RegFileEntry,
    image: &str,
    entry: &GhostFileEntry,
    cx: &mut Opener<'_>,
) -> Result<(OwnedFd, Option<OwnedFd>)> {
    let mode = Mode::from_bits_retain(entry.mode & 0o7777);
    let path = &reg.name;
    let dir_end = path.iter().rposition(|b| *b == b'/').map_or(0, |p| p + 1);
    let dir = path.get(..dir_end).filter(|d| !d.is_empty()).unwrap_or(b".");
    let _parents = Parents::ensure(dir, cx)?;
    if regular::is_tmpfile(reg.flags) {
        let flags = regular::open_flags(reg.flags) | OFlags::TMPFILE;
        match rustix::fs::open(dir, flags, mode) {
            Ok(fd) => {
                let base = regular_base(&fd, cx)?;
                return Ok((base, Some(fd)));
            }
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {} // this filesystem has no such files: by name
            Err(e) => return Err(Error::kernel("making a nameless file failed", e)),
        }
    }
    // The old name if it is free, else one beside it; gone again in an instant either way.
    let mut names = vec![path.clone()];
    for n in 0..16 {
        names.push([path.as_slice(), format!(".cr.{id:x}.{n}.ghost").as_bytes()].concat());
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
            other => return Err(Error::bad_image(image, format!("a deleted file of mode {other:o}"))),
        };
        let fd = match made {
            Ok(fd) => fd,
            Err(Errno::EXIST) => continue,
            Err(e) => {
                return Err(Error::kernel("making a deleted file again failed", e)
                    .help("the directory it was in must be writable"));
            }
        };
        let base = match fd {
            Some(fd) => Ok(fd),
            None => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::open(name, flags, Mode::empty()).during("opening a file just made")
            }
        };
        let flags = if entry.mode & libc::S_IFMT == libc::S_IFDIR { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(rustix::fs::CWD, name, flags).during("removing the name of a deleted file")?;
        return Ok((cx.hold(base?)?, None));
    }
    Err(Error::new(Kind::Taken, "no free name is left for a deleted file"))
}

/// Directories that a deleted file needs above it for a moment, and that were deleted too. Tasks make and remove them one
/// after the other: one that stands because another task needs it is gone in an instant.
struct Parents {
    /// In the order they were made.
    made: Vec<Vec<u8>>,
    _turn: Option<OwnedFd>,
}

/// How long other tasks may take to make their deleted files.
const TURN: Duration = Duration::from_secs(60);

impl Parents {
    fn ensure(dir: &[u8], cx: &Opener<'_>) -> Result<Self> {
        let mut parents = Self { made: Vec::new(), _turn: turn(cx)? };
        let ends = dir.iter().enumerate().filter(|(i, b)| *i > 0 && **b == b'/').map(|(i, _)| i);
        for end in ends.chain([dir.len()]) {
            let part = dir.get(..end).unwrap_or(dir);
            if rustix::fs::stat(part).err() != Some(Errno::NOENT) {
                continue;
            }
            match rustix::fs::mkdir(part, Mode::RWXU) {
                Ok(()) => parents.made.push(part.to_vec()),
                Err(Errno::EXIST) => {}
                Err(e) => {
                    return Err(Error::kernel("making a deleted directory again, for the file in it, failed", e)
                        .help(format!("make the directory {} before the restore", String::from_utf8_lossy(part))));
                }
            }
        }
        Ok(parents)
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        for dir in self.made.iter().rev() {
            if let Err(e) = rustix::fs::rmdir(dir.as_slice()) {
                log::warn!("the directory {} stays: {e}", String::from_utf8_lossy(dir));
            }
        }
    }
}

/// Waits until no other task of the tree is making a deleted file.
fn turn(cx: &Opener<'_>) -> Result<Option<OwnedFd>> {
    // The images' directory is at hand in every task; opened anew, the lock is this task's own.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(cx.source.dir(), ".", flags, Mode::empty());
    let Ok(dir) = dir else { return Ok(None) };
    let (deadline, mut backoff) = (Deadline::after(TURN), Backoff::new());
    loop {
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(dir)),
            Err(Errno::AGAIN | Errno::INTR) if backoff.pause(deadline) => {}
            Err(e @ (Errno::AGAIN | Errno::INTR)) => {
                return Err(Error::kernel("waiting for another task's deleted files failed", e)
                    .help("does another program hold a lock on the image directory?"));
            }
            // A filesystem without locks: only deleted directories shared by several tasks need them.
            Err(_) => return Ok(None),
        }
    }
}

/// A descriptor with full access to a file just made by `O_TMPFILE`, kept out of the way.
fn regular_base(fd: &OwnedFd, cx: &Opener<'_>) -> Result<OwnedFd> {
    let base = cx.reopen_number(fd.as_raw_fd(), OFlags::RDWR.bits())?;
    cx.hold(base)
}

/// Content, owner, mode and times.
fn fill(base: &OwnedFd, entry: &GhostFileEntry, reader: &mut Reader<'_>) -> Result<()> {
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
    if entry.mode & libc::S_IFMT == libc::S_IFLNK {
        return Ok(()); // links have no mode, and nothing but the open file leads to this one
    }
    // By this way also descriptors that only name a file (O_PATH) will do.
    let path = format!("/proc/self/fd/{}", base.as_raw_fd());
    set_xattrs(&path, &entry.crust_xattrs)?;
    rustix::fs::chmod(&path, Mode::from_bits_retain(entry.mode & 0o7777)).during("setting a deleted file's mode")?;
    let spec = |t: Option<Timeval>| {
        let t = t.unwrap_or_default();
        Timespec { tv_sec: t.tv_sec as i64, tv_nsec: (t.tv_usec * 1000) as _ }
    };
    if entry.atim.is_some() && entry.mtim.is_some() {
        let times = Timestamps { last_access: spec(entry.atim), last_modification: spec(entry.mtim) };
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, AtFlags::empty())
            .during("setting a deleted file's times")?;
    }
    Ok(())
}

/// The extended attributes of a file, by any descriptor.
fn xattrs(fd: BorrowedFd<'_>) -> Result<Vec<CrustXattr>> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let mut names = vec![0; XATTR_MAX];
    let len = match rustix::fs::listxattr(&path, &mut names[..]) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(Error::kernel("listing a deleted file's extended attributes failed", e)),
    };
    let mut found = Vec::new();
    for name in names.get(..len).unwrap_or_default().split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let own = [&b"user."[..], b"trusted.", b"security.capability", b"system.posix_acl_"];
        if !own.iter().any(|prefix| name.starts_with(prefix)) {
            // Labels and the like are given by the system that restores, and often can be set by nobody else.
            log::debug!("the attribute {} of a deleted file is not saved", String::from_utf8_lossy(name));
            continue;
        }
        let mut value = vec![0; XATTR_MAX];
        match rustix::fs::getxattr(&path, name, &mut value[..]) {
            Ok(len) => {
                value.truncate(len);
                found.push(CrustXattr { name: name.to_vec(), value });
            }
            Err(Errno::NODATA) => {}
            Err(e) => return Err(Error::kernel("reading a deleted file's extended attributes failed", e)),
        }
    }
    Ok(found)
}

/// Longest list of names, and longest value (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const XATTR_MAX: usize = 65536;

fn set_xattrs(path: &str, wanted: &[CrustXattr]) -> Result<()> {
    for attr in wanted {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(path, attr.name.as_slice(), &attr.value, flags).map_err(|e| {
            let name = String::from_utf8_lossy(&attr.name);
            Error::kernel(format!("setting a deleted file's extended attribute {name} failed"), e)
        })?;
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

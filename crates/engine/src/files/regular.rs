//! Files that are opened by path: regular files, directories, memory devices, and anything behind `O_PATH`.
//!
//! The record is the path, the flags and the position, with size, mode and build id to know the file again by.
use super::FdKind;
use super::look::FdView;
use super::restore::{FileImages, Opener};
use super::table::{FileTable, Records};
use super::{ghost, memfd, procfs};
use crate::options::FileValidation;
use crate::task::Target;
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::{FdTypes, FileEntry, FownEntry, RegFileEntry};
use crust_kernel::maps::Mapping;
use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

pub(super) static KIND: FdKind = FdKind { name: "regular file", fd_type: FdTypes::Reg, recognise, dump, group, open };

pub(super) const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;
const O_TMPFILE: u32 = 0o20_000_000;
/// `MEM_MAJOR` of the kernel: null, zero, full, random, urandom.
const MEM_MAJOR: u32 = 1;
const MEM_MINORS: [u32; 5] = [3, 5, 7, 8, 9];

fn recognise(v: &FdView<'_>) -> bool {
    if !v.is_path() {
        return false;
    }
    if v.is_o_path() {
        return true;
    }
    match v.file_type() {
        libc::S_IFREG => !v.link.starts_with(b"/memfd:") || v.stat.st_nlink > 0,
        libc::S_IFDIR => true,
        libc::S_IFCHR => {
            let (major, minor) = (rustix::fs::major(v.stat.st_rdev), rustix::fs::minor(v.stat.st_rdev));
            major == MEM_MAJOR && MEM_MINORS.contains(&minor)
        }
        _ => false,
    }
}

/// A file as the dump half sees it, however it got hold of it.
pub(super) struct Seen<'a> {
    pub(super) link: &'a [u8],
    pub(super) stat: &'a Stat,
    pub(super) mnt_id: i32,
    pub(super) by: By<'a>,
    pub(super) flags: u32,
    pub(super) pos: u64,
    pub(super) fown: FownEntry,
    /// Mapped or executed: its build id matters whatever its name and mode.
    pub(super) code: bool,
}

/// Where a descriptor for a file comes from.
#[derive(Clone, Copy)]
pub(super) enum By<'a> {
    Fd(BorrowedFd<'a>),
    /// Asked for one when it is needed.
    View(&'a FdView<'a>),
}

impl<'a> Seen<'a> {
    /// Any descriptor for it, `O_PATH` too.
    pub(super) fn fd(&self) -> Result<BorrowedFd<'a>> {
        match self.by {
            By::Fd(fd) => Ok(fd),
            By::View(view) => view.copy(),
        }
    }
}

pub(super) fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let fown = v.fown()?;
    if v.stat.st_mode & libc::S_IFMT == libc::S_IFDIR && fown.pid != 0 {
        // That makes the caller the owner, and nothing else has use for one.
        let help = "let the program close it before the dump, or watch with inotify";
        return Err(Error::unsupported("a directory whose changes are signalled (F_NOTIFY) cannot be saved", help));
    }
    let seen = Seen {
        link: &v.link,
        stat: &v.stat,
        mnt_id: v.info.mnt_id,
        by: By::View(v),
        flags: v.info.flags,
        // A position means nothing without reads and writes.
        pos: if v.is_o_path() { 0 } else { v.info.pos },
        fown,
        code: false,
    };
    let reg = dump_seen(&seen, v.target, id, out)?;
    Ok(FileEntry { reg: Some(Box::new(reg)), ..FileEntry::default() })
}

/// The record of a file, and whatever else its content needs.
pub(super) fn dump_seen(seen: &Seen<'_>, t: &Target<'_>, id: u32, out: &mut Records<'_>) -> Result<RegFileEntry> {
    let mut reg = RegFileEntry {
        id,
        flags: seen.flags,
        pos: seen.pos,
        fown: seen.fown,
        mode: Some(seen.stat.st_mode),
        ..RegFileEntry::default()
    };
    let key = format!("file[{:x}:{:x}]", seen.mnt_id, seen.stat.st_ino);
    if out.opts.external.contains(&key) {
        reg.name = key.into_bytes();
        reg.ext = Some(true);
        return Ok(reg);
    }
    reg.name = resolve(seen, t, id, out)?;
    let is_file = seen.stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    // Files that only grow at their end may have grown: CRIU does not check these either.
    if is_file && seen.flags & OFlags::APPEND.bits() == 0 && !is_proc(&reg.name) {
        reg.size = Some(seen.stat.st_size as u64);
        if out.opts.file_validation == FileValidation::BuildId && (seen.code || may_be_code(seen)) {
            reg.build_id = cached_build_id(seen, out);
        }
    }
    Ok(reg)
}

/// True for a file below /proc.
pub(super) fn is_proc(path: &[u8]) -> bool {
    path.starts_with(b"/proc/")
}

fn may_be_code(seen: &Seen<'_>) -> bool {
    seen.stat.st_mode & 0o111 != 0 || seen.link.windows(3).any(|w| w == b".so")
}

/// The path the file can be opened by at restore; saves the content of files that have none.
fn resolve(seen: &Seen<'_>, t: &Target<'_>, id: u32, out: &mut Records<'_>) -> Result<Vec<u8>> {
    let path = seen.link;
    let shown = || String::from_utf8_lossy(path).into_owned();
    if path.first() != Some(&b'/') {
        return Err(Error::unsupported(
            format!("the file {} lies outside of the root directory", shown()),
            "dump from a mount namespace that sees the file",
        ));
    }
    let stripped = path.strip_suffix(b" (deleted)");
    let fs_type = match out.fs_types.get(&(seen.stat.st_dev, seen.mnt_id)) {
        Some(&known) => known,
        None => {
            let found = rustix::fs::fstatfs(seen.fd()?).during("statfs")?.f_type as u64 & 0xffff_ffff;
            out.fs_types.insert((seen.stat.st_dev, seen.mnt_id), found);
            found
        }
    };
    if fs_type == rustix::fs::PROC_SUPER_MAGIC as u64 {
        return procfs::resolve(path, id, out);
    }
    const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;
    if fs_type == DEVPTS_SUPER_MAGIC {
        return Ok(stripped.unwrap_or(path).to_vec());
    }
    refuse_kernel_objects(fs_type, &shown())?;
    if seen.stat.st_nlink == 0 {
        let name = stripped.unwrap_or(path).to_vec();
        ghost::dump(seen, id, &name, out)?;
        return Ok(name);
    }
    if let Some(names) = out.names.get(&(seen.stat.st_dev, seen.stat.st_ino))
        && names.iter().any(|name| name == path)
    {
        return Ok(path.to_vec());
    }
    if out.root.is_none() {
        out.root = Some(root_of(t)?);
    }
    let Some(root) = &out.root else { return Err(Error::new(Kind::Internal, "no root directory")) };
    let relative = path.strip_prefix(b"/").unwrap_or(path);
    let relative = if relative.is_empty() { &b"."[..] } else { relative };
    match rustix::fs::statat(root, relative, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if found.st_ino == seen.stat.st_ino && found.st_dev == seen.stat.st_dev => {
            out.names.entry((found.st_dev, found.st_ino)).or_default().push(path.to_vec());
            Ok(path.to_vec())
        }
        Ok(found)
            if out.opts.evasive_devices
                && found.st_mode & libc::S_IFMT == seen.stat.st_mode & libc::S_IFMT
                && matches!(seen.stat.st_mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK)
                && found.st_rdev == seen.stat.st_rdev =>
        {
            Ok(path.to_vec())
        }
        Err(Errno::NOENT | Errno::NOTDIR) => {
            let name = stripped.unwrap_or(path).to_vec();
            if stripped.is_some() && is_gone_from_overlay(seen, fs_type) {
                ghost::dump(seen, id, &name, out)?;
            } else {
                ghost::dump_linked(seen, id, &name, out)?;
            }
            Ok(name)
        }
        Ok(_) => Err(Error::unsupported(
            format!("the name {} leads to another file now", shown()),
            "move the file back, or close it before the dump",
        )),
        Err(e) => Err(Error::kernel(format!("looking up {} failed", shown()), e)),
    }
}

/// True for a deleted file of overlayfs that has no other name there, although its links are counted: those of a file in a lower
/// layer are the layer's own, which a deletion leaves alone. (With an index, lower files with several names are copied up before
/// one of them goes; without, each name is a file of its own.) The layer above counts as other filesystems do.
fn is_gone_from_overlay(seen: &Seen<'_>, fs_type: u64) -> bool {
    fs_type == OVERLAYFS_SUPER_MAGIC
        && match seen.stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => true,
            libc::S_IFREG => seen.fd().is_ok_and(|fd| {
                reopen_for_reading(fd).is_ok_and(|fd| crust_kernel::overlay::is_lower(fd.as_fd()) == Ok(true))
            }),
            _ => false,
        }
}

/// Files that are no content but objects of the kernel: a copy of what they read as would be another thing.
fn refuse_kernel_objects(fs_type: u64, shown: &str) -> Result<()> {
    const MQUEUE_MAGIC: u64 = 0x1980_0202;
    const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
    const SECRETMEM_MAGIC: u64 = 0x5345_434d;
    let (what, help) = match fs_type {
        MQUEUE_MAGIC => ("a POSIX message queue opened by O_PATH", "close it before the dump"),
        HUGETLBFS_MAGIC => ("a file of huge pages", "let the program use transparent huge pages instead"),
        SECRETMEM_MAGIC => ("secret memory (memfd_secret)", "it is secret also from us: close it before the dump"),
        _ => return Ok(()),
    };
    Err(Error::unsupported(format!("{shown} is {what}, which cannot be saved"), help))
}

/// The directory that link texts of this task are relative to: our root, or that of the task's mount namespace.
fn root_of(t: &Target<'_>) -> Result<OwnedFd> {
    let ours = rustix::fs::stat("/proc/self/ns/mnt").during("looking at our mount namespace")?;
    let theirs = t.proc.stat_file("ns/mnt").during("looking at the task's mount namespace")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if ours.st_ino == theirs.st_ino {
        return rustix::fs::open("/", flags, Mode::empty()).during("opening /");
    }
    t.proc.open_with("root", flags).during("opening the task's root")
}

/// Opens a file again for reading, whatever the given descriptor can do. Access times stay where the kernel allows.
/// Where that would break the program's own lease it is not done, and the error is the one that the kernel would give.
pub(super) fn reopen_for_reading(fd: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    if crust_kernel::lease::get(fd) == Ok(libc::F_WRLCK) {
        return Err(Errno::AGAIN);
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::open(&path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::open(&path, flags, Mode::empty()),
        other => other,
    }
}

fn cached_build_id(seen: &Seen<'_>, out: &mut Records<'_>) -> Vec<u32> {
    let key = (seen.stat.st_dev, seen.stat.st_ino);
    if let Some(known) = out.build_ids.get(&key) {
        return known.clone();
    }
    // A file that cannot be opened for reading is known by its size alone, as with CRIU.
    let read = |fd: BorrowedFd<'_>| match reopen_for_reading(fd) {
        Ok(fd) => build_id(&fd),
        Err(Errno::AGAIN) => build_id(fd),
        Err(_) => None,
    };
    let id = seen.fd().ok().and_then(read).unwrap_or_default();
    out.build_ids.insert(key, id.clone());
    id
}

/// The GNU build id of an ELF file as the words CRIU stores; `None` without one. Never panics, whatever the file holds.
pub(super) fn build_id(fd: impl AsFd) -> Option<Vec<u32>> {
    let mut head = [0u8; 64];
    let n = rustix::io::pread(&fd, &mut head, 0).ok()?;
    let head = head.get(..n)?;
    if head.get(..4)? != b"\x7fELF" || *head.get(5)? != 1 {
        return None; // no ELF, or big endian
    }
    let wide = *head.get(4)? == 2;
    let u16_at = |b: &[u8], at: usize| Some(u16::from_le_bytes(b.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |b: &[u8], at: usize| Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |b: &[u8], at: usize| Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?));
    let (phoff, phentsize, phnum) = if wide {
        (u64_at(head, 32)?, u16_at(head, 54)?, u16_at(head, 56)?)
    } else {
        (u64::from(u32_at(head, 28)?), u16_at(head, 42)?, u16_at(head, 44)?)
    };
    let entry_len = if wide { 56 } else { 32 };
    if usize::from(phentsize) < entry_len || phnum > 1024 {
        return None;
    }
    let mut table = vec![0u8; usize::from(phentsize) * usize::from(phnum)];
    let n = rustix::io::pread(&fd, &mut table, phoff).ok()?;
    for ph in table.get(..n)?.chunks_exact(usize::from(phentsize)) {
        const PT_NOTE: u32 = 4;
        if u32_at(ph, 0)? != PT_NOTE {
            continue;
        }
        let (offset, size) = if wide {
            (u64_at(ph, 8)?, u64_at(ph, 32)?)
        } else {
            (u64::from(u32_at(ph, 4)?), u64::from(u32_at(ph, 16)?))
        };
        let mut notes = vec![0u8; size.min(65536) as usize];
        let n = rustix::io::pread(&fd, &mut notes, offset).ok()?;
        let mut rest = notes.get(..n)?;
        while let (Some(name_len), Some(desc_len), Some(kind)) = (u32_at(rest, 0), u32_at(rest, 4), u32_at(rest, 8)) {
            const NT_GNU_BUILD_ID: u32 = 3;
            let (name_len, desc_len) = (name_len as usize, desc_len as usize);
            let desc_at = 12usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
            let desc = desc_at.checked_add(desc_len).and_then(|end| rest.get(desc_at..end));
            if let Some(desc) = desc
                && kind == NT_GNU_BUILD_ID
                && !desc.is_empty()
                && desc.len() <= 512
            {
                let word = |c: &[u8]| c.iter().rev().fold(0u32, |w, b| w << 8 | u32::from(*b));
                return Some(desc.chunks(4).map(word).collect());
            }
            let next = desc_at.checked_add(desc_len.checked_next_multiple_of(4)?)?;
            rest = rest.get(next..).unwrap_or_default();
        }
    }
    None
}

/// Tells files apart that no descriptor refers to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SpecialKey {
    pub(super) dev: u64,
    pub(super) ino: u64,
    pub(super) flags: u32,
    pub(super) path: Vec<u8>,
}

impl SpecialKey {
    fn new(stat: &Stat, link: &[u8], flags: u32) -> Self {
        Self { dev: stat.st_dev, ino: stat.st_ino, flags, path: link.to_vec() }
    }
}

/// The id of such a file, if it has one by now.
pub(super) fn known_special(stat: &Stat, link: &[u8], flags: u32, out: &Records<'_>) -> Option<u32> {
    out.special.get(&SpecialKey::new(stat, link, flags)).copied()
}

/// The id of a file opened by no descriptor, made on first use.
pub(super) fn special(
    fd: BorrowedFd<'_>,
    link: &[u8],
    flags: u32,
    t: &Target<'_>,
    out: &mut Records<'_>,
) -> Result<u32> {
    let stat = rustix::fs::fstat(fd).during("fstat")?;
    let key = SpecialKey::new(&stat, link, flags);
    if let Some(id) = out.special.get(&key) {
        return Ok(*id);
    }
    let id = out.new_id();
    let seen =
        Seen { link, stat: &stat, mnt_id: -1, by: By::Fd(fd), flags, pos: 0, fown: FownEntry::default(), code: true };
    if memfd::is_shmem(link, &stat) {
        let entry = memfd::entry(&seen, id, out)?;
        out.files.push(entry);
        out.special.insert(key, id);
        return Ok(id);
    }
    let reg = dump_seen(&seen, t, id, out)?;
    out.files.push(FileEntry { r#type: FdTypes::Reg as i32, id, reg: Some(Box::new(reg)), ..FileEntry::default() });
    out.special.insert(key, id);
    Ok(id)
}

impl crate::memory::FileIds for FileTable<'_> {
    /// Equal files mapped many times, by many processes, get one record. How a mapping needs its file opened is said by
    /// the mapping (`fdflags`), not by the file's record.
    fn map_file(&mut self, t: &Target<'_>, m: &Mapping) -> Result<u32> {
        let flags = OFlags::RDONLY.bits();
        let out = self.records();
        // What maps says is enough to know a file again, without a look at the file.
        let dev = rustix::fs::makedev(m.dev.0, m.dev.1);
        let quick = SpecialKey { dev, ino: m.inode, flags, path: [b"maps:", m.name.as_slice()].concat() };
        if let Some(id) = out.special.get(&quick) {
            return Ok(*id);
        }
        let name = format!("map_files/{:x}-{:x}", m.start, m.end);
        let o_path = OFlags::PATH | OFlags::CLOEXEC;
        let (fd, link) = match (t.proc.open_with(&name, o_path), t.proc.readlink(&name)) {
            (Ok(fd), Ok(link)) => (fd, link),
            // Not ours to follow without privilege: find the file by its name, and make sure that it is the one.
            _ => (open_by_name(t, m)?, unescape(&m.name)),
        };
        let id = special(fd.as_fd(), &link, flags, t, out)?;
        out.special.insert(quick, id);
        Ok(id)
    }

    fn exe(&mut self, t: &Target<'_>) -> Result<u32> {
        self.path_file(t, super::PathLink::Exe)
    }
}

/// Undoes the one escape of /proc/PID/maps.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        match rest.strip_prefix(b"\\012") {
            Some(tail) => {
                out.push(b'\n');
                rest = tail;
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

fn open_by_name(t: &Target<'_>, m: &Mapping) -> Result<OwnedFd> {
    let name = String::from_utf8([b"root".as_slice(), &unescape(&m.name)].concat())
        .map_err(|_| Error::new(Kind::Permission, "the mapped file cannot be followed"))?;
    let fd = t.proc.open_with(&name, OFlags::PATH).during("opening the mapped file by its name")?;
    let stat = rustix::fs::fstat(&fd).during("fstat")?;
    if stat.st_ino != m.inode {
        return Err(Error::new(Kind::Permission, "the mapped file cannot be reached: its name leads to another file")
            .help("run as root (CAP_CHECKPOINT_RESTORE)"));
    }
    Ok(fd)
}

/// Ghosts of one content are opened together.
fn group(e: &FileEntry, images: &FileImages) -> Option<u64> {
    images.ghost_of(e.id).map(u64::from)
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    let mut ghosts = Vec::new();
    for e in entries {
        let reg = cx.body(e, e.reg.as_ref())?;
        if cx.images.ghost_of(e.id).is_some() {
            ghosts.push(reg);
            continue;
        }
        let fd = open_entry(reg, None, cx)?;
        finish_open(&fd, reg, cx)?;
        opened.push((e.id, fd));
    }
    for (reg, fd) in ghost::open(&ghosts, cx)? {
        finish_open(&fd, reg, cx)?;
        opened.push((reg.id, fd));
    }
    Ok(opened)
}

/// Position and signal owner of a file just opened.
fn finish_open(fd: &OwnedFd, reg: &RegFileEntry, cx: &Opener<'_>) -> Result<()> {
    if reg.flags & OFlags::PATH.bits() != 0 {
        return Ok(());
    }
    // u64::MAX is what fdinfo shows for files without a position.
    if reg.pos != 0 && reg.pos != u64::MAX {
        match rustix::fs::seek(fd, SeekFrom::Start(reg.pos)) {
            Ok(_) | Err(Errno::SPIPE) => {}
            Err(e) => return Err(Error::kernel("setting the position failed", e).on(path_object(reg))),
        }
    }
    cx.set_owner(fd, &reg.fown)
}

pub(super) fn path_object(reg: &RegFileEntry) -> Object {
    Object::Path(String::from_utf8_lossy(&reg.name).into_owned())
}

/// Flags to open an existing file with.
pub(super) fn open_flags(flags: u32) -> OFlags {
    const CREATION: u32 = (libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_NOCTTY) as u32
        | (O_TMPFILE & !(libc::O_DIRECTORY as u32));
    let mut flags = flags & !CREATION;
    OFlags::from_bits_retain(std::mem::take(&mut flags)) | OFlags::NOCTTY | OFlags::CLOEXEC
}

/// True for a file that was made by `open(dir, O_TMPFILE)`.
pub(super) fn is_tmpfile(flags: u32) -> bool {
    flags & O_TMPFILE == O_TMPFILE
}

/// Opens a file that has a name, and makes sure it is still the one that was dumped.
pub(super) fn open_entry(reg: &RegFileEntry, flags: Option<u32>, cx: &Opener<'_>) -> Result<OwnedFd> {
    let name = String::from_utf8_lossy(&reg.name);
    if reg.ext == Some(true) {
        return cx.inherited(&name)?.ok_or_else(|| missing_external(&name));
    }
    if let Some(fd) = cx.inherited(name.strip_prefix('/').unwrap_or(&name))? {
        return Ok(fd);
    }
    let mut flags = open_flags(flags.unwrap_or(reg.flags));
    if is_tmpfile(reg.flags) {
        flags.remove(OFlags::DIRECTORY);
    }
    let path = cx.images.path_of(reg)?;
    let opened = if path == reg.name {
        procfs::when_born(path, cx.images, || rustix::fs::open(path, flags, Mode::empty()))
    } else {
        ghost::open_linked(path, &reg.name, flags)
    };
    opened.map_err(|e| {
        Error::kernel("opening the file failed", e)
            .on(path_object(reg))
            .help("put the file back where it was at the dump")
    })
}

pub(super) fn missing_external(key: &str) -> Error {
    Error::new(Kind::BadRequest, format!("{key} was named external at the dump and is not given now"))
        .help(format!("pass `--inherit-fd fd[N]:{key}` with N an open descriptor"))
}

/// What was asked about files by their path: programs open one file many times.
#[derive(Default)]
pub(super) struct Asked<'a> {
    stats: std::collections::HashMap<&'a [u8], rustix::io::Result<Stat>>,
    build_ids: std::collections::HashMap<&'a [u8], Option<Vec<u32>>>,
}

/// Everything that keeps a file from being opened as it was; asked before anything is made.
pub(super) fn check<'a>(
    reg: &'a RegFileEntry,
    images: &'a FileImages,
    opts: &crate::Options,
    known: &mut Asked<'a>,
    errors: &mut Vec<Error>,
) {
    let name = String::from_utf8_lossy(&reg.name);
    let given = |key: &str| opts.inherit_fds.iter().any(|i| i.key == key);
    if reg.ext == Some(true) {
        if !given(&name) {
            errors.push(missing_external(&name));
        }
        return;
    }
    if given(name.strip_prefix('/').unwrap_or(&name)) || images.ghost_of(reg.id).is_some() {
        return;
    }
    if is_proc(&reg.name) {
        errors.extend(procfs::check(reg, images));
        return;
    }
    let mut problem = |e: Error| errors.push(e.on(path_object(reg)));
    let path = match images.path_of(reg) {
        Ok(path) => path,
        Err(e) => return problem(e),
    };
    let stat = match *known.stats.entry(path).or_insert_with(|| rustix::fs::lstat(path)) {
        Ok(stat) => stat,
        Err(e) => {
            return problem(
                Error::kernel("the file that the program had open is not there", e)
                    .help("put the file back where it was at the dump"),
            );
        }
    };
    let octal = |mode: u32| format!("{mode:o}");
    if let Some(mode) = reg.mode {
        let mask = if opts.skip_file_rwx_check { libc::S_IFMT } else { libc::S_IFMT | 0o7777 };
        if stat.st_mode & mask != mode & mask {
            return problem(
                Error::new(
                    Kind::Kernel,
                    format!("the file's mode was {}, now it is {}", octal(mode), octal(stat.st_mode)),
                )
                .help("set the mode back, or pass `--skip-file-rwx-check` if only permissions differ"),
            );
        }
    }
    let shown = std::path::Path::new(std::ffi::OsStr::from_bytes(&reg.name));
    if opts.unvalidated.iter().any(|except| shown.starts_with(except)) {
        return;
    }
    if let Some(size) = reg.size {
        let now = stat.st_size as u64;
        // What follows the end that it knew is nothing to a program that only writes.
        if now > size && reg.flags & OFlags::ACCMODE.bits() == OFlags::WRONLY.bits() {
            log::warn!(
                "{name}: the file had {size} bytes at the dump, now it has {now}; the program only writes to it"
            );
        } else if now != size {
            return problem(
                Error::new(Kind::Kernel, format!("the file had {size} bytes at the dump, now it has {now}")).help(
                    format!(
                        "put the file back as it was at the dump, or take it as it is: --file-validation-except={name}"
                    ),
                ),
            );
        }
    }
    if opts.file_validation == FileValidation::BuildId && !reg.build_id.is_empty() {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let ask = || rustix::fs::open(path, flags, Mode::empty()).ok().and_then(|fd| build_id(&fd));
        if known.build_ids.entry(path).or_insert_with(ask).as_ref().is_some_and(|now| *now != reg.build_id) {
            problem(
                Error::new(Kind::Kernel, "the file has another build id than at the dump: it is another program")
                    .help("install the version that ran at the dump, or pass `--file-validation filesize`"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_build_id_has_words_and_garbage_has_none() {
        let sh = std::fs::File::open("/bin/sh").expect("a shell");
        let id = build_id(&sh).expect("distributions build with ids");
        assert_eq!(id.len(), 5);
        let mut bytes = std::fs::read("/bin/sh").expect("readable");
        bytes.truncate(200);
        for cut in [0, 3, 16, 63, 64, 100, 199] {
            let fd = rustix::fs::memfd_create("elf", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
            rustix::io::write(&fd, &bytes[..cut]).expect("write");
            assert_eq!(build_id(&fd), None);
        }
    }

    #[test]
    fn creation_flags_are_not_repeated() {
        let f = open_flags((libc::O_CREAT | libc::O_TRUNC | libc::O_EXCL | libc::O_RDWR | libc::O_APPEND) as u32);
        assert_eq!(f, OFlags::RDWR | OFlags::APPEND | OFlags::NOCTTY | OFlags::CLOEXEC);
        assert!(is_tmpfile(0o20_300_002) && !is_tmpfile(0o300_000));
    }
}

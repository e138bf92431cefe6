//! What inotify and fanotify share: watched files, which the kernel tells by device, inode and file handle, not by name.
//!
//! Dump: the handle is opened and its name read; where that cannot be, known directories are searched (`--force-irmap`,
//! `--irmap-scan-path`). Overlayfs tells files apart by handles that cannot be opened: all of it is searched. A file without a
//! name must be one of the deleted files that the images hold.
//! Restore: by name, else as the deleted file that was made again, else by handle.
use super::ghost::{Ghost, kernel_dev};
use super::look::FdView;
use super::regular::OVERLAYFS_SUPER_MAGIC;
use super::restore::Opener;
use super::table::{FileTable, Records};
use crate::task::Target;
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::{FhEntry, FileEntry};
use crust_kernel::notify;
use rustix::fs::{AtFlags, Mode, OFlags};
use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Words of a handle in an image (`FH_ENTRY_SIZES__min_entries`).
const HANDLE_WORDS: usize = 16;
/// Where CRIU looks for files whose handle does not open; the flag says how deep.
const HINTS: [(&str, bool); 8] = [
    ("/etc", true),
    ("/var/spool", true),
    ("/var/log", true),
    ("/usr/share/dbus-1/system.d", true),
    ("/var/lib/polkit-1/localauthority", true),
    ("/usr/share/polkit-1/actions", true),
    ("/lib/udev", true),
    ("/", false),
];

/// The words of one fdinfo line after its first (`inotify`, `fanotify`), as `key:hexadecimal`.
pub(super) struct Line<'a>(HashMap<&'a str, &'a str>);

impl<'a> Line<'a> {
    /// Splits a line that starts with `first`; `None` for others.
    pub(super) fn parse(line: &'a str, first: &str) -> Option<Self> {
        let rest = line.strip_prefix(first)?.strip_prefix(' ')?;
        Some(Self(rest.split_ascii_whitespace().filter_map(|word| word.split_once(':')).collect()))
    }

    /// A number, if it is there.
    pub(super) fn hex(&self, key: &str) -> Option<u64> {
        u64::from_str_radix(self.0.get(key)?, 16).ok()
    }

    /// As [`Line::hex`], for a number that must be there.
    pub(super) fn need(&self, key: &str) -> Result<u64> {
        self.hex(key).ok_or_else(|| Error::new(Kind::Internal, format!("fdinfo of a watch has no {key}")))
    }

    /// The handle, without a path. `None` where the filesystem makes none.
    fn handle(&self) -> Option<FhEntry> {
        let text = self.0.get("f_handle")?;
        let bytes: Vec<u8> = (0..text.len() / 2)
            .map(|i| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok())
            .collect::<Option<_>>()?;
        let mut words: Vec<u64> =
            bytes.chunks(8).map(|c| c.iter().rev().fold(0, |w, b| w << 8 | u64::from(*b))).collect();
        words.resize(HANDLE_WORDS, 0);
        Some(FhEntry {
            bytes: self.hex("fhandle-bytes")? as u32,
            r#type: self.hex("fhandle-type")? as u32,
            handle: words,
            ..FhEntry::default()
        })
    }
}

/// The file that a mark sits on, as an image tells it: its name is found now.
pub(super) fn look(line: &Line<'_>, v: &FdView<'_>, out: &mut Records<'_>) -> Result<FhEntry> {
    let t = v.target;
    let (dev, ino) = (line.need("sdev")? as u32, line.need("ino")?);
    let mut handle = line.handle().unwrap_or_else(|| FhEntry { handle: vec![0; HANDLE_WORDS], ..FhEntry::default() });
    let watched = Watched { dev, ino, id: file_id(&handle), object: v.object(), deleted: false };
    let found = if out.opts.force_irmap { None } else { by_handle(&handle, dev, ino, t, out) };
    let path = match found {
        Some(Named::Path(path)) => Some(path),
        // Whether somebody in the tree holds it open is known when all were looked at.
        Some(Named::Deleted) => {
            out.watched.push(Watched { deleted: true, ..watched });
            return Ok(handle);
        }
        None if out.ghosts.iter().any(|ghost| watched.is(ghost)) => None,
        None => search(&watched, t, out).map(|path| path.into_os_string().into_vec()),
    };
    match path {
        Some(path) => handle.path = Some(path),
        None => out.watched.push(watched),
    }
    Ok(handle)
}

/// Type and bytes of a handle.
type FileId = (i32, Vec<u8>);

/// A watched file whose name was not found.
#[derive(Debug)]
pub(super) struct Watched {
    dev: u32,
    ino: u64,
    id: Option<FileId>,
    /// Where the watch was seen.
    object: Object,
    /// It is known to have no name.
    deleted: bool,
}

impl Watched {
    /// True if this deleted file is the one. Overlayfs numbers files by one device and watches by another.
    fn is(&self, ghost: &Ghost) -> bool {
        ghost.is(self.dev, self.ino) || self.id.is_some() && ghost.file_id() == self.id
    }

    fn lost(self) -> Error {
        let (dev, ino) = (self.dev, self.ino);
        let error = if self.deleted {
            Error::unsupported(
                format!("watches the deleted file with inode {ino}, which no task of the tree has open"),
                "remove the watch, or dump the program that holds the file open too",
            )
        } else {
            Error::unsupported(
                format!("watches inode {ino} of device {}:{}, whose name cannot be found", dev >> 20, dev & 0xf_ffff),
                "pass `--irmap-scan-path DIR` with a directory above the watched file, or dump with CAP_DAC_READ_SEARCH",
            )
        };
        error.on(self.object)
    }
}

fn file_id(handle: &FhEntry) -> Option<FileId> {
    Some((handle.r#type as i32, handle_bytes(handle)?))
}

enum Named {
    Path(Vec<u8>),
    Deleted,
}

/// Opens the handle through each mount of its filesystem and reads the name, which must lead back to the file.
fn by_handle(handle: &FhEntry, dev: u32, ino: u64, t: &Target<'_>, out: &mut Records<'_>) -> Option<Named> {
    let bytes = handle_bytes(handle)?;
    let mut deleted = false;
    for point in mounts(t, out)?.of(dev) {
        let Ok(mount) = open_mount(point) else { continue };
        let Ok(fd) = notify::open_by_handle(mount.as_fd(), handle.r#type as i32, &bytes) else { continue };
        let Ok(stat) = rustix::fs::fstat(&fd) else { continue };
        if stat.st_nlink == 0 {
            deleted = true;
            continue;
        }
        let Ok(link) = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new()) else { continue };
        let path = link.into_bytes();
        if rustix::fs::statat(rustix::fs::CWD, path.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|s| s.st_ino == ino && s.st_dev == stat.st_dev)
        {
            return Some(Named::Path(path));
        }
    }
    deleted.then_some(Named::Deleted)
}

/// The program's mounts.
fn mounts<'m>(t: &Target<'_>, out: &'m mut Records<'_>) -> Option<&'m Mounts> {
    if out.mounts.is_none() {
        out.mounts = Some(Mounts::look(&t.proc.read_text("mountinfo").ok()?));
    }
    out.mounts.as_ref()
}

/// A descriptor that stands for a mount: handles cannot be opened through `O_PATH`.
fn open_mount(point: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(point, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

fn handle_bytes(handle: &FhEntry) -> Option<Vec<u8>> {
    let all: Vec<u8> = handle.handle.iter().flat_map(|w| w.to_le_bytes()).collect();
    Some(all.get(..handle.bytes as usize).filter(|b| !b.is_empty())?.to_vec())
}

/// Mount points by device, and paths by mount id.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    points: Vec<(u32, u32, Vec<u8>)>,
}

impl Mounts {
    /// Reads a mountinfo file.
    pub(super) fn look(text: &str) -> Self {
        let parse = |line: &str| {
            let mut words = line.split(' ');
            let id = words.next()?.parse().ok()?;
            let (major, minor) = words.nth(1)?.split_once(':')?;
            let dev = major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?;
            Some((id, dev, unescape(words.nth(1)?)))
        };
        Self { points: text.lines().filter_map(parse).collect() }
    }

    fn of(&self, dev: u32) -> impl Iterator<Item = &Vec<u8>> {
        self.points.iter().filter(move |(_, d, _)| *d == dev).map(|(_, _, p)| p)
    }

    /// Mount point and device of a mount.
    pub(super) fn point(&self, id: u32) -> Option<(&[u8], u32)> {
        self.points.iter().find(|(i, _, _)| *i == id).map(|(_, dev, p)| (p.as_slice(), *dev))
    }
}

/// Undoes the octal escapes of mountinfo.
fn unescape(word: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\').and_then(|o| std::str::from_utf8(o).ok());
        match octal.and_then(|o| u8::from_str_radix(o, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

/// Files found by searching.
#[derive(Debug, Default)]
pub(super) struct Found {
    by_inode: HashMap<(u32, u64), PathBuf>,
    /// Of overlayfs.
    by_id: HashMap<FileId, PathBuf>,
    /// Devices that were searched as a whole.
    whole: HashSet<u32>,
}

/// Looks for a file below the directories that the caller named, then below CRIU's hints, then on all of an overlayfs.
fn search(watched: &Watched, t: &Target<'_>, out: &mut Records<'_>) -> Option<PathBuf> {
    let mut found = out.irmap.take().unwrap_or_else(|| {
        let mut found = Found::default();
        let named = out.opts.irmap_scan_paths.iter().map(|p| (p.as_path(), true));
        for (dir, deep) in named.chain(HINTS.iter().map(|(dir, deep)| (Path::new(*dir), *deep))) {
            found.scan(dir, deep);
        }
        found
    });
    if found.get(watched).is_none()
        && found.whole.insert(watched.dev)
        && let Some(mounts) = mounts(t, out)
    {
        for point in mounts.of(watched.dev).filter(|point| is_overlay(point.as_slice())) {
            found.scan(Path::new(std::ffi::OsStr::from_bytes(point)), true);
        }
    }
    let path = found.get(watched).cloned();
    out.irmap = Some(found);
    path
}

/// Files that a search remembers; more are not worth the memory.
const SCAN_LIMIT: usize = 1 << 20;

impl Found {
    fn get(&self, watched: &Watched) -> Option<&PathBuf> {
        let by_id = || self.by_id.get(watched.id.as_ref()?);
        self.by_inode.get(&(watched.dev, watched.ino)).or_else(by_id)
    }

    /// Remembers what is below a directory on its filesystem.
    fn scan(&mut self, dir: &Path, deep: bool) {
        let overlay = is_overlay(dir);
        let mut waiting = vec![dir.to_path_buf()];
        while let Some(dir) = waiting.pop() {
            let Ok(own) = fs::symlink_metadata(&dir) else { continue };
            self.by_inode.entry((kernel_dev(own.dev()), own.ino())).or_insert_with(|| dir.clone());
            let Ok(list) = fs::read_dir(&dir) else { continue };
            for entry in list.flatten() {
                let Ok(meta) = entry.metadata() else { continue };
                if self.by_inode.len() >= SCAN_LIMIT {
                    return;
                }
                if meta.is_dir() && deep && meta.dev() == own.dev() {
                    waiting.push(entry.path());
                    continue;
                }
                let path = CString::new(entry.path().into_os_string().into_vec()).unwrap_or_default();
                if overlay && let Ok(id) = notify::file_id(rustix::fs::CWD, &path) {
                    self.by_id.entry(id).or_insert_with(|| entry.path());
                }
                self.by_inode.entry((kernel_dev(meta.dev()), meta.ino())).or_insert_with(|| entry.path());
            }
        }
    }
}

fn is_overlay(dir: impl rustix::path::Arg) -> bool {
    rustix::fs::statfs(dir).is_ok_and(|fs| fs.f_type as u64 & 0xffff_ffff == OVERLAYFS_SUPER_MAGIC)
}

impl FileTable<'_> {
    /// A watched file without a name comes back only if the images hold its content.
    pub(super) fn check_watches(&mut self) -> Vec<Error> {
        let r = self.records();
        let mut lost = Vec::new();
        for watched in std::mem::take(&mut r.watched) {
            match r.ghosts.iter_mut().find(|ghost| watched.is(ghost)) {
                Some(ghost) => ghost.is_known_as(watched.dev, watched.ino),
                None => lost.push(watched.lost()),
            }
        }
        lost
    }
}

/// A descriptor (`O_PATH`) for a file that was watched.
pub(super) fn open(handle: &FhEntry, dev: u32, ino: u64, cx: &mut Opener<'_>) -> Result<OwnedFd> {
    let o_path = OFlags::PATH | OFlags::CLOEXEC;
    if let Some(path) = &handle.path {
        return rustix::fs::open(path.as_slice(), o_path, Mode::empty())
            .during("opening a watched file")
            .map_err(|e| e.on(shown(path)).help("put the file back where it was at the dump"));
    }
    if let Some(file) = cx.images.ghost_by_inode(dev, ino) {
        return cx.open_id(file);
    }
    let bytes = handle_bytes(handle).ok_or_else(|| Error::bad_image("files.img", "a watch with no file"))?;
    let text = fs::read_to_string("/proc/self/mountinfo").during("reading the list of mounts")?;
    for point in Mounts::look(&text).of(dev) {
        let Ok(mount) = open_mount(point) else { continue };
        if let Ok(fd) = notify::open_by_handle(mount.as_fd(), handle.r#type as i32, &bytes) {
            return Ok(fd);
        }
    }
    Err(Error::new(
        Kind::Kernel,
        format!("the watched inode {ino} of device {}:{} is not there", dev >> 20, dev & 0xf_ffff),
    )
    .help("restore on the machine of the dump, or dump again with --force-irmap"))
}

/// Device and inode of each watched file whose name the image does not tell.
pub(super) fn nameless(file: &FileEntry) -> impl Iterator<Item = (u32, u64)> {
    let inotify = file.ify.iter().flat_map(|i| &i.wd).map(|w| (&w.f_handle, w.s_dev, w.i_ino));
    let marks = file.ffy.iter().flat_map(|f| &f.mark);
    let fanotify = marks.filter_map(|m| m.ie.as_ref().map(|ie| (&ie.f_handle, m.s_dev, ie.i_ino)));
    inotify.chain(fanotify).filter(|(handle, _, _)| handle.path.is_none()).map(|(_, dev, ino)| (dev, ino))
}

fn shown(path: &[u8]) -> Object {
    Object::Path(std::ffi::OsStr::from_bytes(path).to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_handles() {
        let text = "inotify wd:3 ino:1 sdev:1b mask:84000003 ignored_mask:0 fhandle-bytes:c fhandle-type:1 \
            f_handle:b3b1ab000100000000000000";
        let line = Line::parse(text, "inotify").expect("parses");
        assert_eq!((line.hex("wd"), line.hex("mask"), line.hex("nothing")), (Some(3), Some(0x8400_0003), None));
        let handle = line.handle().expect("has one");
        assert_eq!((handle.bytes, handle.handle.len(), handle.handle[0], handle.handle[1]), (12, 16, 0x1_00ab_b1b3, 0));
        assert_eq!(handle_bytes(&handle).expect("some").len(), 12);
        assert!(Line::parse("fanotify flags:10", "inotify").is_none());
    }

    #[test]
    fn mounts_by_device_and_id() {
        let m =
            Mounts::look("27 17 254:0 / / rw - ext4 /dev/root rw\n30 27 0:27 / /dev\\040x rw - tmpfs none rw\nodd\n");
        assert_eq!(m.of(254 << 20).collect::<Vec<_>>(), [b"/"]);
        assert_eq!(m.point(30), Some((&b"/dev x"[..], 27)));
    }
}

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
use crate::{Error, Kind, Object, Result, ResultExt, together};
use crust_image::proto::{FhEntry, FileEntry};
use crust_kernel::notify;
use crust_kernel::own_fd::OwnFds;
use rustix::fs::{AtFlags, Mode, OFlags};
use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

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
pub(super) struct Line<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Line<'a> {
    /// Splits a line that starts with `first`; `None` for others.
    pub(super) fn parse(line: &'a str, first: &str) -> Option<Self> {
        let rest = line.strip_prefix(first)?.strip_prefix(' ')?;
        Some(Self(rest.split_ascii_whitespace().filter_map(|word| word.split_once(':')).collect()))
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(k, _)| *k == key).map(|(_, value)| *value)
    }

    /// A number, if it is there.
    pub(super) fn hex(&self, key: &str) -> Option<u64> {
        u64::from_str_radix(self.get(key)?, 16).ok()
    }

    /// As [`Line::hex`], for a number that must be there.
    pub(super) fn need(&self, key: &str) -> Result<u64> {
        self.hex(key).ok_or_else(|| Error::new(Kind::Internal, format!("fdinfo of a watch has no {key}")))
    }

    /// The handle, without a path. `None` where the filesystem makes none.
    fn handle(&self) -> Option<FhEntry> {
        let text = self.get("f_handle")?;
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

/// A file that a mark sits on, as the kernel tells it.
struct Mark {
    dev: u32,
    ino: u64,
    handle: FhEntry,
}

impl Mark {
    fn of(line: &Line<'_>) -> Result<Self> {
        let none = || FhEntry { handle: vec![0; HANDLE_WORDS], ..FhEntry::default() };
        let handle = line.handle().unwrap_or_else(none);
        Ok(Self { dev: line.need("sdev")? as u32, ino: line.need("ino")?, handle })
    }
}

/// The files that marks sit on, as an image tells them: their names are found now.
pub(super) fn look(lines: &[Line<'_>], v: &FdView<'_>, out: &mut Records<'_>) -> Result<Vec<FhEntry>> {
    let marks = lines.iter().map(Mark::of).collect::<Result<Vec<_>>>()?;
    let by_handle = !out.opts.force_irmap && !marks.is_empty();
    let found = if by_handle { mounts(v.target, out).map(|mounts| by_handles(&marks, mounts)) } else { None };
    let found = found.into_iter().flatten().chain(std::iter::repeat_with(|| None));
    Ok(marks.into_iter().zip(found).map(|(mark, found)| named(mark, found, v, out)).collect())
}

/// The handle of a marked file with its name, if it has one.
fn named(mark: Mark, found: Option<Named>, v: &FdView<'_>, out: &mut Records<'_>) -> FhEntry {
    let Mark { dev, ino, mut handle } = mark;
    let watched = || Watched { dev, ino, id: file_id(&handle), object: v.object(), deleted: false };
    let path = match found {
        Some(Named::Path(path)) => Some(path),
        // Whether somebody in the tree holds it open is known when all were looked at.
        Some(Named::Deleted) => {
            out.watched.push(Watched { deleted: true, ..watched() });
            return handle;
        }
        None => {
            let watched = watched();
            let is_ghost = out.ghosts.iter().any(|ghost| watched.is(ghost));
            let path = if is_ghost { None } else { search(&watched, v.target, out) };
            if path.is_none() {
                out.watched.push(watched);
            }
            path.map(|path| path.into_os_string().into_vec())
        }
    };
    handle.path = path;
    handle
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

/// What is found by the handle of each.
fn by_handles(marks: &[Mark], mounts: &Mounts) -> Vec<Option<Named>> {
    let hands = if together::pays(marks.len()) { together::hands() } else { 1 };
    // A handle that was opened is closed before the next: few numbers are used.
    let mut tools: Vec<Option<OwnFds>> = std::iter::repeat_with(|| OwnFds::open(8).ok()).take(hands).collect();
    let find = |i: usize, own: &mut Option<OwnFds>| by_handle(marks.get(i)?, mounts, own.as_mut()?);
    let (found, ()) = together::each_with(marks.len(), &mut tools, find, || ());
    found.into_iter().map(Option::flatten).collect()
}

/// Opens the handle through each mount of its filesystem and reads the name, which must lead back to the file.
fn by_handle(mark: &Mark, mounts: &Mounts, own: &mut OwnFds) -> Option<Named> {
    let bytes = handle_bytes(&mark.handle)?;
    let mut deleted = false;
    for point in mounts.of(mark.dev) {
        let Some(mount) = point.open() else { continue };
        let Ok(fd) = notify::open_by_handle(mount, mark.handle.r#type as i32, &bytes) else { continue };
        let Ok(path) = own.link(&fd) else { continue };
        let at_path = rustix::fs::statat(rustix::fs::CWD, path.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
        let at_path = at_path.ok().filter(|stat| stat.st_ino == mark.ino);
        if at_path.is_some_and(|stat| kernel_dev(stat.st_dev) == mark.dev) {
            return Some(Named::Path(path));
        }
        // Some filesystems have more devices than the one that watches show.
        let Ok(stat) = rustix::fs::fstat(&fd) else { continue };
        if stat.st_nlink == 0 {
            deleted = true;
        } else if at_path.is_some_and(|found| found.st_dev == stat.st_dev) {
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

fn handle_bytes(handle: &FhEntry) -> Option<Vec<u8>> {
    let all: Vec<u8> = handle.handle.iter().flat_map(|w| w.to_le_bytes()).collect();
    Some(all.get(..handle.bytes as usize).filter(|b| !b.is_empty())?.to_vec())
}

/// Mount points by device, and paths by mount id.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    points: Vec<Point>,
}

#[derive(Debug)]
struct Point {
    id: u32,
    dev: u32,
    path: Vec<u8>,
    opened: OnceLock<Option<OwnedFd>>,
}

impl Point {
    /// A descriptor that stands for the mount: handles cannot be opened through `O_PATH`.
    fn open(&self) -> Option<BorrowedFd<'_>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = || rustix::fs::open(self.path.as_slice(), flags, Mode::empty()).ok();
        self.opened.get_or_init(open).as_ref().map(AsFd::as_fd)
    }
}

impl Mounts {
    /// Reads a mountinfo file.
    pub(super) fn look(text: &str) -> Self {
        let parse = |line: &str| {
            let mut words = line.split(' ');
            let id = words.next()?.parse().ok()?;
            let (major, minor) = words.nth(1)?.split_once(':')?;
            let dev = major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?;
            Some(Point { id, dev, path: unescape(words.nth(1)?), opened: OnceLock::new() })
        };
        Self { points: text.lines().filter_map(parse).collect() }
    }

    fn of(&self, dev: u32) -> impl Iterator<Item = &Point> {
        self.points.iter().filter(move |point| point.dev == dev)
    }

    /// Mount point and device of a mount.
    pub(super) fn point(&self, id: u32) -> Option<(&[u8], u32)> {
        self.points.iter().find(|point| point.id == id).map(|point| (point.path.as_slice(), point.dev))
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
        for point in mounts.of(watched.dev).filter(|point| is_overlay(point.path.as_slice())) {
            found.scan(Path::new(std::ffi::OsStr::from_bytes(&point.path)), true);
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
            .map_err(|e| misplaced(e, path));
    }
    if let Some(file) = cx.images.ghost_by_inode(dev, ino) {
        return cx.open_id(file);
    }
    let bytes = handle_bytes(handle).ok_or_else(|| Error::bad_image("files.img", "a watch with no file"))?;
    let text = fs::read_to_string("/proc/self/mountinfo").during("reading the list of mounts")?;
    for point in Mounts::look(&text).of(dev) {
        let Some(mount) = point.open() else { continue };
        if let Ok(fd) = notify::open_by_handle(mount, handle.r#type as i32, &bytes) {
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

/// The error of a watched file that cannot be reached by its name.
pub(super) fn misplaced(e: Error, path: &[u8]) -> Error {
    e.on(Object::Path(String::from_utf8_lossy(path).into_owned())).help("put the file back where it was at the dump")
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
        assert_eq!(m.of(254 << 20).map(|point| point.path.as_slice()).collect::<Vec<_>>(), [b"/"]);
        assert_eq!(m.point(30), Some((&b"/dev x"[..], 27)));
    }
}

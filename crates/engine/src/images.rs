//! The image directory: a dump writes aside and appears whole, a restore reads only what is whole.
//!
//! A dump writes into a hidden subdirectory `.crust-partial-PID-N`, not into nameless O_TMPFILE files: those would each keep a
//! descriptor open until the end (a dump of 1000 processes has 5000 files), and overlay, NFS and FUSE filesystems do not all
//! have them. The subdirectory is locked with flock while its dump lives, so leftovers of a killed dump are known by their
//! free lock, whatever became of the pid, and the next dump into the directory removes them.
//!
//! [`Partial::commit`] makes files durable, then moves them to their names: first the old `inventory.img` goes, so from here on
//! nothing takes the directory for a checkpoint; `inventory.img` comes last. Files that are no images (descriptors.json, logs,
//! statistics, sockets, the `parent` link) are never touched. Files of an earlier checkpoint lie aside until the new one is
//! complete, and come back if a rename fails. What cannot be done atomically is only the replacement of one finished
//! checkpoint by another: a crash within those few renames leaves neither.
//!
//! The manifest's hashes: small files and pages are hashed as they are written, pages while the processor's cache has them: a
//! twentieth of the copy, where reading them again took a quarter. What is left (large deleted files) is hashed by
//! [`Committed::hash_rest`] when the tree already runs or is gone.
use crate::{Error, Kind, Object, Result, fault};
use crust_image::manifest::is_plain_name;
use rustix::fs::{self, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};

mod aside;
mod committed;
mod hashing;
mod partial;
mod source;
mod spool;
mod stream;

pub(crate) use aside::remove_partial;
pub use committed::Committed;
pub use partial::Partial;
pub use source::Source;
pub(crate) use spool::nameless_tmpfs;
pub use spool::{TarInput, pack, unpack_into};
pub use stream::Outlet;

/// Beginning of the names of directories that unfinished dumps write into.
pub(crate) const PARTIAL_PREFIX: &str = ".crust-partial-";
/// The manifest with all hashes, before it replaces the one without.
pub(crate) const MANIFEST_UNDER_WAY: &str = "crust-manifest.tmp";
/// Link to the images of the parent checkpoint.
pub const PARENT_LINK: &str = "parent";
/// Features of manifests that this version can read.
pub const KNOWN_FEATURES: &[&str] = &[];

fn image(name: &str) -> Object {
    Object::Image(name.to_owned())
}

impl From<crust_image::Error> for Error {
    fn from(e: crust_image::Error) -> Self {
        Error::new(Kind::BadImage, e.to_string())
    }
}

/// True for filesystems without a disk below them.
fn in_memory(dir: &OwnedFd) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    fs::fstatfs(dir).is_ok_and(|s| matches!(s.f_type, TMPFS_MAGIC | RAMFS_MAGIC))
}

/// A descriptor of our own for the same directory, good for listing it.
fn reopen(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat(dir, ".", flags, Mode::empty()).map_err(|e| Error::kernel("cannot open the image directory", e))
}

fn plain(name: &str) -> Result<()> {
    if is_plain_name(name) {
        return Ok(());
    }
    Err(Error::new(Kind::BadImage, format!("{name:?} is not the name of a file in the image directory")))
}

fn is_regular(fd: BorrowedFd<'_>) -> bool {
    fs::fstat(fd).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile)
}

/// Creates a file that is not there yet.
fn open_new(dir: BorrowedFd<'_>, name: &str) -> Result<File> {
    plain(name)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    fault::io()
        .and_then(|()| fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR))
        .map(File::from)
        .map_err(|e| cannot_write("cannot create the file", e).on(image(name)))
}

/// Says of an error in a stream's images what a user can do.
fn as_input_error(e: Error) -> Error {
    e.help("the stream was cut short or holds no checkpoint: send it again, or repeat the dump")
}

/// Opens a regular file for reading, and says how long it is. Never follows links out of the directory, never blocks on a fifo.
fn open_in(dir: &OwnedFd, name: &str) -> Result<Option<(File, u64)>> {
    plain(name)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = match fs::openat(dir, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => return Err(Error::bad_image(name, "a symbolic link is no image")),
        Err(e) => return Err(Error::kernel("cannot be opened", e).on(image(name))),
    };
    let stat = fs::fstat(&fd).map_err(|e| Error::kernel("cannot be looked at", e).on(image(name)))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::bad_image(name, "not a regular file"));
    }
    Ok(Some((File::from(fd), u64::try_from(stat.st_size).unwrap_or(0))))
}

fn names(dir: &OwnedFd) -> Result<Vec<String>> {
    let wrong = |e| Error::kernel("cannot list the image directory", e);
    let mut found = Vec::new();
    for entry in Dir::read_from(dir).map_err(wrong)? {
        // A name that is not UTF-8 is none of ours.
        if let Ok(name) = entry.map_err(wrong)?.file_name().to_str()
            && name != "."
            && name != ".."
        {
            found.push(name.to_owned());
        }
    }
    found.sort();
    Ok(found)
}

/// Writes everything, however little the kernel takes at once.
fn write_all(file: &File, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        fault::io()?;
        match rustix::io::write(file, fault::cut(bytes)) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn sync_file(file: BorrowedFd<'_>) -> rustix::io::Result<()> {
    fault::io().and_then(|()| fs::fsync(file))
}

fn cannot_write(what: &str, errno: Errno) -> Error {
    let e = Error::kernel(what, errno);
    match errno {
        Errno::ROFS => e.help("the filesystem is read-only: choose another directory with --images-dir"),
        Errno::NOENT | Errno::STALE => e.help("the image directory was removed meanwhile: create it and try again"),
        Errno::IO => e.help("the disk below the image directory is failing: see the kernel's log"),
        _ => e,
    }
}

fn failed(e: &std::io::Error, name: &str) -> Error {
    let errno = e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
    cannot_write("reading or writing failed", errno).on(image(name))
}

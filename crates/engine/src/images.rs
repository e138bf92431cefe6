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
//! The manifest's hashes: small files are hashed as they are written. Big ones (pages) are hashed by
//! [`Committed::hash_rest`] when the tree already runs or is gone, so no hash ever prolongs the freeze.
use crate::options::Tar;
use crate::{Error, Kind, Object, Result, fault};
use crust_image::manifest::{
    ContentHash, Feature, FileLine, Hasher, MANIFEST_NAME, Manifest, PageSum, is_pages, is_plain_name,
};
use crust_image::pagemap::PAGE_BYTES;
use crust_image::{ImageKind, ImageSet, Message};
use rustix::fs::{self, AtFlags, Dir, FallocateFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

mod spool;
mod stream;

use spool::{Feed, Spool};
pub use spool::{TarInput, pack, unpack_into};
pub use stream::Outlet;
use stream::{OutletTo, Stream};

/// Beginning of the names of directories that unfinished dumps write into.
pub(crate) const PARTIAL_PREFIX: &str = ".crust-partial-";
/// Files up to this size are read again at commit if their writer gave no hash.
const SMALL_BYTES: u64 = 1 << 20;
/// The largest image that is read into memory as a whole. Pages are never read this way.
const MAX_READ_BYTES: u64 = 1 << 30;
/// The manifest with all hashes, before it replaces the one without.
pub(crate) const MANIFEST_UNDER_WAY: &str = "crust-manifest.json.tmp";
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

/// From this number on one syncfs(2) is cheaper than a journal commit for each file.
const MANY_FILES: usize = 32;

/// True for filesystems without a disk below them.
fn in_memory(dir: &OwnedFd) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    fs::fstatfs(dir).is_ok_and(|s| matches!(s.f_type, TMPFS_MAGIC | RAMFS_MAGIC))
}

#[derive(Debug, Default)]
struct Written {
    /// Length and hash, once they are known.
    files: BTreeMap<String, (Option<u64>, Option<ContentHash>)>,
    features: Vec<Feature>,
    parent: Option<(PathBuf, Option<String>)>,
    /// The first write that failed: such a dump is never committed.
    broken: Option<String>,
}

/// The images of a dump that is not finished. Dropping it removes them.
#[derive(Debug)]
pub struct Partial {
    to: Destination,
    written: Mutex<Written>,
}

#[derive(Debug)]
enum Destination {
    Directory(Aside),
    Stream(Stream),
}

/// A hidden subdirectory with files that have not come to their place yet. Dropping it removes it.
#[derive(Debug)]
struct Aside {
    dir: OwnedFd,
    /// The subdirectory, and the lock that says we live.
    handle: OwnedFd,
    name: String,
}

impl Aside {
    fn create(dir: BorrowedFd<'_>) -> Result<Self> {
        let dir = reopen(dir)?;
        remove_leftovers(&dir);
        let pid = std::process::id();
        for n in 0..1000 {
            let aside_name = format!("{PARTIAL_PREFIX}{pid}-{n}");
            match fault::io().and_then(|()| fs::mkdirat(&dir, &aside_name, Mode::RWXU)) {
                Ok(()) => {}
                Err(Errno::EXIST) => continue,
                Err(e) => return Err(cannot_write("cannot begin a dump in the image directory", e)),
            }
            let opened =
                fs::openat(&dir, &aside_name, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
            let aside = match opened {
                Ok(aside) => aside,
                // Another dump may have taken it for a leftover in the instant before the lock.
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(cannot_write("cannot open the directory of the unfinished dump", e)),
            };
            match fs::flock(&aside, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => continue,
                // Without locks leftovers cannot be told from live dumps; they are left alone then.
                Err(e) => log::debug!("the image directory's filesystem has no locks: {e}"),
            }
            if fs::statat(&dir, &aside_name, AtFlags::SYMLINK_NOFOLLOW).is_err() {
                continue;
            }
            return Ok(Self { dir, handle: aside, name: aside_name });
        }
        Err(Error::new(Kind::Internal, format!("1000 unfinished dumps named {PARTIAL_PREFIX}{pid}-* exist already")))
    }

    fn with_file<T>(&self, name: &str, work: impl FnOnce(&File) -> std::io::Result<T>) -> Result<T> {
        let fd = fs::openat(&self.handle, name, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
            .map_err(|e| cannot_write("the written file cannot be opened again", e).on(image(name)))?;
        work(&File::from(fd)).map_err(|e| failed(&e, name))
    }

    /// Brings `names`, which lie aside with a manifest or without, to their places as a whole checkpoint.
    fn reveal_all(self, names: Vec<String>, sync: bool) -> Result<()> {
        let sync = sync && !in_memory(&self.dir);
        if sync {
            fs::syncfs(&self.handle).map_err(|e| cannot_write("the images cannot be made durable", e))?;
        }
        let has_manifest = names.iter().any(|name| name == MANIFEST_NAME);
        let files = names.into_iter().filter(|name| name != MANIFEST_NAME);
        let files = files.map(|name| FileLine { name, len_bytes: 0, hash: None }).collect();
        self.reveal(&Manifest { files, ..Manifest::default() }, true, has_manifest, None, sync)
    }

    /// Puts everything in its place, or leaves all as it was.
    fn reveal(self, m: &Manifest, whole: bool, has_manifest: bool, parent: Option<&Path>, sync: bool) -> Result<()> {
        let mut moves = Moves { dir: &self.dir, aside: &self.handle, done: Vec::new() };
        self.rename_all(&mut moves, m, whole, has_manifest, parent, sync).map_err(|e| {
            let undone = moves.undo();
            let half = "the image directory holds no checkpoint now: the dump's images lie in it in part";
            if undone || !whole { e } else { e.state(half) }
        })
    }

    fn rename_all(
        &self,
        moves: &mut Moves<'_>,
        manifest: &Manifest,
        whole: bool,
        has_manifest: bool,
        parent: Option<&Path>,
        sync: bool,
    ) -> Result<()> {
        let inventory = ImageKind::Inventory.file_name(0);
        let sync_dir = || {
            let done = if sync { sync_file(self.dir.as_fd()) } else { Ok(()) };
            done.map_err(|e| cannot_write("the image directory cannot be made durable", e))
        };
        let mut present: HashSet<String> = names(&self.dir)?.into_iter().collect();
        if whole {
            for name in [inventory.as_str(), MANIFEST_NAME] {
                if present.remove(name) {
                    moves.take_away(name)?;
                }
            }
            sync_dir()?;
            for stale in stale_images(&present, manifest) {
                moves.take_away(stale)?;
            }
        }
        if let Some(path) = parent {
            self.link_parent(path)?;
        }
        for file in manifest.files.iter().filter(|f| f.name != inventory) {
            if present.contains(&file.name) {
                moves.take_away(&file.name)?;
            }
            moves.put_in_place(&file.name)?;
        }
        if has_manifest {
            moves.put_in_place(MANIFEST_NAME)?;
        }
        if whole {
            sync_dir()?;
            moves.put_in_place(&inventory)?;
        }
        sync_dir()
    }

    fn link_parent(&self, path: &Path) -> Result<()> {
        match fs::readlinkat(&self.dir, PARENT_LINK, Vec::new()) {
            Ok(now) if now.as_bytes() == path.as_os_str().as_encoded_bytes() => return Ok(()),
            // A link that somebody else placed is theirs (podman points it where the images will be moved to).
            Ok(now) => {
                log::info!("the link {PARENT_LINK} leads to {now:?} already; it stays");
                return Ok(());
            }
            Err(Errno::NOENT) => {}
            Err(e) => return Err(cannot_write("cannot be made a link", e).on(image(PARENT_LINK))),
        }
        fs::symlinkat(path, &self.dir, PARENT_LINK)
            .map_err(|e| cannot_write("cannot be made a link", e).on(image(PARENT_LINK)))
    }
}

impl Partial {
    /// Begins a dump into `dir`, and removes what killed dumps left there.
    ///
    /// # Errors
    /// If nothing can be written there: nothing is changed then.
    pub fn create(dir: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self { to: Destination::Directory(Aside::create(dir)?), written: Mutex::default() })
    }

    /// Begins a dump to the criu-image-streamer that listens in `dir`.
    ///
    /// # Errors
    /// If nobody does.
    pub fn to_streamer(dir: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self { to: Destination::Stream(Stream::streamer(dir)?), written: Mutex::default() })
    }

    /// Begins a dump into a tar archive. A file appears when the archive is whole; a pipe gets each byte at once.
    ///
    /// # Errors
    /// If the archive cannot be opened.
    pub fn to_tar(place: &Tar) -> Result<Self> {
        Ok(Self { to: Destination::Stream(Stream::tar(place)?), written: Mutex::default() })
    }

    /// Asks whether `bytes` more fit, before anything is frozen for them. What this user may not use does not count.
    ///
    /// # Errors
    /// [`Kind::NoSpace`], saying how much is missing.
    pub fn check_space(&self, bytes: u64) -> Result<()> {
        let disk = match &self.to {
            Destination::Directory(aside) => aside.handle.as_fd(),
            Destination::Stream(stream) => match stream.disk() {
                Some(disk) => disk,
                None => return Ok(()),
            },
        };
        let stat = fs::fstatvfs(disk).map_err(|e| cannot_write("cannot ask for free space", e))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        // Filesystems without a size (ramfs, some FUSE) say zero blocks.
        if stat.f_blocks > 0 && free < bytes {
            let what = format!(
                "the images need about {} MiB, and {} MiB are free in the image directory",
                bytes.div_ceil(1 << 20),
                free >> 20
            );
            return Err(Error::new(Kind::NoSpace, what).state("nothing was touched"));
        }
        Ok(())
    }

    /// True if files go out one after the other, so that only one can be written at a time.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self.to, Destination::Stream(_))
    }

    /// Begins a file for its writer to fill; [`Partial::close`] ends it.
    ///
    /// # Errors
    /// With the name and the kernel's reason.
    pub fn outlet(&self, name: &str) -> Result<Outlet> {
        plain(name)?;
        match &self.to {
            Destination::Directory(_) => {
                Ok(Outlet { name: name.to_owned(), to: OutletTo::File(self.create_file(name)?) })
            }
            Destination::Stream(stream) => stream.outlet(name),
        }
    }

    /// Ends a file: all its bytes were written.
    ///
    /// # Errors
    /// If they cannot be sent.
    pub fn close(&self, outlet: Outlet) -> Result<()> {
        let Outlet { name, to } = outlet;
        if let (Destination::Stream(stream), OutletTo::Stream(flow)) = (&self.to, to) {
            let (len, hash) = stream.close(&name, flow)?;
            self.lock().files.insert(name, (Some(len), Some(hash)));
        }
        Ok(())
    }

    /// Creates a file for its writer to fill, readable as well (for mmap). What the name held in this dump before is lost.
    ///
    /// # Errors
    /// With the name and the kernel's reason; a stream has no such files.
    pub fn create_file(&self, name: &str) -> Result<File> {
        plain(name)?;
        let Destination::Directory(aside) = &self.to else {
            return Err(Error::new(Kind::Internal, "a stream has no files to seek in").on(image(name)));
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = fault::io()
            .and_then(|()| fs::openat(&aside.handle, name, flags, Mode::RUSR | Mode::WUSR))
            .map_err(|e| cannot_write("cannot create the file", e).on(image(name)))?;
        self.lock().files.insert(name.to_owned(), (None, None));
        Ok(File::from(fd))
    }

    /// As [`Partial::create_file`], with room for `len_bytes` set aside where the filesystem can do that. The file's length
    /// becomes `len_bytes`; its writer cuts it (`File::set_len`) if it needs less.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] before a byte is copied, else as [`Partial::create_file`].
    pub fn create_sized(&self, name: &str, len_bytes: u64) -> Result<File> {
        let file = self.create_file(name)?;
        if len_bytes > 0 {
            match fault::io().and_then(|()| fs::fallocate(&file, FallocateFlags::empty(), 0, len_bytes)) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(len_bytes).map_err(|e| failed(&e, name))?,
                Err(e) => return Err(cannot_write("no room can be set aside", e).on(image(name))),
            }
        }
        Ok(file)
    }

    /// Writes a whole file.
    ///
    /// # Errors
    /// With the name and the kernel's reason.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if let Destination::Stream(stream) = &self.to {
            plain(name)?;
            let hold = name == ImageKind::Inventory.file_name(0);
            let (len, hash) = stream.put(name, bytes, hold)?;
            self.lock().files.insert(name.to_owned(), (Some(len), Some(hash)));
            return Ok(());
        }
        let file = self.create_file(name)?;
        write_all(&file, bytes).map_err(|e| {
            self.lock().broken.get_or_insert_with(|| name.to_owned());
            cannot_write("writing failed", e).on(image(name))
        })?;
        let mut hasher = Hasher::for_file(name);
        hasher.update(bytes);
        self.lock().files.insert(name.to_owned(), (Some(bytes.len() as u64), Some(hasher.finish())));
        Ok(())
    }

    /// Writes an image of one record.
    ///
    /// # Errors
    /// As [`Partial::put`].
    pub fn put_one(&self, kind: ImageKind, id: u64, record: &impl Message) -> Result<()> {
        self.put(&kind.file_name(id), &crust_image::encode_one(kind, record)?)
    }

    /// Writes an image of records without raw bytes between them.
    ///
    /// # Errors
    /// As [`Partial::put`].
    pub fn put_all<'a, T: Message + 'a>(
        &self,
        kind: ImageKind,
        id: u64,
        records: impl IntoIterator<Item = &'a T>,
    ) -> Result<()> {
        self.put(&kind.file_name(id), &crust_image::encode_all(kind, records)?)
    }

    /// Takes length and hash of a file from [`Partial::create_file`] whose writer knows them: it is not looked at again.
    pub fn note_written(&self, name: &str, len_bytes: u64, hash: ContentHash) {
        if let Some(file) = self.lock().files.get_mut(name) {
            *file = (Some(len_bytes), Some(hash));
        }
    }

    /// Adds a feature bit to the manifest.
    pub fn add_feature(&self, name: &str, must_understand: bool) {
        self.lock().features.push(Feature { name: name.to_owned(), must_understand });
    }

    /// Makes `path` (as seen from the image directory) the parent: the `parent` link at commit, and its id in the manifest.
    ///
    /// # Errors
    /// If there is no such directory, or it is an unfinished dump.
    pub fn set_parent(&self, path: &Path) -> Result<Source> {
        let Destination::Directory(aside) = &self.to else {
            let help = "dump into a directory, or without parent images";
            return Err(Error::unsupported("a stream cannot refer to parent images", help));
        };
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let fd = fs::openat(&aside.dir, path, flags, Mode::empty()).map_err(|e| {
            Error::kernel("cannot open the parent images", e).on(Object::Path(path.display().to_string()))
        })?;
        let parent = Source::open_dir(fd)?;
        self.lock().parent = Some((path.to_owned(), parent.manifest().map(Manifest::id)));
        Ok(parent)
    }

    /// Makes the dump durable and visible. `sync`: wait for the disk. On an error the directory is as it was before, unless
    /// the error's state says otherwise.
    ///
    /// # Errors
    /// With the file and the kernel's reason.
    pub fn commit(self, sync: bool) -> Result<Committed> {
        let mut written = std::mem::take(&mut *self.lock());
        if let Some(name) = &written.broken {
            return Err(
                Error::new(Kind::Internal, "a dump with a half-written image must not be committed").on(image(name))
            );
        }
        let inventory = ImageKind::Inventory.file_name(0);
        let has_inventory = written.files.contains_key(&inventory);
        let manifest = |written: Written, files| Manifest {
            tool: concat!("crust ", env!("CARGO_PKG_VERSION")).to_owned(),
            features: written.features,
            parent: written.parent.and_then(|(_, id)| id),
            files,
        };
        let aside = match self.to {
            Destination::Directory(aside) => aside,
            Destination::Stream(stream) => {
                let line = |(name, (len, hash)): (&String, &(Option<u64>, Option<ContentHash>))| FileLine {
                    name: name.clone(),
                    len_bytes: len.unwrap_or(0),
                    hash: *hash,
                };
                let files = written.files.iter().map(line).collect();
                let manifest = manifest(written, files);
                if has_inventory {
                    stream.put(MANIFEST_NAME, manifest.to_text().as_bytes(), false)?;
                }
                stream.finish(&inventory, sync)?;
                return Ok(Committed { place: Place::Stream(stream), manifest, has_manifest: false });
            }
        };

        // What lives in memory alone cannot be made more durable; many small files are waited for together.
        let sync = sync && !in_memory(&aside.dir);
        let together = sync && written.files.len() > MANY_FILES;
        if together {
            fault::io()
                .and_then(|()| fs::syncfs(&aside.handle))
                .map_err(|e| cannot_write("the unfinished dump cannot be made durable", e))?;
        }
        let each = sync && !together;
        if each {
            // Start writing everything, then wait for each: the first wait commits the journal for most of the others.
            for name in written.files.keys() {
                aside.with_file(name, |f| {
                    // A hint only: fsync below reports what fails.
                    crust_kernel::writeback::start(f.as_fd());
                    Ok(())
                })?;
            }
        }
        let mut files = Vec::with_capacity(written.files.len());
        for (name, (len, hash)) in std::mem::take(&mut written.files) {
            let (len_bytes, hash) = match (len, each) {
                (Some(len), false) => (len, hash),
                _ => aside.with_file(&name, |f| {
                    if each {
                        sync_file(f.as_fd())?;
                    }
                    let len = f.metadata()?.len();
                    let hash = match hash {
                        None if len <= SMALL_BYTES => Some(hash_of(f, &name)?),
                        known => known,
                    };
                    Ok((len, hash))
                })?,
            };
            files.push(FileLine { name, len_bytes, hash });
        }
        let parent_path = written.parent.as_ref().map(|(path, _)| path.clone());
        let manifest = manifest(written, files);
        if has_inventory {
            let file = open_new(aside.handle.as_fd(), MANIFEST_NAME)?;
            write_all(&file, manifest.to_text().as_bytes())
                .and_then(|()| if sync { sync_file(file.as_fd()) } else { Ok(()) })
                .map_err(|e| cannot_write("writing failed", e).on(image(MANIFEST_NAME)))?;
        }
        if sync {
            sync_file(aside.handle.as_fd())
                .map_err(|e| cannot_write("the unfinished dump cannot be made durable", e))?;
        }

        // Up to here the image directory is untouched. From here on only names change.
        let dir = aside.dir.try_clone().map_err(|e| failed(&e, "."))?;
        aside.reveal(&manifest, has_inventory, has_inventory, parent_path.as_deref(), sync)?;
        Ok(Committed { place: Place::Directory(dir), manifest, has_manifest: has_inventory })
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        // A writer that panicked left a name at most; nothing here can be half done.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        remove_partial(&self.dir, &self.handle, &self.name);
    }
}

/// What was renamed so far to make a dump visible, so that it can be taken back.
struct Moves<'a> {
    dir: &'a OwnedFd,
    aside: &'a OwnedFd,
    /// Names, and whether the file came into the image directory (else it went from there).
    done: Vec<(String, bool)>,
}

impl Moves<'_> {
    /// Name of an earlier checkpoint's file while it lies aside.
    fn old(name: &str) -> String {
        format!("old {name}")
    }

    fn take_away(&mut self, name: &str) -> Result<()> {
        fault::io()
            .and_then(|()| fs::renameat(self.dir, name, self.aside, Self::old(name)))
            .map_err(|e| cannot_write("the earlier checkpoint cannot be replaced", e).on(image(name)))?;
        self.done.push((name.to_owned(), false));
        Ok(())
    }

    fn put_in_place(&mut self, name: &str) -> Result<()> {
        fault::io()
            .and_then(|()| fs::renameat(self.aside, name, self.dir, name))
            .map_err(|e| cannot_write("the finished image cannot be put in place", e).on(image(name)))?;
        self.done.push((name.to_owned(), true));
        Ok(())
    }

    /// Back to the earlier state, last step first. True if that went well.
    fn undo(self) -> bool {
        let mut well = true;
        for (name, came) in self.done.iter().rev() {
            let undone = if *came {
                fs::renameat(self.dir, name, self.aside, name)
            } else {
                fs::renameat(self.aside, Self::old(name), self.dir, name)
            };
            if let Err(e) = undone {
                log::error!("{name}: the earlier state of the image directory cannot be brought back: {e}");
                well = false;
            }
        }
        well
    }
}

#[derive(Debug)]
enum Place {
    Directory(OwnedFd),
    Stream(Stream),
}

/// A dump whose images are visible.
#[derive(Debug)]
pub struct Committed {
    place: Place,
    manifest: Manifest,
    has_manifest: bool,
}

impl Committed {
    /// Bytes of all images together.
    pub fn image_bytes(&self) -> u64 {
        self.manifest.files.iter().map(|f| f.len_bytes).sum()
    }

    /// What was written.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Takes the checkpoint away again: somebody refused it after it was made. The inventory goes first, so that nothing
    /// that is left could be taken for a good one.
    ///
    /// # Errors
    /// With the first file that cannot be removed.
    pub fn discard(self) -> Result<()> {
        let dir = match &self.place {
            Place::Directory(dir) => dir,
            Place::Stream(stream) => return stream.discard(),
        };
        let inventory = ImageKind::Inventory.file_name(0);
        let others = self.manifest.files.iter().map(|f| f.name.as_str()).filter(|n| *n != inventory);
        for name in [inventory.as_str(), MANIFEST_NAME].into_iter().chain(others) {
            match fs::unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(cannot_write("the refused checkpoint cannot be removed", e).on(image(name))),
            }
        }
        Ok(())
    }

    /// Hashes the files that are not hashed yet and completes the manifest. For after the tree runs again or is gone.
    /// `sync`: wait for the disk before the manifest is replaced.
    ///
    /// # Errors
    /// If a file cannot be read; the checkpoint stays good, only `verify` knows less.
    pub fn hash_rest(mut self, sync: bool) -> Result<Manifest> {
        let Place::Directory(dir) = &self.place else { return Ok(self.manifest) };
        let missing: Vec<usize> = (0..self.manifest.files.len())
            .filter(|&n| self.manifest.files.get(n).is_some_and(|f| f.hash.is_none()))
            .collect();
        if missing.is_empty() || !self.has_manifest {
            return Ok(self.manifest);
        }
        for n in missing {
            let Some(line) = self.manifest.files.get_mut(n) else { continue };
            let (file, _) = open_in(dir, &line.name)?
                .ok_or_else(|| Error::bad_image(&line.name, "the image vanished after it was written"))?;
            line.hash = Some(hash_of(&file, &line.name).map_err(|e| failed(&e, &line.name))?);
        }
        let temporary = MANIFEST_UNDER_WAY;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = fs::openat(dir, temporary, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| cannot_write("cannot complete the manifest", e).on(image(temporary)))?;
        let file = File::from(fd);
        let done = write_all(&file, self.manifest.to_text().as_bytes()).and_then(|()| {
            // A power cut must not find the new name before the new bytes.
            if sync && !in_memory(dir) {
                sync_file(file.as_fd())?;
            }
            fault::io()?;
            fs::renameat(dir, temporary, dir, MANIFEST_NAME)
        });
        if let Err(e) = done {
            if let Err(e) = fs::unlinkat(dir, temporary, AtFlags::empty()) {
                log::warn!("{temporary} stays behind in the image directory: {e}");
            }
            return Err(cannot_write("cannot be completed", e).on(image(MANIFEST_NAME)));
        }
        Ok(self.manifest)
    }
}

/// The images of a finished dump, ours or CRIU's.
#[derive(Debug)]
pub struct Source {
    dir: OwnedFd,
    manifest: Option<Manifest>,
    /// Who has the files that are not in the directory yet.
    feed: Option<Feed>,
    /// What keeps the directory, if it is ours.
    spool: Option<Spool>,
}

impl Source {
    /// Opens a directory for restore.
    ///
    /// # Errors
    /// If it holds no finished checkpoint, or one that needs what this version does not have.
    pub fn open(dir: BorrowedFd<'_>) -> Result<Self> {
        Self::open_with(dir, None)
    }

    fn open_with(dir: BorrowedFd<'_>, feed: Option<Feed>) -> Result<Self> {
        let source = Self::read_manifest(reopen(dir)?, feed)?;
        let inventory = ImageKind::Inventory.file_name(0);
        if !source.exists(&inventory)? {
            let unfinished = names(&source.dir)?.into_iter().find(|name| name.starts_with(PARTIAL_PREFIX));
            return Err(match unfinished {
                Some(name) => {
                    Error::bad_image(inventory, format!("the dump into this directory is not finished ({name})"))
                        .help("wait for the dump to end; if it was killed, dump again")
                }
                None => Error::bad_image(inventory, "no checkpoint is in this directory")
                    .help("name the directory that the dump was told with --images-dir"),
            });
        }
        if let Some(manifest) = &source.manifest {
            source.check_lengths(manifest)?;
        }
        Ok(source)
    }

    /// Opens a directory that need not have an inventory: a parent, or pages received by a page server.
    ///
    /// # Errors
    /// If the manifest is there but cannot be read, or demands what this version does not have.
    pub fn open_dir(dir: OwnedFd) -> Result<Self> {
        Self::read_manifest(dir, None)
    }

    /// The same images, through another descriptor of their directory.
    #[must_use]
    pub fn through(mut self, dir: OwnedFd) -> Self {
        self.dir = dir;
        self
    }

    /// True if files come from somebody else when they are asked for, and only until [`Source::dismiss`].
    pub fn is_fed(&self) -> bool {
        self.feed.is_some()
    }

    /// No more files are needed than were asked for.
    pub fn dismiss(&self) {
        if let Some(feed) = &self.feed {
            feed.dismiss();
        }
    }

    /// Makes sure that a file is in the directory, if there is one.
    fn fetch(&self, name: &str) -> Result<()> {
        self.feed.as_ref().map_or(Ok(()), |feed| feed.fetch(name))
    }

    fn open_in(&self, name: &str) -> Result<Option<(File, u64)>> {
        self.fetch(name)?;
        open_in(&self.dir, name)
    }

    fn hash_of(&self, name: &str) -> Result<Option<ContentHash>> {
        self.open_in(name)?.map(|(f, _)| hash_of(&f, name)).transpose().map_err(|e| failed(&e, name))
    }

    fn read_manifest(dir: OwnedFd, feed: Option<Feed>) -> Result<Self> {
        let mut source = Self { dir, manifest: None, feed, spool: None };
        if let Some(bytes) = source.read(MANIFEST_NAME)? {
            let text = String::from_utf8_lossy(&bytes);
            let manifest = Manifest::from_text(&text)?;
            if let [first, ..] = manifest.not_understood(KNOWN_FEATURES)[..] {
                return Err(Error::bad_image(MANIFEST_NAME, format!("the checkpoint needs the feature {first:?}"))
                    .help("restore it with the version of crust that wrote it, or a later one"));
            }
            source.manifest = Some(manifest);
        }
        Ok(source)
    }

    /// The checkpoint's manifest, if crust wrote it.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// The image directory itself.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// A whole file, or `None` if there is none.
    ///
    /// # Errors
    /// If it is no regular file, larger than 1 GiB, or cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some((mut file, len)) = self.open_in(name)? else { return Ok(None) };
        if len > MAX_READ_BYTES {
            return Err(Error::bad_image(name, format!("{len} bytes are more than any image of this kind has")));
        }
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(len as usize)
            .map_err(|_| Error::bad_image(name, format!("no memory for {len} bytes")))?;
        bytes.resize(len as usize, 0);
        file.read_exact(&mut bytes).map_err(|e| failed(&e, name))?;
        self.compare_length(name, len);
        Ok(Some(bytes))
    }

    /// The length of a regular file in bytes, or `None` if there is none.
    ///
    /// # Errors
    /// If it is something else, or the directory cannot be searched.
    pub fn file_len(&self, name: &str) -> Result<Option<u64>> {
        plain(name)?;
        self.fetch(name)?;
        match fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                Ok(Some(u64::try_from(stat.st_size).unwrap_or(0)))
            }
            Ok(_) => Err(Error::bad_image(name, "not a regular file")),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::kernel("cannot be looked up", e).on(image(name))),
        }
    }

    /// The descriptor of a file, for reading, or `None` if there is none.
    ///
    /// # Errors
    /// If it is no regular file or cannot be opened.
    pub fn open_file(&self, name: &str) -> Result<Option<OwnedFd>> {
        Ok(self.open_in(name)?.map(|(file, _)| file.into()))
    }

    /// Whether there is a file of this name.
    ///
    /// # Errors
    /// If the directory cannot be searched.
    pub fn exists(&self, name: &str) -> Result<bool> {
        plain(name)?;
        self.fetch(name)?;
        match fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(Error::kernel("cannot be looked up", e).on(image(name))),
        }
    }

    /// Names of all files in the directory, sorted.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        names(&self.dir)
    }

    /// The record of an image that has exactly one, and must be there.
    ///
    /// # Errors
    /// [`Kind::BadImage`] if it is missing or something else.
    pub fn read_one<T: Message + Default>(&self, kind: ImageKind, id: u64) -> Result<T> {
        self.read_one_if(kind, id)?.ok_or_else(|| Error::bad_image(kind.file_name(id), "the image is missing"))
    }

    /// The record of an image that has exactly one; `None` if there is no such image.
    ///
    /// # Errors
    /// [`Kind::BadImage`] if it is something else.
    pub fn read_one_if<T: Message + Default>(&self, kind: ImageKind, id: u64) -> Result<Option<T>> {
        let name = kind.file_name(id);
        match self.read(&name)? {
            Some(bytes) => Ok(Some(crust_image::read_one(&name, &bytes, kind)?)),
            None => Ok(None),
        }
    }

    /// All records of an image without raw bytes between them; none if there is no such image.
    ///
    /// # Errors
    /// [`Kind::BadImage`] if it is something else.
    pub fn read_all<T: Message + Default>(&self, kind: ImageKind, id: u64) -> Result<Vec<T>> {
        let name = kind.file_name(id);
        match self.read(&name)? {
            Some(bytes) => Ok(crust_image::read_all(&name, &bytes, kind)?),
            None => Ok(Vec::new()),
        }
    }

    /// The parent checkpoint that the `parent` link leads to, if there is one.
    ///
    /// # Errors
    /// If the link leads nowhere, or to another checkpoint than the one this was made on.
    pub fn parent(&self) -> Result<Option<Self>> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = match fs::openat(&self.dir, PARENT_LINK, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) if !self.exists(PARENT_LINK)? => return Ok(None),
            Err(e) => {
                return Err(Error::kernel("the parent images cannot be opened", e)
                    .on(image(PARENT_LINK))
                    .kind_is(Kind::BadImage)
                    .help("put the parent images where the link leads, or correct the link"));
            }
        };
        let parent = Self::open_dir(fd)?;
        let wanted = self.manifest.as_ref().and_then(|m| m.parent.as_deref());
        if let (Some(wanted), Some(found)) = (wanted, parent.manifest.as_ref().map(Manifest::id))
            && wanted != found
        {
            let what = format!("the link leads to checkpoint {found}, and this one was made on {wanted}");
            return Err(Error::bad_image(PARENT_LINK, what).help("correct the link"));
        }
        Ok(Some(parent))
    }

    /// A file missing or pages cut short mean a torn copy. Other lengths may change: people edit images with crit.
    fn check_lengths(&self, manifest: &Manifest) -> Result<()> {
        let torn = "copy the whole image directory again, or repeat the dump";
        for line in &manifest.files {
            self.fetch(&line.name)?;
        }
        let present: HashSet<String> = names(&self.dir)?.into_iter().collect();
        for line in &manifest.files {
            let missing = || Error::bad_image(&line.name, "the image is missing").help(torn);
            if !present.contains(&line.name) {
                return Err(missing());
            }
            // The others are looked at when they are read.
            if is_pages(&line.name) {
                let len = self.file_len(&line.name)?.ok_or_else(missing)?;
                if len < line.len_bytes {
                    let what = format!("the image has {len} bytes, and {} were written", line.len_bytes);
                    return Err(Error::bad_image(&line.name, what).help(torn));
                }
                self.compare_length(&line.name, len);
            }
        }
        Ok(())
    }

    /// Says so if a file has another length than was written.
    fn compare_length(&self, name: &str, len: u64) {
        let Some(manifest) = &self.manifest else { return };
        // Written in this order; where somebody changed that nothing is said.
        let line = manifest.files.binary_search_by(|line| line.name.as_str().cmp(name));
        if let Some(line) = line.ok().and_then(|n| manifest.files.get(n)).filter(|line| line.len_bytes != len) {
            log::warn!("{name}: {len} bytes, and {} were written: somebody changed it", line.len_bytes);
        }
    }
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

/// Images of an earlier checkpoint that this one does not have.
fn stale_images<'a>(present: &'a HashSet<String>, manifest: &Manifest) -> Vec<&'a str> {
    let ours: HashSet<&str> = manifest.files.iter().map(|f| f.name.as_str()).collect();
    let is_image = |name: &str| ImageKind::of_file_name(name).is_some_and(|(kind, _)| !kind.is_service());
    present.iter().map(String::as_str).filter(|name| is_image(name) && !ours.contains(name)).collect()
}

/// Removes the directories of dumps that were killed: those whose lock nobody holds.
fn remove_leftovers(dir: &OwnedFd) {
    let Ok(found) = names(dir) else { return };
    if found.iter().any(|name| name == MANIFEST_UNDER_WAY)
        && let Err(e) = fs::unlinkat(dir, MANIFEST_UNDER_WAY, AtFlags::empty())
    {
        log::warn!("{MANIFEST_UNDER_WAY} cannot be removed: {e}");
    }
    for name in found.iter().filter(|name| name.starts_with(PARTIAL_PREFIX)) {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(aside) = fs::openat(dir, name, flags, Mode::empty()) else { continue };
        match fs::flock(&aside, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                log::info!("removing {name}, left by a dump that was killed");
                remove_partial(dir, &aside, name);
            }
            Err(Errno::WOULDBLOCK) => log::debug!("{name} belongs to a dump that is running"),
            Err(e) => log::warn!("{name} may be left by a killed dump, but its lock cannot be asked: {e}"),
        }
    }
}

pub(crate) fn remove_partial(dir: &OwnedFd, aside: &OwnedFd, aside_name: &str) {
    for name in names(aside).unwrap_or_default() {
        if let Err(e) = fs::unlinkat(aside, &name, AtFlags::empty()) {
            log::warn!("{aside_name}/{name} cannot be removed: {e}");
        }
    }
    if let Err(e) = fs::unlinkat(dir, aside_name, AtFlags::REMOVEDIR) {
        log::warn!("{aside_name} cannot be removed: {e}");
    }
}

/// The hash that the manifest has for a file of this name. Large files of pages are read by two threads.
fn hash_of(file: &File, name: &str) -> std::io::Result<ContentHash> {
    if is_pages(name) {
        return pages_hash(file);
    }
    let mut hasher = Hasher::for_file(name);
    each_piece(file, 0, u64::MAX, |_, bytes| hasher.update(bytes))?;
    Ok(hasher.finish())
}

/// What is read at once: it stays in the second-level cache until it is hashed.
const PIECE: u64 = 256 << 10;
/// Parts that threads take; below this one thread does all.
const PART: u64 = 8 << 20;

fn pages_hash(file: &File) -> std::io::Result<ContentHash> {
    let len = file.metadata()?.len();
    let next = AtomicU64::new(0);
    let work = || -> std::io::Result<PageSum> {
        let mut sum = PageSum::default();
        loop {
            let start = next.fetch_add(PART, Ordering::Relaxed);
            if start >= len {
                return Ok(sum);
            }
            each_piece(file, start, start.saturating_add(PART), |at, bytes| sum.add(at / PAGE_BYTES, bytes))?;
        }
    };
    let several = len > PART && std::thread::available_parallelism().is_ok_and(|n| n.get() > 1);
    if !several {
        return Ok(work()?.finish());
    }
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let ours = work();
        let theirs = other.join().unwrap_or_else(|_| Err(std::io::Error::other("a thread panicked")));
        let mut sum = ours?;
        sum.join(theirs?);
        Ok(sum.finish())
    })
}

/// Calls `take` with the bytes from `at` to `end` or the file's end, in order; every piece but the file's last is [`PIECE`]
/// bytes long.
fn each_piece(file: &File, mut at: u64, end: u64, mut take: impl FnMut(u64, &[u8])) -> std::io::Result<()> {
    let mut buffer = vec![0; PIECE as usize];
    while at < end {
        let mut filled = 0;
        while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
            match rustix::io::pread(file, room, at + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        take(at, buffer.get(..filled).unwrap_or_default());
        if filled < buffer.len() {
            break;
        }
        at += PIECE;
    }
    Ok(())
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

/// For the image crate's tools.
impl ImageSet for Source {
    fn names(&self) -> crust_image::Result<Vec<String>> {
        names(&self.dir).map_err(|e| as_image_error(".", &e))
    }

    fn read(&self, name: &str) -> crust_image::Result<Option<Vec<u8>>> {
        Self::read(self, name).map_err(|e| as_image_error(name, &e))
    }

    fn len_bytes(&self, name: &str) -> crust_image::Result<Option<u64>> {
        let file = self.open_in(name).map_err(|e| as_image_error(name, &e))?;
        Ok(file.map(|(_, len)| len))
    }

    fn hash(&self, name: &str) -> crust_image::Result<Option<ContentHash>> {
        self.hash_of(name).map_err(|e| as_image_error(name, &e))
    }
}

fn as_image_error(name: &str, e: &Error) -> crust_image::Error {
    crust_image::Error::text(name, e.headline())
}

//! The images of a dump that is not finished.
use super::aside::Aside;
use super::committed::{Committed, Place};
use super::hashing::hash_of;
use super::stream::{Outlet, OutletTo, Stream};
use super::{Source, cannot_write, failed, image, in_memory, open_new, plain, sync_file, write_all};
use crate::options::Tar;
use crate::{Error, Kind, Object, Result, Watch, fault};
use crust_image::manifest::{ContentHash, Digest, Feature, FileLine, Hasher, MANIFEST_NAME, Manifest};
use crust_image::{ImageKind, Message};
use rustix::fs::{self, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Files up to this size are read again at commit if their writer gave no hash.
const SMALL_BYTES: u64 = 1 << 20;

/// From this number on one syncfs(2) is cheaper than a journal commit for each file.
const MANY_FILES: usize = 32;

#[derive(Debug, Default)]
struct Written {
    files: Files,
    features: Vec<Feature>,
    parent: Option<(PathBuf, Option<ContentHash>)>,
    /// The first write that failed: such a dump is never committed.
    broken: Option<String>,
}

/// Files by name, with their length and hash once they are known.
type Files = BTreeMap<String, (Option<u64>, Option<ContentHash>)>;

impl Written {
    fn manifest(self, files: Vec<FileLine>) -> Manifest {
        Manifest {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: self.features,
            parent: self.parent.and_then(|(_, id)| id),
            files,
            stored_id: None,
        }
    }
}

/// The images of a dump that is not finished. Dropping it removes them.
#[derive(Debug)]
pub struct Partial {
    to: Destination,
    written: Mutex<Written>,
    watch: Watch,
}

#[derive(Debug)]
enum Destination {
    Directory(Aside),
    Stream(Stream),
}

impl Partial {
    fn new(to: Destination) -> Self {
        Self { to, written: Mutex::default(), watch: Watch::default() }
    }

    /// `watch` is asked in long work for these images, up to the moment when they appear.
    pub(crate) fn watched(mut self, watch: Watch) -> Self {
        if let Destination::Stream(stream) = &mut self.to {
            stream.watch = watch.clone();
        }
        self.watch = watch;
        self
    }

    /// Begins a dump into `dir`, and removes what killed dumps left there.
    ///
    /// # Errors
    /// If nothing can be written there: nothing is changed then.
    pub fn create(dir: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self::new(Destination::Directory(Aside::create(dir)?)))
    }

    /// Begins a dump to the criu-image-streamer that listens in `dir`.
    ///
    /// # Errors
    /// If nobody does.
    pub fn to_streamer(dir: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self::new(Destination::Stream(Stream::streamer(dir)?)))
    }

    /// Begins a dump into a tar archive. A file appears when the archive is whole; a pipe gets each byte at once.
    ///
    /// # Errors
    /// If the archive cannot be opened.
    pub fn to_tar(place: &Tar) -> Result<Self> {
        Ok(Self::new(Destination::Stream(Stream::tar(place)?)))
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
                let to = OutletTo::File(self.create_file(name)?);
                Ok(Outlet { name: name.to_owned(), to, watch: self.watch.clone() })
            }
            Destination::Stream(stream) => stream.outlet(name),
        }
    }

    /// Ends a file: all its bytes were written.
    ///
    /// # Errors
    /// If they cannot be sent.
    pub fn close(&self, outlet: Outlet) -> Result<()> {
        let Outlet { name, to, .. } = outlet;
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
        let has_inventory = written.files.contains_key(&ImageKind::Inventory.file_name(0));
        let aside = match self.to {
            Destination::Directory(aside) => aside,
            Destination::Stream(stream) => return end_stream(stream, written, has_inventory, sync),
        };
        // What lives in memory alone cannot be made more durable.
        let sync = sync && !in_memory(&aside.dir);
        let files = durable(&aside, std::mem::take(&mut written.files), sync, &self.watch)?;
        let parent_path = written.parent.as_ref().map(|(path, _)| path.clone());
        let manifest = written.manifest(files);
        if has_inventory {
            let file = open_new(aside.handle.as_fd(), MANIFEST_NAME)?;
            write_all(&file, &manifest.to_bytes())
                .and_then(|()| if sync { sync_file(file.as_fd()) } else { Ok(()) })
                .map_err(|e| cannot_write("writing failed", e).on(image(MANIFEST_NAME)))?;
        }
        if sync {
            sync_file(aside.handle.as_fd())
                .map_err(|e| cannot_write("the unfinished dump cannot be made durable", e))?;
        }

        // Up to here the image directory is untouched. From here on only names change, and nothing turns back.
        self.watch.go_on()?;
        let dir = aside.dir.try_clone().map_err(|e| failed(&e, "."))?;
        aside.reveal(&manifest, has_inventory, has_inventory, parent_path.as_deref(), sync)?;
        Ok(Committed { place: Place::Directory(dir), manifest, has_manifest: has_inventory })
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        // A writer that panicked left a name at most; nothing here can be half done.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a stream whose files are all through: the manifest, and the inventory last.
fn end_stream(stream: Stream, mut written: Written, has_inventory: bool, sync: bool) -> Result<Committed> {
    let line = |(name, (len, hash)): (String, (Option<u64>, Option<ContentHash>))| FileLine {
        name,
        len_bytes: len.unwrap_or(0),
        hash: hash.map(Digest::from),
    };
    let files = std::mem::take(&mut written.files).into_iter().map(line).collect();
    let manifest = written.manifest(files);
    if has_inventory {
        stream.put(MANIFEST_NAME, &manifest.to_bytes(), false)?;
    }
    stream.finish(&ImageKind::Inventory.file_name(0), sync)?;
    Ok(Committed { place: Place::Stream(stream), manifest, has_manifest: false })
}

/// Makes files durable if `sync` says so, many small ones together. Their lengths, and the hashes of those that are known or
/// cheap.
fn durable(aside: &Aside, files: Files, sync: bool, watch: &Watch) -> Result<Vec<FileLine>> {
    let together = sync && files.len() > MANY_FILES;
    if together {
        fault::io()
            .and_then(|()| fs::syncfs(&aside.handle))
            .map_err(|e| cannot_write("the unfinished dump cannot be made durable", e))?;
    }
    let each = sync && !together;
    if each {
        // Start writing everything, then wait for each: the first wait commits the journal for most of the others.
        for name in files.keys() {
            aside.with_file(name, |f| {
                // A hint only: fsync below reports what fails.
                crust_kernel::writeback::start(f.as_fd());
                Ok(())
            })?;
        }
    }
    let line = |(name, (len, hash)): (String, (Option<u64>, Option<ContentHash>))| {
        watch.go_on()?;
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
        Ok(FileLine { name, len_bytes, hash: hash.map(Digest::from) })
    };
    files.into_iter().map(line).collect()
}

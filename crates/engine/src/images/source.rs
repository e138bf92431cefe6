//! The images of a finished dump, to be read.
use super::hashing::hash_of;
use super::spool::{Feed, Spool};
use super::{KNOWN_FEATURES, PARENT_LINK, PARTIAL_PREFIX, failed, image, names, open_in, plain, reopen};
use crate::{Error, Kind, Result};
use crust_image::manifest::{ContentHash, MANIFEST_NAME, Manifest, TEXT_NAME, is_pages};
use crust_image::{ImageKind, ImageSet, Message};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The largest image that is read into memory as a whole. Pages are never read this way.
const MAX_READ_BYTES: u64 = 1 << 30;

/// The images of a finished dump, ours or CRIU's.
#[derive(Debug)]
pub struct Source {
    dir: OwnedFd,
    manifest: Option<Manifest>,
    /// Who has the files that are not in the directory yet.
    pub(super) feed: Option<Feed>,
    /// What keeps the directory, if it is ours.
    pub(super) spool: Option<Spool>,
}

impl Source {
    /// Opens a directory for restore.
    ///
    /// # Errors
    /// If it holds no finished checkpoint, or one that needs what this version does not have.
    pub fn open(dir: BorrowedFd<'_>) -> Result<Self> {
        Self::open_with(dir, None)
    }

    pub(super) fn open_with(dir: BorrowedFd<'_>, feed: Option<Feed>) -> Result<Self> {
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

    pub(super) fn hash_of(&self, name: &str) -> Result<Option<ContentHash>> {
        self.open_in(name)?.map(|(f, _)| hash_of(&f, name)).transpose().map_err(|e| failed(&e, name))
    }

    fn read_manifest(dir: OwnedFd, feed: Option<Feed>) -> Result<Self> {
        let mut source = Self { dir, manifest: None, feed, spool: None };
        let stored = match source.read(MANIFEST_NAME)? {
            None => source.read(TEXT_NAME)?,
            stored => stored,
        };
        if let Some(bytes) = stored {
            let manifest = Manifest::read(&bytes)?;
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
        // The room is not written twice.
        let read = file.by_ref().take(len).read_to_end(&mut bytes).map_err(|e| failed(&e, name))?;
        if read as u64 != len {
            return Err(failed(&std::io::ErrorKind::UnexpectedEof.into(), name));
        }
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
        let wanted = self.manifest.as_ref().and_then(|m| m.parent);
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

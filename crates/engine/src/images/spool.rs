//! Images that come out of a stream, once and in their own order: kept in memory until the tree is back.
//!
//! They go into a tmpfs that is mounted nowhere and has no name: it needs no directory, and it is gone with the last
//! descriptor, however we end. Without the right to make one, a hidden directory in the work directory does as well.
use super::aside::Aside;
use super::hashing::each_piece;
use super::stream::{OutletTo, PATIENCE, Stream, connect, pipe, send_all, send_pipe, wait_for};
use super::{Source, as_input_error, cannot_write, image, open_new, write_all};
use crate::options::Tar;
use crate::{Error, Kind, Object, OnObject, Result, ResultExt, Watch};
use crust_image::manifest::{ContentHash, Hasher, is_manifest, is_plain_name};
use crust_image::tar::{self, Input};
use crust_image::{ImageKind, streamer};
use rustix::event::PollFlags;
use rustix::fs::{self, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A place for images on their way.
#[derive(Debug)]
pub(super) struct Spool {
    pub(super) dir: OwnedFd,
    /// Removes the hidden directory, if it is one.
    _hidden: Option<Aside>,
}

impl Spool {
    /// `fallback` is a directory that may be written to.
    fn new(fallback: Option<BorrowedFd<'_>>) -> Result<Self> {
        match nameless_tmpfs() {
            Ok(dir) => Ok(Self { dir, _hidden: None }),
            Err(e) => {
                log::debug!("no tmpfs of our own ({e}): images go through the work directory");
                let fallback = fallback.ok_or_else(|| Error::kernel("no place for the images of the stream", e))?;
                let hidden = Aside::create(fallback)?;
                let dir = hidden.handle.try_clone().during("duplicating a descriptor")?;
                Ok(Self { dir, _hidden: Some(hidden) })
            }
        }
    }
}

/// A tmpfs that is mounted nowhere and ends with the last descriptor in it.
pub(crate) fn nameless_tmpfs() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // As much as the machine has; what limits us is the image.
    fsconfig_set_string(context.as_fd(), "size", "100%")?;
    fsconfig_set_string(context.as_fd(), "mode", "0700")?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// What came through a stream, by name.
#[derive(Debug, Default)]
struct Arrived {
    /// Length and hash; `None`: there is no such file.
    files: BTreeMap<String, Option<(u64, ContentHash)>>,
}

/// criu-image-streamer at the other end: gives each file once, when it is asked for.
#[derive(Debug)]
pub(super) struct Feed {
    dir: OwnedFd,
    inner: Mutex<FeedState>,
}

#[derive(Debug)]
struct FeedState {
    /// `None` when the last file was fetched.
    socket: Option<OwnedFd>,
    asked: HashMap<String, bool>,
    arrived: Arrived,
    /// Who ends our waits.
    watch: Watch,
}

impl Feed {
    fn lock(&self) -> MutexGuard<'_, FeedState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that the file lies in the spool, if the streamer has it.
    pub(super) fn fetch(&self, name: &str) -> Result<()> {
        let mut state = self.lock();
        if state.asked.contains_key(name) || !is_plain_name(name) {
            return Ok(());
        }
        let Some(socket) = &state.socket else { return Ok(()) };
        let arrived = fetch(socket.as_fd(), self.dir.as_fd(), name, &state.watch)?;
        state.asked.insert(name.to_owned(), arrived.is_some());
        state.arrived.files.insert(name.to_owned(), arrived);
        Ok(())
    }

    /// Tells the streamer that no more files are needed.
    pub(super) fn dismiss(&self) {
        self.lock().socket = None;
    }
}

/// Asks the streamer for one file.
fn fetch(socket: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &str, watch: &Watch) -> Result<Option<(u64, ContentHash)>> {
    let lost = |e: Errno| {
        if let Err(over) = watch.go_on() {
            return over;
        }
        Error::kernel("the connection to criu-image-streamer failed", e)
            .on(image(name))
            .help("see what criu-image-streamer says")
    };
    send_all(socket, &streamer::request(name)).map_err(lost)?;
    wait_for(socket, PollFlags::IN, PATIENCE, watch).map_err(lost)?;
    let mut from = File::from(socket.try_clone_to_owned().during("duplicating a descriptor")?);
    match streamer::read_reply(&mut from)? {
        None => return Err(lost(Errno::PIPE)),
        Some(false) => return Ok(None),
        Some(true) => {}
    }
    let (read, write) = pipe()?;
    send_pipe(socket, write.as_fd()).map_err(lost)?;
    drop(write);
    rustix::io::ioctl_fionbio(&read, true).during("preparing a pipe")?;
    let out = open_new(dir, name)?;
    let mut hasher = Hasher::for_file(name);
    let mut buffer = vec![0; 1 << 20];
    let mut len = 0;
    loop {
        watch.go_on()?;
        match rustix::io::read(&read, &mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                let piece = buffer.get(..n).unwrap_or_default();
                hasher.update(piece);
                write_all(&out, piece)
                    .map_err(|e| cannot_write("keeping the stream's images failed", e).on(image(name)))?;
                len += n as u64;
            }
            Err(Errno::AGAIN) => wait_for(read.as_fd(), PollFlags::IN, PATIENCE, watch).map_err(lost)?,
            Err(Errno::INTR) => {}
            Err(e) => return Err(lost(e)),
        }
    }
    Ok(Some((len, hasher.finish())))
}

/// An archive's bytes, from a file or a pipe.
#[derive(Debug)]
pub struct TarInput {
    file: File,
    seekable: bool,
    watch: Watch,
}

impl TarInput {
    /// Reads from where the descriptor stands.
    pub fn new(file: File) -> Self {
        let seekable = super::is_regular(file.as_fd());
        Self { file, seekable, watch: Watch::default() }
    }

    /// `watch` is asked between pieces, and while nothing comes.
    fn watched(self, watch: Watch) -> Self {
        Self { watch, ..self }
    }
}

impl io::Read for TarInput {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.watch.is_over() {
            return Err(Errno::CANCELED.into());
        }
        if !self.seekable {
            // Who sends may not have begun: the request's own deadline counts, and no other.
            wait_for(self.file.as_fd(), PollFlags::IN, Duration::MAX, &self.watch)?;
        }
        self.file.read(into)
    }
}

impl Input for TarInput {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        // Short ways are quicker read, and a seek beyond the end would not be noticed.
        if self.seekable && bytes > 1 << 20 {
            let ahead = i64::try_from(bytes - 1).map_err(|_| io::ErrorKind::UnexpectedEof)?;
            io::Seek::seek(&mut self.file, io::SeekFrom::Current(ahead))?;
            return io::Read::read_exact(&mut self.file, &mut [0]);
        }
        let skipped = io::copy(&mut io::Read::take(&mut self.file, bytes), &mut io::sink())?;
        if skipped < bytes { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

/// Opens an archive for reading.
fn open_tar(place: &Tar) -> Result<TarInput> {
    let fd = match place {
        Tar::Fd(fd) => fd.try_clone().during("duplicating a descriptor")?,
        Tar::File(path) => fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
            .during("opening the archive")
            .on_path(&path.display().to_string())?,
    };
    let kind = fs::fstat(&fd).map(|s| FileType::from_raw_mode(s.st_mode)).during("looking at the archive")?;
    if kind == FileType::Directory {
        return Err(Error::new(Kind::BadRequest, "a directory is no archive")
            .help("name a directory with --images-dir, and leave --images-tar out"));
    }
    Ok(TarInput::new(File::from(fd)))
}

/// Unpacks the checkpoint in an archive into `dir`; gives what came.
pub(super) fn unpack(input: impl Input, mut create: impl FnMut(&str) -> Result<File>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut buffer = vec![0; 256 << 10];
    let skipped = tar::read(input, |file| -> Result<()> {
        let out = create(&file.name)?;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => write_all(&out, buffer.get(..n).unwrap_or_default())
                    .map_err(|e| cannot_write("keeping the archive's files failed", e).on(image(&file.name)))?,
            }
        }
        names.push(file.name.clone());
        Ok(())
    })?;
    if !skipped.is_empty() {
        log::info!("the archive also holds what is no image: {}", skipped.join(", "));
    }
    Ok(names)
}

impl Source {
    /// Takes the checkpoint out of an archive. `work_dir` serves where memory cannot, `watch` ends the wait for who sends it.
    ///
    /// # Errors
    /// If it is no archive, has what no checkpoint has (links, paths that lead elsewhere), or is not whole.
    pub fn open_tar(place: &Tar, work_dir: Option<BorrowedFd<'_>>, watch: &Watch) -> Result<Self> {
        let spool = Spool::new(work_dir)?;
        let input = open_tar(place)?.watched(watch.clone());
        let unpacked = unpack(input, |name| open_new(spool.dir.as_fd(), name));
        // Who reads archives takes an end of our patience for an end of the archive.
        watch.go_on()?;
        unpacked?;
        let mut source = Self::open(spool.dir.as_fd()).map_err(as_input_error)?;
        source.verify_stream()?;
        source.spool = Some(spool);
        Ok(source)
    }

    /// Takes the checkpoint from the streamer that listens in `dir`.
    ///
    /// # Errors
    /// If nobody listens there, or what comes is no checkpoint.
    pub fn open_streamer(dir: BorrowedFd<'_>, work_dir: Option<BorrowedFd<'_>>, watch: Watch) -> Result<Self> {
        let socket = connect(dir, streamer::SERVE_SOCKET, "serve")?;
        let spool = Spool::new(work_dir)?;
        let inner = FeedState { socket: Some(socket), asked: HashMap::new(), arrived: Arrived::default(), watch };
        let own = spool.dir.try_clone().during("duplicating a descriptor")?;
        let feed = Feed { dir: own, inner: Mutex::new(inner) };
        let mut source = Self::open_with(spool.dir.as_fd(), Some(feed)).map_err(as_input_error)?;
        source.verify_stream()?;
        source.spool = Some(spool);
        Ok(source)
    }

    /// Compares content with the manifest, while the bytes are at hand anyway: a stream has no second chance. Records may
    /// have been changed on the way on purpose (the streamer can remap ports); pages never are.
    fn verify_stream(&self) -> Result<()> {
        let Some(manifest) = self.manifest() else { return Ok(()) };
        for line in &manifest.files {
            let Some(expected) = line.hash else { continue };
            let found = match &self.feed {
                Some(feed) => feed.lock().arrived.files.get(&line.name).copied().flatten().map(|(_, hash)| hash),
                None => self.hash_of(&line.name)?,
            };
            if found.is_some_and(|hash| expected.fits(hash)) {
                continue;
            }
            if ImageKind::of_file_name(&line.name).is_some_and(|(kind, _)| kind.is_raw()) {
                return Err(Error::bad_image(&line.name, "its content is not what was written")
                    .help("the stream was damaged on its way: send it again, or repeat the dump"));
            }
            log::warn!("{}: its content is not what was written: somebody changed it", line.name);
        }
        Ok(())
    }
}

/// Unpacks an archive into a directory, whole or not at all: what `crust image unpack` does. The archive's manifest is kept,
/// and content is compared with it.
///
/// # Errors
/// As [`Source::open_tar`], or if the directory cannot be written.
pub fn unpack_into(place: &Tar, dir: BorrowedFd<'_>, sync: bool) -> Result<usize> {
    let aside = Aside::create(dir)?;
    let names = unpack(open_tar(place)?, |name| open_new(aside.handle.as_fd(), name))?;
    let source = Source::open(aside.handle.as_fd()).map_err(as_input_error)?;
    source.verify_stream()?;
    if names.is_empty() {
        return Err(Error::new(Kind::BadImage, "no image is in the archive").on(Object::Path("the archive".into())));
    }
    let count = names.len();
    aside.reveal_all(names, sync)?;
    Ok(count)
}

/// Writes a checkpoint as an archive: what `crust image pack` does. Files are sent as they are, the manifest among them.
///
/// # Errors
/// If a file cannot be read or sent, or pages are in parent images, which no archive can hold.
pub fn pack(source: &Source, place: &Tar, sync: bool) -> Result<()> {
    if source.exists(super::PARENT_LINK)? {
        return Err(Error::unsupported(
            "the checkpoint refers to parent images, which an archive cannot do",
            "copy the directories of the whole chain together, for instance with tar(1)",
        ));
    }
    let inventory = ImageKind::Inventory.file_name(0);
    let is_part = |name: &String| {
        let is_image = ImageKind::of_file_name(name).is_some_and(|(kind, _)| !kind.is_service());
        is_image && *name != inventory || is_manifest(name)
    };
    let stream = Stream::tar(place)?;
    for name in source.names()?.into_iter().filter(is_part).chain([inventory.clone()]) {
        let Some(file) = source.open_file(&name)? else { continue };
        let file = File::from(file);
        let len = file.metadata().during("looking at an image").map_err(|e| e.on(image(&name)))?.len();
        let mut outlet = stream.outlet(&name)?;
        outlet.expect(len)?;
        let mut sent = 0;
        let mut written = Ok(());
        each_piece(&file, 0, len, |_, bytes| {
            sent += bytes.len() as u64;
            if written.is_ok() {
                written = outlet.write(bytes);
            }
        })
        .during("reading an image")
        .map_err(|e| e.on(image(&name)))?;
        written?;
        if sent != len {
            return Err(Error::new(Kind::TargetChanged, "the file changed while it was read").on(image(&name)));
        }
        if let OutletTo::Stream(flow) = outlet.to {
            stream.close(&name, flow)?;
        }
    }
    stream.finish(&inventory, sync)
}

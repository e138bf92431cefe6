//! Where images go that are written once, from first byte to last: criu-image-streamer, or a tar archive.
//!
//! Nothing that was sent can be taken back, so the order says what is whole: the manifest comes when all other files are
//! through, and `inventory.img` last of all. Whoever reads a stream without it has no checkpoint.
use super::{PARTIAL_PREFIX, cannot_write, image, write_all};
use crate::options::Tar;
use crate::{Error, Kind, Object, OnObject, Result, ResultExt, Watch, fault};
use crust_image::manifest::{ContentHash, Hasher};
use crust_image::{streamer, tar};
use crust_kernel::Deadline;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, IoSlice};
use rustix::net::{self, AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use std::ffi::OsString;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// A reader that takes nothing for this long is taken for dead. The tree waits meanwhile.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// How often a wait looks whether it is still wanted.
const TICK: Duration = Duration::from_millis(50);
/// Pipes that the streamer has not emptied yet are kept open up to this many.
const MAX_PIPES: usize = 200;
/// Room in a pipe: fewer changes between the two processes.
const PIPE_BYTES: usize = 1 << 20;

/// An output that takes each byte once.
#[derive(Debug)]
pub(super) struct Stream {
    to: To,
    state: Mutex<State>,
    /// Who ends our waits.
    pub(super) watch: Watch,
}

#[derive(Debug)]
enum To {
    /// The connection to criu-image-streamer.
    Streamer(OwnedFd),
    /// An archive; the second part is set while it lies under another name than it will have.
    Tar(OwnedFd, Option<Aside>),
}

/// A file that takes its name when it is whole.
#[derive(Debug)]
struct Aside {
    dir: OwnedFd,
    temporary: OsString,
    name: OsString,
}

#[derive(Debug, Default)]
struct State {
    /// Write ends of pipes that may not be empty yet, with the file each is for.
    pipes: Vec<(String, OwnedFd)>,
    /// The file that is being written. Archives have one at a time.
    current: Option<String>,
    /// Held back until everything else is through.
    inventory: Option<Vec<u8>>,
    done: bool,
}

/// A file of a dump, filled from its first byte to its last.
#[derive(Debug)]
pub struct Outlet {
    pub(super) name: String,
    pub(super) to: OutletTo,
    /// Whether all this is still wanted.
    pub(super) watch: Watch,
}

#[derive(Debug)]
pub(super) enum OutletTo {
    File(File),
    Stream(Flow),
}

/// One file on its way through a stream.
#[derive(Debug)]
pub(super) struct Flow {
    fd: OwnedFd,
    is_tar: bool,
    /// Length that the archive's header says.
    promised: Option<u64>,
    written: u64,
    hasher: Hasher,
}

impl From<File> for Outlet {
    /// A file that lies in no checkpoint.
    fn from(file: File) -> Self {
        Self { name: "pages".to_owned(), to: OutletTo::File(file), watch: Watch::default() }
    }
}

impl Outlet {
    /// Says how many bytes will come at most; to be called once, before the first write. Where the length must be known
    /// beforehand, zeros fill up what does not come.
    ///
    /// # Errors
    /// If the archive cannot be written.
    pub fn expect(&mut self, bytes: u64) -> Result<()> {
        let OutletTo::Stream(flow) = &mut self.to else { return Ok(()) };
        if !flow.is_tar {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let header = tar::header(&self.name, bytes, now)?;
        flow.promised = Some(bytes);
        write_patiently(flow.fd.as_fd(), &header, &self.watch).map_err(|e| refused(e, &self.name))
    }

    /// For an outlet of no checkpoint.
    #[cfg(test)]
    pub(crate) fn set_watch(&mut self, watch: Watch) {
        self.watch = watch;
    }

    /// Whoever writes much asks this between pieces.
    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// The file, where it is one that can be mapped and written at any place.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.to {
            OutletTo::File(file) => Some(file.as_fd()),
            OutletTo::Stream(_) => None,
        }
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// With the file's name and the kernel's reason.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let flow = match &mut self.to {
            OutletTo::File(file) => return write_all(file, bytes).map_err(|e| refused(e, &self.name)),
            OutletTo::Stream(flow) => flow,
        };
        let after = flow.written + bytes.len() as u64;
        if flow.is_tar && flow.promised.is_none_or(|promised| after > promised) {
            return Err(Error::new(Kind::Internal, "a file became longer than announced").on(image(&self.name)));
        }
        write_patiently(flow.fd.as_fd(), bytes, &self.watch).map_err(|e| refused(e, &self.name))?;
        flow.hasher.update(bytes);
        flow.written = after;
        Ok(())
    }
}

fn refused(e: Errno, name: &str) -> Error {
    match e {
        // A socket whose reader left with something unread says "reset".
        Errno::PIPE | Errno::CONNRESET => Error::kernel("whoever reads the stream has gone", e)
            .on(image(name))
            .help("see what criu-image-streamer, or the program behind the pipe, says"),
        Errno::CANCELED => Error::new(Kind::Cancelled, "the request was cancelled").on(image(name)),
        Errno::TIMEDOUT => {
            Error::kernel(format!("the stream's reader took nothing for {PATIENCE:?}"), e).on(image(name))
        }
        e => cannot_write("writing failed", e).on(image(name)),
    }
}

/// Writes to whatever takes its time: with patience for each piece, not for the whole. ECANCELED: it is not wanted any more.
fn write_patiently(fd: BorrowedFd<'_>, mut bytes: &[u8], watch: &Watch) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        fault::io()?;
        match rustix::io::write(fd, fault::cut(bytes)) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::AGAIN) => wait_for(fd, PollFlags::OUT, PATIENCE, watch)?,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Waits until `fd` is ready, or something is wrong with it; the call after this tells which.
pub(super) fn wait_for(
    fd: BorrowedFd<'_>,
    flags: PollFlags,
    patience: Duration,
    watch: &Watch,
) -> rustix::io::Result<()> {
    let deadline = Deadline::after(patience);
    loop {
        let mut fds = [PollFd::new(&fd, flags)];
        let rest = deadline.remaining().min(TICK).try_into().unwrap_or_default();
        match poll(&mut fds, Some(&rest)) {
            Ok(0) if deadline.expired() => return Err(Errno::TIMEDOUT),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(e),
        }
        if watch.is_over() {
            return Err(Errno::CANCELED);
        }
    }
}

/// Connects to a streamer's socket in the image directory.
pub(super) fn connect(dir: BorrowedFd<'_>, socket: &str, verb: &str) -> Result<OwnedFd> {
    let fd = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .during("making a socket")?;
    // The directory may be anywhere: the path through its descriptor is always short enough.
    let path = format!("/proc/self/fd/{}/{socket}", dir.as_raw_fd());
    let address = net::SocketAddrUnix::new(path).during("naming the streamer's socket")?;
    let patience = Some(PATIENCE);
    net::sockopt::set_socket_timeout(&fd, net::sockopt::Timeout::Recv, patience).during("setting a time limit")?;
    net::sockopt::set_socket_timeout(&fd, net::sockopt::Timeout::Send, patience).during("setting a time limit")?;
    net::connect(&fd, &address).during("connecting to criu-image-streamer").on_path(socket).map_err(|e| {
        e.help(format!("start `criu-image-streamer --images-dir DIR {verb}` with the same directory first"))
    })?;
    Ok(fd)
}

/// Sends one end of a pipe, with a byte that means nothing.
pub(super) fn send_pipe(socket: BorrowedFd<'_>, end: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let ends = [end];
    if !control.push(SendAncillaryMessage::ScmRights(&ends)) {
        return Err(Errno::INVAL);
    }
    let send = |control: &mut SendAncillaryBuffer<'_, '_, '_>| {
        net::sendmsg(socket, &[IoSlice::new(&[0])], control, SendFlags::NOSIGNAL)
    };
    loop {
        match send(&mut control) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

pub(super) fn send_all(socket: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match net::send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A pipe for one file: read end, write end. It may be larger than usual, where that is allowed.
pub(super) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let ends = pipe_with(PipeFlags::CLOEXEC).during("making a pipe")?;
    if let Err(e) = fcntl_setpipe_size(&ends.1, PIPE_BYTES) {
        log::debug!("pipes stay small: {e}");
    }
    Ok(ends)
}

impl Stream {
    fn new(to: To) -> Self {
        Self { to, state: Mutex::new(State::default()), watch: Watch::default() }
    }

    /// Connects to the streamer that listens in `dir`.
    pub(super) fn streamer(dir: BorrowedFd<'_>) -> Result<Self> {
        Ok(Self::new(To::Streamer(connect(dir, streamer::CAPTURE_SOCKET, "capture")?)))
    }

    /// Begins an archive.
    pub(super) fn tar(place: &Tar) -> Result<Self> {
        let path = match place {
            Tar::Fd(fd) => return Ok(Self::new(To::Tar(patient(fd.as_fd())?, None))),
            Tar::File(path) => path,
        };
        let shown = path.display().to_string();
        let cannot = |what: &str, e: Errno| cannot_write(what, e).on(Object::Path(shown.clone()));
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
        match fs::stat(path) {
            // A fifo, a terminal's name, a descriptor's: written as it is.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => {
                let fd = fs::open(path, flags, Mode::empty()).map_err(|e| cannot("cannot be opened", e))?;
                return Ok(Self::new(To::Tar(patient(fd.as_fd())?, None)));
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(e) => return Err(cannot("cannot be looked at", e)),
        }
        let name = path.file_name().ok_or_else(|| Error::new(Kind::BadRequest, format!("{shown:?} names no file")))?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let dir = fs::open(parent, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| cannot("the directory of the archive cannot be opened", e))?;
        remove_leftovers(&dir);
        let mut temporary = OsString::from(format!("{PARTIAL_PREFIX}{}-", std::process::id()));
        temporary.push(name);
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let fd = fault::io()
            .and_then(|()| fs::openat(&dir, &temporary, flags, Mode::RUSR | Mode::WUSR))
            .map_err(|e| cannot("the archive cannot be created", e))?;
        // The lock says that we live; where there are none, a leftover stays.
        if let Err(e) = fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            log::debug!("the archive's filesystem has no locks: {e}");
        }
        let aside = Aside { dir, temporary, name: name.to_owned() };
        Ok(Self::new(To::Tar(fd, Some(aside))))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The filesystem that has to have room; `None` where nobody knows.
    pub(super) fn disk(&self) -> Option<BorrowedFd<'_>> {
        match &self.to {
            To::Tar(fd, Some(_)) => Some(fd.as_fd()),
            _ => None,
        }
    }

    /// Begins a file.
    pub(super) fn outlet(&self, name: &str) -> Result<Outlet> {
        let (fd, is_tar) = match &self.to {
            To::Streamer(socket) => (self.send_file(socket.as_fd(), name)?, false),
            To::Tar(fd, _) => {
                let mut state = self.lock();
                if let Some(open) = &state.current {
                    return Err(Error::new(Kind::Internal, format!("{open} is still being written")).on(image(name)));
                }
                state.current = Some(name.to_owned());
                (fd.try_clone().during("duplicating a descriptor")?, true)
            }
        };
        let flow = Flow { fd, is_tar, promised: None, written: 0, hasher: Hasher::for_file(name) };
        Ok(Outlet { name: name.to_owned(), to: OutletTo::Stream(flow), watch: self.watch.clone() })
    }

    /// Ends a file: its length and hash.
    pub(super) fn close(&self, name: &str, mut flow: Flow) -> Result<(u64, ContentHash)> {
        if flow.is_tar {
            let zeros = [0; 4096];
            let mut missing = flow.promised.map_or(0, |promised| promised - flow.written);
            flow.written += missing;
            while missing > 0 {
                let piece = zeros.get(..missing.min(zeros.len() as u64) as usize).unwrap_or_default();
                write_patiently(flow.fd.as_fd(), piece, &self.watch).map_err(|e| refused(e, name))?;
                flow.hasher.update(piece);
                missing -= piece.len() as u64;
            }
            let padding = zeros.get(..tar::padding(flow.written)).unwrap_or_default();
            write_patiently(flow.fd.as_fd(), padding, &self.watch).map_err(|e| refused(e, name))?;
            self.lock().current = None;
        } else {
            let mut state = self.lock();
            state.pipes.push((name.to_owned(), flow.fd));
            if state.pipes.len() >= MAX_PIPES {
                drain(&mut state.pipes, &self.watch)?;
            }
        }
        Ok((flow.written, flow.hasher.finish()))
    }

    /// Writes a whole file. `hold`: only when the stream ends.
    pub(super) fn put(&self, name: &str, bytes: &[u8], hold: bool) -> Result<(u64, ContentHash)> {
        if hold {
            self.lock().inventory = Some(bytes.to_vec());
            let mut hasher = Hasher::for_file(name);
            hasher.update(bytes);
            return Ok((bytes.len() as u64, hasher.finish()));
        }
        let mut outlet = self.outlet(name)?;
        outlet.expect(bytes.len() as u64)?;
        outlet.write(bytes)?;
        match outlet.to {
            OutletTo::Stream(flow) => self.close(name, flow),
            OutletTo::File(_) => Err(Error::new(Kind::Internal, "a stream gave a file")),
        }
    }

    /// Sends what was held back and waits until everything is taken.
    pub(super) fn finish(&self, inventory_name: &str, sync: bool) -> Result<()> {
        let inventory = self.lock().inventory.take();
        if let Some(bytes) = inventory {
            self.put(inventory_name, &bytes, false)?;
        }
        match &self.to {
            To::Streamer(socket) => {
                drain(&mut self.lock().pipes, &self.watch)?;
                net::shutdown(socket, net::Shutdown::Both).during("ending the connection to the streamer")?;
            }
            To::Tar(fd, aside) => {
                write_patiently(fd.as_fd(), &tar::END, &self.watch).map_err(|e| refused(e, "the archive's end"))?;
                let cannot = |what: &str, e: Errno| cannot_write(what, e).on(Object::Path("the archive".to_owned()));
                if sync && super::is_regular(fd.as_fd()) {
                    super::sync_file(fd.as_fd()).map_err(|e| cannot("cannot be made durable", e))?;
                }
                if let Some(a) = aside {
                    fault::io()
                        .and_then(|()| fs::renameat(&a.dir, &a.temporary, &a.dir, &a.name))
                        .map_err(|e| cannot("cannot be given its name", e))?;
                    self.lock().done = true;
                    if sync && let Err(e) = super::sync_file(a.dir.as_fd()) {
                        // The dump fails, so there must be no checkpoint.
                        if let Err(e) = fs::unlinkat(&a.dir, &a.name, AtFlags::empty()) {
                            log::warn!("{} cannot be removed: {e}", a.name.display());
                        }
                        return Err(cannot("cannot be made durable", e));
                    }
                }
            }
        }
        self.lock().done = true;
        Ok(())
    }

    /// Takes a finished archive away again, where that can be.
    pub(super) fn discard(&self) -> Result<()> {
        match &self.to {
            To::Tar(_, Some(a)) => fs::unlinkat(&a.dir, &a.name, AtFlags::empty())
                .map_err(|e| cannot_write("the refused archive cannot be removed", e)),
            _ => {
                log::warn!("the checkpoint was refused, but it is in the stream already: throw away what was received");
                Ok(())
            }
        }
    }

    fn send_file(&self, socket: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
        let (read, write) = pipe()?;
        rustix::io::ioctl_fionbio(&write, true).during("preparing a pipe")?;
        fault::io()
            .and_then(|()| send_all(socket, &streamer::request(name)))
            .and_then(|()| send_pipe(socket, read.as_fd()))
            .map_err(|e| refused(e, name))?;
        Ok(write)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let To::Tar(_, Some(a)) = &self.to
            && !self.lock().done
            && let Err(e) = fs::unlinkat(&a.dir, &a.temporary, AtFlags::empty())
        {
            log::warn!("{} cannot be removed: {e}", a.temporary.display());
        }
    }
}

/// Waits until the streamer has taken all bytes out of the pipes, then closes them: only then are they out of our hands.
fn drain(pipes: &mut Vec<(String, OwnedFd)>, watch: &Watch) -> Result<()> {
    for (name, pipe) in pipes.drain(..) {
        let (deadline, mut backoff) = (Deadline::after(PATIENCE), crust_kernel::Backoff::new());
        loop {
            let left =
                rustix::io::ioctl_fionread(&pipe).during("looking into a pipe").map_err(|e| e.on(image(&name)))?;
            if left == 0 {
                break;
            }
            let mut fds = [PollFd::new(&pipe, PollFlags::empty())];
            let polled = poll(&mut fds, Some(&rustix::time::Timespec::default()));
            if matches!(polled, Ok(n) if n > 0) && fds[0].revents().contains(PollFlags::ERR) {
                return Err(refused(Errno::PIPE, &name));
            }
            watch.go_on()?;
            if !backoff.pause(deadline) {
                return Err(refused(Errno::TIMEDOUT, &name));
            }
        }
    }
    Ok(())
}

/// A descriptor of our own for an output that others may share. A pipe is opened once more, so that not to wait for it
/// concerns nobody else.
fn patient(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let stat = fs::fstat(fd).during("looking at the archive's descriptor")?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        if let Ok(own) = fs::open(path, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
            return Ok(own);
        }
    }
    fd.try_clone_to_owned().during("duplicating a descriptor")
}

/// Removes unfinished archives of dumps that were killed: those whose lock nobody holds.
fn remove_leftovers(dir: &OwnedFd) {
    let Ok(entries) = fs::Dir::read_from(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.to_bytes().starts_with(PARTIAL_PREFIX.as_bytes()) {
            continue;
        }
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = fs::openat(dir, name, flags, Mode::empty()) else { continue };
        let free =
            super::is_regular(file.as_fd()) && fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        let shown = std::ffi::OsStr::from_bytes(name.to_bytes()).display();
        if free {
            log::info!("removing {shown}, left by a dump that was killed");
            if let Err(e) = fs::unlinkat(dir, name, AtFlags::empty()) {
                log::warn!("{shown} cannot be removed: {e}");
            }
        }
    }
}

//! Names of unix sockets at restore: taken again, also where the file was removed, replaced or moved since.
//!
//! A socket whose name is gone is bound for a moment: what has the name now steps aside, directories that are missing
//! are made, and all is as before when the call returns. Such sockets are made in one process, before the tree is there.
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::UnixSkEntry;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where a bound socket can be reached.
#[derive(Debug)]
pub(in super::super) enum Place {
    Name(SocketAddrUnix),
    /// Its file, wherever that has gone.
    File(OwnedFd),
}

impl Place {
    /// Connects a socket to the one that is bound here.
    pub(super) fn connect(&self, fd: impl AsFd) -> std::result::Result<(), Errno> {
        match self {
            Self::Name(addr) => rustix::net::connect(fd, addr),
            Self::File(file) => {
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                rustix::net::connect(fd, &SocketAddrUnix::new(path)?)
            }
        }
    }
}

/// What becomes of a socket's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// It is where the image says.
    AsImaged,
    /// The socket only lends its name: the file stays only if nothing else has the name.
    Lent,
}

/// A name for messages.
pub(super) fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).trim_end_matches('\0').replace('\0', "@")
}

/// The address of a name as the images have it.
pub(super) fn address(name: &[u8]) -> Result<SocketAddrUnix> {
    let bad = |e: Errno| Error::kernel("a unix socket's name is impossible", e);
    match name.strip_prefix(b"\0") {
        Some(rest) => SocketAddrUnix::new_abstract_name(rest).map_err(bad),
        None => SocketAddrUnix::new(path_bytes(name)).map_err(bad),
    }
}

fn path_bytes(name: &[u8]) -> &[u8] {
    name.strip_suffix(b"\0").unwrap_or(name)
}

/// True if the name is a path.
pub(super) fn is_path(name: &[u8]) -> bool {
    name.first().is_some_and(|b| *b != 0)
}

/// Gives a socket its name.
pub(super) fn bind(fd: &OwnedFd, s: &UnixSkEntry, keep: Keep) -> Result<Place> {
    let addr = address(&s.name)?;
    let on = |e: Error| e.on(Object::Path(shown(&s.name)));
    if !is_path(&s.name) {
        take(fd, &addr).map_err(on)?;
        return Ok(Place::Name(addr));
    }
    let path = Path::new(std::ffi::OsStr::from_bytes(path_bytes(&s.name)));
    let base = s.name_dir.as_deref().map(|d| Path::new(std::ffi::OsStr::from_bytes(d)));
    let base = base.filter(|b| *b != Path::new("/"));
    let mut made = Made::default();
    let full = match base {
        Some(base) => base.join(path.strip_prefix("/").unwrap_or(path)),
        None => Path::new("/").join(path),
    };
    let may_make = s.deleted == Some(true) || s.crust_moved.is_some() || keep == Keep::Lent;
    if may_make && let Some(dir) = full.parent() {
        made.directories(dir).map_err(on)?;
    }
    let result = aside(&full, s, keep, || {
        let entered = Entered::enter(base.unwrap_or(Path::new("/")), path.is_absolute())?;
        let result = bind_here(fd, &addr, path, s);
        entered.leave()?;
        result
    });
    made.remove();
    result.map(Place::File).map_err(on)
}

/// Makes the name free, calls `bind`, and leaves the file system as the image has it.
fn aside(full: &Path, s: &UnixSkEntry, keep: Keep, bind: impl FnOnce() -> Result<OwnedFd>) -> Result<OwnedFd> {
    let moved = s.crust_moved.as_deref().map(|m| Path::new(std::ffi::OsStr::from_bytes(m)));
    let goes = s.deleted == Some(true);
    if !goes && moved.is_none() && keep == Keep::AsImaged {
        free(full)?;
        return bind();
    }
    let parked = PathBuf::from(format!("{}.crust-{}", full.display(), std::process::id()));
    let others = match rustix::fs::rename(full, &parked) {
        Ok(()) => true,
        Err(Errno::NOENT) => false,
        Err(e) => return Err(Error::kernel("moving what has the socket's name aside failed", e)),
    };
    let result = bind();
    let settled = match (&result, moved) {
        (Err(_), _) => Ok(()),
        (Ok(_), Some(moved)) if !goes => free(moved)
            .and_then(|()| rustix::fs::rename(full, moved).during("moving a socket's file to where it was"))
            .map_err(|e| e.on(Object::Path(moved.display().to_string()))),
        (Ok(_), _) if goes || others => rustix::fs::unlink(full).during("removing a name that was gone at the dump"),
        (Ok(_), _) => Ok(()),
    };
    if others {
        rustix::fs::rename(&parked, full).during("moving a file back to its name")?;
    }
    settled?;
    result
}

/// Removes the file that the dumped program's socket has left. Anything else that has the name is an error.
fn free(path: &Path) -> Result<()> {
    let Ok(stat) = rustix::fs::lstat(path) else { return Ok(()) };
    if stat.st_mode & libc::S_IFMT != libc::S_IFSOCK {
        return Err(Error::new(Kind::Taken, "a file is where the socket's name was").help("move the file away"));
    }
    if in_use(path)? {
        return Err(Error::new(Kind::Taken, "another program has a socket of this name").help("stop that program"));
    }
    rustix::fs::unlink(path).during("removing the socket's old name")
}

/// Whether a living socket is bound to the file. A datagram socket that connects is noticed by nobody.
fn in_use(path: &Path) -> Result<bool> {
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .during("socket")?;
    let file =
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).during("opening a socket's file")?;
    Ok(!matches!(Place::File(file).connect(&probe), Err(Errno::CONNREFUSED)))
}

fn take(fd: &OwnedFd, addr: &SocketAddrUnix) -> Result<()> {
    rustix::net::bind(fd, addr).map_err(|e| {
        let e2 = Error::kernel("giving a unix socket its name failed", e);
        if e == Errno::ADDRINUSE { e2.kind_is(Kind::Taken) } else { e2 }
    })
}

fn bind_here(fd: &OwnedFd, addr: &SocketAddrUnix, path: &Path, s: &UnixSkEntry) -> Result<OwnedFd> {
    take(fd, addr)?;
    if let Some(perms) = &s.file_perms {
        let (uid, gid) = (rustix::fs::Uid::from_raw(perms.uid), rustix::fs::Gid::from_raw(perms.gid));
        rustix::fs::chown(path, Some(uid), Some(gid)).during("giving a socket to its owner")?;
        rustix::fs::chmod(path, Mode::from_bits_retain(perms.mode & 0o7777)).during("setting a socket's mode")?;
    }
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).during("opening a socket's file")
}

/// The directory that names start from while a socket is bound.
struct Entered {
    cwd: OwnedFd,
    root: Option<OwnedFd>,
}

impl Entered {
    fn enter(base: &Path, absolute: bool) -> Result<Self> {
        let here = |path: &str| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let cwd = here(".").during("opening our directory")?;
        let mut entered = Self { cwd, root: None };
        if !absolute {
            rustix::process::chdir(base).during("entering the directory of a socket's name")?;
        } else if base != Path::new("/") {
            entered.root = Some(here("/").during("opening our root directory")?);
            rustix::process::chroot(base).during("entering the root directory of a socket's name")?;
        }
        Ok(entered)
    }

    fn leave(self) -> Result<()> {
        if let Some(root) = &self.root {
            rustix::process::fchdir(root).during("going back to our root directory")?;
            rustix::process::chroot(".").during("going back to our root directory")?;
        }
        rustix::process::fchdir(&self.cwd).during("going back to our directory")
    }
}

/// Directories that exist only while a socket is bound.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn directories(&mut self, dir: &Path) -> Result<()> {
        let missing: Vec<&Path> =
            dir.ancestors().take_while(|d| matches!(rustix::fs::stat(*d), Err(Errno::NOENT))).collect();
        for dir in missing.into_iter().rev() {
            rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)).during("making the directory of a socket's name")?;
            self.0.push(dir.to_owned());
        }
        Ok(())
    }

    fn remove(self) {
        for dir in self.0.iter().rev() {
            // One that is in use now stays.
            if let Err(e) = rustix::fs::rmdir(dir) {
                log::debug!("{}: {e}", dir.display());
            }
        }
    }
}

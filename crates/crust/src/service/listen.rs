//! The listening socket: handed to us by a service manager, or bound by ourselves.
use crust_engine::{Error, Kind, Object, OnObject, Result, ResultExt};
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt,
};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// How many connections may wait for us.
const BACKLOG: i32 = 128;

/// A socket to accept from.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: OwnedFd,
    /// Where we bound it ourselves, and so remove it at the end.
    path: Option<PathBuf>,
}

fn bad(what: impl Into<String>) -> Error {
    Error::new(Kind::BadRequest, what)
}

/// What a service manager passed.
#[derive(Debug)]
pub(super) enum Passed {
    /// A socket to accept from (`Accept=no`).
    Listener(Listener),
    /// One client (`Accept=yes`): this process is its worker.
    Connection(OwnedFd),
}

/// The socket that a service manager passed, if it passed any.
pub(super) fn inherited() -> Result<Option<Passed>> {
    let mut fds = sd_daemon::listen_fds(true).map_err(|e| {
        bad(format!("the sockets in LISTEN_FDS cannot be taken: {e}")).help("check who starts the service")
    })?;
    if fds.len() > 1 {
        return Err(bad(format!("{} sockets were passed in LISTEN_FDS, exactly one is expected", fds.len()))
            .help("leave one ListenSequentialPacket= line in the socket unit"));
    }
    let Some(socket) = fds.pop() else { return Ok(None) };
    let listens = check(&socket).map_err(|e| e.help("the socket unit needs ListenSequentialPacket= with a path"))?;
    Ok(Some(if listens { Passed::Listener(Listener { socket, path: None }) } else { Passed::Connection(socket) }))
}

/// An AF_UNIX SEQPACKET socket that listens (true) or is connected (false); anything else is told for what it is.
fn check(fd: &OwnedFd) -> Result<bool> {
    let what = "the descriptor passed in LISTEN_FDS";
    let stat = rustix::fs::fstat(fd).during("looking at the passed descriptor")?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Socket => None,
        FileType::Fifo => Some("a FIFO"),
        FileType::RegularFile => Some("a regular file"),
        FileType::Directory => Some("a directory"),
        FileType::CharacterDevice => Some("a character device"),
        _ => Some("no socket"),
    };
    if let Some(kind) = kind {
        return Err(bad(format!("{what} is {kind}, not a socket")));
    }
    let domain = sockopt::socket_domain(fd).during("asking for the socket's domain")?;
    if domain != AddressFamily::UNIX {
        return Err(bad(format!("{what} is a socket of address family {}, not AF_UNIX", domain.as_raw())));
    }
    match sockopt::socket_type(fd).during("asking for the socket's type")? {
        SocketType::SEQPACKET => {}
        SocketType::STREAM => return Err(bad(format!("{what} is a stream socket, not SOCK_SEQPACKET"))),
        SocketType::DGRAM => return Err(bad(format!("{what} is a datagram socket, not SOCK_SEQPACKET"))),
        other => return Err(bad(format!("{what} is a socket of type {}, not SOCK_SEQPACKET", other.as_raw()))),
    }
    if sockopt::socket_acceptconn(fd).during("asking whether the socket listens")? {
        return Ok(true);
    }
    match rustix::net::getpeername(fd) {
        Ok(_) => Ok(false),
        Err(_) => Err(bad(format!("{what} neither listens nor is connected"))),
    }
}

/// Binds `path` with the permissions `mode` right from its first moment. A socket that nobody listens on is replaced;
/// a living service, or any other kind of file, is not.
pub(super) fn bound(path: &Path, mode: u32) -> Result<Listener> {
    let name = path.display().to_string();
    let address = SocketAddrUnix::new(path)
        .during("using the address")
        .map_err(|e| e.kind_is(Kind::BadRequest).help("a socket's path has at most 107 bytes"))
        .on_path(&name)?;
    let socket = seqpacket().during("making the socket")?;
    match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => {}
        Err(e) => return Err(e).during("looking at the address").on_path(&name),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Err(bad("the address exists and is no socket").on(Object::Path(name)));
        }
        Ok(_) => remove_stale(path)?,
    }
    let before = rustix::process::umask(Mode::from_raw_mode(!mode & 0o777));
    let outcome = bind(&socket, &address);
    rustix::process::umask(before);
    match outcome {
        Err(Errno::ADDRINUSE) => return Err(lives(path)),
        outcome => outcome.during("binding the socket").on_path(&name)?,
    }
    let made = rustix::fs::lstat(path).during("looking at our socket").on_path(&name)?;
    listen(&socket, BACKLOG).during("listening").on_path(&name)?;
    // Before it listened it looked stale to others who start at the same moment.
    match rustix::fs::lstat(path) {
        Ok(now) if (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino) => {}
        _ => return Err(lives(path)),
    }
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    Ok(Listener { socket, path: Some(path) })
}

fn seqpacket() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

fn lives(path: &Path) -> Error {
    Error::new(Kind::Taken, "another service listens on the address")
        .on(Object::Path(path.display().to_string()))
        .help("stop it, or choose another --address")
}

/// True if nobody listens on the socket `path`.
fn is_stale(path: &Path) -> Result<bool> {
    let name = path.display().to_string();
    let address = SocketAddrUnix::new(path).during("using the address").on_path(&name)?;
    let probe = seqpacket().during("making a socket")?;
    // A full queue is EAGAIN: somebody lives there, too.
    Ok(connect(&probe, &address) == Err(Errno::CONNREFUSED))
}

/// Takes a socket's name away if nobody listens there. Two services may do this at once, so the name is moved aside
/// first and what was moved is asked again: if it has come to life meanwhile, it gets its name back.
fn remove_stale(path: &Path) -> Result<()> {
    if !is_stale(path)? {
        return Err(lives(path));
    }
    let name = path.display().to_string();
    log::debug!("{name}: nobody listens there, it is replaced");
    let aside = path.with_file_name(format!(".{}", std::process::id()));
    let (here, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::NOREPLACE);
    let moved = SocketAddrUnix::new(&aside).and_then(|_| rustix::fs::renameat_with(here, path, here, &aside, flags));
    match moved {
        Ok(()) => {}
        Err(Errno::NOENT) => return Ok(()),
        // A file system without such renames, or a name too long for an address.
        Err(_) => return rustix::fs::unlink(path).during("removing the stale socket").on_path(&name),
    }
    if is_stale(&aside)? {
        return rustix::fs::unlink(&aside).during("removing the stale socket").on_path(&name);
    }
    rustix::fs::renameat_with(here, &aside, here, path, flags)
        .during("giving the name back to a service that has just started")
        .on_path(&name)?;
    Err(lives(path))
}

impl Listener {
    /// True if a service manager holds it, too, and starts us again when somebody connects.
    pub(super) fn is_activated(&self) -> bool {
        self.path.is_none()
    }

    /// What people are told we listen on.
    pub(super) fn describe(&self) -> String {
        match &self.path {
            Some(path) => path.display().to_string(),
            None => "the socket of the service manager".to_owned(),
        }
    }

    /// Takes the name away again, if we made it.
    pub(super) fn remove(&self) {
        if let Some(path) = &self.path
            && let Err(e) = std::fs::remove_file(path)
            && e.kind() != io::ErrorKind::NotFound
        {
            log::warn!("{} cannot be removed: {e}", path.display());
        }
    }
}

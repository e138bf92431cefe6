//! The listening socket: handed to us by a service manager, or bound by ourselves.
use crust_engine::{Error, Kind, Object, OnObject, Result, ResultExt};
use rustix::fs::{FileType, Mode};
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

/// The socket that a service manager passed, if it passed any.
pub(super) fn inherited() -> Result<Option<Listener>> {
    let mut fds = sd_daemon::listen_fds(true).map_err(|e| {
        bad(format!("the sockets in LISTEN_FDS cannot be taken: {e}")).help("check who starts the service")
    })?;
    if fds.len() > 1 {
        return Err(bad(format!("{} sockets were passed in LISTEN_FDS, exactly one is expected", fds.len()))
            .help("leave one ListenSequentialPacket= line in the socket unit"));
    }
    let Some(socket) = fds.pop() else { return Ok(None) };
    check(&socket).map_err(|e| e.help("the socket unit needs ListenSequentialPacket= with a path, and Accept=no"))?;
    Ok(Some(Listener { socket, path: None }))
}

/// Exactly a listening AF_UNIX SEQPACKET socket; anything else is told for what it is.
fn check(fd: &OwnedFd) -> Result<()> {
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
        return Err(bad(format!("{what} is {kind}, not a listening socket")));
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
    if !sockopt::socket_acceptconn(fd).during("asking whether the socket listens")? {
        return Err(bad(format!("{what} is a connected socket, not a listening one")));
    }
    Ok(())
}

/// Binds `path` with the permissions `mode` right from its first moment. A socket that nobody listens on is replaced;
/// a living service, or any other kind of file, is not.
pub(super) fn bound(path: &Path, mode: u32) -> Result<Listener> {
    let name = path.display().to_string();
    let address = SocketAddrUnix::new(path)
        .during("using the address")
        .map_err(|e| e.kind_is(Kind::BadRequest).help("a socket's path has at most 107 bytes"))
        .on_path(&name)?;
    let make = || socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let socket = make().during("making the socket")?;
    match rustix::fs::lstat(path) {
        Err(rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(e).during("looking at the address").on_path(&name),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Err(bad("the address exists and is no socket").on(Object::Path(name)));
        }
        Ok(_) => {
            let probe = make().during("making a socket")?;
            match connect(&probe, &address) {
                Err(rustix::io::Errno::CONNREFUSED) => {
                    rustix::fs::unlink(path).during("removing the stale socket").on_path(&name)?;
                }
                Err(rustix::io::Errno::NOENT) => {}
                _ => {
                    return Err(Error::new(Kind::Taken, "another service listens on the address")
                        .on(Object::Path(name))
                        .help("stop it, or choose another --address"));
                }
            }
        }
    }
    let before = rustix::process::umask(Mode::from_raw_mode(!mode & 0o777));
    let outcome = bind(&socket, &address);
    rustix::process::umask(before);
    outcome.during("binding the socket").on_path(&name)?;
    listen(&socket, BACKLOG).during("listening").on_path(&name)?;
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    Ok(Listener { socket, path: Some(path) })
}

impl Listener {
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

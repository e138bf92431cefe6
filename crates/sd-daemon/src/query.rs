//! Questions about a descriptor: is it this kind of thing, this socket, this name? Same answers as libsystemd's `sd_is_*`.
use crate::error::During;
use crate::{Error, Result, sys};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// An address family (`AF_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Family(pub i32);

impl Family {
    /// `AF_UNIX`.
    pub const UNIX: Family = Family(libc::AF_UNIX);
    /// `AF_INET`.
    pub const INET: Family = Family(libc::AF_INET);
    /// `AF_INET6`.
    pub const INET6: Family = Family(libc::AF_INET6);
    /// `AF_VSOCK`.
    pub const VSOCK: Family = Family(libc::AF_VSOCK);
    /// `AF_NETLINK`.
    pub const NETLINK: Family = Family(libc::AF_NETLINK);
}

/// A socket type (`SOCK_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketType(pub i32);

impl SocketType {
    /// `SOCK_STREAM`.
    pub const STREAM: SocketType = SocketType(libc::SOCK_STREAM);
    /// `SOCK_DGRAM`.
    pub const DGRAM: SocketType = SocketType(libc::SOCK_DGRAM);
    /// `SOCK_SEQPACKET`.
    pub const SEQPACKET: SocketType = SocketType(libc::SOCK_SEQPACKET);
    /// `SOCK_RAW`.
    pub const RAW: SocketType = SocketType(libc::SOCK_RAW);
}

/// The name a Unix socket is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnixName<'a> {
    /// A path in the file system, compared as it was given to `bind`.
    Path(&'a Path),
    /// A name in the abstract namespace, without the leading NUL byte.
    Abstract(&'a [u8]),
    /// Not bound.
    Unnamed,
}

/// Is it a FIFO (or pipe), and that at `path` if one is given? A path that does not exist is a no.
///
/// # Errors
/// [`Error::Sys`] if the path cannot be looked at.
pub fn is_fifo(fd: impl AsFd, path: Option<&Path>) -> Result<bool> {
    let st = sys::fstat(fd.as_fd()).during("fstat")?;
    if st.st_mode & libc::S_IFMT != libc::S_IFIFO {
        return Ok(false);
    }
    let Some(path) = path else { return Ok(true) };
    Ok(look(path)?.is_some_and(|p| p.same_inode(&st)))
}

/// Is it a special file (a regular file or a character device), and that at `path` if one is given? Regular files are
/// compared by inode, devices by number. A path that does not exist is a no.
///
/// # Errors
/// [`Error::Sys`] if the path cannot be looked at.
pub fn is_special(fd: impl AsFd, path: Option<&Path>) -> Result<bool> {
    let st = sys::fstat(fd.as_fd()).during("fstat")?;
    let kind = st.st_mode & libc::S_IFMT;
    if kind != libc::S_IFREG && kind != libc::S_IFCHR {
        return Ok(false);
    }
    let Some(path) = path else { return Ok(true) };
    Ok(look(path)?.is_some_and(|p| {
        p.mode & libc::S_IFMT == kind && if kind == libc::S_IFREG { p.same_inode(&st) } else { p.rdev == st.st_rdev }
    }))
}

/// Is it a socket, of this family, type and listening state? `None`: whichever.
///
/// # Errors
/// [`Error::Argument`] for a negative family or type, [`Error::Sys`] if the socket does not answer.
pub fn is_socket(
    fd: impl AsFd,
    family: Option<Family>,
    kind: Option<SocketType>,
    listening: Option<bool>,
) -> Result<bool> {
    if family.is_some_and(|f| f.0 < 0) {
        return Err(Error::invalid("negative address family"));
    }
    if !socket_like(fd.as_fd(), kind, listening)? {
        return Ok(false);
    }
    match family {
        None | Some(Family(0)) => Ok(true),
        Some(family) => Ok(LocalName::of(fd.as_fd())?.family == family.0),
    }
}

/// Is it an Internet socket, of this family ([`Family::INET`] or [`Family::INET6`]), type, listening state and port?
///
/// # Errors
/// [`Error::Argument`] for another family, [`Error::Sys`] if the socket does not answer.
pub fn is_socket_inet(
    fd: impl AsFd,
    family: Option<Family>,
    kind: Option<SocketType>,
    listening: Option<bool>,
    port: Option<NonZeroU16>,
) -> Result<bool> {
    if !matches!(family, None | Some(Family(0) | Family::INET | Family::INET6)) {
        return Err(Error::invalid("not an Internet address family"));
    }
    if !socket_like(fd.as_fd(), kind, listening)? {
        return Ok(false);
    }
    let name = LocalName::of(fd.as_fd())?;
    Ok(name.is_inet()
        && family.is_none_or(|f| f.0 == 0 || f.0 == name.family)
        && port.is_none_or(|p| name.port() == Some(p.get())))
}

/// Is it an Internet socket bound to this address? A port, flow info or scope of 0 in `addr` stands for any.
///
/// # Errors
/// [`Error::Argument`] for a negative type, [`Error::Sys`] if the socket does not answer.
pub fn is_socket_sockaddr(
    fd: impl AsFd,
    kind: Option<SocketType>,
    addr: &SocketAddr,
    listening: Option<bool>,
) -> Result<bool> {
    if !socket_like(fd.as_fd(), kind, listening)? {
        return Ok(false);
    }
    let name = LocalName::of(fd.as_fd())?;
    let any_or = |want: u32, have: u32| want == 0 || want == have;
    Ok(match addr {
        SocketAddr::V4(want) if name.family == libc::AF_INET => {
            let (port, ip) = name.v4()?;
            any_or(want.port().into(), port.into()) && want.ip().octets() == ip
        }
        SocketAddr::V6(want) if name.family == libc::AF_INET6 => {
            let (port, flow, ip, scope) = name.v6()?;
            any_or(want.port().into(), port.into())
                && any_or(want.flowinfo(), flow)
                && any_or(want.scope_id(), scope)
                && want.ip().octets() == ip
        }
        _ => false,
    })
}

/// Is it a Unix socket, of this type, listening state and name?
///
/// # Errors
/// [`Error::Argument`] for a negative type, [`Error::Sys`] if the socket does not answer.
pub fn is_socket_unix(
    fd: impl AsFd,
    kind: Option<SocketType>,
    listening: Option<bool>,
    name: Option<UnixName<'_>>,
) -> Result<bool> {
    let Some(have) = unix_socket_name(fd, kind, listening)? else { return Ok(false) };
    Ok(match name {
        None => true,
        // The kernel keeps the terminating NUL of a path, also where it filled the whole address.
        Some(UnixName::Path(path)) => {
            let path = path.as_os_str().as_bytes();
            !path.is_empty() && have.strip_prefix(path).is_some_and(|rest| rest.first() == Some(&0))
        }
        Some(UnixName::Abstract(name)) => have.split_first() == Some((&0, name)),
        Some(UnixName::Unnamed) => have.is_empty(),
    })
}

/// The bytes a Unix socket is bound to: empty if unnamed, a leading NUL if abstract, a trailing NUL if a path. `None`
/// if it is no Unix socket of this type and listening state. (The C interface compares prefixes of them.)
///
/// # Errors
/// As [`is_socket_unix`].
pub fn unix_socket_name(fd: impl AsFd, kind: Option<SocketType>, listening: Option<bool>) -> Result<Option<Vec<u8>>> {
    if !socket_like(fd.as_fd(), kind, listening)? {
        return Ok(None);
    }
    let name = LocalName::of(fd.as_fd())?;
    Ok((name.family == libc::AF_UNIX).then(|| name.bytes[size_of::<libc::sa_family_t>()..].to_vec()))
}

/// Is it a POSIX message queue, and that of this name (`/name`) if one is given?
///
/// Without message queues (feature `disable-mq`) the answer is always no.
///
/// # Errors
/// [`Error::Argument`] if the name has no leading slash, [`Error::Sys`] if there is no queue of that name, or
/// `/dev/mqueue` is not mounted, or the kernel has no message queues.
pub fn is_mq(fd: impl AsFd, name: Option<&Path>) -> Result<bool> {
    #[cfg(feature = "disable-mq")]
    {
        let _ = (fd.as_fd(), name);
        Ok(false)
    }
    #[cfg(not(feature = "disable-mq"))]
    {
        match sys::mq_attributes(fd.as_fd()) {
            Err(e) if e.raw_os_error() == Some(libc::EBADF) => return Ok(false),
            r => r.during("asking for a message queue's attributes")?,
        }
        let Some(name) = name else { return Ok(true) };
        if !name.is_absolute() {
            return Err(Error::invalid("the name of a message queue starts with a slash"));
        }
        let st = sys::fstat(fd.as_fd()).during("fstat")?;
        let mut path = b"/dev/mqueue".to_vec();
        path.extend_from_slice(name.as_os_str().as_bytes());
        let there = std::fs::metadata(Path::new(std::ffi::OsStr::from_bytes(&path)));
        Ok(Seen::from(there.during("looking for a message queue")?).same_inode(&st))
    }
}

/// Type and listening state only. `None` and type 0: whichever.
fn socket_like(fd: BorrowedFd<'_>, kind: Option<SocketType>, listening: Option<bool>) -> Result<bool> {
    if kind.is_some_and(|k| k.0 < 0) {
        return Err(Error::invalid("negative socket type"));
    }
    if sys::fstat(fd).during("fstat")?.st_mode & libc::S_IFMT != libc::S_IFSOCK {
        return Ok(false);
    }
    let option = |o| sys::socket_int(fd, o).during("getsockopt");
    if let Some(SocketType(want)) = kind
        && want != 0
        && option(libc::SO_TYPE)? != want
    {
        return Ok(false);
    }
    match listening {
        Some(want) => Ok((option(libc::SO_ACCEPTCONN)? != 0) == want),
        None => Ok(true),
    }
}

/// What of a `stat` is compared.
struct Seen {
    mode: libc::mode_t,
    dev: u64,
    ino: u64,
    rdev: u64,
}

impl Seen {
    fn same_inode(&self, st: &libc::stat) -> bool {
        // libsystemd's notion: same file type, device and inode.
        (self.mode ^ st.st_mode) & libc::S_IFMT == 0 && self.dev == st.st_dev && self.ino == st.st_ino
    }
}

impl From<std::fs::Metadata> for Seen {
    fn from(m: std::fs::Metadata) -> Seen {
        use std::os::unix::fs::MetadataExt;
        Seen { mode: m.mode(), dev: m.dev(), ino: m.ino(), rdev: m.rdev() }
    }
}

/// Looks at what is at `path`, following links. `None`: nothing.
fn look(path: &Path) -> Result<Option<Seen>> {
    match std::fs::metadata(path) {
        Ok(m) => Ok(Some(m.into())),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(e) => Err(e).during("looking at the path"),
    }
}

/// The local address of a socket, as the kernel gives it.
struct LocalName {
    family: libc::c_int,
    bytes: Vec<u8>,
}

impl LocalName {
    fn of(fd: BorrowedFd<'_>) -> Result<LocalName> {
        let bytes = sys::local_address(fd).during("getsockname")?;
        let family = libc::c_int::from(libc::sa_family_t::from_ne_bytes([bytes[0], bytes[1]]));
        Ok(LocalName { family, bytes })
    }

    fn is_inet(&self) -> bool {
        matches!(self.family, libc::AF_INET | libc::AF_INET6)
    }

    /// `N` bytes at `at`, or an error if the address ends before.
    fn part<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let part = self.bytes.get(at..at + N).and_then(|p| p.try_into().ok());
        part.ok_or(Error::invalid("the kernel gave a short address"))
    }

    fn port(&self) -> Option<u16> {
        self.is_inet().then(|| self.part(2).ok().map(u16::from_be_bytes)).flatten()
    }

    /// Port and address of a `sockaddr_in`.
    fn v4(&self) -> Result<(u16, [u8; 4])> {
        Ok((u16::from_be_bytes(self.part(2)?), self.part(4)?))
    }

    /// Port, flow info, address and scope of a `sockaddr_in6`. Flow info as it lies in memory, like
    /// `SocketAddrV6::flowinfo`.
    fn v6(&self) -> Result<(u16, u32, [u8; 16], u32)> {
        let scope = u32::from_ne_bytes(self.part(24)?);
        Ok((u16::from_be_bytes(self.part(2)?), u32::from_ne_bytes(self.part(4)?), self.part(8)?, scope))
    }
}

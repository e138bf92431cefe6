//! Telling the service manager about this process: ready, status, watchdog, stored descriptors, barrier.
use crate::env::{self, Unset};
use crate::error::During;
use crate::{Error, Result, number, sys};
use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// How many descriptors one message may carry (the kernel's limit).
pub const MAX_FDS: usize = 253;
/// What libsystemd asks the kernel to queue for us; without it a large message is refused.
const SEND_BUFFER_LEN_BYTES: libc::c_int = 8 << 20;
/// How long a message may wait for a service manager that does not read. libsystemd waits for ever.
const SEND_LIMIT: Duration = Duration::from_secs(10);

/// One assignment of a notification, as documented in sd_notify(3).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotifyState<'a> {
    /// `READY=1`: start-up, or the reload, is finished.
    Ready,
    /// `RELOADING=1` with `MONOTONIC_USEC=` of the moment of sending, as `Type=notify-reload` demands.
    Reloading,
    /// `STOPPING=1`.
    Stopping,
    /// `MONOTONIC_USEC=`, for a moment of one's own choice (time since boot, in microseconds).
    MonotonicUsec(u64),
    /// `STATUS=`: one line for people.
    Status(Cow<'a, str>),
    /// `NOTIFYACCESS=`: `none`, `main`, `exec` or `all`.
    NotifyAccess(&'a str),
    /// `ERRNO=`: why the service failed.
    Errno(i32),
    /// `BUSERROR=`: the D-Bus name of why the service failed.
    BusError(Cow<'a, str>),
    /// `VARLINKERROR=`: the Varlink name of why the service failed.
    VarlinkError(Cow<'a, str>),
    /// `EXIT_STATUS=`.
    ExitStatus(u8),
    /// `MAINPID=`: another process is the main one.
    MainPid(u32),
    /// `MAINPIDFDID=`: the same, by [`pidfd_inode_id`](crate::pidfd_inode_id).
    MainPidFdId(u64),
    /// `MAINPIDFD=1`: the same, by the one descriptor sent along.
    MainPidFd,
    /// `WATCHDOG=1`: alive.
    Watchdog,
    /// `WATCHDOG=trigger`: act as if the watchdog had run out.
    WatchdogTrigger,
    /// `WATCHDOG_USEC=`: change the time the watchdog gives (sent in whole microseconds, rounded down).
    WatchdogUsec(Duration),
    /// `EXTEND_TIMEOUT_USEC=`: the current start, run or stop needs so much longer.
    ExtendTimeoutUsec(Duration),
    /// `RESTART_RESET=1`: forget how often the service was restarted.
    RestartReset,
    /// `FDSTORE=1`: keep the descriptors sent along.
    FdStore,
    /// `FDSTOREREMOVE=1`: drop the descriptors of the name given by `FDNAME=`.
    FdStoreRemove,
    /// `FDNAME=`: the name of the descriptors; printable ASCII without colon, at most 255.
    FdName(Cow<'a, str>),
    /// `FDPOLL=0`: keep the descriptors even when they hang up.
    FdPollDisable,
    /// Any other assignment. The name is of letters, digits and underscores.
    Other {
        /// Left of the equals sign.
        name: &'a str,
        /// Right of it.
        value: Cow<'a, str>,
    },
}

impl NotifyState<'_> {
    /// [`NotifyState::Status`] of a string, owned or not.
    pub fn status<'a>(text: impl Into<Cow<'a, str>>) -> NotifyState<'a> {
        NotifyState::Status(text.into())
    }

    fn write(&self, to: &mut String) -> Result<()> {
        use NotifyState::*;
        match self {
            Ready => to.push_str("READY=1"),
            Reloading => {
                let now = sys::monotonic().during("reading the monotonic clock")?;
                number_to(to, "RELOADING=1\nMONOTONIC_USEC", now.as_micros());
            }
            Stopping => to.push_str("STOPPING=1"),
            MonotonicUsec(usec) => number_to(to, "MONOTONIC_USEC", usec),
            Status(text) => text_to(to, "STATUS", text)?,
            NotifyAccess(who) => text_to(to, "NOTIFYACCESS", who)?,
            Errno(errno) => number_to(to, "ERRNO", errno),
            BusError(name) => text_to(to, "BUSERROR", name)?,
            VarlinkError(name) => text_to(to, "VARLINKERROR", name)?,
            ExitStatus(status) => number_to(to, "EXIT_STATUS", status),
            MainPid(pid) => number_to(to, "MAINPID", pid),
            MainPidFdId(id) => number_to(to, "MAINPIDFDID", id),
            MainPidFd => to.push_str("MAINPIDFD=1"),
            Watchdog => to.push_str("WATCHDOG=1"),
            WatchdogTrigger => to.push_str("WATCHDOG=trigger"),
            WatchdogUsec(d) => number_to(to, "WATCHDOG_USEC", d.as_micros()),
            ExtendTimeoutUsec(d) => number_to(to, "EXTEND_TIMEOUT_USEC", d.as_micros()),
            RestartReset => to.push_str("RESTART_RESET=1"),
            FdStore => to.push_str("FDSTORE=1"),
            FdStoreRemove => to.push_str("FDSTOREREMOVE=1"),
            FdName(name) => {
                let fits = name.len() <= 255 && name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b':');
                if !fits {
                    return Err(Error::invalid("FDNAME: only printable ASCII without colon, at most 255 bytes"));
                }
                text_to(to, "FDNAME", name)?;
            }
            FdPollDisable => to.push_str("FDPOLL=0"),
            Other { name, value } => {
                if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                    return Err(Error::invalid("the name of an assignment is of letters, digits and underscores"));
                }
                if *name == "BARRIER" {
                    return Err(Error::invalid("BARRIER cannot be mixed with other assignments: use barrier()"));
                }
                text_to(to, name, value)?;
            }
        }
        Ok(())
    }
}

fn number_to(to: &mut String, name: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    write!(to, "{name}={value}").unwrap_or_default();
}

/// A newline would end the value and start an assignment that whoever chose the text is not entitled to.
fn text_to(to: &mut String, name: &str, value: &str) -> Result<()> {
    if value.contains(['\n', '\0']) {
        return Err(Error::invalid("a value may contain neither newline nor NUL"));
    }
    to.push_str(name);
    to.push('=');
    to.push_str(value);
    Ok(())
}

/// The assignments as they are sent: one a line, no newline after the last.
///
/// # Errors
/// [`Error::Argument`] for a value the protocol cannot carry, such as a status of two lines.
pub fn encode(state: &[NotifyState<'_>]) -> Result<String> {
    let mut text = String::new();
    for assignment in state {
        if !text.is_empty() {
            text.push('\n');
        }
        assignment.write(&mut text)?;
    }
    Ok(text)
}

/// Tells the service manager named by `NOTIFY_SOCKET`. `Ok(false)`: there is none.
///
/// With `unset`, the variable is removed whatever the outcome. Shorthand for [`Notifier::from_env`] and
/// [`Notifier::send`].
///
/// # Errors
/// See [`Notifier::from_env`] and [`Notifier::send`]; [`Error::Threads`] if `unset` is asked for while other threads
/// run (then nothing was sent).
pub fn notify(unset: bool, state: &[NotifyState<'_>]) -> Result<bool> {
    notify_with_fds(unset, None, state, &[])
}

/// Like [`notify`], with descriptors, and on behalf of another process if `pid` names one (needs `CAP_SYS_ADMIN`;
/// without it the message goes out in our own name, as with libsystemd).
///
/// # Errors
/// As [`notify`].
pub fn notify_with_fds(
    unset: bool,
    pid: Option<u32>,
    state: &[NotifyState<'_>],
    fds: &[BorrowedFd<'_>],
) -> Result<bool> {
    let _unset = Unset::at_end(unset, env::NOTIFY)?;
    let text = encode(state)?;
    match Notifier::from_env()? {
        Some(n) => n.on_behalf_of(pid).send_raw(text.as_bytes(), fds).map(|()| true),
        None => Ok(false),
    }
}

/// Waits until the service manager has handled everything sent before, at most `limit` (`None`: for ever).
/// `Ok(false)`: there is no service manager.
///
/// # Errors
/// [`Error::Timeout`] if it did not in that time; otherwise as [`notify`].
pub fn notify_barrier(unset: bool, limit: Option<Duration>) -> Result<bool> {
    let _unset = Unset::at_end(unset, env::NOTIFY)?;
    match Notifier::from_env()? {
        Some(n) => n.barrier(limit).map(|()| true),
        None => Ok(false),
    }
}

/// A notification socket's address, to notify several times, or after the environment was unset.
#[derive(Clone, Debug)]
pub struct Notifier {
    address: Address,
    pid: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    /// A path, or an abstract name with its leading NUL.
    Unix(Vec<u8>),
    Vsock {
        cid: u32,
        port: u32,
        /// `None`: datagrams where the kernel has them, else packets, else a stream.
        kind: Option<libc::c_int>,
    },
}

impl Notifier {
    /// The service manager named by `NOTIFY_SOCKET`, if any.
    ///
    /// # Errors
    /// [`Error::Variable`] if the address is none of the documented forms.
    pub fn from_env() -> Result<Option<Notifier>> {
        if cfg!(feature = "disable-systemd") {
            return Ok(None);
        }
        match env::get("NOTIFY_SOCKET") {
            Some(value) => Notifier::at(&value).map(Some),
            None => Ok(None),
        }
    }

    /// An address in the form of `NOTIFY_SOCKET`: `/path`, `@abstract`, `vsock:CID:PORT`, or
    /// `vsock-stream:`, `vsock-dgram:`, `vsock-seqpacket:` likewise.
    ///
    /// # Errors
    /// [`Error::Variable`] if it is none of these.
    pub fn at(address: &OsStr) -> Result<Notifier> {
        let parsed = parse_address(address.as_bytes());
        let address =
            parsed.map_err(|errno| Error::Variable { name: "NOTIFY_SOCKET", value: address.into(), errno })?;
        Ok(Notifier { address, pid: None })
    }

    /// Sends in the name of another process (needs `CAP_SYS_ADMIN`; without it, in our own).
    #[must_use]
    pub fn on_behalf_of(mut self, pid: Option<u32>) -> Notifier {
        self.pid = pid;
        self
    }

    /// Sends the assignments in one message.
    ///
    /// # Errors
    /// [`Error::Argument`] for a value the protocol cannot carry, [`Error::Sys`] if nobody listens, [`Error::Timeout`]
    /// if the manager did not take it for ten seconds, [`Error::Protocol`] if it was cut short.
    pub fn send(&self, state: &[NotifyState<'_>]) -> Result<()> {
        self.send_with_fds(state, &[])
    }

    /// Sends the assignments and descriptors in one message. The descriptors stay open here.
    ///
    /// # Errors
    /// As [`send`](Notifier::send); `E2BIG` for more than [`MAX_FDS`].
    pub fn send_with_fds(&self, state: &[NotifyState<'_>], fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.send_raw(encode(state)?.as_bytes(), fds)
    }

    /// Sends a message made elsewhere, unchecked.
    ///
    /// # Errors
    /// As [`send_with_fds`](Notifier::send_with_fds).
    pub fn send_raw(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        if cfg!(feature = "disable-systemd") {
            return Ok(());
        }
        if fds.len() > MAX_FDS {
            return Err(Error::Argument { what: "more descriptors than a message can carry", errno: libc::E2BIG });
        }
        match &self.address {
            Address::Unix(name) => {
                let to = sys::Address::unix(name);
                let socket = sys::socket(libc::AF_UNIX, libc::SOCK_DGRAM).during("making a notification socket")?;
                self.deliver(&socket, Some(&to), message, fds, false)
            }
            Address::Vsock { cid, port, kind } => {
                let to = sys::Address::vsock(*cid, *port);
                let (socket, kind) = vsock_socket(*kind).during("making a notification socket")?;
                bind_privileged(&socket)?;
                if kind == libc::SOCK_DGRAM {
                    return self.deliver(&socket, Some(&to), message, fds, false);
                }
                limit_waits(&socket, SEND_LIMIT)?;
                sys::connect(socket.as_fd(), &to).during("connecting to the notification socket")?;
                self.deliver(&socket, None, message, fds, kind == libc::SOCK_STREAM)?;
                // The end of the connection is the end of the message; the manager's end tells that it was read.
                sys::shutdown_write(socket.as_fd()).during("ending the notification")?;
                match sys::recv_byte(socket.as_fd()) {
                    Ok(0) => Ok(()),
                    Ok(_) => Err(Error::Protocol { what: "data on a notification socket", errno: libc::EPROTO }),
                    Err(e) => Err(waited(e, "waiting for the end of the notification")),
                }
            }
        }
    }

    /// Waits until the service manager has handled everything sent before, at most `limit` (`None`: for ever).
    ///
    /// # Errors
    /// [`Error::Timeout`] if it did not in that time; otherwise as [`send`](Notifier::send).
    pub fn barrier(&self, limit: Option<Duration>) -> Result<()> {
        if cfg!(feature = "disable-systemd") {
            return Ok(());
        }
        let (ours, theirs) = io::pipe().during("making a pipe for the barrier")?;
        self.send_raw(b"BARRIER=1", &[theirs.as_fd()])?;
        drop(theirs);
        match sys::wait_hangup(ours.as_fd(), limit).during("waiting for the barrier")? {
            true => Ok(()),
            false => Err(Error::Timeout { what: "the service manager did not reach the barrier" }),
        }
    }

    fn deliver(
        &self,
        socket: &OwnedFd,
        to: Option<&sys::Address>,
        mut message: &[u8],
        fds: &[BorrowedFd<'_>],
        stream: bool,
    ) -> Result<()> {
        raise_send_buffer(socket);
        limit_waits(socket, SEND_LIMIT)?;
        let me = std::process::id();
        let [uid, euid, gid, egid] = sys::ids();
        let from = self.pid.filter(|p| *p != 0).unwrap_or(me);
        let mut ucred =
            (from != me || uid != euid || gid != egid).then_some(libc::ucred { pid: from as libc::pid_t, uid, gid });
        let mut fds = fds;
        loop {
            match sys::send(socket.as_fd(), to, &[message], fds, ucred) {
                Ok(n) if n >= message.len() => return Ok(()),
                Ok(_) if !stream => {
                    return Err(Error::Protocol { what: "the notification was cut short", errno: libc::EIO });
                }
                Ok(n) => {
                    // Descriptors and credentials went with the first part.
                    message = &message[n..];
                    fds = &[];
                    ucred = None;
                }
                // Not entitled to that name: in our own, then.
                Err(_) if ucred.is_some() => ucred = None,
                Err(e) => return Err(waited(e, "sending a notification")),
            }
        }
    }
}

/// A wait that ended by the limit set on the socket is a timeout.
pub(crate) fn waited(e: io::Error, call: &'static str) -> Error {
    match e.kind() {
        io::ErrorKind::WouldBlock => Error::Timeout { what: call },
        _ => Error::Sys { call, source: e },
    }
}

pub(crate) fn limit_waits(socket: &OwnedFd, limit: Duration) -> Result<()> {
    let limit = sys::timeval(limit);
    for option in [libc::SO_SNDTIMEO, libc::SO_RCVTIMEO] {
        sys::set_option(socket.as_fd(), libc::SOL_SOCKET, option, limit).during("limiting the time of a message")?;
    }
    Ok(())
}

/// So that large messages fit. The privileged form ignores the system's limit; neither failing is a failure.
pub(crate) fn raise_send_buffer(socket: &OwnedFd) {
    let enough = |s: &OwnedFd| {
        // The kernel reports twice what was asked for.
        sys::socket_int(s.as_fd(), libc::SO_SNDBUF).is_ok_and(|n| n / 2 >= SEND_BUFFER_LEN_BYTES)
    };
    for option in [libc::SO_SNDBUF, libc::SO_SNDBUFFORCE] {
        if enough(socket) {
            return;
        }
        sys::set_option(socket.as_fd(), libc::SOL_SOCKET, option, SEND_BUFFER_LEN_BYTES).unwrap_or_default();
    }
}

/// A vsock socket of the wanted type, or of the first type that this kernel has: not every transport has datagrams.
fn vsock_socket(kind: Option<libc::c_int>) -> io::Result<(OwnedFd, libc::c_int)> {
    if let Some(kind) = kind {
        return sys::socket(libc::AF_VSOCK, kind).map(|s| (s, kind));
    }
    let mut refused = io::Error::from_raw_os_error(libc::ENODEV);
    for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET, libc::SOCK_STREAM] {
        match sys::socket(libc::AF_VSOCK, kind) {
            Ok(s) => return Ok((s, kind)),
            Err(e) if not_supported(&e) => refused = e,
            Err(e) => return Err(e),
        }
    }
    Err(refused)
}

fn not_supported(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(
            libc::ENODEV
                | libc::EOPNOTSUPP
                | libc::ENOTTY
                | libc::ENOSYS
                | libc::EAFNOSUPPORT
                | libc::EPFNOSUPPORT
                | libc::EPROTONOSUPPORT
                | libc::ESOCKTNOSUPPORT
                | libc::ENOPROTOOPT
        )
    )
}

/// A port below 1024 shows the other side that root sends; without the right to one, any port will do.
fn bind_privileged(socket: &OwnedFd) -> Result<()> {
    for port in (1..1024).rev() {
        match sys::bind(socket.as_fd(), &sys::Address::vsock(libc::VMADDR_CID_ANY, port)) {
            Err(e) if e.raw_os_error() == Some(libc::EADDRINUSE) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => return Ok(()),
            r => return r.during("binding the notification socket"),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EADDRINUSE)).during("binding the notification socket")
}

/// Parses `NOTIFY_SOCKET`; the error is libsystemd's errno.
fn parse_address(text: &[u8]) -> std::result::Result<Address, i32> {
    if let Some(first @ (b'/' | b'@')) = text.first() {
        let mut name = text.to_vec();
        if name.len() < 2 {
            return Err(libc::EINVAL);
        }
        // A path needs room for its terminating NUL; an abstract name, whose '@' becomes NUL, does not.
        let room = size_of::<libc::sockaddr_un>() - std::mem::offset_of!(libc::sockaddr_un, sun_path);
        if name.len() > room - 1 {
            return Err(if *first == b'@' { libc::EINVAL } else { libc::ENAMETOOLONG });
        }
        if *first == b'@' {
            name[0] = 0;
        }
        return Ok(Address::Unix(name));
    }
    let kinds = [
        (&b"vsock:"[..], None),
        (b"vsock-dgram:", Some(libc::SOCK_DGRAM)),
        (b"vsock-seqpacket:", Some(libc::SOCK_SEQPACKET)),
        (b"vsock-stream:", Some(libc::SOCK_STREAM)),
    ];
    let found = kinds.into_iter().find_map(|(scheme, kind)| text.strip_prefix(scheme).map(|rest| (rest, kind)));
    let (rest, kind) = found.ok_or(libc::EPROTO)?;
    let colon = rest.iter().position(|b| *b == b':').ok_or(libc::EINVAL)?;
    let port = number::unsigned32(&rest[colon + 1..]).map_err(|e| e.errno())?;
    let cid = match &rest[..colon] {
        b"hypervisor" => libc::VMADDR_CID_HYPERVISOR,
        b"local" => libc::VMADDR_CID_LOCAL,
        b"host" => libc::VMADDR_CID_HOST,
        // A listener's form; to send, one must say to whom.
        b"" => return Err(libc::EINVAL),
        number => number::unsigned32(number).map_err(|e| e.errno())?,
    };
    if port == libc::VMADDR_PORT_ANY || cid == libc::VMADDR_CID_ANY {
        return Err(libc::EINVAL);
    }
    Ok(Address::Vsock { cid, port, kind })
}

/// For messages: the address much as `NOTIFY_SOCKET` has it.
impl std::fmt::Display for Notifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.address {
            Address::Unix(name) if name.first() == Some(&0) => {
                write!(f, "@{}", OsStr::from_bytes(&name[1..]).display())
            }
            Address::Unix(name) => write!(f, "{}", OsStr::from_bytes(name).display()),
            Address::Vsock { cid, port, .. } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

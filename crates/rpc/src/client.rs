//! A blocking client: what a Rust program uses to checkpoint and restore through the service or an own `swrk`.
use crate::{Connection, Features, Notify, Opts, Packet, Request, RequestType, Response, Version};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, socketpair};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What the server said no to, in its own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// `cr_errno`, if the server names one.
    pub errno: Option<i32>,
    /// `cr_errmsg`: its first error.
    pub message: Option<String>,
}

/// Why a call brought no result.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The socket, or the start of the server, failed.
    Io(io::Error),
    /// The server closed the connection without a reply.
    Closed,
    /// The reply cannot be understood.
    Protocol(String),
    /// No reply within the limit of [`Client::set_limit`]. Closing the connection cancels the request.
    TimedOut(Duration),
    /// The request was understood and failed.
    Failed(Failure),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => write!(f, "the connection to the service failed: {e}"),
            Self::Closed => f.write_str("the service closed the connection without a reply; see its log"),
            Self::Protocol(what) => write!(f, "the service's reply cannot be understood: {what}"),
            Self::TimedOut(limit) => write!(f, "the service did not answer within {} s", limit.as_secs_f32()),
            Self::Failed(failure) => {
                let said = failure.message.as_deref().unwrap_or("the service gave no reason; see the log file");
                f.write_str(said)?;
                match failure.errno {
                    Some(errno) => write!(f, " ({})", io::Error::from_raw_os_error(errno)),
                    None => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(e: rustix::io::Errno) -> Self {
        Self::Io(e.into())
    }
}

/// One notification, to be answered before the server goes on.
#[derive(Debug)]
pub struct Notification {
    /// CRIU's script name, for instance `post-dump`.
    pub script: String,
    /// The root task, where the script is about it.
    pub pid: Option<i32>,
    /// The pty master of `orphan-pts-master`.
    pub fd: Option<OwnedFd>,
}

/// The answer to a notification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// False fails the request where it still can be.
    pub success: bool,
    /// With `query-ext-files`: more resources to treat as external.
    pub external: Vec<String>,
}

impl From<bool> for Ack {
    fn from(success: bool) -> Self {
        Self { success, external: Vec::new() }
    }
}

/// A connection to a server. Most requests use it up: the server closes it after the reply.
#[derive(Debug)]
pub struct Client {
    conn: Connection,
    swrk: Option<Child>,
    limit: Option<Duration>,
}

impl Client {
    /// Connects to a service.
    ///
    /// # Errors
    /// The path cannot be connected to.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self { conn: Connection::new(socket), swrk: None, limit: None })
    }

    /// The same with a limit, also for each later call: a service that is full or hangs answers with
    /// [`Error::TimedOut`].
    ///
    /// # Errors
    /// As there.
    pub fn connect_within(path: &Path, limit: Duration) -> Result<Self, Error> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
        match connect(&socket, &SocketAddrUnix::new(path)?) {
            Ok(()) => Ok(Self { conn: Connection::new(socket), swrk: None, limit: Some(limit) }),
            Err(Errno::AGAIN) => Err(Error::TimedOut(limit)),
            Err(e) => Err(e.into()),
        }
    }

    /// How long each later call may take as a whole, notifications included. `None`: as long as it takes.
    ///
    /// # Errors
    /// The socket does not take it.
    pub fn set_limit(&mut self, limit: Option<Duration>) -> Result<(), Error> {
        sockopt::set_socket_timeout(&self.conn, Timeout::Send, limit)?;
        self.limit = limit;
        Ok(())
    }

    /// Starts `binary swrk N` and talks to it, as libcriu and runc do.
    ///
    /// # Errors
    /// The socket pair cannot be made or the binary not be started.
    pub fn spawn_swrk(binary: &Path) -> Result<Self, Error> {
        Self::spawn_with(Command::new(binary))
    }

    /// As [`Client::spawn_swrk`], with the caller's own command up to the verb.
    ///
    /// # Errors
    /// As there.
    pub fn spawn_with(mut command: Command) -> Result<Self, Error> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // The child needs its end without CLOEXEC. A duplicate made now would leak into programs that other threads
        // start meanwhile, so it travels as the child's stdin instead.
        let child = command.arg("swrk").arg("0").stdin(Stdio::from(theirs)).spawn()?;
        Ok(Self { conn: Connection::new(ours), swrk: Some(child), limit: None })
    }

    /// Talks over a socket that is connected already.
    pub fn from_fd(socket: OwnedFd) -> Self {
        Self { conn: Connection::new(socket), swrk: None, limit: None }
    }

    /// Checkpoints the tree `opts.pid`, or the caller itself without one. True: we are the copy that was restored.
    /// `notify` is asked only if `opts.notify_scripts` is set; false fails the dump.
    ///
    /// # Errors
    /// The server's reason; the tree runs on then.
    pub fn dump(&mut self, opts: Opts, notify: impl FnMut(Notification) -> bool) -> Result<bool, Error> {
        let reply = self.call(request(RequestType::Dump, Some(opts)), notify)?;
        Ok(reply.dump.and_then(|d| d.restored).unwrap_or(false))
    }

    /// Brings a tree back; the root task's pid.
    ///
    /// # Errors
    /// The server's reason; nothing of the tree is left then.
    pub fn restore(&mut self, opts: Opts, notify: impl FnMut(Notification) -> bool) -> Result<i32, Error> {
        let reply = self.call(request(RequestType::Restore, Some(opts)), notify)?;
        reply.restore.map(|r| r.pid).ok_or_else(|| Error::Protocol("no pid in the restore reply".to_owned()))
    }

    /// Asks whether the kernel offers what is needed.
    ///
    /// # Errors
    /// The first thing that is missing.
    pub fn check(&mut self) -> Result<(), Error> {
        self.call(request(RequestType::Check, None), |_| true).map(drop)
    }

    /// The version the server claims to be.
    ///
    /// # Errors
    /// Transport and protocol errors.
    pub fn version(&mut self) -> Result<Version, Error> {
        let reply = self.call(request(RequestType::Version, None), |_| true)?;
        reply.version.ok_or_else(|| Error::Protocol("no version in the version reply".to_owned()))
    }

    /// Which of the features asked for exist: true only where asked and present.
    ///
    /// # Errors
    /// Transport and protocol errors.
    pub fn feature_check(&mut self, asked: Features) -> Result<Features, Error> {
        let mut req = request(RequestType::FeatureCheck, None);
        req.features = Some(asked);
        let reply = self.call(req, |_| true)?;
        reply.features.ok_or_else(|| Error::Protocol("no features in the feature reply".to_owned()))
    }

    /// Sends any request and answers notifications until its reply is here.
    ///
    /// # Errors
    /// As the calls above.
    pub fn call(&mut self, req: Request, mut notify: impl FnMut(Notification) -> bool) -> Result<Response, Error> {
        self.call_with(req, |notification| notify(notification).into())
    }

    /// The same with whole answers.
    ///
    /// # Errors
    /// As the calls above.
    pub fn call_with(&mut self, req: Request, mut notify: impl FnMut(Notification) -> Ack) -> Result<Response, Error> {
        let end = self.limit.map(|limit| (Instant::now() + limit, limit));
        self.send(&req)?;
        loop {
            if let Some((end, limit)) = end
                && !self.conn.readable_until(end)?
            {
                return Err(Error::TimedOut(limit));
            }
            let (reply, fd) = match self.conn.receive::<Response>()? {
                Packet::Message(reply, fd) => (reply, fd),
                Packet::Closed => return Err(Error::Closed),
                Packet::Garbage(why) => return Err(Error::Protocol(why)),
            };
            if reply.r#type() == RequestType::Notify && req.r#type() != RequestType::Notify {
                let Notify { script, pid } = reply.notify.unwrap_or_default();
                let ack = notify(Notification { script: script.unwrap_or_default(), pid, fd });
                let opts = Some(Opts { external: ack.external, ..Opts::default() }).filter(|o| !o.external.is_empty());
                let mut answer = request(RequestType::Notify, opts);
                answer.notify_success = Some(ack.success);
                self.send(&answer)?;
                continue;
            }
            if !reply.success {
                return Err(Error::Failed(Failure { errno: reply.cr_errno, message: reply.cr_errmsg }));
            }
            // PAGE_SERVER_CHLD is answered as PAGE_SERVER; all others echo the request.
            let same = reply.r#type == req.r#type
                || (req.r#type() == RequestType::PageServerChld && reply.r#type() == RequestType::PageServer);
            if !same {
                return Err(Error::Protocol(format!("type {} asked, type {} answered", req.r#type, reply.r#type)));
            }
            return Ok(reply);
        }
    }

    fn send(&self, request: &Request) -> Result<(), Error> {
        match (self.conn.send(request, None), self.limit) {
            (Err(e), Some(limit)) if e.kind() == io::ErrorKind::WouldBlock => Err(Error::TimedOut(limit)),
            (sent, _) => Ok(sent?),
        }
    }

    /// The connection, for what the calls above do not cover.
    pub fn connection(&self) -> &Connection {
        &self.conn
    }

    /// Number of our end, so that a caller can keep it out of what it starts.
    pub fn raw_fd(&self) -> i32 {
        use std::os::fd::AsFd;
        self.conn.as_fd().as_raw_fd()
    }

    /// Closes the connection, which cancels what still runs, and hands the `swrk` of [`Client::spawn_swrk`] over to be
    /// waited for.
    pub fn into_swrk(self) -> Option<Child> {
        self.swrk
    }

    /// Closes the connection and waits for the `swrk` that [`Client::spawn_swrk`] started; its exit code.
    ///
    /// # Errors
    /// The wait failed. `None` without an own `swrk`, or if a signal ended it.
    pub fn finish(self) -> io::Result<Option<i32>> {
        drop(self.conn);
        match self.swrk {
            Some(mut child) => Ok(child.wait()?.code()),
            None => Ok(None),
        }
    }
}

/// A request of `kind` and nothing else.
pub fn request(kind: RequestType, opts: Option<Opts>) -> Request {
    Request { r#type: kind.into(), opts, ..Request::default() }
}

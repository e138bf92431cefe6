//! Why a request brought no result, in kinds that a program can act on.
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// What kind of refusal it is. The server's `cr_errno` decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The task does not exist, or cannot be stopped.
    NoSuchTask,
    /// A pid, path or address that the restore needs is somebody else's.
    Taken,
    /// The request itself is wrong.
    BadRequest,
    /// The tree holds something, or the request asks for something, that the server cannot do.
    Unsupported,
    /// The images are damaged, or not images.
    BadImages,
    /// The caller may not.
    Permission,
    /// The server gave up waiting.
    TimedOut,
    /// Somebody cancelled the request.
    Cancelled,
    /// The server is busy, or the tree changed meanwhile: try again.
    Busy,
    /// No room for the images.
    NoSpace,
    /// Anything else; the message says what.
    Other,
}

/// A request that was understood and failed, in the server's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    errno: Option<i32>,
    message: Option<String>,
}

impl Refusal {
    /// What to do about it.
    pub fn kind(&self) -> Kind {
        // Numbers of Linux, the same on every architecture that has crust or CRIU (but for EBADRQC etc. on MIPS).
        match self.errno {
            Some(3) => Kind::NoSuchTask,
            Some(17) => Kind::Taken,
            Some(56) => Kind::BadRequest,
            Some(95) => Kind::Unsupported,
            Some(22) => Kind::BadImages,
            Some(1 | 13) => Kind::Permission,
            Some(110) => Kind::TimedOut,
            Some(125) => Kind::Cancelled,
            Some(11) => Kind::Busy,
            Some(28) => Kind::NoSpace,
            _ => Kind::Other,
        }
    }

    /// `cr_errno`, if the server named one.
    pub fn errno(&self) -> Option<i32> {
        self.errno
    }

    /// The server's first error, with its remedy if the server is crust.
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }
}

/// Why a request brought no result.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// No service listens there, or the worker cannot be started.
    Unreachable {
        /// The socket or the program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection failed.
    Io(io::Error),
    /// The server closed the connection without a reply; its log may say why.
    Closed,
    /// The reply makes no sense.
    Protocol(String),
    /// No reply within the limit. The request was cancelled.
    TimedOut(Duration),
    /// The server said no.
    Refused(Refusal),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { path, source } => write!(f, "{} cannot be reached: {source}", path.display()),
            Self::Io(e) => write!(f, "the connection failed: {e}"),
            Self::Closed => f.write_str("the connection was closed without a reply; see the server's log"),
            Self::Protocol(what) => write!(f, "the reply makes no sense: {what}"),
            Self::TimedOut(limit) => write!(f, "no reply within {} s", limit.as_secs_f32()),
            Self::Refused(refusal) => match (&refusal.message, refusal.errno) {
                (Some(message), _) => f.write_str(message.trim_end()),
                (None, Some(errno)) => write!(f, "refused: {}", io::Error::from_raw_os_error(errno)),
                (None, None) => f.write_str("refused without a reason; see the log file"),
            },
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreachable { source, .. } | Self::Io(source) => Some(source),
            _ => None,
        }
    }
}

impl From<crust_rpc::Error> for Error {
    fn from(e: crust_rpc::Error) -> Self {
        match e {
            crust_rpc::Error::Io(e) => Self::Io(e),
            crust_rpc::Error::Closed => Self::Closed,
            crust_rpc::Error::Protocol(what) => Self::Protocol(what),
            crust_rpc::Error::TimedOut(limit) => Self::TimedOut(limit),
            crust_rpc::Error::Failed(f) => Self::Refused(Refusal { errno: f.errno, message: f.message }),
            other => Self::Protocol(other.to_string()),
        }
    }
}

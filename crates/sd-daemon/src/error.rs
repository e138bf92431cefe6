//! The one error of this crate: which variable, call or argument was at fault, and the errno libsystemd would give.
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::{fmt, io};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong. [`Error::errno`] gives the number libsystemd returns (negated) in the same situation.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// An environment variable of the protocol holds something that does not parse.
    Variable {
        /// Name of the variable.
        name: &'static str,
        /// Its value, as found.
        value: OsString,
        /// `EINVAL` for no number, `ERANGE` for a number out of range, …
        errno: i32,
    },
    /// `LISTEN_FDNAMES` does not name as many descriptors as `LISTEN_FDS` counts.
    NameCount {
        /// Number of descriptors.
        fds: usize,
        /// Number of names.
        names: usize,
    },
    /// The descriptors were handed out before; each has one owner.
    AlreadyTaken,
    /// The environment counts a descriptor that was opened by this process (it has close-on-exec set), so it cannot
    /// have come from the service manager, and somebody else owns it.
    NotInherited {
        /// The descriptor's number.
        fd: RawFd,
    },
    /// The environment was to be unset, but another thread might read it at this moment. Nothing was done.
    Threads,
    /// A message, name or path that the protocol cannot carry.
    Argument {
        /// What is wrong with it.
        what: &'static str,
        /// `EINVAL`, `E2BIG`, …
        errno: i32,
    },
    /// A system call failed.
    Sys {
        /// What was attempted.
        call: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The service manager did not answer or take the message in time.
    Timeout {
        /// What was waited for.
        what: &'static str,
    },
    /// The other end broke the protocol.
    Protocol {
        /// How.
        what: &'static str,
        /// `EIO`, `EPROTO`.
        errno: i32,
    },
}

impl Error {
    /// The errno libsystemd answers with here (it returns it negated). Cases libsystemd does not know
    /// ([`AlreadyTaken`](Error::AlreadyTaken), [`NotInherited`](Error::NotInherited), [`Threads`](Error::Threads))
    /// have numbers of their own: `EALREADY`, `EBADF`, `EBUSY`.
    pub fn errno(&self) -> i32 {
        match self {
            Error::Variable { errno, .. } | Error::Argument { errno, .. } | Error::Protocol { errno, .. } => *errno,
            Error::NameCount { .. } => libc::EINVAL,
            Error::AlreadyTaken => libc::EALREADY,
            Error::NotInherited { .. } => libc::EBADF,
            Error::Threads => libc::EBUSY,
            Error::Sys { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Error::Timeout { .. } => libc::ETIMEDOUT,
        }
    }

    pub(crate) fn invalid(what: &'static str) -> Error {
        Error::Argument { what, errno: libc::EINVAL }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Variable { name, value, errno } => {
                write!(f, "environment variable {name}={value:?}: {}", io::Error::from_raw_os_error(*errno))
            }
            Error::NameCount { fds, names } => write!(f, "LISTEN_FDNAMES has {names} names for {fds} descriptors"),
            Error::AlreadyTaken => f.write_str("the passed descriptors were already handed out"),
            Error::NotInherited { fd } => {
                write!(f, "descriptor {fd} is counted by LISTEN_FDS but was opened by this process, not inherited")
            }
            Error::Threads => f.write_str("cannot unset environment variables while other threads run"),
            Error::Argument { what, .. } | Error::Protocol { what, .. } => f.write_str(what),
            Error::Sys { call, source } => write!(f, "{call}: {source}"),
            Error::Timeout { what } => write!(f, "timed out: {what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Sys { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<Error> for io::Error {
    fn from(e: Error) -> io::Error {
        match e {
            Error::Sys { source, .. } => source,
            other => io::Error::new(io::Error::from_raw_os_error(other.errno()).kind(), other),
        }
    }
}

/// Names the call that failed.
pub(crate) trait During<T> {
    fn during(self, call: &'static str) -> Result<T>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, call: &'static str) -> Result<T> {
        self.map_err(|source| Error::Sys { call, source })
    }
}

//! Socket activation: the descriptors the service manager passed, each with one owner.
use crate::env::{self, Unset};
use crate::error::During;
use crate::{Error, Result, number, pidfd, sys};
use std::ffi::{OsStr, OsString};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Mutex;

/// Number of the first passed descriptor.
pub const LISTEN_FDS_START: RawFd = 3;

/// One passed descriptor and its name.
#[derive(Debug)]
pub struct ListenFd {
    /// The descriptor, close-on-exec already set.
    pub fd: OwnedFd,
    /// `FileDescriptorName=` of the socket unit, `FDNAME=` of a stored descriptor, `connection` for `Accept=yes`,
    /// `stored` for a stored one without name, `unknown` if the manager gave no names.
    pub name: OsString,
}

/// What this process knows about its passed descriptors. Locked while they are looked at and handed out.
struct Passed {
    /// How many, counted from the first, were seen to have come through exec: their close-on-exec flag was unset, and
    /// everything that Rust's library opens has it set.
    inherited: usize,
    /// Whether they have owners already.
    taken: bool,
}

static PASSED: Mutex<Passed> = Mutex::new(Passed { inherited: 0, taken: false });

impl Passed {
    /// Sets close-on-exec on all, stopping at one that is not open. Returns the first that was not inherited.
    fn secure(&mut self, count: usize) -> Result<Option<RawFd>> {
        let mut foreign = None;
        for (index, fd) in each(count).enumerate() {
            let flags = sys::fd_flags(fd).during("looking at a passed descriptor")?;
            if flags & libc::FD_CLOEXEC == 0 && index == self.inherited {
                self.inherited += 1;
            }
            if index >= self.inherited {
                foreign = foreign.or(Some(fd));
            }
            sys::set_cloexec(fd).during("setting close-on-exec on a passed descriptor")?;
        }
        Ok(foreign)
    }
}

/// Takes the descriptors passed by the service manager, in the order of the socket unit. None if there are none for
/// this process.
///
/// They are handed out once. With `unset`, the variables are removed whatever the outcome, and later calls find
/// nothing; without it, a later call is [`Error::AlreadyTaken`].
///
/// # Errors
/// [`Error::Variable`] and [`Error::Sys`] where `sd_listen_fds` fails, [`Error::NotInherited`] if one of the counted
/// descriptors belongs to somebody in this process, [`Error::Threads`] if `unset` is asked for while other threads run
/// (then nothing was done). No descriptor is handed out on an error; those before a bad one have close-on-exec set.
pub fn listen_fds(unset: bool) -> Result<Vec<OwnedFd>> {
    take(unset, false).map(|fds| fds.into_iter().map(|l| l.fd).collect())
}

/// Like [`listen_fds`], with the name of each descriptor.
///
/// # Errors
/// As [`listen_fds`], and [`Error::NameCount`] if there are not as many names as descriptors.
pub fn listen_fds_with_names(unset: bool) -> Result<Vec<ListenFd>> {
    take(unset, true)
}

/// What `sd_listen_fds(0)` answers: checks the environment, sets close-on-exec on each descriptor, and returns how many
/// there are from [`LISTEN_FDS_START`] on. Owns nothing, unsets nothing; [`listen_fds`] is what programs want.
///
/// # Errors
/// [`Error::Variable`] for a value that does not parse or a count that cannot be, [`Error::Sys`] for a descriptor that
/// is not open.
pub fn listen_fds_count() -> Result<usize> {
    let mut passed = PASSED.lock().unwrap_or_else(|e| e.into_inner());
    let count = counted()?;
    passed.secure(count)?;
    Ok(count)
}

fn take(unset: bool, named: bool) -> Result<Vec<ListenFd>> {
    let _unset = Unset::at_end(unset, env::LISTEN)?;
    // Names are read before anything else, as libsystemd does: it refuses bad ones even if there are no descriptors.
    let names = match env::get("LISTEN_FDNAMES") {
        Some(list) if named => Some(names(&list)?),
        _ => None,
    };
    let mut passed = PASSED.lock().unwrap_or_else(|e| e.into_inner());
    let count = counted()?;
    if count == 0 {
        return Ok(Vec::new());
    }
    if passed.taken {
        return Err(Error::AlreadyTaken);
    }
    if let Some(fd) = passed.secure(count)? {
        return Err(Error::NotInherited { fd });
    }
    let names = match names {
        Some(names) if names.len() != count => return Err(Error::NameCount { fds: count, names: names.len() }),
        Some(names) => names,
        None => vec![OsString::from("unknown"); count],
    };
    passed.taken = true;
    Ok(each(count).zip(names).map(|(fd, name)| ListenFd { fd: sys::own_inherited(fd), name }).collect())
}

/// The numbers of the passed descriptors.
fn each(count: usize) -> impl Iterator<Item = RawFd> {
    (LISTEN_FDS_START..).take(count)
}

/// How many descriptors the environment promises to this process.
fn counted() -> Result<usize> {
    if cfg!(feature = "disable-systemd") {
        return Ok(0);
    }
    match env::number("LISTEN_PID", number::pid)? {
        Some(pid) if pid == std::process::id() => {}
        _ => return Ok(0),
    }
    // A pid can be reused, the inode number of a pidfd cannot. Kernels that do not have it (before 6.9) cannot tell.
    if let Some(id) = env::number("LISTEN_PIDFDID", number::unsigned)?
        && pidfd::own_id().is_some_and(|own| own != id)
    {
        return Ok(0);
    }
    let Some(count) = env::number("LISTEN_FDS", number::int)? else { return Ok(0) };
    if count <= 0 || count > i32::MAX - LISTEN_FDS_START {
        let value = env::get("LISTEN_FDS").unwrap_or_default();
        return Err(Error::Variable { name: "LISTEN_FDS", value, errno: libc::EINVAL });
    }
    Ok(count.unsigned_abs() as usize)
}

/// Splits `LISTEN_FDNAMES` at colons; an empty list is one empty name. A backslash takes the next byte literally; one at the very end is an error.
fn names(list: &OsStr) -> Result<Vec<OsString>> {
    let mut names = vec![Vec::new()];
    let mut bytes = list.as_bytes().iter();
    while let Some(&b) = bytes.next() {
        match b {
            b':' => names.push(Vec::new()),
            b'\\' => match (bytes.next(), names.last_mut()) {
                (Some(&next), Some(name)) => name.push(next),
                _ => {
                    return Err(Error::Variable {
                        name: "LISTEN_FDNAMES",
                        value: list.to_owned(),
                        errno: libc::EINVAL,
                    });
                }
            },
            b => names.last_mut().into_iter().for_each(|name| name.push(b)),
        }
    }
    Ok(names.into_iter().map(OsString::from_vec).collect())
}

//! The Rust functions in C's terms, so that the same questions can be put to them.
#![allow(unsafe_code, reason = "borrows descriptors by number, as the questions are put")]
use crate::api::Api;
use sd_daemon::{Error, Family, SocketType, UnixName};
use std::ffi::{CStr, OsStr, c_int};
use std::num::NonZeroU16;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(crate) struct RustApi;

pub(crate) fn code<T: Into<i64>>(r: Result<T, Error>) -> c_int {
    r.map_or_else(|e| -e.errno(), |v| v.into().try_into().unwrap_or(c_int::MAX))
}

fn path(p: Option<&CStr>) -> Option<&Path> {
    p.map(|p| Path::new(OsStr::from_bytes(p.to_bytes())))
}

/// A closed descriptor cannot be borrowed: that question does not exist in Rust.
pub(crate) fn borrow(fd: c_int) -> Option<BorrowedFd<'static>> {
    // SAFETY: fcntl(F_GETFD) is harmless on any number; an open descriptor here stays open until the test ends.
    (fd >= 0 && unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

pub(crate) fn kind(t: c_int) -> Option<SocketType> {
    (t != 0).then_some(SocketType(t))
}

pub(crate) fn state(listening: c_int) -> Option<bool> {
    (listening >= 0).then_some(listening != 0)
}

impl Api for RustApi {
    fn listen_fds(&self, unset: bool) -> c_int {
        let r = sd_daemon::listen_fds_count().map(|n| n as i64);
        if unset {
            // SAFETY: this test has one thread.
            unsafe { sd_daemon::unset_listen() };
        }
        code(r)
    }

    fn is_fifo(&self, fd: c_int, p: Option<&CStr>) -> Option<c_int> {
        Some(code(sd_daemon::is_fifo(borrow(fd)?, path(p))))
    }

    fn is_special(&self, fd: c_int, p: Option<&CStr>) -> Option<c_int> {
        Some(code(sd_daemon::is_special(borrow(fd)?, path(p))))
    }

    fn is_socket(&self, fd: c_int, family: c_int, t: c_int, listening: c_int) -> Option<c_int> {
        Some(code(sd_daemon::is_socket(borrow(fd)?, Some(Family(family)), kind(t), state(listening))))
    }

    fn is_socket_inet(&self, fd: c_int, family: c_int, t: c_int, listening: c_int, port: u16) -> Option<c_int> {
        let (fd, port) = (borrow(fd)?, NonZeroU16::new(port));
        Some(code(sd_daemon::is_socket_inet(fd, Some(Family(family)), kind(t), state(listening), port)))
    }

    fn is_socket_unix(&self, fd: c_int, t: c_int, listening: c_int, name: Option<(&[u8], usize)>) -> Option<c_int> {
        let name = match name {
            None => None,
            Some((bytes, len)) => {
                let up_to_nul = bytes.iter().position(|b| *b == 0)?;
                let len = if len == 0 { up_to_nul } else { len };
                Some(match bytes {
                    _ if len == 0 => UnixName::Unnamed,
                    [0, ..] => UnixName::Abstract(&bytes[1..len]),
                    // Only the beginning of a path: C compares that, Rust has whole names.
                    _ if len != up_to_nul => return None,
                    _ => UnixName::Path(Path::new(OsStr::from_bytes(&bytes[..len]))),
                })
            }
        };
        Some(code(sd_daemon::is_socket_unix(borrow(fd)?, kind(t), state(listening), name)))
    }

    fn is_mq(&self, fd: c_int, p: Option<&CStr>) -> Option<c_int> {
        Some(code(sd_daemon::is_mq(borrow(fd)?, path(p))))
    }

    fn notify(&self, unset: bool, message: &CStr) -> c_int {
        let r = sd_daemon::Notifier::from_env()
            .and_then(|n| n.map_or(Ok(false), |n| n.send_raw(message.to_bytes(), &[]).map(|()| true)));
        if unset {
            // SAFETY: this test has one thread.
            unsafe { sd_daemon::unset_notify() };
        }
        code(r)
    }

    fn booted(&self) -> c_int {
        code(sd_daemon::booted())
    }
}

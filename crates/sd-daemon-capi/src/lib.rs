//! The ten `sd_*` functions of the original `sd-daemon.h`, same signatures and return codes, as a C library.
//!
//! Return codes are libsystemd's: positive for yes or sent, 0 for no, a negated errno for a failure. Declarations are
//! in `include/sd-daemon.h`. As with every C library that touches the environment, a non-zero `unset_environment` is
//! for programs where no other thread does so at that moment; the Rust interface checks that, C's cannot.
#![allow(unsafe_code, reason = "a C interface takes raw pointers and descriptors")]
use sd_daemon::{Error, Family, Notifier, SocketType};
use std::ffi::{CStr, OsStr, c_char, c_int};
use std::num::NonZeroU16;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

#[cfg(target_arch = "x86_64")]
mod notifyf;
#[cfg(target_arch = "x86_64")]
pub use notifyf::sd_notifyf;

/// An answer in C's form.
fn code(r: Result<c_int, Error>) -> c_int {
    r.unwrap_or_else(|e| -e.errno())
}

fn yes_no(r: Result<bool, Error>) -> c_int {
    code(r.map(c_int::from))
}

/// C's "0 is whichever".
fn kind(t: c_int) -> Option<SocketType> {
    (t != 0).then_some(SocketType(t))
}

/// C's "below 0 is whichever".
fn state(listening: c_int) -> Option<bool> {
    (listening >= 0).then_some(listening != 0)
}

/// Runs a question on a descriptor, if it is one. Bad arguments come before a closed descriptor, after a negative one.
fn ask(fd: c_int, good_arguments: bool, question: impl FnOnce(BorrowedFd<'_>) -> c_int) -> c_int {
    if fd < 0 {
        return -libc::EBADF;
    }
    if !good_arguments {
        return -libc::EINVAL;
    }
    // SAFETY: F_GETFD takes no pointer; a number that is no descriptor gives an error.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return -libc::EBADF;
    }
    // SAFETY: `fd` is open. That it stays open during the question is up to the C caller; if another thread closes it,
    // the kernel answers about whatever is there then, and no memory is at stake.
    question(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// The path at `p`, if not NULL.
///
/// # Safety
/// `p` is NULL or a NUL-terminated string that lives as long as the result is used.
unsafe fn path<'a>(p: *const c_char) -> Option<&'a Path> {
    // SAFETY: the caller's promise.
    (!p.is_null()).then(|| Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(p) }.to_bytes())))
}

/// `int sd_listen_fds(int unset_environment)`
///
/// # Safety
/// With `unset_environment`, no other thread uses the environment during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sd_listen_fds(unset_environment: c_int) -> c_int {
    let r = sd_daemon::listen_fds_count().map(|n| c_int::try_from(n).unwrap_or(c_int::MAX));
    if unset_environment != 0 {
        // SAFETY: the caller's promise.
        unsafe { sd_daemon::unset_listen() };
    }
    code(r)
}

/// `int sd_is_fifo(int fd, const char *path)`
///
/// # Safety
/// `path` is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sd_is_fifo(fd: c_int, path: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    ask(fd, true, |fd| yes_no(sd_daemon::is_fifo(fd, unsafe { self::path(path) })))
}

/// `int sd_is_special(int fd, const char *path)`
///
/// # Safety
/// `path` is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sd_is_special(fd: c_int, path: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    ask(fd, true, |fd| yes_no(sd_daemon::is_special(fd, unsafe { self::path(path) })))
}

/// `int sd_is_socket(int fd, int family, int type, int listening)`
#[unsafe(no_mangle)]
pub extern "C" fn sd_is_socket(fd: c_int, family: c_int, r#type: c_int, listening: c_int) -> c_int {
    ask(fd, family >= 0 && r#type >= 0, |fd| {
        yes_no(sd_daemon::is_socket(fd, Some(Family(family)), kind(r#type), state(listening)))
    })
}

/// `int sd_is_socket_inet(int fd, int family, int type, int listening, uint16_t port)`
#[unsafe(no_mangle)]
pub extern "C" fn sd_is_socket_inet(fd: c_int, family: c_int, r#type: c_int, listening: c_int, port: u16) -> c_int {
    let good = matches!(family, 0 | libc::AF_INET | libc::AF_INET6) && r#type >= 0;
    ask(fd, good, |fd| {
        let (kind, state, port) = (kind(r#type), state(listening), NonZeroU16::new(port));
        yes_no(sd_daemon::is_socket_inet(fd, Some(Family(family)), kind, state, port))
    })
}

/// `int sd_is_socket_unix(int fd, int type, int listening, const char *path, size_t length)`
///
/// # Safety
/// `path` is NULL, or a NUL-terminated string, or starts with NUL and has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sd_is_socket_unix(
    fd: c_int,
    r#type: c_int,
    listening: c_int,
    path: *const c_char,
    length: usize,
) -> c_int {
    ask(fd, r#type >= 0, |fd| {
        let have = match sd_daemon::unix_socket_name(fd, kind(r#type), state(listening)) {
            Ok(Some(have)) => have,
            Ok(None) => return 0,
            Err(e) => return -e.errno(),
        };
        if path.is_null() {
            return 1;
        }
        // SAFETY: with length 0 the caller promises a NUL-terminated string.
        let length = if length == 0 { unsafe { CStr::from_ptr(path) }.count_bytes() } else { length };
        if length == 0 {
            return have.is_empty().into();
        }
        // SAFETY: not empty, so there is a first byte.
        let first = unsafe { *path };
        // A path is compared with the byte after it, which usually is its terminating NUL.
        let compared = if first == 0 { length } else { length + 1 };
        if have.len() < compared || (first == 0 && have.len() != compared) {
            return 0;
        }
        // SAFETY: an abstract name has `length` bytes; a path has them and a terminator (or more).
        let want = unsafe { std::slice::from_raw_parts(path.cast::<u8>(), compared) };
        have.starts_with(want).into()
    })
}

/// `int sd_is_mq(int fd, const char *path)`
///
/// # Safety
/// `path` is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sd_is_mq(fd: c_int, path: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    ask(fd, true, |fd| yes_no(sd_daemon::is_mq(fd, unsafe { self::path(path) })))
}

/// `int sd_notify(int unset_environment, const char *state)`
///
/// # Safety
/// `state` is NULL or a NUL-terminated string. With `unset_environment`, no other thread uses the environment.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sd_notify(unset_environment: c_int, state: *const c_char) -> c_int {
    let r = if state.is_null() {
        -libc::EINVAL
    } else {
        // SAFETY: the caller's promise.
        let message = unsafe { CStr::from_ptr(state) };
        code(Notifier::from_env().and_then(|n| match n {
            Some(n) => n.send_raw(message.to_bytes(), &[]).map(|()| 1),
            None => Ok(0),
        }))
    };
    if unset_environment != 0 {
        // SAFETY: the caller's promise.
        unsafe { sd_daemon::unset_notify() };
    }
    r
}

/// `int sd_booted(void)`
#[unsafe(no_mangle)]
pub extern "C" fn sd_booted() -> c_int {
    yes_no(sd_daemon::booted())
}

//! The C interface as a table: of libsystemd, of our C library, and (by `rust_api.rs`) of the Rust functions.
#![allow(unsafe_code, reason = "calls C functions found by name")]
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::mem::transmute_copy;

/// The questions of `sd-daemon.h`, answered as C does. `None`: this interface cannot express the question.
pub(crate) trait Api {
    fn listen_fds(&self, unset: bool) -> c_int;
    fn is_fifo(&self, fd: c_int, path: Option<&CStr>) -> Option<c_int>;
    fn is_special(&self, fd: c_int, path: Option<&CStr>) -> Option<c_int>;
    fn is_socket(&self, fd: c_int, family: c_int, kind: c_int, listening: c_int) -> Option<c_int>;
    fn is_socket_inet(&self, fd: c_int, family: c_int, kind: c_int, listening: c_int, port: u16) -> Option<c_int>;
    /// `name` ends with a NUL that `len` does not count; `len` 0 is C's "up to the NUL".
    fn is_socket_unix(&self, fd: c_int, kind: c_int, listening: c_int, name: Option<(&[u8], usize)>) -> Option<c_int>;
    fn is_mq(&self, fd: c_int, path: Option<&CStr>) -> Option<c_int>;
    fn notify(&self, unset: bool, state: &CStr) -> c_int;
    fn booted(&self) -> c_int;
}

/// A C library opened at run time.
pub(crate) struct Library {
    handle: *mut c_void,
}

fn or_null(p: Option<&CStr>) -> *const c_char {
    p.map_or(std::ptr::null(), CStr::as_ptr)
}

/// Calls a C function by name with the argument types given.
macro_rules! c {
    ($lib:expr, $name:literal, ($($arg:expr => $ty:ty),*) -> $ret:ty) => {{
        let address = $lib.symbol($name).unwrap_or_else(|| panic!("no {:?}", $name));
        // SAFETY: the signature is the one sd-daemon.h or sd-journal.h documents for this name; the arguments live
        // through the call.
        unsafe {
            let f: unsafe extern "C" fn($($ty),*) -> $ret = transmute_copy(&address);
            f($($arg),*)
        }
    }};
}

impl Library {
    /// Opens a library; the error is the loader's.
    pub(crate) fn open(name: &str) -> Result<Library, String> {
        let c = CString::new(name).map_err(|e| e.to_string())?;
        // SAFETY: loads a library whose constructors do nothing to us.
        let handle = unsafe { libc::dlopen(c.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: dlerror gives a string after a failed dlopen.
            let why = unsafe { CStr::from_ptr(libc::dlerror()) };
            return Err(format!("cannot load {name}: {}", why.to_string_lossy()));
        }
        Ok(Library { handle })
    }

    /// The reference: libsystemd.so.0, or the file `SD_DAEMON_LIBSYSTEMD` names.
    pub(crate) fn reference() -> Result<Library, String> {
        Library::open(&std::env::var("SD_DAEMON_LIBSYSTEMD").unwrap_or("libsystemd.so.0".into()))
    }

    pub(crate) fn symbol(&self, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: `handle` is an open library.
        let p = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        (!p.is_null()).then_some(p)
    }

    /// `sd_listen_fds_with_names`.
    pub(crate) fn listen_fds_with_names(&self, unset: bool) -> (c_int, Vec<Vec<u8>>) {
        let mut list: *mut *mut c_char = std::ptr::null_mut();
        let n = c!(self, c"sd_listen_fds_with_names",
            (unset.into() => c_int, &raw mut list => *mut *mut *mut c_char) -> c_int);
        let mut names = Vec::new();
        if !list.is_null() {
            // SAFETY: a NULL-terminated, malloc'd array of malloc'd strings, which the caller frees.
            unsafe {
                let mut at = list;
                while !(*at).is_null() {
                    names.push(CStr::from_ptr(*at).to_bytes().to_vec());
                    libc::free((*at).cast());
                    at = at.add(1);
                }
                libc::free(list.cast());
            }
        }
        (n, names)
    }

    pub(crate) fn watchdog_enabled(&self, unset: bool) -> (c_int, u64) {
        let mut usec = 0u64;
        let r = c!(self, c"sd_watchdog_enabled", (unset.into() => c_int, &raw mut usec => *mut u64) -> c_int);
        (r, usec)
    }

    pub(crate) fn is_socket_sockaddr(
        &self,
        fd: c_int,
        kind: c_int,
        addr: *const c_void,
        len: usize,
        listening: c_int,
    ) -> c_int {
        c!(self, c"sd_is_socket_sockaddr",
            (fd => c_int, kind => c_int, addr => *const c_void, len as c_uint => c_uint, listening => c_int) -> c_int)
    }

    pub(crate) fn notify_with_fds(&self, pid: i32, unset: bool, state: &CStr, fds: &[c_int]) -> c_int {
        c!(self, c"sd_pid_notify_with_fds",
            (pid => libc::pid_t, unset.into() => c_int, state.as_ptr() => *const c_char,
             fds.as_ptr() => *const c_int, fds.len() as c_uint => c_uint) -> c_int)
    }

    pub(crate) fn notify_barrier(&self, unset: bool, usec: u64) -> c_int {
        c!(self, c"sd_notify_barrier", (unset.into() => c_int, usec => u64) -> c_int)
    }

    pub(crate) fn journal_sendv(&self, fields: &[Vec<u8>]) -> c_int {
        let iov: Vec<libc::iovec> =
            fields.iter().map(|f| libc::iovec { iov_base: f.as_ptr().cast_mut().cast(), iov_len: f.len() }).collect();
        c!(self, c"sd_journal_sendv", (iov.as_ptr() => *const libc::iovec, iov.len() as c_int => c_int) -> c_int)
    }
}

impl Api for Library {
    fn listen_fds(&self, unset: bool) -> c_int {
        c!(self, c"sd_listen_fds", (unset.into() => c_int) -> c_int)
    }

    fn is_fifo(&self, fd: c_int, path: Option<&CStr>) -> Option<c_int> {
        Some(c!(self, c"sd_is_fifo", (fd => c_int, or_null(path) => *const c_char) -> c_int))
    }

    fn is_special(&self, fd: c_int, path: Option<&CStr>) -> Option<c_int> {
        Some(c!(self, c"sd_is_special", (fd => c_int, or_null(path) => *const c_char) -> c_int))
    }

    fn is_socket(&self, fd: c_int, family: c_int, kind: c_int, listening: c_int) -> Option<c_int> {
        Some(c!(self, c"sd_is_socket", (fd => c_int, family => c_int, kind => c_int, listening => c_int) -> c_int))
    }

    fn is_socket_inet(&self, fd: c_int, family: c_int, kind: c_int, listening: c_int, port: u16) -> Option<c_int> {
        Some(c!(self, c"sd_is_socket_inet",
            (fd => c_int, family => c_int, kind => c_int, listening => c_int, port => u16) -> c_int))
    }

    fn is_socket_unix(&self, fd: c_int, kind: c_int, listening: c_int, name: Option<(&[u8], usize)>) -> Option<c_int> {
        let (ptr, len) = name.map_or((std::ptr::null(), 0), |(n, len)| (n.as_ptr().cast(), len));
        Some(c!(self, c"sd_is_socket_unix",
            (fd => c_int, kind => c_int, listening => c_int, ptr => *const c_char, len => usize) -> c_int))
    }

    fn is_mq(&self, fd: c_int, path: Option<&CStr>) -> Option<c_int> {
        Some(c!(self, c"sd_is_mq", (fd => c_int, or_null(path) => *const c_char) -> c_int))
    }

    fn notify(&self, unset: bool, state: &CStr) -> c_int {
        c!(self, c"sd_notify", (unset.into() => c_int, state.as_ptr() => *const c_char) -> c_int)
    }

    fn booted(&self) -> c_int {
        c!(self, c"sd_booted", () -> c_int)
    }
}

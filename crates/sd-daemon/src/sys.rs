//! The system calls of this crate, each checked and typed; nothing here decides anything.
#![allow(unsafe_code, reason = "libc calls; kept in this one file")]
use std::io;
use std::mem::{MaybeUninit, size_of, size_of_val};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

fn cvt(r: libc::c_int) -> io::Result<libc::c_int> {
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}

fn cvt_len(r: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(r).map_err(|_| io::Error::last_os_error())
}

/// `F_GETFD`. Takes a bare number: whether it is a descriptor at all is the question.
pub(crate) fn fd_flags(fd: RawFd) -> io::Result<libc::c_int> {
    // SAFETY: F_GETFD takes no pointer and changes nothing; a number that is no descriptor gives EBADF.
    cvt(unsafe { libc::fcntl(fd, libc::F_GETFD) })
}

/// Sets close-on-exec, keeping other flags.
pub(crate) fn set_cloexec(fd: RawFd) -> io::Result<()> {
    let flags = fd_flags(fd)?;
    if flags & libc::FD_CLOEXEC != 0 {
        return Ok(());
    }
    // SAFETY: F_SETFD takes an int. It changes whether an exec of this process keeps the descriptor, no memory.
    cvt(unsafe { libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC) }).map(drop)
}

/// Takes a descriptor that this process inherited.
///
/// The caller has seen that `fd` is open, that its close-on-exec flag was unset before it set it (everything Rust's
/// library opens has it set, so no safe owner exists), and that nobody was given it before.
pub(crate) fn own_inherited(fd: RawFd) -> OwnedFd {
    // SAFETY: `listen.rs` makes the three checks above, under a process-wide lock, before it calls here.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// `fstat`.
pub(crate) fn fstat(fd: BorrowedFd<'_>) -> io::Result<libc::stat> {
    let mut st = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel writes one `struct stat` into `st`, which has room for exactly that.
    cvt(unsafe { libc::fstat(fd.as_raw_fd(), st.as_mut_ptr()) })?;
    // SAFETY: fstat succeeded, so `st` is filled in.
    Ok(unsafe { st.assume_init() })
}

/// An `int` option of level `SOL_SOCKET`.
pub(crate) fn socket_int(fd: BorrowedFd<'_>, option: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` and `len` live through the call, and `len` states the size of `value`.
    cvt(unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, (&raw mut value).cast(), &raw mut len) })?;
    if len as usize == size_of::<libc::c_int>() { Ok(value) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
}

/// Sets an option to a value of plain old data (`c_int`, `timeval`).
pub(crate) fn set_option<T: Copy>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: T,
) -> io::Result<()> {
    // SAFETY: `value` lives through the call and the length given is its own.
    cvt(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    })
    .map(drop)
}

/// A `timeval`, rounded up to a microsecond and never zero (zero means "forever" to the kernel).
pub(crate) fn timeval(d: Duration) -> libc::timeval {
    let usec = d.as_nanos().div_ceil(1000).clamp(1, u128::from(u32::MAX) * 1_000_000);
    libc::timeval { tv_sec: (usec / 1_000_000) as libc::time_t, tv_usec: (usec % 1_000_000) as libc::suseconds_t }
}

/// The local address of a socket: as many bytes as the kernel reports, family first. At most 256 (kernel addresses
/// have at most 128).
pub(crate) fn local_address(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut buf = [0u64; 32];
    let mut len = size_of_val(&buf) as libc::socklen_t;
    // SAFETY: `buf` is writable for `len` bytes and aligned for every sockaddr; both live through the call.
    cvt(unsafe { libc::getsockname(fd.as_raw_fd(), buf.as_mut_ptr().cast(), &raw mut len) })?;
    let bytes: Vec<u8> = buf.iter().flat_map(|w| w.to_ne_bytes()).take(len as usize).collect();
    if bytes.len() < size_of::<libc::sa_family_t>() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(bytes)
}

/// Asks for a message queue's attributes: `Ok` if it is one, `EBADF` if the descriptor is something else.
#[cfg(not(feature = "disable-mq"))]
pub(crate) fn mq_attributes(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = MaybeUninit::<libc::mq_attr>::zeroed();
    // SAFETY: mq_getsetattr(fd, NULL, &attr) writes one `struct mq_attr` and changes nothing.
    let r = unsafe {
        libc::syscall(libc::SYS_mq_getsetattr, fd.as_raw_fd(), std::ptr::null::<libc::mq_attr>(), attr.as_mut_ptr())
    };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A new socket, close-on-exec.
pub(crate) fn socket(family: libc::c_int, kind: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = cvt(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was made a line above and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An address in the kernel's form.
#[derive(Clone, Copy)]
pub(crate) enum Address {
    /// With the length to pass, which for abstract names is shorter than the struct.
    Unix(libc::sockaddr_un, libc::socklen_t),
    Vsock(libc::sockaddr_vm),
}

impl Address {
    fn parts(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        match self {
            Address::Unix(un, len) => ((&raw const *un).cast(), *len),
            Address::Vsock(vm) => ((&raw const *vm).cast(), size_of::<libc::sockaddr_vm>() as libc::socklen_t),
        }
    }

    /// A path or, starting with NUL, an abstract name. The caller has seen that it fits.
    pub(crate) fn unix(name: &[u8]) -> Address {
        // SAFETY: all-zero is a valid sockaddr_un (family AF_UNSPEC, empty path).
        let mut un: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
        un.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (to, from) in un.sun_path.iter_mut().zip(name) {
            *to = *from as libc::c_char;
        }
        let terminator = usize::from(name.first() != Some(&0));
        let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + name.len() + terminator;
        Address::Unix(un, len.min(size_of::<libc::sockaddr_un>()) as libc::socklen_t)
    }

    pub(crate) fn vsock(cid: u32, port: u32) -> Address {
        // SAFETY: all-zero is a valid sockaddr_vm.
        let mut vm: libc::sockaddr_vm = unsafe { MaybeUninit::zeroed().assume_init() };
        vm.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        vm.svm_cid = cid;
        vm.svm_port = port;
        Address::Vsock(vm)
    }
}

/// `connect`.
pub(crate) fn connect(fd: BorrowedFd<'_>, to: &Address) -> io::Result<()> {
    let (ptr, len) = to.parts();
    // SAFETY: `ptr` points into `to`, borrowed for the call, and `len` is at most the struct's size.
    cvt(unsafe { libc::connect(fd.as_raw_fd(), ptr, len) }).map(drop)
}

/// `bind`.
pub(crate) fn bind(fd: BorrowedFd<'_>, to: &Address) -> io::Result<()> {
    let (ptr, len) = to.parts();
    // SAFETY: as for connect.
    cvt(unsafe { libc::bind(fd.as_raw_fd(), ptr, len) }).map(drop)
}

/// Sends `data` with descriptors and credentials, to `to` if given. May send less than all on a stream socket.
pub(crate) fn send(
    fd: BorrowedFd<'_>,
    to: Option<&Address>,
    data: &[&[u8]],
    fds: &[BorrowedFd<'_>],
    ucred: Option<libc::ucred>,
) -> io::Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(|f| f.as_raw_fd()).collect();
    let fds_len = size_of_val(raw.as_slice()) as libc::c_uint;
    let cred_len = size_of::<libc::ucred>() as libc::c_uint;
    let mut space = 0usize;
    if !raw.is_empty() {
        // SAFETY: CMSG_SPACE only computes.
        space += unsafe { libc::CMSG_SPACE(fds_len) } as usize;
    }
    if ucred.is_some() {
        // SAFETY: CMSG_SPACE only computes.
        space += unsafe { libc::CMSG_SPACE(cred_len) } as usize;
    }
    let mut control = vec![0u64; space.div_ceil(8)];
    let iov: Vec<libc::iovec> =
        data.iter().map(|d| libc::iovec { iov_base: d.as_ptr().cast_mut().cast(), iov_len: d.len() }).collect();

    // SAFETY: all-zero is a valid msghdr (no name, no data, no control).
    let mut msg: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    msg.msg_iov = iov.as_ptr().cast_mut();
    msg.msg_iovlen = iov.len() as _;
    if let Some(to) = to {
        let (ptr, len) = to.parts();
        msg.msg_name = ptr.cast_mut().cast();
        msg.msg_namelen = len;
    }
    if space > 0 {
        msg.msg_control = control.as_mut_ptr().cast();
        msg.msg_controllen = space as _;
        // SAFETY: `control` is zeroed, aligned for cmsghdr, and as long as msg_controllen says.
        let mut cmsg = unsafe { libc::CMSG_FIRSTHDR(&raw const msg) };
        if !raw.is_empty() && !cmsg.is_null() {
            // SAFETY: `space` has room for this header and `fds_len` bytes after it; CMSG_DATA points to those.
            unsafe {
                (*cmsg).cmsg_level = libc::SOL_SOCKET;
                (*cmsg).cmsg_type = libc::SCM_RIGHTS;
                (*cmsg).cmsg_len = libc::CMSG_LEN(fds_len) as _;
                libc::CMSG_DATA(cmsg).copy_from(raw.as_ptr().cast(), fds_len as usize);
                cmsg = libc::CMSG_NXTHDR(&raw const msg, cmsg);
            }
        }
        if let Some(cred) = ucred
            && !cmsg.is_null()
        {
            // SAFETY: `space` has room for this second (or only) header and a ucred after it.
            unsafe {
                (*cmsg).cmsg_level = libc::SOL_SOCKET;
                (*cmsg).cmsg_type = libc::SCM_CREDENTIALS;
                (*cmsg).cmsg_len = libc::CMSG_LEN(cred_len) as _;
                libc::CMSG_DATA(cmsg).copy_from((&raw const cred).cast(), cred_len as usize);
            }
        }
    }
    loop {
        // SAFETY: name, data and control of `msg` point into `to`, `data` and `control`, which all live through the
        // call; sendmsg only reads them.
        match cvt_len(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const msg, libc::MSG_NOSIGNAL) }) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            r => return r,
        }
    }
}

/// Receives at most one byte: 0 at the end of the stream.
pub(crate) fn recv_byte(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut byte = 0u8;
    loop {
        // SAFETY: the kernel writes at most one byte, into `byte`.
        match cvt_len(unsafe { libc::recv(fd.as_raw_fd(), (&raw mut byte).cast(), 1, libc::MSG_NOSIGNAL) }) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            r => return r,
        }
    }
}

/// Says that nothing more will be sent.
pub(crate) fn shutdown_write(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    cvt(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) }).map(drop)
}

/// Waits until the other end is closed. `Ok(false)`: it was not, in that time. `None`: no limit.
pub(crate) fn wait_hangup(fd: BorrowedFd<'_>, limit: Option<Duration>) -> io::Result<bool> {
    let end = limit.map(|l| std::time::Instant::now() + l.min(Duration::from_secs(u32::MAX.into())));
    loop {
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: 0, revents: 0 };
        let left = end.map(|e| e.saturating_duration_since(std::time::Instant::now()));
        let ts = left
            .map(|l| libc::timespec { tv_sec: l.as_secs() as libc::time_t, tv_nsec: l.subsec_nanos() as libc::c_long });
        let ts_ptr = ts.as_ref().map_or(std::ptr::null(), |t| &raw const *t);
        // SAFETY: one pollfd, as the count says; `ts_ptr` is null or points to `ts`; no signal mask.
        match cvt(unsafe { libc::ppoll(&raw mut poll, 1, ts_ptr, std::ptr::null()) }) {
            Ok(0) => return Ok(false),
            Ok(_) if poll.revents & libc::POLLNVAL != 0 => return Err(io::Error::from_raw_os_error(libc::EBADF)),
            Ok(_) => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Real and effective ids: uid, euid, gid, egid.
pub(crate) fn ids() -> [u32; 4] {
    // SAFETY: these calls take nothing and cannot fail.
    unsafe { [libc::getuid(), libc::geteuid(), libc::getgid(), libc::getegid()] }
}

/// `CLOCK_MONOTONIC`.
pub(crate) fn monotonic() -> io::Result<Duration> {
    let mut ts = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the kernel writes one timespec into `ts`.
    cvt(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, ts.as_mut_ptr()) })?;
    // SAFETY: the call succeeded.
    let ts = unsafe { ts.assume_init() };
    Ok(Duration::new(ts.tv_sec.unsigned_abs(), ts.tv_nsec.unsigned_abs() as u32))
}

/// A pidfd of this process.
pub(crate) fn pidfd_self() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; pidfds are close-on-exec by themselves.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) };
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    cvt(fd)?;
    // SAFETY: made two lines above, known to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The magic number of the file system the descriptor lives on.
pub(crate) fn fs_magic(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut st = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the kernel writes one statfs into `st`.
    cvt(unsafe { libc::fstatfs(fd.as_raw_fd(), st.as_mut_ptr()) })?;
    // SAFETY: the call succeeded.
    Ok(unsafe { st.assume_init() }.f_type as u64)
}
/// A memory file that can be sealed.
pub(crate) fn memfd(name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    // SAFETY: `name` is NUL-terminated and lives through the call.
    let fd = cvt(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) })?;
    // SAFETY: made a line above, known to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a memory file unchangeable, as the journal demands.
pub(crate) fn seal(fd: BorrowedFd<'_>) -> io::Result<()> {
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
    // SAFETY: F_ADD_SEALS takes an int.
    cvt(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) }).map(drop)
}

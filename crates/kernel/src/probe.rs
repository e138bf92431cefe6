//! Does this kernel have it? Each question is asked by calling the interface in a way that changes nothing: with
//! arguments that an old kernel refuses differently from a new one, or on an object made for the purpose.
#![allow(unsafe_code, reason = "most of these calls exist in no safe wrapper, least of all with wrong arguments")]
use rustix::io::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A raw call: its value, or the errno.
///
/// # Safety
/// The call with these arguments must not write through any of them beyond what they point to, and must have no effect
/// on this process that safe code could notice, except a returned descriptor.
unsafe fn call(nr: libc::c_long, args: [u64; 6]) -> Result<i64, Errno> {
    // SAFETY: as our caller promises.
    match unsafe { libc::syscall(nr, args[0], args[1], args[2], args[3], args[4], args[5]) } {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        value => Ok(value),
    }
}

/// Takes over a descriptor that a call returned.
fn own(value: i64) -> Option<OwnedFd> {
    let fd = RawFd::try_from(value).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel has just returned this new descriptor and nobody else owns it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Landlock (Linux 5.13), compiled in and switched on.
pub fn landlock() -> bool {
    const ASK_VERSION: u64 = 1;
    // SAFETY: with this flag no attributes are read, and nothing is made.
    unsafe { call(libc::SYS_landlock_create_ruleset, [0, 0, ASK_VERSION, 0, 0, 0]) }.is_ok()
}

/// An ioctl whose argument is a plain number that the kernel does not follow.
fn ioctl_number(fd: &OwnedFd, request: u64) -> Result<i64, Errno> {
    // SAFETY: all requests used here take no argument; the few that return something return a descriptor.
    unsafe { call(libc::SYS_ioctl, [fd.as_raw_fd() as u64, request, 0, 0, 0, 0]) }
}

fn socket(domain: i32, kind: i32, protocol: i32) -> Option<OwnedFd> {
    // SAFETY: plain numbers in, a descriptor out.
    let made = unsafe {
        call(libc::SYS_socket, [domain as u64, (kind | libc::SOCK_CLOEXEC) as u64, protocol as u64, 0, 0, 0])
    };
    own(made.ok()?)
}

/// Asks for the integer value of a socket option.
fn sockopt(fd: &OwnedFd, level: i32, name: i32) -> Result<i32, Errno> {
    let (mut value, mut len) = (0i32, 4u32);
    let (value_at, len_at) = ((&raw mut value) as u64, (&raw mut len) as u64);
    // SAFETY: the kernel writes at most the 4 bytes that `len` allows into `value`, and 4 bytes into `len`.
    unsafe { call(libc::SYS_getsockopt, [fd.as_raw_fd() as u64, level as u64, name as u64, value_at, len_at, 0]) }?;
    Ok(value)
}

/// prctl with numbers only.
fn prctl(option: i32, second: u64, third: u64) -> Result<i64, Errno> {
    // SAFETY: only options that read a state or are refused are asked for here.
    unsafe { call(libc::SYS_prctl, [option as u64, second, third, 0, 0, 0]) }
}

/// CONFIG_CHECKPOINT_RESTORE: PR_SET_MM_MAP_SIZE answers.
pub fn checkpoint_restore() -> bool {
    let mut size = 0u32;
    prctl(libc::PR_SET_MM, 15, (&raw mut size) as u64).is_ok()
}

/// PR_TIMER_CREATE_RESTORE_IDS (Linux 6.15): asked for its state.
pub fn timer_create_restore_ids() -> bool {
    prctl(77, 2, 0).is_ok()
}

/// clone3(2) with set_tid: a thread id of -1 is refused by a kernel that reads it. No process is made.
pub fn clone3_set_tid() -> bool {
    let tid = [-1i32];
    let mut args = [0u64; 11];
    (args[8], args[9]) = (tid.as_ptr() as u64, 1);
    // SAFETY: the arguments are read, not written; the call cannot succeed, because no thread id is negative.
    let refused = unsafe { call(libc::SYS_clone3, [args.as_ptr() as u64, 88, 0, 0, 0, 0]) };
    refused == Err(Errno::INVAL)
}

/// openat2(2).
pub fn openat2() -> bool {
    let how = [libc::O_PATH as u64 | libc::O_CLOEXEC as u64, 0, 0];
    // SAFETY: the path is a terminated string, `how` is the 24 bytes it is said to be; both are only read.
    let opened = unsafe {
        call(libc::SYS_openat2, [libc::AT_FDCWD as u64, c"/".as_ptr() as u64, how.as_ptr() as u64, 24, 0, 0])
    };
    opened.ok().and_then(own).is_some()
}

/// MOVE_MOUNT_SET_GROUP (Linux 5.15): a kernel that knows the flag gets as far as the bad descriptor.
pub fn move_mount_set_group() -> bool {
    let empty = c"".as_ptr() as u64;
    let bad = u64::MAX;
    // SAFETY: two terminated strings that are only read; descriptor -1 makes the call fail before it does anything.
    let refused = unsafe { call(libc::SYS_move_mount, [bad, empty, bad, empty, 0x100 | 0x4 | 0x40, 0]) };
    refused == Err(Errno::BADF)
}

/// pidfd_getfd(2), on ourselves.
pub fn pidfd_getfd() -> bool {
    // SAFETY: plain numbers in, a descriptor out.
    let opened = unsafe { call(libc::SYS_pidfd_open, [std::process::id().into(), 0, 0, 0, 0, 0]) };
    let Some(pidfd) = opened.ok().and_then(own) else { return false };
    // SAFETY: likewise.
    let copied =
        unsafe { call(libc::SYS_pidfd_getfd, [pidfd.as_raw_fd() as u64, pidfd.as_raw_fd() as u64, 0, 0, 0, 0]) };
    copied.ok().and_then(own).is_some()
}

/// The features that userfaultfd(2) offers, if we may use it.
pub fn userfaultfd_features() -> Option<u64> {
    // SAFETY: plain numbers in, a descriptor out.
    let made = unsafe { call(libc::SYS_userfaultfd, [(libc::O_CLOEXEC | libc::O_NONBLOCK) as u64, 0, 0, 0, 0, 0]) };
    let fd = own(made.ok()?)?;
    let mut api = [0xaau64, 0, 0];
    // SAFETY: UFFDIO_API reads and writes exactly the 24 bytes of struct uffdio_api.
    unsafe { call(libc::SYS_ioctl, [fd.as_raw_fd() as u64, 0xc018_aa3f, api.as_mut_ptr() as u64, 0, 0, 0]) }.ok()?;
    Some(api[1])
}

/// kcmp(2) with KCMP_EPOLL_TFD on a descriptor that is no epoll: a kernel that knows the type looks at it.
pub fn kcmp_epoll() -> bool {
    let me = u64::from(std::process::id());
    let slot = [u32::MAX, u32::MAX, 0];
    // SAFETY: the slot is only read; the call changes nothing.
    let said = unsafe { call(libc::SYS_kcmp, [me, me, 7, u64::from(u32::MAX), slot.as_ptr() as u64, 0]) };
    said == Err(Errno::BADF)
}

/// io_setup(2): rings of asynchronous input and output can be made, and so remade.
pub fn aio() -> bool {
    let mut context = 0u64;
    // SAFETY: the kernel writes the 8 bytes of `context`.
    if unsafe { call(libc::SYS_io_setup, [1, (&raw mut context) as u64, 0, 0, 0, 0]) }.is_err() {
        return false;
    }
    // SAFETY: the context was made just above and is known to nobody else.
    unsafe { call(libc::SYS_io_destroy, [context, 0, 0, 0, 0, 0]) }.is_ok()
}

/// arch_prctl(2) ARCH_MAP_VDSO_64 and ARCH_MAP_VDSO_32: refused with EEXIST, because a vDSO is mapped already.
pub fn map_vdso(bits: u32) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let code = if bits == 32 { 0x2002 } else { 0x2003 };
        // SAFETY: this process has its vDSO, so the call is refused before it maps anything; a kernel that does not know
        // the code refuses it too.
        unsafe { call(libc::SYS_arch_prctl, [code, 0, 0, 0, 0, 0]) == Err(Errno::EXIST) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = bits;
        false
    }
}

/// SIOCGSKNS on a socket: its network namespace.
pub fn socket_namespace() -> bool {
    let Some(fd) = socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0) else { return false };
    ioctl_number(&fd, 0x894c).ok().and_then(own).is_some()
}

/// SIOCUNIXFILE: an unbound socket has no file, which is another answer than not knowing the question.
pub fn socket_unix_file() -> bool {
    let Some(fd) = socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0) else { return false };
    match ioctl_number(&fd, 0x89e0) {
        Ok(fd) => own(fd).is_some(),
        Err(e) => !matches!(e, Errno::NOTTY | Errno::INVAL),
    }
}

/// SO_BUF_LOCK (Linux 5.14).
pub fn sockopt_buf_lock() -> bool {
    socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).is_some_and(|fd| sockopt(&fd, libc::SOL_SOCKET, 72).is_ok())
}

/// IPV6_FREEBIND (Linux 4.18).
pub fn ipv6_freebind() -> bool {
    socket(libc::AF_INET6, libc::SOCK_STREAM, 0).is_some_and(|fd| sockopt(&fd, libc::IPPROTO_IPV6, 78).is_ok())
}

/// TCP_REPAIR_WINDOW (Linux 4.8), which half-closed connections need: refused outside repair mode, not as unknown.
pub fn tcp_repair_window() -> bool {
    let Some(fd) = socket(libc::AF_INET, libc::SOCK_STREAM, 0) else { return false };
    match sockopt(&fd, libc::IPPROTO_TCP, 29) {
        Ok(_) => true,
        Err(e) => e != Errno::NOPROTOOPT,
    }
}

/// MFD_HUGETLB.
pub fn memfd_hugetlb() -> bool {
    // SAFETY: a terminated string that is only read, and a descriptor out.
    let made = unsafe { call(libc::SYS_memfd_create, [c"probe".as_ptr() as u64, 0x4 | 0x1, 0, 0, 0, 0]) };
    made.ok().and_then(own).is_some()
}

/// rseq(2): registering nothing is refused, but not as unknown.
pub fn rseq() -> bool {
    // SAFETY: a null area with length zero can be neither registered nor, with these flags, unregistered.
    let refused = unsafe { call(libc::SYS_rseq, [0, 0, 0, 0, 0, 0]) };
    refused != Err(Errno::NOSYS)
}

/// TUNGETDEVNETNS on a tun descriptor without a device: EBADFD where it is known.
pub fn tun_namespace() -> bool {
    let Ok(file) = std::fs::File::options().read(true).write(true).open("/dev/net/tun") else { return false };
    let fd = OwnedFd::from(file);
    match ioctl_number(&fd, 0x54e3) {
        Ok(fd) => own(fd).is_some(),
        Err(e) => !matches!(e, Errno::NOTTY | Errno::INVAL),
    }
}

/// NS_GET_USERNS on our network namespace: who owns it can be told.
pub fn namespace_owner() -> bool {
    let Ok(file) = std::fs::File::open("/proc/self/ns/net") else { return false };
    match ioctl_number(&OwnedFd::from(file), 0xb701) {
        Ok(fd) => own(fd).is_some(),
        // The owner is outside of what we may see.
        Err(e) => e == Errno::PERM,
    }
}

/// A netlink family has one thing to say about `message`: `true` unless it does not know the question.
fn netlink(protocol: i32, message: &[u8]) -> bool {
    let Some(fd) = socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol) else { return false };
    let time = [1i64, 0];
    let (at, message_at) = (time.as_ptr() as u64, message.as_ptr() as u64);
    let number = fd.as_raw_fd() as u64;
    // SAFETY: SO_RCVTIMEO reads the 16 bytes of a timeval.
    let limited =
        unsafe { call(libc::SYS_setsockopt, [number, libc::SOL_SOCKET as u64, libc::SO_RCVTIMEO as u64, at, 16, 0]) };
    // SAFETY: sendto reads exactly the bytes of `message`.
    let sent = unsafe { call(libc::SYS_sendto, [number, message_at, message.len() as u64, 0, 0, 0]) };
    if limited.is_err() || sent.is_err() {
        return false;
    }
    let mut reply = [0u8; 4096];
    // SAFETY: recvfrom writes at most the 4096 bytes of `reply`.
    let got = unsafe { call(libc::SYS_recvfrom, [number, reply.as_mut_ptr() as u64, 4096, 0, 0, 0]) };
    let word = |at: usize| i32::from_ne_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]]);
    match got {
        // NLMSG_ERROR carries the errno, negated, behind the 16 bytes of its header.
        Ok(20..) if word(4) & 0xffff == 2 => !matches!(-word(16), libc::EOPNOTSUPP | libc::EINVAL | libc::ENOENT),
        Ok(16..) => true,
        _ => false,
    }
}

/// A netlink message of `kind` with `body`.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + body.len());
    bytes.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&(flags | 1).to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(body);
    bytes
}

/// sock_diag for raw sockets: a dump of them is answered.
pub fn raw_diag() -> bool {
    let mut body = vec![libc::AF_INET as u8, libc::IPPROTO_RAW as u8, 0, 0];
    body.extend_from_slice(&u32::MAX.to_ne_bytes());
    body.resize(56, 0);
    netlink(libc::NETLINK_SOCK_DIAG, &message(20, 0x300, &body))
}

/// RTM_GETNSID: asked for our own network namespace by descriptor.
pub fn net_namespace_ids() -> bool {
    let Ok(file) = std::fs::File::open("/proc/self/ns/net") else { return false };
    let mut body = vec![0u8; 4];
    // One attribute of eight bytes, NETNSA_FD: a descriptor of ours, which stays open until the answer is here.
    body.extend_from_slice(&8u16.to_ne_bytes());
    body.extend_from_slice(&3u16.to_ne_bytes());
    body.extend_from_slice(&file.as_raw_fd().to_ne_bytes());
    netlink(libc::NETLINK_ROUTE, &message(90, 0, &body))
}

/// nf_tables: its generation can be asked for.
pub fn nf_tables() -> bool {
    netlink(libc::NETLINK_NETFILTER, &message(10 << 8 | 16, 0, &[0, 0, 0, 0]))
}

/// Hardware breakpoints: a disabled one on ourselves can be made.
pub fn breakpoints() -> bool {
    let watched = 0u64;
    let mut attr = [0u8; 112];
    attr[0..4].copy_from_slice(&5u32.to_ne_bytes());
    attr[4..8].copy_from_slice(&112u32.to_ne_bytes());
    // disabled, exclude_kernel, exclude_hv
    attr[40..48].copy_from_slice(&(1u64 | 1 << 5 | 1 << 6).to_ne_bytes());
    // Watch writes, of eight bytes.
    attr[52..56].copy_from_slice(&2u32.to_ne_bytes());
    attr[56..64].copy_from_slice(&((&raw const watched) as u64).to_ne_bytes());
    attr[64..72].copy_from_slice(&8u64.to_ne_bytes());
    // SAFETY: the attributes are 112 bytes and say so, and are only read; the event is never enabled.
    let made = unsafe { call(libc::SYS_perf_event_open, [attr.as_ptr() as u64, 0, u64::MAX, u64::MAX, 8, 0]) };
    made.ok().and_then(own).is_some()
}

/// PAGEMAP_SCAN (Linux 6.7) on our own memory; with `guards`, also the category of guard regions (6.15).
pub fn pagemap_scan(guards: bool) -> bool {
    let Ok(file) = std::fs::File::open("/proc/self/pagemap") else { return false };
    let page = &raw const file as u64 & !0xfff;
    let mut arg = [0u64; 12];
    arg[0] = 96;
    (arg[2], arg[3]) = (page, page + 4096);
    // return_mask
    arg[11] = if guards { 1 << 8 } else { 1 << 1 };
    // SAFETY: PAGEMAP_SCAN reads and writes exactly the 96 bytes of struct pm_scan_arg; with a vector of length zero it
    // writes nothing else.
    let said =
        unsafe { call(libc::SYS_ioctl, [file.as_raw_fd() as u64, 0xc060_6610, arg.as_mut_ptr() as u64, 0, 0, 0]) };
    said.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On any kernel that crust supports (6.1) these are there; what a probe gets wrong shows here.
    #[test]
    fn what_linux_6_1_has_is_found() {
        assert!(clone3_set_tid() && openat2() && pidfd_getfd() && kcmp_epoll() && rseq());
        assert!(socket_namespace() && sockopt_buf_lock() && namespace_owner() && tcp_repair_window());
        assert!(net_namespace_ids());
    }

    #[test]
    fn an_unknown_netlink_question_is_no() {
        assert!(!netlink(libc::NETLINK_ROUTE, &message(0x7ff0, 0, &[0; 4])));
    }

    #[test]
    fn nothing_is_left_open() {
        let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = count();
        for _ in 0..3 {
            let _all =
                (socket_unix_file(), nf_tables(), raw_diag(), userfaultfd_features(), memfd_hugetlb(), breakpoints());
            let _more = (tun_namespace(), pagemap_scan(true), aio(), net_namespace_ids(), openat2(), pidfd_getfd());
        }
        // Other tests run beside this one.
        assert!(count() <= before + 4);
    }
}

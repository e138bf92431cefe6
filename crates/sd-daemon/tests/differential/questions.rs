//! Every kind of descriptor, every question.
#![allow(unsafe_code, reason = "makes descriptors of every kind by libc calls")]
#![allow(clippy::unwrap_used, reason = "a test that cannot make its descriptors must stop")]
use crate::api::{Api, Library};
use crate::report::Findings;
use std::collections::BTreeMap;
use std::ffi::{CString, c_int};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A directory that goes when dropped.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("sd-daemon-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    pub(crate) fn path(&self, name: &str) -> CString {
        CString::new(self.0.join(name).as_os_str().as_bytes()).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

/// One descriptor to ask about.
struct Thing {
    what: String,
    fd: RawFd,
    _owner: Option<OwnedFd>,
    /// TCP or UDP port, to be asked for.
    port: u16,
}

#[derive(Default)]
pub(crate) struct Zoo {
    things: Vec<Thing>,
    missing: Vec<String>,
}

fn checked(r: i64) -> Result<OwnedFd, std::io::Error> {
    if r < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a descriptor some call just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(r as RawFd) })
}

impl Zoo {
    fn add(&mut self, what: impl Into<String>, fd: Result<OwnedFd, std::io::Error>) {
        let what = what.into();
        match fd {
            Ok(fd) => {
                let port = port_of(fd.as_raw_fd());
                self.things.push(Thing { what, fd: fd.as_raw_fd(), _owner: Some(fd), port });
            }
            Err(e) => self.missing.push(format!("{what} ({e})")),
        }
    }

    fn number(&mut self, what: &str, fd: RawFd) {
        self.things.push(Thing { what: what.into(), fd, _owner: None, port: 0 });
    }
}

fn port_of(fd: RawFd) -> u16 {
    let mut buf = [0u8; 128];
    let mut len = 128;
    // SAFETY: writes at most 128 bytes into `buf`.
    let r = unsafe { libc::getsockname(fd, buf.as_mut_ptr().cast(), &raw mut len) };
    let family = i32::from(u16::from_ne_bytes([buf[0], buf[1]]));
    if r == 0 && matches!(family, libc::AF_INET | libc::AF_INET6) { u16::from_be_bytes([buf[2], buf[3]]) } else { 0 }
}

pub(crate) fn open(path: &CString, flags: c_int) -> Result<OwnedFd, std::io::Error> {
    // SAFETY: a NUL-terminated path; mode for O_CREAT.
    checked(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o600) }.into())
}

pub(crate) fn socket(family: c_int, kind: c_int) -> Result<OwnedFd, std::io::Error> {
    // SAFETY: no pointers.
    checked(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) }.into())
}

/// Binds a Unix socket to a path or (leading NUL) abstract name; no name at all: the kernel picks one.
pub(crate) fn bind_unix(fd: &OwnedFd, name: &[u8]) -> Result<(), std::io::Error> {
    // SAFETY: all-zero is a valid sockaddr_un; the length given is within it.
    unsafe {
        let mut un: libc::sockaddr_un = std::mem::zeroed();
        un.sun_family = libc::AF_UNIX as _;
        for (to, from) in un.sun_path.iter_mut().zip(name) {
            *to = *from as _;
        }
        let nul = usize::from(name.first().is_some_and(|b| *b != 0) && name.len() < 108);
        match libc::bind(fd.as_raw_fd(), (&raw const un).cast(), (2 + name.len() + nul) as u32) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

fn unix_names(dir: &Scratch) -> Vec<(String, Vec<u8>)> {
    let long = |n: usize| {
        let mut p = dir.0.join("l").as_os_str().as_bytes().to_vec();
        p.resize(n, b'o');
        p
    };
    let pid = std::process::id();
    vec![
        ("path".into(), dir.path("sock").into_bytes()),
        ("path of 107 bytes".into(), long(107)),
        ("path of 108 bytes".into(), long(108)),
        ("abstract".into(), format!("\0sd-daemon-{pid}").into_bytes()),
        ("abstract with NUL inside".into(), format!("\0sd-dae\0mon-{pid}").into_bytes()),
        ("abstract of 108 bytes".into(), format!("\0sd-daemon-{pid:a>97}").into_bytes()),
        ("picked by the kernel".into(), Vec::new()),
    ]
}

fn path(p: &str) -> CString {
    CString::new(p).unwrap()
}

/// All kinds of descriptors this kernel and these rights allow.
fn make(dir: &Scratch) -> (Zoo, Vec<CString>, Vec<Vec<u8>>) {
    let mut zoo = Zoo::default();
    let names = unix_names(dir);
    let (file, fifo, link, gone) = (dir.path("file"), dir.path("fifo"), dir.path("link"), dir.path("gone"));
    // SAFETY: NUL-terminated paths in our own directory.
    unsafe {
        libc::mkfifo(fifo.as_ptr(), 0o600);
        libc::symlink(fifo.as_ptr(), link.as_ptr());
    }
    add_files(&mut zoo, dir, [&file, &fifo, &link, &gone]);
    add_objects(&mut zoo);
    add_unix(&mut zoo, &names);
    add_others(&mut zoo);

    let long_path = path(&format!("{}/{}", dir.0.display(), "x".repeat(300)));
    let below_file = dir.path("file/below");
    let mut paths = vec![file, fifo, link, gone, below_file, long_path, dir.path("sock"), dir.path("")];
    paths.extend(["", "/", "/dev/null", "/dev/zero", "/dev/ptmx", "/proc/self/stat", "/nonexistent/x"].map(path));
    (zoo, paths, names_asked(names))
}

fn add_files(zoo: &mut Zoo, dir: &Scratch, [file, fifo, link, gone]: [&CString; 4]) {
    zoo.number("closed", 900);
    zoo.number("negative", -1);
    zoo.number("very negative", i32::MIN);
    zoo.add("regular file", open(file, libc::O_RDWR | libc::O_CREAT));
    zoo.add("deleted file", open(gone, libc::O_RDWR | libc::O_CREAT));
    std::fs::remove_file(dir.0.join("gone")).unwrap();
    zoo.add("fifo", open(fifo, libc::O_RDWR));
    zoo.add("fifo for reading", open(fifo, libc::O_RDONLY | libc::O_NONBLOCK));
    zoo.add("directory", open(&CString::new(dir.0.as_os_str().as_bytes()).unwrap(), libc::O_RDONLY));
    for (what, p) in [("file", file), ("fifo", fifo), ("symbolic link", link)] {
        zoo.add(format!("{what}, O_PATH"), open(p, libc::O_PATH | libc::O_NOFOLLOW));
    }
    for p in ["/dev/null", "/dev/zero", "/dev/ptmx", "/proc/self/stat", "/proc/self/ns/net", "/sys/kernel/notes"] {
        zoo.add(p, open(&path(p), libc::O_RDONLY | libc::O_NOCTTY));
    }
    let (r, w) = std::io::pipe().unwrap();
    zoo.add("pipe, reading end", Ok(r.into()));
    zoo.add("pipe, writing end", Ok(w.into()));
}

/// Those that are no files.
fn add_objects(zoo: &mut Zoo) {
    // SAFETY: these take no pointers, or NUL-terminated or zeroed ones that live through the call.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        zoo.add("eventfd", checked(libc::eventfd(0, libc::EFD_CLOEXEC).into()));
        zoo.add("epoll", checked(libc::epoll_create1(libc::EPOLL_CLOEXEC).into()));
        zoo.add("timerfd", checked(libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC).into()));
        zoo.add("signalfd", checked(libc::signalfd(-1, &raw const none, libc::SFD_CLOEXEC).into()));
        zoo.add("inotify", checked(libc::inotify_init1(libc::IN_CLOEXEC).into()));
        zoo.add("pidfd", checked(libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0)));
        zoo.add("memfd", checked(libc::memfd_create(c"x".as_ptr(), libc::MFD_CLOEXEC).into()));
        zoo.add("userfaultfd", checked(libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1)));
        let mq = CString::new(format!("/sd-daemon-{}", std::process::id())).unwrap();
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC;
        zoo.add(
            "message queue",
            checked(libc::mq_open(mq.as_ptr(), flags, 0o600, std::ptr::null::<libc::mq_attr>()).into()),
        );
        let other = CString::new(format!("/sd-daemon-{}-unlinked", std::process::id())).unwrap();
        zoo.add(
            "unlinked message queue",
            checked(libc::mq_open(other.as_ptr(), flags, 0o600, std::ptr::null::<libc::mq_attr>()).into()),
        );
        libc::mq_unlink(other.as_ptr());
    }
}

fn add_unix(zoo: &mut Zoo, names: &[(String, Vec<u8>)]) {
    let kinds = [("stream", libc::SOCK_STREAM), ("dgram", libc::SOCK_DGRAM), ("seqpacket", libc::SOCK_SEQPACKET)];
    for (what, kind) in kinds {
        zoo.add(format!("unix {what}"), socket(libc::AF_UNIX, kind));
        let mut pair = [0; 2];
        // SAFETY: the kernel writes two descriptors into `pair`.
        let r = unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr()) };
        assert_eq!(r, 0);
        for fd in pair {
            zoo.add(format!("unix {what} pair"), checked(fd.into()));
        }
        for (name_what, name) in names {
            for listen in [false, true] {
                if listen && kind == libc::SOCK_DGRAM {
                    continue;
                }
                let mut name = name.clone();
                // Each socket its own name; those at the limit of length stay as long as they are.
                if let Some(last) = name.last_mut() {
                    *last = b'a' + (kind * 2) as u8 + u8::from(listen);
                }
                let bound = socket(libc::AF_UNIX, kind).and_then(|s| bind_unix(&s, &name).map(|()| s));
                if let (true, Ok(s)) = (listen, &bound) {
                    // SAFETY: no pointers.
                    assert_eq!(unsafe { libc::listen(s.as_raw_fd(), 1) }, 0);
                }
                zoo.add(format!("unix {what}, {name_what}{}", if listen { ", listening" } else { "" }), bound);
            }
        }
    }
}

/// Sockets of other families.
fn add_others(zoo: &mut Zoo) {
    for at in ["127.0.0.1:0", "[::1]:0", "[::]:0", "0.0.0.0:0"] {
        zoo.add(format!("tcp {at}, listening"), std::net::TcpListener::bind(at).map(Into::into));
        zoo.add(format!("udp {at}"), std::net::UdpSocket::bind(at).map(Into::into));
    }
    if let Ok(l) = std::net::TcpListener::bind("127.0.0.1:0") {
        zoo.add("tcp, connected", std::net::TcpStream::connect(l.local_addr().unwrap()).map(Into::into));
        zoo.add("tcp, accepted", l.accept().map(|(s, _)| s.into()));
    }
    for (what, family, kind) in [
        ("tcp, unbound", libc::AF_INET, libc::SOCK_STREAM),
        ("tcp6, unbound", libc::AF_INET6, libc::SOCK_STREAM),
        ("udp6, unbound", libc::AF_INET6, libc::SOCK_DGRAM),
        ("netlink", libc::AF_NETLINK, libc::SOCK_RAW),
        ("packet", libc::AF_PACKET, libc::SOCK_DGRAM),
        ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM),
        ("alg", libc::AF_ALG, libc::SOCK_SEQPACKET),
    ] {
        zoo.add(what, socket(family, kind));
    }
    // SAFETY: no pointers.
    zoo.add("raw", checked(unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 1) }.into()));
}

/// The names of unix sockets, and those that [`add_unix`] made of them.
fn names_asked(names: Vec<(String, Vec<u8>)>) -> Vec<Vec<u8>> {
    let mut asked: Vec<Vec<u8>> = names.into_iter().map(|(_, n)| n).filter(|n| !n.is_empty()).collect();
    for n in asked.clone() {
        for kind in [1u8, 2, 5] {
            for listen in [0, 1] {
                let mut n = n.clone();
                if let Some(last) = n.last_mut() {
                    *last = b'a' + kind * 2 + listen;
                }
                asked.push(n);
            }
        }
    }
    asked
}

/// Asks both everything about everything.
pub(crate) fn all(theirs: &Library, ours: &dyn Api, found: &mut Findings) -> Result<(), String> {
    let dir = Scratch::new("questions");
    let (zoo, paths, names) = make(&dir);
    let mut answers: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    let mut put = |q: &'static str, what: &dyn Fn() -> String, want: Option<c_int>, got: Option<c_int>| {
        let (Some(want), Some(got)) = (want, got) else {
            found.explain("questions the Rust types cannot express: closed descriptors, the beginning of a path");
            return;
        };
        answers.entry(q).or_default()[want.signum().clamp(-1, 1).rem_euclid(3) as usize] += 1;
        found.same(what, &want, &got);
    };
    let types = [0, 1, 2, 3, 5, -1, 77];
    let listening = [-1, 0, 1, 2, i32::MIN];
    for t in &zoo.things {
        let all_paths = || paths.iter().map(|p| Some(p.as_c_str())).chain([None]);
        for p in all_paths() {
            let what = |q: &str| format!("{q}({}, {p:?})", t.what);
            put("fifo", &|| what("is_fifo"), theirs.is_fifo(t.fd, p), ours.is_fifo(t.fd, p));
            put("special", &|| what("is_special"), theirs.is_special(t.fd, p), ours.is_special(t.fd, p));
        }
        for kind in types {
            for l in listening {
                for family in
                    [0, libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_VSOCK, -1, 999]
                {
                    let what = |q: &str| format!("{q}({}, family {family}, type {kind}, listening {l})", t.what);
                    let (want, got) = (theirs.is_socket(t.fd, family, kind, l), ours.is_socket(t.fd, family, kind, l));
                    put("socket", &|| what("is_socket"), want, got);
                    for port in [0, t.port, t.port.swap_bytes(), 80] {
                        let want = theirs.is_socket_inet(t.fd, family, kind, l, port);
                        let got = ours.is_socket_inet(t.fd, family, kind, l, port);
                        put("inet", &|| format!("{}, port {port}", what("is_socket_inet")), want, got);
                    }
                }
            }
        }
        for kind in types {
            for l in [-1, 0, 1] {
                let mut ask = |name: Option<(&[u8], usize)>| {
                    let want = theirs.is_socket_unix(t.fd, kind, l, name);
                    let got = ours.is_socket_unix(t.fd, kind, l, name);
                    let text = || {
                        format!(
                            "is_socket_unix({}, {kind}, {l}, {:?})",
                            t.what,
                            name.map(|(n, len)| (String::from_utf8_lossy(n).into_owned(), len))
                        )
                    };
                    put("unix", &text, want, got);
                };
                ask(None);
                ask(Some((b"\0", 0)));
                ask(Some((b"\0\0", 1)));
                for n in &names {
                    let mut z = n.clone();
                    z.push(0);
                    for len in [0, n.len(), n.len() - 1, n.len() / 2] {
                        ask(Some((&z, len)));
                    }
                }
            }
        }
    }
    for (q, seen) in answers {
        found.same(
            || format!("{q}: every answer occurred (no, yes, error: {seen:?})"),
            &true,
            &seen.iter().all(|n| *n > 0),
        );
    }
    // Kinds this machine lacks are named, so that nobody believes they were asked.
    for m in &zoo.missing {
        found.explained.insert(Box::leak(format!("no such descriptor here: {m}").into_boxed_str()), 0);
    }
    let mq = CString::new(format!("/sd-daemon-{}", std::process::id())).unwrap();
    // SAFETY: removes the queue `make` made.
    unsafe { libc::mq_unlink(mq.as_ptr()) };
    Ok(())
}

/// Message queues, in a mount namespace where /dev/mqueue is mounted.
pub(crate) fn message_queues(theirs: &Library, ours: &dyn Api, found: &mut Findings) -> Result<(), String> {
    own_mounts()?;
    // SAFETY: mounts in a namespace of this process's own.
    unsafe {
        let tmpfs = libc::mount(c"tmpfs".as_ptr(), c"/dev".as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null());
        libc::mkdir(c"/dev/mqueue".as_ptr(), 0o755);
        let mq = libc::mount(c"mqueue".as_ptr(), c"/dev/mqueue".as_ptr(), c"mqueue".as_ptr(), 0, std::ptr::null());
        if tmpfs != 0 || mq != 0 {
            return Err(format!("cannot mount mqueue: {}", std::io::Error::last_os_error()));
        }
    }
    let name = |s: &str| CString::new(s).unwrap();
    let [a, b] = ["a", "b"].map(|n| name(&format!("/sd-daemon-{}-{n}", std::process::id())));
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC;
    let make = |n: &CString| {
        // SAFETY: NUL-terminated names, no attributes.
        checked(unsafe { libc::mq_open(n.as_ptr(), flags, 0o600, std::ptr::null::<libc::mq_attr>()) }.into())
    };
    let (queue, other) = (make(&a), make(&b));
    let null = File::open("/proc/self/stat").map(OwnedFd::from);
    for (what, fd) in [("queue", &queue), ("other queue", &other), ("file", &null)] {
        let fd = fd.as_ref().map_err(|e| format!("cannot make a {what}: {e}"))?.as_raw_fd();
        for p in
            [None, Some(&a), Some(&b), Some(&name("/none")), Some(&name("relative")), Some(&name("")), Some(&name("/"))]
        {
            let p = p.map(|p| p.as_c_str());
            let (want, got) = (theirs.is_mq(fd, p), ours.is_mq(fd, p));
            found.same(|| format!("is_mq({what}, {p:?})"), &want, &got);
        }
    }
    for fd in [-1, 900] {
        if let (Some(want), Some(got)) = (theirs.is_mq(fd, None), ours.is_mq(fd, None)) {
            found.same(|| format!("is_mq({fd})"), &want, &got);
        }
    }
    // SAFETY: removes the queues made above.
    unsafe {
        libc::mq_unlink(a.as_ptr());
        libc::mq_unlink(b.as_ptr());
    }
    Ok(())
}

/// Gives this process mounts of its own.
pub(crate) fn own_mounts() -> Result<(), String> {
    // SAFETY: changes only this process's view.
    let r = unsafe {
        match libc::unshare(libc::CLONE_NEWNS) {
            0 => libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ),
            _ => -1,
        }
    };
    if r == 0 { Ok(()) } else { Err(format!("no mount namespace of our own: {}", std::io::Error::last_os_error())) }
}

/// Addresses, which only libsystemd itself and Rust ask about.
pub(crate) fn addresses(theirs: &Library, found: &mut Findings) -> Result<(), String> {
    use std::net::{SocketAddr, SocketAddrV6, TcpListener, UdpSocket};
    let dir = Scratch::new("addresses");
    let mut sockets: Vec<(String, OwnedFd)> = Vec::new();
    for at in ["127.0.0.1:0", "127.0.0.2:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
        sockets.push((format!("tcp {at}"), TcpListener::bind(at).map_err(|e| format!("{at}: {e}"))?.into()));
        sockets.push((format!("udp {at}"), UdpSocket::bind(at).map_err(|e| format!("{at}: {e}"))?.into()));
    }
    sockets.push(("unix".into(), socket(libc::AF_UNIX, libc::SOCK_STREAM).unwrap()));
    sockets.push(("file".into(), open(&dir.path("f"), libc::O_CREAT | libc::O_RDWR).unwrap()));
    let ports: Vec<u16> = sockets.iter().map(|(_, s)| port_of(s.as_raw_fd())).chain([0, 80]).collect();
    let mut wanted: Vec<SocketAddr> = Vec::new();
    for port in ports {
        for ip in ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::", "::2"] {
            wanted.push(SocketAddr::new(ip.parse().unwrap(), port));
        }
        for (flow, scope) in [(7, 0), (0, 7), (7, 7)] {
            wanted.push(SocketAddrV6::new("::1".parse().unwrap(), port, flow, scope).into());
        }
    }
    for (what, s) in &sockets {
        for addr in &wanted {
            for kind in [0, libc::SOCK_STREAM, libc::SOCK_DGRAM, -1] {
                for l in [-1, 0, 1] {
                    let (raw, len) = raw_address(addr);
                    let want = theirs.is_socket_sockaddr(s.as_raw_fd(), kind, (&raw const raw).cast(), len, l);
                    let (k, st) = (crate::rust_api::kind(kind), crate::rust_api::state(l));
                    let got = crate::rust_api::code(sd_daemon::is_socket_sockaddr(s, k, addr, st));
                    found.same(|| format!("is_socket_sockaddr({what}, {addr}, {kind}, {l})"), &want, &got);
                }
            }
        }
    }
    Ok(())
}

fn raw_address(a: &std::net::SocketAddr) -> (libc::sockaddr_storage, usize) {
    // SAFETY: all-zero is a valid sockaddr_storage, large enough for both kinds of address written over it.
    unsafe {
        let mut raw: libc::sockaddr_storage = std::mem::zeroed();
        let p = &raw mut raw;
        let len = match a {
            std::net::SocketAddr::V4(a) => {
                let v4 = p.cast::<libc::sockaddr_in>();
                (*v4).sin_family = libc::AF_INET as _;
                (*v4).sin_port = a.port().to_be();
                (*v4).sin_addr.s_addr = u32::from_ne_bytes(a.ip().octets());
                size_of::<libc::sockaddr_in>()
            }
            std::net::SocketAddr::V6(a) => {
                let v6 = p.cast::<libc::sockaddr_in6>();
                (*v6).sin6_family = libc::AF_INET6 as _;
                (*v6).sin6_port = a.port().to_be();
                (*v6).sin6_flowinfo = a.flowinfo();
                (*v6).sin6_scope_id = a.scope_id();
                (*v6).sin6_addr.s6_addr = a.ip().octets();
                size_of::<libc::sockaddr_in6>()
            }
        };
        (raw, len)
    }
}

/// Whether the machine was booted with systemd, for every shape of the directory that tells.
pub(crate) fn booted(theirs: &Library, ours: &dyn Api, found: &mut Findings) -> Result<(), String> {
    found.same(|| "booted, as it is".into(), &theirs.booted(), &ours.booted());
    own_mounts()?;
    let run = Path::new("/run");
    // SAFETY: mounts in a namespace of this process's own.
    if unsafe { libc::mount(c"tmpfs".as_ptr(), c"/run".as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()) } != 0 {
        return Err(format!("cannot mount on /run: {}", std::io::Error::last_os_error()));
    }
    let mut check = |what: &str| found.same(|| what.into(), &theirs.booted(), &ours.booted());
    check("nothing in /run");
    std::fs::write(run.join("systemd"), "").unwrap();
    check("a file instead of /run/systemd");
    std::fs::remove_file(run.join("systemd")).unwrap();
    std::fs::create_dir(run.join("systemd")).unwrap();
    check("no directory in /run/systemd");
    std::fs::write(run.join("systemd/system"), "").unwrap();
    check("a file instead of the directory");
    std::fs::remove_file(run.join("systemd/system")).unwrap();
    std::os::unix::fs::symlink("/tmp", run.join("systemd/system")).unwrap();
    check("a link to a directory");
    std::fs::remove_file(run.join("systemd/system")).unwrap();
    std::os::unix::fs::symlink("/nowhere", run.join("systemd/system")).unwrap();
    check("a link to nothing");
    std::fs::remove_file(run.join("systemd/system")).unwrap();
    std::fs::create_dir(run.join("systemd/system")).unwrap();
    check("the directory");
    std::os::unix::fs::symlink("/run/loop", run.join("loop")).unwrap();
    std::fs::rename(run.join("systemd"), run.join("s")).unwrap();
    std::os::unix::fs::symlink("/run/loop", run.join("systemd")).unwrap();
    check("links in a circle");
    Ok(())
}

/// A descriptor that stays open for good, by number.
pub(crate) fn leak(fd: OwnedFd) -> RawFd {
    fd.into_raw_fd()
}

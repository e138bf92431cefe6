//! What arrives at a notification socket (or the journal's), from libsystemd and from us: data, descriptors, credentials.
#![allow(unsafe_code, reason = "receives control messages and changes user ids by libc calls")]
#![allow(clippy::unwrap_used, reason = "a test that cannot make its sockets must stop")]
use crate::api::{Api, Library};
use crate::environments::set_var;
use crate::questions::{Scratch, bind_unix, leak, own_mounts, socket};
use crate::report::{Findings, Random};
use crate::rust_api::{borrow, code};
use sd_daemon::{Level, Notifier, NotifyState};
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// One received message: data, then each control message (descriptors as device and inode).
#[derive(Debug, PartialEq, Eq)]
struct Got {
    data: Vec<u8>,
    control: Vec<(i32, i32, Vec<u64>)>,
}

/// A journal entry: the message, and seals and content of each memory file that came with it.
type Entry = (Got, Vec<(i32, Vec<u8>)>);

/// A bound datagram socket that is told who sends.
struct Receiver(OwnedFd);

impl Receiver {
    fn new(name: &[u8]) -> Receiver {
        let s = socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK).unwrap();
        bind_unix(&s, name).unwrap();
        let one = 1;
        // SAFETY: an int that lives through the call.
        unsafe {
            libc::setsockopt(s.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, (&raw const one).cast(), 4);
        }
        Receiver(s)
    }

    /// The next message, if one is there, and its descriptors.
    fn next_with_fds(&self) -> Option<(Got, Vec<OwnedFd>)> {
        let mut data = vec![0u8; 4 << 20];
        let mut control = vec![0u64; 1024];
        let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
        // SAFETY: the msghdr points into the buffers above, with their lengths; the walk over the control messages
        // follows the kernel's own lengths.
        unsafe {
            let mut msg: libc::msghdr = std::mem::zeroed();
            msg.msg_iov = &raw mut iov;
            msg.msg_iovlen = 1;
            msg.msg_control = control.as_mut_ptr().cast();
            msg.msg_controllen = 8 * control.len();
            let n = libc::recvmsg(self.0.as_raw_fd(), &raw mut msg, libc::MSG_CMSG_CLOEXEC);
            if n < 0 {
                return None;
            }
            data.truncate(n as usize);
            let (mut out, mut fds) = (Vec::new(), Vec::new());
            let mut c = libc::CMSG_FIRSTHDR(&raw const msg);
            while !c.is_null() {
                let len = (*c).cmsg_len - libc::CMSG_LEN(0) as usize;
                let ints: Vec<i32> =
                    (0..len / 4).map(|i| libc::CMSG_DATA(c).cast::<i32>().add(i).read_unaligned()).collect();
                let values = if (*c).cmsg_type == libc::SCM_RIGHTS {
                    let identity = |fd: RawFd| {
                        let mut st: libc::stat = std::mem::zeroed();
                        libc::fstat(fd, &raw mut st);
                        fds.push(OwnedFd::from_raw_fd(fd));
                        [st.st_dev, st.st_ino]
                    };
                    ints.into_iter().flat_map(identity).collect()
                } else {
                    ints.into_iter().map(|i| i as u32 as u64).collect()
                };
                out.push(((*c).cmsg_level, (*c).cmsg_type, values));
                c = libc::CMSG_NXTHDR(&raw const msg, c);
            }
            Some((Got { data, control: out }, fds))
        }
    }

    fn next(&self) -> Option<Got> {
        self.next_with_fds().map(|(got, _)| got)
    }
}

fn abstract_name(what: &str) -> (Vec<u8>, Vec<u8>) {
    let name = format!("sd-daemon-{what}-{}", std::process::id());
    ([b"\0", name.as_bytes()].concat(), [b"@", name.as_bytes()].concat())
}

/// Random messages, descriptors and pids, over a path and an abstract address.
pub(crate) fn bytes(theirs: &Library, found: &mut Findings, cases: usize) -> Result<(), String> {
    let dir = Scratch::new("notify");
    let (name, address) = abstract_name("bytes");
    let path = dir.path("socket").into_bytes();
    let receivers = [(Receiver::new(&name), address), (Receiver::new(&path), path)];
    let files: Vec<RawFd> =
        (0..5).map(|i| leak(std::fs::File::create(dir.0.join(i.to_string())).unwrap().into())).collect();
    let mut rng = Random::new();
    for case in 0..cases {
        let (receiver, address) = &receivers[case % 2];
        let len = if rng.once_in(100) { 1 << 20 } else { rng.below(120) };
        let text: Vec<u8> = (0..len).map(|_| (rng.below(255) + 1) as u8).collect();
        let state = CString::new(text).unwrap();
        let many = if rng.once_in(50) { rng.pick(&[252, 253, 254, 300]) } else { rng.below(4) };
        let fds: Vec<RawFd> = (0..many).map(|_| rng.pick(&files)).collect();
        let pid = rng.pick(&[0, 0, std::process::id() as i32, 1, i32::MAX]);
        let unset = rng.once_in(2);
        let left = || std::env::var_os("NOTIFY_SOCKET").is_some();
        set_var("NOTIFY_SOCKET", Some(address));
        let want = (theirs.notify_with_fds(pid, unset, &state, &fds), left(), receiver.next());
        set_var("NOTIFY_SOCKET", Some(address));
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().filter_map(|fd| borrow(*fd)).collect();
        let sent = Notifier::from_env().and_then(|n| {
            let n = n.unwrap().on_behalf_of(u32::try_from(pid).ok());
            n.send_raw(state.as_bytes(), &borrowed).map(|()| true)
        });
        if unset {
            // SAFETY: one thread.
            unsafe { sd_daemon::unset_notify() };
        }
        let got = (code(sent), left(), receiver.next());
        if fds.len() > 253 && want.0 == -libc::EINVAL && got.0 == -libc::E2BIG {
            found.explain("more than 253 descriptors: E2BIG, as sd_notify(3) says since 257, not EINVAL");
            continue;
        }
        found.same(|| format!("{} bytes, {} fds, pid {pid}, unset {unset}", len, fds.len()), &want, &got);
        found.same(|| "sent, or refused by both".into(), &(got.0 > 0), &got.2.is_some());
    }
    set_var("NOTIFY_SOCKET", None);
    Ok(())
}

/// Each variable sd_notify(3) documents, as its text there and as our type.
pub(crate) fn assignments(theirs: &Library, found: &mut Findings) -> Result<(), String> {
    use NotifyState::*;
    let (name, address) = abstract_name("assignments");
    let receiver = Receiver::new(&name);
    set_var("NOTIFY_SOCKET", Some(&address));
    let table: Vec<(&str, Vec<NotifyState<'_>>)> = vec![
        ("READY=1", vec![Ready]),
        ("STOPPING=1", vec![Stopping]),
        ("MONOTONIC_USEC=18446744073709551615", vec![MonotonicUsec(u64::MAX)]),
        (
            "STATUS=Completed 66% of file system check…",
            vec![NotifyState::status("Completed 66% of file system check…")],
        ),
        ("STATUS=", vec![NotifyState::status(String::new())]),
        ("NOTIFYACCESS=exec", vec![NotifyAccess("exec")]),
        ("ERRNO=2", vec![Errno(2)]),
        ("BUSERROR=org.freedesktop.DBus.Error.TimedOut", vec![BusError("org.freedesktop.DBus.Error.TimedOut".into())]),
        (
            "VARLINKERROR=org.varlink.service.InvalidParameter",
            vec![VarlinkError("org.varlink.service.InvalidParameter".into())],
        ),
        ("EXIT_STATUS=255", vec![ExitStatus(255)]),
        ("MAINPID=4711", vec![MainPid(4711)]),
        ("MAINPIDFDID=18446744073709551614", vec![MainPidFdId(u64::MAX - 1)]),
        ("MAINPIDFD=1", vec![MainPidFd]),
        ("WATCHDOG=1", vec![Watchdog]),
        ("WATCHDOG=trigger", vec![WatchdogTrigger]),
        ("WATCHDOG_USEC=20000000", vec![WatchdogUsec(Duration::from_secs(20))]),
        ("EXTEND_TIMEOUT_USEC=1500", vec![ExtendTimeoutUsec(Duration::from_nanos(1_500_999))]),
        ("RESTART_RESET=1", vec![RestartReset]),
        ("FDSTORE=1", vec![FdStore]),
        ("FDSTOREREMOVE=1\nFDNAME=foo", vec![FdStoreRemove, FdName("foo".into())]),
        ("FDSTORE=1\nFDNAME=a b~\nFDPOLL=0", vec![FdStore, FdName("a b~".into()), FdPollDisable]),
        ("X_CRUST_1=a=b", vec![Other { name: "X_CRUST_1", value: "a=b".into() }]),
        (
            "READY=1\nSTATUS=Processing requests…\nMAINPID=4711",
            vec![Ready, NotifyState::status("Processing requests…"), MainPid(4711)],
        ),
    ];
    for (text, state) in table {
        let want = (theirs.notify(false, &CString::new(text).unwrap()), receiver.next());
        let got = (code(sd_daemon::notify(false, &state)), receiver.next());
        found.same(|| text.into(), &want, &got);
    }
    // A reload carries the time: between two looks at the clock.
    let now = || {
        let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes one timespec.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut ts) };
        ts.tv_sec as u64 * 1_000_000 + ts.tv_nsec as u64 / 1000
    };
    let before = now();
    let sent = code(sd_daemon::notify(false, &[Reloading]));
    let text = String::from_utf8(receiver.next().map(|g| g.data).unwrap_or_default()).unwrap_or_default();
    let usec = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|n| n.parse().ok()).unwrap_or(0);
    found.same(|| format!("{text:?} at {before}"), &true, &(sent == 1 && (before..=now()).contains(&usec)));

    // What would smuggle in another assignment, or cannot be carried, is refused and nothing is sent.
    let long = "x".repeat(256);
    let bad: Vec<NotifyState<'_>> = vec![
        NotifyState::status("done\nMAINPID=1"),
        NotifyState::status("a\0b"),
        BusError("a\nb".into()),
        VarlinkError("a\nb".into()),
        NotifyAccess("all\nREADY=1"),
        FdName("a:b".into()),
        FdName("é".into()),
        FdName("a\tb".into()),
        FdName(long.as_str().into()),
        Other { name: "A=B", value: "".into() },
        Other { name: "", value: "".into() },
        Other { name: "BARRIER", value: "1".into() },
        Other { name: "A", value: "\n".into() },
    ];
    for state in bad {
        let r = code(sd_daemon::notify(false, &[Ready, state.clone()]));
        found.same(|| format!("{state:?}"), &(-libc::EINVAL, None), &(r, receiver.next()));
    }
    set_var("NOTIFY_SOCKET", None);
    found.same(|| "no socket".into(), &theirs.notify(false, c"READY=1"), &code(sd_daemon::notify(false, &[Ready])));
    Ok(())
}

const VSOCK: &str = "vsock addresses: this libsystemd is older than them (253)";

/// Whether the reference knows vsock: a malformed number is an error of its own there.
fn knows_vsock(theirs: &Library) -> bool {
    set_var("NOTIFY_SOCKET", Some(b"vsock-stream:2:99999999999"));
    theirs.notify(false, c"READY=1") == -libc::ERANGE
}

/// Addresses of every form, where nobody listens (or, once, somebody of the wrong kind): the same errors.
pub(crate) fn addresses(theirs: &Library, ours: &dyn Api, found: &mut Findings, cases: usize) -> Result<(), String> {
    let dir = Scratch::new("notify-addresses");
    std::fs::write(dir.0.join("file"), "").unwrap();
    let stream = socket(libc::AF_UNIX, libc::SOCK_STREAM).unwrap();
    let stream_path = dir.path("stream").into_bytes();
    bind_unix(&stream, &stream_path).unwrap();
    let knows = knows_vsock(theirs);
    let mut list: Vec<Vec<u8>> = [
        "",
        "/",
        "@",
        "//",
        "@@",
        "/x",
        "@x",
        "x",
        "x/y",
        " /x",
        "vsock",
        "VSOCK:1:2",
        "/nonexistent/socket",
        "@sd-daemon-nobody",
    ]
    .into_iter()
    .map(|s| s.as_bytes().to_vec())
    .collect();
    list.push(dir.path("file").into_bytes());
    list.push(dir.path("file/below").into_bytes());
    list.push(dir.0.as_os_str().as_bytes().to_vec());
    list.push(stream_path);
    for n in [105, 106, 107, 108, 109, 110, 200, 5000] {
        list.push([&b"/"[..], &vec![b'x'; n - 1]].concat());
        list.push([&b"@"[..], &vec![b'x'; n - 1]].concat());
    }
    let mut rng = Random::new();
    for _ in 0..cases {
        let first = rng.pick(&[&b"/sd-daemon-none/"[..], b"@sd-daemon-none", b"", b"unix:", b"vs"]);
        let mut a = first.to_vec();
        for _ in 0..rng.below(130) {
            a.push(rng.pick(b"abcxyz/@:0123456789-. \\\xff\x01"));
        }
        list.push(a);
    }
    for scheme in ["vsock:", "vsock-stream:", "vsock-dgram:", "vsock-seqpacket:"] {
        for rest in [
            "",
            "2",
            ":2",
            "2:",
            "2:x",
            "x:2",
            "-1:2",
            "4294967295:2",
            "2:4294967295",
            "2:4294967296",
            "4294967296:2",
            ":",
        ] {
            list.push(format!("{scheme}{rest}").into_bytes());
        }
    }
    for a in list {
        let vsock = a.starts_with(b"vsock");
        if vsock && !knows {
            // By the documented rule: no such address is valid.
            set_var("NOTIFY_SOCKET", Some(&a));
            let r = ours.notify(false, c"READY=1");
            let refused = [-libc::EINVAL, -libc::ERANGE, -libc::EPROTO].contains(&r);
            found.same(|| format!("{:?} answered {r}", String::from_utf8_lossy(&a)), &true, &refused);
            found.explain(VSOCK);
            continue;
        }
        set_var("NOTIFY_SOCKET", Some(&a));
        let want = theirs.notify(true, c"READY=1");
        set_var("NOTIFY_SOCKET", Some(&a));
        let got = ours.notify(true, c"READY=1");
        let proto = !matches!(a.first(), Some(b'/' | b'@'));
        if proto && !knows && want == -libc::EINVAL && got == -libc::EPROTO {
            found.explain("an address of no known form: EPROTO as libsystemd says since 253, not EINVAL");
            continue;
        }
        found.same(|| format!("NOTIFY_SOCKET={:?}", String::from_utf8_lossy(&a)), &want, &got);
        found.same(|| "unset".into(), &false, &std::env::var_os("NOTIFY_SOCKET").is_some());
    }
    Ok(())
}

/// The barrier's message, its end, and its time limit.
pub(crate) fn barrier(theirs: &Library, found: &mut Findings) -> Result<(), String> {
    let (name, address) = abstract_name("barrier");
    let receiver = Receiver::new(&name);
    set_var("NOTIFY_SOCKET", Some(&address));
    // Nobody closes the descriptor: both give up.
    let shape = |r: i32| {
        let (mut got, fds) = receiver.next_with_fds().unwrap();
        let mut access = Vec::new();
        for fd in &fds {
            // SAFETY: only looks.
            access.push(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) } & libc::O_ACCMODE);
        }
        // Each barrier has a pipe of its own.
        for (_, kind, identity) in &mut got.control {
            if *kind == libc::SCM_RIGHTS {
                identity.truncate(identity.len() - 1);
            }
        }
        (r, got, access)
    };
    let want = shape(theirs.notify_barrier(false, 20_000));
    let got = shape(code(sd_daemon::notify_barrier(false, Some(Duration::from_millis(20)))));
    found.same(|| "nobody reaches the barrier".into(), &-libc::ETIMEDOUT, &got.0);
    found.same(|| "barrier message".into(), &want, &got);
    // Somebody does: a child that receives and closes.
    let answer = |ask: &dyn Fn() -> i32| {
        // SAFETY: one thread; the child receives one message and ends.
        match unsafe { libc::fork() } {
            0 => {
                for _ in 0..2000 {
                    if receiver.next().is_some() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                // SAFETY: ends the child without destructors.
                unsafe { libc::_exit(0) }
            }
            child => {
                let r = ask();
                // SAFETY: reaps the child made above.
                unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
                (r, std::env::var_os("NOTIFY_SOCKET").is_some())
            }
        }
    };
    let want = answer(&|| theirs.notify_barrier(true, 5_000_000));
    set_var("NOTIFY_SOCKET", Some(&address));
    let got = answer(&|| code(sd_daemon::notify_barrier(true, Some(Duration::from_secs(5)))));
    found.same(|| "barrier reached".into(), &want, &got);
    let none = code(sd_daemon::notify_barrier(false, None));
    found.same(|| "no service manager".into(), &theirs.notify_barrier(false, u64::MAX), &none);
    Ok(())
}

/// With other effective ids than real ones, the real ones are sent, or, where that is refused, the kernel's.
pub(crate) fn other_user(theirs: &Library, found: &mut Findings) -> Result<(), String> {
    let (name, address) = abstract_name("user");
    let receiver = Receiver::new(&name);
    set_var("NOTIFY_SOCKET", Some(&address));
    let set = |r: u32, e: u32, s: u32| {
        // SAFETY: this process's ids only; put back below.
        unsafe { libc::setresgid(r, e, s) | libc::setresuid(r, e, s) }
    };
    for (real, effective) in [(0, 65534), (65534, 0)] {
        for pid in [0, 1] {
            if set(real, effective, 0) != 0 {
                return Err(format!("cannot change user: {}", std::io::Error::last_os_error()));
            }
            let r = theirs.notify_with_fds(pid, false, c"READY=1", &[]);
            let want = (r, receiver.next());
            let sent = sd_daemon::notify_with_fds(false, u32::try_from(pid).ok(), &[NotifyState::Ready], &[]);
            let got = (code(sent), receiver.next());
            // SAFETY: back to root, first the user.
            let back = unsafe { libc::setresuid(0, 0, 0) | libc::setresgid(0, 0, 0) };
            assert_eq!(back, 0);
            found.same(|| format!("uid {real}, effective {effective}, pid {pid}"), &want, &got);
        }
    }
    set_var("NOTIFY_SOCKET", None);
    Ok(())
}

/// Entries with fields: the bytes sd_journal_sendv sends, small and (in a sealed memory file) large.
pub(crate) fn journal(theirs: &Library, found: &mut Findings) -> Result<(), String> {
    own_mounts()?;
    // SAFETY: mounts in a namespace of this process's own.
    if unsafe { libc::mount(c"tmpfs".as_ptr(), c"/run".as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()) } != 0 {
        return Err(format!("cannot mount on /run: {}", std::io::Error::last_os_error()));
    }
    std::fs::create_dir_all("/run/systemd/journal").unwrap();
    let receiver = Receiver::new(b"/run/systemd/journal/socket");
    // Without content comparison a memory file's identity differs: replace it by its content and seals.
    let next = || {
        let (mut got, fds) = receiver.next_with_fds()?;
        let mut inside = Vec::new();
        for fd in fds {
            // SAFETY: only looks.
            let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            // Its name, which is for people, differs: libsystemd names it after the program.
            inside.push((seals, std::fs::read(path).unwrap()));
        }
        got.control.retain(|c| c.1 != libc::SCM_RIGHTS);
        Some((got, inside))
    };
    // Standard error leads to the journal as far as the environment tells.
    // SAFETY: looks at standard error.
    let st = unsafe {
        let mut st: libc::stat = std::mem::zeroed();
        libc::fstat(2, &raw mut st);
        st
    };
    for (value, want) in [
        (format!("{}:{}", st.st_dev, st.st_ino), true),
        (format!("{}:{}", st.st_dev, st.st_ino + 1), false),
        (format!("{}:{}", st.st_dev + 1, st.st_ino), false),
        (format!("{}", st.st_dev), false),
        (format!("{}:{}x", st.st_dev, st.st_ino), false),
        (String::new(), false),
    ] {
        set_var("JOURNAL_STREAM", Some(value.as_bytes()));
        found.same(|| format!("JOURNAL_STREAM={value}"), &want, &sd_daemon::is_journal_stream(std::io::stderr()));
        let journal = sd_daemon::Journal::of_stderr().map_err(|e| e.to_string())?;
        found.same(|| format!("JOURNAL_STREAM={value}"), &want, &journal.is_some());
    }
    set_var("JOURNAL_STREAM", Some(format!("{}:{}", st.st_dev, st.st_ino).as_bytes()));
    let journal = sd_daemon::Journal::of_stderr().map_err(|e| e.to_string())?.unwrap();
    set_var("JOURNAL_STREAM", None);
    let mut rng = Random::new();
    for case in 0..500 {
        let level = rng.pick(&Level::ALL);
        let mut text = |len: usize| -> Vec<u8> { (0..len).map(|_| rng.pick(b"abc =\n\x00\xff<3>\t")).collect() };
        let len = if case % 50 == 49 { 3 << 20 } else { case % 60 };
        // Larger than what the socket takes at once (twice the system's default at least).
        let message = "m\u{e9}".repeat(len / 2) + if case % 3 == 0 { "\nsecond line" } else { "" };
        let (a, b) = (text(case % 13), text(case % 7));
        let named = case % 5 == 0;
        let mut fields: Vec<(&str, &[u8])> = vec![("CODE_FILE", &a), ("A_1", &b)];
        if named {
            fields.push(("SYSLOG_IDENTIFIER", b"someone"));
        }
        let mut raw =
            vec![[b"MESSAGE=", message.as_bytes()].concat(), format!("PRIORITY={}", level as u8).into_bytes()];
        raw.extend(fields.iter().map(|(n, v)| [n.as_bytes(), b"=", v].concat()));
        let want = (theirs.journal_sendv(&raw), next());
        let got = (code(journal.log(level, &message, &fields).map(|()| 0)), next());
        found.same(|| format!("case {case}"), &want.0, &got.0);
        let brief = |g: &Option<Entry>| {
            g.as_ref().map(|(g, i)| (g.data.len(), i.iter().map(|x| (x.0, x.1.len())).collect::<Vec<_>>()))
        };
        found.same(|| format!("case {case}, lengths"), &brief(&want.1), &brief(&got.1));
        found.same(|| format!("case {case}, content equal"), &true, &(want.1 == got.1 && want.1.is_some()));
    }
    for name in ["", "a", "_PID", "1A", "A-B", &"A".repeat(65), "É"] {
        let r = journal.log(Level::Info, "x", &[(name, b"")]);
        found.same(
            || format!("field {name:?} refused, nothing sent"),
            &(-libc::EINVAL, true),
            &(code(r.map(|()| 0)), next().is_none()),
        );
    }
    drop(receiver);
    // The journal is gone: said, not hidden.
    let r = journal.log(Level::Info, "x", &[]);
    found.same(|| "no journal".into(), &true, &r.is_err());
    Ok(())
}

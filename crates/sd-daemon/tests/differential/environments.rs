//! Random environments, given to both: listen_fds (with names), watchdog_enabled.
#![allow(unsafe_code, reason = "changes the environment and descriptors of this one-threaded program, and forks it")]
use crate::api::{Api, Library};
use crate::report::{Findings, Random};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

pub(crate) const NO_PIDFDID: &str =
    "LISTEN_PIDFDID: this libsystemd is older than the variable; expected by the documented rule instead";

/// Descriptors 3 up to this one are given or closed by each case.
const LAST: RawFd = 12;

const VARS: [&str; 4] = ["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"];

pub(crate) fn set_var(name: &str, value: Option<&[u8]>) {
    // SAFETY: this program has one thread.
    unsafe {
        match value {
            Some(v) => std::env::set_var(name, OsStr::from_bytes(v)),
            None => std::env::remove_var(name),
        }
    }
}

/// A text around `value` that may or may not be a number.
pub(crate) fn number_text(rng: &mut Random, value: i128) -> Vec<u8> {
    let (sign, m) = if value < 0 { ("-", -value) } else { ("", value) };
    let mut text = match rng.below(12) {
        0 => format!("{sign}0x{m:x}"),
        1 => format!("{sign}0X{m:X}"),
        2 => format!("{sign}0{m:o}"),
        3 => format!("0o{sign}{m:o}"),
        4 => format!("0b{sign}{m:b}"),
        5 => format!("{sign}0{m}"),
        _ => format!("{sign}{m}"),
    }
    .into_bytes();
    if rng.once_in(8) {
        let prefix: &[u8] =
            rng.pick(&[&b" "[..], b"\t", b"\n", b"\r", b"\x0b", b"\x0c", b"+", b"-", b" +", b"\x0b-", b"0b"]);
        text.splice(0..0, prefix.iter().copied());
    }
    for _ in 0..rng.pick(&[0, 0, 0, 0, 0, 0, 1, 2]) {
        let at = rng.below(text.len() + 1);
        let byte = rng.pick(b" \t\n\x0b\x0c\r+-xXbBoO0123456789abcdefgzZ._:,\xff");
        if rng.once_in(3) && at < text.len() {
            text.remove(at);
        } else {
            text.insert(at, byte);
        }
    }
    text
}

fn any_number(rng: &mut Random) -> i128 {
    let edges: [i128; 18] = [
        0,
        1,
        -1,
        2,
        3,
        10,
        i32::MAX as i128,
        i32::MAX as i128 - 3,
        i32::MAX as i128 - 2,
        i32::MAX as i128 + 1,
        i32::MIN as i128,
        u32::MAX as i128,
        u32::MAX as i128 + 2,
        i64::MAX as i128,
        i64::MIN as i128,
        u64::MAX as i128,
        u64::MAX as i128 + 1,
        1 << 70,
    ];
    if rng.once_in(3) { rng.below(100_000) as i128 } else { rng.pick(&edges) }
}

/// A text with `@` for this process's pid, in some form, or without.
fn pid_text(rng: &mut Random, me: u32) -> Option<Vec<u8>> {
    match rng.below(10) {
        0 => None,
        1 => {
            let other = any_number(rng);
            Some(number_text(rng, other))
        }
        2 => Some(number_text(rng, me.into())),
        _ => Some(me.to_string().into_bytes()),
    }
}

#[derive(Debug)]
struct Case {
    vars: [Option<Vec<u8>>; 4],
    /// Open descriptors from 3 on.
    open: RawFd,
    /// One of them has close-on-exec set before.
    closing: Option<RawFd>,
    unset: bool,
}

fn names_text(rng: &mut Random, count: usize) -> Vec<u8> {
    let count = if rng.once_in(4) { rng.below(6) } else { count };
    let mut list = Vec::new();
    for i in 0..count {
        if i > 0 {
            list.push(b':');
        }
        for _ in 0..rng.below(5) {
            let plain = !rng.once_in(10);
            list.push(if plain { rng.pick(b"abcXYZ019._-") } else { rng.pick(b":\\\"' \t\n\r\xc3\xa9\xff;=") });
        }
    }
    list
}

impl Case {
    fn new(rng: &mut Random, me: u32, pidfdid: Option<u64>) -> Case {
        let open = rng.below(6) as RawFd;
        let fds = match rng.below(12) {
            0 => None,
            1 | 2 => {
                let n = any_number(rng);
                Some(number_text(rng, n))
            }
            3 => Some(number_text(rng, open.into())),
            4 => Some((open + 1).to_string().into_bytes()),
            _ => Some(open.to_string().into_bytes()),
        };
        let id = match (rng.below(12), pidfdid) {
            (0, Some(own)) => Some(number_text(rng, own.into())),
            (1, Some(own)) => Some(own.to_string().into_bytes()),
            (2, _) => {
                let n = any_number(rng);
                Some(number_text(rng, n))
            }
            _ => None,
        };
        let names = (!rng.once_in(3)).then(|| names_text(rng, open as usize));
        let closing = (open > 0 && rng.once_in(16)).then(|| 3 + rng.below(open as usize) as RawFd);
        Case { vars: [pid_text(rng, me), id, fds, names], open, closing, unset: rng.once_in(2) }
    }

    fn set_up(&self, null: RawFd) {
        for (name, value) in VARS.into_iter().zip(&self.vars) {
            set_var(name, value.as_deref());
        }
        for fd in 3..=LAST {
            // SAFETY: descriptors 3 to LAST belong to these cases; no Rust object owns one.
            unsafe {
                if fd < 3 + self.open {
                    libc::dup2(null, fd);
                    if self.closing == Some(fd) {
                        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                    }
                } else {
                    libc::close(fd);
                }
            }
        }
    }
}

/// What a call left behind: which variables are set, and the flags of the descriptors.
fn traces(ignore_id: bool) -> (Vec<bool>, Vec<i32>) {
    let set = VARS.iter().map(|v| (!ignore_id || *v != "LISTEN_PIDFDID") && std::env::var_os(v).is_some()).collect();
    // SAFETY: only looks.
    let flags = (3..=LAST).map(|fd| unsafe { libc::fcntl(fd, libc::F_GETFD) }).collect();
    (set, flags)
}

/// A descriptor of /dev/null beyond those of the cases.
pub(crate) fn high_null() -> RawFd {
    // SAFETY: makes one descriptor, owned by nobody, that lives until the program ends.
    unsafe {
        let fd = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        let high = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 100);
        libc::close(fd);
        high
    }
}

fn knows_pidfdid(theirs: &Library, null: RawFd) -> bool {
    let me = std::process::id().to_string().into_bytes();
    let vars = [Some(me), Some(b"1x".to_vec()), Some(b"1".to_vec()), None];
    Case { vars, open: 1, closing: None, unset: false }.set_up(null);
    theirs.listen_fds(false) < 0
}

/// This process's number by the documented way: the inode of a pidfd, on a kernel that has pidfs.
fn own_pidfdid() -> Option<u64> {
    // SAFETY: opens, looks at and closes one descriptor.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) as RawFd;
        let mut fs: libc::statfs = std::mem::zeroed();
        let mut st: libc::stat = std::mem::zeroed();
        let ok = libc::fstatfs(fd, &raw mut fs) == 0 && libc::fstat(fd, &raw mut st) == 0;
        libc::close(fd);
        (ok && fs.f_type == 0x5049_4446).then_some(st.st_ino)
    }
}

/// What a libsystemd that knows LISTEN_PIDFDID would do before it reads LISTEN_FDS, asked of one that does not.
/// `None`: goes on.
fn by_the_rule(theirs: &Library, case: &Case, null: RawFd, own: Option<u64>) -> Option<i32> {
    let text = case.vars[1].as_deref()?;
    let one = [case.vars[0].clone(), None, Some(b"1".to_vec()), None];
    Case { vars: one, open: 1, closing: None, unset: false }.set_up(null);
    match theirs.listen_fds(false) {
        1 => {}
        other => return Some(other),
    }
    // Its parser of 64-bit numbers, through another of its functions. 0 and the greatest are refused there as no time.
    set_var("WATCHDOG_USEC", Some(text));
    set_var("WATCHDOG_PID", None);
    let (r, value) = theirs.watchdog_enabled(true);
    let value = match r {
        1 => value,
        _ => match (r, text) {
            (r, _) if r == -libc::ERANGE => return Some(r),
            (_, t) if is_zero_or_max(t) => 0,
            _ => return Some(-libc::EINVAL),
        },
    };
    (own.is_some_and(|own| own != value)).then_some(0)
}

/// Numbers libsystemd parses but refuses as a time: they are other processes' ids all the same.
fn is_zero_or_max(text: &[u8]) -> bool {
    let mut with_pid = text.to_vec();
    // The same text one bit away from zero or the maximum would not be refused: ask C's own parser.
    with_pid.push(0);
    let skip = text.iter().take_while(|b| b" \t\n\r".contains(b)).count();
    let (at, base) = match &text[skip..] {
        [b'0', b'b' | b'B', ..] => (skip + 2, 2),
        [b'0', b'o' | b'O', ..] => (skip + 2, 8),
        _ => (skip, 0),
    };
    let start = with_pid[at..].as_ptr().cast();
    let mut end = std::ptr::null_mut();
    // SAFETY: `with_pid` is NUL-terminated, `end` receives a pointer into it.
    let value = unsafe { libc::strtoull(start, &raw mut end, base) };
    let used = end as usize - start as usize;
    used > 0 && at + used == text.len() && (value == 0 || value == u64::MAX)
}

/// Count, close-on-exec, unset variables: `cases` random environments, in this process.
pub(crate) fn listen_fds(theirs: &Library, ours: &dyn Api, found: &mut Findings, cases: usize) {
    let (null, me, own) = (high_null(), std::process::id(), own_pidfdid());
    let knows = knows_pidfdid(theirs, null);
    let mut rng = Random::new();
    let mut by_result: BTreeMap<i32, usize> = BTreeMap::new();
    for _ in 0..cases {
        let case = Case::new(&mut rng, me, own);
        case.set_up(null);
        let mut want = (theirs.listen_fds(case.unset), traces(!knows));
        if !knows && case.vars[1].is_some() {
            if let Some(r) = by_the_rule(theirs, &case, null, own) {
                case.set_up(null);
                // It stops before it touches a descriptor.
                want = (r, (want.1.0, traces(true).1));
            }
            found.explain(NO_PIDFDID);
        }
        case.set_up(null);
        let got = (ours.listen_fds(case.unset), traces(!knows));
        *by_result.entry(want.0).or_default() += 1;
        found.same(|| show(&case), &want, &got);
        let id_left = std::env::var_os("LISTEN_PIDFDID").is_some();
        found.same(|| format!("LISTEN_PIDFDID left, {case:?}"), &(case.vars[1].is_some() && !case.unset), &id_left);
    }
    // The cases must reach every kind of answer, or equality says little.
    for (what, seen) in [
        ("none", by_result.get(&0)),
        ("some", by_result.get(&2)),
        ("EINVAL", by_result.get(&-libc::EINVAL)),
        ("ERANGE", by_result.get(&-libc::ERANGE)),
        ("EBADF", by_result.get(&-libc::EBADF)),
    ] {
        found.same(
            || format!("cases that answer {what}: at least 1 % of {cases}"),
            &true,
            &(seen.copied().unwrap_or(0) * 100 >= cases),
        );
    }
    set_up_nothing(null);
}

fn set_up_nothing(null: RawFd) {
    Case { vars: [None, None, None, None], open: 0, closing: None, unset: false }.set_up(null);
}

fn show(case: &Case) -> String {
    let mut text = String::new();
    for (name, value) in VARS.iter().zip(&case.vars) {
        if let Some(v) = value {
            text += &format!("{name}={:?} ", String::from_utf8_lossy(v));
        }
    }
    format!("{text}open={} closing={:?} unset={}", case.open, case.closing, case.unset)
}

/// Answers of a forked child that made the environment and called `ask`.
fn in_child(ask: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    use std::io::Read;
    let (mut from, to) = std::io::pipe().expect("pipe");
    // SAFETY: this program has one thread, so the child may do anything; it ends by _exit.
    match unsafe { libc::fork() } {
        0 => {
            let answer = ask();
            // SAFETY: writes to our pipe and ends the child without running anybody's destructors.
            unsafe {
                let fd = std::os::fd::AsRawFd::as_raw_fd(&to);
                libc::write(fd, answer.as_ptr().cast(), answer.len());
                libc::_exit(0)
            }
        }
        child => {
            drop(to);
            let mut answer = Vec::new();
            from.read_to_end(&mut answer).expect("reading a child's answer");
            // SAFETY: reaps the child made above.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            answer
        }
    }
}

pub(crate) const NOT_INHERITED: &str =
    "a counted descriptor had close-on-exec set, so this process opened it: ours refuses to own it twice";

/// Owned descriptors with names, each case in a process of its own since they are handed out once.
pub(crate) fn with_names(theirs: &Library, found: &mut Findings, cases: usize) {
    let null = high_null();
    let knows = knows_pidfdid(theirs, null);
    // The pipe to the child must not lie among the descriptors of the cases.
    let mut rng = Random::new();
    for fd in 3..=LAST {
        // SAFETY: fills the numbers of the cases, which are replaced by them.
        unsafe { libc::dup2(null, fd) };
    }
    for number in 0..cases {
        let mut case_rng = rng.clone();
        for _ in 0..64 {
            rng.next();
        }
        let answers = in_child(|| {
            let mut case = Case::new(&mut case_rng, std::process::id(), None);
            if !knows {
                case.vars[1] = None;
            }
            let nameless = number % 4 == 3;
            case.set_up(null);
            let (n, names) = match nameless {
                true => (theirs.listen_fds(case.unset), Vec::new()),
                false => theirs.listen_fds_with_names(case.unset),
            };
            let want = (n, names, traces(true).0, true);
            case.set_up(null);
            let (n, names, once) = take(case.unset, nameless);
            let got = (n, names, traces(true).0, once);
            let refused = case.closing.is_some() && want.0 > 0 && got.0 == -libc::EBADF;
            format!("{}\x01{want:?}\x01{got:?}\x01{refused}", show(&case)).into_bytes()
        });
        let answers = String::from_utf8_lossy(&answers).into_owned();
        let parts: Vec<&str> = answers.split('\x01').collect();
        match parts[..] {
            [_, _, _, "true"] => found.explain(NOT_INHERITED),
            [shown, want, got, _] => found.same(|| shown.into(), &want, &got),
            _ => found.same(|| format!("child of case {number} answered {answers:?}"), &true, &false),
        }
    }
    set_up_nothing(null);
}

/// Ours: count, names, and whether a second call gives nothing again.
fn take(unset: bool, nameless: bool) -> (i32, Vec<Vec<u8>>, bool) {
    let taken = if nameless {
        sd_daemon::listen_fds(unset).map(|v| v.into_iter().map(|fd| (fd, Vec::new())).collect::<Vec<_>>())
    } else {
        sd_daemon::listen_fds_with_names(unset)
            .map(|v| v.into_iter().map(|l| (l.fd, l.name.as_bytes().to_vec())).collect())
    };
    match taken {
        Err(e) => (-e.errno(), Vec::new(), true),
        Ok(list) => {
            let numbers: Vec<RawFd> = list.iter().map(|(fd, _)| std::os::fd::AsRawFd::as_raw_fd(fd)).collect();
            let right = numbers.iter().copied().eq((3..).take(list.len()));
            let again = match sd_daemon::listen_fds(false) {
                Ok(v) => v.is_empty() && (unset || list.is_empty()),
                Err(sd_daemon::Error::AlreadyTaken) => !unset && !list.is_empty(),
                Err(_) => false,
            };
            let names = if nameless { Vec::new() } else { list.iter().map(|(_, n)| n.clone()).collect() };
            (list.len() as i32, names, right && again)
        }
    }
}

/// Random watchdog environments.
pub(crate) fn watchdog(theirs: &Library, found: &mut Findings, cases: usize) {
    let mut rng = Random::new();
    let me = std::process::id();
    for _ in 0..cases {
        let usec = any_number(&mut rng);
        let usec = (!rng.once_in(10)).then(|| number_text(&mut rng, usec));
        let pid = if rng.once_in(3) { None } else { pid_text(&mut rng, me) };
        let unset = rng.once_in(2);
        let set = |(): ()| {
            set_var("WATCHDOG_USEC", usec.as_deref());
            set_var("WATCHDOG_PID", pid.as_deref());
        };
        let left = || ["WATCHDOG_USEC", "WATCHDOG_PID"].map(|v| std::env::var_os(v).is_some());
        set(());
        let (r, value) = theirs.watchdog_enabled(unset);
        let want = (r, if r > 0 { value } else { 0 }, left());
        set(());
        let got = match sd_daemon::watchdog_enabled(unset) {
            Ok(Some(d)) => (1, u64::try_from(d.as_micros()).unwrap_or(0), left()),
            Ok(None) => (0, 0, left()),
            Err(e) => (-e.errno(), 0, left()),
        };
        let lossy = |v: &Option<Vec<u8>>| v.as_ref().map(|v| String::from_utf8_lossy(v).into_owned());
        found.same(|| format!("{:?} {:?} unset={unset}", lossy(&usec), lossy(&pid)), &want, &got);
    }
    set_var("WATCHDOG_USEC", None);
    set_var("WATCHDOG_PID", None);
}

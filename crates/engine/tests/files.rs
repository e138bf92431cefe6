//! Round trips of descriptor tables: one process holds them, the test dumps it from outside, another process gets them
//! back, and both must look the same from outside. The processes are this test binary again, in a role.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::exit, reason = "a test program with a main of its own")]
#![allow(unsafe_code, reason = "roles make descriptors by number and fork")]

use crust_engine::Options;
use crust_engine::files::{FileImages, FileTable, TaskFiles};
use crust_engine::images::{Partial, Source};
use crust_engine::task::Target;
use crust_kernel::fdinfo::FdInfo;
use crust_kernel::fork::{Fork, fork};
use crust_kernel::procfs::ProcDir;
use crust_kernel::{HostTid, NsTid, TargetFd, kcmp};
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

mod files {
    pub(crate) mod cases;
}
use files::cases::{CASES, Case};

/// The roles' line to the test: one byte per process that stands ready, or a text that says what is wrong.
static REPORT: AtomicI32 = AtomicI32::new(900);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Ok(role) = std::env::var("CRUST_FILES_ROLE") {
        let (role, name) = role.split_once(':').unwrap();
        let case = CASES.iter().find(|c| c.name == name).unwrap();
        let dir = PathBuf::from(std::env::var("CRUST_FILES_DIR").unwrap());
        if role == "hold" { hold(case, &dir) } else { restore(case, &dir) }
    }
    let filter = args.iter().skip(1).find(|a| !a.starts_with('-'));
    let mut failed = 0;
    for case in CASES.iter().filter(|c| filter.is_none_or(|f| c.name.contains(f.as_str()))) {
        let start = Instant::now();
        match run(case) {
            Ok(()) => println!("test {} ... ok ({} ms)", case.name, start.elapsed().as_millis()),
            Err(e) => {
                println!("test {} ... FAILED\n{e}", case.name);
                failed += 1;
            }
        }
    }
    println!("test result: {failed} failed");
    std::process::exit(i32::from(failed > 0));
}

/// Says something to the test.
pub(crate) fn report(text: &str) {
    // SAFETY: the number stays open for the life of every role; nothing else owns it.
    let to = unsafe { std::os::fd::BorrowedFd::borrow_raw(REPORT.load(Ordering::Relaxed)) };
    rustix::io::write(to, text.as_bytes()).unwrap();
}

/// Stands ready until killed.
fn stand() -> ! {
    report(".");
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn hold(case: &Case, dir: &Path) -> ! {
    std::panic::set_hook(Box::new(|info| report(&format!("panic: {info}"))));
    crust_kernel::process::set_parent_death_signal(libc::SIGKILL).unwrap();
    std::env::set_current_dir(dir).unwrap();
    (case.hold)(dir);
    if let Some(second) = case.second
        && let Fork::Child = fork().unwrap()
    {
        crust_kernel::process::set_parent_death_signal(libc::SIGKILL).unwrap();
        second();
        stand_alone();
    }
    stand_alone();
}

/// As [`stand`], with no descriptor but the case's own left.
fn stand_alone() -> ! {
    report(".");
    let n = REPORT.load(Ordering::Relaxed).unsigned_abs();
    crust_kernel::fd::close_range(n, n).unwrap();
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn options(case: &Case) -> Options {
    let mut opts = Options::default();
    (case.options)(&mut opts);
    opts
}

fn restore(case: &Case, dir: &Path) -> ! {
    std::panic::set_hook(Box::new(|info| report(&format!("panic: {info}"))));
    crust_kernel::process::set_parent_death_signal(libc::SIGKILL).unwrap();
    let opts = options(case);
    let fail = |e: crust_engine::Error| -> ! {
        report(&format!("restore: {e}"));
        std::process::exit(1)
    };
    let images = OwnedFd::from(std::fs::File::open(dir.join("images")).unwrap());
    let source = Source::open_dir(images.try_clone().unwrap()).unwrap_or_else(|e| fail(e));
    let text = std::fs::read_to_string(dir.join("tasks")).unwrap();
    let tasks: Vec<TaskFiles> = text
        .lines()
        .map(|l| {
            let (pid, table) = l.split_once(' ').unwrap();
            TaskFiles { pid: pid.parse().unwrap(), table: table.parse().unwrap(), also: Vec::new() }
        })
        .collect();
    let mut files = FileImages::read(&source, &tasks).unwrap_or_else(|e| fail(e));
    if let Some(e) = crust_engine::Error::all(files.check(&opts, &crust_engine::plugins::Plugins::none())) {
        fail(e)
    }
    let base = files.first_service_fd();
    let high = rustix::io::fcntl_dupfd_cloexec(images, base).unwrap();
    let source = Source::open_dir(high).unwrap_or_else(|e| fail(e));
    let copy = crust_kernel::fd::copy_number(REPORT.load(Ordering::Relaxed), base).unwrap();
    REPORT.store(copy.into_raw_fd(), Ordering::Relaxed);
    files.open_shared(&source, &opts).unwrap_or_else(|e| fail(e));
    let mut mine = 0;
    for n in 1..tasks.len() {
        if let Fork::Child = fork().unwrap() {
            crust_kernel::process::set_parent_death_signal(libc::SIGKILL).unwrap();
            mine = n;
            break;
        }
    }
    files.open_table(tasks[mine].table, &[REPORT.load(Ordering::Relaxed)], &source, &opts).unwrap_or_else(|e| fail(e));
    files.set_fs(tasks[mine].pid, &source, &opts).unwrap_or_else(|e| fail(e));
    files.close_shared().unwrap_or_else(|e| fail(e));
    drop(source);
    (case.verify)(mine);
    stand();
}

struct Role {
    child: std::process::Child,
    report: OwnedFd,
}

impl Role {
    fn start(role: &str, case: &Case, dir: &Path) -> Self {
        let (r, w) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env("CRUST_FILES_ROLE", format!("{role}:{}", case.name)).env("CRUST_FILES_DIR", dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let raw = w.as_raw_fd();
        // SAFETY: dup2 is async-signal-safe, and both numbers stay valid in the child up to exec.
        unsafe {
            use std::os::unix::process::CommandExt;
            command.pre_exec(
                move || {
                    if libc::dup2(raw, 900) < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
                },
            );
        }
        let child = command.spawn().unwrap();
        drop(w);
        Self { child, report: r }
    }

    /// Waits until `count` processes stand ready.
    fn ready(&mut self, count: usize) -> Result<(), String> {
        let mut got = String::new();
        let until = Instant::now() + Duration::from_secs(20);
        while got.len() < count || got.bytes().any(|b| b != b'.') {
            let mut fds = [rustix::event::PollFd::new(&self.report, rustix::event::PollFlags::IN)];
            let wait = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
            if rustix::event::poll(&mut fds, Some(&wait)).unwrap() > 0 {
                let mut buf = [0; 4096];
                let n = rustix::io::read(&self.report, &mut buf).unwrap();
                got.push_str(&String::from_utf8_lossy(&buf[..n]));
                if n == 0 {
                    return Err(format!("the process ended: {got}"));
                }
                if got.bytes().any(|b| b != b'.') {
                    return Err(got);
                }
            }
            if Instant::now() > until {
                return Err(format!("only {got:?} after 20 s"));
            }
        }
        Ok(())
    }

    /// Waits until the role has closed its line.
    fn finished(&self) {
        assert_eq!(rustix::io::read(&self.report, &mut [0; 16]), Ok(0));
    }

    fn pids(&self) -> Vec<HostTid> {
        let pid = HostTid::new(self.child.id() as i32).unwrap();
        let mut pids = vec![pid];
        pids.extend(ProcDir::open(pid).unwrap().children().unwrap());
        pids
    }

    fn end(mut self) {
        for pid in self.pids().into_iter().rev() {
            let pid = rustix::process::Pid::from_raw(pid.as_raw()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        self.child.wait().unwrap();
    }
}

/// What a descriptor shows to the outside, numbers of the kernel's own choice taken out.
fn look(pids: &[HostTid], report: &OwnedFd, case: &Case) -> BTreeMap<(usize, u32), String> {
    let mut seen = BTreeMap::new();
    let mut inodes: BTreeMap<u64, usize> = BTreeMap::new();
    let line = format!("pipe:[{}]", rustix::fs::fstat(report).unwrap().st_ino).into_bytes();
    let mut all: Vec<(usize, HostTid, u32)> = Vec::new();
    for (n, pid) in pids.iter().enumerate() {
        let proc = ProcDir::open(*pid).unwrap();
        for fd in proc.numbers("fd").unwrap() {
            // The restored processes' line to us.
            if proc.readlink(&format!("fd/{fd}")).unwrap() != line {
                all.push((n, *pid, fd));
            }
        }
    }
    for (n, pid, fd) in &all {
        let proc = ProcDir::open(*pid).unwrap();
        let link = String::from_utf8_lossy(&proc.readlink(&format!("fd/{fd}")).unwrap()).into_owned();
        let text = proc.read_text(&format!("fdinfo/{fd}")).unwrap();
        let info = FdInfo::parse(text.clone()).unwrap();
        let stat = proc.stat_file(&format!("fd/{fd}")).unwrap();
        let count = inodes.len();
        let class = *inodes.entry(stat.st_ino).or_insert(count);
        // The first descriptor that is the same open file.
        let same = all.iter().find(|(_, p, f)| {
            kcmp::file((*p, TargetFd(*f)), (*pid, TargetFd(*fd))).unwrap() == std::cmp::Ordering::Equal
        });
        let same = same.map(|(a, _, f)| (*a, *f)).unwrap();
        let name: String = link.chars().filter(|c| !c.is_ascii_digit() || link.starts_with('/')).collect();
        let name = if case.ignore_ghost_names { name.split("/#").next().unwrap().to_owned() } else { name };
        let own: Vec<&str> = text
            .lines()
            .filter(|l| {
                l.starts_with("eventfd-count")
                    || l.starts_with("sigmask")
                    || l.starts_with("clockid")
                    || l.starts_with("lock:") && case.name.contains("lock")
            })
            .map(|l| l.split(&format!(" {pid} ")).next().unwrap())
            .collect();
        let targets: Vec<String> = {
            let mut all: Vec<_> = info
                .lines()
                .filter_map(crust_kernel::fdinfo::EpollTarget::parse)
                .map(|t| format!("{}:{:x}:{:x}", t.tfd, t.events, t.data))
                .collect();
            all.sort();
            all
        };
        let mut waiting = String::new();
        if stat.st_mode & libc::S_IFMT == libc::S_IFIFO {
            let pidfd = crust_kernel::pidfd::PidFd::open(*pid).unwrap();
            let copy = pidfd.get_fd(TargetFd(*fd)).unwrap();
            waiting = format!(
                " waiting {} of {}",
                rustix::io::ioctl_fionread(&copy).unwrap_or(0),
                rustix::pipe::fcntl_getpipe_size(&copy).unwrap_or(0)
            );
        }
        let owner = {
            let pidfd = crust_kernel::pidfd::PidFd::open(*pid).unwrap();
            let copy = pidfd.get_fd(TargetFd(*fd)).unwrap();
            crust_kernel::fd::owner(&copy).map_or(0, |o| o.signal)
        };
        seen.insert(
            (*n, *fd),
            format!(
                "{name} inode {class} same {same:?} pos {} flags {:o} cloexec {} sig {owner}{waiting} {own:?} {targets:?}",
                info.pos, info.flags, info.cloexec
            ),
        );
    }
    seen
}

fn difference(a: &BTreeMap<(usize, u32), String>, b: &BTreeMap<(usize, u32), String>) -> Option<String> {
    if a == b {
        return None;
    }
    let mut text = String::new();
    for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
        if a.get(key) != b.get(key) {
            text.push_str(&format!("  {key:?}\n    {:?}\n    {:?}\n", a.get(key), b.get(key)));
        }
    }
    Some(text)
}

fn run(case: &Case) -> Result<(), String> {
    let dir = std::env::temp_dir().join(format!("crust-files-{}-{}", std::process::id(), case.name));
    std::fs::create_dir_all(dir.join("images")).unwrap();
    let result = run_in(case, &dir);
    std::fs::remove_dir_all(&dir).unwrap();
    result
}

fn run_in(case: &Case, dir: &Path) -> Result<(), String> {
    let processes = 1 + usize::from(case.second.is_some());
    let mut held = Role::start("hold", case, dir);
    let ready = held.ready(processes);
    if ready.is_err() {
        held.end();
        return ready;
    }
    held.finished();
    let pids = held.pids();
    let before = look(&pids, &held.report, case);
    let opts = options(case);
    let dumped = (|| -> crust_engine::Result<String> {
        let mut table = FileTable::new(&opts);
        let mut tasks = String::new();
        for pid in &pids {
            let proc = ProcDir::open(*pid).unwrap();
            let pidfd = rustix::process::pidfd_open(
                rustix::process::Pid::from_raw(pid.as_raw()).unwrap(),
                rustix::process::PidfdFlags::empty(),
            )
            .unwrap();
            let t = Target { pid: *pid, ns_pid: NsTid::new(pid.as_raw()).unwrap(), proc: &proc, pidfd: pidfd.as_fd() };
            let id = table.dump_fds(&t)?;
            table.dump_fs(&t)?;
            tasks.push_str(&format!("{pid} {id}\n"));
        }
        let images = std::fs::File::open(dir.join("images")).unwrap();
        let partial = Partial::create(images.as_fd())?;
        let (links, _pages) = table.finish(&partial)?;
        partial.commit(false)?;
        links.keep();
        Ok(tasks)
    })();
    let after = look(&pids, &held.report, case);
    held.end();
    if let Some(text) = difference(&before, &after) {
        return Err(format!("the dump changed the process:\n{text}"));
    }
    let tasks = match (dumped, case.refused) {
        (Ok(tasks), None) => tasks,
        (Ok(_), Some(why)) => return Err(format!("the dump should have been refused: {why}")),
        (Err(e), Some(why)) if e.to_string().contains(why) => return Ok(()),
        (Err(e), _) => return Err(format!("dump: {e}")),
    };
    std::fs::write(dir.join("tasks"), tasks).unwrap();
    let mut restored = Role::start("restore", case, dir);
    let ready = restored.ready(processes);
    let now = if ready.is_ok() { look(&restored.pids(), &restored.report, case) } else { BTreeMap::new() };
    restored.end();
    ready?;
    match difference(&before, &now) {
        Some(text) if !case.verify_changes => Err(format!("held and restored differ:\n{text}")),
        _ => Ok(()),
    }
}

/// Gives a descriptor to a process outside of the tree, which ends with this one.
pub(crate) fn park(fd: OwnedFd) {
    let (r, w) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let line = REPORT.load(Ordering::Relaxed).unsigned_abs();
    if let Fork::Child = fork().unwrap() {
        crust_kernel::fd::close_range(line, line).unwrap();
        if let Fork::Child = fork().unwrap() {
            // An orphan from here on: no child of the process under test. Ends when the other end of the pipe does.
            crust_kernel::fd::place(&r, 5000, true).unwrap();
            crust_kernel::fd::place(&fd, 5001, true).unwrap();
            crust_kernel::fd::close_range(0, 4999).unwrap();
            let _taken = rustix::io::read(borrowed(5000), &mut [0; 1]);
            crust_kernel::process::exit_now(0);
        }
        crust_kernel::process::exit_now(0);
    }
    rustix::process::wait(rustix::process::WaitOptions::empty()).unwrap();
    drop(fd);
    at(w, 4000, true);
}

/// A raw descriptor as something that can be used; never closed.
pub(crate) fn borrowed(fd: RawFd) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: roles keep their tables open for life.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}

/// Moves a descriptor to `number` for good.
pub(crate) fn at(fd: impl Into<OwnedFd>, number: RawFd, cloexec: bool) -> RawFd {
    let fd: OwnedFd = fd.into();
    if fd.as_raw_fd() != number {
        crust_kernel::fd::place(&fd, number, cloexec).unwrap();
        return number;
    }
    crust_kernel::fd::set_cloexec(number, cloexec).unwrap();
    fd.into_raw_fd()
}

/// Reads all that waits.
pub(crate) fn read_some(fd: RawFd) -> Vec<u8> {
    // SAFETY: as in `borrowed`; the copy is the file's only owner.
    let copy = unsafe { OwnedFd::from_raw_fd(libc::dup(fd)) };
    let mut buf = vec![0; 1 << 16];
    let n = std::fs::File::from(copy).read(&mut buf).unwrap();
    buf.truncate(n);
    buf
}

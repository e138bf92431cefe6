//! Without privileges: jobs in a user, pid and mount namespace of their own, which any user may make.
//!
//! `crust run -- PROGRAM` starts a job. Its first process, pid 1 of the new pid namespace, is crust itself: it reaps, hands
//! signals on and ends with the program. A dump of a job enters its namespaces, where its user has every right over it.
//! A restore by somebody who may not choose process ids makes such namespaces and restores inside of them; the process
//! that did so stays as pid 1. Nothing here asks for a privilege.
use crate::exit::Exit;
use crust_engine::{Error, Kind, Object, OnObject, Result, ResultExt};
use crust_kernel::fork::{Fork, fork};
use crust_kernel::procfs::{ProcDir, Stat, Status};
use crust_kernel::{HostTid, process, signals, unshare};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, wait};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

/// The name of pid 1 of a job, by which a dump knows one.
const INIT_NAME: &std::ffi::CStr = c"crust-init";
/// Signals that are handed on to the program.
const HANDED_ON: [i32; 6] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];
const HELP: &str = "allow user namespaces (user.max_user_namespaces, kernel.unprivileged_userns_clone, \
    kernel.apparmor_restrict_unprivileged_userns), or be root";

/// `crust run [--pidfile FILE] [--detach] [--] PROGRAM [ARGUMENTS]`.
pub(crate) fn run(args: &[OsString]) -> Exit {
    let command = match Command::parse(args) {
        Ok(command) => command,
        Err(why) => {
            log::error!("{why}");
            crate::out("Usage: crust run [--pidfile FILE] [--detach] [--] PROGRAM [ARGUMENTS]\n");
            return Exit::Failure;
        }
    };
    let begin = || {
        let (program, args) = (command.program.clone(), command.args.clone());
        match fork().during("starting the program")? {
            Fork::Parent(child) => Ok(child.as_raw()),
            Fork::Child => {
                let e = become_program(&program, &args);
                log::error!("{e}");
                leave(127)
            }
        }
    };
    match job(command.detach, command.pidfile.as_deref(), begin) {
        Ok(status) => leave(status.unwrap_or(1)),
        Err(e) => {
            crate::commands::report(&e);
            Exit::Failure
        }
    }
}

/// What `crust run` was told.
#[derive(Debug, PartialEq, Eq)]
struct Command {
    pidfile: Option<PathBuf>,
    detach: bool,
    program: OsString,
    args: Vec<OsString>,
}

impl Command {
    fn parse(args: &[OsString]) -> std::result::Result<Self, String> {
        let (mut pidfile, mut detach) = (None, false);
        let mut words = args.iter();
        while let Some(word) = words.next() {
            match word.to_str() {
                Some("--pidfile") => {
                    pidfile = Some(PathBuf::from(words.next().ok_or("--pidfile needs a file")?));
                }
                Some("--detach" | "-d") => detach = true,
                Some("--") => {
                    let program = words.next().ok_or("a program is needed")?.clone();
                    return Ok(Self { pidfile, detach, program, args: words.cloned().collect() });
                }
                Some(option) if option.starts_with('-') => return Err(format!("unknown option {option}")),
                _ => return Ok(Self { pidfile, detach, program: word.clone(), args: words.cloned().collect() }),
            }
        }
        Err("a program is needed".to_owned())
    }
}

fn become_program(program: &OsString, args: &[OsString]) -> Error {
    let failed = rustix::process::setsid().map_err(std::io::Error::from);
    let failed = failed.and_then(|_| Err::<(), _>(std::process::Command::new(program).args(args).exec()));
    match failed.during("running the program").on_path(&program.to_string_lossy()) {
        Err(e) => e,
        Ok(()) => Error::new(Kind::Internal, "exec returned"),
    }
}

/// Ends this process here, with a code that no [`Exit`] has.
fn leave(code: i32) -> ! {
    #[allow(clippy::exit, reason = "the code is the program's own, or this is a forked child")]
    std::process::exit(code)
}

/// True for a user who may not choose process ids here, so that a restore needs namespaces of its own.
pub(crate) fn is_needed() -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    const CHECKPOINT_RESTORE: u64 = 1 << 40;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    Status::new(status).mask("CapEff").is_some_and(|caps| caps & (SYS_ADMIN | CHECKPOINT_RESTORE) == 0)
}

/// Makes the namespaces, lets `begin` start the job's root task in them (as child of their pid 1, with the id it returns),
/// and waits for its end, or with `detach` for its beginning. Gives its exit code; `None` if it did not begin, which its pid 1
/// has reported.
pub(crate) fn job(detach: bool, pidfile: Option<&Path>, begin: impl FnOnce() -> Result<i32>) -> Result<Option<i32>> {
    let work_dir = crate::commands::open_dir(Path::new("."))?;
    if let Some(file) = pidfile.filter(|f| f.exists()) {
        let taken = Error::new(Kind::BadRequest, "the pid file exists already").help("remove it, or name another");
        return Err(taken.on(Object::Path(file.display().to_string())));
    }
    let (mut news, tell) = std::io::pipe().during("making a pipe")?;
    unshare::job_namespaces().during("making namespaces of our own").map_err(|e| e.help(HELP))?;
    let init = match fork().during("starting the first process of the pid namespace")? {
        Fork::Parent(init) => init,
        Fork::Child => {
            drop(news);
            leave(be_init(&work_dir, detach, tell, begin))
        }
    };
    drop(tell);
    let pending = signals::signal_fd(&[&HANDED_ON[..], &[libc::SIGCHLD]].concat()).during("blocking signals")?;
    let mut root = [0; 4];
    if news.read_exact(&mut root).is_err() {
        // It has said why.
        return wait_for(init, &pending).map(|_| None);
    }
    if let Some(file) = pidfile {
        let written = outer_pid(init, i32::from_ne_bytes(root)).and_then(|pid| write_new(file, pid));
        if let Err(e) = written {
            // A caller that cannot know the pid has no job.
            kill(init, libc::SIGKILL).during("ending the job")?;
            wait_for(init, &pending)?;
            return Err(e);
        }
    }
    if detach { Ok(Some(0)) } else { wait_for(init, &pending).map(Some) }
}

/// The life of pid 1; its exit code.
fn be_init(
    work_dir: &OwnedFd,
    detach: bool,
    mut tell: std::io::PipeWriter,
    begin: impl FnOnce() -> Result<i32>,
) -> i32 {
    let started = (|| {
        // Until the job stands, its starter's end is its end.
        process::set_parent_death_signal(libc::SIGKILL).during("prctl PR_SET_PDEATHSIG")?;
        rustix::thread::set_name(INIT_NAME).during("taking a name")?;
        rustix::process::setsid().during("setsid")?;
        // Not shared with our starter, who still needs the /proc it has.
        process::unshare(libc::CLONE_NEWNS).during("making a mount namespace")?;
        own_proc()?;
        rustix::process::fchdir(work_dir).during("going back to the work directory")?;
        let root = begin()?;
        let pending = signals::signal_fd(&[&HANDED_ON[..], &[libc::SIGCHLD]].concat()).during("blocking signals")?;
        if detach {
            process::set_parent_death_signal(0).during("prctl PR_SET_PDEATHSIG")?;
            // Whoever reads what our starter says waits for the end of its pipe.
            let null = std::fs::File::options().read(true).write(true).open("/dev/null").during("opening /dev/null")?;
            rustix::stdio::dup2_stdin(&null)
                .and_then(|()| rustix::stdio::dup2_stdout(&null))
                .and_then(|()| rustix::stdio::dup2_stderr(&null))
                .during("letting go of standard input and output")?;
        }
        tell.write_all(&root.to_ne_bytes()).during("telling the starter")?;
        Ok::<_, Error>((root, pending))
    })();
    drop(tell);
    match started {
        Ok((root, pending)) => {
            let code = match HostTid::new(root).map(|root| wait_for(root, &pending)) {
                Some(Ok(code)) => code,
                _ => 1,
            };
            await_visitors();
            code
        }
        Err(e) => {
            crate::commands::report(&e);
            1
        }
    }
}

/// Waits for dumps that came in from outside (their parent is not to be seen from here): our end would be theirs.
fn await_visitors() {
    let mut backoff = crust_kernel::Backoff::new();
    let is_visitor = |id: i32| {
        let proc = HostTid::new(id).filter(|_| id != 1).and_then(|id| ProcDir::open(id).ok());
        let stat = proc.and_then(|p| p.read("stat").ok()).and_then(|s| Stat::parse(&s));
        stat.is_some_and(|s| s.ppid == 0 && !matches!(s.state, b'Z' | b'X'))
    };
    let ids = || std::fs::read_dir("/proc").into_iter().flatten().flatten();
    while ids().any(|e| e.file_name().to_str().and_then(|n| n.parse().ok()).is_some_and(is_visitor)) {
        backoff.pause(crust_kernel::Deadline::after(std::time::Duration::from_secs(1)));
    }
}

/// The new pid namespace needs its own /proc, and ours must not spread.
pub(crate) fn own_proc() -> Result<()> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).during("making mounts private")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None).during("mounting /proc").map_err(|e| {
        e.help("a /proc with parts hidden (as in many containers) must not be mounted anew: hide nothing of it, or be root")
    })
}

fn kill(pid: HostTid, signal: i32) -> rustix::io::Result<()> {
    match (Pid::from_raw(pid.as_raw()), Signal::from_named_raw(signal)) {
        (Some(pid), Some(signal)) => rustix::process::kill_process(pid, signal),
        _ => Ok(()),
    }
}

/// Reaps children and hands signals on to `child` until that one ends; its exit code, 128 + N for signal N.
fn wait_for(child: HostTid, pending: &OwnedFd) -> Result<i32> {
    loop {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid.as_raw_nonzero().get() == child.as_raw() => {
                    if let Some(code) = code_of(status) {
                        return Ok(code);
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e).during("waiting for the program"),
            }
        }
        while let Some(signal) = signals::take(pending).during("reading signals")? {
            if signal != libc::SIGCHLD && kill(child, signal).is_err() {
                break; // it has just ended
            }
        }
        match poll(&mut [PollFd::from_borrowed_fd(pending.as_fd(), PollFlags::IN)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).during("waiting for the program"),
        }
    }
}

fn code_of(status: WaitStatus) -> Option<i32> {
    status.exit_status().or_else(|| status.terminating_signal().map(|n| 128 + n))
}

/// The id that the root task of the job below `init` has here.
fn outer_pid(init: HostTid, inner: i32) -> Result<i32> {
    let children = ProcDir::open(init).and_then(|p| p.children()).during("looking for the job")?;
    let is_root = |&&pid: &&HostTid| {
        let status = ProcDir::open(pid).and_then(|p| p.read_text("status")).map(Status::new);
        status.ok().and_then(|s| s.numbers("NSpid")).and_then(|ids| ids.last().copied()) == u32::try_from(inner).ok()
    };
    let found = children.iter().find(is_root).map(|p| p.as_raw());
    found.ok_or_else(|| Error::new(Kind::TargetChanged, "the program ended at once"))
}

/// CRIU's pid file: the number alone, refused if the file is there already.
fn write_new(path: &Path, pid: i32) -> Result<()> {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut f| f.write_all(pid.to_string().as_bytes()))
        .during("writing the pid file")
        .on_path(&path.display().to_string())
}

/// A job as a dump finds it.
#[derive(Debug)]
pub(crate) struct Job {
    namespaces: Vec<(OwnedFd, i32)>,
    /// The task's id inside.
    pub(crate) inner: i32,
}

/// The job that `pid` belongs to, if it lives in namespaces made by `crust run` or by a restore without privileges.
pub(crate) fn job_of(pid: i32) -> Option<Job> {
    let task = ProcDir::open(HostTid::new(pid)?).ok()?;
    let own = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).ok();
    let theirs = |name: &str| task.readlink(&format!("ns/{name}")).ok();
    let differs = |name| {
        theirs(name).map(|t| String::from_utf8_lossy(&t).into_owned()) != own(name).map(|o| o.display().to_string())
    };
    if !differs("user") || !differs("pid") {
        return None;
    }
    let inner = Status::new(task.read_text("status").ok()?).numbers("NSpid")?;
    let [_, inner] = inner[..] else { return None };
    // Up to the pid 1 of its namespace.
    let mut at = HostTid::new(pid)?;
    loop {
        let up = ProcDir::open(at).ok()?;
        if Status::new(up.read_text("status").ok()?).numbers("NSpid")?.last() == Some(&1) {
            let comm = Stat::parse(&up.read("stat").ok()?)?.comm;
            if comm != INIT_NAME.to_bytes() {
                return None;
            }
            break;
        }
        at = HostTid::new(Stat::parse(&up.read("stat").ok()?)?.ppid)?;
    }
    let kinds = [("user", libc::CLONE_NEWUSER), ("pid", libc::CLONE_NEWPID), ("mnt", libc::CLONE_NEWNS)];
    let mut namespaces = Vec::new();
    for (name, kind) in kinds {
        namespaces.push((task.open_file(&format!("ns/{name}")).ok()?, kind));
    }
    Some(Job { namespaces, inner: i32::try_from(inner).ok()? })
}

impl Job {
    /// Goes into the namespaces with a child, does `body` there, and gives its exit.
    pub(crate) fn inside(self, work_dir: &OwnedFd, body: impl FnOnce() -> Result<Exit>) -> Result<i32> {
        let enter = |kinds: i32| {
            let mut wanted = self.namespaces.iter().filter(|(_, kind)| kinds & kind != 0);
            wanted.try_for_each(|(namespace, kind)| process::set_namespace(namespace.as_fd(), *kind))
        };
        enter(libc::CLONE_NEWUSER | libc::CLONE_NEWPID)
            .during("entering the namespaces of the job")
            .map_err(|e| e.help("only its own user (or root) may dump a job of `crust run`"))?;
        match fork().during("starting a process inside the job")? {
            Fork::Parent(child) => {
                let all = [&HANDED_ON[..], &[libc::SIGCHLD]].concat();
                let pending = signals::signal_fd(&all).during("blocking signals")?;
                wait_for(child, &pending)
            }
            Fork::Child => {
                let tied = process::set_parent_death_signal(libc::SIGKILL).during("prctl PR_SET_PDEATHSIG");
                // The mounts last, and here only: the /proc in there does not know our parent.
                let entered = tied
                    .and_then(|()| enter(libc::CLONE_NEWNS).during("entering the mount namespace of the job"))
                    .and_then(|()| rustix::process::fchdir(work_dir).during("going back to the work directory"));
                let code = match entered.and_then(|()| body()) {
                    Ok(exit) => exit,
                    Err(e) => {
                        crate::commands::report(&e);
                        Exit::Failure
                    }
                };
                leave(code.code().into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> std::result::Result<Command, String> {
        Command::parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_command_line_of_run() {
        let plain = parsed(&["ls", "-d", "--", "x"]).unwrap();
        assert_eq!((plain.detach, plain.program.to_str(), plain.args.len()), (false, Some("ls"), 3));
        let full = parsed(&["-d", "--pidfile", "p", "--", "-odd", "a"]).unwrap();
        assert_eq!((full.detach, full.pidfile, full.args.len()), (true, Some(PathBuf::from("p")), 1));
        assert_eq!(full.program, "-odd");
        for wrong in [&[][..], &["--"], &["--pidfile"], &["--what", "ls"]] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn we_are_no_job() {
        assert!(job_of(i32::try_from(std::process::id()).unwrap()).is_none());
    }
}

//! `crust demo`: a running program frozen to disk through the socket-activated service, and brought back alive.
mod activator;
pub(crate) mod sample;
mod show;

use crate::exit::Exit;
use crate::stats::PHASE;
use crust_engine::{Error, Kind, OnObject, Result, ResultExt};
use crust_kernel::HostTid;
use crust_kernel::fork::{Fork, fork};
use crust_rpc::{Client, Opts};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use show::Show;
use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything here may take at most.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the demonstration.
pub(crate) fn run(args: &[OsString]) -> Exit {
    if !args.is_empty() {
        log::error!("`crust demo` takes no arguments");
        return Exit::Failure;
    }
    let show = Show::new();
    let outcome = if rustix::process::geteuid().is_root() { demonstrate(&show) } else { rootless(&show) };
    match outcome {
        Ok(exit) => exit,
        Err(e) => {
            show.failed(&e);
            Exit::Failure
        }
    }
}

/// An ordinary user has no rights over pids, but is root in namespaces of its own.
fn rootless(show: &Show) -> Result<Exit> {
    show.note("not root: going on in a user, pid and mount namespace of our own");
    crust_kernel::unshare::own_namespaces().during("making namespaces of our own").map_err(|e| {
        e.help("run as root, or allow user namespaces (kernel.unprivileged_userns_clone, apparmor_restrict_unprivileged_userns)")
    })?;
    match fork().during("starting the first process of the pid namespace")? {
        Fork::Parent(child) => {
            let status = wait(child)?;
            Ok(if status == Some(0) { Exit::Good } else { Exit::Failure })
        }
        Fork::Child => {
            let exit = match crate::rootless::own_proc().and_then(|()| demonstrate(show)) {
                Ok(exit) => exit,
                Err(e) => {
                    show.failed(&e);
                    Exit::Failure
                }
            };
            #[allow(clippy::exit, reason = "a forked child must never return into its parent's code")]
            std::process::exit(exit.code().into())
        }
    }
}

/// Everything that must be gone at the end, whatever happens.
struct Stage {
    dir: PathBuf,
    service: Option<HostTid>,
    sample: Option<HostTid>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        for pid in [self.sample.take(), self.service.take()].into_iter().flatten() {
            end(pid, Signal::KILL);
        }
        if let Err(e) = fs::remove_dir_all(&self.dir) {
            log::warn!("{} cannot be removed: {e}", self.dir.display());
        }
    }
}

impl Stage {
    fn new() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("crust-demo-{}", std::process::id()));
        let name = dir.display().to_string();
        fs::DirBuilder::new().mode(0o700).create(&dir).during("making a directory").on_path(&name)?;
        let stage = Self { dir, service: None, sample: None };
        fs::create_dir(stage.images()).during("making the image directory").on_path(&name)?;
        Ok(stage)
    }

    fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("service.socket")
    }

    /// The sample's last line, as soon as `good` likes it.
    fn status(&self, good: impl Fn(&Status) -> bool) -> Result<Status> {
        let file = self.dir.join("status");
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = fs::read_to_string(&file).ok().as_deref().and_then(Status::parse)
                && good(&status)
            {
                return Ok(status);
            }
            interrupted()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        let seen = fs::read_to_string(&file).unwrap_or_default();
        Err(Error::new(Kind::Timeout, format!("the sample does not go on; its last line: {}", seen.trim())))
    }

    fn opts(&self, dir: &OwnedFd, log: &str) -> Opts {
        Opts {
            images_dir_fd: Some(dir.as_raw_fd()),
            log_file: Some(log.into()),
            log_level: Some(4),
            notify_scripts: Some(true),
            ..Opts::default()
        }
    }

    /// Name and time of each step, from the log that the service wrote.
    fn phases(&self, log: &str) -> Vec<(String, Duration)> {
        let text = fs::read_to_string(self.images().join(log)).unwrap_or_default();
        let phase = |line: &str| {
            let (name, time) = line.split_once(PHASE)?.1.split_once(": ")?;
            Some((name.to_owned(), Duration::from_micros(time.strip_suffix(" us")?.parse().ok()?)))
        };
        text.lines().filter_map(phase).collect()
    }
}

/// A line of the sample.
#[derive(Clone, Debug)]
struct Status {
    count: u64,
    hash: u64,
    rounds: u64,
    ticks: u64,
    state: String,
}

impl Status {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let mut after = |name: &str| if words.next()? == name { words.next() } else { None };
        Some(Self {
            count: after("count")?.parse().ok()?,
            hash: u64::from_str_radix(after("hash")?, 16).ok()?,
            rounds: after("rounds")?.parse().ok()?,
            ticks: after("ticks")?.parse().ok()?,
            state: after("state")?.to_owned(),
        })
    }

    /// What a program that was never stopped would say at this count.
    fn is_right(&self) -> bool {
        (1..=self.count).fold(0, sample::step) == self.hash && self.state == "good"
    }
}

fn demonstrate(show: &Show) -> Result<Exit> {
    crust_kernel::signals::catch(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP]).during("catching signals")?;
    let mut stage = Stage::new()?;
    // The restored program becomes the child of whoever is left: we want to see its end.
    let me = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(me)).during("becoming a subreaper")?;

    let service = start_service(show, &mut stage)?;
    let pid = start_sample(show, &mut stage)?;
    let images = crate::commands::open_dir(&stage.images())?;
    let frozen = checkpoint(show, &stage, pid, &images)?;
    must_be_gone(show, &mut stage, pid)?;
    restore(show, &mut stage, pid, &images)?;
    goes_on(show, &mut stage, pid, &frozen)?;
    end(service, Signal::TERM);
    match wait(service)? {
        Some(0) => {}
        other => return Err(Error::new(Kind::Internal, format!("the service ended with {other:?}"))),
    }
    stage.service = None;
    show.done();
    Ok(Exit::Good)
}

fn start_service(show: &Show, stage: &mut Stage) -> Result<HostTid> {
    show.title("1  A service that sleeps until it is called");
    let service = activator::start(&stage.socket(), &stage.dir.join("service.log")).during("listening")?;
    stage.service = Some(service);
    show.fact("socket", &stage.socket().display().to_string());
    show.fact("held by", &format!("a small activator, pid {service}; {} does not run yet", "crust service"));
    Ok(service)
}

fn start_sample(show: &Show, stage: &mut Stage) -> Result<HostTid> {
    show.title("2  A program at work");
    // Not waited for by this handle: its pid is all we keep.
    let sample = Command::new("/proc/self/exe")
        .arg("demo-sample")
        .args([stage.dir.join("status"), stage.dir.join("journal")])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .during("starting the sample")?;
    let pid = i32::try_from(sample.id()).ok().and_then(HostTid::new);
    let pid = pid.ok_or_else(|| Error::new(Kind::Internal, "the sample has no pid"))?;
    stage.sample = Some(pid);
    let before = stage.status(|s| s.count >= 20_000 && s.rounds >= 20)?;
    show.fact("pid", &format!("{pid}, 5 threads, a pipe with a letter in it, an open file, a timer, 16 MiB it hashes"));
    show.progress(&before);
    Ok(pid)
}

/// What the sample said last.
fn checkpoint(show: &Show, stage: &Stage, pid: HostTid, images: &OwnedFd) -> Result<Status> {
    show.title("3  Checkpoint, by the first request the service ever gets");
    let mut seen = Vec::new();
    let start = Instant::now();
    let mut client = connect(stage)?;
    let mut opts = stage.opts(images, "dump.log");
    opts.pid = Some(pid.as_raw());
    client.dump(opts, |n| note(&mut seen, start, n.script)).map_err(|e| told(stage, "dump.log", &e))?;
    let took = start.elapsed();
    show.fact("events", &steps(&seen));
    show.table(&stage.phases("dump.log"), took, "request until reply, with the start of the service");
    last(stage)
}

fn must_be_gone(show: &Show, stage: &mut Stage, pid: HostTid) -> Result<()> {
    show.title("4  Gone");
    let status = wait(pid)?;
    stage.sample = None;
    let gone = !Path::new(&format!("/proc/{pid}")).exists();
    if !gone || status.is_some() {
        return Err(Error::new(Kind::Internal, format!("pid {pid} is still there after the checkpoint")));
    }
    show.fact("pid", &format!("{pid} was killed and does not exist any more"));
    show.fact("images", &sizes(&stage.images())?);
    Ok(())
}

fn restore(show: &Show, stage: &mut Stage, pid: HostTid, images: &OwnedFd) -> Result<()> {
    show.title("5  Restore");
    let mut seen = Vec::new();
    let start = Instant::now();
    let mut client = connect(stage)?;
    let opts = stage.opts(images, "restore.log");
    let restored =
        client.restore(opts, |n| note(&mut seen, start, n.script)).map_err(|e| told(stage, "restore.log", &e))?;
    let took = start.elapsed();
    stage.sample = HostTid::new(restored);
    show.fact("events", &steps(&seen));
    show.table(&stage.phases("restore.log"), took, "request until reply");
    if restored != pid.as_raw() {
        return Err(Error::new(Kind::Internal, format!("pid {pid} came back as {restored}")));
    }
    Ok(())
}

/// The sample goes on from what it said last, and ends well.
fn goes_on(show: &Show, stage: &mut Stage, pid: HostTid, frozen: &Status) -> Result<()> {
    show.title("6  Alive, and knows nothing of it");
    let after = stage.status(|s| s.count > frozen.count + 20_000 && s.rounds > frozen.rounds + 4)?;
    show.fact("pid", &format!("{pid}, the same"));
    show.progress(frozen);
    show.progress(&after);
    if !after.is_right() || after.ticks <= frozen.ticks {
        return Err(Error::new(Kind::Internal, format!("the sample came back wrong: {after:?}")));
    }
    show.fact("hash", "what a program that was never stopped has at this count");
    end(pid, Signal::TERM);
    match wait(pid)? {
        Some(0) => show.fact("end", "it checked its whole history, found it right, and ended well"),
        other => return Err(Error::new(Kind::Internal, format!("the sample ended with {other:?}"))),
    }
    stage.sample = None;
    Ok(())
}

fn connect(stage: &Stage) -> Result<Client> {
    Client::connect(&stage.socket()).map_err(|e| Error::new(Kind::Internal, e.to_string()))
}

fn note(seen: &mut Vec<(String, Duration)>, start: Instant, script: String) -> bool {
    seen.push((script, start.elapsed()));
    true
}

fn steps(seen: &[(String, Duration)]) -> String {
    seen.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" → ")
}

/// The service's answer, with the end of its log if that says more.
fn told(stage: &Stage, log: &str, e: &crust_rpc::Error) -> Error {
    let tail = |path: PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(8)..).unwrap_or_default().join("\n    ")
    };
    Error::new(Kind::Internal, e.to_string()).help(format!(
        "the end of {log}:\n    {}\n  the end of the service's log:\n    {}",
        tail(stage.images().join(log)),
        tail(stage.dir.join("service.log")),
    ))
}

fn last(stage: &Stage) -> Result<Status> {
    stage.status(|_| true)
}

fn sizes(dir: &Path) -> Result<String> {
    let name = dir.display().to_string();
    let (mut count, mut bytes, mut on_disk) = (0, 0, 0);
    for entry in fs::read_dir(dir).during("listing the images").on_path(&name)? {
        let meta = entry.and_then(|e| e.metadata()).during("listing the images").on_path(&name)?;
        (count, bytes, on_disk) = (count + 1, bytes + meta.len(), on_disk + meta.blocks() * 512);
    }
    Ok(format!("{count} files, {:.1} MiB, {:.1} MiB on disk", mib(bytes), mib(on_disk)))
}

#[allow(clippy::cast_precision_loss, reason = "a size for people, with one digit after the point")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Ctrl-C must not leave anything behind: an error unwinds through [`Stage`].
fn interrupted() -> Result<()> {
    match crust_kernel::signals::caught() {
        Some(signal) => Err(Error::new(Kind::Cancelled, format!("interrupted by signal {signal}"))),
        None => Ok(()),
    }
}

fn end(pid: HostTid, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.as_raw())
        && let Err(e) = kill_process(pid, signal)
    {
        log::debug!("{pid:?}: {e}");
    }
}

/// Waits for a child's end, not for ever; its exit code, or `None` if a signal ended it.
fn wait(pid: HostTid) -> Result<Option<i32>> {
    let raw = Pid::from_raw(pid.as_raw());
    let start = Instant::now();
    loop {
        match waitpid(raw, WaitOptions::NOHANG).during("waiting for a process")? {
            Some((_, status)) => return Ok(status.exit_status()),
            None if start.elapsed() > 2 * PATIENCE => {
                return Err(Error::new(Kind::Timeout, format!("process {pid} does not end")));
            }
            None => {
                interrupted()?;
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

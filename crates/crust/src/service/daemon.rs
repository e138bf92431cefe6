//! `crust service`: one single-threaded loop that accepts, and a worker process for each connection.
use super::listen::{self, Listener};
use super::worker::{Mode, Worker};
use crate::cli::Invocation;
use crate::cli::settings::Settings;
use crate::exit::Exit;
use crate::{commands, logging};
use crust_engine::{Error, Kind, OnObject, Result, ResultExt};
use crust_kernel::fork::{Fork, fork};
use crust_kernel::peer::peer_cred;
use crust_kernel::{inherited, signals};
use crust_rpc::Connection;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use sd_daemon::NotifyState;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where CRIU's clients look without being told.
const DEFAULT_ADDRESS: &str = "./criu_service.socket";
/// Workers at once, over all callers. More connections wait in the socket's queue.
const MAX_WORKERS: usize = 256;
/// Workers at once for one ordinary user, so that none can keep the others out.
const MAX_WORKERS_OF_USER: usize = 32;
/// How long running requests may take to end when we are told to stop. systemd's default is 90 s.
const STOP_TIME: Duration = Duration::from_secs(60);
/// Signals the loop waits for.
const SIGNALS: [i32; 4] = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Runs the service until SIGTERM.
pub(crate) fn serve(invocation: Invocation) -> Exit {
    let outcome = match start(invocation.settings) {
        Ok(Some(service)) => service.run(),
        // The process that was started has done its part: the daemon runs.
        Ok(None) => Ok(Exit::Good),
        Err(e) => Err(e),
    };
    match outcome {
        Ok(exit) => exit,
        Err(e) => {
            commands::report(&e);
            let text = e.headline().replace('\n', " ");
            tell(&[NotifyState::status(text)]);
            Exit::Failure
        }
    }
}

/// Messages to the service manager are best effort: it may not be there, or not listen.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_daemon::notify(false, state) {
        log::warn!("the service manager cannot be told: {e}");
    }
}

struct Service {
    listener: Listener,
    signals: OwnedFd,
    /// Worker processes and the users they work for.
    workers: BTreeMap<i32, u32>,
    log_file: Option<PathBuf>,
    watchdog: Option<Duration>,
    pidfile: Option<PathBuf>,
}

/// Everything up to the moment when clients are welcome.
fn start(mut s: Settings) -> Result<Option<Service>> {
    let status_fd = s.status_fd.map(inherited::take).transpose().during("taking --status-fd").map_err(as_request)?;
    for fd in std::mem::take(&mut s.close_fds) {
        drop(inherited::take(fd));
    }
    let passed = listen::inherited()?;
    if let Some(dir) = s.work_dir.as_ref().or(s.images_dir.as_ref()) {
        std::env::set_current_dir(dir).during("changing to the work directory").on_path(&dir.display().to_string())?;
    }
    logging::set_journal(sd_daemon::is_journal_stream(std::io::stderr()));
    if let Some(file) = s.log_file.as_deref() {
        if file == Path::new("-") {
            logging::set_sink(logging::Sink::Stdout);
        } else {
            logging::open_file(file).during("opening the log file").on_path(&file.display().to_string())?;
            logging::set_journal(false);
        }
    }
    let listener = match passed {
        Some(listener) => listener,
        None => {
            let address = s.address.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_ADDRESS));
            listen::bound(&address, s.socket_mode)?
        }
    };
    let flags = rustix::fs::fcntl_getfl(&listener.socket).during("asking for the socket's flags")?;
    rustix::fs::fcntl_setfl(&listener.socket, flags | rustix::fs::OFlags::NONBLOCK)
        .during("making the socket non-blocking")?;

    let mut pidfile = s.engine.pidfile.as_deref().map(create_pidfile).transpose()?;
    if s.detached && background(&mut pidfile)? {
        return Ok(None);
    }
    if !s.detached {
        write_pid(&mut pidfile, std::process::id())?;
    }
    let service = Service {
        listener,
        signals: signals::signal_fd(&SIGNALS).during("waiting for signals")?,
        workers: BTreeMap::new(),
        log_file: s.log_file.filter(|f| f != Path::new("-")).and_then(|f| std::path::absolute(f).ok()),
        watchdog: sd_daemon::watchdog_enabled(true).unwrap_or_else(|e| {
            log::warn!("WATCHDOG_USEC: {e}");
            None
        }),
        pidfile: s.engine.pidfile.and_then(|f| std::path::absolute(f).ok()),
    };
    if let Some(fd) = status_fd {
        rustix::io::write(&fd, &[0]).during("writing to --status-fd")?;
    }
    log::info!("serving on {}", service.listener.describe());
    tell(&[NotifyState::Ready, NotifyState::status(format!("Serving on {}", service.listener.describe()))]);
    Ok(Some(service))
}

fn as_request(e: Error) -> Error {
    e.kind_is(Kind::BadRequest)
}

/// A pid file must be new: whoever left an old one may still run.
fn create_pidfile(path: &Path) -> Result<std::fs::File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .during("creating the pid file")
        .on_path(&path.display().to_string())
}

fn write_pid(file: &mut Option<std::fs::File>, pid: u32) -> Result<()> {
    match file {
        Some(file) => write!(file, "{pid}").during("writing the pid file"),
        None => Ok(()),
    }
}

/// Goes on as a daemon. True in the process that was started, which then ends: by then the socket is bound and the
/// pid file written, so that its caller can connect at once.
fn background(pidfile: &mut Option<std::fs::File>) -> Result<bool> {
    if let Fork::Parent(child) = fork().during("going into the background")? {
        write_pid(pidfile, child.as_raw().unsigned_abs())?;
        return Ok(true);
    }
    rustix::process::setsid().during("starting a session")?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty()).during("opening /dev/null")?;
    rustix::stdio::dup2_stdin(&null).during("leaving standard input")?;
    rustix::stdio::dup2_stdout(&null).during("leaving standard output")?;
    rustix::stdio::dup2_stderr(&null).during("leaving standard error")?;
    Ok(false)
}

impl Service {
    fn run(mut self) -> Result<Exit> {
        let beat = self.watchdog.map(|w| w / 2);
        loop {
            let room = self.workers.len() < MAX_WORKERS;
            let wanted = if room { PollFlags::IN } else { PollFlags::empty() };
            let mut fds = [PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.listener.socket, wanted)];
            match poll(&mut fds, beat.and_then(|b| Timespec::try_from(b).ok()).as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e).during("waiting for connections"),
            }
            let (signal, connection) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if beat.is_some() {
                tell(&[NotifyState::Watchdog]);
            }
            if signal {
                while let Some(signal) = signals::take(&self.signals).during("reading a signal")? {
                    match signal {
                        libc::SIGCHLD => self.reap(),
                        libc::SIGHUP => self.reload(),
                        _ => return Ok(self.stop(signal)),
                    }
                }
            }
            if connection && room {
                self.accept()?;
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        let socket = match accept_with(&self.listener.socket, SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            // The client is gone already, or will be served in the next round.
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => return Ok(()),
            Err(e @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                log::warn!("a connection must wait: {e}");
                std::thread::sleep(Duration::from_millis(100));
                return Ok(());
            }
            Err(e) => return Err(e).during("accepting a connection"),
        };
        let uid = match peer_cred(&socket) {
            Ok(cred) => cred.uid,
            Err(e) => {
                log::warn!("a caller without a name is turned away: {e}");
                return Ok(());
            }
        };
        let same = self.workers.values().filter(|u| **u == uid).count();
        if uid != 0 && same >= MAX_WORKERS_OF_USER {
            log::warn!("user {uid} has {same} connections open; one more is turned away");
            return Ok(());
        }
        match fork() {
            Ok(Fork::Child) => {
                let code = self.be_worker(socket);
                #[allow(clippy::exit, reason = "a forked worker must never return into the parent's loop")]
                std::process::exit(code.code().into())
            }
            Ok(Fork::Parent(pid)) => {
                log::debug!("worker {pid} serves user {uid}");
                self.workers.insert(pid.as_raw(), uid);
            }
            Err(e) => log::error!("no worker can be started: {e}"),
        }
        Ok(())
    }

    /// In the child: lets go of what is the service's, and serves the one connection.
    fn be_worker(&mut self, socket: OwnedFd) -> Exit {
        let reset = signals::catch(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])
            .and_then(|()| signals::set_default(&[libc::SIGCHLD]))
            .and_then(|()| signals::unblock(&SIGNALS));
        if let Err(e) = reset {
            log::error!("signals cannot be reset: {e}");
            return Exit::Failure;
        }
        // The listening socket must not live on in a worker: a stopped service would still be connected to.
        if let Err(e) = self.let_go() {
            log::error!("the service's descriptors cannot be let go of: {e}");
            return Exit::Failure;
        }
        Worker::new(Connection::new(socket), Mode::Service).serve(None)
    }

    /// Puts /dev/null in the place of the service's own descriptors.
    fn let_go(&mut self) -> std::io::Result<()> {
        let null = OwnedFd::from(std::fs::File::open("/dev/null")?);
        self.signals = null.try_clone()?;
        self.listener.socket = null;
        Ok(())
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = waitpid(None, WaitOptions::NOHANG) {
            if self.workers.remove(&pid.as_raw_pid()).is_some() {
                match status.exit_status() {
                    Some(code) => log::debug!("worker {} ended with {code}", pid.as_raw_pid()),
                    None => log::warn!("worker {} was killed: {status:?}", pid.as_raw_pid()),
                }
            }
        }
    }

    /// Nothing but the log file can change while we run.
    fn reload(&mut self) {
        tell(&[NotifyState::Reloading]);
        if let Some(file) = &self.log_file {
            // A rotated log must not lose what the new one already holds.
            match OpenOptions::new().append(true).create(true).mode(0o600).open(file) {
                Ok(file) => logging::set_sink(logging::Sink::File(file)),
                Err(e) => log::error!("{}: the log file cannot be opened again: {e}", file.display()),
            }
        }
        tell(&[NotifyState::Ready]);
    }

    /// Running requests are told to end, which rolls them back; none is left with a frozen tree.
    fn stop(mut self, signal: i32) -> Exit {
        log::info!("signal {signal}: stopping with {} requests running", self.workers.len());
        tell(&[NotifyState::Stopping, NotifyState::status("Waiting for running requests")]);
        self.listener.remove();
        if let Some(file) = &self.pidfile
            && let Err(e) = std::fs::remove_file(file)
        {
            log::debug!("{}: {e}", file.display());
        }
        let deadline = Instant::now() + STOP_TIME;
        for pid in self.workers.keys().filter_map(|pid| Pid::from_raw(*pid)) {
            if let Err(e) = kill_process(pid, Signal::TERM) {
                log::debug!("worker {}: {e}", pid.as_raw_pid());
            }
        }
        while !self.workers.is_empty() && Instant::now() < deadline {
            let mut fds = [PollFd::new(&self.signals, PollFlags::IN)];
            let time = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
            if let Err(e) = poll(&mut fds, Some(&time))
                && e != Errno::INTR
            {
                break;
            }
            while let Ok(Some(_)) = signals::take(&self.signals) {}
            self.reap();
        }
        if !self.workers.is_empty() {
            log::error!("{} requests did not end in {} s and are left alone", self.workers.len(), STOP_TIME.as_secs());
            return Exit::Failure;
        }
        Exit::Good
    }
}

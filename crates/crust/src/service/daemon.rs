//! `crust service`: one single-threaded loop that accepts, and a worker process for each connection.
use super::handover;
use super::listen::{self, Listener, Passed};
use super::worker::{Mode, Times, Worker};
use crate::cli::Invocation;
use crate::cli::settings::Settings;
use crate::exit::Exit;
use crate::{cli, commands, logging};
use crust_engine::cleanup::{self, Found};
use crust_engine::{Error, Kind, OnObject, Result, ResultExt};
use crust_kernel::fork::{Fork, fork};
use crust_kernel::peer::peer_cred;
use crust_kernel::{inherited, signals};
use crust_rpc::{Connection, RequestType, Response};
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
/// As many of them are left for root.
const RESERVED_FOR_ROOT: usize = 32;
/// Workers at once for one ordinary user, so that none can keep the others out.
const MAX_WORKERS_OF_USER: usize = 32;
/// How much longer than its own deadline a worker may live, at the most: as long again. Its caller may have stopped it:
/// they are the same user.
const OVERDUE: Duration = Duration::from_secs(60);
/// And at the least.
const LEAST_OVERDUE: Duration = Duration::from_secs(5);
/// How long requests that were told to roll back may need for it.
const ROLL_BACK_TIME: Duration = Duration::from_secs(20);
/// How long nothing is accepted after the system had no room for one more client.
const BREATH: Duration = Duration::from_millis(100);
/// How often people are told how many requests run.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// Signals the loop waits for.
const SIGNALS: [i32; 4] = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Runs the service until SIGTERM.
pub(crate) fn serve(invocation: Invocation) -> Exit {
    let outcome = match start(invocation.settings) {
        Ok(Started::Service(service)) => service.run(),
        Ok(Started::Client(client)) => serve_one(client),
        // The process that was started has done its part: the daemon runs.
        Ok(Started::Elsewhere) => Ok(Exit::Good),
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

/// What a start leads to.
enum Started {
    Service(Box<Service>),
    /// The manager accepts, and started us for one client.
    Client(One),
    Elsewhere,
}

/// What there is to do if we were started for one client.
struct One {
    socket: OwnedFd,
    times: Times,
    restorer: Option<PathBuf>,
    handed_over: bool,
}

/// A worker process, for its service.
struct Client {
    uid: u32,
    since: Instant,
}

struct Service {
    listener: Listener,
    signals: OwnedFd,
    workers: BTreeMap<i32, Client>,
    log_file: Option<PathBuf>,
    times: Times,
    restorer: Option<PathBuf>,
    idle_timeout: Option<Duration>,
    /// Since when nobody is served.
    idle_since: Instant,
    watchdog: Option<Watchdog>,
    /// Nothing is accepted before.
    pause: Option<Instant>,
    status: Status,
}

/// The heartbeat. It stops when the loop cannot do its work any more, so that the service manager starts us anew.
struct Watchdog {
    every: Duration,
    next: Instant,
}

/// What `systemctl status` shows.
struct Status {
    served: u64,
    told: String,
    next: Instant,
}

impl Status {
    /// The line to be told, if it is a new one.
    fn news(&self, place: &str, running: usize) -> Option<String> {
        let text = match (running, self.served) {
            (0, 0) => format!("Serving on {place}"),
            (0, served) => format!("Serving on {place}; {served} connections so far"),
            (running, served) => format!("Serving on {place}; {running} requests running, {served} connections so far"),
        };
        (text != self.told).then_some(text)
    }

    /// The same, once people have had time to read the last one.
    fn due(&mut self, place: &str, running: usize, now: Instant) -> Option<String> {
        let text = self.news(place, running).filter(|_| now >= self.next)?;
        self.next = now + STATUS_EVERY;
        self.told.clone_from(&text);
        Some(text)
    }
}

/// Everything up to the moment when clients are welcome.
fn start(mut s: Settings) -> Result<Started> {
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
    let times = Times { request: s.request_timeout, stop: s.stop_timeout };
    let listener = match passed {
        Some(Passed::Connection(socket)) => {
            return Ok(Started::Client(One { socket, times, restorer: s.restore_via, handed_over: s.handed_over }));
        }
        Some(Passed::Listener(listener)) => listener,
        None => {
            let address = s.address.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_ADDRESS));
            listen::bound(&address, s.socket_mode)?
        }
    };
    let flags = rustix::fs::fcntl_getfl(&listener.socket).during("asking for the socket's flags")?;
    rustix::fs::fcntl_setfl(&listener.socket, flags | rustix::fs::OFlags::NONBLOCK)
        .during("making the socket non-blocking")?;
    if s.idle_timeout.is_some() && !listener.is_activated() {
        log::warn!("--idle-timeout is for socket activation: nobody would start this service again, so it stays");
    }

    let mut pidfile = s.engine.pidfile.as_deref().map(create_pidfile).transpose()?;
    if s.detached && background(&mut pidfile)? {
        return Ok(Started::Elsewhere);
    }
    if !s.detached {
        write_pid(&mut pidfile, std::process::id())?;
    }
    let now = Instant::now();
    let watchdog = sd_daemon::watchdog_enabled(true).unwrap_or_else(|e| {
        log::warn!("WATCHDOG_USEC: {e}");
        None
    });
    let mut service = Service {
        listener,
        signals: signals::signal_fd(&SIGNALS).during("waiting for signals")?,
        workers: BTreeMap::new(),
        log_file: s.log_file.filter(|f| f != Path::new("-")).and_then(|f| std::path::absolute(f).ok()),
        times,
        restorer: s.restore_via,
        idle_timeout: s.idle_timeout,
        idle_since: now,
        watchdog: watchdog.map(|limit| Watchdog { every: limit / 2, next: now }),
        pause: None,
        status: Status { served: 0, told: String::new(), next: now },
    };
    if let Some(fd) = status_fd {
        rustix::io::write(&fd, &[0]).during("writing to --status-fd")?;
    }
    let place = service.listener.describe();
    log::info!("serving on {place}");
    let text = service.status.due(&place, 0, now).unwrap_or_default();
    tell(&[NotifyState::Ready, NotifyState::Status(text.into())]);
    Ok(Started::Service(Box::new(service)))
}

/// The manager has accepted for us: this process is the worker of that one client, and no more.
fn serve_one(one: One) -> Result<Exit> {
    signals::catch(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]).during("waiting for signals")?;
    tell(&[NotifyState::Ready, NotifyState::status("Serving one client")]);
    let mode = Mode::Service(one.times);
    let exit = match one.handed_over {
        true => {
            let (request, connection) = handover::take(one.socket)?;
            Worker::new(connection, mode).serve_taken(request)
        }
        false => Worker::new(Connection::new(one.socket), mode).restoring_at(one.restorer).serve(None),
    };
    log::debug!("the client's last request ended with {}", exit.code());
    tell(&[NotifyState::Stopping]);
    // What a client asks for in vain is no failure of this unit.
    Ok(Exit::Good)
}

fn as_request(e: Error) -> Error {
    e.kind_is(Kind::BadRequest)
}

/// A pid file must be new: whoever left an old one may still run. One whose process is gone makes way: a service leaves
/// its own behind, for whoever stopped it to remove.
fn create_pidfile(path: &Path) -> Result<std::fs::File> {
    if let Some(Found { removed: Some(done), .. }) = cleanup::pidfile(path, false) {
        done?;
    }
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

/// How long a loop that must act at `at` may sleep.
fn until(at: Instant, now: Instant) -> Duration {
    // One millisecond more: a poll that returns early would spin.
    at.saturating_duration_since(now) + Duration::from_millis(1)
}

impl Service {
    fn run(mut self) -> Result<Exit> {
        loop {
            let now = Instant::now();
            self.beat(now);
            self.kill_overdue(now);
            if self.pause.is_some_and(|until| now >= until) {
                self.pause = None;
            }
            if let Some(text) = self.status.due(&self.listener.describe(), self.workers.len(), now) {
                tell(&[NotifyState::Status(text.into())]);
            }
            let idle_end = self.idle_end();
            if idle_end.is_some_and(|end| now >= end) && !self.is_wanted() {
                return Ok(self.end_idle());
            }

            let room = self.workers.len() < MAX_WORKERS && self.pause.is_none();
            let wanted = if room { PollFlags::IN } else { PollFlags::empty() };
            let mut fds = [PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.listener.socket, wanted)];
            let time = Timespec::try_from(self.next_wake(now, idle_end)).ok();
            match poll(&mut fds, time.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e).during("waiting for connections"),
            }
            let (signal, connection) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
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

    /// How long the loop may sleep when nobody wakes it.
    fn next_wake(&self, now: Instant, idle_end: Option<Instant>) -> Duration {
        let beat = self.watchdog.as_ref().map(|w| w.next);
        let overdue = self.workers.values().map(|c| c.since).min().map(|since| since + self.overdue());
        let news = self.status.news(&self.listener.describe(), self.workers.len());
        let status = news.map(|_| self.status.next);
        let all = [beat, overdue, status, idle_end, self.pause];
        all.into_iter().flatten().map(|at| until(at, now)).min().unwrap_or(Duration::from_secs(3600))
    }

    /// Tells the service manager that this loop lives. While clients cannot be taken in for want of descriptors,
    /// memory or processes, it does not: a new service may fare better.
    fn beat(&mut self, now: Instant) {
        let Some(watchdog) = &mut self.watchdog else { return };
        if now >= watchdog.next && self.pause.is_none() {
            watchdog.next = now + watchdog.every;
            tell(&[NotifyState::Watchdog]);
        }
    }

    /// When we end for want of work. `None`: not now, or never.
    fn idle_end(&self) -> Option<Instant> {
        let limit = self.idle_timeout.filter(|_| self.workers.is_empty() && self.listener.is_activated())?;
        Some(self.idle_since + limit)
    }

    /// True if somebody waits to be accepted.
    fn is_wanted(&self) -> bool {
        let mut fds = [PollFd::new(&self.listener.socket, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) != Ok(0)
    }

    /// Nobody is served and nobody waits. Who connects from now on stays in the queue of the socket, which the service
    /// manager holds open: it sees that the queue is not empty and starts us again.
    fn end_idle(self) -> Exit {
        log::info!("idle: ending until the next connection");
        tell(&[NotifyState::Stopping, NotifyState::status("Idle, waiting for the next connection")]);
        Exit::Good
    }

    fn overdue(&self) -> Duration {
        self.times.request + self.times.request.clamp(LEAST_OVERDUE, OVERDUE)
    }

    /// A worker ends at its own deadline. One that does not, because its caller has stopped it or a system call hangs,
    /// must not hold its place for ever. What it has stopped goes on: that is how we stop tasks.
    fn kill_overdue(&self, now: Instant) {
        let limit = self.overdue();
        for (pid, client) in self.workers.iter().filter(|(_, c)| now.saturating_duration_since(c.since) > limit) {
            log::error!("worker {pid} of user {} is overdue and killed", client.uid);
            if let Some(pid) = Pid::from_raw(*pid)
                && let Err(e) = kill_process(pid, Signal::KILL)
            {
                log::error!("worker {}: {e}", pid.as_raw_pid());
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
                self.pause = Some(Instant::now() + BREATH);
                return Ok(());
            }
            Err(e) => return Err(e).during("accepting a connection"),
        };
        let connection = Connection::new(socket);
        let uid = match peer_cred(&connection) {
            Ok(cred) => cred.uid,
            Err(e) => {
                log::warn!("a caller without a name is turned away: {e}");
                return Ok(());
            }
        };
        if let Some(why) = self.too_many(uid) {
            turn_away(&connection, &why);
            return Ok(());
        }
        match fork() {
            Ok(Fork::Child) => {
                let code = self.be_worker(connection);
                #[allow(clippy::exit, reason = "a forked worker must never return into the parent's loop")]
                std::process::exit(code.code().into())
            }
            Ok(Fork::Parent(pid)) => {
                log::debug!("worker {pid} serves user {uid}");
                self.status.served += 1;
                self.workers.insert(pid.as_raw(), Client { uid, since: Instant::now() });
            }
            Err(e) => {
                log::error!("no worker can be started: {e}");
                turn_away(&connection, "the service cannot start a process for you");
                self.pause = Some(Instant::now() + BREATH);
            }
        }
        Ok(())
    }

    /// Why this user must come later. Root, and whoever runs this service, may fill it up.
    fn too_many(&self, uid: u32) -> Option<String> {
        let is_guest = |uid: u32| uid != 0 && uid != rustix::process::geteuid().as_raw();
        if !is_guest(uid) {
            return None;
        }
        let same = self.workers.values().filter(|c| c.uid == uid).count();
        if same >= MAX_WORKERS_OF_USER {
            return Some(format!("user {uid} has {same} connections open already"));
        }
        let guests = self.workers.values().filter(|c| is_guest(c.uid)).count();
        (guests >= MAX_WORKERS - RESERVED_FOR_ROOT).then(|| "the service is busy".to_owned())
    }

    /// In the child: lets go of what is the service's, and serves the one connection.
    fn be_worker(&mut self, connection: Connection) -> Exit {
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
        Worker::new(connection, Mode::Service(self.times)).restoring_at(self.restorer.clone()).serve(None)
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
                self.idle_since = Instant::now();
                match status.exit_status() {
                    Some(code) => log::debug!("worker {} ended with {code}", pid.as_raw_pid()),
                    None => log::warn!("worker {} was killed: {status:?}", pid.as_raw_pid()),
                }
            }
        }
    }

    /// Reads the configuration files once more. Log, level and times may change while we run; a file that is wrong now
    /// changes nothing.
    fn reload(&mut self) {
        tell(&[NotifyState::Reloading]);
        let outcome = cli::reread();
        match outcome {
            Ok(s) => {
                logging::set_level(s.log_level);
                self.times = Times { request: s.request_timeout, stop: s.stop_timeout };
                self.idle_timeout = s.idle_timeout;
                self.log_file = s.log_file.filter(|f| f != Path::new("-")).and_then(|f| std::path::absolute(f).ok());
                log::info!("configuration read again");
            }
            Err(why) => {
                log::error!("the configuration is left as it was: {why}");
                self.status.told = format!("Reload failed: {}", why.replace('\n', " "));
                tell(&[NotifyState::status(self.status.told.clone())]);
                // Stays to be read for a while.
                self.status.next = Instant::now() + 10 * STATUS_EVERY;
            }
        }
        if let Some(file) = &self.log_file {
            // A rotated log must not lose what the new one already holds.
            match OpenOptions::new().append(true).create(true).mode(0o600).open(file) {
                Ok(file) => logging::set_sink(logging::Sink::File(file)),
                Err(e) => log::error!("{}: the log file cannot be opened again: {e}", file.display()),
            }
        }
        tell(&[NotifyState::Ready]);
    }

    /// Running requests go on to their end for the stop time and roll back then; workers without one end at once.
    /// None is left with a frozen tree.
    fn stop(mut self, signal: i32) -> Exit {
        log::info!("signal {signal}: stopping with {} requests running", self.workers.len());
        tell(&[NotifyState::Stopping, NotifyState::status("Waiting for running requests")]);
        self.listener.remove();
        // From here on a connection is refused, or waits for the next service if the socket is the manager's.
        if let Err(e) = self.close_listener() {
            log::warn!("the listening socket cannot be closed yet: {e}");
        }
        for pid in self.workers.keys().filter_map(|pid| Pid::from_raw(*pid)) {
            if let Err(e) = kill_process(pid, Signal::TERM) {
                log::debug!("worker {}: {e}", pid.as_raw_pid());
            }
        }
        let deadline = Instant::now() + self.times.stop + ROLL_BACK_TIME;
        while !self.workers.is_empty() && Instant::now() < deadline {
            self.beat(Instant::now());
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
            log::error!("{} requests did not end in time and are left alone", self.workers.len());
            return Exit::Failure;
        }
        Exit::Good
    }

    fn close_listener(&mut self) -> std::io::Result<()> {
        self.listener.socket = OwnedFd::from(std::fs::File::open("/dev/null")?);
        Ok(())
    }
}

/// Says why, and ends the connection. What the client has sent is taken off the socket first, or it would see a broken
/// connection instead of the answer. The answer fits an empty socket, so this never waits.
fn turn_away(connection: &Connection, why: &str) {
    log::warn!("turned away: {why}");
    connection.discard_pending();
    let reply = Response {
        r#type: RequestType::Empty.into(),
        success: false,
        cr_errno: Some(libc::EAGAIN),
        cr_errmsg: Some(format!("Error (crust): {why} (help: try again later)")),
        ..Response::default()
    };
    if let Err(e) = connection.send_response(&reply) {
        log::debug!("the client does not hear it: {e}");
    }
}

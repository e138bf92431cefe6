//! One connection, served to its end in a process of its own.
use super::events::{Life, Ready, RpcEvents, readable};
use super::handover;
use super::peer::{Peer, Refusal};
use super::request::{self, Job};
use crate::cli::settings::Settings;
use crate::cli::{self, Verb};
use crate::events::Scripts;
use crate::exit::Exit;
use crate::{commands, logging, stats};
use crust_engine::options::ManageCgroups;
use crust_engine::{Error, Kind, Result, ResultExt, check};
use crust_rpc::{
    Connection, DumpResponse, Features, MAX_PACKET_BYTES, MAX_REPLY_BYTES, Packet, Request, RequestType, Response,
    RestoreResponse, Version,
};
use prost::Message;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a client of the service may be silent before its first request.
const FIRST_REQUEST: Duration = Duration::from_secs(30);

/// The largest request of an ordinary user; known clients send a few KiB.
const MAX_REQUEST_OF_USER: usize = 64 << 10;

/// Whose request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Our parent's, who has our rights anyway.
    Swrk,
    /// Anybody's.
    Service(Times),
}

impl Mode {
    /// True if the caller may be anybody.
    pub(super) fn is_service(self) -> bool {
        matches!(self, Self::Service(_))
    }
}

/// How long a worker of the service may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    /// One connection as a whole.
    pub(super) request: Duration,
    /// What runs when the service is stopped.
    pub(super) stop: Duration,
}

/// What follows a request.
enum Next {
    /// The connection ends, with this exit code.
    End(Exit),
    /// Another request may come. If none does, this is the exit code.
    More(Exit),
}

/// A connection with what is known about it.
pub(super) struct Worker {
    connection: Arc<Connection>,
    mode: Mode,
    life: Arc<Life>,
    /// Who restores, if we must not.
    restorer: Option<PathBuf>,
    /// The caller. In the service this process has become it before it reads a byte.
    peer: Option<std::result::Result<Peer, Refusal>>,
}

/// How the answer to one request looks before its error fields are filled in.
fn reply(kind: RequestType) -> Response {
    Response { r#type: kind.into(), success: true, ..Response::default() }
}

impl Worker {
    pub(super) fn new(connection: Connection, mode: Mode) -> Self {
        let (life, peer) = match mode {
            Mode::Swrk => (Life::of_swrk(), None),
            Mode::Service(times) => (Life::of_service(times), Some(Peer::admit(&connection))),
        };
        Self { connection: Arc::new(connection), mode, life: Arc::new(life), peer, restorer: None }
    }

    /// Requests of root to restore, and questions what a restore would find, go to the service at this address.
    pub(super) fn restoring_at(mut self, address: Option<PathBuf>) -> Self {
        self.restorer = address;
        self
    }

    /// Serves the one request that another service handed over with its connection.
    pub(super) fn serve_taken(self, request: Request) -> Exit {
        let kind = RequestType::try_from(request.r#type).unwrap_or(RequestType::Empty);
        let mut base = self.base();
        // This process's unit is the restored tree's, and lives as long as it: the tree stays in it unless the request says
        // what is to be done with cgroups.
        base.engine.manage_cgroups = ManageCgroups::Ignore;
        match self.one(kind, request, base) {
            Next::End(exit) | Next::More(exit) => exit,
        }
    }

    /// The address to which this request goes, if it is not for us.
    fn elsewhere(&self, kind: RequestType) -> Option<&Path> {
        let restorer = self.restorer.as_deref()?;
        let restores = matches!(kind, RequestType::Restore | RequestType::Check);
        let by_root = matches!(&self.peer, Some(Ok(peer)) if peer.uid() == 0);
        (restores && by_root).then_some(restorer)
    }

    /// Serves until the last reply. `settings` are those of the command line, for the first request.
    pub(super) fn serve(mut self, mut settings: Option<Settings>) -> Exit {
        let mut if_closed = Exit::Minus1;
        let mut pre_dumping = false;
        let mut first = true;
        loop {
            // swrk reads its first request at once: it has nothing else to do, and nothing to be stopped from.
            let at_once = first && self.mode == Mode::Swrk;
            if !at_once && !self.next_request_is_here(first) {
                return if_closed;
            }
            first = false;
            let request = match self.connection.receive_at_most::<Request>(self.most_bytes()) {
                Ok(Packet::Message(request, _)) => request,
                Ok(Packet::Closed) => return if_closed,
                Ok(Packet::Garbage(why)) => {
                    log::error!("a packet that is no request: {why}");
                    return Exit::Minus1;
                }
                Err(e) => {
                    log::error!("the connection broke: {e}");
                    return Exit::Minus1;
                }
            };
            if self.peer.is_none() {
                self.peer = Some(Peer::of(&self.connection).map_err(Refusal::from));
            }
            logging::take_first_error();
            let kind = RequestType::try_from(request.r#type).unwrap_or(RequestType::Empty);
            if pre_dumping && !matches!(kind, RequestType::PreDump | RequestType::Dump) {
                self.refuse(RequestType::Empty, &bad("Bad req seq: after a pre-dump comes a pre-dump or the dump"));
                return Exit::Minus1;
            }
            let base = settings.take().unwrap_or_else(|| self.base());
            match self.one(kind, request, base) {
                Next::End(exit) => return exit,
                Next::More(exit) => if_closed = exit,
            }
            pre_dumping = kind == RequestType::PreDump;
        }
    }

    /// The largest request. Small fields become large structures, and an ordinary user may have many workers.
    fn most_bytes(&self) -> usize {
        match &self.peer {
            Some(Ok(peer)) if self.mode.is_service() && peer.uid() != 0 => MAX_REQUEST_OF_USER,
            Some(Err(_)) => MAX_REQUEST_OF_USER,
            _ => MAX_PACKET_BYTES,
        }
    }

    /// Waits for a request. False: none comes, or none is to come any more.
    fn next_request_is_here(&self, first: bool) -> bool {
        let limit = (first && self.mode.is_service()).then_some(FIRST_REQUEST);
        match readable(&self.connection, limit, || self.life.accepts_more()) {
            Ok(Ready::Yes) => true,
            Ok(Ready::TooLate) => {
                log::info!("the client was silent for {} s", FIRST_REQUEST.as_secs());
                false
            }
            Ok(Ready::Over) => false,
            Err(e) => {
                log::error!("{e}");
                false
            }
        }
    }

    /// Settings before a request says anything: those of our command line and files, but the service's own stay its.
    fn base(&self) -> Settings {
        match self.mode {
            Mode::Swrk => cli::own_settings(),
            Mode::Service(_) => Settings::default(),
        }
    }

    fn one(&self, kind: RequestType, request: Request, base: Settings) -> Next {
        let may_stay = matches!(
            kind,
            RequestType::PageServer
                | RequestType::PageServerChld
                | RequestType::CpuinfoDump
                | RequestType::CpuinfoCheck
                | RequestType::FeatureCheck
                | RequestType::Version
        );
        let keep_open = request.keep_open.unwrap_or(false);
        if keep_open && !may_stay {
            self.refuse(kind, &bad("keep_open does not go with this request"));
            return Next::End(Exit::Minus1);
        }
        if let Some(address) = self.elsewhere(kind) {
            return Next::End(match handover::give(address, &request, &self.connection) {
                Ok(()) => Exit::Good,
                Err(e) => self.result(kind, Err(e)),
            });
        }
        let exit = match kind {
            RequestType::Version => self.answer(version()),
            RequestType::FeatureCheck => self.result(kind, features(&request)),
            RequestType::Check => {
                // A failed check is a good answer.
                self.result(kind, self.check(&request));
                Exit::Good
            }
            RequestType::Dump => return Next::End(self.dump(kind, request, base)),
            RequestType::PreDump => {
                return match self.dump(kind, request, base) {
                    Exit::Good => Next::More(Exit::Good),
                    _ => Next::End(Exit::Minus1),
                };
            }
            RequestType::SinglePreDump => {
                return match self.dump(kind, request, base) {
                    Exit::Good => Next::End(Exit::Good),
                    _ => Next::End(Exit::Minus1),
                };
            }
            RequestType::Restore => return Next::End(self.restore(request, base)),
            RequestType::WaitPid => self.result(kind, wait_pid(&request)),
            RequestType::PageServer | RequestType::PageServerChld => self.result(
                RequestType::PageServer,
                Err(Error::unsupported(
                    "the page server is not supported yet",
                    "dump to a directory both machines see",
                )),
            ),
            RequestType::CpuinfoDump | RequestType::CpuinfoCheck => {
                self.result(kind, self.cpuinfo(kind, request, base))
            }
            RequestType::Empty | RequestType::Notify => {
                self.refuse(RequestType::Empty, &bad(format!("request type {} is unknown", request.r#type)));
                return Next::End(Exit::Minus1);
            }
        };
        if keep_open { Next::More(exit) } else { Next::End(exit) }
    }

    fn answer(&self, mut response: Response) -> Exit {
        fit(&mut response);
        match self.connection.send_response(&response) {
            Ok(()) => Exit::Good,
            Err(e) => {
                log::debug!("the reply found no reader: {e}");
                Exit::Good
            }
        }
    }

    /// Sends what came out, good or bad.
    fn result(&self, kind: RequestType, outcome: Result<Response>) -> Exit {
        match outcome {
            Ok(response) => self.answer(response),
            Err(e) => {
                self.refuse(kind, &e);
                Exit::Failure
            }
        }
    }

    /// Logs an error and sends it as the reply.
    fn refuse(&self, kind: RequestType, e: &Error) {
        log::error!("{e}");
        let mut response = reply(kind);
        response.success = false;
        // Of cpuinfo CRIU says ENOTSUP only where the architecture has none, not where the processor lacks something.
        let cpuinfo = matches!(kind, RequestType::CpuinfoDump | RequestType::CpuinfoCheck);
        response.cr_errno = e.kind().cr_errno().filter(|_| !cpuinfo || e.kind() != Kind::Unsupported);
        // CRIU's callers look for a pid that is none.
        if kind == RequestType::Restore {
            response.restore = Some(RestoreResponse { pid: -1 });
        }
        let said = logging::take_first_error().unwrap_or_else(|| format!("Error (crust): {}", e.headline()));
        response.cr_errmsg = Some(format!("{said} (help: {})", e.advice()));
        self.answer(response);
    }

    /// The caller, if we work for it.
    fn peer(&self) -> Result<&Peer> {
        match &self.peer {
            Some(Ok(peer)) => Ok(peer),
            Some(Err(refusal)) => Err(refusal.error()),
            None => Err(Error::new(Kind::Internal, "the caller was not asked for")),
        }
    }

    fn job(&self, verb: Verb, request: Request, base: Settings) -> Result<Job> {
        let opts = request.opts.ok_or_else(|| bad("the request has no opts"))?;
        let peer = self.peer()?;
        if verb == Verb::Restore && self.mode.is_service() && check::feature("cap_checkpoint_restore") == Some(false) {
            return Err(Error::new(
                Kind::Permission,
                "the service restores for root only: it acts with its caller's rights",
            )
            .help("run `crust restore` in a user namespace of your own (`unshare -Urpf --mount-proc`)"));
        }
        request::job(verb, opts, base, self.mode, peer, &self.connection)
    }

    fn events<'a>(&'a self, job: &mut Job) -> RpcEvents<'a> {
        if let Err(e) = crust_kernel::signals::catch(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP]) {
            log::warn!("signals cannot be caught: {e}");
        }
        let image_dir = job.settings.engine.images_dir.as_ref().map(AsRawFd::as_raw_fd);
        RpcEvents {
            connection: self.connection.clone(),
            life: self.life.clone(),
            notify: job.notify,
            scripts: Scripts::new(std::mem::take(&mut job.settings.action_scripts), image_dir),
            committed: Arc::default(),
            dumped_caller: job.caller_itself.then(|| self.peer().ok()).flatten(),
        }
    }

    fn dump(&self, kind: RequestType, request: Request, base: Settings) -> Exit {
        let verb = if kind == RequestType::Dump { Verb::Dump } else { Verb::PreDump };
        let mut job = match self.job(verb, request, base) {
            Ok(job) => job,
            Err(e) => return self.result(kind, Err(e)),
        };
        let mut events = self.events(&mut job);
        let done = match verb {
            Verb::Dump => crust_engine::dump(&job.settings.engine, &mut events),
            _ => {
                // CRIU sends none here, and runc's exit status depends on it.
                events.notify = false;
                crust_engine::pre_dump(&job.settings.engine, &mut events)
            }
        };
        self.result(
            kind,
            done.map(|report| {
                stats::dumped(&job.settings.engine, &report);
                let mut response = reply(kind);
                if kind == RequestType::Dump {
                    response.dump = Some(DumpResponse { restored: Some(false) });
                }
                response
            }),
        )
    }

    fn restore(self: &Worker, request: Request, base: Settings) -> Exit {
        let mut job = match self.job(Verb::Restore, request, base) {
            Ok(job) => job,
            Err(e) => return self.result(RequestType::Restore, Err(e)),
        };
        if !job.exec_cmd.is_empty()
            && let Err(e) = commands::can_be_run(&job.exec_cmd)
        {
            return self.result(RequestType::Restore, Err(e));
        }
        let mut events = self.events(&mut job);
        let done = crust_engine::restore(&job.settings.engine, &mut events);
        let exit = self.result(
            RequestType::Restore,
            done.map(|restored| {
                stats::restored(&job.settings.engine, &restored);
                let mut response = reply(RequestType::Restore);
                response.restore = Some(RestoreResponse { pid: restored.pid });
                response
            }),
        );
        if exit == Exit::Good && !job.exec_cmd.is_empty() {
            return become_command(&job.exec_cmd, &events.scripts);
        }
        exit
    }

    /// Writes or compares cpuinfo.img in the image directory.
    fn cpuinfo(&self, kind: RequestType, request: Request, base: Settings) -> Result<Response> {
        let verb = if kind == RequestType::CpuinfoDump { Verb::CpuinfoDump } else { Verb::CpuinfoCheck };
        let job = self.job(verb, request, base)?;
        commands::cpuinfo(verb, &job.settings)?;
        Ok(reply(kind))
    }

    fn check(&self, request: &Request) -> Result<Response> {
        if let Some(opts) = &request.opts {
            request::check_log(opts, self.peer()?, self.mode)?;
        }
        let missing: Vec<Error> = check::host()
            .into_iter()
            .filter(|f| f.required && !f.present)
            .map(|f| Error::new(Kind::Unsupported, format!("{} is missing", f.name)).help(f.help))
            .collect();
        match Error::all(missing) {
            Some(e) => Err(e),
            None => Ok(reply(RequestType::Check)),
        }
    }
}

fn bad(what: impl Into<String>) -> Error {
    Error::new(Kind::BadRequest, what)
}

/// The version that clients compare: CRIU's, whose behaviour we have.
fn version() -> Response {
    let (major, minor) = crate::CLAIMED_VERSION.split_once('.').unwrap_or((crate::CLAIMED_VERSION, "0"));
    let mut response = reply(RequestType::Version);
    response.version = Some(Version {
        major_number: major.parse().unwrap_or(0),
        minor_number: minor.parse().unwrap_or(0),
        ..Version::default()
    });
    response
}

/// All three are always present; true where asked for and the kernel has it, as `check --feature` says it. Pre-dumps and
/// lazy pages are refused by name, however the kernel is.
fn features(request: &Request) -> Result<Response> {
    let asked = request.features.ok_or_else(|| bad("the request names no features"))?;
    let has = |asked: Option<bool>, names: &[&str]| {
        Some(asked == Some(true) && names.iter().all(|name| check::feature(name) == Some(true)))
    };
    let mut response = reply(RequestType::FeatureCheck);
    response.features = Some(Features {
        mem_track: has(asked.mem_track, &["mem_dirty_track"]),
        lazy_pages: has(asked.lazy_pages, &["uffd", "uffd-noncoop"]),
        pidfd_store: has(asked.pidfd_store, &["pidfd_store"]),
    });
    Ok(response)
}

/// Waits for a child of ours, for instance a page server.
fn wait_pid(request: &Request) -> Result<Response> {
    let pid = request.pid.and_then(|p| i32::try_from(p).ok()).and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| bad("the request names no pid"))?;
    let wait = || rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    let status = rustix::io::retry_on_intr(wait).during("waiting for the process").map_err(|e| {
        e.kind_is(Kind::NoSuchTask).help("only a process that this connection started can be waited for")
    })?;
    let mut response = reply(RequestType::WaitPid);
    response.status = status.map(|(_, status)| status.as_raw());
    Ok(response)
}

/// Shortens the message until the whole reply fits what every client reads.
fn fit(response: &mut Response) {
    while response.encoded_len() > MAX_REPLY_BYTES {
        let Some(text) = &mut response.cr_errmsg else { return };
        let mut end = text.len().saturating_sub(16);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        if end == 0 {
            response.cr_errmsg = None;
        }
    }
}

/// The reply is out: becomes the client's command, with its output in the log. Returns only if that failed.
fn become_command(command: &[std::ffi::OsString], scripts: &Scripts) -> Exit {
    if let Err(e) = logging::onto_stdio() {
        log::warn!("the log cannot become standard output: {e}");
    }
    let Some((program, args)) = command.split_first() else { return Exit::Failure };
    let e =
        std::process::Command::new(program).args(args).envs(scripts.environment()).env_remove("NOTIFY_SOCKET").exec();
    log::error!("{}: the command of exec_cmd cannot be run: {e}", program.to_string_lossy());
    Exit::Failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_stay_below_what_clients_read() {
        let mut response = reply(RequestType::Dump);
        response.cr_errmsg = Some("ä".repeat(4000));
        fit(&mut response);
        assert!(response.encoded_len() <= MAX_REPLY_BYTES);
        assert!(response.encoded_len() > MAX_REPLY_BYTES - 40);
    }

    #[test]
    fn version_is_ten_bytes() {
        // 08 0a 10 01 52 04 08 04 10 02
        assert_eq!(version().encode_to_vec(), [8, 10, 16, 1, 82, 4, 8, 4, 16, 2]);
    }
}

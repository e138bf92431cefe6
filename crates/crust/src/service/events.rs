//! What a worker does at the engine's events: asks the client, runs root's scripts, and notices when the client is gone.
use super::peer::Peer;
use super::worker::Times;
use crate::events::{Scripts, only_logged};
use crust_engine::{Error, Event, Events, Kind, Reply, Result, ResultExt, Watch};
use crust_kernel::signals;
use crust_rpc::{Connection, Notify, Packet, Request, RequestType, Response};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long a client may think about a notification. Container engines run whole hooks in it.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often a wait looks whether we are to stop.
const TICK: Duration = Duration::from_millis(200);

/// The listener of one request.
#[derive(Debug)]
pub(super) struct RpcEvents<'a> {
    pub(super) connection: Arc<Connection>,
    pub(super) life: Arc<Life>,
    /// The client asked for notifications.
    pub(super) notify: bool,
    pub(super) scripts: Scripts,
    /// After this point nothing is rolled back any more, and a client that ends (a self-dump kills it) is no news.
    pub(super) committed: Arc<AtomicBool>,
    /// Set for a dump of the caller itself, which is named by the pid it had when it connected.
    pub(super) dumped_caller: Option<&'a Peer>,
}

/// How long this process may go on.
#[derive(Debug)]
pub(super) struct Life {
    end: Option<Instant>,
    /// After SIGTERM what runs may go on for so long. `None`: no signal lets it go on.
    grace: Option<Duration>,
    /// When SIGTERM was first seen.
    told: OnceLock<Instant>,
}

impl Life {
    /// Without an end; any signal cancels.
    pub(super) fn of_swrk() -> Self {
        Self { end: None, grace: None, told: OnceLock::new() }
    }

    /// With a deadline of its own; SIGTERM ends it softly, SIGINT and SIGHUP at once.
    pub(super) fn of_service(times: Times) -> Self {
        Self { end: Some(Instant::now() + times.request), grace: Some(times.stop), told: OnceLock::new() }
    }

    /// True while a further request may be begun.
    pub(super) fn accepts_more(&self) -> bool {
        signals::caught().is_none() && self.end.is_none_or(|end| Instant::now() < end)
    }

    /// Why what runs must be rolled back.
    pub(super) fn over(&self) -> Option<&'static str> {
        let now = Instant::now();
        if self.end.is_some_and(|end| now >= end) {
            return Some("the time that one connection may take is over (--request-timeout)");
        }
        signals::caught()?;
        let stopped = Some("the service is being stopped");
        let Some(grace) = self.grace else { return stopped };
        if signals::seen(libc::SIGINT) || signals::seen(libc::SIGHUP) {
            return stopped;
        }
        let told = *self.told.get_or_init(|| now);
        stopped.filter(|_| now >= told + grace)
    }
}

/// What a wait for the client came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    Yes,
    /// The limit is over.
    TooLate,
    /// `go_on` said no.
    Over,
}

/// Waits until the connection can be read.
pub(super) fn readable(connection: &Connection, limit: Option<Duration>, go_on: impl Fn() -> bool) -> Result<Ready> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let start = Instant::now();
    loop {
        let left = limit.map(|l| l.saturating_sub(start.elapsed())).unwrap_or(TICK).min(TICK);
        let mut fds = [PollFd::new(connection, PollFlags::IN)];
        let time = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut fds, Some(&time)) {
            Ok(n) if n > 0 => return Ok(Ready::Yes),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).during("waiting for the client"),
        }
        if !go_on() {
            return Ok(Ready::Over);
        }
        if limit.is_some_and(|l| start.elapsed() >= l) {
            return Ok(Ready::TooLate);
        }
    }
}

impl RpcEvents<'_> {
    fn ask(&self, event: Event, fd: Option<BorrowedFd<'_>>) -> Result<Reply> {
        let script = event.script_name();
        let refused = |what: String| Error::new(Kind::Script, format!("notification {script}: {what}"));
        let pid = match event {
            Event::SetupNamespaces { pid } | Event::PostRestore { pid } => Some(pid),
            _ => None,
        };
        let message = Response {
            r#type: RequestType::Notify.into(),
            success: true,
            notify: Some(Notify { script: Some(script.to_owned()), pid }),
            ..Response::default()
        };
        self.connection.send(&message, fd).map_err(|e| refused(format!("the client cannot be told: {e}")))?;
        match readable(&self.connection, Some(PATIENCE), || self.life.over().is_none())? {
            Ready::Yes => {}
            Ready::TooLate => return Err(refused(format!("the client did not answer for {} s", PATIENCE.as_secs()))),
            Ready::Over => return Err(Error::new(Kind::Cancelled, self.life.over().unwrap_or("the service ends"))),
        }
        let answer = match self.connection.receive::<Request>() {
            Ok(Packet::Message(answer, _)) => answer,
            Ok(Packet::Closed) => return Err(Error::new(Kind::Cancelled, format!("the client hung up at {script}"))),
            Ok(Packet::Garbage(why)) => return Err(refused(format!("the answer cannot be understood: {why}"))),
            Err(e) => return Err(refused(format!("the answer cannot be read: {e}"))),
        };
        if answer.r#type() != RequestType::Notify || answer.notify_success != Some(true) {
            return Err(refused("the client said no".to_owned()));
        }
        let external = match event {
            Event::QueryExtFiles => answer.opts.map(|o| o.external).unwrap_or_default(),
            _ => Vec::new(),
        };
        Ok(Reply { external, taken: fd.is_some() })
    }
}

impl Events for RpcEvents<'_> {
    fn notify(&mut self, event: Event, root: Option<i32>, fd: Option<BorrowedFd<'_>>) -> Result<Reply> {
        log::debug!("Running {} scripts", event.script_name());
        if matches!(event, Event::PostDump | Event::PostRestore { .. }) {
            self.committed.store(true, Ordering::Relaxed);
        }
        // The tree is frozen at this event, so what has the pid now keeps it: the caller, if that has not ended.
        if event == Event::QueryExtFiles && self.dumped_caller.is_some_and(|peer| !peer.alive()) {
            return Err(Error::new(Kind::NoSuchTask, "the caller that was to be dumped has ended"));
        }
        let said = if self.notify { self.ask(event, fd) } else { Ok(Reply::default()) };
        let said = said.and_then(|reply| self.scripts.run(event, root).map(|()| reply));
        match said {
            Err(e) if only_logged(event) => {
                log::error!("{}", e.headline());
                Ok(Reply::default())
            }
            said => said,
        }
    }

    fn watch(&self) -> Watch {
        let (committed, life, connection) = (self.committed.clone(), self.life.clone(), self.connection.clone());
        Watch::new(move || !committed.load(Ordering::Relaxed) && (life.over().is_some() || connection.hung_up()))
    }
}

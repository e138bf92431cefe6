//! The engine's side of notifications: what happened, to whoever speaks to the user (CLI scripts, RPC client, progress).
use crust_kernel::Deadline;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A point of the journey that clients can act on, with CRIU's script names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "CRIU's script names; see criu(8), --action-script")]
pub enum Event {
    PreStream,
    PreDump,
    NetworkLock,
    QueryExtFiles,
    PostDump,
    NetworkUnlock,
    StatusReady,
    PreRestore,
    /// The pid is the root task's, in our pid namespace.
    SetupNamespaces {
        pid: i32,
    },
    PostSetupNamespaces,
    OrphanPtsMaster,
    PostRestore {
        pid: i32,
    },
    PreResume {
        pid: i32,
    },
    PostResume {
        pid: i32,
    },
}

impl Event {
    /// CRIU's name for the event, as in `CRTOOLS_SCRIPT_ACTION` and in the RPC's `notify.script`.
    pub fn script_name(self) -> &'static str {
        match self {
            Self::PreStream => "pre-stream",
            Self::PreDump => "pre-dump",
            Self::NetworkLock => "network-lock",
            Self::QueryExtFiles => "query-ext-files",
            Self::PostDump => "post-dump",
            Self::NetworkUnlock => "network-unlock",
            Self::StatusReady => "status-ready",
            Self::PreRestore => "pre-restore",
            Self::SetupNamespaces { .. } => "setup-namespaces",
            Self::PostSetupNamespaces => "post-setup-namespaces",
            Self::OrphanPtsMaster => "orphan-pts-master",
            Self::PostRestore { .. } => "post-restore",
            Self::PreResume { .. } => "pre-resume",
            Self::PostResume { .. } => "post-resume",
        }
    }
}

/// What a listener may answer with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Further `--external` resources, allowed in answer to [`Event::QueryExtFiles`].
    pub external: Vec<String>,
    /// Somebody has taken the descriptor that came with [`Event::OrphanPtsMaster`].
    pub taken: bool,
}

/// Whether the end is wished for: a question that any thread may ask at any time, and in every wait.
#[derive(Clone, Default)]
pub struct Watch(Option<Arc<dyn Fn() -> bool + Send + Sync>>);

impl Watch {
    /// `is_over` is asked often, and must be quick.
    pub fn new(is_over: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(is_over)))
    }

    /// True once the end is wished for.
    pub fn is_over(&self) -> bool {
        self.0.as_ref().is_some_and(|ask| ask())
    }

    /// An error once the end is wished for.
    pub(crate) fn go_on(&self) -> crate::Result<()> {
        match self.is_over() {
            true => Err(crate::Error::new(crate::Kind::Cancelled, "the request was cancelled")),
            false => Ok(()),
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.is_over()).finish()
    }
}

/// Receives the engine's events. An error from [`Events::notify`] fails the operation where CRIU's does.
pub trait Events {
    /// `root` is the root task's pid once it is known (dump: from the start). `fd` travels with `OrphanPtsMaster` only.
    fn notify(&mut self, event: Event, root: Option<i32>, fd: Option<BorrowedFd<'_>>) -> crate::Result<Reply>;

    /// Long work goes on: `done` of `total` in `what` (for instance "pages"). Called at most a few times a second.
    fn progress(&mut self, what: &'static str, done: u64, total: u64) {
        let (_, _, _) = (what, done, total);
    }

    /// Asked in waits on other threads.
    fn watch(&self) -> Watch {
        Watch::default()
    }

    /// Asked between steps and in waits: true makes the engine roll back with [`crate::Kind::Cancelled`].
    fn cancelled(&mut self) -> bool {
        self.watch().is_over()
    }
}

/// Events with a deadline: once it has passed they ask for the end, as a caller would.
pub(crate) struct Bounded<'a> {
    inner: &'a mut dyn Events,
    until: Option<Deadline>,
    late: Arc<AtomicBool>,
}

/// How often work in small pieces asks. It may consist of a million pieces, and an answer may take a system call.
const PULSE: Duration = Duration::from_millis(20);

impl<'a> Bounded<'a> {
    pub(crate) fn new(inner: &'a mut dyn Events, until: Option<Deadline>) -> Self {
        Self { inner, until, late: Arc::default() }
    }

    /// True if it was the deadline that ended it.
    pub(crate) fn is_late(&self) -> bool {
        self.late.load(Ordering::Relaxed)
    }

    /// The deadline, at most `limit` from now on.
    pub(crate) fn within(&self, limit: Duration) -> Deadline {
        self.until.unwrap_or_else(|| Deadline::after(limit))
    }

    /// For work in small pieces, of several threads too: the deadline counts, and nobody is asked more often than each
    /// [`PULSE`]. Once over it stays over.
    pub(crate) fn pulse(&self) -> Watch {
        let (inner, until, late) = (self.inner.watch(), self.until, self.late.clone());
        let (begun, next, over) = (Instant::now(), AtomicU64::new(0), AtomicBool::new(false));
        Watch::new(move || {
            let now = begun.elapsed().as_millis() as u64;
            if now < next.load(Ordering::Relaxed) {
                return over.load(Ordering::Relaxed);
            }
            next.store(now + PULSE.as_millis() as u64, Ordering::Relaxed);
            let asked = inner.is_over();
            if !asked && until.is_some_and(Deadline::expired) {
                late.store(true, Ordering::Relaxed);
            }
            if asked || late.load(Ordering::Relaxed) {
                over.store(true, Ordering::Relaxed);
            }
            over.load(Ordering::Relaxed)
        })
    }
}

impl Events for Bounded<'_> {
    fn notify(&mut self, event: Event, root: Option<i32>, fd: Option<BorrowedFd<'_>>) -> crate::Result<Reply> {
        self.inner.notify(event, root, fd)
    }

    fn progress(&mut self, what: &'static str, done: u64, total: u64) {
        self.inner.progress(what, done, total);
    }

    fn watch(&self) -> Watch {
        self.inner.watch()
    }

    fn cancelled(&mut self) -> bool {
        if self.inner.cancelled() {
            return true;
        }
        if self.until.is_some_and(Deadline::expired) {
            self.late.store(true, Ordering::Relaxed);
        }
        self.is_late()
    }
}

/// Listens to nothing.
#[derive(Debug, Default)]
pub struct NoEvents;

impl Events for NoEvents {
    fn notify(&mut self, _: Event, _: Option<i32>, _: Option<BorrowedFd<'_>>) -> crate::Result<Reply> {
        Ok(Reply::default())
    }
}

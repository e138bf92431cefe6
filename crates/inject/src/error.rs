//! What can go wrong with a borrowed thread: which task, which step, why, and whether the target is as before.
use crust_kernel::HostTid;
use rustix::io::Errno;
use std::fmt;

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kinds a caller can act on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// There is no such process, or it ended before it could be stopped.
    Gone,
    /// It ended while we held it: somebody killed it.
    Died,
    /// The process is a zombie: it has a status for its parent and nothing else.
    Zombie,
    /// Another tracer holds it.
    Traced {
        /// The tracer, in our pid namespace; 0 if it lives in none we can see.
        tracer: i32,
        /// Its name, if it could be read.
        comm: String,
    },
    /// We lack the right to trace it.
    Permission,
    /// It did not stop, or did not come back, in time.
    Timeout,
    /// The task is of a kind that this layer cannot handle (segments of its own, no vDSO padding, a seccomp filter that forbids it).
    Unsupported,
    /// The kernel refused a call.
    Kernel,
    /// A stop or value that should not be possible; the target was left to itself.
    Unexpected,
}

/// One failure, about one task.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    task: HostTid,
    what: String,
    errno: Option<Errno>,
}

/// Advice for `EMFILE`.
pub const MORE_FILES: &str =
    "give crust itself more open files: a hard limit (`ulimit -Hn`) of 1024 is enough for any number of processes";

impl Error {
    pub(crate) fn new(kind: Kind, task: HostTid, what: impl Into<String>) -> Self {
        Self { kind, task, what: what.into(), errno: None }
    }

    /// A failed call: `ESRCH` and `ECHILD` mean that the task is gone, `EPERM`/`EACCES` that we may not.
    pub(crate) fn call(task: HostTid, what: impl Into<String>, errno: Errno) -> Self {
        let kind = match errno {
            Errno::SRCH | Errno::CHILD => Kind::Died,
            Errno::PERM | Errno::ACCESS => Kind::Permission,
            Errno::TIMEDOUT => Kind::Timeout,
            _ => Kind::Kernel,
        };
        Self { kind, task, what: what.into(), errno: Some(errno) }
    }

    /// The kind.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The process or thread this is about.
    pub fn task(&self) -> HostTid {
        self.task
    }

    /// The kernel's number, where a call failed.
    pub fn errno(&self) -> Option<Errno> {
        self.errno
    }

    /// What happened, without the task.
    pub fn what(&self) -> String {
        let mut text = self.what.clone();
        if let Kind::Traced { tracer, comm } = &self.kind {
            text.push_str(&format!(" (traced by {tracer} {comm:?})"));
        }
        if let Some(errno) = self.errno {
            text.push_str(&format!(": {}", std::io::Error::from(errno)));
        }
        text
    }

    /// What to do about it.
    pub fn help(&self) -> &'static str {
        match self.kind {
            _ if self.errno == Some(Errno::MFILE) => MORE_FILES,
            Kind::Gone => "check the pid with ps, and that it is in this pid namespace",
            Kind::Died => "somebody killed the task meanwhile; try again if it is still there",
            Kind::Zombie => "its parent must wait for it; dump from the parent to save it as a zombie",
            Kind::Traced { .. } => "end the debugger or tracer first: a task has only one",
            // Files in /proc are their owner's.
            Kind::Permission if self.errno == Some(Errno::ACCESS) => {
                "run as root or with CAP_DAC_OVERRIDE, or as the task's user inside its user namespace"
            }
            Kind::Permission => {
                "run as root or with CAP_SYS_PTRACE, or as the task's user inside its user namespace; see also yama's \
                 ptrace_scope"
            }
            Kind::Timeout => "raise --timeout; a thread in uninterruptible sleep (vfork, NFS) cannot be stopped",
            Kind::Unsupported => "see `crust check --pid` for what this task uses",
            Kind::Kernel => "run `crust check` to see what this kernel offers",
            Kind::Unexpected => "please report this with the log",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {}: {}", self.task, self.what())
    }
}

impl std::error::Error for Error {}

/// Turns an errno into an [`Error`] at the place that knows the step.
pub(crate) trait During<T> {
    fn during(self, task: HostTid, what: &str) -> Result<T>;
}

impl<T> During<T> for rustix::io::Result<T> {
    fn during(self, task: HostTid, what: &str) -> Result<T> {
        self.map_err(|errno| Error::call(task, what, errno))
    }
}

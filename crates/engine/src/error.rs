//! Errors that name the stage, the object, the cause and the way out; the same text in CLI, RPC and log.
use rustix::io::Errno;
use std::fmt;

/// Shorthand for the engine's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in the terms a caller can act on. Decides `cr_errno` and the standing advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The task named by the request does not exist or cannot be seized.
    NoSuchTask,
    /// An id, path or address that restore needs belongs to something else.
    Taken,
    /// The request itself is wrong: an option, a path, a combination.
    BadRequest,
    /// A resource this version does not know how to save or bring back.
    Unsupported,
    /// An image is missing, truncated, or says something impossible.
    BadImage,
    /// The kernel refused a call.
    Kernel,
    /// We lack a privilege.
    Permission,
    /// The request's deadline passed.
    Timeout,
    /// The caller cancelled, or its connection went away.
    Cancelled,
    /// An action script or notification said no.
    Script,
    /// The target changed or died while we looked at it.
    TargetChanged,
    /// No room left for the images.
    NoSpace,
    /// A defect in crust.
    Internal,
}

impl Kind {
    /// The errno that CRIU's RPC reports for this kind (`cr_errno`); `None` where CRIU leaves the field out.
    pub fn cr_errno(self) -> Option<i32> {
        match self {
            Self::NoSuchTask => Some(libc::ESRCH),
            Self::Taken => Some(libc::EEXIST),
            Self::BadRequest => Some(libc::EBADRQC),
            Self::Unsupported => Some(libc::ENOTSUP),
            Self::BadImage => Some(libc::EINVAL),
            Self::Permission => Some(libc::EPERM),
            Self::Timeout => Some(libc::ETIMEDOUT),
            Self::Cancelled => Some(libc::ECANCELED),
            Self::TargetChanged => Some(libc::EAGAIN),
            Self::NoSpace => Some(libc::ENOSPC),
            Self::Kernel | Self::Script | Self::Internal => None,
        }
    }

    /// Standing advice for the kind, used when the place that failed has nothing more exact to say.
    pub fn help(self) -> &'static str {
        match self {
            Self::NoSuchTask => "check the pid with ps, and that it is in this pid namespace",
            Self::Taken => "stop the holder, or restore inside a fresh pid namespace (`unshare -pf --mount-proc`)",
            Self::BadRequest => "see `crust --help`",
            Self::Unsupported => {
                "close the object before the dump, or name it with --external if restore can be given it"
            }
            Self::BadImage => "run `crust image verify` on the directory; an interrupted dump must be repeated",
            Self::Kernel => "run `crust check` to see what this kernel offers",
            Self::Permission => "run as root, or inside the task's user namespace",
            Self::Timeout => "raise --timeout, or look for a task in uninterruptible sleep",
            Self::Cancelled => "nothing is needed: the tree runs on",
            Self::Script => "see what the action script printed",
            Self::TargetChanged => "try again",
            Self::NoSpace => "free space below the image directory, or choose another with --images-dir",
            Self::Internal => "please report this with the log",
        }
    }
}

/// The step of the journey that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the steps of the journey as ARCHITECTURE.md lists them")]
pub enum Stage {
    Request,
    Find,
    Freeze,
    Look,
    Write,
    Commit,
    Kill,
    Resume,
    Read,
    Check,
    Plan,
    Build,
    Swap,
    LineUp,
}

/// The thing an error is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A task, by the id it has here.
    Task(i32),
    /// A descriptor of a task.
    Fd(i32, u32),
    /// A mapping of a task: start and end address.
    Vma(i32, u64, u64),
    /// A path on this machine.
    Path(String),
    /// An image file, by name.
    Image(String),
    /// An option of the request.
    Option(String),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task(pid) => write!(f, "task {pid}"),
            Self::Fd(pid, fd) => write!(f, "task {pid}, fd {fd}"),
            Self::Vma(pid, start, end) => write!(f, "task {pid}, mapping {start:#x}-{end:#x}"),
            Self::Path(path) => write!(f, "{path}"),
            Self::Image(name) => write!(f, "image {name}"),
            Self::Option(name) => write!(f, "option {name}"),
        }
    }
}

/// One failure, or several found by one check. Cheap to pass on; the text is built when shown.
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    what: String,
    stage: Option<Stage>,
    object: Option<Object>,
    holder: Option<String>,
    errno: Option<Errno>,
    help: Option<String>,
    state: Option<String>,
    more: Vec<Error>,
}

impl Error {
    /// An error of `kind`; `what` is the sentence a user reads first, without a full stop.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            what: what.into(),
            stage: None,
            object: None,
            holder: None,
            errno: None,
            help: None,
            state: None,
            more: Vec::new(),
        }))
    }

    /// A resource that cannot be saved. `help` says what the user can do about it.
    pub fn unsupported(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, what).help(help)
    }

    /// An image that says something impossible.
    pub fn bad_image(name: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(Kind::BadImage, what).on(Object::Image(name.into()))
    }

    /// A refused syscall; errno picks the kind where it says more than "the kernel said no".
    pub fn kernel(what: impl Into<String>, errno: impl Into<Errno>) -> Self {
        let errno = errno.into();
        let kind = match errno {
            Errno::SRCH => Kind::TargetChanged,
            Errno::PERM | Errno::ACCESS => Kind::Permission,
            Errno::NOSPC | Errno::DQUOT => Kind::NoSpace,
            Errno::TIMEDOUT => Kind::Timeout,
            _ => Kind::Kernel,
        };
        let mut e = Self::new(kind, what);
        e.0.errno = Some(errno);
        e
    }

    /// Several failures in one report; `None` if there were none.
    pub fn all(mut errors: Vec<Error>) -> Option<Self> {
        if errors.is_empty() {
            return None;
        }
        let mut first = errors.remove(0);
        first.0.more.append(&mut errors);
        Some(first)
    }

    /// Sets the step, unless a deeper place has named it already.
    pub fn at(mut self, stage: Stage) -> Self {
        self.0.stage.get_or_insert(stage);
        self
    }

    /// Sets the object, unless a deeper place has named it already.
    pub fn on(mut self, object: Object) -> Self {
        self.0.object.get_or_insert(object);
        self
    }

    /// Says who has the object, as it stands in front of its name: `task 3, fd 4`.
    pub fn held_by(mut self, holder: impl Into<String>) -> Self {
        self.0.holder.get_or_insert_with(|| holder.into());
        self
    }

    /// Sets the advice, unless a deeper place has given some already.
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.0.help.get_or_insert_with(|| text.into());
        self
    }

    /// Replaces the kind, where the caller knows better what an errno means.
    pub fn kind_is(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Says in what state everything was left.
    pub fn state(mut self, text: impl Into<String>) -> Self {
        self.0.state = Some(text.into());
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The errno of the refused call, if there was one.
    pub fn errno(&self) -> Option<Errno> {
        self.0.errno
    }

    /// The step that failed, if it is known.
    pub fn stage(&self) -> Option<Stage> {
        self.0.stage
    }

    /// The object, if one is named.
    pub fn object(&self) -> Option<&Object> {
        self.0.object.as_ref()
    }

    /// The errors reported together with this one.
    pub fn more(&self) -> &[Error] {
        &self.0.more
    }

    /// The first line: object, what, errno. Short enough for `cr_errmsg`.
    pub fn headline(&self) -> String {
        let mut line = String::new();
        let object = self.0.object.as_ref().map(Object::to_string);
        let front: Vec<&str> = self.0.holder.iter().chain(&object).map(String::as_str).collect();
        if !front.is_empty() {
            line = format!("{}: ", front.join(", "));
        }
        line.push_str(&self.0.what);
        if let Some(errno) = self.0.errno {
            line.push_str(&format!(": {}", std::io::Error::from(errno)));
        }
        line
    }

    /// The advice: the exact one, else the kind's.
    pub fn advice(&self) -> &str {
        let at_path = matches!(self.0.object, Some(Object::Path(_))) && self.0.kind == Kind::Kernel;
        let standing = match self.0.errno {
            Some(Errno::MFILE) => crust_inject::MORE_FILES,
            Some(Errno::NOENT | Errno::NOTDIR) if at_path => "make its directory first, or name another path",
            Some(Errno::EXIST) if at_path => "remove it, or name another path",
            Some(Errno::ACCESS | Errno::ROFS | Errno::ISDIR) if at_path => "name a path that may be written",
            _ => self.0.kind.help(),
        };
        self.0.help.as_deref().unwrap_or(standing)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.headline())?;
        if let Some(stage) = self.0.stage {
            write!(f, "\n  stage: {}", format!("{stage:?}").to_lowercase())?;
        }
        write!(f, "\n  help: {}", self.advice())?;
        for other in &self.0.more {
            write!(f, "\n{other}")?;
        }
        if let Some(state) = &self.0.state {
            write!(f, "\n  state: {state}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

/// Turns a refused call into an [`Error`] that says what was being done.
pub trait ResultExt<T> {
    /// `step` completes the sentence "failed while …", for instance "reading the fd link".
    fn during(self, step: &str) -> Result<T>;
}

impl<T> ResultExt<T> for std::result::Result<T, Errno> {
    fn during(self, step: &str) -> Result<T> {
        self.map_err(|e| Error::kernel(format!("{step} failed"), e))
    }
}

impl<T> ResultExt<T> for std::io::Result<T> {
    fn during(self, step: &str) -> Result<T> {
        self.map_err(|e| match Errno::from_io_error(&e) {
            Some(errno) => Error::kernel(format!("{step} failed"), errno),
            None => Error::new(Kind::Kernel, format!("{step} failed: {e}")),
        })
    }
}

/// Adds the object to an error on its way up.
pub trait OnObject<T> {
    /// Names the task, by the id it has here.
    fn on_task(self, pid: i32) -> Result<T>;
    /// Names a descriptor of a task.
    fn on_fd(self, pid: i32, fd: u32) -> Result<T>;
    /// Names a path.
    fn on_path(self, path: &str) -> Result<T>;
    /// Names the step.
    fn at(self, stage: Stage) -> Result<T>;
}

impl<T> OnObject<T> for Result<T> {
    fn on_task(self, pid: i32) -> Result<T> {
        self.map_err(|e| e.on(Object::Task(pid)))
    }
    fn on_fd(self, pid: i32, fd: u32) -> Result<T> {
        self.map_err(|e| e.on(Object::Fd(pid, fd)))
    }
    fn on_path(self, path: &str) -> Result<T> {
        self.map_err(|e| e.on(Object::Path(path.to_owned())))
    }
    fn at(self, stage: Stage) -> Result<T> {
        self.map_err(|e| e.at(stage))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_object_cause_and_way_out() {
        let e = Error::kernel("reading the fd link failed", Errno::NOENT).on(Object::Fd(4711, 7)).at(Stage::Look);
        let text = e.to_string();
        assert!(text.starts_with("task 4711, fd 7: reading the fd link failed: No such file"), "{text}");
        assert!(text.contains("stage: look") && text.contains("help: "), "{text}");
        let e = Error::kernel("opening the log file failed", Errno::NOENT).on(Object::Path("/none/log".into()));
        assert!(e.to_string().contains("help: make its directory first"), "{e}");
    }

    #[test]
    fn deeper_object_wins() {
        let e = Error::new(Kind::Kernel, "x").on(Object::Fd(1, 2)).on(Object::Task(1));
        assert_eq!(e.object(), Some(&Object::Fd(1, 2)));
    }

    #[test]
    fn all_of_none_is_none() {
        assert!(Error::all(Vec::new()).is_none());
    }
}

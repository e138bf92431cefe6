//! What the command line does at the engine's events: the user's action scripts, progress, and Ctrl-C.
use crust_engine::{Error, Event, Events, Kind, Object, Reply, Result, Watch};
use std::io::{IsTerminal, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The user's own programs, named by `--action-script`. Running them is the only exec crust does for itself.
#[derive(Debug, Default)]
pub(crate) struct Scripts {
    files: Vec<PathBuf>,
    /// Number of the image directory's descriptor in this process.
    image_dir: Option<i32>,
    init_pid: Option<i32>,
}

impl Scripts {
    /// Scripts that are told the image directory by its number here.
    pub(crate) fn new(files: Vec<PathBuf>, image_dir: Option<i32>) -> Self {
        Self { files, image_dir, init_pid: None }
    }

    /// The variables that scripts see and that stay for `--exec-cmd`.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let mut vars = Vec::new();
        if let Some(fd) = self.image_dir {
            vars.push(("CRTOOLS_IMAGE_DIR", format!("/proc/{}/fd/{fd}", std::process::id())));
        }
        if let Some(pid) = self.init_pid {
            vars.push(("CRTOOLS_INIT_PID", pid.to_string()));
        }
        vars
    }

    /// Runs every script for `event`; the first that fails is the error.
    pub(crate) fn run(&mut self, event: Event, root: Option<i32>) -> Result<()> {
        self.init_pid = root.or(match event {
            Event::SetupNamespaces { pid }
            | Event::PostRestore { pid }
            | Event::PreResume { pid }
            | Event::PostResume { pid } => Some(pid),
            _ => self.init_pid,
        });
        if matches!(event, Event::QueryExtFiles | Event::OrphanPtsMaster) {
            return Ok(());
        }
        for file in &self.files {
            let failed = |what: String| {
                Error::new(Kind::Script, format!("action script {what} at {}", event.script_name()))
                    .on(Object::Path(file.display().to_string()))
            };
            let status = Command::new(absolute(file))
                .env("CRTOOLS_SCRIPT_ACTION", event.script_name())
                .envs(self.environment())
                .env_remove("NOTIFY_SOCKET")
                .stdin(Stdio::null())
                .status()
                .map_err(|e| failed(format!("cannot be run: {e}")))?;
            if !status.success() {
                return Err(failed(format!("failed ({status})")));
            }
        }
        Ok(())
    }
}

/// A name without a slash is a file here, not in `PATH`.
fn absolute(file: &Path) -> PathBuf {
    if file.components().count() == 1 && file.is_relative() { Path::new(".").join(file) } else { file.to_owned() }
}

/// Events whose failure CRIU only logs: the tree runs already, or must run now.
pub(crate) fn only_logged(event: Event) -> bool {
    matches!(event, Event::NetworkUnlock | Event::PreResume { .. } | Event::PostResume { .. })
}

/// One line on a terminal that is written over and over.
#[derive(Debug)]
pub(crate) struct Progress {
    on: bool,
    last: Option<Instant>,
    start: Instant,
}

impl Progress {
    /// Silent unless standard error is a terminal that nothing else writes to.
    pub(crate) fn new() -> Self {
        let on = std::io::stderr().is_terminal() && !crate::logging::goes_to_stderr_verbosely();
        Self { on, last: None, start: Instant::now() }
    }

    fn show(&mut self, what: &str, done: u64, total: u64) {
        let due = self.last.is_none_or(|l| l.elapsed() > Duration::from_millis(100)) || done == total;
        // Work that is over at once needs no progress.
        if !self.on || !due || self.start.elapsed() < Duration::from_millis(300) {
            return;
        }
        self.last = Some(Instant::now());
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100).min(100);
        let filled = usize::try_from(percent / 5).unwrap_or(20);
        let bar = format!("{}{}", "█".repeat(filled), "·".repeat(20 - filled.min(20)));
        self.print(&format!("\r\x1b[K{what:>10} {bar} {percent:3}%  {done}/{total}"));
    }

    /// Takes the line away.
    pub(crate) fn clear(&mut self) {
        if self.last.take().is_some() {
            self.print("\r\x1b[K");
        }
    }

    fn print(&self, text: &str) {
        let mut stderr = std::io::stderr().lock();
        let _lost = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    }
}

/// The command line's listener.
#[derive(Debug)]
pub(crate) struct CliEvents {
    pub(crate) scripts: Scripts,
    pub(crate) progress: Progress,
    /// A script refused after the images were written: CRIU then exits with 255.
    pub(crate) post_dump_refused: bool,
}

impl CliEvents {
    /// Runs `scripts`, and makes Ctrl-C a wish to cancel instead of our death.
    pub(crate) fn new(scripts: Scripts) -> Self {
        if let Err(e) = crust_kernel::signals::catch(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP]) {
            log::warn!("signals cannot be caught, so do not interrupt: {e}");
        }
        Self { scripts, progress: Progress::new(), post_dump_refused: false }
    }

    /// The request is served. Signals go on being caught, for a process that is about to exit: who is killed by one has
    /// not done what it did.
    pub(crate) fn done(&mut self) {
        self.progress.clear();
    }

    /// The same in a process that goes on: from here on signals end it as usual, also one that came too late to cancel.
    pub(crate) fn done_but_goes_on(&mut self) {
        self.done();
        if let Err(e) = crust_kernel::signals::release(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP]) {
            log::warn!("signals cannot be reset: {e}");
        }
        let late = crust_kernel::signals::caught().and_then(rustix::process::Signal::from_named_raw);
        if let Some(signal) = late
            && let Err(e) = rustix::process::kill_process(rustix::process::getpid(), signal)
        {
            log::warn!("{signal:?} came too late to cancel, and cannot be sent again: {e}");
        }
    }
}

impl Events for CliEvents {
    fn notify(&mut self, event: Event, root: Option<i32>, _: Option<BorrowedFd<'_>>) -> Result<Reply> {
        log::debug!("Running {} scripts", event.script_name());
        match self.scripts.run(event, root) {
            Err(e) if only_logged(event) => log::error!("{}", e.headline()),
            Err(e) => {
                self.post_dump_refused |= event == Event::PostDump;
                return Err(e);
            }
            Ok(()) => {}
        }
        Ok(Reply::default())
    }

    fn progress(&mut self, what: &'static str, done: u64, total: u64) {
        self.progress.show(what, done, total);
    }

    fn watch(&self) -> Watch {
        Watch::new(|| crust_kernel::signals::caught().is_some())
    }
}

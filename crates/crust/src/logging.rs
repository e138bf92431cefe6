//! The log in CRIU's line format, because its clients grep for it: `(00.000123) Error (file:line): text`.
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// CRIU's default verbosity: errors and warnings.
pub(crate) const DEFAULT_LEVEL: i32 = 2;

/// From this verbosity on, lines carry a time stamp.
const STAMP_LEVEL: i32 = 3;

/// Longest `cr_errmsg`: whole replies must stay below 1024 bytes (crust_rpc::MAX_REPLY_BYTES).
const MAX_FIRST_ERROR_BYTES: usize = 900;

/// Where lines go.
#[derive(Debug)]
pub(crate) enum Sink {
    /// Nowhere: the descriptor that would take them is a socket with another use.
    Nowhere,
    /// Standard error, CRIU's default.
    Stderr,
    /// Standard output, `-o -`.
    Stdout,
    /// A log file.
    File(File),
}

struct State {
    sink: Sink,
    level: i32,
    start: Option<Instant>,
    first_error: Option<String>,
    /// True where every line to standard error gets the journal's `<N>` in front.
    journal: bool,
}

struct Logger(Mutex<State>);

static LOGGER: Logger = Logger(Mutex::new(State {
    sink: Sink::Stderr,
    level: DEFAULT_LEVEL,
    start: None,
    first_error: None,
    journal: false,
}));

impl Logger {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Source files as people know them: no absolute paths of the build machine.
fn short(file: &str) -> &str {
    match file.strip_prefix("crates/") {
        Some(rest) => rest,
        None if file.starts_with('/') => file.rsplit('/').next().unwrap_or(file),
        None => file,
    }
}

fn is_steering(c: char) -> bool {
    c.is_control() && c != '\n' && c != '\t'
}

/// One message as one or more lines, each complete in itself. `verbosity` decides on the stamp.
fn format(level: Level, place: (&str, u32), message: &str, verbosity: i32, since: Duration, journal: bool) -> String {
    let mut prefix = String::new();
    if journal {
        let priority = match level {
            Level::Error => 3,
            Level::Warn => 4,
            Level::Info => 6,
            Level::Debug | Level::Trace => 7,
        };
        let _infallible = write!(prefix, "<{priority}>");
    }
    if verbosity >= STAMP_LEVEL {
        let _infallible = write!(prefix, "({:02}.{:06}) ", since.as_secs(), since.subsec_micros());
    }
    let head = match level {
        Level::Error => format!("Error ({}:{}): ", short(place.0), place.1),
        Level::Warn => format!("Warn  ({}:{}): ", short(place.0), place.1),
        _ => String::new(),
    };
    let mut text = String::new();
    // Paths and names are a stranger's: they must not steer the terminal of who reads the log.
    let message: Cow<'_, str> = match message.contains(is_steering) {
        true => message.replace(is_steering, "?").into(),
        false => message.into(),
    };
    for (i, line) in message.lines().enumerate() {
        let _infallible = writeln!(text, "{prefix}{}{line}", if i == 0 { head.as_str() } else { "" });
    }
    text
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= filter(self.state().level)
    }

    fn log(&self, record: &Record<'_>) {
        let (level, place) = (record.level(), (record.file().unwrap_or("?"), record.line().unwrap_or(0)));
        let message = record.args().to_string();
        let mut state = self.state();
        if level == Level::Error && state.first_error.is_none() {
            let text = format(level, place, &message, 0, Duration::ZERO, false);
            state.first_error = Some(cut(text.lines().next().unwrap_or_default(), MAX_FIRST_ERROR_BYTES));
        }
        if level > filter(state.level) {
            return;
        }
        let since = state.start.map(|s| s.elapsed()).unwrap_or_default();
        let journal = state.journal && matches!(state.sink, Sink::Stderr);
        let text = format(level, place, &message, state.level, since, journal);
        // A log that cannot be written must not stop the work it tells about.
        let _lost = match &mut state.sink {
            Sink::Nowhere => Ok(()),
            Sink::Stderr => io::stderr().write_all(text.as_bytes()),
            Sink::Stdout => io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()),
            Sink::File(file) => file.write_all(text.as_bytes()),
        };
    }

    fn flush(&self) {}
}

fn filter(level: i32) -> LevelFilter {
    match level {
        ..=0 => LevelFilter::Off,
        1 => LevelFilter::Error,
        2 => LevelFilter::Warn,
        3 => LevelFilter::Info,
        4 => LevelFilter::Debug,
        5.. => LevelFilter::Trace,
    }
}

/// At most `max` bytes of `text`, cut between characters.
fn cut(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

/// Starts logging to stderr; panics are logged too, with their place, instead of printed.
pub(crate) fn init() {
    LOGGER.state().start = Some(Instant::now());
    if log::set_logger(&LOGGER).is_ok() {
        set_level(DEFAULT_LEVEL);
    }
    std::panic::set_hook(Box::new(|info| log::error!("internal defect, please report it: {info}")));
}

/// CRIU's `-v N`.
pub(crate) fn set_level(level: i32) {
    LOGGER.state().level = level;
    // Errors always reach us: the first one goes into the RPC reply however quiet the log is.
    log::set_max_level(filter(level).max(LevelFilter::Error));
}

/// Where lines go from now on.
pub(crate) fn set_sink(sink: Sink) {
    LOGGER.state().sink = sink;
}

/// True if lines now go to a file, where nobody at the terminal sees them.
pub(crate) fn goes_to_file() -> bool {
    matches!(LOGGER.state().sink, Sink::File(_))
}

/// True if lines now go to the terminal that a progress line would use.
pub(crate) fn goes_to_stderr_verbosely() -> bool {
    let state = LOGGER.state();
    matches!(state.sink, Sink::Stderr) && state.level >= STAMP_LEVEL
}

/// Puts the journal's priority in front of each line to standard error. A request's log is a file that clients read.
pub(crate) fn set_journal(journal: bool) {
    LOGGER.state().journal = journal;
}

/// Truncates and opens a log file: an existing one keeps its inode, label and owner (podman prepares it).
///
/// # Errors
/// The file cannot be opened.
pub(crate) fn open_file(path: &Path) -> io::Result<()> {
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_APPEND | libc::O_NOCTTY)
        .open(path)?;
    set_sink(Sink::File(file));
    Ok(())
}

/// Makes the log file standard output and error, for a command that takes our place.
///
/// # Errors
/// The descriptors cannot be replaced.
pub(crate) fn onto_stdio() -> io::Result<()> {
    if let Sink::File(file) = &LOGGER.state().sink {
        rustix::stdio::dup2_stdout(file)?;
        rustix::stdio::dup2_stderr(file)?;
    }
    Ok(())
}

/// The first error since the last call, as its log line reads: CRIU's `cr_errmsg`.
pub(crate) fn take_first_error() -> Option<String> {
    LOGGER.state().first_error.take()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: Level, verbosity: i32, text: &str) -> String {
        format(level, ("crates/engine/src/dump.rs", 7), text, verbosity, Duration::from_micros(1_000_123), false)
    }

    #[test]
    fn lines_read_as_criu_writes_them() {
        assert_eq!(line(Level::Error, 2, "no"), "Error (engine/src/dump.rs:7): no\n");
        assert_eq!(line(Level::Warn, 2, "hm"), "Warn  (engine/src/dump.rs:7): hm\n");
        assert_eq!(line(Level::Info, 3, "so"), "(01.000123) so\n");
        assert_eq!(line(Level::Error, 4, "a\nb"), "(01.000123) Error (engine/src/dump.rs:7): a\n(01.000123) b\n");
    }

    #[test]
    fn names_do_not_steer_a_terminal() {
        assert_eq!(line(Level::Error, 2, "\x1b[2Ja\rb\tc"), "Error (engine/src/dump.rs:7): ?[2Ja?b\tc\n");
    }

    #[test]
    fn machine_paths_stay_out() {
        assert_eq!(short("/home/x/.cargo/registry/y/src/lib.rs"), "lib.rs");
    }

    #[test]
    fn cuts_between_characters() {
        assert_eq!(cut("aää", 4), "aä");
    }
}

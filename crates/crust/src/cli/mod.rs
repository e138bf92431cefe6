//! From arguments to a verb with its settings: configuration files first, then the command line, as CRIU reads them.
mod complete;
pub(crate) mod config;
mod getopt;
mod help;
pub(crate) mod image;
pub(crate) mod options;
pub(crate) mod settings;

use crate::exit::Exit;
use crate::{commands, demo, logging, out, rootless, service};
use config::BadFile;
use getopt::{Token, Unknown};
use settings::Settings;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Dump,
    PreDump,
    Restore,
    Check,
    Service,
    Swrk,
    PageServer,
    LazyPages,
    Dedup,
    CpuinfoDump,
    CpuinfoCheck,
    Cleanup,
    /// Verbs that CRIU removed; exit 255.
    Exec,
    Show,
}

impl Verb {
    /// The verb at the start of `words`, and how many of them it is.
    fn find(words: &[OsString]) -> Result<(Self, usize), String> {
        let first = words.first().map(|w| w.to_string_lossy()).unwrap_or_default();
        let verb = match first.as_ref() {
            "" => return Err("command is required".to_owned()),
            "dump" => Self::Dump,
            "pre-dump" => Self::PreDump,
            "restore" => Self::Restore,
            "check" => Self::Check,
            "service" => Self::Service,
            "swrk" => Self::Swrk,
            "page-server" => Self::PageServer,
            "lazy-pages" => Self::LazyPages,
            "dedup" => Self::Dedup,
            "cleanup" => Self::Cleanup,
            "exec" => Self::Exec,
            "show" => Self::Show,
            "cpuinfo" => {
                return match words.get(1).and_then(|w| w.to_str()) {
                    Some("dump") => Ok((Self::CpuinfoDump, 2)),
                    Some("check") => Ok((Self::CpuinfoCheck, 2)),
                    Some(other) => Err(format!("unknown cpuinfo sub-command: {other}")),
                    None => Err("cpuinfo requires an action: dump or check".to_owned()),
                };
            }
            other => return Err(format!("unknown command: {other}")),
        };
        Ok((verb, 1))
    }
}

/// Everything after parsing.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub(crate) verb: Verb,
    pub(crate) settings: Settings,
    /// Words after the verb: `swrk`'s descriptor, `--exec-cmd`'s command.
    pub(crate) rest: Vec<OsString>,
}

/// Where we were started: relative names of configuration files mean this place, also when they are read again later.
static STARTED_IN: OnceLock<PathBuf> = OnceLock::new();

/// Runs the program with `args`, the program's name first.
pub(crate) fn run(mut args: impl Iterator<Item = OsString>) -> Exit {
    if let Ok(dir) = std::env::current_dir() {
        STARTED_IN.get_or_init(|| dir);
    }
    let program = args.next().unwrap_or_else(|| "crust".into());
    let args: Vec<OsString> = args.collect();
    match args.first().and_then(|a| a.to_str()) {
        Some("image") => return image::run(args.get(1..).unwrap_or_default()),
        Some("run") => return rootless::run(args.get(1..).unwrap_or_default()),
        Some("demo") => return demo::run(args.get(1..).unwrap_or_default()),
        Some("demo-sample") => return demo::sample::run(args.get(1..).unwrap_or_default()),
        Some("help-man") => {
            out(&help::man_page());
            return Exit::Good;
        }
        Some("help-completion") => {
            let Some(script) = args.get(1).and_then(|shell| complete::script(shell.to_str()?)) else {
                log::error!("help-completion takes a shell: bash, zsh or fish");
                return Exit::Failure;
            };
            out(&script);
            return Exit::Good;
        }
        _ => {}
    }
    let name = Path::new(&program).file_name().unwrap_or(OsStr::new("crust")).to_string_lossy().into_owned();
    match parse(args) {
        Ok(Parsed::Help) => {
            out(&help::full(&name));
            Exit::Good
        }
        Ok(Parsed::Version) => {
            out(&format!("Version: {}\n", crate::CLAIMED_VERSION));
            Exit::Good
        }
        Ok(Parsed::Run(invocation)) => dispatch(*invocation),
        Err(Refused::Usage(why)) => {
            log::error!("{why}");
            out(&help::usage(&name));
            Exit::Failure
        }
        Err(Refused::Plain(why)) => {
            log::error!("{why}");
            Exit::Failure
        }
    }
}

enum Parsed {
    Help,
    Version,
    Run(Box<Invocation>),
}

/// Why nothing is run. CRIU prints its usage for some mistakes only.
enum Refused {
    Usage(String),
    Plain(String),
}

fn parse(args: Vec<OsString>) -> Result<Parsed, Refused> {
    // Help is honoured before any file is read, so that a broken file cannot hide it.
    if args.iter().any(|a| a == "--help" || a == "-h") {
        return Ok(Parsed::Help);
    }
    let (tokens, argv_outcome) = getopt::parse(args);
    let mut settings = Settings::default();
    for file in files(&tokens) {
        let found = config::read(&file).map_err(|e| Refused::Plain(e.text().to_owned()))?;
        if let Some(early) = apply(&mut settings, found, &mut Vec::new())? {
            return Ok(early);
        }
    }
    let mut words = Vec::new();
    if let Some(early) = apply(&mut settings, tokens, &mut words)? {
        return Ok(early);
    }
    argv_outcome.map_err(|Unknown(why)| Refused::Usage(why))?;

    let (verb, used) = Verb::find(&words).map_err(Refused::Usage)?;
    let rest = words.split_off(used);
    if let Some(value) = settings.pid_or_pidfile.take() {
        if verb == Verb::Check {
            let pid = value.to_str().and_then(|v| v.parse().ok()).filter(|pid| *pid > 0);
            settings.engine.pid = pid.ok_or_else(|| Refused::Plain("invalid argument for --pid".to_owned()))?;
        } else {
            settings.engine.pidfile = Some(PathBuf::from(value));
        }
    }
    let invocation = Invocation { verb, settings, rest };
    invocation.check_words()?;
    Ok(Parsed::Run(Box::new(invocation)))
}

/// The configuration files that this command line wants, in order.
fn files(tokens: &[Token]) -> Vec<PathBuf> {
    let mut default = true;
    let mut given = None;
    for token in tokens {
        match token {
            Token::Option { def, value, .. } if def.long == "config" => {
                given = value.as_ref().map(PathBuf::from);
                default = false;
            }
            Token::Option { def, .. } if def.long == "no-default-config" => default = false,
            _ => {}
        }
    }
    let mut files = Vec::new();
    if default {
        files.push(PathBuf::from(config::GLOBAL));
        files.extend(std::env::var_os("HOME").map(|home| Path::new(&home).join(config::USER)));
    }
    files.extend(std::env::var_os(config::ENVIRONMENT).filter(|f| !f.is_empty()).map(PathBuf::from));
    files.extend(given);
    match STARTED_IN.get() {
        Some(dir) => files.into_iter().map(|file| dir.join(file)).collect(),
        None => files,
    }
}

/// Applies options in order; `--version` and `--help` end it where they stand.
fn apply(settings: &mut Settings, tokens: Vec<Token>, words: &mut Vec<OsString>) -> Result<Option<Parsed>, Refused> {
    for token in tokens {
        match token {
            Token::Word(word) => words.push(word),
            Token::Option { def, negated, value } => {
                if def.long == "ms" {
                    return Err(Refused::Plain("--ms is deprecated; see the check options of --help".to_owned()));
                }
                def.apply(settings, negated, value.as_deref()).map_err(Refused::Plain)?;
                if settings.version {
                    return Ok(Some(Parsed::Version));
                }
                if settings.help {
                    return Ok(Some(Parsed::Help));
                }
                if let Some(why) = def.ignored {
                    log::debug!("--{} changes nothing: {why}", def.long);
                }
            }
        }
    }
    Ok(None)
}

/// The settings of our own command line and files once more, for a further request on the same connection.
pub(crate) fn own_settings() -> Settings {
    match parse(std::env::args_os().skip(1).collect()) {
        Ok(Parsed::Run(invocation)) => invocation.settings,
        Ok(Parsed::Help | Parsed::Version) | Err(_) => Settings::default(),
    }
}

/// The settings of our own command line and files, which may have changed since.
///
/// # Errors
/// What is wrong with them now.
pub(crate) fn reread() -> Result<Settings, String> {
    match parse(std::env::args_os().skip(1).collect()) {
        Ok(Parsed::Run(invocation)) => Ok(invocation.settings),
        Ok(Parsed::Help | Parsed::Version) => Err("a configuration file asks for help or the version".to_owned()),
        Err(Refused::Usage(why) | Refused::Plain(why)) => Err(why),
    }
}

/// Applies a configuration file that came by RPC.
pub(crate) fn apply_file(settings: &mut Settings, path: &Path) -> Result<(), BadFile> {
    let tokens = config::read(path)?;
    match apply(settings, tokens, &mut Vec::new()) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(BadFile::Option(format!("{}: help and version make no sense here", path.display()))),
        Err(Refused::Usage(why) | Refused::Plain(why)) => Err(BadFile::Option(format!("{}: {why}", path.display()))),
    }
}

impl Invocation {
    /// Refuses words that the verb does not take, and combinations that CRIU refuses.
    fn check_words(&self) -> Result<(), Refused> {
        let (verb, s) = (self.verb, &self.settings);
        if verb == Verb::Swrk {
            return match self.rest.len() {
                1 => Ok(()),
                _ => Err(Refused::Plain("Usage: swrk <fd>".to_owned())),
            };
        }
        if s.exec_cmd {
            let why = match () {
                () if self.rest.is_empty() => "--exec-cmd requires a command",
                () if verb != Verb::Restore => "--exec-cmd is available for the restore command only",
                () if s.detached => "--restore-detached and --exec-cmd cannot be used together",
                () => return Ok(()),
            };
            return Err(Refused::Usage(why.to_owned()));
        }
        match self.rest.len() {
            0 => {}
            1 => return Err(Refused::Usage(format!("excessive parameter: {}", self.rest[0].to_string_lossy()))),
            _ => return Err(Refused::Usage("excessive parameters".to_owned())),
        }
        if s.engine.stream && !matches!(verb, Verb::Dump | Verb::PreDump | Verb::Restore | Verb::CpuinfoDump) {
            return Err(Refused::Usage("--stream cannot be used with this command".to_owned()));
        }
        Ok(())
    }
}

fn dispatch(invocation: Invocation) -> Exit {
    logging::set_level(invocation.settings.log_level);
    match invocation.verb {
        Verb::Swrk => service::swrk(invocation),
        Verb::Service => service::serve(invocation),
        _ => commands::run(invocation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(args: &[&str]) -> String {
        let mut all = vec!["--no-default-config"];
        all.extend(args);
        match parse(all.into_iter().map(OsString::from).collect()) {
            Ok(Parsed::Help) => "help".to_owned(),
            Ok(Parsed::Version) => "version".to_owned(),
            Ok(Parsed::Run(i)) => format!("{:?} {:?}", i.verb, i.rest),
            Err(Refused::Usage(why)) => format!("usage: {why}"),
            Err(Refused::Plain(why)) => format!("plain: {why}"),
        }
    }

    #[test]
    fn verbs_and_their_words() {
        assert_eq!(outcome(&["dump", "-t", "1"]), "Dump []");
        assert_eq!(outcome(&["cpuinfo", "check"]), "CpuinfoCheck []");
        assert_eq!(outcome(&["swrk", "3"]), r#"Swrk ["3"]"#);
        assert_eq!(outcome(&["restore", "--exec-cmd", "--", "a", "-b"]), r#"Restore ["a", "-b"]"#);
        assert!(outcome(&["restore", "-d", "--exec-cmd", "--", "a"]).starts_with("usage: --restore-detached"));
        assert!(outcome(&["dump", "--exec-cmd", "--", "a"]).starts_with("usage: --exec-cmd is available"));
        assert!(outcome(&["restore", "--exec-cmd"]).starts_with("usage: --exec-cmd requires"));
        assert_eq!(outcome(&["dump", "x"]), "usage: excessive parameter: x");
        assert_eq!(outcome(&["fly"]), "usage: unknown command: fly");
        assert_eq!(outcome(&[]), "usage: command is required");
        assert_eq!(outcome(&["cpuinfo"]), "usage: cpuinfo requires an action: dump or check");
        assert_eq!(outcome(&["swrk"]), "plain: Usage: swrk <fd>");
        assert_eq!(outcome(&["service", "--stream"]), "usage: --stream cannot be used with this command");
    }

    #[test]
    fn help_and_version_end_it_where_they_stand() {
        assert_eq!(outcome(&["fly", "--nonsense", "-h"]), "help");
        assert_eq!(outcome(&["-V", "--nonsense"]), "version");
        assert_eq!(outcome(&["--nonsense", "-V"]), "usage: unrecognized option '--nonsense'");
        assert_eq!(outcome(&["-t", "0", "-V"]).split(':').next(), Some("plain"));
    }

    #[test]
    fn pid_means_pidfile_except_for_check() {
        let of = |args: &[&str]| match parse(args.iter().map(OsString::from).collect()) {
            Ok(Parsed::Run(i)) => (i.settings.engine.pid, i.settings.engine.pidfile),
            _ => panic!("refused"),
        };
        assert_eq!(of(&["--no-default-config", "check", "--pid", "7"]), (7, None));
        assert_eq!(of(&["--no-default-config", "restore", "--pid", "7"]), (0, Some(PathBuf::from("7"))));
    }
}

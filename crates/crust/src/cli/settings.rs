//! Everything the command line and the configuration files can say: the engine's options and what only we need.
use super::options::cpu;
use crate::logging;
use crust_engine::Options;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// The outcome of parsing. One field per option that the engine does not need to know.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) engine: Options,
    pub(crate) images_dir: Option<PathBuf>,
    pub(crate) images_tar: Option<PathBuf>,
    pub(crate) work_dir: Option<PathBuf>,
    pub(crate) log_file: Option<PathBuf>,
    pub(crate) log_level: i32,
    pub(crate) log_pid: bool,
    pub(crate) display_stats: bool,
    pub(crate) action_scripts: Vec<PathBuf>,
    pub(crate) exec_cmd: bool,
    /// `--restore-detached` and `--daemon` are one.
    pub(crate) detached: bool,
    pub(crate) libdir: Option<PathBuf>,
    pub(crate) close_fds: Vec<i32>,
    pub(crate) deprecated: bool,
    pub(crate) network_lock_given: bool,
    pub(crate) page_server: bool,
    pub(crate) address: Option<PathBuf>,
    pub(crate) port: u16,
    pub(crate) ps_socket: Option<i32>,
    pub(crate) status_fd: Option<i32>,
    pub(crate) socket_mode: u32,
    /// An activated service ends after so long without a request.
    pub(crate) idle_timeout: Option<Duration>,
    /// The service that restores for this one.
    pub(crate) restore_via: Option<PathBuf>,
    /// The client is another service, which hands its own client over.
    pub(crate) handed_over: bool,
    /// How long running requests may go on after SIGTERM.
    pub(crate) stop_timeout: Duration,
    /// How long one connection may take as a whole.
    pub(crate) request_timeout: Duration,
    pub(crate) tls: bool,
    pub(crate) feature: Option<String>,
    pub(crate) check_extra: bool,
    pub(crate) check_needs: bool,
    pub(crate) check_json: bool,
    pub(crate) dry_run: bool,
    pub(crate) check_experimental: bool,
    /// `--pid`: ours for `check`, an abbreviation of `--pidfile` for everything else.
    pub(crate) pid_or_pidfile: Option<OsString>,
    pub(crate) help: bool,
    pub(crate) version: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            engine: Options { cpu_cap: cpu::DEFAULT, ghost_fiemap: true, ..Options::default() },
            images_dir: None,
            images_tar: None,
            work_dir: None,
            log_file: None,
            log_level: logging::DEFAULT_LEVEL,
            log_pid: false,
            display_stats: false,
            action_scripts: Vec::new(),
            exec_cmd: false,
            detached: false,
            libdir: None,
            close_fds: Vec::new(),
            deprecated: false,
            network_lock_given: false,
            page_server: false,
            address: None,
            port: 0,
            ps_socket: None,
            status_fd: None,
            socket_mode: 0o600,
            idle_timeout: None,
            restore_via: None,
            handed_over: false,
            stop_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(3600),
            tls: false,
            feature: None,
            check_extra: false,
            check_needs: false,
            check_json: false,
            dry_run: false,
            check_experimental: false,
            pid_or_pidfile: None,
            help: false,
            version: false,
        }
    }
}

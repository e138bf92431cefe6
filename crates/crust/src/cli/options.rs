//! The one table of options: each row is parser, help line, man-page entry, config-file key and effect at once.
//! Names, letters, kinds of argument and defaults are CRIU 4.2's; rows marked `ours` exist only in crust.
use super::settings::Settings;
use crust_engine::options::{CgroupRoot, FileValidation, InheritFd, JoinNs, ManageCgroups, NetworkLock, PreDumpMode};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

/// What follows an option's name; the word is shown in the help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arg {
    None,
    Required(&'static str),
    /// Only glued on: `-v4`, `--manage-cgroups=full`.
    Optional(&'static str),
}

/// Which verbs an option means something to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    All,
    Dump,
    Restore,
    Both,
    Check,
    Server,
}

/// The part of the help an option belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    Generic,
    Resources,
    External,
    Namespaces,
    Memory,
    Check,
    Logging,
    Servers,
    Files,
}

impl Section {
    /// All of them, in the order of the help.
    pub(crate) const ALL: [Self; 9] = [
        Self::Generic,
        Self::Resources,
        Self::External,
        Self::Namespaces,
        Self::Memory,
        Self::Check,
        Self::Logging,
        Self::Servers,
        Self::Files,
    ];

    /// Its heading.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Generic => "Generic",
            Self::Resources => "What a tree may hold",
            Self::External => "Resources from outside the tree",
            Self::Namespaces => "Namespaces, cgroups, mounts, security labels",
            Self::Memory => "Memory",
            Self::Check => "check",
            Self::Logging => "Logging",
            Self::Servers => "service, page-server, lazy-pages",
            Self::Files => "Configuration files and help",
        }
    }
}

/// What a row does to the settings. An error completes "invalid argument for --X: ".
#[derive(Clone, Copy)]
pub(crate) enum Effect {
    /// On, or off as `--no-X`.
    Flag(fn(&mut Settings, bool)),
    /// On; there is no `--no-X`.
    Set(fn(&mut Settings)),
    Value(fn(&mut Settings, &OsStr) -> Result<(), String>),
    MayValue(fn(&mut Settings, Option<&OsStr>) -> Result<(), String>),
}

/// A row.
pub(crate) struct OptionDef {
    pub(crate) long: &'static str,
    pub(crate) short: Option<char>,
    pub(crate) arg: Arg,
    pub(crate) scope: Scope,
    pub(crate) section: Section,
    pub(crate) help: &'static str,
    /// Why the option is taken but changes nothing, where that is so.
    pub(crate) ignored: Option<&'static str>,
    /// Unknown to CRIU: takes no part in abbreviations.
    pub(crate) ours: bool,
    pub(crate) effect: Effect,
}

impl std::fmt::Debug for OptionDef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "--{}", self.long)
    }
}

impl OptionDef {
    /// True if `--no-X` exists.
    pub(crate) fn negatable(&self) -> bool {
        matches!(self.effect, Effect::Flag(_))
    }

    /// Applies the option as it was given.
    pub(crate) fn apply(&self, settings: &mut Settings, negated: bool, value: Option<&OsStr>) -> Result<(), String> {
        let said = match (self.effect, value) {
            (Effect::Flag(set), _) => {
                set(settings, !negated);
                Ok(())
            }
            (Effect::Set(set), _) => {
                set(settings);
                Ok(())
            }
            (Effect::Value(set), Some(value)) => set(settings, value),
            (Effect::Value(_), None) => Err("a value is needed".to_owned()),
            (Effect::MayValue(set), value) => set(settings, value),
        };
        said.map_err(|why| {
            let given = value.map(|v| v.to_string_lossy().into_owned()).unwrap_or_default();
            format!("invalid argument for --{}: {given}: {why}", self.long)
        })
    }
}

const fn row(
    long: &'static str,
    short: Option<char>,
    arg: Arg,
    scope: Scope,
    section: Section,
    effect: Effect,
    help: &'static str,
) -> OptionDef {
    OptionDef { long, short, arg, scope, section, help, ignored: None, ours: false, effect }
}

const fn flag(
    long: &'static str,
    short: Option<char>,
    scope: Scope,
    section: Section,
    set: fn(&mut Settings, bool),
    help: &'static str,
) -> OptionDef {
    row(long, short, Arg::None, scope, section, Effect::Flag(set), help)
}

type Setter = fn(&mut Settings, &OsStr) -> Result<(), String>;

const fn value(
    long: &'static str,
    short: Option<char>,
    name: &'static str,
    scope: Scope,
    section: Section,
    set: Setter,
    help: &'static str,
) -> OptionDef {
    row(long, short, Arg::Required(name), scope, section, Effect::Value(set), help)
}

impl OptionDef {
    const fn ignored(mut self, why: &'static str) -> Self {
        self.ignored = Some(why);
        self
    }

    const fn ours(mut self) -> Self {
        self.ours = true;
        self
    }
}

use Scope::{All, Both, Check, Dump, Restore, Server};
use Section as In;

/// The table.
#[rustfmt::skip]
pub(crate) static OPTIONS: &[OptionDef] = &[
    // Generic
    value("tree", Some('t'), "PID", Dump, In::Generic, |s, v| {
        s.engine.pid = positive(v)?;
        Ok(())
    }, "root of the tree to checkpoint"),
    value("images-dir", Some('D'), "DIR", Both, In::Generic, |s, v| path_into(&mut s.images_dir, v),
        "directory of the images (default: the current one)"),
    value("work-dir", Some('W'), "DIR", All, In::Generic, |s, v| path_into(&mut s.work_dir, v),
        "directory for log, statistics and sockets (default: the images' directory)"),
    row("leave-running", Some('R'), Arg::None, Dump, In::Generic, Effect::Set(|s| s.engine.after = crust_engine::options::After::Run),
        "let the tree run on after the checkpoint"),
    row("leave-stopped", Some('s'), Arg::None, Both, In::Generic, Effect::Set(|s| {
        s.engine.after = crust_engine::options::After::Stop;
        s.engine.leave_stopped = true;
    }), "leave the tree stopped, after dump and after restore"),
    flag("restore-detached", Some('d'), Restore, In::Generic, |s, on| s.detached = on,
        "do not wait for the restored tree to end"),
    flag("restore-sibling", Some('S'), Restore, In::Generic, |s, on| s.engine.restore_sibling = on,
        "make the root task a sibling of crust, a child of its caller (needs -d)"),
    value("timeout", None, "SECONDS", Dump, In::Generic, |s, v| {
        let seconds: u64 = number(v)?;
        s.engine.timeout = (seconds > 0).then(|| Duration::from_secs(seconds));
        Ok(())
    }, "how long the tasks may take to stop (default: 10)"),
    value("pidfile", None, "FILE", All, In::Generic, |s, v| path_into(&mut s.engine.pidfile, v),
        "write the pid of the root task, or of the server, into FILE, which must not exist"),
    value("action-script", None, "FILE", Both, In::Generic, |s, v| {
        s.action_scripts.push(PathBuf::from(v));
        Ok(())
    }, "program to run at each step, with CRTOOLS_SCRIPT_ACTION set; may be repeated"),
    row("exec-cmd", None, Arg::None, Restore, In::Generic, Effect::Set(|s| s.exec_cmd = true),
        "after the restore become the command behind `--`, the parent of the tree"),
    flag("unprivileged", None, All, In::Generic, |s, on| s.engine.unprivileged = on,
        "run with CAP_CHECKPOINT_RESTORE only, and accept what cannot be had then"),
    row("cpu-cap", None, Arg::Optional("CAPS"), Both, In::Generic, Effect::MayValue(cpu_cap),
        "what of the CPU must match: fpu, ins, cpu, all, none, each also as ^X (default: fpu,ins; bare: all)"),
    value("libdir", Some('L'), "DIR", Both, In::Generic, |s, v| path_into(&mut s.libdir, v),
        "directory of CRIU's plugins, which cannot be loaded: it must hold none (see --plugin)"),
    value("close", None, "FD", All, In::Generic, |s, v| {
        s.close_fds.push(number(v)?);
        Ok(())
    }, "close the inherited descriptor FD first"),
    flag("deprecated", None, All, In::Generic, |s, on| s.deprecated = on, "allow what CRIU calls deprecated")
        .ignored("crust has no deprecated functions"),
    flag("no-sync", None, Dump, In::Generic, |s, on| s.engine.no_sync = on,
        "kill the tree before the images are safe from a power cut").ours(),

    flag("dry-run", None, All, In::Generic, |s, on| s.dry_run = on,
        "cleanup: show what a crashed run left, and leave it there").ours(),

    // What a tree may hold
    flag("shell-job", Some('j'), Both, In::Resources, |s, on| s.engine.shell_job = on,
        "the tree belongs to a shell's session and terminal"),
    flag("tcp-established", None, Both, In::Resources, |s, on| s.engine.tcp_established = on,
        "save and restore established TCP connections"),
    flag("tcp-close", None, Both, In::Resources, |s, on| s.engine.tcp_close = on,
        "restore established TCP connections as closed ones"),
    flag("skip-in-flight", None, Dump, In::Resources, |s, on| s.engine.tcp_skip_in_flight = on,
        "leave out TCP connections that are not established yet"),
    flag("file-locks", Some('l'), Both, In::Resources, |s, on| s.engine.file_locks = on,
        "save and restore file locks"),
    flag("link-remap", None, Dump, In::Resources, |s, on| s.engine.link_remap = on,
        "give deleted files a name again where that is possible"),
    value("ghost-limit", None, "SIZE", Dump, In::Resources, |s, v| {
        s.engine.ghost_limit = Some(size(v)?);
        Ok(())
    }, "largest deleted file to store, with K, M or G (default: 1M)"),
    flag("ghost-fiemap", None, Dump, In::Resources, |s, on| s.engine.ghost_fiemap = on,
        "find the holes of deleted files by FIEMAP"),
    flag("evasive-devices", None, Restore, In::Resources, |s, on| s.engine.evasive_devices = on,
        "use any path of a device node"),
    flag("force-irmap", None, Dump, In::Resources, |s, on| s.engine.force_irmap = on,
        "search the file system for the paths of inotify watches"),
    value("irmap-scan-path", None, "PATH", Dump, In::Resources, |s, v| {
        s.engine.irmap_scan_paths.push(PathBuf::from(v));
        Ok(())
    }, "search for watched files below PATH too; may be repeated"),
    value("file-validation", None, "METHOD", Both, In::Resources, |s, v| {
        s.engine.file_validation = match text(v)? {
            "filesize" => FileValidation::FileSize,
            "buildid" => FileValidation::BuildId,
            _ => return Err("filesize or buildid".to_owned()),
        };
        Ok(())
    }, "how restore recognises files: filesize or buildid (default)"),
    value("file-validation-except", None, "PATH", Restore, In::Resources, file_validation_except,
        "take this file, or those below this directory, with any size and build id (a log that grew or was rotated); \
         may be repeated").ours(),
    flag("skip-file-rwx-check", None, Restore, In::Resources, |s, on| s.engine.skip_file_rwx_check = on,
        "accept files whose permissions changed"),
    flag("allow-uprobes", None, Dump, In::Resources, |s, on| s.engine.allow_uprobes = on,
        "accept the mapping that uprobes make"),
    value("network-lock", None, "METHOD", Dump, In::Resources, |s, v| {
        s.engine.network_lock = match text(v)? {
            "iptables" => NetworkLock::Iptables,
            "nftables" => NetworkLock::Nftables,
            "skip" | "none" => NetworkLock::Skip,
            _ => return Err("iptables, nftables, skip or none".to_owned()),
        };
        s.network_lock_given = true;
        Ok(())
    }, "how TCP connections are held while frozen: iptables (default), nftables, skip, none"),

    // External
    value("external", None, "RES", Both, In::External, |s, v| list_into(&mut s.engine.external, v),
        "a resource that comes from outside: tty[..], file[..], dev[..]:NAME, unix[INO], mnt[PATH]:KEY, net[INO]:KEY, \
         pid[INO]:KEY, veth[IF]:OUT, macvlan[IF]:OUT, netdev[IF]:OUT; may be repeated"),
    value("inherit-fd", None, "fd[N]:RES", Restore, In::External, inherit_fd,
        "our descriptor N stands for RES: tty[..], pipe:[..], socket:[..], file[..], a path, or an external key"),
    value("plugin", None, "SOCKET", Both, In::External, plugin,
        "ask the plugin that listens at this unix socket (`@NAME`: an abstract one) to save and restore what crust cannot").ours(),
    row("ext-unix-sk", Some('x'), Arg::Optional("INODES"), Dump, In::External, Effect::MayValue(ext_unix_sk),
        "allow unix sockets whose peers are outside the tree; with inodes, only those"),
    value("ext-mount-map", Some('M'), "KEY:VAL", Both, In::External, ext_mount_map,
        "old form of --external mnt[KEY]:VAL; `auto` finds external mounts"),
    row("enable-external-sharing", None, Arg::None, Dump, In::External, Effect::Set(|s| s.engine.enable_external_sharing = true),
        "external mounts found by `auto` may be shared"),
    row("enable-external-masters", None, Arg::None, Dump, In::External, Effect::Set(|s| s.engine.enable_external_masters = true),
        "external mounts found by `auto` may be slaves"),
    value("veth-pair", None, "IN=OUT", Restore, In::External, |s, v| {
        let (inside, outside) = text(v)?.split_once('=').ok_or("IN=OUT is expected")?;
        s.engine.external.push(format!("veth[{inside}]:{outside}"));
        Ok(())
    }, "old form of --external veth[IN]:OUT"),

    // Namespaces
    value("root", Some('r'), "PATH", Both, In::Namespaces, |s, v| path_into(&mut s.engine.root, v),
        "root of the restored mount namespace; must be a mount point"),
    value("join-ns", Some('J'), "NS:FILE", Restore, In::Namespaces, join_ns,
        "put the tree into an existing namespace: net, uts, time, ipc, user, mnt, by file or pid"),
    value("empty-ns", None, "net", Both, In::Namespaces, |s, v| match text(v)? {
        "net" => {
            s.engine.empty_ns |= CLONE_NEWNET;
            Ok(())
        }
        _ => Err("only net is known".to_owned()),
    }, "a network namespace whose content is left to scripts"),
    row("manage-cgroups", None, Arg::Optional("MODE"), Both, In::Namespaces, Effect::MayValue(manage_cgroups),
        "what to do about cgroups: none, props, soft (default), full, strict, ignore"),
    value("cgroup-root", None, "[CTRL:]PATH", Both, In::Namespaces, |s, v| {
        let v = text(v)?;
        s.engine.cgroup_roots.push(match v.split_once(':') {
            Some((controllers, path)) => CgroupRoot { controllers: Some(controllers.to_owned()), path: path.to_owned() },
            None => CgroupRoot { controllers: None, path: v.to_owned() },
        });
        Ok(())
    }, "another root in the cgroup hierarchy of CTRL, or in all"),
    value("cgroup-yard", None, "PATH", Both, In::Namespaces, |s, v| path_into(&mut s.engine.cgroup_yard, v),
        "directory where the cgroup hierarchies are mounted already"),
    value("cgroup-props", None, "TEXT", Dump, In::Namespaces, |s, v| text_into(&mut s.engine.cgroup_props, v),
        "properties to save, as YAML text"),
    value("cgroup-props-file", None, "FILE", Dump, In::Namespaces, |s, v| path_into(&mut s.engine.cgroup_props_file, v),
        "the same from a file"),
    value("cgroup-dump-controller", None, "NAME", Dump, In::Namespaces, |s, v| list_into(&mut s.engine.cgroup_dump_controllers, v),
        "save this controller only; may be repeated"),
    value("freeze-cgroup", None, "PATH", Dump, In::Namespaces, |s, v| path_into(&mut s.engine.freeze_cgroup, v),
        "freeze the tasks by this cgroup (v1 freezer or v2)"),
    value("skip-mnt", None, "PATH", Dump, In::Namespaces, |s, v| list_into(&mut s.engine.skip_mnt, v),
        "leave this mount out; may be repeated"),
    value("enable-fs", None, "LIST", Dump, In::Namespaces, |s, v| {
        s.engine.enable_fs.extend(text(v)?.split(',').filter(|n| !n.is_empty()).map(str::to_owned));
        Ok(())
    }, "try file systems that are not known, by names or `all`"),
    flag("mntns-compat-mode", None, Restore, In::Namespaces, |s, on| s.engine.mntns_compat_mode = on,
        "build mounts without MOVE_MOUNT_SET_GROUP"),
    flag("weak-sysctls", None, Restore, In::Namespaces, |s, on| s.engine.weak_sysctls = on,
        "go on where a sysctl does not exist here"),
    value("lsm-profile", None, "TYPE:NAME", Restore, In::Namespaces, |s, v| {
        let v = text(v)?;
        match v.split_once(':') {
            Some(("apparmor" | "selinux", name)) if !name.is_empty() => s.engine.lsm_profile = Some(v.to_owned()),
            Some(("none", _)) => s.engine.lsm_profile = Some(v.to_owned()),
            None if v == "none" => s.engine.lsm_profile = Some("none:".to_owned()),
            _ => return Err("apparmor:NAME, selinux:NAME or none".to_owned()),
        }
        Ok(())
    }, "security profile of the restored tasks: apparmor or selinux"),
    value("lsm-mount-context", None, "CTX", Restore, In::Namespaces, |s, v| text_into(&mut s.engine.lsm_mount_context, v),
        "security context for restored mounts that have one"),

    // Memory
    flag("track-mem", None, Dump, In::Memory, |s, on| s.engine.track_mem = on,
        "track memory writes for a later incremental dump"),
    value("prev-images-dir", None, "DIR", Dump, In::Memory, |s, v| path_into(&mut s.engine.prev_images_dir, v),
        "images of the dump before, relative to -D"),
    flag("auto-dedup", None, Both, In::Memory, |s, on| s.engine.auto_dedup = on,
        "free the pages of older images that a newer one replaces"),
    value("pre-dump-mode", None, "MODE", Dump, In::Memory, |s, v| {
        s.engine.pre_dump_mode = match text(v)? {
            "splice" => PreDumpMode::Splice,
            "read" => PreDumpMode::Read,
            _ => return Err("splice or read".to_owned()),
        };
        Ok(())
    }, "how pre-dump reads memory: splice (default) or read"),
    flag("page-server", None, Dump, In::Memory, |s, on| s.page_server = on,
        "send pages to a page server, see --address and --port"),
    flag("lazy-pages", None, Both, In::Memory, |s, on| s.engine.lazy_pages = on,
        "bring pages when they are used"),
    value("images-tar", None, "FILE", Both, In::Memory, |s, v| {
        s.images_tar = Some(PathBuf::from(v));
        Ok(())
    }, "write to or read from a tar archive instead of the image directory; `-` is standard output or input").ours(),
    flag("stream", None, Both, In::Memory, |s, on| s.engine.stream = on,
        "write to or read from criu-image-streamer"),

    // check
    value("feature", None, "NAME", Check, In::Check, |s, v| text_into(&mut s.feature, v),
        "check this one feature"),
    flag("extra", None, Check, In::Check, |s, on| s.check_extra = on, "check optional features too"),
    flag("experimental", None, Check, In::Check, |s, on| s.check_experimental = on, "check experimental features too"),
    row("all", None, Arg::None, Check, In::Check, Effect::Set(|s| (s.check_extra, s.check_experimental) = (true, true)),
        "both"),
    value("pid", None, "PID", Check, In::Check, |s, v| {
        s.pid_or_pidfile = Some(v.to_os_string());
        Ok(())
    }, "say what in the tree below PID would stop a dump, changing nothing").ours(),
    flag("needs", None, Check, In::Check, |s, on| s.check_needs = on,
        "say which privileges dump and restore of the tree below --pid, or a restore from --images-dir, take here and why").ours(),
    flag("json", None, Check, In::Check, |s, on| s.check_json = on, "say it as JSON (with --needs)").ours(),
    row("ms", None, Arg::None, Check, In::Check, Effect::Value(|_, _| Err(String::new())), "refused, as in CRIU"),

    // Logging
    value("log-file", Some('o'), "FILE", All, In::Logging, |s, v| path_into(&mut s.log_file, v),
        "log into FILE; `-` is standard output (default: standard error)"),
    row("verbosity", Some('v'), Arg::Optional("N"), All, In::Logging, Effect::MayValue(verbosity),
        "1 errors, 2 warnings (default), 3 information and time stamps, 4 everything; -v adds one"),
    flag("log-pid", None, Restore, In::Logging, |s, on| s.log_pid = on, "a log file for each task")
        .ignored("restored tasks write no log of their own"),
    flag("display-stats", None, Both, In::Logging, |s, on| s.display_stats = on, "print statistics"),

    // Servers
    value("address", None, "ADDR", Server, In::Servers, |s, v| path_into(&mut s.address, v),
        "address of the page server, or path of the service's socket (default: ./criu_service.socket)"),
    value("port", None, "PORT", Server, In::Servers, |s, v| {
        let port: u16 = number(v)?;
        if port == 0 {
            return Err("1 to 65535".to_owned());
        }
        s.port = port;
        Ok(())
    }, "port of the page server"),
    value("ps-socket", None, "FD", Server, In::Servers, |s, v| {
        s.ps_socket = Some(number(v)?);
        Ok(())
    }, "inherited socket to the page server"),
    flag("daemon", None, Server, In::Servers, |s, on| s.detached = on, "go into the background (same as -d)"),
    value("status-fd", None, "FD", Server, In::Servers, |s, v| {
        s.status_fd = Some(number(v)?);
        Ok(())
    }, "write one zero byte to FD and close it when ready"),
    value("socket-mode", None, "MODE", Server, In::Servers, |s, v| {
        s.socket_mode = u32::from_str_radix(text(v)?, 8).ok().filter(|m| *m <= 0o777).ok_or("octal, 0 to 777")?;
        Ok(())
    }, "permissions of the service's socket (default: 600)").ours(),
    value("idle-timeout", None, "SECONDS", Server, In::Servers, |s, v| {
        s.idle_timeout = Some(fraction(v)?).filter(|t| !t.is_zero());
        Ok(())
    }, "end a socket-activated service after SECONDS without a request; 0: never (default)").ours(),
    value("restore-via", None, "PATH", Server, In::Servers, |s, v| path_into(&mut s.restore_via, v),
        "hand RESTORE and CHECK of root to the service at this socket, which is not confined as this one is").ours(),
    row("handed-over", None, Arg::None, Server, In::Servers, Effect::Set(|s| s.handed_over = true),
        "be that service: take one client from another service, whose connection is passed (Accept=yes)").ours(),
    value("request-timeout", None, "SECONDS", Server, In::Servers, |s, v| {
        s.request_timeout = seconds(v)?.max(Duration::from_secs(1));
        Ok(())
    }, "most time that one connection to the service may take (default: 3600)").ours(),
    value("stop-timeout", None, "SECONDS", Server, In::Servers, |s, v| {
        s.stop_timeout = seconds(v)?;
        Ok(())
    }, "how long running requests may go on when the service is stopped; then they roll back (default: 60)").ours(),
    flag("tls", None, Server, In::Servers, |s, on| s.tls = on, "secure the page server's connection"),
    value("tls-cacert", None, "FILE", Server, In::Servers, tls_file, "trusted certificates"),
    value("tls-cacrl", None, "FILE", Server, In::Servers, tls_file, "revoked certificates"),
    value("tls-cert", None, "FILE", Server, In::Servers, tls_file, "our certificate"),
    value("tls-key", None, "FILE", Server, In::Servers, tls_file, "our key"),
    row("tls-no-cn-verify", None, Arg::None, Server, In::Servers, Effect::Set(|_| ()),
        "do not compare the name in the certificate"),

    // Files and help
    value("config", None, "FILE", All, In::Files, |_, _| Ok(()), "read options from FILE instead of the default files"),
    row("no-default-config", None, Arg::None, All, In::Files, Effect::Set(|_| ()), "read no default files"),
    row("help", Some('h'), Arg::None, All, In::Files, Effect::Set(|s| s.help = true), "show this text"),
    row("version", Some('V'), Arg::None, All, In::Files, Effect::Set(|s| s.version = true), "show the version"),
];

/// CLONE_NEWNET, as `empty_ns` carries it.
pub(crate) const CLONE_NEWNET: u32 = 0x4000_0000;

/// CRIU's CPU_CAP_* bits.
pub(crate) mod cpu {
    pub(crate) const FPU: u32 = 1;
    pub(crate) const CPU: u32 = 1 << 1;
    pub(crate) const INS: u32 = 1 << 2;
    pub(crate) const IMAGE: u32 = 1 << 3;
    pub(crate) const ALL: u32 = FPU | CPU | INS;
    pub(crate) const DEFAULT: u32 = FPU | INS;
}

fn text(v: &OsStr) -> Result<&str, String> {
    v.to_str().ok_or_else(|| "not valid UTF-8".to_owned())
}

fn number<T: std::str::FromStr>(v: &OsStr) -> Result<T, String> {
    text(v)?.trim().parse().map_err(|_| "not a number in range".to_owned())
}

/// Whole seconds; few enough that no sum with a time of day overflows.
fn seconds(v: &OsStr) -> Result<Duration, String> {
    number::<u32>(v).map(|n| Duration::from_secs(n.into()))
}

/// Seconds that may have a fraction.
fn fraction(v: &OsStr) -> Result<Duration, String> {
    let limit = f64::from(u32::MAX);
    let seconds: f64 = number(v)?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if seconds <= limit => Ok(time),
        _ => Err("not a number in range".to_owned()),
    }
}

fn positive(v: &OsStr) -> Result<i32, String> {
    match number(v)? {
        pid if pid > 0 => Ok(pid),
        _ => Err("a pid is greater than zero".to_owned()),
    }
}

fn path_into(slot: &mut Option<PathBuf>, v: &OsStr) -> Result<(), String> {
    *slot = Some(PathBuf::from(v));
    Ok(())
}

fn text_into(slot: &mut Option<String>, v: &OsStr) -> Result<(), String> {
    *slot = Some(text(v)?.to_owned());
    Ok(())
}

fn list_into(list: &mut Vec<String>, v: &OsStr) -> Result<(), String> {
    list.push(text(v)?.to_owned());
    Ok(())
}

fn tls_file(_: &mut Settings, _: &OsStr) -> Result<(), String> {
    Ok(())
}

/// A number with K, M or G behind it.
fn size(v: &OsStr) -> Result<u64, String> {
    let v = text(v)?.trim();
    let (digits, shift) = match v.char_indices().next_back() {
        Some((i, 'K' | 'k')) => (v.get(..i), 10),
        Some((i, 'M' | 'm')) => (v.get(..i), 20),
        Some((i, 'G' | 'g')) => (v.get(..i), 30),
        _ => (Some(v), 0),
    };
    let count: u64 = digits.and_then(|d| d.parse().ok()).ok_or("a size is a number, with K, M or G behind it")?;
    count.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

/// `-v` adds one, `-vvv` three, `-v4` is 4. Anything else counts as 0, which CRIU's tests rely on (`-verbosity=0`).
fn verbosity(s: &mut Settings, v: Option<&OsStr>) -> Result<(), String> {
    let v = v.map(|v| v.to_string_lossy().into_owned()).unwrap_or_default();
    s.log_level = if v.is_empty() {
        s.log_level.saturating_add(1)
    } else if v.starts_with('v') {
        s.log_level.saturating_add(i32::try_from(v.len()).unwrap_or(4).saturating_add(1))
    } else {
        let digits: String = v.trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    };
    Ok(())
}

fn cpu_cap(s: &mut Settings, v: Option<&OsStr>) -> Result<(), String> {
    let caps = &mut s.engine.cpu_cap;
    let Some(v) = v else {
        *caps |= cpu::ALL | cpu::IMAGE;
        return Ok(());
    };
    for word in text(v)?.split(',').filter(|w| !w.is_empty()) {
        let name = word.trim_start_matches('^');
        let without = (word.len() - name.len()) % 2 == 1;
        let bits = match name {
            "fpu" => cpu::FPU,
            "cpu" => cpu::CPU,
            "ins" => cpu::INS,
            "all" => cpu::ALL,
            "none" => {
                *caps = if without { cpu::ALL } else { 0 };
                continue;
            }
            _ => return Err("fpu, ins, cpu, all, none, each also as ^X".to_owned()),
        };
        *caps = if without { *caps & !bits } else { *caps | bits };
    }
    if *caps != 0 {
        *caps |= cpu::IMAGE;
    }
    Ok(())
}

fn manage_cgroups(s: &mut Settings, v: Option<&OsStr>) -> Result<(), String> {
    s.engine.manage_cgroups = match v.map(text).transpose()? {
        None | Some("soft") => ManageCgroups::Soft,
        Some("none") => ManageCgroups::None,
        Some("props") => ManageCgroups::Props,
        Some("full") => ManageCgroups::Full,
        Some("strict") => ManageCgroups::Strict,
        Some("ignore") => ManageCgroups::Ignore,
        Some(_) => return Err("none, props, soft, full, strict or ignore".to_owned()),
    };
    Ok(())
}

fn ext_unix_sk(s: &mut Settings, v: Option<&OsStr>) -> Result<(), String> {
    if let Some(v) = v {
        for inode in text(v)?.split(',').filter(|i| !i.is_empty()) {
            let inode: u32 = inode.trim().parse().map_err(|_| "inode numbers with commas between them".to_owned())?;
            s.engine.ext_unix_inodes.push(inode);
        }
    }
    s.engine.ext_unix_sk = true;
    Ok(())
}

fn ext_mount_map(s: &mut Settings, v: &OsStr) -> Result<(), String> {
    let v = text(v)?;
    s.engine.external.push(match v.split_once(':') {
        None if v == "auto" => "mnt[]".to_owned(),
        None => return Err("KEY:VAL or auto is expected".to_owned()),
        Some((key, val)) => format!("mnt[{key}]:{val}"),
    });
    Ok(())
}

/// The namespaces that `--join-ns` knows.
pub(crate) const JOINABLE: [&str; 6] = ["net", "uts", "time", "ipc", "user", "mnt"];

fn join_ns(s: &mut Settings, v: &OsStr) -> Result<(), String> {
    let (ns, rest) = text(v)?.split_once(':').ok_or("NS:FILE or NS:PID is expected")?;
    if !JOINABLE.contains(&ns) {
        return Err(format!("one of {}", JOINABLE.join(", ")));
    }
    let (file, extra) = match rest.split_once(',') {
        Some((file, extra)) => (file, Some(extra.to_owned())),
        None => (rest, None),
    };
    if file.is_empty() {
        return Err("the namespace's file or pid is missing".to_owned());
    }
    s.engine.join_ns.push(JoinNs { ns: ns.to_owned(), file: file.to_owned(), extra });
    Ok(())
}

/// A path is one where the option is given, wherever we work later.
fn plugin(s: &mut Settings, v: &OsStr) -> Result<(), String> {
    let text = v.to_str().filter(|t| !t.is_empty()).ok_or("a path, or `@` and a name, is expected")?;
    let address = match std::path::absolute(text) {
        Ok(path) if !text.starts_with('@') => path.to_string_lossy().into_owned(),
        _ => text.to_owned(),
    };
    s.engine.plugins.push(address);
    Ok(())
}

fn file_validation_except(s: &mut Settings, v: &OsStr) -> Result<(), String> {
    s.engine.unvalidated.push(std::path::absolute(v).map_err(|e| e.to_string())?);
    Ok(())
}

fn inherit_fd(s: &mut Settings, v: &OsStr) -> Result<(), String> {
    const SHAPE: &str = "fd[N]:RES is expected";
    let v = text(v)?;
    if let Some(rest) = v.strip_prefix("debug[") {
        log::info!("inherit-fd {rest}");
        return Ok(());
    }
    let (fd, key) = v.strip_prefix("fd[").and_then(|r| r.split_once("]:")).ok_or(SHAPE)?;
    let fd: i32 = fd.parse().ok().filter(|fd| *fd >= 0).ok_or(SHAPE)?;
    if key.is_empty() {
        return Err(SHAPE.to_owned());
    }
    s.engine.inherit_fds.push(InheritFd { key: key.to_owned(), fd });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn set(args: &[&str]) -> Result<Settings, String> {
        let mut settings = Settings::default();
        let (tokens, outcome) = super::super::getopt::parse(args.iter().map(std::ffi::OsString::from));
        outcome.map_err(|e| e.0)?;
        for token in tokens {
            if let super::super::getopt::Token::Option { def, negated, value } = token {
                def.apply(&mut settings, negated, value.as_deref())?;
            }
        }
        Ok(settings)
    }

    /// Every long option of CRIU 4.2, from the contract: `=` takes a value, `?` may take one.
    const CRIU: &str = "tree= leave-stopped leave-running restore-detached restore-sibling daemon images-dir= work-dir= \
        log-file= join-ns= root= ext-unix-sk? help tcp-established close= log-pid version evasive-devices pidfile= \
        veth-pair= action-script= link-remap shell-job file-locks page-server address= port= prev-images-dir= ms \
        track-mem auto-dedup libdir= cpu-cap? force-irmap ext-mount-map= exec-cmd manage-cgroups? cgroup-root= \
        inherit-fd= feature= skip-mnt= enable-fs= enable-external-sharing enable-external-masters freeze-cgroup= \
        ghost-limit= irmap-scan-path= lsm-profile= timeout= external= empty-ns= lazy-pages extra experimental all \
        cgroup-props= cgroup-props-file= cgroup-dump-controller= skip-in-flight deprecated display-stats weak-sysctls \
        status-fd= verbosity? tcp-close ps-socket= stream config= no-default-config tls-cacert= tls-cacrl= tls-cert= \
        tls-key= tls tls-no-cn-verify cgroup-yard= pre-dump-mode= file-validation= skip-file-rwx-check \
        lsm-mount-context= network-lock= mntns-compat-mode unprivileged ghost-fiemap allow-uprobes";

    #[test]
    fn every_option_of_criu_is_here_with_its_kind_and_no_other_is() {
        let theirs: BTreeSet<&str> = CRIU.split_whitespace().collect();
        let ours: BTreeSet<String> = OPTIONS
            .iter()
            .filter(|d| !d.ours)
            .map(|d| match d.arg {
                Arg::None => d.long.to_owned(),
                Arg::Required(_) => format!("{}=", d.long),
                Arg::Optional(_) => format!("{}?", d.long),
            })
            .collect();
        assert_eq!(ours.iter().map(String::as_str).collect::<BTreeSet<_>>(), theirs);
    }

    #[test]
    fn letters_are_criu_s() {
        let mut letters: Vec<char> = OPTIONS.iter().filter_map(|d| d.short).collect();
        letters.sort_unstable();
        assert_eq!(letters.into_iter().collect::<String>(), "DJLMRSVWdhjlorstvx");
    }

    #[test]
    fn defaults_are_criu_s() {
        let s = set(&[]).unwrap();
        assert_eq!((s.log_level, s.engine.cpu_cap, s.socket_mode), (2, cpu::FPU | cpu::INS, 0o600));
        assert!(s.engine.ghost_fiemap);
        assert_eq!(s.engine.timeout, None, "the engine knows CRIU's ten seconds for the freeze");
        assert_eq!(s.engine.manage_cgroups, ManageCgroups::Soft);
    }

    #[test]
    fn later_wins_and_lists_grow() {
        let s =
            set(&["--tcp-close", "--no-tcp-close", "--external", "a", "--external=b", "-v4", "-v", "-t1", "-t", "2"]);
        let s = s.unwrap();
        assert!(!s.engine.tcp_close);
        assert_eq!(s.engine.external, ["a", "b"]);
        assert_eq!((s.log_level, s.engine.pid), (5, 2));
    }

    #[test]
    fn verbosity_counts_as_in_criu() {
        for (args, level) in [
            (&["-v"][..], 3),
            (&["-vvv"], 5),
            (&["-v4"], 4),
            (&["--verbosity=1"], 1),
            (&["-verbosity=0"], 0),
            (&["-v0"], 0),
            (&["-v", "-v"], 4),
        ] {
            assert_eq!(set(args).unwrap().log_level, level, "{args:?}");
        }
    }

    #[test]
    fn old_forms_become_external_resources() {
        let s = set(&["-M", "/a:b", "-M", "auto", "--veth-pair", "eth0=veth1"]).unwrap();
        assert_eq!(s.engine.external, ["mnt[/a]:b", "mnt[]", "veth[eth0]:veth1"]);
    }

    #[test]
    fn values_are_checked() {
        for args in [
            &["-t", "0"][..],
            &["-t", "-5"],
            &["-t", "x"],
            &["--port", "0"],
            &["--port", "70000"],
            &["--manage-cgroups=x"],
            &["--cpu-cap=x"],
            &["--join-ns", "pid:1"],
            &["--join-ns", "net"],
            &["--inherit-fd", "fd[x]:a"],
            &["--inherit-fd", "3:a"],
            &["--empty-ns", "mnt"],
            &["--ghost-limit", "1T"],
            &["--lsm-profile", "smack:x"],
            &["--network-lock", "x"],
            &["--pre-dump-mode", "x"],
            &["--file-validation", "x"],
            &["--status-fd", "x"],
            &["--idle-timeout", "-1"],
            &["--idle-timeout", "nan"],
            &["--idle-timeout", "1e30"],
            &["--stop-timeout", "99999999999"],
            &["--veth-pair", "x"],
            &["-M", "x"],
            &["--ms"],
        ] {
            assert!(set(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn values_arrive() {
        let s = set(&["--ghost-limit", "2M", "--cgroup-root", "c1,c2:/p", "--cgroup-root", "/q", "-J", "user:7,1,2"]);
        let s = s.unwrap();
        assert_eq!(s.engine.ghost_limit, Some(2 << 20));
        assert_eq!(s.engine.cgroup_roots[0], CgroupRoot { controllers: Some("c1,c2".into()), path: "/p".into() });
        assert_eq!(s.engine.cgroup_roots[1], CgroupRoot { controllers: None, path: "/q".into() });
        assert_eq!(s.engine.join_ns[0], JoinNs { ns: "user".into(), file: "7".into(), extra: Some("1,2".into()) });
        let s = set(&["--inherit-fd", "fd[3]:pipe:[77]", "-x1,2", "--cpu-cap=none", "--enable-fs", "a,b"]).unwrap();
        assert_eq!(s.engine.inherit_fds[0], InheritFd { key: "pipe:[77]".into(), fd: 3 });
        assert_eq!(s.engine.ext_unix_inodes, [1, 2]);
        assert_eq!(s.engine.cpu_cap, 0);
        assert_eq!(s.engine.enable_fs, ["a", "b"]);
        assert_eq!(set(&["--cpu-cap"]).unwrap().engine.cpu_cap, cpu::ALL | cpu::IMAGE);
        assert_eq!(set(&["--cpu-cap=all,^fpu"]).unwrap().engine.cpu_cap, cpu::CPU | cpu::INS | cpu::IMAGE);
    }
}

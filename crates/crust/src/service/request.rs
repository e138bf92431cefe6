//! From the options of a request to settings, in CRIU's order: fields, configuration file, directories, log.
use super::peer::Peer;
use super::worker::Mode as WorkerMode;
use crate::cli::settings::Settings;
use crate::cli::{self, Verb, options};
use crate::{commands, logging};
use crust_engine::options::{After, CgroupRoot, InheritFd, JoinNs, ManageCgroups, NetworkLock, PreDumpMode};
use crust_engine::{Error, Kind, Object, OnObject, Result, ResultExt};
use crust_rpc::{CgroupMode, Opts};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A request that is ready to be carried out.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) settings: Settings,
    pub(super) notify: bool,
    pub(super) exec_cmd: Vec<OsString>,
    /// The tree to dump is the caller's own.
    pub(super) caller_itself: bool,
    /// Closed when the request is over. CRIU writes to it only where others could connect then: to a page server, or to
    /// a lazy dump.
    pub(super) _status_fd: Option<OwnedFd>,
}

fn bad(what: impl Into<String>) -> Error {
    Error::new(Kind::BadRequest, what)
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// Makes `opts` a job, changes into its work directory and opens its log. `socket` is ours, for a self-dump.
pub(super) fn job(
    verb: Verb,
    mut opts: Opts,
    mut settings: Settings,
    mode: WorkerMode,
    peer: &Peer,
    socket: impl AsFd,
) -> Result<Job> {
    check_rights(&opts, mode, peer)?;
    if opts.log_file.as_ref().is_some_and(|f| f.contains(&b'/')) {
        return Err(bad("No subdirs are allowed in log_file name").help("choose the directory with work_dir_fd"));
    }
    fields(&mut opts, &mut settings)?;
    settings.detached = true;
    let dumps = matches!(verb, Verb::Dump | Verb::PreDump);
    if dumps {
        settings.engine.service_socket_inode =
            Some(rustix::fs::fstat(socket).during("asking for our socket's inode")?.st_ino);
        // A request without a pid is about the caller itself.
        settings.engine.pid = match opts.pid {
            Some(pid) if pid > 0 => pid,
            Some(0) | None => peer.pid()?.as_raw(),
            Some(pid) => return Err(bad(format!("{pid} is no pid"))),
        };
    }
    let caller_itself = dumps && opts.pid.is_none_or(|pid| pid == 0);
    let status_fd = opts.status_fd.map(|fd| peer.descriptor(fd)).transpose()?;

    // What default.conf says about these is not the same as what the request's own file says.
    let default_work_dir = settings.work_dir.take();
    let default_log = settings.log_file.take();
    settings.images_dir = None;
    if let Some(file) = opts.config_file.as_deref().filter(|f| !f.is_empty()) {
        cli::apply_file(&mut settings, &path(file)).map_err(|e| bad(e.text().to_owned()))?;
    }
    // The request's level wins over any file's, even where it is only the default.
    settings.log_level = opts.log_level.unwrap_or(logging::DEFAULT_LEVEL);
    directories(&opts, &mut settings, peer, default_work_dir)?;
    open_log(&opts, &mut settings, default_log)?;
    commands::validate(verb, &mut settings)?;
    if dumps {
        commands::not_ourselves(settings.engine.pid)?;
    }
    Ok(Job {
        settings,
        notify: opts.notify_scripts.unwrap_or(false),
        exec_cmd: opts.exec_cmd.into_iter().map(OsString::from_vec).collect(),
        caller_itself,
        _status_fd: status_fd,
    })
}

/// What only some callers may ask for.
fn check_rights(opts: &Opts, mode: WorkerMode, peer: &Peer) -> Result<()> {
    if !mode.is_service() {
        return Ok(());
    }
    let own_numbers = opts.rst_sibling.is_some() || !opts.inherit_fd.is_empty();
    if own_numbers || opts.ps.as_ref().is_some_and(|ps| ps.fd.is_some()) {
        return Err(bad(
            "rst_sibling, inherit_fd and ps.fd work only in swrk: the service does not have your descriptors",
        ));
    }
    let for_root = [
        ("config_file", opts.config_file.is_some()),
        ("exec_cmd", !opts.exec_cmd.is_empty()),
        ("lsm_profile", opts.lsm_profile.is_some()),
        ("lsm_mount_context", opts.lsm_mount_context.is_some()),
    ];
    match for_root.into_iter().find(|(_, is_set)| *is_set && peer.uid() != 0) {
        Some((name, _)) => Err(Error::new(Kind::Permission, format!("{name} is for root only in the service"))
            .help("leave it out, or use `crust swrk`")),
        None => Ok(()),
    }
}

/// Field by field; the command line's own checks are used where a field is the text of an option.
fn fields(o: &mut Opts, s: &mut Settings) -> Result<()> {
    let e = &mut s.engine;
    macro_rules! take {
        ($($field:ident => $target:expr;)*) => { $( if let Some(v) = o.$field.take() { $target = v.into(); } )* };
    }
    take! {
        ext_unix_sk => e.ext_unix_sk; tcp_established => e.tcp_established; evasive_devices => e.evasive_devices;
        shell_job => e.shell_job; file_locks => e.file_locks; track_mem => e.track_mem; auto_dedup => e.auto_dedup;
        link_remap => e.link_remap; force_irmap => e.force_irmap; rst_sibling => e.restore_sibling;
        ext_sharing => e.enable_external_sharing; ext_masters => e.enable_external_masters;
        tcp_skip_in_flight => e.tcp_skip_in_flight; weak_sysctls => e.weak_sysctls; lazy_pages => e.lazy_pages;
        orphan_pts_master => e.orphan_pts_master; tcp_close => e.tcp_close; mntns_compat_mode => e.mntns_compat_mode;
        skip_file_rwx_check => e.skip_file_rwx_check; unprivileged => e.unprivileged; display_stats => s.display_stats;
        lsm_mount_context => e.lsm_mount_context; cgroup_props => e.cgroup_props; tls => s.tls;
    }
    for (from, to) in [
        (o.root.take(), &mut e.root),
        (o.parent_img.take(), &mut e.prev_images_dir),
        (o.freeze_cgroup.take(), &mut e.freeze_cgroup),
        (o.cgroup_props_file.take(), &mut e.cgroup_props_file),
        (o.cgroup_yard.take(), &mut e.cgroup_yard),
    ] {
        if let Some(bytes) = from {
            *to = Some(path(&bytes));
        }
    }
    e.irmap_scan_paths.extend(o.irmap_scan_paths.drain(..).map(|p| path(&p)));
    e.skip_mnt.append(&mut o.skip_mnt);
    e.enable_fs.append(&mut o.enable_fs);
    e.external.append(&mut o.external);
    e.cgroup_dump_controllers.append(&mut o.cgroup_dump_controller);
    if o.leave_running == Some(true) {
        e.after = After::Run;
    }
    if o.leave_stopped == Some(true) {
        (e.after, e.leave_stopped) = (After::Stop, true);
    }
    if let Some(limit) = o.ghost_limit {
        e.ghost_limit = Some(limit.into());
    }
    if let Some(seconds) = o.timeout.filter(|t| *t > 0) {
        e.timeout = Some(Duration::from_secs(seconds.into()));
    }
    if let Some(caps) = o.cpu_cap {
        e.cpu_cap = (caps & options::cpu::ALL) | options::cpu::IMAGE;
    }
    if let Some(name) = o.crust_plugins.iter().find(|name| !name.starts_with(['/', '@'])) {
        return Err(bad(format!("crust_plugins: {name} is neither an absolute path nor an abstract name behind `@`")));
    }
    e.plugins.append(&mut o.crust_plugins);
    e.unvalidated.extend(o.crust_file_validation_except.drain(..).map(|p| path(&p)));
    if let Some(relative) = e.unvalidated.iter().find(|path| !path.is_absolute()) {
        return Err(bad(format!("crust_file_validation_except: {} is no absolute path", relative.display())));
    }
    cgroups(o, s)?;
    old_forms(o, s);
    let e = &mut s.engine;
    e.inherit_fds.extend(o.inherit_fd.drain(..).map(|i| InheritFd { key: i.key, fd: i.fd }));
    names_and_numbers(o, s)
}

/// What only some values are known of.
fn names_and_numbers(o: &mut Opts, s: &mut Settings) -> Result<()> {
    let e = &mut s.engine;
    if let Some(ns) = o.empty_ns {
        if ns & !options::CLONE_NEWNET != 0 {
            return Err(bad(format!("empty_ns {ns:#x}: only CLONE_NEWNET is known")));
        }
        e.empty_ns |= ns;
    }
    for join in o.join_ns.drain(..) {
        if !options::JOINABLE.contains(&join.ns.as_str()) {
            return Err(bad(format!("join_ns: {} is none of {}", join.ns, options::JOINABLE.join(", "))));
        }
        e.join_ns.push(JoinNs { ns: join.ns, file: join.ns_file, extra: join.extra_opt });
    }
    if let Some(profile) = o.lsm_profile.take() {
        let known = ["apparmor:", "selinux:", "none:"].iter().any(|t| profile.starts_with(t));
        if !known && profile != "none" {
            return Err(bad(format!("lsm_profile {profile}: apparmor:NAME, selinux:NAME or none is expected")));
        }
        e.lsm_profile = Some(profile);
    }
    if let Some(raw) = o.pre_dump_mode {
        e.pre_dump_mode = match crust_rpc::PreDumpMode::try_from(raw) {
            Ok(crust_rpc::PreDumpMode::Splice) => PreDumpMode::Splice,
            Ok(crust_rpc::PreDumpMode::VmRead) => PreDumpMode::Read,
            Err(_) => return Err(bad(format!("pre_dump_mode {raw} is unknown"))),
        };
    }
    if let Some(raw) = o.network_lock {
        e.network_lock = match crust_rpc::NetworkLock::try_from(raw) {
            Ok(crust_rpc::NetworkLock::Iptables) => NetworkLock::Iptables,
            Ok(crust_rpc::NetworkLock::Nftables) => NetworkLock::Nftables,
            Ok(crust_rpc::NetworkLock::Skip) => NetworkLock::Skip,
            Err(_) => return Err(bad(format!("network_lock {raw} is unknown"))),
        };
    }
    if let Some(ps) = &o.ps {
        if ps.port.is_some_and(|p| u16::try_from(p).is_err()) {
            return Err(bad("ps.port is out of range"));
        }
        s.page_server = true;
    }
    Ok(())
}

fn cgroups(o: &mut Opts, s: &mut Settings) -> Result<()> {
    let e = &mut s.engine;
    e.cgroup_roots.extend(o.cg_root.drain(..).map(|r| CgroupRoot { controllers: r.ctrl, path: r.path }));
    match o.manage_cgroups {
        Some(true) => e.manage_cgroups = ManageCgroups::Soft,
        Some(false) => e.manage_cgroups = ManageCgroups::Ignore,
        None => {}
    }
    if let Some(raw) = o.manage_cgroups_mode {
        e.manage_cgroups = match CgroupMode::try_from(raw) {
            Ok(CgroupMode::Ignore) => ManageCgroups::Ignore,
            Ok(CgroupMode::None) => ManageCgroups::None,
            Ok(CgroupMode::Props) => ManageCgroups::Props,
            Ok(CgroupMode::Soft | CgroupMode::Default) => ManageCgroups::Soft,
            Ok(CgroupMode::Full) => ManageCgroups::Full,
            Ok(CgroupMode::Strict) => ManageCgroups::Strict,
            Err(_) => return Err(bad(format!("manage_cgroups_mode {raw} is unknown"))),
        };
    }
    Ok(())
}

/// Fields that are `external` in newer words.
fn old_forms(o: &mut Opts, s: &mut Settings) {
    let external = &mut s.engine.external;
    external.extend(o.veths.drain(..).map(|v| format!("veth[{}]:{}", v.if_in, v.if_out)));
    external.extend(o.ext_mnt.drain(..).map(|m| format!("mnt[{}]:{}", m.key, m.val)));
    if o.auto_ext_mnt == Some(true) {
        external.push("mnt[]".to_owned());
    }
    if s.engine.ext_unix_sk {
        external.extend(o.unix_sk_ino.iter().map(|u| format!("unix[{}]", u.inode)));
        s.engine.ext_unix_inodes.extend(o.unix_sk_ino.drain(..).map(|u| u.inode));
    }
}

/// Images and work directory: the file's word, else the caller's descriptor, else a path, else (work) the images'.
fn directories(o: &Opts, s: &mut Settings, peer: &Peer, default_work_dir: Option<PathBuf>) -> Result<()> {
    let fetched = |fd: Option<i32>| fd.filter(|fd| *fd >= 0).map(|fd| peer.descriptor(fd)).transpose();
    let images = match (s.images_dir.take(), fetched(o.images_dir_fd)?, &o.images_dir) {
        (Some(dir), ..) => reopen(&dir)?,
        (None, Some(fd), _) => reopen_fd(&fd, "images_dir_fd")?,
        (None, None, Some(dir)) => reopen(&path(dir))?,
        (None, None, None) => {
            return Err(bad("neither images_dir_fd nor images_dir is set")
                .help("open the image directory and send its number as images_dir_fd"));
        }
    };
    let work = match (s.work_dir.take(), fetched(o.work_dir_fd)?, default_work_dir) {
        (Some(dir), ..) => reopen(&dir)?,
        (None, Some(fd), _) => reopen_fd(&fd, "work_dir_fd")?,
        (None, None, Some(dir)) => reopen(&dir)?,
        (None, None, None) => reopen_fd(&images, "images_dir_fd")?,
    };
    let name = std::fs::read_link(format!("/proc/self/fd/{}", images.as_raw_fd()));
    s.engine.images_dir_path = name.unwrap_or_else(|_| PathBuf::from("(the caller's images_dir_fd)"));
    rustix::process::fchdir(&work).during("changing to the work directory")?;
    s.engine.images_dir = Some(images);
    s.engine.work_dir = Some(work);
    Ok(())
}

fn reopen(dir: &Path) -> Result<OwnedFd> {
    commands::open_dir(dir).map_err(|e| e.kind_is(Kind::BadRequest))
}

/// Our own opening of a directory that the caller holds open: its offset and flags stay the caller's business, and the
/// rights are checked anew, for whom this worker has become.
fn reopen_fd(fd: &OwnedFd, what: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(fd, ".", flags, Mode::empty())
        .during("opening the caller's directory")
        .map_err(|e| e.kind_is(Kind::BadRequest).on(Object::Option(what.to_owned())))
}

/// The log of this request. An existing file is truncated in place; a symbolic link is not followed.
fn open_log(o: &Opts, s: &mut Settings, default_log: Option<PathBuf>) -> Result<()> {
    let (name, follow) = match (s.log_file.take(), &o.log_file) {
        (Some(file), _) => (file, true),
        (None, Some(file)) => (path(file), false),
        (None, None) if o.log_to_stderr == Some(true) => {
            logging::set_sink(logging::Sink::Stderr);
            logging::set_level(s.log_level);
            return Ok(());
        }
        (None, None) => match default_log {
            Some(file) => (file, true),
            None => (PathBuf::from("criu.log"), false),
        },
    };
    // No truncation before we know that it is a plain file, and no waiting for a FIFO's reader.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let mode = Mode::RUSR | Mode::WUSR;
    let shown = name.display().to_string();
    let wrong = |e: Error| e.kind_is(Kind::BadRequest);
    let fd = if follow {
        rustix::fs::openat(rustix::fs::CWD, &name, flags, mode)
    } else {
        // The directory may be somebody else's: nothing in it leads out of it.
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(rustix::fs::CWD, &name, flags | OFlags::NOFOLLOW, mode, beneath) {
            // systemd's RestrictSUIDSGID= says so, because it cannot look into the call. A name without a slash, whose
            // link is not followed, leads nowhere else either.
            Err(Errno::NOSYS) if !name.as_os_str().as_bytes().contains(&b'/') => {
                rustix::fs::openat(rustix::fs::CWD, &name, flags | OFlags::NOFOLLOW, mode)
            }
            opened => opened,
        }
    };
    let fd = fd.during("opening the log file").on_path(&shown).map_err(wrong)?;
    let stat = rustix::fs::fstat(&fd).during("looking at the log file").on_path(&shown)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        rustix::fs::ftruncate(&fd, 0).during("emptying the log file").on_path(&shown)?;
    } else if !follow {
        return Err(bad("the log is no regular file").on(Object::Path(shown)).help("choose another log_file"));
    }
    s.engine.log_file = name.to_str().map(str::to_owned);
    logging::set_sink(logging::Sink::File(File::from(fd)));
    logging::set_level(s.log_level);
    log::info!("Version: {} (crust {})", crate::CLAIMED_VERSION, env!("CARGO_PKG_VERSION"));
    Ok(())
}

/// For CHECK: only a log, and only if one is asked for.
pub(super) fn check_log(opts: &Opts, peer: &Peer, mode: WorkerMode) -> Result<()> {
    let Some(file) = opts.log_file.as_ref() else { return Ok(()) };
    check_rights(opts, mode, peer)?;
    if file.contains(&b'/') {
        return Err(bad("No subdirs are allowed in log_file name").help("choose the directory with work_dir_fd"));
    }
    if opts.log_to_stderr == Some(true) {
        return Ok(());
    }
    let mut settings = Settings { log_level: opts.log_level.unwrap_or(logging::DEFAULT_LEVEL), ..Settings::default() };
    let work_only = Opts { images_dir_fd: opts.images_dir_fd.filter(|f| *f >= 0).or(opts.work_dir_fd), ..opts.clone() };
    directories(&work_only, &mut settings, peer, None)?;
    open_log(opts, &mut settings, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_rpc::Request;
    use prost::Message;

    /// Well-formed options of random fields with random contents: refused or taken, never a panic.
    #[test]
    fn random_options_are_refused_or_taken() {
        let mut x = 0x2545_f491_4f6c_dd1du64;
        let mut next = move || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x
        };
        let (mut refused, mut taken) = (0, 0);
        for _ in 0..20_000 {
            let mut body = Vec::new();
            for _ in 0..next() % 16 {
                let (field, is_text) = (next() % 73, next() % 2 == 0);
                prost::encoding::encode_varint(field.max(1) << 3 | if is_text { 2 } else { 0 }, &mut body);
                let value = next() >> (next() % 64);
                prost::encoding::encode_varint(if is_text { value % 32 } else { value }, &mut body);
                if is_text {
                    body.extend((0..value % 32).map(|_| (next() % 127) as u8));
                }
            }
            let Ok(mut opts) = Opts::decode(body.as_slice()) else { continue };
            match fields(&mut opts, &mut Settings::default()) {
                Ok(()) => taken += 1,
                Err(e) => {
                    assert!(!e.headline().is_empty());
                    refused += 1;
                }
            }
        }
        assert!(taken > 100 && refused > 100, "{taken} taken, {refused} refused");
        assert!(Request::decode(&[0xff_u8][..]).is_err());
    }
}

//! What a request asks for: one structure filled by the command line and by RPC alike.
use crate::{Error, Object, Result, Stage};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

/// What becomes of the tree after a good dump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum After {
    /// Killed (CRIU's default).
    #[default]
    Kill,
    /// Runs on (`--leave-running`).
    Run,
    /// Left stopped by SIGSTOP (`--leave-stopped`).
    Stop,
}

/// `--manage-cgroups`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "CRIU's modes; see criu(8), --manage-cgroups")]
pub enum ManageCgroups {
    Ignore,
    None,
    Props,
    #[default]
    Soft,
    Full,
    Strict,
}

/// `--network-lock`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "CRIU's methods; see criu(8), --network-lock")]
pub enum NetworkLock {
    #[default]
    Iptables,
    Nftables,
    Skip,
}

/// `--pre-dump-mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "CRIU's modes; see criu(8), --pre-dump-mode")]
pub enum PreDumpMode {
    #[default]
    Splice,
    Read,
}

/// `--file-validation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "CRIU's methods; see criu(8), --file-validation")]
pub enum FileValidation {
    FileSize,
    #[default]
    BuildId,
}

/// `--inherit-fd fd[N]:KEY`: our descriptor `fd` stands for the resource `key` at restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InheritFd {
    /// `tty[..]`, `pipe:[..]`, `socket:[..]`, `file[..]`, a path, or an external key.
    pub key: String,
    /// Number in our own table.
    pub fd: i32,
}

/// `--join-ns NS:FILE_OR_PID[,EXTRA]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinNs {
    /// `net`, `uts`, `time`, `ipc`, `user` or `mnt`.
    pub ns: String,
    /// A namespace file, or a pid.
    pub file: String,
    /// `uid,gid` for a user namespace.
    pub extra: Option<String>,
}

/// `--cgroup-root [CONTROLLERS:]/PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupRoot {
    /// `None` for all controllers; the empty string is the unified hierarchy.
    pub controllers: Option<String>,
    /// The new root below the hierarchy's mount.
    pub path: String,
}

/// Everything a dump or restore can be told. Field names follow CRIU's long options.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "one field per CRIU option; the CLI table in the crust crate documents each")]
pub struct Options {
    /// Root of the tree, an id in our pid namespace (dump).
    pub pid: i32,
    /// The image directory, opened before anything else.
    pub images_dir: Option<OwnedFd>,
    /// The image directory as the user wrote it, for messages and `CRTOOLS_IMAGE_DIR`.
    pub images_dir_path: PathBuf,
    /// Where statistics, pid files and sockets go; the process is inside it already.
    pub work_dir: Option<OwnedFd>,
    /// Bounds the freeze of a dump (CRIU's `--timeout`; `None`: 10 s) and the whole of a restore (`None`: 10 minutes).
    pub timeout: Option<Duration>,
    pub after: After,
    pub leave_stopped: bool,
    pub shell_job: bool,
    pub tcp_established: bool,
    pub tcp_close: bool,
    pub tcp_skip_in_flight: bool,
    pub ext_unix_sk: bool,
    pub ext_unix_inodes: Vec<u32>,
    pub file_locks: bool,
    pub link_remap: bool,
    pub evasive_devices: bool,
    /// Bytes; `None` is CRIU's 1 MiB.
    pub ghost_limit: Option<u64>,
    pub ghost_fiemap: bool,
    pub force_irmap: bool,
    pub irmap_scan_paths: Vec<PathBuf>,
    pub freeze_cgroup: Option<PathBuf>,
    pub track_mem: bool,
    pub prev_images_dir: Option<PathBuf>,
    pub pre_dump_mode: PreDumpMode,
    pub auto_dedup: bool,
    pub page_server: Option<PageServerAddress>,
    pub lazy_pages: bool,
    /// Dump to, or restore from, the criu-image-streamer that listens in the image directory.
    pub stream: bool,
    /// Dump into, or restore from, a tar archive instead of the image directory.
    pub images_tar: Option<Tar>,
    pub network_lock: NetworkLock,
    pub allow_uprobes: bool,
    pub skip_mnt: Vec<String>,
    pub enable_fs: Vec<String>,
    pub empty_ns: u32,
    pub manage_cgroups: ManageCgroups,
    pub cgroup_roots: Vec<CgroupRoot>,
    pub cgroup_yard: Option<PathBuf>,
    pub cgroup_props: Option<String>,
    pub cgroup_props_file: Option<PathBuf>,
    pub cgroup_dump_controllers: Vec<String>,
    pub external: Vec<String>,
    /// Sockets of plugins: paths, or abstract names behind `@`.
    pub plugins: Vec<String>,
    pub enable_external_sharing: bool,
    pub enable_external_masters: bool,
    /// The caller does not wait for the tree.
    pub restore_detached: bool,
    /// Restored tree becomes a sibling of the restorer (CLONE_PARENT).
    pub restore_sibling: bool,
    pub root: Option<PathBuf>,
    pub inherit_fds: Vec<InheritFd>,
    pub join_ns: Vec<JoinNs>,
    /// CRIU's CPU_CAP_* bits.
    pub cpu_cap: u32,
    pub lsm_profile: Option<String>,
    pub lsm_mount_context: Option<String>,
    pub weak_sysctls: bool,
    pub mntns_compat_mode: bool,
    pub file_validation: FileValidation,
    pub skip_file_rwx_check: bool,
    /// Files that are taken as they are at restore, or directories of such, as absolute paths (`--file-validation-except`).
    pub unvalidated: Vec<PathBuf>,
    pub unprivileged: bool,
    pub orphan_pts_master: bool,
    pub pidfile: Option<PathBuf>,
    /// Inode of the RPC socket the request came over, for self-dump.
    pub service_socket_inode: Option<u64>,
    /// Do not wait for the disk before the tree is killed (images may be lost by a power cut).
    pub no_sync: bool,
    /// Name of the log file inside the work directory, so that it is never taken for an image.
    pub log_file: Option<String>,
}

/// `--images-tar`: where a tar archive is.
#[derive(Debug)]
pub enum Tar {
    /// An open descriptor, a pipe for instance.
    Fd(OwnedFd),
    /// A path. A dump's file appears there when it is whole.
    File(PathBuf),
}

/// `--page-server --address A --port N` or `--ps-socket FD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageServerAddress {
    /// Host name or address, and port.
    Tcp(String, u16),
    /// An inherited, connected socket.
    Fd(i32),
}

impl Options {
    /// CRIU's limit for the content of unlinked files, in bytes.
    pub const DEFAULT_GHOST_LIMIT: u64 = 1 << 20;
    /// CRIU's default for `--timeout`.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

    /// True if the unix socket with this inode was named: `--ext-unix-sk=INO` or `--external unix[INO]`.
    pub fn is_external_unix(&self, ino: u32) -> bool {
        self.ext_unix_inodes.contains(&ino) || self.external.iter().any(|e| *e == format!("unix[{ino}]"))
    }

    /// What was given with `--external` and has no form that could name anything: taken, as CRIU takes it, but not in silence.
    pub(crate) fn odd_externals(&self) -> impl Iterator<Item = &str> {
        const KINDS: [&str; 10] = ["tty", "file", "dev", "unix", "mnt", "net", "pid", "veth", "macvlan", "netdev"];
        let names_something =
            |text: &str| text.split_once('[').is_some_and(|(kind, rest)| KINDS.contains(&kind) && rest.contains(']'));
        self.external.iter().map(String::as_str).filter(move |text| !names_something(text))
    }

    /// Options whose work is not built yet are refused, not ignored: an error for each that was given, all told at once.
    pub(crate) fn refuse(asked: &[(bool, &str)], help: &str) -> Result<()> {
        let refused = asked.iter().filter(|(on, _)| *on).map(|&(_, name)| {
            Error::unsupported("is not supported yet", help).on(Object::Option(name.into())).at(Stage::Request)
        });
        Error::all(refused.collect()).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_nothing_outside_is_told() {
        let given =
            ["foo", "foo[1]", "mnt", "unix[7", "unix[7]", "mnt[/dev]:K", "mnt[]:m", "tty[1:2]", "", "net[1]:ns"];
        let opts = Options { external: given.map(str::to_owned).to_vec(), ..Options::default() };
        assert_eq!(opts.odd_externals().collect::<Vec<_>>(), ["foo", "foo[1]", "mnt", "unix[7", ""]);
    }
}

//! Every kind of image file: its magic, its name on disk, the records in it.

/// What follows a record inside the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// Nothing.
    None,
    /// `pipe_data_entry.bytes` raw bytes.
    PipeData,
    /// `sk_packet_entry.length` raw bytes.
    SkQueue,
    /// `tcp_stream_entry.inq_len` and then `outq_len` raw bytes.
    TcpStream,
    /// `bpfmap_data_entry.keys_bytes` and then `values_bytes` raw bytes.
    BpfMap,
    /// `ipc_sem_entry.nsems` 16-bit numbers, padded to 8 bytes.
    IpcSem,
    /// `ipc_msg_entry.qnum` times an `ipc_msg` with its own length, then its bytes padded to 8.
    IpcMsg,
    /// `ipc_shm_entry.size` raw bytes padded to 4, none if `in_pagemaps`.
    IpcShm,
    /// The file's bytes up to the end, or `ghost_chunk_entry` records each with its bytes.
    Ghost,
    /// `pagemap_entry` records.
    Pagemap,
}

/// How a file name carries its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    /// One file per checkpoint.
    No,
    Dec,
    Hex,
}

struct Desc {
    kind: ImageKind,
    magic_name: &'static str,
    magic: u32,
    prefix: &'static str,
    suffix: &'static str,
    number: Number,
    record: &'static str,
    extra: Extra,
}

const COMMON_MAGIC: u32 = 0x5456_4319;
const SERVICE_MAGIC: u32 = 0x5510_5940;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $magic_name:literal $magic:literal, $prefix:literal $number:ident $suffix:literal, $record:literal $extra:ident;)*) => {
        /// A kind of image file.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ImageKind {
            $($(#[$doc])* $kind,)*
        }

        static KINDS: &[Desc] = &[$(Desc {
            kind: ImageKind::$kind,
            magic_name: $magic_name,
            magic: $magic,
            prefix: $prefix,
            suffix: $suffix,
            number: Number::$number,
            record: $record,
            extra: Extra::$extra,
        },)*];
    };
}

// Order matters where two kinds share a magic: the first is the one that a magic alone stands for. Manifests name kinds by
// their place: new ones go to the end, and there are never more than 127.
kinds! {
    /// Head of the checkpoint.
    Inventory = "INVENTORY" 0x58313116, "inventory" No ".img", "inventory_entry" None;
    /// The process tree.
    Pstree = "PSTREE" 0x50273030, "pstree" No ".img", "pstree_entry" None;
    /// One thread.
    Core = "CORE" 0x55053847, "core-" Dec ".img", "core_entry" None;
    /// Kernel objects of a process.
    Ids = "IDS" 0x54432030, "ids-" Dec ".img", "task_kobj_ids_entry" None;
    /// An address space.
    Mm = "MM" 0x57492820, "mm-" Dec ".img", "mm_entry" None;
    /// Root and working directory.
    Fs = "FS" 0x51403912, "fs-" Dec ".img", "fs_entry" None;
    /// A descriptor table, by its id.
    Fdinfo = "FDINFO" 0x56213732, "fdinfo-" Dec ".img", "fdinfo_entry" None;
    /// All open file descriptions.
    Files = "FILES" 0x56303138, "files" No ".img", "file_entry" None;
    /// Pages of a process, by pid.
    Pagemap = "PAGEMAP" 0x56084025, "pagemap-" Dec ".img", "pagemap_head" Pagemap;
    /// Pages of a shared memory object, by its id.
    ShmemPagemap = "PAGEMAP" 0x56084025, "pagemap-shmem-" Dec ".img", "pagemap_head" Pagemap;
    /// The bytes of pages; raw.
    Pages = "" 0, "pages-" Dec ".img", "" None;
    /// Seccomp programs.
    Seccomp = "SECCOMP" 0x64413049, "seccomp" No ".img", "seccomp_entry" None;
    /// AppArmor profiles.
    Apparmor = "APPARMOR" 0x59423047, "apparmor" No ".img", "apparmor_entry" None;
    /// Control groups.
    Cgroup = "CGROUP" 0x59383330, "cgroup" No ".img", "cgroup_entry" None;
    /// Files without a name.
    RemapFpath = "REMAP_FPATH" 0x59133954, "remap-fpath" No ".img", "remap_file_path_entry" None;
    /// An unlinked file.
    GhostFile = "GHOST_FILE" 0x52583605, "ghost-file-" Hex ".img", "ghost_file_entry" Ghost;
    /// Locks of files.
    FileLocks = "FILE_LOCKS" 0x54323616, "filelocks" No ".img", "file_lock_entry" None;
    /// Bytes waiting in pipes.
    PipesData = "PIPES_DATA" 0x56453709, "pipes-data" No ".img", "pipe_data_entry" PipeData;
    /// Bytes waiting in fifos.
    FifoData = "FIFO_DATA" 0x59333054, "fifo-data" No ".img", "pipe_data_entry" PipeData;
    /// Memory behind memfds.
    MemfdInode = "MEMFD_INODE" 0x48453499, "memfd" No ".img", "memfd_inode_entry" None;
    /// BPF maps.
    BpfmapFile = "BPFMAP_FILE" 0x57506142, "bpfmap-file" No ".img", "bpfmap_file_entry" None;
    /// Content of BPF maps.
    BpfmapData = "BPFMAP_DATA" 0x64324033, "bpfmap-data" No ".img", "bpfmap_data_entry" BpfMap;
    /// Datagrams waiting in unix sockets.
    SkQueues = "SK_QUEUES" 0x56264026, "sk-queues" No ".img", "sk_packet_entry" SkQueue;
    /// A TCP connection, by inode.
    TcpStream = "TCP_STREAM" 0x51465506, "tcp-stream-" Hex ".img", "tcp_stream_entry" TcpStream;
    /// Terminals.
    TtyInfo = "TTY_INFO" 0x59453036, "tty-info" No ".img", "tty_info_entry" None;
    /// Bytes waiting in terminals.
    TtyData = "TTY_DATA" 0x59413026, "tty-data" No ".img", "tty_data_entry" None;
    /// A user namespace.
    Userns = "USERNS" 0x55474906, "userns-" Dec ".img", "userns_entry" None;
    /// A pid namespace.
    Pidns = "PIDNS" 0x61157326, "pidns-" Dec ".img", "pidns_entry" None;
    /// A UTS namespace.
    Utsns = "UTSNS" 0x54473203, "utsns-" Dec ".img", "utsns_entry" None;
    /// A time namespace.
    Timens = "TIMENS" 0x43114433, "timens-" Dec ".img", "timens_entry" None;
    /// Limits of an IPC namespace.
    IpcVar = "IPC_VAR" 0x53115007, "ipcns-var-" Dec ".img", "ipc_var_entry" None;
    /// Shared memory segments of an IPC namespace.
    IpcnsShm = "IPCNS_SHM" 0x46283044, "ipcns-shm-" Dec ".img", "ipc_shm_entry" IpcShm;
    /// Message queues of an IPC namespace.
    IpcnsMsg = "IPCNS_MSG" 0x55453737, "ipcns-msg-" Dec ".img", "ipc_msg_entry" IpcMsg;
    /// Semaphore sets of an IPC namespace.
    IpcnsSem = "IPCNS_SEM" 0x59573019, "ipcns-sem-" Dec ".img", "ipc_sem_entry" IpcSem;
    /// Mounts of a mount namespace.
    Mnts = "MNTS" 0x55563928, "mountpoints-" Dec ".img", "mnt_entry" None;
    /// An autofs mount, by mount id.
    Autofs = "AUTOFS" 0x49353943, "autofs-" Dec ".img", "autofs_entry" None;
    /// Binary formats.
    BinfmtMisc = "BINFMT_MISC" 0x67343323, "binfmt-misc" No ".img", "binfmt_misc_entry" None;
    /// Binary formats by mount id, as older dumps have it.
    BinfmtMiscOld = "BINFMT_MISC" 0x67343323, "binfmt-misc-" Dec ".img", "binfmt_misc_entry" None;
    /// Content of a tmpfs, by mount id: a gzipped tar archive.
    TmpfsImg = "" 0, "tmpfs-" Dec ".tar.gz.img", "" None;
    /// Content of a devtmpfs, by device: a gzipped tar archive.
    TmpfsDev = "" 0, "tmpfs-dev-" Dec ".tar.gz.img", "" None;
    /// Network devices.
    Netdev = "NETDEV" 0x57373951, "netdev-" Dec ".img", "net_device_entry" None;
    /// Settings of a network namespace.
    Netns = "NETNS" 0x55933752, "netns-" Dec ".img", "netns_entry" None;
    /// `ip addr save`.
    Ifaddr = "" 0, "ifaddr-" Dec ".img", "" None;
    /// `ip route save`.
    Route = "" 0, "route-" Dec ".img", "" None;
    /// `ip -6 route save`.
    Route6 = "" 0, "route6-" Dec ".img", "" None;
    /// `ip rule save`.
    Rule = "" 0, "rule-" Dec ".img", "" None;
    /// `iptables-save`.
    Iptables = "" 0, "iptables-" Dec ".img", "" None;
    /// `ip6tables-save`.
    Ip6tables = "" 0, "ip6tables-" Dec ".img", "" None;
    /// `nft list ruleset`.
    Nftables = "" 0, "nftables-" Dec ".img", "" None;
    /// Connection tracking entries, netlink messages.
    NetnsCt = "" 0, "netns-ct-" Dec ".img", "" None;
    /// Connection tracking expectations, netlink messages.
    NetnsExp = "" 0, "netns-exp-" Dec ".img", "" None;
    /// What a plugin of crust's gave to keep for one file, in the plugin's own format.
    PluginData = "" 0, "plugin-" Dec ".img", "" None;
    /// The processor.
    Cpuinfo = "CPUINFO" 0x61404013, "cpuinfo" No ".img", "cpuinfo_entry" None;
    /// Statistics of a dump (service file).
    StatsDump = "STATS" 0x57093306, "stats-dump" No "", "stats_entry" None;
    /// Statistics of a restore (service file).
    StatsRestore = "STATS" 0x57093306, "stats-restore" No "", "stats_entry" None;
    /// Paths of inotify targets (service file).
    IrmapCache = "IRMAP_CACHE" 0x57004059, "irmap-cache" No "", "irmap_cache_entry" None;
    // What only older dumps have: their content is in files.img, mm-*.img or core-*.img now.
    /// Regular files.
    RegFiles = "REG_FILES" 0x50363636, "reg-files" No ".img", "reg_file_entry" None;
    /// Files of plugins.
    ExtFiles = "EXT_FILES" 0x59255641, "ext-files" No ".img", "ext_file_entry" None;
    /// Namespace files.
    NsFiles = "NS_FILES" 0x61394011, "ns-files" No ".img", "ns_file_entry" None;
    /// Eventfds.
    EventfdFile = "EVENTFD_FILE" 0x44523722, "eventfd" No ".img", "eventfd_file_entry" None;
    /// Epoll instances.
    EventpollFile = "EVENTPOLL_FILE" 0x45023858, "eventpoll" No ".img", "eventpoll_file_entry" None;
    /// What epoll instances watch.
    EventpollTfd = "EVENTPOLL_TFD" 0x44433746, "eventpoll-tfd" No ".img", "eventpoll_tfd_entry" None;
    /// Signalfds.
    Signalfd = "SIGNALFD" 0x57323820, "signalfd" No ".img", "signalfd_entry" None;
    /// Timerfds.
    Timerfd = "TIMERFD" 0x50493712, "timerfd" No ".img", "timerfd_entry" None;
    /// Inotify instances.
    InotifyFile = "INOTIFY_FILE" 0x48424431, "inotify" No ".img", "inotify_file_entry" None;
    /// Inotify watches.
    InotifyWd = "INOTIFY_WD" 0x54562009, "inotify-wd" No ".img", "inotify_wd_entry" None;
    /// Fanotify groups.
    FanotifyFile = "FANOTIFY_FILE" 0x55096122, "fanotify" No ".img", "fanotify_file_entry" None;
    /// Fanotify marks.
    FanotifyMark = "FANOTIFY_MARK" 0x56506035, "fanotify-mark" No ".img", "fanotify_mark_entry" None;
    /// Pipes.
    Pipes = "PIPES" 0x56513555, "pipes" No ".img", "pipe_entry" None;
    /// Fifos.
    Fifo = "FIFO" 0x58364939, "fifo" No ".img", "fifo_entry" None;
    /// Unix sockets.
    Unixsk = "UNIXSK" 0x54373943, "unixsk" No ".img", "unix_sk_entry" None;
    /// Internet sockets.
    Inetsk = "INETSK" 0x56443851, "inetsk" No ".img", "inet_sk_entry" None;
    /// Packet sockets.
    Packetsk = "PACKETSK" 0x60454618, "packetsk" No ".img", "packet_sock_entry" None;
    /// Netlink sockets.
    NetlinkSk = "NETLINK_SK" 0x58005614, "netlinksk" No ".img", "netlink_sk_entry" None;
    /// Open terminals.
    TtyFiles = "TTY_FILES" 0x59433025, "tty" No ".img", "tty_file_entry" None;
    /// Open /dev/net/tun.
    Tunfile = "TUNFILE" 0x57143751, "tunfile" No ".img", "tunfile_entry" None;
    /// Pidfds.
    Pidfd = "PIDFD" 0x54435556, "pidfd" No ".img", "pidfd_entry" None;
    /// Mappings of a process.
    Vmas = "VMAS" 0x54123737, "vmas-" Dec ".img", "vma_entry" None;
    /// Signal handlers of a process.
    Sigact = "SIGACT" 0x55344201, "sigacts-" Dec ".img", "sa_entry" None;
    /// Credentials of a process.
    Creds = "CREDS" 0x54023547, "creds-" Dec ".img", "creds_entry" None;
    /// Interval timers of a process.
    Itimers = "ITIMERS" 0x57464056, "itimers-" Dec ".img", "itimer_entry" None;
    /// POSIX timers of a process.
    PosixTimers = "POSIX_TIMERS" 0x52603957, "posix-timers-" Dec ".img", "posix_timer_entry" None;
    /// Resource limits of a process.
    Rlimit = "RLIMIT" 0x57113925, "rlimit-" Dec ".img", "rlimit_entry" None;
    /// Signals queued for a process.
    Signal = "SIGNAL" 0x59255647, "signal-s-" Dec ".img", "siginfo_entry" None;
    /// Signals queued for a thread.
    Psignal = "SIGNAL" 0x59255647, "signal-p-" Dec ".img", "siginfo_entry" None;
}

impl ImageKind {
    fn desc(self) -> &'static Desc {
        // The table is written in the order of the enum, by the same macro; a test holds it to that.
        &KINDS[self as usize]
    }

    /// All kinds, in a fixed order.
    pub fn all() -> impl Iterator<Item = Self> {
        KINDS.iter().map(|d| d.kind)
    }

    /// The kind's place in the table, which manifests keep.
    pub(crate) fn place(self) -> u8 {
        self as u8
    }

    /// The kind at a place.
    pub(crate) fn at(place: u8) -> Option<Self> {
        KINDS.get(usize::from(place)).map(|d| d.kind)
    }

    /// The kind's own magic number; `None` for raw files, which have no framing at all.
    pub fn magic(self) -> Option<u32> {
        let magic = self.desc().magic;
        (magic != 0).then_some(magic)
    }

    /// The number in front of the magic in images of version 1.1; `None` for the inventory and raw files.
    pub fn head_magic(self) -> Option<u32> {
        match self {
            Self::Inventory => None,
            _ if self.is_raw() => None,
            _ if self.is_service() => Some(SERVICE_MAGIC),
            _ => Some(COMMON_MAGIC),
        }
    }

    /// The magic's name, which JSON carries as `"magic"`; empty for raw files.
    pub fn magic_name(self) -> &'static str {
        self.desc().magic_name
    }

    /// Name of the record type in the schema; empty for raw files.
    pub fn record_name(self) -> &'static str {
        self.desc().record
    }

    /// What follows each record.
    pub fn extra(self) -> Extra {
        self.desc().extra
    }

    /// True for files without magic and records: their content is somebody else's format.
    pub fn is_raw(self) -> bool {
        self.desc().magic == 0
    }

    /// True for files that help the tool and belong to no checkpoint: they live in the working directory.
    pub fn is_service(self) -> bool {
        matches!(self, Self::StatsDump | Self::StatsRestore | Self::IrmapCache)
    }

    /// True if the file's name carries a number.
    pub fn is_numbered(self) -> bool {
        self.desc().number != Number::No
    }

    /// The file's name. `id` is ignored where there is one such file per checkpoint.
    pub fn file_name(self, id: u64) -> String {
        let d = self.desc();
        match d.number {
            Number::No => format!("{}{}", d.prefix, d.suffix),
            Number::Dec => format!("{}{id}{}", d.prefix, d.suffix),
            Number::Hex => format!("{}{id:x}{}", d.prefix, d.suffix),
        }
    }

    /// The kind a file name stands for, and the number in it.
    pub fn of_file_name(name: &str) -> Option<(Self, Option<u64>)> {
        KINDS.iter().find_map(|d| {
            let middle = name.strip_prefix(d.prefix)?.strip_suffix(d.suffix)?;
            let number = match d.number {
                Number::No => return middle.is_empty().then_some((d.kind, None)),
                Number::Dec => middle.parse().ok()?,
                Number::Hex => u64::from_str_radix(middle, 16).ok()?,
            };
            // Only the spelling that `file_name` gives: no signs, no leading zeros.
            (d.kind.file_name(number) == name).then_some((d.kind, Some(number)))
        })
    }

    /// The kind whose own magic this is. Where kinds share one (pagemaps, statistics), the most usual of them.
    pub fn of_magic(magic: u32) -> Option<Self> {
        KINDS.iter().find(|d| d.magic == magic && magic != 0).map(|d| d.kind)
    }

    /// The kind whose magic has this name.
    pub fn of_magic_name(name: &str) -> Option<Self> {
        KINDS.iter().find(|d| d.magic_name == name && !name.is_empty()).map(|d| d.kind)
    }

    /// True for the two numbers that stand in front of a magic.
    pub(crate) fn is_head_magic(magic: u32) -> bool {
        magic == COMMON_MAGIC || magic == SERVICE_MAGIC
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_enum_order() {
        for (at, d) in KINDS.iter().enumerate() {
            assert_eq!(d.kind as usize, at, "{:?}", d.kind);
        }
    }

    #[test]
    fn places_stay_what_they_are() {
        // Changed by nothing but another place for a kind that manifests know already.
        let first: String = KINDS.iter().take(85).map(|d| format!("{}*{} ", d.prefix, d.suffix)).collect();
        assert_eq!(
            crate::manifest::ContentHash::of(first.as_bytes()).to_string(),
            "966f7f9163e1f5dd84cc30be00a4c043",
            "{first}"
        );
        assert!(KINDS.len() <= 127);
        assert!(ImageKind::all().all(|kind| ImageKind::at(kind.place()) == Some(kind)));
    }

    #[test]
    fn names_lead_back_to_their_kind() {
        for kind in ImageKind::all() {
            let name = kind.file_name(0x1f);
            assert_eq!(ImageKind::of_file_name(&name), Some((kind, kind.is_numbered().then_some(0x1f))), "{name}");
        }
        assert_eq!(ImageKind::TmpfsImg.file_name(7), "tmpfs-7.tar.gz.img");
        assert_eq!(ImageKind::GhostFile.file_name(31), "ghost-file-1f.img");
        for no in ["core-.img", "core-+1.img", "core-01.img", "core-1.img2", "descriptors.json", "xcore-1.img", ""] {
            assert_eq!(ImageKind::of_file_name(no), None, "{no}");
        }
    }

    #[test]
    fn a_magic_belongs_to_one_record_type() {
        for a in ImageKind::all().filter(|k| !k.is_raw()) {
            let first = ImageKind::of_magic(a.magic().unwrap_or(0)).map(|k| (k.record_name(), k.magic_name()));
            assert_eq!(first, Some((a.record_name(), a.magic_name())), "{a:?}");
            assert!(!ImageKind::is_head_magic(a.magic().unwrap_or(0)));
        }
    }
}

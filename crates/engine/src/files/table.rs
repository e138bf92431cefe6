//! The dump half: every descriptor of the tree becomes a record, every blocker an error; then the images.
use super::ids::{FileIds, Searched, TaskIds};
use super::look::{Eyes, FdView, Known, read_fdinfo};
use super::regular::SpecialKey;
use super::{KINDS, SERVICE_NUMBERS, ghost::Ghost, locks};
use crate::images::{Outlet, Partial};
use crate::memory::PageCount;
use crate::plugins::Plugins;
use crate::task::Target;
use crate::{Error, Kind, Object, Options, Result, ResultExt, fault, together};
use crust_image::proto::{
    FdTypes, FdinfoEntry, FileEntry, FileLockEntry, FsEntry, PipeDataEntry, RemapFilePathEntry, SkPacketEntry,
    TtyInfoEntry,
};
use crust_image::{ImageKind, Writer};
use crust_kernel::fdinfo::FdInfo;
use crust_kernel::kcmp::{self, Shared};
use crust_kernel::pidfd::PidFd;
use crust_kernel::procfs::ProcDir;
use crust_kernel::sock_diag::UnixSocket;
use crust_kernel::{HostTid, NsTid, TargetFd};
use rustix::io::Errno;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Copies bytes of a file to an image, inside the kernel where it can.
pub(super) fn send_range(from: &OwnedFd, at: u64, len: u64, out: &mut Outlet) -> Result<()> {
    let (mut at, end) = (at, at + len);
    let mut buf = Vec::new();
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 26);
        out.watch().go_on()?;
        if let Some(file) = out.file() {
            let copied = fault::io().and_then(|()| rustix::fs::copy_file_range(from, Some(&mut at), file, None, want));
            match copied {
                Ok(0) => {}
                Ok(_) => continue,
                Err(e @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => {
                    return Err(Error::kernel("writing an image failed", e));
                }
                Err(_) => {} // another filesystem, or one without this call
            }
        }
        buf.resize(want.min(1 << 18), 0);
        let n = rustix::io::pread(from, &mut buf, at).during("reading a deleted file")?;
        if n == 0 {
            return Err(Error::new(Kind::TargetChanged, "a deleted file became shorter while it was read"));
        }
        out.write(&buf[..n])?;
        at += n as u64;
    }
    Ok(())
}

/// Descriptors of a message that waits in a socket.
#[derive(Debug)]
pub(super) struct UnderWay {
    /// The message's place in [`Records::packets`].
    pub(super) packet: usize,
    /// Who can receive it, and by which descriptor.
    pub(super) pid: HostTid,
    pub(super) ns_pid: NsTid,
    pub(super) fd: TargetFd,
    /// Our copies.
    pub(super) files: Vec<OwnedFd>,
}

/// What kinds write into while they look.
#[derive(Debug)]
pub(super) struct Records<'o> {
    pub(super) opts: &'o Options,
    next_file: u32,
    pub(super) files: Vec<FileEntry>,
    /// Content of pipes in the order seen; several entries of one pipe are its packets.
    pub(super) pipe_data: Vec<(PipeDataEntry, Vec<u8>)>,
    pub(super) fifo_data: Vec<(PipeDataEntry, Vec<u8>)>,
    /// Pipes and fifos whose content is saved.
    pub(super) pipes_seen: HashSet<(u64, u64)>,
    pub(super) scratch: super::pipe::Scratch,
    pub(super) ghosts: Vec<Ghost>,
    /// Ghost ids by device and inode.
    pub(super) ghost_of: HashMap<(u64, u64), u32>,
    pub(super) remaps: Vec<RemapFilePathEntry>,
    pub(super) tty_info: Vec<TtyInfoEntry>,
    pub(super) memfds: Vec<super::memfd::Inode>,
    /// BPF maps whose content is to be written.
    pub(super) bpf_maps: super::bpfmap::Maps,
    /// Memfd ids by device and inode.
    pub(super) memfd_of: HashMap<(u64, u64), u32>,
    /// Processes of the tree, and pidfds of whoever lives.
    pub(super) tasks: BTreeSet<i32>,
    pub(super) pidfds: Vec<super::pidfd::Awaited>,
    /// Who is told of a message in a queue, and where the queue was seen.
    pub(super) mqueues: Vec<(i32, Object)>,
    /// Network devices that would end with the program.
    pub(super) tun_devices: super::tun::Devices,
    /// Watched files whose name was not found.
    pub(super) watched: Vec<super::watch::Watched>,
    /// The program's mounts, and files found by searching.
    pub(super) mounts: Option<super::watch::Mounts>,
    pub(super) irmap: Option<super::watch::Found>,
    /// Where epolls look for what they watch.
    pub(super) watchable: super::epoll::Watchable,
    /// All unix sockets of the namespace, asked for once.
    pub(super) unix: Option<HashMap<u32, UnixSocket>>,
    /// Inode and peer of each unix socket of the tree, and where it was seen.
    pub(super) unix_seen: Vec<(u32, u32, Object)>,
    /// What options new sockets have.
    pub(super) fresh: super::sockopt::Fresh,
    /// Internet sockets of the namespace by family and protocol, and packet sockets, asked for once.
    pub(super) inet: HashMap<(i32, i32), HashMap<u32, crust_kernel::inet_diag::InetSocket>>,
    /// Whether the machine has an address that sockets are bound to.
    pub(super) own_addresses: HashMap<std::net::SocketAddr, bool>,
    /// Multicast groups of the machine: device and address.
    pub(super) multicast: Option<Vec<(String, Vec<u8>)>>,
    pub(super) packet_sockets: Option<HashMap<u32, crust_kernel::inet_diag::PacketSocket>>,
    /// What waits in sockets.
    pub(super) packets: Vec<(SkPacketEntry, Vec<u8>)>,
    /// Descriptors that wait in sockets, not looked at yet.
    pub(super) under_way: VecDeque<UnderWay>,
    /// The program runs while we look.
    pub(super) running: bool,
    /// Descriptors wait in some socket.
    pub(super) rights_wait: bool,
    /// Our copies of files that nobody has but a socket's queue.
    held: Vec<OwnedFd>,
    /// Where each terminal was seen, and its name, for errors.
    pub(super) tty_seen: Vec<(u32, Object, String)>,
    /// tty_info ids of terminals that are no ptys, by device and, of `/dev/tty`, session.
    pub(super) tty_others: HashMap<(u64, u32), u32>,
    /// A copy of each end of the tree's ptys, by tty_info id, and where it was seen.
    pub(super) tty_ends: BTreeMap<u32, (OwnedFd, Object)>,
    /// Files opened by nobody's descriptor: exe, mappings, cwd, root.
    pub(super) special: HashMap<SpecialKey, u32>,
    pub(super) build_ids: HashMap<(u64, u64), Vec<u32>>,
    /// The type of each filesystem, by device and mount.
    pub(super) fs_types: HashMap<(u64, i32), u64>,
    /// Names that lead to the file with this device and inode: programs open one file many times.
    pub(super) names: HashMap<(u64, u64), Vec<Vec<u8>>>,
    /// Root directory that link texts are relative to, for looking up paths.
    pub(super) root: Option<OwnedFd>,
    /// Processes that are gone while files of theirs below /proc are open.
    pub(super) dead_pids: BTreeSet<i32>,
    /// Names made by `--link-remap`.
    pub(super) links_made: Vec<Vec<u8>>,
    /// Who may know what we do not, and what they gave to keep.
    pub(super) plugins: Option<Arc<Plugins>>,
    pub(super) kept: super::plugged::Kept,
}

impl Records<'_> {
    /// A new id in files.img.
    pub(super) fn new_id(&mut self) -> u32 {
        self.next_file += 1;
        self.next_file
    }
}

/// All open files of a tree, collected task by task.
#[derive(Debug)]
pub struct FileTable<'o> {
    records: Records<'o>,
    ids: FileIds,
    noted: Noted,
    table_ids: TaskIds,
    /// Who had each number last, and the file's id: children mostly have their parent's files at the same numbers.
    last_at: HashMap<TargetFd, (HostTid, u32)>,
    tables: BTreeMap<u32, Vec<FdinfoEntry>>,
    fs: Vec<(i32, FsEntry)>,
    blockers: Vec<Error>,
    /// One for each thread that looks.
    eyes: Vec<Eyes>,
    /// Descriptors of a table that are looked at together at most; we hold a copy of each, and of those before, meanwhile.
    together: usize,
}

/// What is known of files that were recorded.
#[derive(Debug, Default)]
struct Noted {
    /// Type of every file seen through a descriptor.
    types: HashMap<u32, i32>,
    locks: Vec<FileLockEntry>,
    locks_seen: HashSet<(u32, i32, u32, i64)>,
}

impl Noted {
    /// Records a file that was not seen before.
    fn add(&mut self, view: &FdView<'_>, id: u32, records: &mut Records<'_>) -> Result<()> {
        let fd_type = dump_file(view, id, records);
        // A blocker's id keeps type 0, so that its other descriptors are not reported again.
        self.types.insert(id, *fd_type.as_ref().unwrap_or(&0));
        fd_type.map(drop)
    }

    fn type_of(&self, id: u32) -> i32 {
        self.types.get(&id).copied().unwrap_or(0)
    }

    fn entry(
        &mut self,
        t: &Target<'_>,
        fd: TargetFd,
        id: u32,
        info: &FdInfo,
        records: &Records<'_>,
    ) -> Result<FdinfoEntry> {
        self.note_locks(t, fd, info, id, records.opts)?;
        let r#type = self.type_of(id);
        Ok(FdinfoEntry { id, flags: u32::from(info.cloexec), r#type, fd: fd.0, ..FdinfoEntry::default() })
    }

    /// Locks show at every descriptor of the file; each is noted once, POSIX locks once for each process.
    fn note_locks(&mut self, t: &Target<'_>, fd: TargetFd, info: &FdInfo, id: u32, opts: &Options) -> Result<()> {
        for lock in locks::look(t, fd, info)? {
            if !opts.file_locks {
                return Err(locks::not_asked());
            }
            let owner = if lock.flag == 1 { lock.pid } else { 0 };
            if self.locks_seen.insert((id, owner, lock.flag, lock.start)) {
                self.locks.push(lock);
            }
        }
        Ok(())
    }

    /// Records what was found. One entry for each that can be saved; the others' errors go to `blockers`.
    fn record(
        &mut self,
        t: &Target<'_>,
        found: Vec<Found<'_>>,
        records: &mut Records<'_>,
        blockers: &mut Vec<Error>,
    ) -> Vec<FdinfoEntry> {
        let mut entries = Vec::with_capacity(found.len());
        for Found { fd, id, seen } in found {
            let entry = match &seen {
                Seen::New(view) => {
                    self.add(view, id, records).and_then(|()| self.entry(t, fd, id, &view.info, records))
                }
                Seen::Before(info) => self.entry(t, fd, id, info, records),
            };
            match entry {
                Ok(entry) => entries.push(entry),
                Err(e) => blockers.push(e.on(Object::Fd(t.pid.as_raw(), fd.0))),
            }
        }
        entries
    }
}

/// A descriptor whose file has its id.
struct Found<'t> {
    fd: TargetFd,
    id: u32,
    seen: Seen<'t>,
}

#[expect(clippy::large_enum_variant, reason = "few live at a time")]
enum Seen<'t> {
    /// The file is to be recorded.
    New(FdView<'t>),
    Before(FdInfo),
}

impl<'o> FileTable<'o> {
    /// Nothing seen yet.
    pub fn new(opts: &'o Options) -> Self {
        let records = Records {
            opts,
            next_file: 0,
            files: Vec::new(),
            pipe_data: Vec::new(),
            fifo_data: Vec::new(),
            pipes_seen: HashSet::new(),
            scratch: super::pipe::Scratch::default(),
            ghosts: Vec::new(),
            ghost_of: HashMap::new(),
            remaps: Vec::new(),
            tty_info: Vec::new(),
            tty_seen: Vec::new(),
            tty_others: HashMap::new(),
            tty_ends: BTreeMap::new(),
            memfds: Vec::new(),
            bpf_maps: super::bpfmap::Maps::default(),
            memfd_of: HashMap::new(),
            tasks: BTreeSet::new(),
            pidfds: Vec::new(),
            mqueues: Vec::new(),
            tun_devices: super::tun::Devices::default(),
            watched: Vec::new(),
            mounts: None,
            irmap: None,
            watchable: super::epoll::Watchable::default(),
            unix: None,
            unix_seen: Vec::new(),
            fresh: super::sockopt::Fresh::default(),
            inet: HashMap::new(),
            own_addresses: HashMap::new(),
            multicast: None,
            packet_sockets: None,
            packets: Vec::new(),
            under_way: VecDeque::new(),
            running: false,
            rights_wait: false,
            held: Vec::new(),
            special: HashMap::new(),
            build_ids: HashMap::new(),
            fs_types: HashMap::new(),
            names: HashMap::new(),
            root: None,
            dead_pids: BTreeSet::new(),
            links_made: Vec::new(),
            plugins: None,
            kept: Vec::new(),
        };
        let together = most_together();
        Self {
            records,
            ids: FileIds::default(),
            noted: Noted::default(),
            table_ids: TaskIds::new(),
            last_at: HashMap::new(),
            tables: BTreeMap::new(),
            fs: Vec::new(),
            blockers: Vec::new(),
            eyes: vec![Eyes::new(2 * together)],
            together,
        }
    }

    /// Nothing is stopped: what waits in sockets comes and goes, and is not looked at.
    pub fn leave_queues(&mut self) {
        self.records.running = true;
    }

    /// Offers what is not known here to plugins.
    pub fn use_plugins(&mut self, plugins: Arc<Plugins>) {
        self.records.plugins = Some(plugins);
    }

    /// Looks at every descriptor of a task. Returns the id of its table (`files_id`); tasks that share a table
    /// (CLONE_FILES) get the same id and are looked at once. What cannot be saved goes to [`FileTable::take_blockers`].
    ///
    /// # Errors
    /// The task cannot be looked at.
    pub fn dump_fds(&mut self, t: &Target<'_>) -> Result<u32> {
        let numbers =
            t.proc.numbers("fd").during("listing descriptors").map_err(|e| e.on(Object::Task(t.pid.as_raw())))?;
        let known: Vec<Known> = numbers.into_iter().map(|fd| Known { fd: TargetFd(fd), cloexec: None }).collect();
        self.dump_known_fds(t, &known)
    }

    /// As [`FileTable::dump_fds`] for a task that stands still and has told which descriptors it has.
    ///
    /// # Errors
    /// As [`FileTable::dump_fds`].
    pub fn dump_known_fds(&mut self, t: &Target<'_>, known: &[Known]) -> Result<u32> {
        let (table, new) = self.table_ids.intern(t.pid, Shared::Files)?;
        if !new {
            return Ok(table);
        }
        let mut entries = Vec::with_capacity(known.len());
        let mut left = known;
        // What is compared among themselves is compared by one thread alone: the first are few.
        let mut most = together::WORTH_A_THREAD;
        let mut now: &[Known] = &[];
        let mut glances = Vec::new();
        while !left.is_empty() || !now.is_empty() {
            let found = self.identify(t, now, glances);
            (now, left) = left.split_at(left.len().min(most));
            most = (2 * most).min(self.together);
            // Some are recorded while helpers look at the next.
            let Self { ids, last_at, eyes, noted, records, blockers, .. } = self;
            let glancer = Glancer { t, last_at, ids };
            let record = || noted.record(t, found, records, blockers);
            let recorded;
            (glances, recorded) = glancer.look_at_all(now, eyes, 2 * self.together, record);
            entries.extend(recorded);
        }
        self.tables.insert(table, entries);
        Ok(table)
    }

    /// Gives each descriptor its file's id. What cannot be looked at goes to the blockers.
    fn identify<'t>(&mut self, t: &'t Target<'t>, all: &[Known], glances: Vec<Option<Glance<'t>>>) -> Vec<Found<'t>> {
        let mut found = Vec::with_capacity(all.len());
        for (&known, glance) in all.iter().zip(glances) {
            match self.identify_one(t, known, glance) {
                Ok(one) => found.push(one),
                Err(e) => self.blockers.push(e.on(Object::Fd(t.pid.as_raw(), known.fd.0))),
            }
        }
        self.ids.tidy();
        found
    }

    fn identify_one<'t>(
        &mut self,
        t: &'t Target<'t>,
        Known { fd, cloexec }: Known,
        glance: Option<Glance<'t>>,
    ) -> Result<Found<'t>> {
        // A glance that failed, perhaps for want of descriptors of our own, is no answer yet: look again, alone.
        let glance = match glance {
            Some(glance) => glance,
            None => {
                let known = Known { fd, cloexec };
                Glancer { t, last_at: &self.last_at, ids: &self.ids }.look(known, &mut Eyes::new(0))?
            }
        };
        let (id, seen) = match glance {
            Glance::SameAsLast(id, info) => (id, Seen::Before(info)),
            Glance::Seen(view, searched) => {
                let (id, new) = self.intern(&view, searched)?;
                (id, if new { Seen::New(view) } else { Seen::Before(view.info) })
            }
        };
        self.last_at.insert(fd, (t.pid, id));
        Ok(Found { fd, id, seen })
    }

    /// The id of the file behind a descriptor, and whether it is new.
    fn intern(&mut self, view: &FdView<'_>, searched: Searched) -> Result<(u32, bool)> {
        let next = || self.records.new_id();
        self.ids.intern(view.key(), view.at(), searched, next).during(COMPARING)
    }

    /// Looks at descriptors that wait in sockets, when all that processes have was looked at. A socket that is found so
    /// may hold others.
    fn look_under_way(&mut self) -> Vec<Error> {
        let mut errors = Vec::new();
        while let Some(message) = self.records.under_way.pop_front() {
            let mut ids = Vec::with_capacity(message.files.len());
            for file in message.files {
                match self.dump_held(message.pid, message.ns_pid, message.fd, file) {
                    Ok(id) => ids.push(id),
                    Err(e) => errors.push(e.on(Object::Fd(message.pid.as_raw(), message.fd.0))),
                }
            }
            let scm = self.records.packets.get_mut(message.packet).and_then(|(entry, _)| entry.scm.first_mut());
            if let Some(scm) = scm {
                scm.rights = ids;
            }
        }
        errors
    }

    /// The id of a file that waits in the queue of the socket `carrier`.
    fn dump_held(&mut self, pid: HostTid, ns_pid: NsTid, carrier: TargetFd, file: OwnedFd) -> Result<u32> {
        let proc = ProcDir::open(pid).during("opening the task's directory")?;
        let pidfd = PidFd::open(pid).or_else(|_| PidFd::open_thread(pid)).during("pidfd_open")?;
        let target = Target { pid, ns_pid, proc: &proc, pidfd: pidfd.as_fd() };
        let view = FdView::held(&target, carrier, file)?;
        let refused = |what: &str| {
            Error::unsupported(
                format!("{what} is on its way through a unix socket, which is not supported"),
                "try again when it was received",
            )
        };
        let (id, new) = self.intern(&view, Searched::default())?;
        if new {
            self.noted.add(&view, id, &mut self.records)?;
        }
        let kind = self.noted.type_of(id);
        if kind == FdTypes::Pidfd as i32 {
            return Err(refused("a pidfd"));
        }
        if !new {
            return Ok(id);
        }
        if kind == FdTypes::Inotify as i32 || kind == FdTypes::Fanotify as i32 {
            return Err(refused("the only descriptor of a file that watches others"));
        }
        if view.info.all("lock").next().is_some() {
            return Err(refused("the only descriptor of a file that holds a lock"));
        }
        self.records.held.push(view.into_copy()?);
        Ok(id)
    }

    /// Everything that cannot be saved, one error each; empties the list. Call it when every task was looked at: some
    /// files depend on who else is in the tree.
    pub fn take_blockers(&mut self) -> Vec<Error> {
        let mut all = std::mem::take(&mut self.blockers);
        all.extend(self.look_under_way());
        all.extend(self.check_ttys());
        all.extend(self.check_unix());
        all.extend(self.check_pidfds());
        all.extend(self.check_watches());
        all.extend(self.check_mqueues());
        all.extend(self.check_numbers());
        all
    }

    /// Restore keeps descriptors of its own above those of the tree while it builds it.
    fn check_numbers(&self) -> Option<Error> {
        let highest = self.tables.values().flatten().map(|e| e.fd).max()?;
        let mut tables_of: HashMap<u32, usize> = HashMap::new();
        for entries in self.tables.values() {
            let ids: HashSet<u32> = entries.iter().map(|e| e.id).collect();
            ids.into_iter().for_each(|id| *tables_of.entry(id).or_default() += 1);
        }
        let shared = tables_of.values().filter(|&&tables| tables > 1).count();
        let need = u64::from(highest) + 1 + shared as u64 + SERVICE_NUMBERS;
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
        (need > limit).then(|| {
            let e = Error::unsupported(
                format!(
                    "to restore it, descriptor numbers up to {need} are needed, and {limit} are allowed (RLIMIT_NOFILE)"
                ),
                "raise the hard limit of open files (`ulimit -Hn`) for dump and restore, or let the program close some",
            );
            match self.last_at.get(&TargetFd(highest)) {
                Some((pid, _)) => e.on(Object::Fd(pid.as_raw(), highest)),
                None => e,
            }
        })
    }

    /// True if something was found that cannot be saved.
    pub fn has_blockers(&self) -> bool {
        !self.blockers.is_empty()
    }

    /// Number of open file descriptions and similar records so far.
    pub fn files(&self) -> usize {
        self.records.files.len()
    }

    pub(super) fn records(&mut self) -> &mut Records<'o> {
        &mut self.records
    }

    pub(super) fn memfds(&self) -> &[super::memfd::Inode] {
        &self.records.memfds
    }

    pub(super) fn add_fs(&mut self, pid: i32, entry: FsEntry) {
        self.fs.push((pid, entry));
    }

    /// Writes the images: files.img, fdinfo-N.img, fs-N.img, and those of kinds that have their own. The count is that
    /// of the memory among them.
    ///
    /// # Errors
    /// The blockers, all in one error; or the image directory cannot be written.
    pub fn finish(mut self, out: &Partial) -> Result<(Changed, PageCount)> {
        let links = std::mem::take(&mut self.records.links_made);
        let mut changed = Changed { links, devices: super::tun::Kept::default() };
        if let Some(e) = Error::all(self.take_blockers()) {
            return Err(e);
        }
        let r = self.records;
        let tty_data = super::tty_data::dump(&r)?;
        if !tty_data.is_empty() {
            out.put_all(ImageKind::TtyData, 0, &tty_data)?;
        }
        out.put_all(ImageKind::Files, 0, &r.files)?;
        for (id, entries) in &self.tables {
            out.put_all(ImageKind::Fdinfo, u64::from(*id), entries)?;
        }
        for (pid, entry) in &self.fs {
            out.put_one(ImageKind::Fs, u64::from(pid.unsigned_abs()), entry)?;
        }
        for (kind, data) in [(ImageKind::PipesData, &r.pipe_data), (ImageKind::FifoData, &r.fifo_data)] {
            if data.is_empty() {
                continue;
            }
            let mut w = Writer::new(Vec::new(), kind)?;
            for (entry, bytes) in data {
                w.entry(entry)?;
                w.extra(bytes)?;
            }
            out.put(&kind.file_name(0), &w.into_inner())?;
        }
        if !self.noted.locks.is_empty() {
            out.put_all(ImageKind::FileLocks, 0, &self.noted.locks)?;
        }
        if !r.packets.is_empty() {
            let mut w = Writer::new(Vec::new(), ImageKind::SkQueues)?;
            for (entry, bytes) in &r.packets {
                w.entry(entry)?;
                w.extra(bytes)?;
            }
            out.put(&ImageKind::SkQueues.file_name(0), &w.into_inner())?;
        }
        if !r.remaps.is_empty() {
            out.put_all(ImageKind::RemapFpath, 0, &r.remaps)?;
        }
        // CRIU's clients take the file's presence for "a terminal is among the files".
        if !r.tty_info.is_empty() {
            out.put_all(ImageKind::TtyInfo, 0, &r.tty_info)?;
        }
        super::bpfmap::write(&r.bpf_maps, out)?;
        super::plugged::write(&r.kept, out)?;
        let pages = super::memfd::write(&r.memfds, out)?;
        for ghost in &r.ghosts {
            ghost.write(out)?;
        }
        changed.devices = r.tun_devices.keep(r.opts)?;
        Ok((changed, pages))
    }
}

/// How many descriptors may be looked at together: each looking thread has some of its own for each of them and of those before.
fn most_together() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / 16).unwrap_or(usize::MAX).clamp(16, 256)
}

const COMPARING: &str = "comparing open files (kcmp)";

/// What can be seen of a descriptor without a change to what was collected before: several threads do it at once.
#[expect(clippy::large_enum_variant, reason = "most are of the large one, and few live at a time")]
enum Glance<'t> {
    /// The task before has the same open file at this number: all that is left to look at is the descriptor itself.
    SameAsLast(u32, FdInfo),
    Seen(FdView<'t>, Searched),
}

#[derive(Clone, Copy)]
struct Glancer<'t, 'c> {
    t: &'t Target<'t>,
    last_at: &'c HashMap<TargetFd, (HostTid, u32)>,
    ids: &'c FileIds,
}

impl<'t> Glancer<'t, '_> {
    fn look(self, known: Known, eyes: &mut Eyes) -> Result<Glance<'t>> {
        let at = (self.t.pid, known.fd);
        // A descriptor that is closed meanwhile makes no error here: the full look tells.
        if let Some(&(pid, id)) = self.last_at.get(&known.fd)
            && pid != self.t.pid
            && kcmp::file(at, (pid, known.fd)) == Ok(Ordering::Equal)
        {
            return Ok(Glance::SameAsLast(id, read_fdinfo(self.t, known.fd)?));
        }
        let mut view = FdView::look(self.t, known, eyes)?;
        let searched = self.ids.search(&view.key(), at).during(COMPARING)?;
        if !searched.is_known() {
            view.look_closely(eyes, known.cloexec.is_some());
        }
        Ok(Glance::Seen(view, searched))
    }

    /// A glance at each, in order; `None` where it failed. The caller does something else first, while helpers begin.
    fn look_at_all<R>(
        self,
        all: &[Known],
        eyes: &mut Vec<Eyes>,
        kept: usize,
        meanwhile: impl FnOnce() -> R,
    ) -> (Vec<Option<Glance<'t>>>, R) {
        let pays = together::pays(all.len());
        if pays && eyes.len() == 1 {
            eyes.resize_with(together::hands(), || Eyes::new(kept));
        }
        let lookers = if pays { eyes.len() } else { 1 };
        let glance = |i: usize, eyes: &mut Eyes| all.get(i).and_then(|known| self.look(*known, eyes).ok());
        let tools = eyes.get_mut(..lookers).unwrap_or_default();
        let (glances, other) = together::each_with(all.len(), tools, glance, meanwhile);
        // What a thread lost is looked at again.
        (glances.into_iter().map(Option::flatten).collect(), other)
    }
}

/// What a dump changed outside of its images: names that `--link-remap` made for files without one, and network devices that
/// stay when the program is gone. Dropped, it undoes that.
#[must_use = "dropping it undoes what the images count on"]
#[derive(Debug, Default)]
pub struct Changed {
    links: Vec<Vec<u8>>,
    devices: super::tun::Kept,
}

impl Changed {
    /// Leaves all as it is: the images are committed.
    pub fn keep(mut self) {
        self.links.clear();
        std::mem::take(&mut self.devices).leave();
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        for path in &self.links {
            if let Err(e) = rustix::fs::unlink(path.as_slice()) {
                log::warn!("the link {} stays: {e}", String::from_utf8_lossy(path));
            }
        }
    }
}

/// Asks the kind that recognises the descriptor for its record, or the plugins if there is none.
fn dump_file(view: &FdView<'_>, id: u32, records: &mut Records<'_>) -> Result<i32> {
    let kind = KINDS.iter().copied().find(|k| (k.recognise)(view)).unwrap_or(&super::plugged::KIND);
    let mut entry = (kind.dump)(view, id, records)?;
    entry.r#type = kind.fd_type as i32;
    entry.id = id;
    log::debug!("{view:?}: {} {id}", kind.name);
    records.files.push(entry);
    Ok(kind.fd_type as i32)
}

/// The error for a descriptor of no known kind: what it is, and what to do.
pub(super) fn unknown(view: &FdView<'_>) -> Error {
    let name = view.name();
    let what = match view.file_type() {
        libc::S_IFCHR => {
            let (major, minor) = (rustix::fs::major(view.stat.st_rdev), rustix::fs::minor(view.stat.st_rdev));
            format!("character device {major}:{minor} ({name}) is not supported")
        }
        libc::S_IFBLK => format!("block device {name} is not supported"),
        libc::S_IFSOCK => format!("sockets of this kind are not supported yet ({name})"),
        _ => format!("files of this kind are not supported yet ({name})"),
    };
    let help = if view.is_path() {
        format!(
            "close it before the dump, name it with `--external file[{:x}:{:x}]`, or have a plugin save it (--plugin)",
            view.info.mnt_id, view.stat.st_ino
        )
    } else {
        "close it before the dump, or have a plugin save it (--plugin)".to_owned()
    };
    Error::unsupported(what, help).on(view.object())
}

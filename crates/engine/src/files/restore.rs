//! The restore half: the images in memory, the check of everything, shared files opened once, tables built.
//!
//! Each open file description belongs to a unit: itself, or all ends of one pipe, all openers of one deleted file …
//! A unit used by one table only is opened by the task that owns the table; others are opened in the root task before it
//! forks, inherited at high numbers and put into place by each task.
use super::pipe::PipeContent;
use super::{
    FdKind, SERVICE_NUMBERS, epoll, fanotify, inotify, kind_of, locks, owners, pidfd, procfs, regular, tty, unix, watch,
};
use crate::images::Source;
use crate::plugins::Plugins;
use crate::{Error, Kind, Options, Result, ResultExt};
use crust_image::proto::{
    FdinfoEntry, FileEntry, FileLockEntry, FownEntry, FsEntry, GhostFileEntry, MemfdInodeEntry, PipeDataEntry,
    RegFileEntry, RemapFilePathEntry, RemapType, SkPacketEntry, TtyDataEntry, TtyInfoEntry, UnixSkEntry,
};
use crust_image::{ImageKind, Reader};
use crust_kernel::fd as kfd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// What the restore of files needs to know about one process.
#[derive(Clone, Debug, Default)]
pub struct TaskFiles {
    /// Id in its pid namespace, as in image names.
    pub pid: i32,
    /// Its descriptor table (`files_id`); processes with equal ids share one table.
    pub table: u32,
    /// Ids of files it maps or executes.
    pub also: Vec<u32>,
}

/// Kernel objects that must be opened together.
#[derive(Debug, Default)]
struct Unit {
    ids: Vec<u32>,
    tables: BTreeSet<u32>,
    /// Can be opened only when the whole tree was born: by each table for itself.
    late: bool,
}

impl Unit {
    fn is_shared(&self) -> bool {
        self.tables.len() > 1 && !self.late
    }
}

/// No table's id: a unit that has it and a table's is opened before the first fork.
const EARLY: u32 = u32::MAX;
/// Another, for units that no table may have.
const CARRIED: u32 = u32::MAX - 1;

/// What waits in a socket: bytes that came together, and the files they bring.
#[derive(Debug)]
pub(super) struct QueuedPacket {
    pub(super) bytes: Vec<u8>,
    pub(super) rights: Vec<u32>,
    /// Of a datagram: its sender, as in the image.
    pub(super) from: Option<Vec<u8>>,
}

/// What survives between calls: files opened and not yet in place.
#[derive(Debug, Default)]
pub(super) struct OpenState {
    /// Files of shared units, opened in the root task, at high numbers.
    pub(super) shared: HashMap<u32, OwnedFd>,
    /// Unix sockets whose queues wait for other files.
    pub(super) unix: Vec<unix::Waiting>,
    pub(super) ghosts: HashMap<u32, super::ghost::Made>,
    /// Memfds made again, by inode id, to open them through.
    pub(super) memfds: HashMap<u32, super::memfd::Made>,
    pub(super) inherited: HashMap<String, OwnedFd>,
    /// For tasks that are gone; in the root task alone.
    stand_ins: Vec<procfs::StandIn>,
    /// What options new sockets have.
    pub(super) fresh: std::cell::RefCell<super::sockopt::Fresh>,
    /// Tables whose descriptors are in place in this process.
    built: BTreeSet<u32>,
}

/// All images about files, and the state of their restore.
#[derive(Debug, Default)]
pub struct FileImages {
    files: BTreeMap<u32, FileEntry>,
    tables: BTreeMap<u32, Vec<FdinfoEntry>>,
    pub(super) fs: HashMap<i32, FsEntry>,
    pub(super) pipe_data: HashMap<u32, PipeContent>,
    pub(super) fifo_data: HashMap<u32, PipeContent>,
    remaps: HashMap<u32, RemapFilePathEntry>,
    pub(super) tty_info: HashMap<u32, TtyInfoEntry>,
    /// What waits to be read at terminals, by tty_info id of the reading side.
    pub(super) tty_data: HashMap<u32, TtyDataEntry>,
    locks: Vec<FileLockEntry>,
    /// Table of each process.
    table_of: HashMap<i32, u32>,
    root: i32,
    pub(super) memfds: HashMap<u32, MemfdInodeEntry>,
    /// Content of BPF maps, by the map's number.
    pub(super) bpf_data: HashMap<u32, crust_kernel::bpf::Entries>,
    /// What waits in sockets, by the file's id.
    pub(super) packets: HashMap<u32, Vec<QueuedPacket>>,
    /// Epolls that no table has, because they wait in a socket: by the table of who can receive them.
    carried_epolls: HashMap<u32, Vec<u32>>,
    /// Deleted files that are watched, by device and inode.
    ghost_inodes: HashMap<(u32, u64), u32>,
    /// Unix sockets by inode, name and unit.
    pub(super) unix: unix::Names,
    units: Vec<Unit>,
    unit_of: HashMap<u32, usize>,
    /// Terminals whose masters were made for somebody outside of the tree, by number.
    pub(super) orphans: BTreeSet<u32>,
    /// From here on numbers are used by no table.
    base: RawFd,
    state: OpenState,
}

/// What kinds see while they open files.
pub(super) struct Opener<'a> {
    pub(super) images: &'a FileImages,
    pub(super) state: &'a mut OpenState,
    pub(super) source: &'a Source,
    pub(super) opts: &'a Options,
}

impl FileImages {
    /// Makes sure that images which are read while tasks are built are at hand: those of deleted files and memfds.
    ///
    /// # Errors
    /// If they cannot be fetched.
    pub fn fetch_late(&self, source: &Source) -> Result<()> {
        for remap in self.remaps.values() {
            source.exists(&ImageKind::GhostFile.file_name(remap.remap_id.into()))?;
        }
        for memfd in self.memfds.values() {
            super::memfd::fetch(memfd, source)?;
        }
        Ok(())
    }

    /// Reads everything about the files of `tasks` (in the order of the tree, root first).
    ///
    /// # Errors
    /// An image is missing or says something impossible.
    pub fn read(source: &Source, tasks: &[TaskFiles]) -> Result<Self> {
        let mut images = Self::default();
        let name = ImageKind::Files.file_name(0);
        if let Some(bytes) = source.read(&name)? {
            let mut reader = Reader::open_named(&name, &bytes, ImageKind::Files)?;
            while let Some(entry) = reader.next::<FileEntry>()? {
                images.add_file(entry)?;
            }
        }
        images.root = tasks.first().map_or(0, |t| t.pid);
        images.locks = source.read_all(ImageKind::FileLocks, 0)?;
        for task in tasks {
            images.table_of.insert(task.pid, task.table);
            if let std::collections::btree_map::Entry::Vacant(slot) = images.tables.entry(task.table) {
                slot.insert(source.read_all(ImageKind::Fdinfo, u64::from(task.table))?);
            }
            if let Some(fs) = source.read_one_if(ImageKind::Fs, u64::from(task.pid.unsigned_abs()))? {
                images.fs.insert(task.pid, fs);
            }
        }
        images.pipe_data = read_pipes(source, ImageKind::PipesData)?;
        images.bpf_data = super::bpfmap::read(source)?;
        images.fifo_data = read_pipes(source, ImageKind::FifoData)?;
        for remap in source.read_all::<RemapFilePathEntry>(ImageKind::RemapFpath, 0)? {
            images.remaps.insert(remap.orig_id, remap);
        }
        for tty in source.read_all::<TtyInfoEntry>(ImageKind::TtyInfo, 0)? {
            images.tty_info.insert(tty.id, tty);
        }
        for data in source.read_all::<TtyDataEntry>(ImageKind::TtyData, 0)? {
            images.tty_data.insert(data.tty_id, data);
        }
        for memfd in source.read_all::<MemfdInodeEntry>(ImageKind::MemfdInode, 0)? {
            let id =
                u32::try_from(memfd.inode_id).map_err(|_| Error::bad_image("memfd.img", "an impossible inode id"))?;
            images.memfds.insert(id, memfd);
        }
        let name = ImageKind::SkQueues.file_name(0);
        let mut rights_in_order: Vec<(u32, Vec<u32>)> = Vec::new();
        if let Some(bytes) = source.read(&name)? {
            let mut reader = Reader::open_named(&name, &bytes, ImageKind::SkQueues)?;
            while let Some(packet) = reader.next::<SkPacketEntry>()? {
                let bytes = reader.extra(u64::from(packet.length))?.to_vec();
                let mut rights = Vec::new();
                for scm in packet.scm {
                    if scm.r#type != libc::SCM_RIGHTS as u32 {
                        return Err(Error::unsupported(
                            format!("a control message of kind {} was on its way through a unix socket", scm.r#type),
                            "such images cannot be restored by this version",
                        ));
                    }
                    rights.extend(scm.rights);
                }
                if !rights.is_empty() {
                    rights_in_order.push((packet.id_for, rights.clone()));
                }
                images.packets.entry(packet.id_for).or_default().push(QueuedPacket {
                    bytes,
                    rights,
                    from: packet.crust_from,
                });
            }
        }
        let same = images.same_files();
        let known = |id: &mut u32| {
            if let Some(first) = same.get(&u64::from(*id)) {
                *id = *first as u32;
            }
        };
        for fs in images.fs.values_mut() {
            known(&mut fs.cwd_id);
            known(&mut fs.root_id);
        }
        images.find_watched_ghosts(source)?;
        images.unix = unix::Names::new(images.files.values().filter_map(|f| f.usk.as_deref()));
        images.plan(tasks)?;
        images.plan_carried(&rights_in_order);
        Ok(images)
    }

    /// Takes up a record. An open /dev/net/tun has two with one id: that of its path, and its own.
    fn add_file(&mut self, entry: FileEntry) -> Result<()> {
        let id = entry.id;
        let both = match self.files.get(&id) {
            None => entry,
            Some(path) if path.reg.is_some() && path.tunf.is_none() && entry.tunf.is_some() => {
                FileEntry { reg: path.reg.clone(), ..entry }
            }
            Some(tun) if tun.tunf.is_some() && tun.reg.is_none() && entry.reg.is_some() => {
                FileEntry { reg: entry.reg, ..tun.clone() }
            }
            Some(_) => return Err(Error::bad_image("files.img", format!("two files have id {id}"))),
        };
        self.files.insert(id, both);
        Ok(())
    }

    /// Sorts files into units and finds out which tables use each.
    fn plan(&mut self, tasks: &[TaskFiles]) -> Result<()> {
        let mut unit_of_key: HashMap<(i32, u64), usize> = HashMap::new();
        for (id, entry) in &self.files {
            let Some(kind) = kind_of(entry) else { continue };
            let unit = match (kind.group)(entry, self) {
                Some(key) => *unit_of_key.entry((entry.r#type, key)).or_insert_with(|| {
                    self.units.push(Unit::default());
                    self.units.len() - 1
                }),
                None => {
                    self.units.push(Unit::default());
                    self.units.len() - 1
                }
            };
            if let Some(u) = self.units.get_mut(unit) {
                u.ids.push(*id);
            }
            if (tty::must_be_early(entry, self) || pidfd::must_be_early(entry))
                && let Some(u) = self.units.get_mut(unit)
            {
                u.tables.insert(EARLY);
            }
            if unix::must_be_early(entry, self)
                && let Some(u) = self.units.get_mut(unit)
            {
                u.tables.extend([EARLY, CARRIED]);
            }
            let late =
                pidfd::must_be_late(entry) || procfs::must_be_late(entry, self) || tty::must_be_late(entry, self);
            if let Some(u) = self.units.get_mut(unit) {
                u.late |= late;
            }
            self.unit_of.insert(*id, unit);
        }
        let mut highest = 2;
        for (table, entries) in &self.tables {
            for e in entries {
                highest = highest.max(e.fd);
                let watched = self.files.get(&e.id).into_iter().flat_map(watch::nameless);
                let watched = watched.filter_map(|inode| self.ghost_inodes.get(&inode).copied());
                for id in watched.chain([e.id]) {
                    if let Some(u) = self.unit_of.get(&id).and_then(|u| self.units.get_mut(*u)) {
                        u.tables.insert(*table);
                    }
                }
            }
        }
        self.plan_creators(tasks);
        let mut users: HashMap<u32, usize> = HashMap::new();
        for task in tasks {
            *users.entry(task.table).or_default() += 1;
        }
        for task in tasks {
            let several = users.get(&task.table).is_some_and(|&n| n > 1);
            let fs = self.fs.get(&task.pid);
            let ids = task.also.iter().copied().chain(fs.into_iter().flat_map(|f| [f.cwd_id, f.root_id]));
            for id in ids {
                // Only what cannot be opened twice by its name must be opened in common.
                let is_named = self.files.get(&id).is_some_and(|f| f.reg.is_some()) && self.ghost_of(id).is_none();
                if !is_named && let Some(u) = self.unit_of.get(&id).and_then(|u| self.units.get_mut(*u)) {
                    u.tables.insert(task.table);
                    if several {
                        // Several processes with one table would each open it for itself.
                        u.tables.insert(EARLY);
                    }
                }
            }
        }
        self.base = RawFd::try_from(highest)
            .ok()
            .and_then(|h| h.checked_add(1))
            .ok_or_else(|| Error::bad_image("fdinfo", format!("impossible descriptor number {highest}")))?;
        Ok(())
    }

    /// Sockets that show another process than the one that opens them are made while no other id of the tree is in use.
    fn plan_creators(&mut self, tasks: &[TaskFiles]) {
        let Self { units, files, .. } = self;
        for unit in units.iter_mut().filter(|unit| unit.tables.len() == 1) {
            let mut users = tasks.iter().filter(|task| unit.tables.contains(&task.table)).map(|task| task.pid);
            let only = users.next().filter(|_| users.next().is_none());
            let mut sockets = unit.ids.iter().filter_map(|id| files.get(id)?.usk.as_deref());
            if !sockets.all(|s| s.crust_peer.is_none() || only.is_some_and(|pid| unix::is_creator(s, pid))) {
                unit.tables.insert(EARLY);
            }
        }
    }

    /// Files that wait in sockets, and those sockets, are opened before the first fork. An epoll among them that no table
    /// has is filled by who can receive it: in the order of the dump, which looked for what it watches in that table.
    fn plan_carried(&mut self, rights: &[(u32, Vec<u32>)]) {
        if rights.is_empty() {
            return;
        }
        let mut home: HashMap<u32, u32> = HashMap::new();
        for (table, entries) in &self.tables {
            for e in entries {
                home.entry(e.id).or_insert(*table);
            }
        }
        for (carrier, files) in rights {
            for id in files.iter().chain([carrier]) {
                if let Some(u) = self.unit_of.get(id).and_then(|u| self.units.get_mut(*u)) {
                    u.tables.extend([EARLY, CARRIED]);
                }
            }
            let Some(table) = home.get(carrier).copied() else { continue };
            for id in files {
                if home.contains_key(id) {
                    continue;
                }
                home.insert(*id, table);
                if self.files.get(id).is_some_and(|f| f.epfd.is_some()) {
                    self.carried_epolls.entry(table).or_default().push(*id);
                }
            }
        }
    }

    /// The first descriptor number that no table uses: service descriptors belong at or above it.
    pub fn first_service_fd(&self) -> RawFd {
        self.base
    }

    /// A descriptor of file `id`, for messages.
    pub(super) fn holder_of(&self, id: u32) -> Option<String> {
        let at = |(table, entries): (&u32, &Vec<FdinfoEntry>)| Some((*table, entries.iter().find(|e| e.id == id)?.fd));
        let (table, fd) = self.tables.iter().find_map(at)?;
        let pid = self.table_of.iter().filter(|(_, t)| **t == table).map(|(pid, _)| *pid).min()?;
        Some(format!("task {pid}, fd {fd}"))
    }

    /// Everything that would make the restore of files fail, asked before anything is made.
    pub fn check(&self, opts: &Options, plugins: &Plugins) -> Vec<Error> {
        let mut errors = self.check_ttys(opts);
        errors.extend(self.check_unix(opts));
        let terminals = tty::path_records(self.files.values());
        let mut asked = regular::Asked::default();
        for (id, entry) in &self.files {
            let before = errors.len();
            if kind_of(entry).is_none() {
                let name = crust_image::proto::FdTypes::try_from(entry.r#type)
                    .map_or_else(|_| format!("type {}", entry.r#type), |t| t.as_str_name().to_owned());
                errors.push(Error::unsupported(
                    format!("file {id} in files.img is of a kind this version cannot restore ({name})"),
                    "use a newer version of crust",
                ));
            }
            if let Some(reg) = entry.reg.as_ref().filter(|_| !terminals.contains(id)) {
                regular::check(reg, self, opts, &mut asked, &mut errors);
            }
            super::mqueue::check(entry, &mut errors);
            errors.extend(super::tun::check(entry));
            errors.extend(super::overflow::check(entry));
            errors.extend(super::plugged::check(entry, plugins));
            if errors.len() > before
                && let Some(holder) = self.holder_of(*id)
            {
                let found = errors.split_off(before);
                errors.extend(found.into_iter().map(|e| e.held_by(holder.as_str())));
            }
        }
        for (id, packets) in &self.packets {
            for right in packets.iter().flat_map(|p| &p.rights) {
                let known = self.unit_of.get(right).and_then(|u| self.units.get(*u));
                match known {
                    Some(unit) if !unit.late => {}
                    Some(_) => errors.push(Error::unsupported(
                        format!("a pidfd (file {right}) was on its way through unix socket {id}"),
                        "such images cannot be restored yet",
                    )),
                    None => errors.push(Error::bad_image(
                        "sk-queues.img",
                        format!("file {right} waits in socket {id} and is not in files.img, or of an unknown kind"),
                    )),
                }
            }
        }
        for (table, entries) in &self.tables {
            let mut seen = BTreeSet::new();
            for e in entries {
                let image = ImageKind::Fdinfo.file_name(u64::from(*table));
                if !self.files.contains_key(&e.id) {
                    errors.push(Error::bad_image(
                        &image,
                        format!("fd {} is file {}, which is not in files.img", e.fd, e.id),
                    ));
                }
                if !seen.insert(e.fd) {
                    errors.push(Error::bad_image(&image, format!("fd {} is there twice", e.fd)));
                }
            }
        }
        let shared = self.units.iter().filter(|u| u.is_shared()).map(|u| u.ids.len()).sum::<usize>();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let need = self.base as u64 + shared as u64 + SERVICE_NUMBERS;
        if need > limit {
            errors.push(
                Error::new(Kind::BadRequest, format!("{need} descriptors are needed at once, and {limit} are allowed"))
                    .help("raise the hard limit of open files (`ulimit -Hn`)"),
            );
        }
        errors
    }

    /// All records of open files, by id.
    pub(super) fn files(&self) -> &BTreeMap<u32, FileEntry> {
        &self.files
    }

    /// Keeps a copy of a descriptor that is to stand for the resource `key`.
    pub(super) fn give(&mut self, key: String, fd: &OwnedFd) -> Result<()> {
        let copy = rustix::io::fcntl_dupfd_cloexec(fd, self.base).during("copying a descriptor")?;
        self.state.inherited.insert(key, copy);
        Ok(())
    }

    /// The descriptor the caller gave us for `key`, once [`FileImages::open_shared`] has taken it.
    pub(super) fn given(&self, key: &str) -> Option<&OwnedFd> {
        self.state.inherited.get(key)
    }

    /// Opens everything that more than one table uses. Called once, in the root task before it forks.
    ///
    /// # Errors
    /// A file cannot be opened as it was.
    pub fn open_shared(&mut self, source: &Source, opts: &Options) -> Result<()> {
        raise_limit(self.base as u64 + self.files.len() as u64 + SERVICE_NUMBERS);
        let units: Vec<Vec<u32>> = self.units.iter().filter(|u| u.is_shared()).map(|u| u.ids.clone()).collect();
        let dead: BTreeSet<i32> = self.dead_pids().collect();
        self.with_opener(source, opts, |cx| {
            for pid in dead {
                cx.state.stand_ins.push(procfs::StandIn::bear(pid)?);
            }
            cx.take_inherited()?;
            tty::keep_own(cx)?;
            for ids in units {
                let opened =
                    cx.open_unit(&ids).map_err(|err| match ids.iter().find_map(|id| cx.images.holder_of(*id)) {
                        Some(holder) => err.held_by(holder),
                        None => err,
                    });
                for (id, fd) in opened? {
                    let fd = cx.hold(fd)?;
                    cx.state.shared.insert(id, fd);
                }
            }
            unix::finish_waiting(cx)
        })
    }

    /// Builds the descriptor table `table` in this process: closes everything that is neither in `keep` nor shared, then
    /// puts every descriptor where it was. Numbers in `keep`, and that of the source's directory, must be at or above [`FileImages::first_service_fd`].
    ///
    /// After this call no `OwnedFd` made before it may be used or dropped, except those in `keep` and this structure's.
    ///
    /// # Errors
    /// A file cannot be opened as it was.
    pub fn open_table(&mut self, table: u32, keep: &[RawFd], source: &Source, opts: &Options) -> Result<()> {
        let mut kept: Vec<RawFd> = keep.to_vec();
        kept.push(source.dir().as_raw_fd());
        if let Some(low) = kept.iter().find(|fd| **fd < self.base) {
            return Err(Error::new(Kind::Internal, format!("service descriptor {low} is in the way of the target's")));
        }
        let entries = self.tables.get(&table).cloned().unwrap_or_default();
        kept.extend(self.state.shared.values().map(AsRawFd::as_raw_fd));
        kept.extend(self.state.inherited.values().map(AsRawFd::as_raw_fd));
        kept.extend(self.state.memfds.values().map(|made| made.held.as_raw_fd()));
        kept.extend(self.state.ghosts.values().map(|g| g.fd.as_raw_fd()));
        close_all_but(kept)?;

        let places = Places::new(&entries);
        self.with_opener(source, opts, |cx| {
            let mut done = BTreeSet::new();
            for e in &entries {
                if !done.insert(e.id) {
                    continue;
                }
                if let Some(fd) = cx.state.shared.get(&e.id) {
                    put_all(fd, places.of(e.id))?;
                    continue;
                }
                let unit = cx.images.unit_of.get(&e.id).and_then(|u| cx.images.units.get(*u));
                let unit = unit.ok_or_else(|| {
                    Error::bad_image("files.img", format!("file {} is missing or of an unknown kind", e.id))
                })?;
                let mut opened = cx.open_unit(&unit.ids).map_err(|err| err.held_by(format!("fd {}", e.fd)))?;
                // One of them may sit where another belongs; where it belongs first itself it can stay.
                let sits = |(id, fd): &(u32, OwnedFd)| {
                    let number = fd.as_raw_fd() as u32;
                    opened.iter().any(|(o, _)| {
                        let skip = usize::from(o == id);
                        places.of(*o).iter().skip(skip).any(|e| e.fd == number)
                    })
                };
                if opened.len() > 1 && opened.iter().any(sits) {
                    opened = opened.into_iter().map(|(id, fd)| Ok((id, cx.hold(fd)?))).collect::<Result<_>>()?;
                }
                for (id, fd) in opened {
                    done.insert(id);
                    put(fd, places.of(id))?;
                }
            }
            cx.state.built.insert(table);
            let fown_at = |fd: i32| {
                let entry = entries.iter().find(|e| e.fd as i32 == fd)?;
                Some(cx.images.files.get(&entry.id)?.reg.as_ref()?.fown)
            };
            let leases = cx.images.locks.iter().filter(|l| locks::is_lease(l));
            for lease in leases.filter(|l| cx.images.table_of.get(&l.pid) == Some(&table)) {
                locks::restore_lease(lease, &fown_at(lease.fd).unwrap_or_default(), cx)?;
            }
            Ok(())
        })?;
        self.watch_all(table, &entries)
    }

    /// Fills the epolls of a finished table. One that several tables have is filled by the first of them, whose numbers
    /// its record was made with.
    fn watch_all(&self, table: u32, entries: &[FdinfoEntry]) -> Result<()> {
        let numbers: BTreeSet<u32> = entries.iter().map(|e| e.fd).collect();
        let at = |fd: u32| numbers.contains(&fd).then(|| kfd::borrow_placed(fd as RawFd));
        let mut done = BTreeSet::new();
        for e in entries {
            let Some(record) = self.files.get(&e.id).and_then(|f| f.epfd.as_ref()) else { continue };
            let unit = self.unit_of.get(&e.id).and_then(|u| self.units.get(*u));
            if !done.insert(e.id) || unit.and_then(|u| u.tables.first()) != Some(&table) {
                continue;
            }
            epoll::watch(kfd::borrow_placed(number(e)?), record, at)?;
        }
        for id in self.carried_epolls.get(&table).into_iter().flatten() {
            let record = self.files.get(id).and_then(|f| f.epfd.as_ref());
            if let (Some(record), Some(fd)) = (record, self.state.shared.get(id)) {
                epoll::watch(fd.as_fd(), record, at)?;
            }
        }
        Ok(())
    }

    /// True if files of this table are to watch others: see [`FileImages::watch_files`].
    pub fn has_watches(&self, table: u32) -> bool {
        self.tables
            .get(&table)
            .is_some_and(|t| t.iter().filter_map(|e| self.files.get(&e.id)).any(|f| f.ify.is_some() || f.ffy.is_some()))
    }

    /// Lets inotify and fanotify watch again. Call it when every task has its files, and before the root directory changes:
    /// what the restore itself opens, makes and removes is no event.
    ///
    /// # Errors
    /// A watched file is not there.
    pub fn watch_files(&mut self, table: u32, source: &Source, opts: &Options) -> Result<()> {
        let entries = self.tables.get(&table).cloned().unwrap_or_default();
        self.with_opener(source, opts, |cx| {
            let mut done = BTreeSet::new();
            for e in &entries {
                let Some(file) = cx.images.files.get(&e.id).filter(|f| f.ify.is_some() || f.ffy.is_some()) else {
                    continue;
                };
                let unit = cx.images.unit_of.get(&e.id).and_then(|u| cx.images.units.get(*u));
                if !done.insert(e.id) || unit.and_then(|u| u.tables.first()) != Some(&table) {
                    continue;
                }
                let fd = kfd::borrow_placed(number(e)?);
                let on = |err: Error| err.on(crate::Object::Fd(std::process::id() as i32, e.fd));
                if let Some(record) = &file.ify {
                    inotify::watch(fd, record, cx).map_err(on)?;
                }
                if let Some(record) = &file.ffy {
                    fanotify::mark(fd, record, cx).map_err(on)?;
                }
            }
            Ok(())
        })
    }

    /// Deleted files by device and inode, if any is watched without a name.
    fn find_watched_ghosts(&mut self, source: &Source) -> Result<()> {
        if !self.files.values().any(|f| watch::nameless(f).next().is_some()) {
            return Ok(());
        }
        let ghosts: Vec<(u32, u32)> = self.remaps.keys().filter_map(|id| Some((*id, self.ghost_of(*id)?))).collect();
        for (file, ghost) in ghosts {
            let image = ImageKind::GhostFile.file_name(u64::from(ghost));
            let Some(bytes) = source.read(&image)? else { continue };
            let entry: GhostFileEntry = Reader::open_named(&image, &bytes, ImageKind::GhostFile)?.expect()?;
            if let (Some(dev), Some(ino)) = (entry.dev, entry.ino) {
                self.ghost_inodes.insert((dev, ino), file);
            }
        }
        Ok(())
    }

    /// The deleted file that had this device and inode.
    pub(super) fn ghost_by_inode(&self, dev: u32, ino: u64) -> Option<u32> {
        self.ghost_inodes.get(&(dev, ino)).copied()
    }

    /// A new descriptor for file `id`: the executable, a mapped file.
    ///
    /// # Errors
    /// It cannot be opened as it was.
    pub fn open_file_id(&mut self, id: u32, source: &Source, opts: &Options) -> Result<OwnedFd> {
        self.with_opener(source, opts, |cx| cx.open_id(id))
    }

    /// A new descriptor for a mapped file, opened as the mapping needs it (`vma_entry.fdflags`; `None` for O_RDONLY).
    ///
    /// # Errors
    /// It cannot be opened so.
    pub fn open_mapped(&mut self, id: u32, fdflags: Option<u32>, source: &Source, opts: &Options) -> Result<OwnedFd> {
        self.with_opener(source, opts, |cx| {
            let is_reg = cx.images.files.get(&id).is_some_and(|f| f.reg.is_some());
            let flags = fdflags.unwrap_or(libc::O_RDONLY as u32);
            if is_reg && cx.images.ghost_of(id).is_none() {
                return regular::open_entry(cx.images.regular(id)?, Some(flags), cx);
            }
            let fd = cx.open_id(id)?;
            cx.reopen(&fd, flags)
        })
    }

    /// Closes what is left of shared files in this process, then takes the locks of its tables: closing any descriptor of
    /// a file drops the process's POSIX locks on it. The table is as imaged then, but for the kept descriptors.
    ///
    /// # Errors
    /// A lock is held by somebody else.
    pub fn close_shared(&mut self) -> Result<()> {
        let built = std::mem::take(&mut self.state).built;
        for lock in self.locks.iter().filter(|l| !locks::is_lease(l)) {
            if self.table_of.get(&lock.pid).is_some_and(|table| built.contains(table)) {
                locks::restore(lock)?;
            }
        }
        Ok(())
    }

    /// Lets go of what is left of shared files without closing it: the table's first user will.
    pub fn leave_shared(&mut self) {
        std::mem::forget(std::mem::take(&mut self.state));
    }

    pub(super) fn with_opener<T>(
        &mut self,
        source: &Source,
        opts: &Options,
        f: impl FnOnce(&mut Opener<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut state = std::mem::take(&mut self.state);
        let result = f(&mut Opener { images: self, state: &mut state, source, opts });
        self.state = state;
        result
    }

    /// The descriptors of a table, none if there is no such table.
    pub(super) fn table(&self, table: u32) -> &[FdinfoEntry] {
        self.tables.get(&table).map_or(&[], Vec::as_slice)
    }

    /// True for a file that can be opened only when the whole tree was born, and for one that is of no known kind.
    pub(super) fn is_late(&self, id: u32) -> bool {
        self.unit(id).is_none_or(|u| u.late)
    }

    /// True for a file that the root task opens for several tables.
    pub(super) fn is_shared(&self, id: u32) -> bool {
        self.unit(id).is_some_and(Unit::is_shared)
    }

    fn unit(&self, id: u32) -> Option<&Unit> {
        self.unit_of.get(&id).and_then(|u| self.units.get(*u))
    }

    /// The descriptor that such a file has in this process.
    pub(super) fn opened(&self, id: u32) -> Option<&OwnedFd> {
        self.state.shared.get(&id)
    }

    /// True if no file is replaced by one that the caller or a plugin gave us.
    pub(super) fn nothing_given(&self, opts: &Options) -> bool {
        opts.inherit_fds.is_empty() && self.state.inherited.is_empty()
    }

    /// True if a record of locks or leases names this process.
    pub(super) fn has_locks(&self, pid: i32) -> bool {
        self.locks.iter().any(|l| l.pid == pid)
    }

    /// True if this file is not opened by the name in its record, or that name is another's.
    pub(super) fn is_remapped(&self, id: u32) -> bool {
        self.remaps.contains_key(&id)
    }

    /// For each regular file that is listed again under its name, the id it is listed by first.
    pub fn same_files(&self) -> HashMap<u64, u64> {
        let mut first: HashMap<(&[u8], Option<i32>), u32> = HashMap::new();
        let mut same = HashMap::new();
        for (id, reg) in self.files.iter().filter_map(|(id, f)| Some((id, f.reg.as_ref()?))) {
            if self.remaps.contains_key(id) {
                continue;
            }
            let known = *first.entry((&reg.name, reg.mnt_id)).or_insert(*id);
            if known != *id {
                same.insert(u64::from(*id), u64::from(known));
            }
        }
        same
    }

    /// The ghost file that holds the content of file `id`.
    pub(super) fn ghost_of(&self, id: u32) -> Option<u32> {
        let remap = self.remaps.get(&id)?;
        (remap.remap_type.unwrap_or(RemapType::Ghost as i32) == RemapType::Ghost as i32).then_some(remap.remap_id)
    }

    /// Processes that were gone while files of theirs below /proc were open.
    pub(super) fn dead_pids(&self) -> impl Iterator<Item = i32> {
        let remaps = self.remaps.values().filter(|r| r.remap_type == Some(RemapType::Procfs as i32));
        remaps.filter_map(|r| i32::try_from(r.remap_id).ok())
    }

    /// True if stand-ins for tasks that are gone live until [`FileImages::close_shared`]: it must come in the root task when
    /// every other has opened its files.
    pub fn has_stand_ins(&self) -> bool {
        self.dead_pids().next().is_some()
    }

    /// Files with a process and a number that they can be found at.
    pub(super) fn placed(&self) -> impl Iterator<Item = (i32, RawFd, &FileEntry)> {
        let pids: HashMap<u32, i32> = self.table_of.iter().map(|(pid, table)| (*table, *pid)).collect();
        self.tables.iter().filter_map(move |(table, entries)| Some((*pids.get(table)?, entries))).flat_map(
            move |(pid, entries)| {
                entries.iter().filter_map(move |e| Some((pid, number(e).ok()?, self.files.get(&e.id)?)))
            },
        )
    }

    /// True for a living process of the tree.
    pub(super) fn has_task(&self, pid: i32) -> bool {
        self.table_of.contains_key(&pid)
    }

    /// True for the tree's first process.
    pub(super) fn is_root(&self, pid: i32) -> bool {
        self.root == pid
    }

    /// Removes the names that `--link-remap` made for the dump: the tree is complete, and has the files open.
    pub fn remove_links(&self) {
        let links = self.remaps.values().filter(|r| r.remap_type == Some(RemapType::Linked as i32));
        for reg in links.filter_map(|r| self.regular(r.remap_id).ok()) {
            match rustix::fs::unlink(reg.name.as_slice()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => log::warn!("the link {} stays: {e}", String::from_utf8_lossy(&reg.name)),
            }
        }
    }

    /// The path that file can be opened by now.
    pub(super) fn path_of<'a>(&'a self, reg: &'a RegFileEntry) -> Result<&'a [u8]> {
        let Some(remap) = self.remaps.get(&reg.id) else { return Ok(&reg.name) };
        match RemapType::try_from(remap.remap_type.unwrap_or(RemapType::Ghost as i32)) {
            Ok(RemapType::Linked) => Ok(&self.regular(remap.remap_id)?.name),
            Ok(RemapType::Ghost | RemapType::Procfs) => Ok(&reg.name),
            Err(_) => Err(Error::bad_image("remap-fpath.img", format!("file {} is remapped in no known way", reg.id))),
        }
    }

    /// The record of a unix socket.
    pub(super) fn unix_by_id(&self, id: u32) -> Option<&UnixSkEntry> {
        self.files.get(&id)?.usk.as_deref()
    }

    /// True if descriptors wait in a socket.
    pub(super) fn carries_rights(&self, id: u32) -> bool {
        self.packets.get(&id).is_some_and(|packets| packets.iter().any(|p| !p.rights.is_empty()))
    }

    /// Open terminals with what is known about each.
    pub(super) fn files_with_tty(&self) -> impl Iterator<Item = (&FileEntry, &TtyInfoEntry)> {
        self.files.values().filter_map(|f| Some((f, self.tty_info.get(&f.tty.as_ref()?.tty_info_id)?)))
    }

    /// The record of a regular file.
    pub(super) fn regular(&self, id: u32) -> Result<&RegFileEntry> {
        let entry = self.files.get(&id).and_then(|f| f.reg.as_deref());
        entry.ok_or_else(|| Error::bad_image("files.img", format!("file {id} is missing or no regular file")))
    }
}

impl Opener<'_> {
    /// The part of an entry that its type promises.
    pub(super) fn body<'e, B: Deref>(&self, entry: &FileEntry, body: Option<&'e B>) -> Result<&'e B::Target>
    where
        B::Target: Sized,
    {
        self.part(entry, body.map(Deref::deref))
    }

    /// The same for a part of such a part.
    pub(super) fn part<'e, T>(&self, entry: &FileEntry, part: Option<&'e T>) -> Result<&'e T> {
        part.ok_or_else(|| Error::bad_image("files.img", format!("file {} lacks the record of its type", entry.id)))
    }

    fn open_unit(&mut self, ids: &[u32]) -> Result<Vec<(u32, OwnedFd)>> {
        let entries: Vec<&FileEntry> = ids.iter().filter_map(|id| self.images.files.get(id)).collect();
        let kind: &FdKind = entries
            .first()
            .and_then(|e| kind_of(e))
            .ok_or_else(|| Error::bad_image("files.img", format!("file {ids:?} is missing or of an unknown kind")))?;
        log::trace!("opening {} {ids:?}", kind.name);
        (kind.open)(&entries, self)
    }

    /// A descriptor for one file by its id, whatever its unit.
    pub(super) fn open_id(&mut self, id: u32) -> Result<OwnedFd> {
        if let Some(fd) = self.state.shared.get(&id) {
            return fd.try_clone().during("copying a descriptor");
        }
        if let Some(reg) = self.images.files.get(&id).filter(|f| f.reg.is_some()) {
            let entry = [reg];
            let opened = (regular::KIND.open)(&entry, self)?;
            return opened
                .into_iter()
                .next()
                .map(|(_, fd)| fd)
                .ok_or_else(|| Error::new(Kind::Internal, "nothing opened"));
        }
        let opened = self.open_unit(&[id])?;
        let found = opened.into_iter().find(|(i, _)| *i == id);
        found.map(|(_, fd)| fd).ok_or_else(|| Error::new(Kind::Internal, "nothing opened"))
    }

    /// Moves a descriptor of ours out of the way of the table.
    pub(super) fn hold(&self, fd: OwnedFd) -> Result<OwnedFd> {
        rustix::io::fcntl_dupfd_cloexec(&fd, self.images.base)
            .during("keeping a descriptor aside")
            .map_err(|e| e.help("raise the hard limit of open files (`ulimit -Hn`)"))
    }

    /// Opens the file behind a descriptor of ours again.
    pub(super) fn reopen(&self, fd: &OwnedFd, flags: u32) -> Result<OwnedFd> {
        self.reopen_number(fd.as_raw_fd(), flags)
    }

    /// As [`Opener::reopen`], by number.
    pub(super) fn reopen_number(&self, fd: RawFd, flags: u32) -> Result<OwnedFd> {
        self.reopen_raw(fd, flags).during("opening a file again through /proc")
    }

    /// As [`Opener::reopen_number`], for callers that expect to be refused.
    pub(super) fn reopen_raw(&self, fd: RawFd, flags: u32) -> rustix::io::Result<OwnedFd> {
        // The way there is a link; the program's O_NOFOLLOW was about its own path.
        let flags = regular::open_flags(flags);
        let mut opened =
            rustix::fs::open(format!("/proc/self/fd/{fd}"), flags.difference(OFlags::NOFOLLOW), Mode::empty())?;
        if flags.contains(OFlags::NOFOLLOW)
            && let Ok(same) = crust_kernel::notify::reopen_by_handle(opened.as_fd(), flags.bits() as i32)
        {
            // At the number that the table expects.
            rustix::io::dup3(&same, &mut opened, rustix::io::DupFlags::CLOEXEC)?;
        }
        Ok(opened)
    }

    /// Gives a new file its flags and signal owner.
    pub(super) fn settle(&self, fd: impl AsFd, flags: u32, fown: &FownEntry) -> Result<()> {
        if flags & OFlags::PATH.bits() != 0 {
            return Ok(());
        }
        let have = rustix::fs::fcntl_getfl(&fd).during("asking for a file's flags")?;
        self.settle_from(fd, have, flags, fown)
    }

    /// As [`Opener::settle`], for a file whose flags are known to be `have`.
    pub(super) fn settle_from(&self, fd: impl AsFd, have: OFlags, flags: u32, fown: &FownEntry) -> Result<()> {
        const SETTABLE: u32 =
            (libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME | libc::O_ASYNC) as u32;
        if have.bits() & SETTABLE != flags & SETTABLE {
            let want = OFlags::from_bits_retain((have.bits() & !SETTABLE) | (flags & SETTABLE));
            rustix::fs::fcntl_setfl(&fd, want).during("setting a file's flags")?;
        }
        self.set_owner(fd, fown)
    }

    /// Sets who gets SIGIO, as the user who had set it; an owner that is not born yet gets it when the tree stands.
    pub(super) fn set_owner(&self, fd: impl AsFd, fown: &FownEntry) -> Result<()> {
        owners::set(fd, fown).map(drop)
    }

    /// The descriptor the caller gave us for `key` (`--inherit-fd`), a copy.
    pub(super) fn inherited(&self, key: &str) -> Result<Option<OwnedFd>> {
        match self.state.inherited.get(key) {
            Some(fd) => Ok(Some(fd.try_clone().during("copying an inherited descriptor")?)),
            None => Ok(None),
        }
    }

    /// Copies the caller's descriptors to high numbers, before low ones are closed.
    fn take_inherited(&mut self) -> Result<()> {
        for given in &self.opts.inherit_fds {
            let path = format!("/proc/self/fd/{}", given.fd);
            let copy = kfd::copy_number(given.fd, self.images.base)
                .during("copying an inherited descriptor")
                .map_err(|e| e.on(crate::Object::Path(path)).help("check the number given to --inherit-fd"))?;
            self.state.inherited.insert(given.key.clone(), copy);
        }
        Ok(())
    }
}

/// The places of a table's files.
struct Places<'a> {
    /// By file, else in the table's order.
    by_file: Vec<&'a FdinfoEntry>,
}

impl<'a> Places<'a> {
    fn new(entries: &'a [FdinfoEntry]) -> Self {
        let mut by_file: Vec<&FdinfoEntry> = entries.iter().collect();
        by_file.sort_by_key(|e| e.id);
        Self { by_file }
    }

    /// Where file `id` belongs.
    fn of(&self, id: u32) -> &[&'a FdinfoEntry] {
        let from = self.by_file.partition_point(|e| e.id < id);
        let all = self.by_file.get(from..).unwrap_or_default();
        all.get(..all.iter().take_while(|e| e.id == id).count()).unwrap_or_default()
    }
}

/// Puts a file just opened into its places; the first may be the number it has already.
fn put(fd: OwnedFd, wanted: &[&FdinfoEntry]) -> Result<()> {
    let Some((first, others)) = wanted.split_first() else { return Ok(()) };
    if fd.as_raw_fd() != number(first)? {
        return put_all(&fd, wanted);
    }
    put_all(&fd, others)?;
    if first.flags & libc::FD_CLOEXEC as u32 == 0 {
        kfd::set_cloexec(fd.as_raw_fd(), false).during("clearing close-on-exec")?;
    }
    // From here on the number belongs to the restored program.
    std::mem::forget(fd);
    Ok(())
}

fn put_all(fd: &OwnedFd, wanted: &[&FdinfoEntry]) -> Result<()> {
    for e in wanted {
        kfd::place(fd, number(e)?, e.flags & libc::FD_CLOEXEC as u32 != 0)
            .during("putting a descriptor into place")
            .map_err(|err| err.help(format!("fd {} must be allowed by the limit of open files", e.fd)))?;
    }
    Ok(())
}

/// The number of a descriptor.
pub(super) fn number(e: &FdinfoEntry) -> Result<RawFd> {
    RawFd::try_from(e.fd).map_err(|_| Error::bad_image("fdinfo", format!("impossible descriptor number {}", e.fd)))
}

/// Closes every descriptor but these.
fn close_all_but(mut kept: Vec<RawFd>) -> Result<()> {
    kept.sort_unstable();
    kept.dedup();
    let mut from = 0u32;
    for fd in kept {
        let fd = fd.unsigned_abs();
        if fd > from {
            kfd::close_range(from, fd - 1).during("closing our descriptors")?;
        }
        from = fd + 1;
    }
    kfd::close_range(from, u32::MAX).during("closing our descriptors")
}

/// Lifts our soft limit of open files; the target's own limits are set at the end of the restore.
fn raise_limit(need: u64) {
    use rustix::process::{Resource, Rlimit};
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|cur| cur < need) {
        let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(e) = rustix::process::setrlimit(Resource::Nofile, wanted) {
            log::warn!("the limit of open files stays as it is: {e}");
        }
    }
}

fn read_pipes(source: &Source, kind: ImageKind) -> Result<HashMap<u32, PipeContent>> {
    let mut found: HashMap<u32, PipeContent> = HashMap::new();
    let name = kind.file_name(0);
    let Some(bytes) = source.read(&name)? else { return Ok(found) };
    let mut reader = Reader::open_named(&name, &bytes, kind)?;
    while let Some(entry) = reader.next::<PipeDataEntry>()? {
        let content = found.entry(entry.pipe_id).or_default();
        content.size = entry.size.or(content.size);
        if entry.bytes > 0 {
            content.pieces.push(reader.extra(u64::from(entry.bytes))?.to_vec());
        }
    }
    Ok(found)
}

//! Restore: groups made again with their settings, tasks and threads moved into them, and all of it undone if the restore
//! fails.
use super::freezer::{STATE_V1, STATE_V2};
use super::hierarchy;
use super::look::{self, OWN_SET};
use super::mark;
use super::props;
use crate::error::{Error, Kind, Object, OnObject, Result, ResultExt};
use crate::images::Source;
use crate::options::{CgroupRoot, ManageCgroups, Options};
use crust_image::ImageKind;
use crust_image::proto::{CgSetEntry, CgroupDirEntry, CgroupEntry, CgroupPerms, CgroupPropEntry, CoreEntry};
use crust_kernel::{Backoff, Deadline};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

/// What the images say of control groups, and what of it stands by now.
#[derive(Debug)]
pub(crate) struct Groups {
    mode: ManageCgroups,
    hierarchies: Vec<Hierarchy>,
    sets: HashMap<u32, CgSetEntry>,
    /// The set of whoever dumped: ours stands for it.
    root_set: u32,
    /// Where we are ourselves, by hierarchy of `hierarchies`.
    own: Vec<Vec<u8>>,
    undo: Vec<Undo>,
    /// Freezers that are to stand at the end, with their text.
    late: Vec<(usize, Vec<u8>, CgroupPropEntry)>,
    /// The process that undoes.
    owner: u32,
}

#[derive(Debug)]
struct Hierarchy {
    /// As in /proc/PID/cgroup.
    name: String,
    controllers: Vec<String>,
    threaded: bool,
    dirs: Vec<CgroupDirEntry>,
    root: OwnedFd,
}

impl Hierarchy {
    fn is_v2(&self) -> bool {
        self.name.is_empty()
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }
}

/// One step to take back.
#[derive(Debug)]
enum Undo {
    /// A directory that was not there.
    Made(usize, Vec<u8>),
    /// A file's content.
    Value(usize, Vec<u8>, String, Vec<u8>),
    /// Owner and mode of a file or directory.
    Perms(usize, Vec<u8>, CgroupPerms),
}

impl Groups {
    /// Reads cgroup.img. `None` if there is nothing to do: the tree stays where we are.
    pub(crate) fn read(source: &Source, opts: &Options, root_set: Option<u32>) -> Result<Option<Self>> {
        if opts.manage_cgroups == ManageCgroups::Ignore {
            return Ok(None);
        }
        let Some(entry) = source.read_one_if::<CgroupEntry>(ImageKind::Cgroup, 0)?.filter(|e| !e.sets.is_empty())
        else {
            return Ok(None);
        };
        if opts.unprivileged || look::in_user_namespace() {
            log::warn!("the tree stays in our own cgroups: those it had cannot be entered without root's rights");
            return Ok(None);
        }
        let entry = rewritten(entry, &opts.cgroup_roots)?;
        let strangers = entry.sets.iter().flat_map(|s| &s.ctls);
        let mut strangers =
            strangers.filter(|m| !entry.controllers.iter().any(|c| names_it(&c.cnames, &c.cnames.join(","), &m.name)));
        if let Some(m) = strangers.next() {
            let what = format!("has a set in hierarchy {:?}, which it does not describe", m.name);
            return Err(Error::bad_image("cgroup.img", what));
        }
        let text = std::fs::read("/proc/self/cgroup").during("reading /proc/self/cgroup")?;
        let mine = hierarchy::parse(&text);
        let (mut hierarchies, mut own) = (Vec::new(), Vec::new());
        for c in entry.controllers {
            let name = c.cnames.join(",");
            if c.cnames.is_empty() {
                return Err(Error::bad_image("cgroup.img", "has a hierarchy without a name"));
            }
            let here = mine.iter().find(|m| m.name == name).map_or_else(|| b"/".to_vec(), |m| m.path.clone());
            let members = entry.sets.iter().flat_map(|s| &s.ctls).filter(|m| names_it(&c.cnames, &name, &m.name));
            let stays = members.map(|m| &m.path).all(|path| *path == here);
            if stays && c.dirs.iter().all(|d| d.dir_name.is_empty() && d.children.is_empty()) {
                continue;
            }
            let root = match &opts.cgroup_yard {
                Some(yard) if yard.join(hierarchy::yard_name(&name)).is_dir() => hierarchy::open(&name, Some(yard)),
                _ => hierarchy::open(&name, None),
            }?;
            own.push(here);
            let threaded = c.is_threaded.unwrap_or(false);
            hierarchies.push(Hierarchy { name, controllers: c.cnames, threaded, dirs: c.dirs, root });
        }
        let sets = entry.sets.into_iter().map(|s| (s.id, s)).collect();
        Ok(Some(Self {
            mode: opts.manage_cgroups,
            hierarchies,
            sets,
            root_set: root_set.unwrap_or(OWN_SET),
            own,
            undo: Vec::new(),
            late: Vec::new(),
            owner: std::process::id(),
        }))
    }

    /// What would fail later: groups that must exist and do not, or the other way round, and sets that nobody described.
    pub(crate) fn check<'a>(&self, cores: impl Iterator<Item = &'a CoreEntry>) -> Vec<Error> {
        let mut errors = Vec::new();
        for (h, hierarchy) in self.hierarchies.iter().enumerate() {
            for dir in &hierarchy.dirs {
                self.check_dir(h, b"", dir, &mut errors);
            }
        }
        let mut ids: Vec<u32> = cores.filter_map(set_of).filter(|&id| id != self.root_set && id != 0).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            if !self.sets.contains_key(&id) {
                errors.push(Error::bad_image("cgroup.img", format!("lacks set {id}, which a task is in")));
            }
        }
        errors.truncate(8);
        errors
    }

    fn check_dir(&self, h: usize, above: &[u8], dir: &CgroupDirEntry, errors: &mut Vec<Error>) {
        let path = join(above, &dir.dir_name);
        let object = || hierarchy::object(&self.hierarchies[h].name, &path);
        if dir.dir_name.split(|&b| b == b'/').any(|step| step == b".." || step == b".") {
            errors.push(Error::bad_image("cgroup.img", "has a name that leads elsewhere").on(object()));
            return;
        }
        let is_root = hierarchy::relative(&path) == b".";
        match self.exists(h, &path) {
            true if self.mode == ManageCgroups::Strict && !is_root => errors.push(
                Error::new(Kind::Taken, "the cgroup exists already, and --manage-cgroups=strict forbids that")
                    .help("remove it, or restore with --manage-cgroups=soft or full")
                    .on(object()),
            ),
            false if matches!(self.mode, ManageCgroups::None | ManageCgroups::Props) => errors.push(
                Error::new(Kind::BadRequest, "the cgroup does not exist, and this mode of --manage-cgroups makes none")
                    .help("make it, name another root with --cgroup-root, or restore with --manage-cgroups=soft")
                    .on(object()),
            ),
            _ => {}
        }
        for child in &dir.children {
            self.check_dir(h, &path, child, errors);
        }
    }

    fn index(&self, name: &str) -> Option<usize> {
        // CRIU looks whether the names are among each other's, whatever their order.
        self.hierarchies.iter().position(|h| names_it(&h.controllers, &h.name, name))
    }

    fn exists(&self, h: usize, path: &[u8]) -> bool {
        rustix::fs::accessat(
            &self.hierarchies[h].root,
            hierarchy::relative(path),
            rustix::fs::Access::EXISTS,
            AtFlags::empty(),
        )
        .is_ok()
    }

    /// Makes the groups, with the settings that must be there before anybody is in them. The hierarchies' descriptors go to
    /// numbers from `first_service` on, for tasks to use.
    pub(crate) fn create(&mut self, first_service: RawFd) -> Result<()> {
        for h in &mut self.hierarchies {
            h.root =
                rustix::io::fcntl_dupfd_cloexec(&h.root, first_service).during("moving a descriptor out of the way")?;
        }
        for h in 0..self.hierarchies.len() {
            for dir in std::mem::take(&mut self.hierarchies[h].dirs) {
                let dir = self.make(h, b"", dir)?;
                self.hierarchies[h].dirs.push(dir);
            }
        }
        self.refuse_frozen()
    }

    /// Makes one group and those below. What comes back has the settings that are still to be made.
    fn make(&mut self, h: usize, above: &[u8], mut dir: CgroupDirEntry) -> Result<CgroupDirEntry> {
        let path = join(above, &dir.dir_name);
        let there = self.exists(h, &path);
        if there {
            if matches!(self.mode, ManageCgroups::Soft | ManageCgroups::None) {
                dir.properties.clear();
            }
        } else {
            self.make_dirs(h, &path)?;
        }
        if self.mode != ManageCgroups::None
            && let Some(perms) = &dir.dir_perms
        {
            self.set_perms(h, &path, perms)?;
        }
        let (special, later): (Vec<_>, Vec<_>) = dir.properties.into_iter().partition(|p| props::is_special(&p.name));
        if !there {
            for p in &special {
                self.set_special(h, &path, p)?;
            }
        }
        dir.properties = later;
        let mut children = Vec::with_capacity(dir.children.len());
        for child in dir.children {
            children.push(self.make(h, &path, child)?);
        }
        dir.children = children;
        Ok(dir)
    }

    /// Makes a directory and those above it that are not there.
    fn make_dirs(&mut self, h: usize, path: &[u8]) -> Result<()> {
        let mut at = Vec::new();
        for step in path.split(|&b| b == b'/').filter(|s| !s.is_empty()) {
            at.push(b'/');
            at.extend_from_slice(step);
            let hierarchy = &self.hierarchies[h];
            match rustix::fs::mkdirat(&hierarchy.root, hierarchy::relative(&at), Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    mark::put(hierarchy.root.as_fd(), &at);
                    self.undo.push(Undo::Made(h, at.clone()));
                }
                Err(Errno::EXIST) => continue,
                Err(e) => return Err(Error::kernel("making a cgroup failed", e).on(self.object(h, &at))),
            }
            if hierarchy.has("cpuset") && !hierarchy.is_v2() {
                self.inherit_cpus(h, &at)?;
            }
        }
        Ok(())
    }

    /// A new group of version 1's cpuset has no processors, and nobody can enter it: it begins with those of the group above.
    fn inherit_cpus(&self, h: usize, path: &[u8]) -> Result<()> {
        let above = &path[..path.iter().rposition(|&b| b == b'/').unwrap_or(0)];
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let value = self.value(h, above, file).during("reading the cpuset above")?;
            let value = value.trim_ascii_end();
            if !value.is_empty() {
                self.write_file(h, path, file, value)?;
            }
        }
        Ok(())
    }

    fn dir(&self, h: usize, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.hierarchies[h].root, hierarchy::relative(path), flags, Mode::empty())
    }

    fn value(&self, h: usize, path: &[u8], file: &str) -> rustix::io::Result<Vec<u8>> {
        look::read(self.dir(h, path)?.as_fd(), file)
    }

    fn object(&self, h: usize, path: &[u8]) -> Object {
        hierarchy::object(&self.hierarchies[h].name, path)
    }

    fn write_file(&self, h: usize, path: &[u8], file: &str, value: &[u8]) -> Result<()> {
        let write = || write_at(self.dir(h, path)?.as_fd(), file, value);
        let shown = || format!("writing {:?} to {file} failed", String::from_utf8_lossy(value));
        write().map_err(|e| {
            Error::kernel(shown(), e)
                .help("see whether this kernel and the groups above allow that setting; --manage-cgroups=soft leaves groups alone that exist, and ignore all")
                .on(self.object(h, path))
        })
    }

    fn set_perms(&mut self, h: usize, path: &[u8], want: &CgroupPerms) -> Result<()> {
        let root = self.hierarchies[h].root.as_fd();
        let at = hierarchy::relative(path);
        let old = rustix::fs::statat(root, &at, AtFlags::SYMLINK_NOFOLLOW)
            .during("looking at a cgroup")
            .map_err(|e| e.on(self.object(h, path)))?;
        let (mode, old) = (want.mode & 0o7777, look::perms(&old));
        if (old.mode & 0o7777, old.uid, old.gid) == (mode, want.uid, want.gid) {
            return Ok(());
        }
        change_perms(root, &at, &CgroupPerms { mode, ..*want })
            .during("setting a cgroup's owner and mode")
            .map_err(|e| e.on(self.object(h, path)))?;
        self.undo.push(Undo::Perms(h, path.to_vec(), old));
        Ok(())
    }

    /// Settings of a group that was just made.
    fn set_special(&mut self, h: usize, path: &[u8], p: &CgroupPropEntry) -> Result<()> {
        let text = String::from_utf8_lossy(&p.value);
        match (p.name.as_str(), text.as_ref()) {
            // What a new group has, and some kernels take from nobody.
            ("memory.swappiness", "60") | ("memory.oom_control", "0") => return Ok(()),
            ("cgroup.type", value) if value != "threaded" => return Ok(()),
            ("cpuset.cpus" | "cpuset.mems", "") => return Ok(()),
            ("devices.list", "a *:* rwm") => return Ok(()),
            ("devices.list", _) => {
                self.write_file(h, path, "devices.deny", b"a")?;
                for line in p.value.split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
                    self.write_file(h, path, "devices.allow", line)?;
                }
                return Ok(());
            }
            ("memory.kmem.limit_in_bytes", _) => {
                // Kernels from 5.16 on know no such limit.
                return match self.write_file(h, path, &p.name, &p.value) {
                    Err(e) if e.errno() == Some(Errno::OPNOTSUPP) => Ok(()),
                    other => other,
                };
            }
            _ => {}
        }
        if let Some(perms) = &p.perms {
            self.set_perms(h, &join(path, p.name.as_bytes()), perms)?;
        }
        self.write_file(h, path, &p.name, &p.value)
    }

    /// Makes the other settings, when the tree is in its groups. The group above comes first: it says which controllers
    /// those below have.
    pub(crate) fn set_properties(&mut self) -> Result<()> {
        for h in 0..self.hierarchies.len() {
            for dir in std::mem::take(&mut self.hierarchies[h].dirs) {
                self.set_below(h, b"", &dir)?;
            }
        }
        Ok(())
    }

    fn set_below(&mut self, h: usize, above: &[u8], dir: &CgroupDirEntry) -> Result<()> {
        let path = join(above, &dir.dir_name);
        // The root's settings are the machine's.
        if hierarchy::relative(&path) != b"." {
            for p in &dir.properties {
                if p.name == STATE_V1 || (p.name == STATE_V2 && p.value == b"1") {
                    self.late.push((h, path.clone(), p.clone()));
                } else {
                    self.set(h, &path, p)?;
                }
            }
        }
        dir.children.iter().try_for_each(|child| self.set_below(h, &path, child))
    }

    fn set(&mut self, h: usize, path: &[u8], p: &CgroupPropEntry) -> Result<()> {
        if p.name.contains('/') {
            return Err(Error::bad_image("cgroup.img", format!("has a setting with a slash in its name: {}", p.name)));
        }
        if let Some(perms) = &p.perms {
            self.set_perms(h, &join(path, p.name.as_bytes()), perms)?;
        }
        if props::has_no_value(&p.name) {
            return Ok(());
        }
        let old = self.value(h, path, &p.name).unwrap_or_default();
        let old = old.trim_ascii_end().to_vec();
        if old == p.value {
            return Ok(());
        }
        if p.name == "cgroup.subtree_control" {
            let text = subtree_change(&old, &p.value);
            self.write_file(h, path, &p.name, &text)?;
        } else if props::by_lines(&p.name) {
            for line in p.value.split(|&b| b == b'\n').filter(|l| !l.is_empty() && !l.ends_with(b" 0")) {
                // Devices and interfaces differ from machine to machine.
                if let Err(e) = self.write_file(h, path, &p.name, line) {
                    log::warn!("{e}");
                }
            }
        } else {
            self.write_file(h, path, &p.name, &p.value)?;
        }
        let made_here = self.undo.iter().any(|u| matches!(u, Undo::Made(at, made) if *at == h && made == path));
        if !made_here {
            self.undo.push(Undo::Value(h, path.to_vec(), p.name.clone(), old));
        }
        Ok(())
    }

    /// Freezers are put as they were when all of the tree is ready to run.
    pub(crate) fn set_late(&mut self) {
        for (h, path, p) in std::mem::take(&mut self.late) {
            // What runs already is not lost for that.
            if let Err(e) = self.write_file(h, &path, &p.name, &p.value) {
                log::error!("{e}");
            }
        }
    }

    /// Nobody who moves into a frozen group runs, so nothing could be built there.
    fn refuse_frozen(&self) -> Result<()> {
        for member in self.sets.values().flat_map(|s| &s.ctls) {
            let Some(h) = self.index(&member.name) else { continue };
            let v2 = self.hierarchies[h].is_v2();
            if !v2 && !self.hierarchies[h].has("freezer") {
                continue;
            }
            for (i, _) in
                member.path.iter().enumerate().filter(|&(i, &b)| b == b'/' && i > 0).chain([(member.path.len(), &0)])
            {
                let path = &member.path[..i];
                let state = self.value(h, path, if v2 { STATE_V2 } else { STATE_V1 }).unwrap_or_default();
                if (v2 && state.starts_with(b"1")) || (!v2 && state.starts_with(b"FR")) {
                    let what = "the cgroup is frozen, so nothing can be restored in it";
                    return Err(Error::new(Kind::BadRequest, what)
                        .help("thaw it (freezer.state, cgroup.freeze), or name another root with --cgroup-root")
                        .on(self.object(h, path)));
                }
            }
        }
        Ok(())
    }

    /// Moves the calling process, whose cgroups are those of `from`, into those of `to`; `None` is where we are ourselves.
    pub(crate) fn enter(&self, from: Option<u32>, to: Option<u32>) -> Result<()> {
        let (Some(to), true) = (to, to != from) else { return Ok(()) };
        if to == self.root_set && from.is_none() {
            return Ok(());
        }
        let Some(set) = self.sets.get(&to) else {
            return Err(Error::bad_image("cgroup.img", format!("lacks set {to}, which a task is in")));
        };
        for member in &set.ctls {
            let Some(h) = self.index(&member.name) else { continue };
            if self.path_of(from, h).is_some_and(|at| at == member.path) {
                continue;
            }
            self.write_file(h, &member.path, "cgroup.procs", b"0")?;
        }
        Ok(())
    }

    /// Where a task of set `id` is in hierarchy `h`.
    fn path_of(&self, id: Option<u32>, h: usize) -> Option<&[u8]> {
        let Some(id) = id.filter(|&id| id != self.root_set || self.sets.contains_key(&id)) else {
            return self.own.get(h).map(Vec::as_slice);
        };
        let members = &self.sets.get(&id)?.ctls;
        members.iter().find(|m| self.index(&m.name) == Some(h)).map(|m| m.path.as_slice())
    }

    /// Moves threads that were in other groups than their process's leader. They stand still; `threads` has the id here and
    /// the record of each.
    pub(crate) fn place_threads<'a>(&self, threads: impl Iterator<Item = (i32, &'a CoreEntry)>) -> Result<()> {
        let mut leader = None;
        for (k, (tid, core)) in threads.enumerate() {
            let set = set_of(core);
            if k == 0 {
                leader = set;
                continue;
            }
            let Some(set) = set.filter(|_| set != leader).and_then(|id| self.sets.get(&id)) else { continue };
            for member in &set.ctls {
                let Some(h) = self.index(&member.name).filter(|&h| self.hierarchies[h].threaded) else { continue };
                if self.path_of(leader, h).is_some_and(|at| at == member.path) {
                    continue;
                }
                let file = if self.hierarchies[h].is_v2() { "cgroup.threads" } else { "tasks" };
                self.write_file(h, &member.path, file, tid.to_string().as_bytes()).on_task(tid)?;
            }
        }
        Ok(())
    }

    /// The tree is there: what was made stays.
    pub(crate) fn keep(mut self) {
        for step in std::mem::take(&mut self.undo) {
            if let Undo::Made(h, path) = step {
                mark::take_away(self.hierarchies[h].root.as_fd(), &path);
            }
        }
    }

    fn take_back(&mut self) {
        // Dying tasks leave their groups a moment after they are gone from /proc.
        let deadline = Deadline::after(Duration::from_secs(10));
        for step in std::mem::take(&mut self.undo).into_iter().rev() {
            let (path, done) = match step {
                Undo::Made(h, path) => {
                    let done = self.remove(h, &path, deadline);
                    (hierarchy::object(&self.hierarchies[h].name, &path), done)
                }
                Undo::Value(h, path, file, old) => {
                    let old = if file == "cgroup.subtree_control" {
                        subtree_change(&self.value(h, &path, &file).unwrap_or_default(), &old)
                    } else {
                        old
                    };
                    let done = self.dir(h, &path).and_then(|d| write_at(d.as_fd(), &file, &old));
                    (self.object(h, &path), done)
                }
                Undo::Perms(h, path, old) => {
                    let old = CgroupPerms { mode: old.mode & 0o7777, ..old };
                    let done = change_perms(self.hierarchies[h].root.as_fd(), &hierarchy::relative(&path), &old);
                    (self.object(h, &path), done)
                }
            };
            match done {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => {
                    log::error!("{}", Error::kernel("a cgroup could not be put back as it was found", e).on(path))
                }
            }
        }
    }

    fn remove(&self, h: usize, path: &[u8], deadline: Deadline) -> rustix::io::Result<()> {
        let mut backoff = Backoff::new();
        loop {
            match rustix::fs::unlinkat(&self.hierarchies[h].root, hierarchy::relative(path), AtFlags::REMOVEDIR) {
                Err(Errno::BUSY) if backoff.pause(deadline) => {}
                other => return other,
            }
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        if !self.undo.is_empty() && self.owner == std::process::id() {
            self.take_back();
        }
    }
}

/// The set of groups that a thread was in. CRIU before 4.0 knew one for each process.
pub(crate) fn set_of(core: &CoreEntry) -> Option<u32> {
    let own = core.thread_core.as_ref().and_then(|t| t.cg_set);
    own.or_else(|| core.tc.as_ref().and_then(|t| t.cg_set)).filter(|&id| id != 0)
}

fn join(above: &[u8], name: &[u8]) -> Vec<u8> {
    let name = name.strip_prefix(b"/").unwrap_or(name);
    let above = above.strip_suffix(b"/").unwrap_or(above);
    [above, b"/", name].concat()
}

fn write_at(dir: BorrowedFd<'_>, file: &str, value: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(dir, file, flags, Mode::empty())?;
    // The kernel takes an empty value only as an empty line.
    let value = if value.is_empty() { b"\n" } else { value };
    match rustix::io::write(&fd, value)? {
        n if n == value.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}

fn change_perms(root: BorrowedFd<'_>, at: &[u8], want: &CgroupPerms) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(want.uid), Gid::from_raw(want.gid));
    rustix::fs::chownat(root, at, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::chmodat(root, at, Mode::from_raw_mode(want.mode & 0o7777), AtFlags::empty())
}

/// What makes cgroup.subtree_control from `old` to `new`.
fn subtree_change(old: &[u8], new: &[u8]) -> Vec<u8> {
    let words =
        |text: &[u8]| String::from_utf8_lossy(text).split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (old, new) = (words(old), words(new));
    let off = old.iter().filter(|w| !new.contains(w)).map(|w| format!("-{w}"));
    let on = new.iter().filter(|w| !old.contains(w)).map(|w| format!("+{w}"));
    off.chain(on).collect::<Vec<_>>().join(" ").into_bytes()
}

/// The record with `--cgroup-root` applied: each head of a hierarchy becomes the new root, in its name and in the paths of
/// the sets.
fn rewritten(mut entry: CgroupEntry, roots: &[CgroupRoot]) -> Result<CgroupEntry> {
    let global = roots.iter().rev().find(|r| r.controllers.is_none()).map(|r| r.path.as_str());
    let mut done: HashSet<(usize, usize)> = HashSet::new();
    for c in &mut entry.controllers {
        let name = c.cnames.join(",");
        let mut own: Vec<&str> = Vec::new();
        for root in roots {
            let Some(controllers) = &root.controllers else { continue };
            if *controllers == name || controllers.split(',').any(|one| c.cnames.iter().any(|n| n == one)) {
                own.push(&root.path);
            }
        }
        if own.windows(2).any(|w| w[0] != w[1]) {
            let what = format!("names several roots for one hierarchy: {}", own.join(", "));
            return Err(Error::new(Kind::BadRequest, what).on(Object::Option("--cgroup-root".into())));
        }
        let Some(new) = own.first().copied().or(global) else { continue };
        let new = new.trim_matches('/');
        if new.split('/').any(|step| step == "..") {
            let what = format!("leads out of the hierarchy: {new}");
            return Err(Error::new(Kind::BadRequest, what).on(Object::Option("--cgroup-root".into())));
        }
        // The longest first: a head may lie below another.
        let mut heads: Vec<usize> = (0..c.dirs.len()).collect();
        heads.sort_by_key(|&i| std::cmp::Reverse(c.dirs[i].dir_name.len()));
        for head in heads {
            let dir = &mut c.dirs[head];
            let old = join(b"", &dir.dir_name);
            for (s, set) in entry.sets.iter_mut().enumerate() {
                for (m, member) in set.ctls.iter_mut().enumerate() {
                    if !names_it(&c.cnames, &name, &member.name) || !hierarchy::is_within(&member.path, &old) {
                        continue;
                    }
                    if !done.insert((s, m)) {
                        continue;
                    }
                    let hidden = member.cgns_prefix.map_or(0, |p| p as usize).min(member.path.len());
                    let cut = if hidden > 0 { hidden } else { old.strip_suffix(b"/").unwrap_or(&old).len() };
                    let rest = member.path[cut..].to_vec();
                    if hidden > 0 {
                        member.cgns_prefix = Some(new.len() as u32 + 1);
                    }
                    member.path = join(format!("/{new}").as_bytes(), &rest);
                    while member.path.len() > 1 && member.path.ends_with(b"/") {
                        member.path.pop();
                    }
                }
            }
            dir.dir_name = new.as_bytes().to_vec();
        }
    }
    Ok(entry)
}

fn names_it(cnames: &[String], joined: &str, member: &str) -> bool {
    joined == member || cnames.iter().all(|c| member.split(',').any(|m| m == c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_image::proto::{CgControllerEntry, CgMemberEntry};

    fn image(name: &str, heads: &[&str], paths: &[&str]) -> CgroupEntry {
        let dir = |d: &&str| CgroupDirEntry { dir_name: d.as_bytes().to_vec(), ..Default::default() };
        let set = |(i, p): (usize, &&str)| CgSetEntry {
            id: i as u32 + 2,
            ctls: vec![CgMemberEntry { name: name.into(), path: p.as_bytes().to_vec(), cgns_prefix: None }],
        };
        let controller = CgControllerEntry {
            cnames: name.split(',').map(str::to_owned).collect(),
            dirs: heads.iter().map(dir).collect(),
            is_threaded: None,
        };
        CgroupEntry { sets: paths.iter().enumerate().map(set).collect(), controllers: vec![controller] }
    }

    fn paths(entry: &CgroupEntry) -> Vec<String> {
        entry.sets.iter().map(|s| String::from_utf8_lossy(&s.ctls[0].path).into_owned()).collect()
    }

    fn root(controllers: Option<&str>, path: &str) -> CgroupRoot {
        CgroupRoot { controllers: controllers.map(str::to_owned), path: path.to_owned() }
    }

    #[test]
    fn roots_are_rewritten() {
        let to = |entry, roots: &[CgroupRoot]| rewritten(entry, roots).expect("rewrites");
        let e = to(image("name=x", &["a/b"], &["/a/b", "/a/b/c"]), &[root(None, "/new")]);
        assert_eq!(paths(&e), ["/new", "/new/c"]);
        assert_eq!(e.controllers[0].dirs[0].dir_name, b"new");
        let e = to(image("freezer", &[""], &["/"]), &[root(Some("freezer"), "/p/q"), root(None, "/r")]);
        assert_eq!(paths(&e), ["/p/q"]);
        let e = to(image("cpu,cpuacct", &["a"], &["/a/x"]), &[root(Some("cpuacct"), "/"), root(Some("memory"), "/r")]);
        assert_eq!(paths(&e), ["/x"]);
        let e = to(image("", &["", "a"], &["/a/x", "/ab"]), &[root(None, "/new")]);
        assert_eq!(paths(&e), ["/new/x", "/new/ab"]);
        let mixed = [root(Some("cpu"), "/1"), root(Some("cpuacct"), "/2")];
        assert!(rewritten(image("cpu,cpuacct", &["a"], &["/a"]), &mixed).is_err());
        assert!(rewritten(image("cpu", &["a"], &["/a"]), &[root(None, "/../x")]).is_err());
    }

    #[test]
    fn controllers_go_on_and_off() {
        assert_eq!(subtree_change(b"cpu memory\n", b"memory pids"), b"-cpu +pids");
        assert_eq!(subtree_change(b"", b"io"), b"+io");
    }
}

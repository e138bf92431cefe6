//! Dump: the control groups of every thread, and the groups' directories with their settings (cgroup.img).
use super::freezer::AsFound;
use super::hierarchy::{self, Member};
use super::props::{self, Lists};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::options::{ManageCgroups, Options};
use crust_image::proto::{
    CgControllerEntry, CgMemberEntry, CgSetEntry, CgroupDirEntry, CgroupEntry, CgroupPerms, CgroupPropEntry,
};
use crust_kernel::HostTid;
use crust_kernel::procfs::ProcDir;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd};

/// The set of groups that we are in ourselves; whoever restores gives his instead.
pub(crate) const OWN_SET: u32 = 1;

/// Sets of groups, as tasks are found in them.
pub(crate) struct Groups<'o> {
    opts: &'o Options,
    /// False if membership is not ours to know or change.
    on: bool,
    own: Vec<Member>,
    /// By id - 1; the first is our own.
    sets: Vec<Set>,
    by_text: HashMap<Vec<u8>, u32>,
    /// Some task of the tree is in our own set.
    own_is_used: bool,
    /// By hierarchy: how much of each path the tree's cgroup namespace hides. Empty if that is ours.
    hidden: HashMap<String, u32>,
}

#[derive(Debug)]
struct Set {
    members: Vec<Member>,
    is_own: bool,
}

impl<'o> Groups<'o> {
    pub(crate) fn new(opts: &'o Options) -> Self {
        let text = std::fs::read("/proc/self/cgroup").unwrap_or_default();
        let on = !opts.unprivileged && !in_user_namespace() && !text.is_empty();
        let own = wanted(&text, opts);
        let sets = vec![Set { members: own.clone(), is_own: true }];
        Self {
            opts,
            on,
            own,
            sets,
            by_text: HashMap::from([(text, OWN_SET)]),
            own_is_used: false,
            hidden: HashMap::new(),
        }
    }

    /// What [`membership`] is to be asked for each thread.
    pub(crate) fn are_saved(&self) -> bool {
        self.on
    }

    /// The id of the set that a thread is in, of which [`membership`] gave `text`.
    pub(crate) fn set_of(&mut self, text: Option<Vec<u8>>) -> Result<u32> {
        let Some(text) = text.filter(|_| self.on) else { return Ok(OWN_SET) };
        let id = match self.by_text.get(&text) {
            Some(&id) => id,
            None => {
                let id = self.add(wanted(&text, self.opts))?;
                self.by_text.insert(text, id);
                id
            }
        };
        self.own_is_used |= id == OWN_SET;
        Ok(id)
    }

    fn add(&mut self, mut members: Vec<Member>) -> Result<u32> {
        if self.opts.manage_cgroups != ManageCgroups::Ignore && self.is_asked_for() {
            members.iter().try_for_each(hierarchy::check_inside)?;
        }
        // Nobody can name such a group from here: the restored tree starts where its restorer is.
        for m in members.iter_mut().filter(|m| hierarchy::check_inside(m).is_err()) {
            log::warn!("cgroup {} lies outside of our cgroup namespace and is not saved", hierarchy::show(m));
            if let Some(own) = self.own.iter().find(|own| own.name == m.name) {
                m.clone_from(own);
            }
        }
        if let Some(i) = self.sets.iter().position(|s| s.members == members) {
            return Ok(i as u32 + 1);
        }
        // A hierarchy that somebody has just made, or unmade, says nothing of this thread.
        if std::fs::read("/proc/self/cgroup").is_ok_and(|text| wanted(&text, self.opts) == members) {
            return Ok(OWN_SET);
        }
        self.sets.push(Set { members, is_own: false });
        Ok(self.sets.len() as u32)
    }

    /// Where every hierarchy's sets start, to be walked down from.
    fn starts(&self, name: &str) -> Vec<Vec<u8>> {
        let exact = self.opts.cgroup_roots.iter().rev().find(|r| r.controllers.as_deref() == Some(name));
        let root = exact.or_else(|| self.opts.cgroup_roots.iter().rev().find(|r| r.controllers.is_none()));
        let members = self.written().flat_map(|(_, s)| &s.members).filter(|m| m.name == name);
        let paths = match root {
            Some(root) => members.take(1).map(|_| root.path.clone().into_bytes()).collect::<BTreeSet<_>>(),
            None => members.map(|m| m.path.clone()).collect(),
        };
        let mut starts: Vec<Vec<u8>> = Vec::new();
        for path in paths {
            // In order, so that whatever a path lies below of came before it.
            let covered = starts.iter().any(|s| !ends_here(s) && hierarchy::is_within(&path, s));
            if !covered {
                starts.push(path);
            }
        }
        starts
    }

    /// The sets that go into the image, with their ids.
    fn written(&self) -> impl Iterator<Item = (u32, &Set)> {
        let own_too = self.own_is_used && self.sets.len() > 1;
        self.sets.iter().enumerate().map(|(i, s)| (i as u32 + 1, s)).filter(move |(_, s)| own_too || !s.is_own)
    }

    /// The record of cgroup.img; `None` if the whole tree is where we are ourselves.
    pub(crate) fn record(&self, freezer: Option<&AsFound>) -> Result<Option<CgroupEntry>> {
        if !self.on || self.sets.len() < 2 {
            return Ok(None);
        }
        let mut names: Vec<&str> = self.own.iter().map(|m| m.name.as_str()).collect();
        let named = self.written().flat_map(|(_, s)| &s.members).map(|m| m.name.as_str());
        for name in named {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let lists = Lists::new(self.opts)?;
        let (mut controllers, mut unseen) = (Vec::new(), Vec::new());
        for name in names {
            match self.controller(name, &lists, freezer)? {
                Some(entry) => controllers.push(entry),
                None => unseen.push(name),
            }
        }
        if controllers.is_empty() {
            return Ok(None);
        }
        let ctls =
            |s: &Set| s.members.iter().filter(|m| !unseen.contains(&m.name.as_str())).map(|m| self.member(m)).collect();
        let sets = self.written().map(|(id, s)| CgSetEntry { id, ctls: ctls(s) }).collect();
        Ok(Some(CgroupEntry { sets, controllers }))
    }

    fn member(&self, m: &Member) -> CgMemberEntry {
        let hidden = self.hidden.get(&m.name).copied().filter(|&h| h > 0);
        CgMemberEntry { name: m.name.clone(), path: m.path.clone(), cgns_prefix: hidden }
    }

    /// True if the caller named modes or places: what cannot be done of that is an error.
    fn is_asked_for(&self) -> bool {
        let named = self.opts.cgroup_yard.is_some() || !self.opts.cgroup_roots.is_empty();
        named || matches!(self.opts.manage_cgroups, ManageCgroups::Full | ManageCgroups::Strict)
    }

    /// The record of one hierarchy; `None` if it cannot be opened, as in a confined service, and nobody insists: the
    /// restored tree is then where its restorer is.
    fn controller(&self, name: &str, lists: &Lists, freezer: Option<&AsFound>) -> Result<Option<CgControllerEntry>> {
        let cnames: Vec<&str> = if name.starts_with("name=") { vec![name] } else { name.split(',').collect() };
        let mut entry = CgControllerEntry {
            cnames: cnames.iter().map(|&n| n.to_owned()).collect(),
            dirs: Vec::new(),
            is_threaded: Some(!name.is_empty()),
        };
        if self.opts.manage_cgroups == ManageCgroups::Ignore {
            return Ok(Some(entry));
        }
        let starts = self.starts(name);
        if starts.is_empty() {
            return Ok(Some(entry));
        }
        // Of the host's root nothing is saved but its name, so that --cgroup-root can put another in its place; and the
        // processors, which a group must have before anybody can enter it.
        if starts.iter().all(|s| ends_here(s)) && !cnames.contains(&"cpuset") {
            entry.dirs.push(CgroupDirEntry::default());
            return Ok(Some(entry));
        }
        let root = match hierarchy::open(name, self.opts.cgroup_yard.as_deref()) {
            Err(e) if !self.is_asked_for() => {
                log::warn!("control groups of this hierarchy are not saved: {}", e.headline());
                return Ok(None);
            }
            root => root?,
        };
        let walk = Walk { name, lists, cnames: &cnames };
        for start in starts {
            let dir = walk.dir(root.as_fd(), &start, start.strip_prefix(b"/").unwrap_or(&start))?;
            let Some(dir) = dir else {
                let what = "the cgroup is gone, or --cgroup-root names one that is not there";
                return Err(Error::new(Kind::TargetChanged, what).on(hierarchy::object(name, &start)));
            };
            entry.dirs.push(dir);
        }
        if name.is_empty() {
            entry.is_threaded = Some(entry.dirs.iter().any(is_threaded));
        }
        if let (Some(found), Some(head)) = (freezer.filter(|_| cnames.contains(&"freezer")), entry.dirs.first_mut()) {
            head.properties.extend(found.property());
        }
        Ok(Some(entry))
    }
}

/// Which groups thread `tid` of the process `proc` is in, as /proc has it.
pub(crate) fn membership(proc: &ProcDir, tid: HostTid) -> Result<Vec<u8>> {
    match proc.read_small(&format!("task/{tid}/cgroup")) {
        // `proc` may be that of the thread itself.
        Err(Errno::NOENT) => proc.read_small("cgroup"),
        other => other,
    }
    .during("reading /proc/PID/task/TID/cgroup")
}

/// The members that `--cgroup-dump-controller` leaves.
fn wanted(text: &[u8], opts: &Options) -> Vec<Member> {
    let only = &opts.cgroup_dump_controllers;
    let mut all = hierarchy::parse(text);
    all.retain(|m| only.is_empty() || only.contains(&m.name));
    all
}

/// True where root's rights over control groups do not reach.
pub(super) fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.is_empty() && map.split_ascii_whitespace().ne(["0", "0", "4294967295"])
}

/// True for the root of the host's hierarchies: what lies below it is everybody's, not the tree's.
fn ends_here(path: &[u8]) -> bool {
    path == b"/" && in_first_cgroup_namespace()
}

fn in_first_cgroup_namespace() -> bool {
    // PROC_CGROUP_INIT_INO of the kernel.
    std::fs::read_link("/proc/self/ns/cgroup").is_ok_and(|l| l.as_os_str() == "cgroup:[4026531835]")
}

fn is_threaded(dir: &CgroupDirEntry) -> bool {
    let own = dir.properties.iter().any(|p| p.name == "cgroup.type" && p.value == b"threaded");
    own || dir.children.iter().any(is_threaded)
}

pub(super) fn perms(st: &Stat) -> CgroupPerms {
    CgroupPerms { mode: st.st_mode, uid: st.st_uid, gid: st.st_gid }
}

/// One walk down a hierarchy.
struct Walk<'a> {
    name: &'a str,
    lists: &'a Lists,
    cnames: &'a [&'a str],
}

impl Walk<'_> {
    /// The group at `path` and all below it; `dir_name` is its name in the image. `None` if it is not there.
    fn dir(&self, root: BorrowedFd<'_>, path: &[u8], dir_name: &[u8]) -> Result<Option<CgroupDirEntry>> {
        let at = hierarchy::object(self.name, path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat(root, hierarchy::relative(path), flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.during("opening a cgroup").map_err(|e| e.on(at.clone()))?,
        };
        let step = |e: Error| e.on(at.clone());
        let st = rustix::fs::fstat(&dir).during("fstat of a cgroup").map_err(step)?;
        let mut properties = Vec::new();
        for (file, defaults) in self.lists.of(self.cnames) {
            properties.extend(self.property(dir.as_fd(), file, defaults).map_err(step)?);
        }
        let mut children = Vec::new();
        if !ends_here(path) {
            let mut names: Vec<Vec<u8>> = Vec::new();
            for found in Dir::read_from(&dir).during("listing a cgroup").map_err(step)? {
                let found = found.during("listing a cgroup").map_err(step)?;
                let name = found.file_name().to_bytes();
                if found.file_type() == FileType::Directory && name != b"." && name != b".." {
                    names.push(name.to_vec());
                }
            }
            names.sort_unstable();
            for name in names {
                // Others may remove groups of theirs at any time.
                children.extend(self.dir(dir.as_fd(), &name, &name)?);
            }
        }
        Ok(Some(CgroupDirEntry { dir_name: dir_name.to_vec(), children, properties, dir_perms: Some(perms(&st)) }))
    }

    /// One file of a group; `None` if this kernel or group has no such file, or its content is one of `defaults`.
    fn property(&self, dir: BorrowedFd<'_>, file: &str, defaults: &[&str]) -> Result<Option<CgroupPropEntry>> {
        let st = match rustix::fs::statat(dir, file, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.during(&format!("looking at {file}"))?,
        };
        let mut value = Vec::new();
        if props::has_no_value(file) {
            let as_made = (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (0, 0, 0o644);
            if self.name.is_empty() && as_made {
                return Ok(None);
            }
        } else {
            value = match read(dir, file) {
                Err(Errno::NOENT) => return Ok(None),
                other => other.during(&format!("reading {file}"))?,
            };
        }
        if value.last() == Some(&b'\n') {
            value.pop();
        }
        if file == "memory.oom_control" {
            let text = String::from_utf8_lossy(&value).into_owned();
            let mut lines = text.lines().filter_map(|l| l.strip_prefix("oom_kill_disable "));
            value = lines.next().unwrap_or("0").as_bytes().to_vec();
        }
        if value == b"9223372036854775807" {
            // No limit, as it is written.
            value = b"-1".to_vec();
        }
        if defaults.iter().any(|d| d.as_bytes() == value) {
            return Ok(None);
        }
        Ok(Some(CgroupPropEntry { name: file.to_owned(), value, perms: Some(perms(&st)) }))
    }
}

/// A small file below `dir`, whole.
pub(super) fn read(dir: BorrowedFd<'_>, file: &str) -> rustix::io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, file, flags, Mode::empty())?;
    let mut all = Vec::new();
    let mut chunk = [0u8; 4096];
    loop {
        match rustix::io::read(&fd, &mut chunk)? {
            0 => return Ok(all),
            n => all.extend_from_slice(&chunk[..n]),
        }
    }
}

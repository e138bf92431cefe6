//! Groups that a restore makes carry a mark until their tree runs, so that those of a restore that was killed can be told
//! from everybody else's: an extended attribute that says who made them. It goes with the group, and needs no file anywhere.
use super::hierarchy;
use super::look;
use crate::error::{Error, ResultExt};
use crate::{Object, Result};
use crust_kernel::procfs::{ProcDir, Stat};
use crust_kernel::{Backoff, Deadline, HostTid};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

const MARK: &str = "trusted.crust.restore";
/// Groups nest less deep than this.
const DEPTH: usize = 256;

/// The process that makes groups: its id, when it started, and the pid namespace in which that is its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Maker {
    pid: i32,
    start_time: u64,
    namespace: u64,
}

impl Maker {
    fn of(pid: i32) -> Option<Self> {
        let stat = Stat::parse(&ProcDir::open(HostTid::new(pid)?).ok()?.read("stat").ok()?)?;
        Some(Self { pid, start_time: stat.start_time, namespace: own_pid_namespace()? })
    }

    fn us() -> Option<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    fn text(self) -> String {
        format!("{} {} {}", self.pid, self.start_time, self.namespace)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(text).ok()?.split(' ');
        let mut word = || words.next()?.parse::<u64>().ok();
        Some(Self { pid: i32::try_from(word()?).ok()?, start_time: word()?, namespace: word()? })
    }

    /// True if it is known to be gone: an id of another namespace says nothing here.
    fn is_gone(self) -> bool {
        own_pid_namespace() == Some(self.namespace) && Self::of(self.pid) != Some(self)
    }
}

fn own_pid_namespace() -> Option<u64> {
    rustix::fs::stat("/proc/self/ns/pid").ok().map(|s| s.st_ino)
}

fn open(at: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, hierarchy::relative(path), flags, Mode::empty())
}

/// Marks a group that was just made. Where that is not allowed (it needs CAP_SYS_ADMIN) the group stays without.
pub(super) fn put(root: BorrowedFd<'_>, path: &[u8]) {
    let Some(us) = Maker::us() else { return };
    let set = open(root, path).and_then(|d| rustix::fs::fsetxattr(&d, MARK, us.text().as_bytes(), XattrFlags::empty()));
    if let Err(e) = set {
        log::debug!("a new cgroup gets no mark: {e}");
    }
}

/// The group is its tree's from here on.
pub(super) fn take_away(root: BorrowedFd<'_>, path: &[u8]) {
    match open(root, path).and_then(|d| rustix::fs::fremovexattr(&d, MARK)) {
        Ok(()) | Err(Errno::NODATA | Errno::NOENT | Errno::OPNOTSUPP | Errno::PERM) => {}
        Err(e) => log::warn!("a cgroup keeps the mark of this restore: {e}"),
    }
}

/// A group that a restore made which is gone, and that nobody is in.
#[derive(Debug)]
pub(crate) struct Left {
    hierarchy: String,
    path: Vec<u8>,
}

impl Left {
    /// Its name as users know it.
    pub(crate) fn object(&self) -> Object {
        hierarchy::object(&self.hierarchy, &self.path)
    }

    /// Removes it.
    ///
    /// # Errors
    /// If it is in use again.
    pub(crate) fn remove(&self) -> Result<()> {
        let root = hierarchy::open(&self.hierarchy, None)?;
        // The kernel counts tasks that are dying for a moment longer than it lists them.
        let (mut backoff, deadline) = (Backoff::new(), Deadline::after(Duration::from_secs(10)));
        loop {
            match rustix::fs::unlinkat(&root, hierarchy::relative(&self.path), AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::BUSY) if backoff.pause(deadline) => {}
                Err(e) => return Err(e).during("removing the cgroup").map_err(|e: Error| e.on(self.object())),
            }
        }
    }
}

/// Groups that restores left which were killed, those below before those above. What we may not look at is left out.
pub(crate) fn left_behind() -> Vec<Left> {
    let mut found = Vec::new();
    let Ok(text) = std::fs::read("/proc/self/cgroup") else { return found };
    for member in hierarchy::parse(&text) {
        // What fsmount(2) gives stands for the mount only.
        let root = hierarchy::open(&member.name, None).ok().and_then(|root| open(root.as_fd(), b"/").ok());
        let Some(root) = root else { continue };
        let mut paths = Vec::new();
        search(root.as_fd(), &mut Vec::new(), &mut paths, 0);
        found.extend(paths.into_iter().map(|path| Left { hierarchy: member.name.clone(), path }));
    }
    found
}

/// Looks at the groups in `dir`, whose path is `at`. True if all of them may go.
fn search(dir: BorrowedFd<'_>, at: &mut Vec<u8>, found: &mut Vec<Vec<u8>>, depth: usize) -> bool {
    let Ok(entries) = Dir::read_from(dir) else { return false };
    let mut all = true;
    for entry in entries.flatten().filter(|e| e.file_type() == FileType::Directory) {
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let Ok(group) = open(dir, name) else {
            all = false;
            continue;
        };
        let len = at.len();
        at.push(b'/');
        at.extend_from_slice(name);
        let empty_below = depth < DEPTH && search(group.as_fd(), at, found, depth + 1);
        let goes = empty_below && is_left(group.as_fd()) && !has_members(group.as_fd());
        if goes {
            found.push(at.clone());
        }
        all &= goes;
        at.truncate(len);
    }
    all
}

fn is_left(group: BorrowedFd<'_>) -> bool {
    let mut text = [0; 128];
    let len = rustix::fs::fgetxattr(group, MARK, &mut text).ok();
    len.and_then(|len| Maker::parse(text.get(..len)?)).is_some_and(Maker::is_gone)
}

/// True if somebody is in the group, or if that cannot be told.
fn has_members(group: BorrowedFd<'_>) -> bool {
    // Version 2 lists the members of threaded groups by thread only, version 1 has a file of its own for that.
    let lists = ["cgroup.threads", "tasks"];
    let list = lists.iter().find_map(|file| look::read(group, file).ok());
    list.is_none_or(|list| !list.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makers_are_known_again_and_their_ends_are_seen() {
        let us = Maker::us().expect("we are there");
        assert_eq!(Maker::parse(us.text().as_bytes()), Some(us));
        assert!(!us.is_gone());
        assert!(Maker { start_time: us.start_time + 1, ..us }.is_gone(), "another process has that id now");
        assert!(Maker { pid: i32::MAX, ..us }.is_gone());
        assert!(!Maker { pid: i32::MAX, namespace: 1, ..us }.is_gone(), "nobody knows");
        assert!(Maker::parse(b"").is_none() && Maker::parse(b"1 x 2").is_none() && Maker::parse(b"1 2").is_none());
    }
}

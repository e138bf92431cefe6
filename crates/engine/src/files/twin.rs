//! What the descriptors of a task lack to become those of another with the same numbers: files that only the other has are
//! opened by name, by the plan of the one that is forked, and files of several tables are taken from where the root task
//! put them. All others are inherited.
use super::regular;
use super::restore::{FileImages, number};
use crate::{Options, Result};
use crust_image::proto::{FdinfoEntry, FileEntry};
use crust_inject::plan::{Expect, PlanId, Program};
use rustix::fs::OFlags;
use std::os::fd::{AsRawFd, RawFd};

/// Where a file comes from.
#[derive(Debug, PartialEq, Eq)]
enum From {
    /// A name to open, with flags, and the position to go to.
    Name(Vec<u8>, OFlags, u64),
    /// A number that was inherited.
    Inherited(RawFd),
}

/// The way from one task's descriptors to another's.
#[derive(Debug, Default)]
pub struct Changes {
    /// Files, each with its places: number, and whether it closes at exec.
    files: Vec<(From, Vec<(RawFd, bool)>)>,
}

impl FileImages {
    /// True if a fork of the first task (pid and table) can be given the files of the second by a plan: descriptors with the
    /// same numbers, the same directories, and no locks that are a process's own. What is opened or filled table by table
    /// is excepted.
    pub fn inherits(&self, a: (i32, u32), b: (i32, u32), opts: &Options) -> bool {
        let plain = |e: &FdinfoEntry| {
            let filled = |f: &FileEntry| f.epfd.is_some() || f.ify.is_some() || f.ffy.is_some();
            self.files().get(&e.id).is_some_and(|f| !filled(f)) && !self.is_late(e.id)
        };
        let can_open = |id| self.is_shared(id) || (self.is_named(id) && self.nothing_given(opts));
        let at_home =
            |x: &FdinfoEntry, y: &FdinfoEntry| x.fd == y.fd && plain(x) && plain(y) && (x == y || can_open(y.id));
        let (x, y) = (self.table(a.1), self.table(b.1));
        x.len() == y.len()
            && x.iter().zip(y).all(|(x, y)| at_home(x, y))
            && self.fs.get(&a.0) == self.fs.get(&b.0)
            && (x == y || self.is_in_root(a.0))
            && !self.has_locks(a.0)
            && !self.has_locks(b.0)
    }

    /// True for a file that whoever opens it by its name, with nothing to look after, has as it was.
    fn is_named(&self, id: u32) -> bool {
        let Some(reg) = self.files().get(&id).and_then(|f| f.reg.as_deref()) else { return false };
        let is_file = reg.mode.is_some_and(|mode| mode & libc::S_IFMT == libc::S_IFREG);
        let plain = is_file && reg.ext != Some(true) && reg.flags & OFlags::PATH.bits() == 0;
        plain
            && !self.is_remapped(id)
            && !regular::is_proc(&reg.name)
            && !regular::is_tmpfile(reg.flags)
            && reg.fown.pid == 0
            && reg.fown.signum == 0
    }

    /// True if a task's root directory is the one that names in images are relative to: its plan runs when it is there.
    fn is_in_root(&self, pid: i32) -> bool {
        self.fs.get(&pid).is_some_and(|fs| self.regular(fs.root_id).is_ok_and(|root| root.name == b"/"))
    }

    /// What changes between two tables, the second of which [inherits](FileImages::inherits) from the first, in the process
    /// that has the first.
    ///
    /// # Errors
    /// A number is impossible.
    pub fn changes(&self, from: u32, to: u32) -> Result<Changes> {
        let mut found = Changes::default();
        let mut at: std::collections::HashMap<u32, usize> = std::collections::HashMap::new();
        for (_, e) in self.table(from).iter().zip(self.table(to)).filter(|(x, y)| x != y) {
            let place = (number(e)?, e.flags & libc::FD_CLOEXEC as u32 != 0);
            if let Some(known) = at.get(&e.id) {
                found.files[*known].1.push(place);
                continue;
            }
            let source = match self.opened(e.id) {
                Some(fd) => From::Inherited(fd.as_raw_fd()),
                None => {
                    let reg = self.regular(e.id)?;
                    let position = if reg.pos == u64::MAX { 0 } else { reg.pos };
                    From::Name(reg.name.clone(), regular::open_flags(reg.flags), position)
                }
            };
            at.insert(e.id, found.files.len());
            found.files.push((source, vec![place]));
        }
        Ok(found)
    }
}

impl Changes {
    /// Upper bound of what these changes take in a plan.
    pub fn plan_bytes(&self) -> u64 {
        let one = |(from, places): &(From, Vec<_>)| match from {
            // With the labels, one of which has the name.
            From::Name(name, ..) => 512 + 2 * name.len() as u64 + 128 * places.len() as u64,
            From::Inherited(_) => 128 * places.len() as u64,
        };
        self.files.iter().map(one).sum()
    }

    /// Adds the calls that make the changes, for a task that was just forked.
    pub fn plan(&self, p: &mut Program, plan: PlanId) {
        for (from, places) in &self.files {
            let put = |p: &mut Program, fd: crust_inject::plan::Arg| {
                for &(number, cloexec) in places {
                    let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
                    let args = [fd, number.into(), flags.into()];
                    p.syscall(plan, "putting a descriptor into place", libc::SYS_dup3, &args);
                }
            };
            match from {
                From::Inherited(fd) => put(p, (*fd).into()),
                From::Name(name, flags, position) => {
                    let label = format!("opening {}", String::from_utf8_lossy(name));
                    let name = p.cstr(name);
                    let args = [libc::AT_FDCWD.into(), name.into(), flags.bits().into(), 0.into()];
                    let fd = p.syscall_slot(plan, label, libc::SYS_openat, &args, Expect::Ok);
                    if *position != 0 {
                        let args = [fd.into(), (*position).into(), libc::SEEK_SET.into()];
                        p.syscall(plan, "setting the position", libc::SYS_lseek, &args);
                    }
                    put(p, fd.into());
                    p.syscall(plan, "closing a file that is in place", libc::SYS_close, &[fd.into()]);
                }
            }
        }
    }
}

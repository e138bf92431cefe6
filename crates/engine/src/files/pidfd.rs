//! Descriptors of processes (pidfd_open(2)): of tasks of the tree, of its zombies, of tasks that ended long ago, and of processes
//! that are not in the tree.
//!
//! A living task is found by its id; that a process outside of the tree still has its id is known by when it started. For one
//! that is gone a child is born and ends in its place, before the tree is there.
#![allow(unsafe_code, reason = "a stand-in for a task that ended is forked")]
use super::look::FdView;
use super::restore::{FileImages, Opener};
use super::table::{FileTable, Records};
use super::{FdKind, alone};
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::{FdTypes, FileEntry, PidfdEntry};
use crust_kernel::fork::{Fork, fork_as};
use crust_kernel::notify::{pidfd_exit_status, pidfd_open};
use crust_kernel::process;
use crust_kernel::procfs::{ProcDir, Stat};
use crust_kernel::{Backoff, Deadline, HostTid};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

pub(super) static KIND: FdKind =
    FdKind { name: "pidfd", fd_type: FdTypes::Pidfd, recognise: |v| v.is_anon("[pidfd]"), dump, group, open };

/// `PIDFD_THREAD` has the value of O_EXCL.
const PIDFD_THREAD: u32 = libc::O_EXCL as u32;
/// How long a task that is being built may take to appear.
const BIRTH: Duration = Duration::from_secs(600);

/// A pidfd of a task that lives, or waits for its parent: the file's id, the task here, and where the descriptor was seen.
pub(super) type Awaited = (u32, i32, Object);

fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let odd = || Error::new(Kind::Internal, "fdinfo of a pidfd has an unknown form");
    let pid: i32 = v.info.number("Pid").ok_or_else(odd)?;
    let nspid: i32 =
        v.info.get("NSpid").and_then(|ids| ids.split_ascii_whitespace().last()?.parse().ok()).ok_or_else(odd)?;
    if pid == 0 {
        return Err(Error::unsupported(
            "this descriptor belongs to a process of another pid namespace",
            "close it before the dump",
        ));
    }
    let mut crust_exit_status = None;
    if pid > 0 {
        out.pidfds.push((id, pid, v.object()));
    } else {
        crust_exit_status = pidfd_exit_status(v.copy()?);
    }
    let pidfd = PidfdEntry {
        id,
        ino: v.stat.st_ino as u32,
        flags: v.info.flags & !(libc::O_RDWR as u32),
        nspid,
        fown: v.fown()?,
        crust_exit_status,
        crust_start: None,
    };
    Ok(FileEntry { pidfd: Some(Box::new(pidfd)), ..FileEntry::default() })
}

/// The process that a thread belongs to.
fn leader(tid: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    crust_kernel::procfs::Status::new(text).number("Tgid").and_then(|pid| i32::try_from(pid).ok())
}

/// When a process, or a thread, started.
fn start_of(pid: i32) -> Option<u64> {
    let proc = ProcDir::open(HostTid::new(pid)?).ok()?;
    Stat::parse(&proc.read("stat").ok()?).map(|stat| stat.start_time)
}

impl FileTable<'_> {
    /// Takes note of a process of the tree, dead or alive, by its id here.
    pub fn note_task(&mut self, pid: i32) {
        self.records().tasks.insert(pid);
    }

    /// Processes behind pidfds come back with the tree, or are others that live on.
    pub(super) fn check_pidfds(&mut self) -> Vec<Error> {
        let r = self.records();
        let mut errors = Vec::new();
        let mut outside = BTreeMap::new();
        for (id, pid, object) in std::mem::take(&mut r.pidfds) {
            if r.tasks.contains(&pid) {
                continue;
            }
            match (leader(pid), start_of(pid)) {
                (Some(process), _) if process != pid && r.tasks.contains(&process) => errors.push(
                    Error::unsupported(
                        format!("this descriptor belongs to thread {pid}, not to a process (PIDFD_THREAD)"),
                        "close it before the dump",
                    )
                    .on(object),
                ),
                (Some(_), Some(start)) => drop(outside.insert(id, start)),
                _ => errors.push(
                    Error::new(Kind::TargetChanged, format!("process {pid}, which is not in the tree, ends"))
                        .on(object),
                ),
            }
        }
        for file in r.files.iter_mut().filter(|_| !outside.is_empty()) {
            if let Some(pidfd) = &mut file.pidfd {
                pidfd.crust_start = outside.get(&file.id).copied();
            }
        }
        errors
    }
}

/// Descriptors of one task that ended belong together: they must share its inode again.
fn group(e: &FileEntry, images: &FileImages) -> Option<u64> {
    match e.pidfd.as_ref() {
        Some(p) if p.nspid < 0 => Some(u64::from(p.ino)),
        _ => alone(e, images),
    }
}

/// True for a descriptor of a task that ended: made before any task of the tree exists, whose id could be taken. A process
/// outside of the tree may have ended meanwhile.
pub(super) fn must_be_early(entry: &FileEntry) -> bool {
    entry.pidfd.is_some() && !must_be_late(entry)
}

/// True for a descriptor of a task of the tree: opened when that task has been born, by each table for itself.
pub(super) fn must_be_late(entry: &FileEntry) -> bool {
    entry.pidfd.as_ref().is_some_and(|p| p.nspid >= 0 && p.crust_start.is_none())
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    let mut stand_in = None;
    for e in entries {
        let r = cx.body(e, e.pidfd.as_ref())?;
        let flags = flags_of(r);
        let living = match r.crust_start {
            Some(_) => cx.inherited(&key(e.id))?,
            None if r.nspid >= 0 => Some(born(r.nspid, flags)?),
            None => None,
        };
        let fd = match living {
            Some(fd) => fd,
            None => {
                let pid = match stand_in {
                    Some(pid) => pid,
                    None => *stand_in.insert(bear(r.crust_exit_status)?),
                };
                pidfd_open(pid.as_raw_nonzero().get(), flags).during("pidfd_open for a task that ended")?
            }
        };
        cx.settle(&fd, r.flags, &r.fown)?;
        opened.push((e.id, fd));
    }
    if let Some(pid) = stand_in {
        while matches!(rustix::process::waitpid(Some(pid), WaitOptions::empty()), Err(Errno::INTR)) {}
    }
    Ok(opened)
}

/// Flags to open it with.
fn flags_of(r: &PidfdEntry) -> u32 {
    r.flags & (PIDFD_THREAD | libc::O_NONBLOCK as u32)
}

/// Under which name the descriptor of a process outside of the tree is given.
fn key(id: u32) -> String {
    format!("pidfd[{id}]")
}

impl FileImages {
    /// Finds the processes outside of the tree that descriptors are for. To be called in the coordinator: a task of the tree has
    /// its own clocks, and would see other times.
    ///
    /// # Errors
    /// A descriptor cannot be opened.
    pub fn find_outside(&mut self) -> Result<()> {
        let mut given = Vec::new();
        for (id, r) in self.files().iter().filter_map(|(id, f)| Some((*id, f.pidfd.as_deref()?))) {
            let Some(start) = r.crust_start else { continue };
            match outside(r.nspid, start, flags_of(r))? {
                Some(fd) => given.push((key(id), fd)),
                None => log::warn!(
                    "process {}, which a descriptor of the program is for, ended after the dump; how is not known",
                    r.nspid
                ),
            }
        }
        given.into_iter().try_for_each(|(key, fd)| self.give(key, &fd))
    }
}

/// The descriptor of a process that is not in the tree, unless it ended.
fn outside(pid: i32, start: u64, flags: u32) -> Result<Option<OwnedFd>> {
    let fd = match pidfd_open(pid, flags) {
        // A thread that ended leaves its id to others.
        Err(Errno::SRCH | Errno::NOENT | Errno::INVAL) => return Ok(None),
        other => other.during(&format!("pidfd_open for process {pid}"))?,
    };
    // Whoever has the id when the descriptor is there is whom it is for.
    Ok((start_of(pid) == Some(start)).then_some(fd))
}

/// The descriptor of a task that is being built beside us: it appears in its own time.
fn born(pid: i32, flags: u32) -> Result<OwnedFd> {
    let (deadline, mut backoff) = (Deadline::after(BIRTH), Backoff::new());
    loop {
        match pidfd_open(pid, flags) {
            Err(Errno::SRCH) if backoff.pause(deadline) => {}
            other => return other.during(&format!("pidfd_open for task {pid}")),
        }
    }
}

/// A child that ends at once, as the task did that it stands for; not waited for yet.
fn bear(status: Option<i32>) -> Result<Pid> {
    // SAFETY: tables are built in a process with a single thread; the child leaves at once.
    match unsafe { fork_as(None, 0) }.during("forking a stand-in for a task that ended")? {
        Fork::Parent(pid) => Pid::from_raw(pid.as_raw()).ok_or_else(|| Error::new(Kind::Internal, "no id")),
        Fork::Child => {
            let status = status.unwrap_or(0);
            let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
            if status & 0x7f != 0 && !stops.contains(&(status & 0x7f)) {
                let off = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
                let _no_core_file = rustix::process::setrlimit(rustix::process::Resource::Core, off);
                process::raise(status & 0x7f);
            }
            process::exit_now((status >> 8) & 0xff)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_when_it_started() {
        let own = std::process::id() as i32;
        let start = start_of(own).expect("we live");
        assert!(outside(own, start, 0).expect("found").is_some());
        assert!(outside(own, start + 1, 0).expect("asked").is_none());
        // An id that no process can have.
        assert!(outside(1 << 29, start, 0).expect("asked").is_none());
        assert_eq!(leader(own), Some(own));
    }
}

//! Descriptors of processes (pidfd_open(2)): of tasks of the tree, of its zombies, and of tasks that ended long ago.
//!
//! A living task is found by its id. For one that is gone a child is born and ends in its place, before the tree is there.
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
use crust_kernel::{Backoff, Deadline};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

pub(super) static KIND: FdKind =
    FdKind { name: "pidfd", fd_type: FdTypes::Pidfd, recognise: |v| v.is_anon("[pidfd]"), dump, group, open };

/// `PIDFD_THREAD` has the value of O_EXCL.
const PIDFD_THREAD: u32 = libc::O_EXCL as u32;
/// How long a task that is being built may take to appear.
const BIRTH: Duration = Duration::from_secs(600);

/// A pidfd whose task must be in the tree: the task here, and where the descriptor was seen.
pub(super) type Awaited = (i32, Object);

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
        if v.info.flags & PIDFD_THREAD != 0 && !leads(pid) {
            return Err(Error::unsupported(
                format!("this descriptor belongs to thread {pid}, not to a process (PIDFD_THREAD)"),
                "close it before the dump",
            ));
        }
        out.pidfds.push((pid, v.object()));
    } else {
        crust_exit_status = pidfd_exit_status(v.copy());
    }
    let pidfd = PidfdEntry {
        id,
        ino: v.stat.st_ino as u32,
        flags: v.info.flags & !(libc::O_RDWR as u32),
        nspid,
        fown: v.fown()?,
        crust_exit_status,
    };
    Ok(FileEntry { pidfd: Some(Box::new(pidfd)), ..FileEntry::default() })
}

/// False for a thread that leads no process. Threads have directories below /proc too.
fn leads(pid: i32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    crust_kernel::procfs::Status::new(text).number("Tgid").is_none_or(|leader| leader == i64::from(pid))
}

impl FileTable<'_> {
    /// Takes note of a process of the tree, dead or alive, by its id here.
    pub fn note_task(&mut self, pid: i32) {
        self.records().tasks.insert(pid);
    }

    /// Processes behind pidfds must come back with the tree.
    pub(super) fn check_pidfds(&mut self) -> Vec<Error> {
        let r = self.records();
        let tasks: &BTreeSet<i32> = &r.tasks;
        let outside = |(pid, object): &Awaited| {
            (!tasks.contains(pid)).then(|| {
                Error::unsupported(
                    format!("this descriptor belongs to process {pid}, which is not in the tree"),
                    "dump from a common parent, or close the descriptor before the dump",
                )
                .on(object.clone())
            })
        };
        std::mem::take(&mut r.pidfds).iter().filter_map(outside).collect()
    }
}

/// Descriptors of one task that ended belong together: they must share its inode again.
fn group(e: &FileEntry, images: &FileImages) -> Option<u64> {
    match e.pidfd.as_ref() {
        Some(p) if p.nspid < 0 => Some(u64::from(p.ino)),
        _ => alone(e, images),
    }
}

/// True for a descriptor of a task that ended: made before any task of the tree exists, whose id could be taken.
pub(super) fn must_be_early(entry: &FileEntry) -> bool {
    entry.pidfd.as_ref().is_some_and(|p| p.nspid < 0)
}

/// True for a descriptor of a task of the tree: opened when that task has been born, by each table for itself.
pub(super) fn must_be_late(entry: &FileEntry) -> bool {
    entry.pidfd.as_ref().is_some_and(|p| p.nspid >= 0)
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    let mut stand_in = None;
    for e in entries {
        let r = cx.body(e, e.pidfd.as_ref())?;
        let flags = r.flags & (PIDFD_THREAD | libc::O_NONBLOCK as u32);
        let fd = if r.nspid < 0 {
            let pid = match stand_in {
                Some(pid) => pid,
                None => *stand_in.insert(bear(r.crust_exit_status)?),
            };
            pidfd_open(pid.as_raw_nonzero().get(), flags).during("pidfd_open for a task that ended")?
        } else {
            born(r.nspid, flags)?
        };
        cx.settle(&fd, r.flags, &r.fown)?;
        opened.push((e.id, fd));
    }
    if let Some(pid) = stand_in {
        while matches!(rustix::process::waitpid(Some(pid), WaitOptions::empty()), Err(Errno::INTR)) {}
    }
    Ok(opened)
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

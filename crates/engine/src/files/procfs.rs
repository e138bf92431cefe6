//! Files below /proc/PID: of tasks of the tree, which must be there when the files are opened, and of tasks that are gone,
//! whose place a stand-in takes while files are opened.
#![allow(unsafe_code, reason = "a stand-in for a task that is gone is forked")]
use super::restore::FileImages;
use super::table::Records;
use crate::{Error, Kind, Result, ResultExt};
use crust_image::proto::{FileEntry, RegFileEntry, RemapFilePathEntry, RemapType};
use crust_kernel::fork::{Fork, fork_as};
use crust_kernel::process;
use crust_kernel::{Backoff, Deadline, NsTid};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};
use std::path::Path;
use std::time::Duration;

/// How long a task that is being built may take to appear.
const BIRTH: Duration = Duration::from_secs(600);

/// The process whose directory holds the file, if it is below one.
fn owner(path: &[u8]) -> Option<i32> {
    let first = path.strip_prefix(b"/proc/")?.split(|b| *b == b'/').next()?;
    std::str::from_utf8(first).ok()?.parse().ok()
}

/// The path such a file can be opened by at restore; takes note of a task that is gone.
pub(super) fn resolve(link: &[u8], id: u32, out: &mut Records<'_>) -> Result<Vec<u8>> {
    let stripped = link.strip_suffix(b" (deleted)");
    let path = stripped.unwrap_or(link);
    let shown = || String::from_utf8_lossy(link).into_owned();
    let Some(pid) = owner(path) else {
        return match stripped {
            Some(_) => Err(Error::unsupported(format!("{} is gone", shown()), "close it before the dump")),
            None => Ok(path.to_vec()),
        };
    };
    let thread = path.split(|b| *b == b'/').nth(4).and_then(|t| std::str::from_utf8(t).ok()?.parse::<i32>().ok());
    if Path::new(&format!("/proc/{pid}")).exists() {
        if stripped.is_some() {
            return Err(Error::unsupported(
                format!("{} belongs to a task that is gone, and another has its number", shown()),
                "close it before the dump",
            ));
        }
        if path.split(|b| *b == b'/').nth(3) == Some(b"task") && thread.is_some_and(|t| t != pid) {
            return Err(Error::unsupported(
                format!("{} belongs to a thread: threads are born when files are open already", shown()),
                "close it before the dump",
            ));
        }
        return Ok(path.to_vec());
    }
    // One record for each such task, as CRIU has it; the name says which files it is about.
    if out.dead_pids.insert(pid) {
        let remap_type = Some(RemapType::Procfs as i32);
        out.remaps.push(RemapFilePathEntry { orig_id: id, remap_id: pid.unsigned_abs(), remap_type });
    }
    Ok(path.to_vec())
}

/// True for a file of a task of the tree that is born later than the root opens what all share.
pub(super) fn must_be_late(entry: &FileEntry, images: &FileImages) -> bool {
    let pid = entry.reg.as_ref().and_then(|reg| owner(&reg.name));
    pid.is_some_and(|pid| images.has_task(pid) && !images.is_root(pid))
}

/// What makes it impossible to open the file again.
pub(super) fn check(reg: &RegFileEntry, images: &FileImages) -> Option<Error> {
    let pid = owner(&reg.name).filter(|pid| images.dead_pids().any(|dead| dead == *pid))?;
    Path::new(&format!("/proc/{pid}")).exists().then(|| {
        let name = String::from_utf8_lossy(&reg.name);
        Error::new(Kind::Taken, format!("process id {pid} is taken, and {name} was of a process that had it"))
            .help("end that process, or restore in a pid namespace of its own (`unshare -Upf`)")
    })
}

/// Opens a file; one of a task of the tree when that task appears.
pub(super) fn when_born<T>(
    path: &[u8],
    images: &FileImages,
    mut open: impl FnMut() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    let awaited = owner(path).filter(|pid| images.has_task(*pid));
    if awaited.is_none() {
        return open();
    }
    let (deadline, mut backoff) = (Deadline::after(BIRTH), Backoff::new());
    loop {
        match open() {
            Err(Errno::NOENT)
                if awaited.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
                    && backoff.pause(deadline) => {}
            other => return other,
        }
    }
}

/// A child that has the number of a task that is gone, until it is dropped.
#[derive(Debug)]
pub(super) struct StandIn {
    pid: Pid,
    /// Tasks of the tree are copies of the process that bore it.
    bearer: Pid,
}

impl StandIn {
    /// Bears one for each such task. To be called in the root task before it opens files and before it has children.
    ///
    /// # Errors
    /// A number is taken.
    pub(super) fn bear(pid: i32) -> Result<Self> {
        let wanted = NsTid::new(pid).ok_or_else(|| Error::bad_image("remap-fpath.img", format!("{pid} is no id")))?;
        let parent = rustix::process::getpid();
        // SAFETY: the root task has a single thread while it opens files; the child does nothing but wait.
        match unsafe { fork_as(Some(wanted), 0) } {
            Ok(Fork::Parent(_)) => {}
            Ok(Fork::Child) => {
                let tied = process::set_parent_death_signal(libc::SIGKILL).is_ok();
                while tied && rustix::process::getppid() == Some(parent) {
                    std::thread::sleep(Duration::from_secs(3600));
                }
                process::exit_now(0)
            }
            Err(Errno::EXIST) => {
                return Err(Error::new(
                    Kind::Taken,
                    format!("process id {pid} is taken, and a file was of a process that had it"),
                ));
            }
            other => drop(other.during("forking a stand-in for a task that is gone")?),
        }
        let pid = Pid::from_raw(pid).ok_or_else(|| Error::new(Kind::Internal, "no id"))?;
        Ok(Self { pid, bearer: parent })
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if rustix::process::getpid() != self.bearer {
            return;
        }
        if let Err(e) = rustix::process::kill_process(self.pid, Signal::KILL) {
            log::warn!("stand-in {:?} does not end: {e}", self.pid);
        }
        while matches!(rustix::process::waitpid(Some(self.pid), WaitOptions::empty()), Err(Errno::INTR)) {}
    }
}

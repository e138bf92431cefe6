//! `--freeze-cgroup`: a group stands still while its threads are seized, and is as it was found afterwards, also if we are
//! killed meanwhile: a small process that watches us puts the state back then.
use super::look;
use crate::Watch;
use crate::error::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::{CgroupPerms, CgroupPropEntry};
use crust_kernel::fork::{Fork, fork};
use crust_kernel::{Backoff, Deadline, HostTid, fd, process, signals};
use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::process::{Pid, WaitOptions};
use std::io::{PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// A group's state before we touched it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AsFound {
    v2: bool,
    frozen: bool,
    perms: CgroupPerms,
}

impl AsFound {
    /// The state as CRIU keeps it: for version 1 only, where the file's name is not among the group's settings.
    pub(super) fn property(&self) -> Option<CgroupPropEntry> {
        let value = if self.frozen { "FROZEN" } else { "THAWED" };
        let entry = || CgroupPropEntry { name: STATE_V1.into(), value: value.into(), perms: Some(self.perms) };
        (!self.v2).then(entry)
    }
}

pub(super) const STATE_V1: &str = "freezer.state";
pub(super) const STATE_V2: &str = "cgroup.freeze";

/// The group that a dump freezes.
#[derive(Debug)]
pub(crate) struct Freezer {
    dir: OwnedFd,
    name: String,
    found: AsFound,
    /// It is not as it was found.
    changed: bool,
    guard: Option<Guard>,
}

impl Freezer {
    /// Looks at the group and changes nothing.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let name = path.to_string_lossy().into_owned();
        Self::look_at(path, &name).map_err(|e| {
            e.on(Object::Path(name))
                .help("--freeze-cgroup wants a directory of the freezer (v1) or of version 2, and not the root")
        })
    }

    fn look_at(path: &Path, name: &str) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).during("opening the cgroup to freeze")?;
        let st = |file| rustix::fs::statat(&dir, file, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
        let (v2, st) = match st(STATE_V2) {
            Ok(st) => (true, st),
            Err(_) => (false, st(STATE_V1).during("looking for freezer.state or cgroup.freeze in it")?),
        };
        let found = AsFound { v2, frozen: false, perms: look::perms(&st) };
        let mut freezer = Self { dir, name: name.to_owned(), found, changed: false, guard: None };
        freezer.found.frozen = match v2 {
            true => freezer.read(STATE_V2)?.starts_with('1'),
            false => !freezer.read(STATE_V1)?.starts_with("THAWED"),
        };
        let own = rustix::process::getpid().as_raw_nonzero().get();
        if freezer.members()?.contains(&own) {
            let what = "we are in this cgroup ourselves, and would freeze with it";
            return Err(Error::new(Kind::BadRequest, what).help("start crust in another cgroup"));
        }
        Ok(freezer)
    }

    pub(crate) fn as_found(&self) -> &AsFound {
        &self.found
    }

    fn read(&self, file: &str) -> Result<String> {
        let text = look::read(self.dir.as_fd(), file).during(&format!("reading {file}"))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn write(&self, frozen: bool) -> Result<()> {
        let file = if self.found.v2 { STATE_V2 } else { STATE_V1 };
        let fd = open_state(self.dir.as_fd(), file).during(&format!("opening {file} for writing"))?;
        let text = state_text(self.found.v2, frozen);
        rustix::io::write(&fd, text).during(if frozen { "freezing the cgroup" } else { "thawing the cgroup" })?;
        Ok(())
    }

    /// Processes in the group and in those below, by their ids here.
    fn members(&self) -> Result<Vec<i32>> {
        let mut all = Vec::new();
        members_below(self.dir.as_fd(), &mut all)?;
        Ok(all)
    }

    fn is_still(&self) -> Result<bool> {
        match self.found.v2 {
            true => Ok(self.read("cgroup.events")?.lines().any(|l| l == "frozen 1")),
            false => Ok(self.read(STATE_V1)?.starts_with("FROZEN")),
        }
    }

    /// Freezes the group, if it is not frozen, and waits until all of it stands still.
    pub(crate) fn freeze(&mut self, deadline: Deadline, watch: &Watch) -> Result<()> {
        self.freeze_and_wait(deadline, watch).map_err(|e| e.on(Object::Path(self.name.clone())))
    }

    fn freeze_and_wait(&mut self, deadline: Deadline, watch: &Watch) -> Result<()> {
        // A freezer of version 1 that saw a task fork or exit at the wrong moment stays on its way until it is asked again.
        const ASK_AGAIN: Duration = Duration::from_millis(50);
        if !self.found.frozen {
            self.guard()?;
            self.changed = true;
            self.write(true)?;
        }
        let mut backoff = Backoff::new();
        let mut asked = Instant::now();
        while !self.is_still()? {
            watch.go_on()?;
            if !backoff.pause(deadline) {
                let state = self.members()?.into_iter().filter_map(waiting_for).next().unwrap_or_default();
                let what = format!("the cgroup did not freeze in time{state}");
                return Err(Error::new(Kind::Timeout, what));
            }
            if !self.found.v2 && !self.found.frozen && asked.elapsed() > ASK_AGAIN {
                self.write(true)?;
                asked = Instant::now();
            }
        }
        Ok(())
    }

    /// Lets the group run: threads that were asked to stop by ptrace do so first of all.
    pub(crate) fn thaw(&mut self) -> Result<()> {
        if self.found.frozen {
            self.guard()?;
            self.changed = true;
        }
        self.write(false).map_err(|e| e.on(Object::Path(self.name.clone())))?;
        if !self.found.frozen {
            self.changed = false;
            self.guard = None;
        }
        Ok(())
    }

    /// Starts the process that puts the state back if we die.
    fn guard(&mut self) -> Result<()> {
        if self.guard.is_none() {
            let file = if self.found.v2 { STATE_V2 } else { STATE_V1 };
            let fd = open_state(self.dir.as_fd(), file).during(&format!("opening {file} for writing"))?;
            self.guard = Some(Guard::start(fd, state_text(self.found.v2, self.found.frozen))?);
        }
        Ok(())
    }

    fn put_back(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        // A group that nobody is left in would only hinder whoever enters it next.
        if !self.found.frozen || !self.members()?.is_empty() {
            self.write(self.found.frozen)?;
        }
        Ok(())
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        if let Err(e) = self.put_back() {
            log::error!("cgroup {}: not as it was found, frozen: {}: {e}", self.name, self.found.frozen);
        }
    }
}

fn open_state(dir: BorrowedFd<'_>, file: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(dir, file, OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
}

fn state_text(v2: bool, frozen: bool) -> &'static [u8] {
    match (v2, frozen) {
        (true, false) => b"0",
        (true, true) => b"1",
        (false, false) => b"THAWED",
        (false, true) => b"FROZEN",
    }
}

fn members_below(dir: BorrowedFd<'_>, all: &mut Vec<i32>) -> Result<()> {
    // A threaded group of version 2 lists no processes, only threads.
    let text = look::read(dir, "cgroup.procs").or_else(|_| look::read(dir, "cgroup.threads"));
    let text = match text {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NODEV) => return Ok(()),
        other => other.during("listing the cgroup's processes")?,
    };
    all.extend(String::from_utf8_lossy(&text).split_ascii_whitespace().filter_map(|n| n.parse::<i32>().ok()));
    for entry in Dir::read_from(dir).during("listing a cgroup")? {
        let entry = entry.during("listing a cgroup")?;
        let name = entry.file_name().to_bytes();
        if entry.file_type() != FileType::Directory || name == b"." || name == b".." {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => {}
            below => members_below(below.during("opening a cgroup")?.as_fd(), all)?,
        }
    }
    Ok(())
}

/// Names a process that is in the middle of a wait in the kernel.
fn waiting_for(pid: i32) -> Option<String> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = crust_kernel::procfs::Stat::parse(&stat)?;
    (stat.state == b'D')
        .then(|| format!(" (process {pid}, {}, waits in the kernel)", String::from_utf8_lossy(&stat.comm)))
}

/// The process that outlives us, if only to put a state back.
#[derive(Debug)]
struct Guard {
    pid: HostTid,
    tell: Option<PipeWriter>,
}

impl Guard {
    fn start(state: OwnedFd, text: &'static [u8]) -> Result<Self> {
        let (news, tell) = std::io::pipe().during("making a pipe")?;
        match fork().during("starting the process that watches over the freezer")? {
            Fork::Parent(pid) => Ok(Self { pid, tell: Some(tell) }),
            Fork::Child => {
                drop(tell);
                watch(OwnedFd::from(news), state, text)
            }
        }
    }
}

/// The life of the guard: a byte tells it that all is well, the end of the pipe that we are dead.
fn watch(news: OwnedFd, state: OwnedFd, text: &'static [u8]) -> ! {
    const NEWS: RawFd = 0;
    const STATE: RawFd = 1;
    signals::block_all_here();
    let go = || -> rustix::io::Result<()> {
        // A terminal's or a session's end is not ours, and neither are descriptors that somebody waits on to be closed.
        let _in_ours_already = rustix::process::setsid();
        let news = rustix::io::fcntl_dupfd_cloexec(&news, 3)?;
        let state = rustix::io::fcntl_dupfd_cloexec(&state, 3)?;
        fd::place(&news, NEWS, true)?;
        fd::place(&state, STATE, true)?;
        fd::close_range(2, u32::MAX)?;
        std::mem::forget((news, state));
        let mut pipe = std::fs::File::from(rustix::io::dup(fd::borrow_placed(NEWS))?);
        let mut byte = [0];
        if matches!(pipe.read(&mut byte), Ok(1)) {
            return Ok(());
        }
        rustix::io::write(fd::borrow_placed(STATE), text).map(drop)
    };
    process::exit_now(i32::from(go().is_err()))
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mut tell) = self.tell.take()
            && let Err(e) = tell.write_all(b".")
        {
            log::warn!("the process that watches over the freezer is gone: {e}");
        }
        let Some(pid) = Pid::from_raw(self.pid.as_raw()) else { return };
        let deadline = Deadline::after(Duration::from_secs(10));
        let mut backoff = Backoff::new();
        while let Ok(None) = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG) {
            if !backoff.pause(deadline) {
                log::warn!("the process that watches over the freezer does not end");
                return;
            }
        }
    }
}

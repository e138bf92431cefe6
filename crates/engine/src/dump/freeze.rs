//! The tree found and frozen: every process below the root, every thread of it, until nothing new appears.
use super::waits::{self, Waits};
use crate::cgroup::freezer::Freezer;
use crate::error::{OnObject, ResultExt};
use crate::{Error, Kind, Object, Result, Stage, together};
use crust_inject::{Asked, SeizedProcess, SeizedThread};
use crust_kernel::pidfd::PidFd;
use crust_kernel::procfs::{ProcDir, Stat};
use crust_kernel::{Deadline, HostTid, ptrace};
use std::collections::HashSet;
use std::sync::Arc;

/// One process of the frozen tree.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) seen: Seen,
    /// `None` for a zombie.
    pub(crate) seized: Option<SeizedProcess>,
}

/// What any thread of ours may look at while the process stands still.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) pid: HostTid,
    /// As the tree has it; the root's is 0.
    pub(crate) ppid: i32,
    /// A thread that is alive, by whose id the process is looked at: the leader, unless that has ended.
    pub(crate) live: HostTid,
    /// Of `live`.
    pub(crate) proc: Arc<ProcDir>,
    pub(crate) pidfd: PidFd,
    /// Of the leader.
    pub(crate) stat: Stat,
    /// What is known of its threads' waits.
    pub(crate) waits: Waits,
}

/// A tree that stands still. Dropping it lets it run again.
#[must_use = "dropping a frozen tree lets it run again"]
#[derive(Debug)]
pub(crate) struct FrozenTree {
    /// Root first, parents before children.
    pub(crate) processes: Vec<Process>,
}

impl From<crust_inject::Error> for Error {
    fn from(e: crust_inject::Error) -> Self {
        use crust_inject::Kind as K;
        let kind = match e.kind() {
            K::Gone | K::Traced { .. } => Kind::NoSuchTask,
            K::Permission => Kind::Permission,
            K::Timeout => Kind::Timeout,
            K::Unsupported => Kind::Unsupported,
            K::Died | K::Zombie => Kind::TargetChanged,
            K::Kernel => Kind::Kernel,
            _ => Kind::Internal,
        };
        Error::new(kind, e.what()).on(Object::Task(e.task().as_raw())).help(e.help())
    }
}

/// Reads a process's stat file; `None` if it is gone.
pub(crate) fn stat_of(proc: &ProcDir) -> Option<Stat> {
    Stat::parse(&proc.read("stat").ok()?)
}

/// The root of a request: there, and not above ourselves.
pub(crate) fn find_root(pid: i32) -> Result<HostTid> {
    let bad = |what: String| Error::new(Kind::NoSuchTask, what).at(Stage::Find);
    let root = HostTid::new(pid).ok_or_else(|| bad(format!("{pid} is no process id")))?;
    let proc = ProcDir::open(root).map_err(|_| bad(format!("there is no process {pid}")))?;
    let stat = stat_of(&proc).ok_or_else(|| bad(format!("process {pid} ended")))?;
    if stat.state == b'Z' && proc.threads().map_or(0, |t| t.len()) < 2 {
        return Err(bad(format!("process {pid} is a zombie")).help("dump from its parent to save it as a zombie"));
    }
    // The old wording is what CRIU's clients look for.
    let mut at = HostTid::new(rustix::process::getpid().as_raw_nonzero().get());
    while let Some(id) = at {
        if id == root {
            return Err(Error::new(Kind::BadRequest, "The criu itself is within dumped tree")
                .on(Object::Task(pid))
                .at(Stage::Find)
                .help("start crust from outside of the tree, or use the service"));
        }
        at = ProcDir::open(id).ok().and_then(|p| stat_of(&p)).and_then(|s| HostTid::new(s.ppid));
    }
    Ok(root)
}

/// All processes below `root`, as far as they are seen now, with their parents.
fn below(root: HostTid) -> Vec<(HostTid, i32)> {
    let mut all = vec![(root, 0)];
    let mut i = 0;
    while let Some(&(pid, _)) = all.get(i) {
        // What is gone by now has no children, and whatever is missed is looked for again when all stand still.
        let children = ProcDir::open(pid).and_then(|p| p.children()).unwrap_or_default();
        all.extend(children.into_iter().map(|c| (c, pid.as_raw())));
        i += 1;
    }
    all
}

/// Asks all threads of all processes below `root` to stop, as far as they are seen now, and does not wait. Processes with
/// their parents, and what became of each.
fn ask_below(root: HostTid, deadline: Deadline) -> (Vec<(HostTid, i32)>, Vec<Asked>) {
    let all = below(root);
    let asked = all.iter().map(|&(pid, _)| SeizedProcess::ask_to_stop(pid, ptrace::Options::default(), deadline));
    let asked = asked.collect();
    (all, asked)
}

impl FrozenTree {
    /// Stops every task below `root`. While they are asked to, their control group is frozen if there is a `freezer`: then
    /// none of its tasks can be born meanwhile.
    ///
    /// # Errors
    /// The task that could not be stopped; everything runs again then.
    pub(crate) fn freeze(root: HostTid, freezer: Option<&mut Freezer>, deadline: Deadline) -> Result<Self> {
        let mut tree = Self { processes: Vec::new() };
        let mut known = HashSet::new();
        let mut wanted = vec![(root, 0)];
        let mut parents = Vec::new();
        if let Some(freezer) = freezer {
            let waits = waits::look(below(root).into_iter().map(|p| p.0));
            freezer.freeze(deadline)?;
            let (all, asked) = ask_below(root, deadline);
            // First of all: an error below waits for threads to stop, which frozen ones do not.
            freezer.thaw()?;
            let seized = asked.into_iter().map(Asked::await_stop).collect();
            tree.take(&all, seized, waits, &mut known)?;
            wanted = tree.children(0..tree.processes.len(), &known, Some(&mut parents))?;
        }
        while !wanted.is_empty() {
            let layer = tree.processes.len();
            tree.add(&wanted, &mut known, deadline)?;
            wanted = tree.children(layer..tree.processes.len(), &known, Some(&mut parents))?;
            if wanted.is_empty() {
                // A task whose parent died before it stood still fell to an ancestor, which is frozen already. Who had no
                // child once it stood still is nobody's ancestor.
                wanted = tree.children(parents.iter().copied(), &known, None)?;
            }
            if deadline.expired() {
                return Err(Error::new(Kind::Timeout, "the tree forks faster than it can be frozen"));
            }
        }
        tree.order();
        Ok(tree)
    }

    /// Children of some processes that are not known yet. `parents` gets those that have any.
    fn children(
        &self,
        of: impl IntoIterator<Item = usize>,
        known: &HashSet<HostTid>,
        mut parents: Option<&mut Vec<usize>>,
    ) -> Result<Vec<(HostTid, i32)>> {
        let mut found = Vec::new();
        for i in of {
            let Process { seen, seized: Some(seized) } = &self.processes[i] else { continue };
            let threads: Vec<HostTid> = seized.threads().iter().map(SeizedThread::tid).collect();
            let children = together::each(threads.len(), |i| seen.proc.children_of(threads.get(i).copied()));
            let children: rustix::io::Result<Vec<_>> = children.into_iter().collect();
            let children = children.during("listing children").on_task(seen.pid.as_raw())?.concat();
            if !children.is_empty()
                && let Some(parents) = &mut parents
            {
                parents.push(i);
            }
            found.extend(children.into_iter().filter(|c| !known.contains(c)).map(|c| (c, seen.pid.as_raw())));
        }
        Ok(found)
    }

    /// Seizes a layer of processes. One that is gone by now is none of ours any more, unless it is the root.
    fn add(&mut self, wanted: &[(HostTid, i32)], known: &mut HashSet<HostTid>, deadline: Deadline) -> Result<()> {
        let pids: Vec<HostTid> = wanted.iter().map(|w| w.0).collect();
        let waits = waits::look(pids.iter().copied());
        let seized = SeizedProcess::seize_all(&pids, ptrace::Options::default(), deadline);
        self.take(wanted, seized, waits, known)
    }

    fn take(
        &mut self,
        wanted: &[(HostTid, i32)],
        seized: Vec<crust_inject::Result<SeizedProcess>>,
        mut waits: Waits,
        known: &mut HashSet<HostTid>,
    ) -> Result<()> {
        for (&(pid, ppid), seized) in wanted.iter().zip(seized) {
            let mut seized = match seized {
                Ok(s) => Some(s),
                Err(e) if *e.kind() == crust_inject::Kind::Zombie && ppid != 0 => None,
                Err(e) if *e.kind() == crust_inject::Kind::Gone && ppid != 0 => continue,
                Err(e) => return Err(e.into()),
            };
            let mut seen = Self::see(pid, ppid, seized.as_ref()).on_task(pid.as_raw())?;
            if let Some(seized) = &mut seized {
                seen.waits = waits::of(seized, &mut waits)?;
            }
            known.insert(pid);
            self.processes.push(Process { seen, seized });
        }
        Ok(())
    }

    fn see(pid: HostTid, ppid: i32, seized: Option<&SeizedProcess>) -> Result<Seen> {
        let proc = match seized.and_then(SeizedProcess::proc) {
            Some(proc) => proc.clone(),
            None => Arc::new(ProcDir::open(pid).during("opening /proc/PID")?),
        };
        // Nothing of it changes any more: its parent stands still as well.
        let stat = seized.and_then(SeizedProcess::stat).cloned().or_else(|| stat_of(&proc));
        let stat = stat.ok_or_else(|| Error::new(Kind::TargetChanged, "ended while the tree was being frozen"))?;
        // A task may have come to this parent only after its listing.
        let ppid = if ppid == 0 { 0 } else { stat.ppid };
        let other = seized.filter(|s| s.leader_is_zombie()).and_then(|s| s.threads().first()).map(SeizedThread::tid);
        let Some(live) = other else {
            let pidfd = PidFd::open(pid).during("pidfd_open")?;
            return Ok(Seen { pid, ppid, live: pid, proc, pidfd, stat, waits: Waits::new() });
        };
        // Memory and descriptors are gone from the leader; its other threads have them.
        let proc = Arc::new(ProcDir::open(live).during("opening /proc/TID")?);
        let pidfd = PidFd::open_thread(live)
            .during("the thread group's leader has ended; pidfd_open of another thread (Linux 6.9)")
            .map_err(|e| e.kind_is(Kind::Unsupported).help("let the program's main thread live"))?;
        Ok(Seen { pid, ppid, live, proc, pidfd, stat, waits: Waits::new() })
    }

    /// Parents before children.
    fn order(&mut self) {
        let mut sorted: Vec<Process> = Vec::with_capacity(self.processes.len());
        let mut rest = std::mem::take(&mut self.processes);
        if rest.is_empty() {
            return;
        }
        sorted.push(rest.remove(0));
        let mut have: HashSet<i32> = sorted.iter().map(|p| p.seen.pid.as_raw()).collect();
        while !rest.is_empty() {
            let before = rest.len();
            let (ready, later): (Vec<_>, Vec<_>) = rest.into_iter().partition(|p| {
                let ready = have.contains(&p.seen.ppid);
                if ready {
                    have.insert(p.seen.pid.as_raw());
                }
                ready
            });
            sorted.extend(ready);
            rest = later;
            if rest.len() == before {
                sorted.append(&mut rest); // a stranger's child; the look refuses it by name
            }
        }
        self.processes = sorted;
    }

    /// Bounds all further waits.
    pub(crate) fn set_deadline(&mut self, deadline: Deadline) {
        for seized in self.processes.iter_mut().filter_map(|p| p.seized.as_mut()) {
            seized.set_deadline(deadline);
        }
    }

    /// Lets everything run on as before.
    ///
    /// # Errors
    /// The first task that could not be put back; the others are, nevertheless.
    pub(crate) fn resume(self) -> Result<()> {
        let mut first = None;
        for p in self.processes {
            if let Some(Err(e)) = p.seized.map(SeizedProcess::release) {
                first.get_or_insert(Error::from(e));
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Lets everything go, stopped by SIGSTOP.
    ///
    /// # Errors
    /// As [`FrozenTree::resume`].
    pub(crate) fn stop(self) -> Result<()> {
        for p in self.processes.iter().filter(|p| p.seized.is_some()) {
            p.seen.pidfd.send_signal(libc::SIGSTOP).during("stopping a task").on_task(p.seen.pid.as_raw())?;
        }
        self.resume()
    }

    /// Kills every task; [`FrozenTree::await_death`] waits until they are gone.
    ///
    /// # Errors
    /// A task that cannot be killed.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.processes.iter_mut().filter_map(|p| p.seized.as_mut()).try_for_each(|s| Ok(s.kill_now()?))
    }

    /// Waits until every task is gone that was killed.
    ///
    /// # Errors
    /// A task that does not die in time.
    pub(crate) fn await_death(self) -> Result<()> {
        for seized in self.processes.into_iter().filter_map(|p| p.seized) {
            seized.await_death()?;
        }
        Ok(())
    }
}

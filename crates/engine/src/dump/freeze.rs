//! The tree found and frozen: every process below the root, every thread of it, until nothing new appears.
use super::waits::{self, Waits};
use crate::cgroup::freezer::Freezer;
use crate::error::{OnObject, ResultExt};
use crate::lend::{Lent, lend};
use crate::task::{dispatch, limits};
use crate::{Error, Kind, Object, Result, Stage, Watch, together};
use crust_inject::{Asked, SeizedProcess, SeizedThread};
use crust_kernel::pidfd::PidFd;
use crust_kernel::procfs::{ProcDir, Stat, Status};
use crust_kernel::{Deadline, HostTid, ptrace};
use rustix::process::{Pid, Signal};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

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
    /// Of `live`. It takes a descriptor only while it is looked into.
    pub(crate) proc: Arc<ProcDir>,
    /// Of the leader.
    pub(crate) stat: Stat,
    /// What is known of its threads' waits.
    pub(crate) waits: Waits,
}

impl Seen {
    /// A pidfd of it, for as long as it is looked at: one for each process of a large tree would be too many.
    pub(crate) fn pidfd(&self) -> Result<PidFd> {
        if self.live == self.pid {
            return PidFd::open(self.pid).during("pidfd_open");
        }
        PidFd::open_thread(self.live)
            .during("the thread group's leader has ended; pidfd_open of another thread (Linux 6.9)")
            .map_err(|e| e.kind_is(Kind::Unsupported).help("let the program's main thread live"))
    }
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
        let limit = e.errno().and_then(|errno| limits::out_of_memory(e.task(), errno));
        let help = limit.unwrap_or_else(|| e.help().to_owned());
        Error::new(kind, e.what()).on(Object::Task(e.task().as_raw())).help(help)
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

/// Processes with their parents.
pub(super) type Pairs = Vec<(HostTid, i32)>;

/// Threads from which on only the first is asked for its children while the process runs, and the process itself whether it
/// has any once it stands still.
const CROWD: usize = 64;

/// True if the process, which stands still, has no children for sure. What its first thread is told holds for all threads,
/// whose files would have to be read one by one. Where a call of ours might not come through, nobody is asked.
fn is_childless(process: &mut SeizedProcess) -> bool {
    let Some(first) = process.threads().first().map(SeizedThread::tid) else { return false };
    let free = process.proc().and_then(|p| p.read_text("status").ok()).map(Status::new);
    let free = free.is_some_and(|status| status.number("Seccomp") == Some(0));
    let sends_none = || dispatch::look(&[first]).is_ok_and(|sent| sent.is_empty());
    first == process.pid() && free && sends_none() && process.has_no_children().unwrap_or(false)
}

/// Some processes and all below them, as far as they are seen now: parents before children, nobody twice, and nobody who is
/// in `known`.
pub(super) fn below(some: Pairs, known: &HashSet<HostTid>) -> Pairs {
    let mut listed: HashSet<HostTid> = some.iter().map(|s| s.0).collect();
    let mut all = some;
    let mut i = 0;
    while let Some(&(pid, _)) = all.get(i) {
        // What is gone by now has no children, and whatever is missed is looked for again when all stand still: so nobody asks
        // each of thousands of threads twice.
        let ask = |p: ProcDir| if p.count_threads()? > CROWD { p.children_of([pid]) } else { p.children() };
        let children = ProcDir::open(pid).and_then(ask).unwrap_or_default();
        let new = children.into_iter().filter(|&c| !known.contains(&c) && listed.insert(c));
        all.extend(new.map(|c| (c, pid.as_raw())));
        i += 1;
    }
    all
}

/// A process that stands still.
struct Still {
    pid: HostTid,
    /// `None` for a zombie.
    seized: Option<SeizedProcess>,
    waits: Waits,
}

/// A tree that is being frozen. Dropping it lets it run again.
struct Freezing<'a> {
    deadline: Deadline,
    /// Whether it is still wanted.
    watch: &'a Watch,
    still: Vec<Still>,
    known: HashSet<HostTid>,
    late: Late,
}

/// Those who are to be let go, for which they have to stop first.
#[derive(Default)]
struct Late(HashMap<HostTid, Asked>);

impl Drop for Late {
    fn drop(&mut self) {
        Asked::let_go_all(self.0.drain().map(|(_, asked)| asked).collect());
    }
}

type Answer = crust_inject::Result<Asked>;

/// Processes that were asked at the same time.
struct Round<'a> {
    wanted: &'a Pairs,
    /// Those of them that have children among them.
    parents: HashSet<i32>,
    /// What is not taken yet.
    asked: Vec<Option<Answer>>,
}

impl Freezing<'_> {
    /// Asks some processes and all below them to stop, and waits for them. The number of waits does not grow with the tree's
    /// depth.
    fn add(&mut self, wanted: Pairs) -> Result<()> {
        let wanted = below(wanted, &self.known);
        let waits = waits::look(wanted.iter().map(|w| w.0));
        let ask = |&(pid, _): &(HostTid, i32)| {
            self.watch.go_on()?;
            let late = self.late.0.remove(&pid);
            Ok(Ok(late.unwrap_or_else(|| SeizedProcess::ask_leader(pid, ptrace::Options::default(), self.deadline))))
        };
        let asked = wanted.iter().map(ask).collect::<Result<_>>()?;
        self.take(&wanted, asked, waits)
    }

    /// The same while their control group is frozen, so that none of its tasks can be born meanwhile.
    fn add_frozen(&mut self, wanted: Pairs, freezer: &mut Freezer) -> Result<()> {
        let waits = waits::look(below(wanted.clone(), &self.known).into_iter().map(|w| w.0));
        freezer.freeze(self.deadline, self.watch)?;
        let wanted = below(wanted, &self.known);
        let ask = |&(pid, _): &(HostTid, i32)| SeizedProcess::ask_all(pid, ptrace::Options::default(), self.deadline);
        let asked = wanted.iter().map(ask).collect();
        // First of all: an error below waits for threads to stop, which frozen ones do not.
        freezer.thaw()?;
        self.take(&wanted, asked, waits)
    }

    /// Waits for processes that were asked to stop. One that is gone by now is none of ours any more, unless it is the root.
    fn take(&mut self, wanted: &Pairs, asked: Vec<Answer>, waits: Waits) -> Result<()> {
        let parents = wanted.iter().map(|w| w.1).collect();
        let mut round = Round { wanted, parents, asked: asked.into_iter().map(Some).collect() };
        let taken = self.take_each(&mut round, waits);
        // After an error the others are let go with those who are late: some may wait for each other.
        self.late.0.extend(round.asked.into_iter().flatten().flatten().map(|asked| (asked.pid(), asked)));
        taken
    }

    fn take_each(&mut self, round: &mut Round<'_>, mut waits: Waits) -> Result<()> {
        let wanted = round.wanted;
        for (i, &(pid, ppid)) in wanted.iter().enumerate() {
            let Some(answer) = round.asked.get_mut(i).and_then(Option::take) else { continue };
            let stopped = match answer {
                Ok(asked) => self.await_stop(asked, i, round)?,
                Err(e) => Err(e),
            };
            let mut seized = match stopped {
                Ok(s) => Some(s),
                Err(e) if *e.kind() == crust_inject::Kind::Zombie && ppid != 0 => None,
                Err(e) if *e.kind() == crust_inject::Kind::Gone && ppid != 0 => continue,
                // Its parent ran when it was listed: it may have ended, and the id be somebody else's by now. If it is not, it
                // is found again.
                Err(_) if ppid != 0 && parent_of(pid) != Some(ppid) => continue,
                Err(e) => return Err(e.into()),
            };
            let waits = seized.as_mut().map(|s| waits::of(s, &mut waits)).transpose()?.unwrap_or_default();
            if let Some(proc) = seized.as_ref().and_then(SeizedProcess::proc) {
                proc.rest();
            }
            self.known.insert(pid);
            self.still.push(Still { pid, seized, waits });
        }
        Ok(())
    }

    /// Waits for one of them, as long as that is wanted. In a vfork it does not stop before its child goes on, so those below
    /// it are let go then.
    fn await_stop(
        &mut self,
        mut process: Asked,
        at: usize,
        round: &mut Round<'_>,
    ) -> Result<crust_inject::Result<SeizedProcess>> {
        /// How long it may take before somebody looks why.
        const FIRST: Duration = Duration::from_millis(2);
        const MOST: Duration = Duration::from_millis(50);
        let has_children = round.parents.contains(&process.pid().as_raw());
        let mut patience = if has_children { FIRST } else { MOST };
        loop {
            process = match process.await_stop_for(patience) {
                Ok(Ok(seized)) => return Ok(Ok(seized)),
                Ok(Err(process)) => process,
                Err(e) => return Ok(Err(e)),
            };
            let cancelled = self.watch.go_on().err();
            if cancelled.is_some() || self.deadline.expired() {
                let why = process.timed_out();
                self.late.0.insert(process.pid(), process);
                return cancelled.map_or(Ok(Err(why)), Err);
            }
            if has_children && process.waits_for_vfork() {
                self.let_go_below(at, round);
                self.let_go_late();
            }
            patience = (2 * patience).min(MOST);
        }
    }

    /// Lets those run again who are below one of them. They are found again when that one stands still.
    fn let_go_below(&mut self, at: usize, round: &mut Round<'_>) {
        let wanted = round.wanted;
        let mut above = HashSet::from([wanted[at].0.as_raw()]);
        let below: Vec<usize> = (at + 1..wanted.len())
            .filter(|&i| above.contains(&wanted[i].1) && above.insert(wanted[i].0.as_raw()))
            .collect();
        // From below: whoever waits for a vfork itself stops once its own child may go on.
        for i in below.into_iter().rev() {
            let Some(Ok(process)) = round.asked.get_mut(i).and_then(Option::take) else { continue };
            if let Ok(Err(late)) = process.await_stop_for(Duration::ZERO) {
                self.late.0.insert(wanted[i].0, late);
            }
        }
    }

    /// The same for those who had to wait for a vfork themselves.
    fn let_go_late(&mut self) {
        for (pid, process) in std::mem::take(&mut self.late.0) {
            if let Ok(Err(late)) = process.await_stop_for(Duration::ZERO) {
                self.late.0.insert(pid, late);
            }
        }
    }

    /// Children of some of those that stand still, and adds to `parents` which of them have any.
    fn children(&mut self, of: impl IntoIterator<Item = usize>, parents: &mut Vec<usize>) -> Result<Pairs> {
        let mut found = Vec::new();
        for i in of {
            let Still { pid, seized: Some(seized), .. } = &mut self.still[i] else { continue };
            if seized.threads().len() > CROWD && is_childless(seized) {
                continue;
            }
            let Some(proc) = seized.proc() else { continue };
            let threads: Vec<HostTid> = seized.threads().iter().map(SeizedThread::tid).collect();
            let children = together::each(threads.len(), |i| proc.children_of(threads.get(i).copied()));
            proc.rest();
            let children: rustix::io::Result<Vec<_>> = children.into_iter().collect();
            let children = children.during("listing children").on_task(pid.as_raw())?.concat();
            if !children.is_empty() {
                parents.push(i);
            }
            found.extend(children.into_iter().map(|c| (c, pid.as_raw())));
        }
        Ok(found)
    }

    /// Those who are not known yet.
    fn unknown(&self, pairs: &Pairs) -> Pairs {
        pairs.iter().copied().filter(|c| !self.known.contains(&c.0)).collect()
    }

    /// Adds whoever is found below those that stand still, until nobody is. All children that there are, with their parents.
    fn complete(&mut self) -> Result<Pairs> {
        let mut layer = 0;
        let mut parents = Vec::new();
        loop {
            let mut new = Vec::new();
            let mut pairs = self.children(layer..self.still.len(), &mut new)?;
            let mut wanted = self.unknown(&pairs);
            if wanted.is_empty() {
                // A task whose parent died before it stood still fell to an ancestor, which is frozen already. Who had no
                // child once it stood still is nobody's ancestor.
                pairs.extend(self.children(parents.clone(), &mut Vec::new())?);
                wanted = self.unknown(&pairs);
            }
            if wanted.is_empty() {
                return Ok(pairs);
            }
            self.watch.go_on()?;
            if self.deadline.expired() {
                return Err(Error::new(Kind::Timeout, "the tree forks faster than it can be frozen"));
            }
            parents.append(&mut new);
            layer = self.still.len();
            self.add(wanted)?;
        }
    }

    /// Parents before children. Who is nobody's child any more left the tree before its parent stood still, and runs on.
    fn finish(self, pairs: &Pairs) -> Result<FrozenTree> {
        let mut children: HashMap<i32, Vec<HostTid>> = HashMap::new();
        for &(child, parent) in pairs {
            children.entry(parent).or_default().push(child);
        }
        let mut order: Pairs = self.still.first().map(|root| (root.pid, 0)).into_iter().collect();
        let mut still: HashMap<HostTid, Still> = self.still.into_iter().map(|s| (s.pid, s)).collect();
        let mut tree = FrozenTree { processes: Vec::with_capacity(still.len()) };
        let mut i = 0;
        while let Some(&(pid, ppid)) = order.get(i) {
            i += 1;
            let Some(found) = still.remove(&pid) else { continue };
            order.extend(children.remove(&pid.as_raw()).unwrap_or_default().into_iter().map(|c| (c, pid.as_raw())));
            tree.processes.push(found.see(ppid).on_task(pid.as_raw())?);
        }
        Ok(tree)
    }
}

/// A process's parent now.
fn parent_of(pid: HostTid) -> Option<i32> {
    stat_of(&ProcDir::open(pid).ok()?).map(|s| s.ppid)
}

impl Still {
    /// Looks at it when nothing of the tree runs any more: what is read now is true until it is let go.
    fn see(self, ppid: i32) -> Result<Process> {
        let Self { pid, seized, waits } = self;
        let proc = match seized.as_ref().and_then(SeizedProcess::proc) {
            Some(proc) => proc.clone(),
            None => Arc::new(ProcDir::open(pid).during("opening /proc/PID")?),
        };
        proc.forget();
        let gone = || Error::new(Kind::TargetChanged, "ended while the tree was being frozen");
        let stat = proc.read_kept("stat").ok().and_then(|text| Stat::parse(&text)).ok_or_else(gone)?;
        proc.rest();
        let other = seized.as_ref().filter(|s| s.leader_is_zombie()).and_then(|s| s.threads().first());
        let seen = match other.map(SeizedThread::tid) {
            None => Seen { pid, ppid, live: pid, proc, stat, waits },
            Some(live) => {
                // Memory and descriptors are gone from the leader; its other threads have them.
                let proc = Arc::new(ProcDir::open(live).during("opening /proc/TID")?);
                proc.rest();
                Seen { pid, ppid, live, proc, stat, waits }
            }
        };
        Ok(Process { seen, seized })
    }
}

impl FrozenTree {
    /// Stops every task below `root`: all that are found while they run are asked at once, then a look at the children of
    /// those that stand still goes on until it finds nobody new. While they are first asked, their control group is frozen if
    /// there is a `freezer`.
    ///
    /// # Errors
    /// The task that could not be stopped; everything runs again then.
    pub(crate) fn freeze(
        root: HostTid,
        freezer: Option<&mut Freezer>,
        (deadline, watch): (Deadline, &Watch),
    ) -> Result<Self> {
        let (still, known, late) = Default::default();
        let mut freezing = Freezing { deadline, watch, still, known, late };
        let root = vec![(root, 0)];
        match freezer {
            Some(freezer) => freezing.add_frozen(root, freezer)?,
            None => freezing.add(root)?,
        }
        let pairs = freezing.complete()?;
        freezing.finish(&pairs)
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
    pub(crate) fn resume(mut self) -> Result<()> {
        let first = self.resume_waits().err();
        self.let_go(first)
    }

    /// The time that the tree stood still has passed for its waits, too. Lets threads go ahead of all others whose waits need
    /// it for that.
    fn resume_waits(&mut self) -> Result<()> {
        let mut all = Vec::new();
        for p in &mut self.processes {
            let Some(seized) = &mut p.seized else { continue };
            let waits = &p.seen.waits;
            let again = |t: &SeizedThread| Some((t.tid(), waits.get(&t.tid())?.again_now(t.regs())?));
            for (tid, left) in seized.threads().iter().filter_map(again).collect::<Vec<_>>() {
                seized.call_again(tid, left)?;
            }
            let lent = |t: &SeizedThread| waits.get(&t.tid())?.lent(p.seen.pid, t.tid(), t.regs());
            let ours: Vec<Lent> = seized.threads().iter().filter_map(lent).collect();
            if !ours.is_empty() {
                seized.release_some(|tid| ours.iter().any(|w| w.tid == tid))?;
                all.extend(ours);
            }
        }
        lend(&all);
        Ok(())
    }

    fn let_go(self, mut first: Option<Error>) -> Result<()> {
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
            // A tracee's id is nobody else's.
            let Some(id) = Pid::from_raw(p.seen.pid.as_raw()) else { continue };
            rustix::process::kill_process(id, Signal::STOP)
                .during("stopping a task")
                .on_task(id.as_raw_nonzero().get())?;
        }
        self.let_go(None)
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

//! The tree as the images tell it, and how each task comes to be: whose child it is born as, when, and which helpers must
//! exist for a moment so that sessions and process groups are right.
use crate::images::Source;
use crate::{Error, Kind, Object, Result, Stage};
use crust_image::ImageKind;
use crust_image::proto::{CoreEntry, PstreeEntry, TaskCoreEntry, TaskKobjIdsEntry};
use crust_kernel::NsTid;
use std::collections::{BTreeMap, HashMap, HashSet};

/// What a task is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Runs.
    Alive,
    /// Stopped by this signal.
    Stopped(i32),
    /// A zombie with this wait status.
    Zombie(i32),
    /// Exists only while the tree is built: the dead leader of a session or group.
    Helper,
}

/// When a task is forked, seen from the task that bears it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Birth {
    /// Before the bearer leaves the session it was born in.
    BeforeSetsid,
    /// In the bearer's final session.
    Plain,
    /// In the bearer's final session, but as an orphan: the image's parent is the subreaper above.
    Orphan,
}

/// One process of the tree.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) pid: NsTid,
    pub(crate) ppid: i32,
    pub(crate) pgid: i32,
    pub(crate) sid: i32,
    pub(crate) fate: Fate,
    /// Ids of all threads, leader first; empty for helpers.
    pub(crate) threads: Vec<NsTid>,
    /// One record for each thread.
    pub(crate) cores: Vec<CoreEntry>,
    pub(crate) ids: TaskKobjIdsEntry,
    /// Who bears it (index); the root has none.
    pub(crate) born_by: Option<usize>,
    pub(crate) birth: Birth,
    /// Whom it bears, in order.
    pub(crate) bears: Vec<usize>,
    /// Its process group's leader if that is another task of the tree.
    pub(crate) group_leader: Option<usize>,
    /// It is a child subreaper in the end.
    pub(crate) may_adopt: bool,
    /// Some task is born as an orphan below it, so it must be one from its start on.
    pub(crate) adopts: bool,
}

impl Task {
    /// A task whose place in the tree is not known yet, with nothing in it; `relatives`: parent, group and session.
    pub(crate) fn new(pid: NsTid, relatives: [i32; 3], fate: Fate) -> Self {
        let [ppid, pgid, sid] = relatives;
        Self {
            pid,
            ppid,
            pgid,
            sid,
            fate,
            threads: Vec::new(),
            cores: Vec::new(),
            ids: TaskKobjIdsEntry::default(),
            born_by: None,
            birth: Birth::Plain,
            bears: Vec::new(),
            group_leader: None,
            may_adopt: false,
            adopts: false,
        }
    }

    /// The leader's record.
    pub(crate) fn core(&self) -> Option<&CoreEntry> {
        self.cores.first()
    }

    /// The parent's death signal that thread number `index` sets at the very end, if it has to: a process is tied to ours until
    /// then, its other threads are not.
    pub(crate) fn parting_signal(index: usize, core: &CoreEntry) -> Option<u32> {
        let signal = core.thread_core.as_ref().map_or(0, |t| t.pdeath_sig());
        (index == 0 || signal != 0).then_some(signal)
    }

    /// True if it has memory, descriptors and threads to restore.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.fate, Fate::Alive | Fate::Stopped(_))
    }
}

/// All tasks; the root is the first.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) tasks: Vec<Task>,
    /// The root's process group is the caller's (`--shell-job`).
    pub(crate) foreign_group: bool,
}

const TASK_ALIVE: u32 = 1;
const TASK_DEAD: u32 = 2;
const TASK_STOPPED: u32 = 3;
const TASK_ZOMBIE: u32 = 6;

fn tid(raw: u32, image: &str) -> Result<NsTid> {
    i32::try_from(raw)
        .ok()
        .and_then(NsTid::new)
        .ok_or_else(|| Error::bad_image(image, format!("{raw} is no process id")))
}

impl Tree {
    /// Reads pstree, core and ids images, and works out the births.
    pub(crate) fn read(src: &Source, shell_job: bool) -> Result<Self> {
        let entries: Vec<PstreeEntry> = src.read_all(ImageKind::Pstree, 0)?;
        let mut tasks = Vec::with_capacity(entries.len());
        for e in &entries {
            tasks.push(read_task(src, e)?);
        }
        Self::plan(tasks, shell_job)
    }

    /// The error if no restore could make processes with these relations again: a dump says so before anything is killed.
    pub(crate) fn check_shape<'a>(
        entries: impl Iterator<Item = (&'a PstreeEntry, Option<&'a TaskCoreEntry>)>,
    ) -> Result<()> {
        let task = |(e, tc): (&PstreeEntry, Option<&TaskCoreEntry>)| {
            let fate = if tc.is_some_and(|tc| tc.task_state == TASK_DEAD) { Fate::Zombie(0) } else { Fate::Alive };
            let relatives = [e.ppid, e.pgid, e.sid].map(|id| id as i32);
            let may_adopt = tc.is_some_and(TaskCoreEntry::child_subreaper);
            Ok(Task { may_adopt, ..Task::new(tid(e.pid, "pstree.img")?, relatives, fate) })
        };
        // Foreign sessions have an error of their own.
        Self::plan(entries.map(task).collect::<Result<_>>()?, true).map(drop)
    }

    /// Works out births and helpers for tasks in any order but root first.
    pub(crate) fn plan(tasks: Vec<Task>, shell_job: bool) -> Result<Self> {
        let bad = |what: String| Error::bad_image("pstree.img", what).at(Stage::Read);
        let root = tasks.first().ok_or_else(|| bad("holds no task".into()))?;
        let (root_pid, root_sid, root_pgid) = (root.pid.as_raw(), root.sid, root.pgid);
        let mut index: HashMap<i32, usize> = HashMap::new();
        for (i, t) in tasks.iter().enumerate() {
            if index.insert(t.pid.as_raw(), i).is_some() {
                return Err(bad(format!("pid {} occurs twice", t.pid)));
            }
        }
        let foreign_session = root_sid != root_pid;
        let foreign_group = root_pgid != root_pid && !index.contains_key(&root_pgid);
        if (foreign_session || foreign_group) && !shell_job {
            let what = format!(
                "the session ({root_sid}) or process group ({root_pgid}) of the root task {root_pid} is not in the images"
            );
            return Err(Error::new(Kind::BadRequest, what)
                .help("restore with --shell-job: the tree then joins the session of this terminal")
                .at(Stage::Check));
        }
        let mut tree = Self { tasks, foreign_group };
        tree.link(&index, root_pid, root_sid)?;
        tree.groups(&mut index, root_pgid)?;
        tree.order()?;
        Ok(tree)
    }

    /// Finds each task's bearer from its session.
    fn link(&mut self, index: &HashMap<i32, usize>, root_pid: i32, root_sid: i32) -> Result<()> {
        let bad = |what: String| Error::bad_image("pstree.img", what).at(Stage::Read);
        let mut helpers: BTreeMap<i32, usize> = BTreeMap::new();
        for i in 1..self.tasks.len() {
            let (pid, ppid, sid) = (self.tasks[i].pid.as_raw(), self.tasks[i].ppid, self.tasks[i].sid);
            let parent =
                *index.get(&ppid).ok_or_else(|| bad(format!("task {pid} has parent {ppid}, which is not there")))?;
            if !self.tasks[parent].is_live() {
                return Err(bad(format!("task {pid} has a dead parent {ppid}")));
            }
            let p = &self.tasks[parent];
            let inherited = index.get(&p.ppid).filter(|_| parent != 0).map_or(root_sid, |&g| self.tasks[g].sid);
            let (bearer, birth) = if sid == pid || sid == p.sid {
                (parent, Birth::Plain)
            } else if p.sid == p.pid.as_raw() && parent != 0 && sid == inherited {
                (parent, Birth::BeforeSetsid)
            } else if ppid == root_pid || p.may_adopt {
                self.tasks[parent].adopts = true;
                let leader = match index.get(&sid).or_else(|| helpers.get(&sid)) {
                    Some(&leader) => leader,
                    None => {
                        let h = self.add_helper(sid, sid, sid, parent)?;
                        helpers.insert(sid, h);
                        h
                    }
                };
                (leader, Birth::Orphan)
            } else {
                let what = format!("task {pid} is in session {sid}, which its parent {ppid} cannot have been in");
                return Err(Error::unsupported(what, "end that task, or dump when it has ended").at(Stage::Check));
            };
            self.tasks[i].born_by = Some(bearer);
            self.tasks[i].birth = birth;
        }
        self.check_adoptions(index)
    }

    /// An orphan comes to the next subreaper above who bears it, which must be its parent.
    fn check_adoptions(&self, index: &HashMap<i32, usize>) -> Result<()> {
        for orphan in self.tasks.iter().filter(|t| t.birth == Birth::Orphan) {
            let parent_of = |i: usize| index.get(&self.tasks[i].ppid).copied().filter(|_| i != 0);
            let above = std::iter::successors(orphan.born_by.and_then(parent_of), |&i| parent_of(i));
            let adopter =
                above.take(self.tasks.len()).find(|&i| self.tasks[i].adopts).map(|i| self.tasks[i].pid.as_raw());
            if adopter != Some(orphan.ppid) {
                let what = format!(
                    "task {} is an orphan of session {}, which its parent {} cannot have got from below",
                    orphan.pid, orphan.sid, orphan.ppid
                );
                return Err(Error::unsupported(what, "end that task, or dump when it has ended").at(Stage::Check));
            }
        }
        Ok(())
    }

    /// Finds each task's group leader; dead leaders get helpers.
    fn groups(&mut self, index: &mut HashMap<i32, usize>, root_pgid: i32) -> Result<()> {
        for (i, t) in self.tasks.iter().enumerate() {
            index.entry(t.pid.as_raw()).or_insert(i);
        }
        for i in 0..self.tasks.len() {
            let (pid, pgid, sid) = (self.tasks[i].pid.as_raw(), self.tasks[i].pgid, self.tasks[i].sid);
            if pgid == pid || (self.foreign_group && pgid == root_pgid) {
                continue;
            }
            let leader = match index.get(&pgid) {
                Some(&l) => l,
                None => {
                    // The leader is dead: a helper of the same session leads until all members have joined.
                    let session = *index.get(&sid).unwrap_or(&0);
                    let h = self.add_helper(pgid, pgid, sid, session)?;
                    index.insert(pgid, h);
                    h
                }
            };
            self.tasks[i].group_leader = Some(leader);
        }
        Ok(())
    }

    fn add_helper(&mut self, pid: i32, pgid: i32, sid: i32, bearer: usize) -> Result<usize> {
        let pid = NsTid::new(pid)
            .ok_or_else(|| Error::bad_image("pstree.img", format!("{pid} is no session or process group id")))?;
        let relatives = [self.tasks[bearer].pid.as_raw(), pgid, sid];
        self.tasks.push(Task { born_by: Some(bearer), ..Task::new(pid, relatives, Fate::Helper) });
        Ok(self.tasks.len() - 1)
    }

    /// Fills `bears`, helpers first, and makes sure that everybody descends from the root.
    fn order(&mut self) -> Result<()> {
        for i in 1..self.tasks.len() {
            let bearer = self.tasks[i].born_by.unwrap_or(0);
            let at = if self.tasks[i].fate == Fate::Helper { 0 } else { self.tasks[bearer].bears.len() };
            self.tasks[bearer].bears.insert(at, i);
        }
        let mut seen = HashSet::from([0]);
        let mut todo = vec![0];
        while let Some(i) = todo.pop() {
            for &b in &self.tasks[i].bears {
                if seen.insert(b) {
                    todo.push(b);
                }
            }
        }
        if seen.len() != self.tasks.len() {
            return Err(Error::bad_image("pstree.img", "has tasks that do not descend from the root").at(Stage::Read));
        }
        Ok(())
    }

    /// Threads that will stand at the last barrier.
    pub(crate) fn live_threads(&self) -> usize {
        self.tasks.iter().filter(|t| t.is_live()).map(|t| t.threads.len()).sum()
    }

    /// Those of them that have a step to do behind it.
    pub(crate) fn parting_threads(&self) -> usize {
        let parting =
            |t: &Task| t.cores.iter().enumerate().filter(|(k, c)| Task::parting_signal(*k, c).is_some()).count();
        self.tasks.iter().filter(|t| t.is_live()).map(parting).sum()
    }

    /// Every id the tree takes: pids, thread ids, and those of sessions and groups that helpers hold for a moment.
    pub(crate) fn all_ids(&self) -> Vec<NsTid> {
        let mut ids: Vec<NsTid> = Vec::new();
        for t in &self.tasks {
            ids.push(t.pid);
            ids.extend(t.threads.iter().copied());
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

fn read_task(src: &Source, e: &PstreeEntry) -> Result<Task> {
    let pid = tid(e.pid, "pstree.img")?;
    let leader: CoreEntry = src.read_one(ImageKind::Core, pid.as_raw() as u64)?;
    let mut threads = vec![pid];
    let mut cores = vec![leader];
    // CRIU lists a meaningless thread id for zombies, which have no threads.
    let dead = cores[0].tc.as_ref().is_some_and(|tc| matches!(tc.task_state, TASK_DEAD | TASK_ZOMBIE));
    for &t in e.threads.iter().filter(|_| !dead) {
        let t = tid(t, "pstree.img")?;
        if t != pid {
            threads.push(t);
            cores.push(src.read_one::<CoreEntry>(ImageKind::Core, t.as_raw() as u64)?);
        }
    }
    let name = ImageKind::Core.file_name(pid.as_raw() as u64);
    let tc = cores
        .first()
        .and_then(|c| c.tc.as_ref())
        .ok_or_else(|| Error::bad_image(&name, "has no task part").on(Object::Task(pid.as_raw())))?;
    let fate = match tc.task_state {
        TASK_ALIVE => Fate::Alive,
        TASK_STOPPED => Fate::Stopped(tc.stop_signo.map_or(libc::SIGSTOP, |s| s as i32)),
        TASK_DEAD | TASK_ZOMBIE => Fate::Zombie(tc.exit_code as i32),
        other => return Err(Error::bad_image(&name, format!("says task state {other}, which nobody knows"))),
    };
    let may_adopt = tc.child_subreaper();
    let ids = if matches!(fate, Fate::Zombie(_)) {
        TaskKobjIdsEntry::default()
    } else {
        src.read_one(ImageKind::Ids, pid.as_raw() as u64)?
    };
    let relatives = [e.ppid, e.pgid, e.sid].map(|id| id as i32);
    Ok(Task { may_adopt, threads, cores, ids, ..Task::new(pid, relatives, fate) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(pid: i32, ppid: i32, pgid: i32, sid: i32) -> Task {
        Task::new(NsTid::new(pid).expect("positive"), [ppid, pgid, sid], Fate::Alive)
    }

    #[test]
    fn plain_tree() {
        let tree =
            Tree::plan(vec![task(10, 0, 10, 10), task(11, 10, 10, 10), task(12, 11, 12, 12)], false).expect("plans");
        assert_eq!(tree.tasks[0].bears, [1]);
        assert_eq!(tree.tasks[1].bears, [2]);
        assert_eq!(tree.tasks[1].group_leader, Some(0));
        assert!(tree.tasks.iter().all(|t| t.birth == Birth::Plain && !t.adopts));
    }

    #[test]
    fn child_from_before_setsid() {
        let tree =
            Tree::plan(vec![task(10, 0, 10, 10), task(11, 10, 11, 11), task(12, 11, 10, 10)], false).expect("plans");
        assert_eq!(tree.tasks[2].birth, Birth::BeforeSetsid);
    }

    #[test]
    fn dead_session_leader_gets_a_helper() {
        let tree = Tree::plan(vec![task(10, 0, 10, 10), task(12, 10, 11, 11)], false).expect("plans");
        assert!(tree.tasks[0].adopts);
        assert_eq!((tree.tasks[2].pid.as_raw(), tree.tasks[2].fate), (11, Fate::Helper));
        assert_eq!(
            (tree.tasks[1].born_by, tree.tasks[1].birth, tree.tasks[1].group_leader),
            (Some(2), Birth::Orphan, Some(2))
        );
    }

    #[test]
    fn dead_group_leader_gets_a_helper() {
        let tree = Tree::plan(vec![task(10, 0, 10, 10), task(12, 10, 11, 10)], false).expect("plans");
        assert_eq!((tree.tasks[2].fate, tree.tasks[1].group_leader), (Fate::Helper, Some(2)));
        assert_eq!(tree.all_ids().iter().map(|i| i.as_raw()).collect::<Vec<_>>(), [10, 11, 12]);
    }

    #[test]
    fn orphans_fall_to_the_next_subreaper_that_must_adopt() {
        let subreaper = |t: Task| Task { may_adopt: true, ..t };
        // 13's session leader 12 has died below the subreaper 11, and is a zombie, or gone.
        for leader in [Some(Task { fate: Fate::Zombie(0), ..task(12, 11, 12, 12) }), None] {
            let mut tasks = vec![task(10, 0, 10, 10), subreaper(task(11, 10, 10, 10)), task(13, 11, 12, 12)];
            tasks.extend(leader);
            let tree = Tree::plan(tasks, false).expect("plans");
            let [root, middle, orphan, leader] = &tree.tasks[..] else { panic!("{tree:?}") };
            assert_eq!((root.adopts, middle.adopts, orphan.birth), (false, true, Birth::Orphan));
            assert_eq!((leader.pid.as_raw(), leader.ppid, orphan.born_by), (12, 11, Some(3)));
        }
        // The session of somebody beside it.
        let beside = [task(12, 10, 12, 12), task(13, 11, 12, 12)];
        let beside = [task(10, 0, 10, 10), subreaper(task(11, 10, 10, 10))].into_iter().chain(beside).collect();
        assert!(Tree::plan(beside, false).expect_err("refused").to_string().contains("13"));
    }

    #[test]
    fn foreign_session_wants_shell_job() {
        let error = Tree::plan(vec![task(10, 0, 10, 5)], false).expect_err("refused");
        assert!(error.advice().contains("--shell-job"));
        assert!(Tree::plan(vec![task(10, 0, 10, 5)], true).is_ok());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Tree::plan(vec![], false).is_err());
        assert!(Tree::plan(vec![task(10, 0, 10, 10), task(10, 10, 10, 10)], false).is_err());
        assert!(Tree::plan(vec![task(10, 0, 10, 10), task(11, 99, 10, 10)], false).is_err());
        assert!(Tree::plan(vec![task(10, 0, 10, 10), task(11, 12, 10, 10), task(12, 11, 10, 10)], false).is_err());
    }
}

//! Twins: children of one parent that differ in little but registers, the content of some pages and what files they have
//! open, as a server's workers do.
//! The first of them, the elder, is built in the ordinary way; its plan then forks the others as siblings of itself
//! (CLONE_PARENT) from memory and descriptors that stand already. That is quick, and twins share their pages again, as they
//! did before the dump.
//!
//! A twin inherits everything that [`super::build`] does in Rust, so all of that must be equal in [`alike`]; what stands in
//! plans is its own ([`Changes`]).
use super::build::Cx;
use super::tree::{Birth, Task, Tree};
use crate::files::{self, FileImages};
use crate::task::compat;
use crate::{Error, Kind, Options, Result, memory};
use crust_image::proto::TaskCoreEntry;
use crust_inject::plan::{PlanId, Program};
use std::os::fd::RawFd;

/// Elders that a task is compared with, at most: trees of tasks that all differ must not cost their square.
const CANDIDATES: usize = 8;
/// A group as small as this is not divided.
const SMALL: usize = 16;
/// Children fewer than this are built by themselves. That takes longer, but then they share with their parent also those
/// pages that their elder changed.
const FEW: usize = 8;

/// What a twin's plan changes of what it inherited.
#[derive(Debug)]
pub(super) struct Changes {
    /// The twin.
    pub(super) task: usize,
    memory: memory::twin::Changes,
    files: files::twin::Changes,
}

impl Changes {
    /// What turns `elder` into its twin `task`; to be found in the elder's process.
    pub(super) fn find(cx: &Cx<'_>, elder: usize, task: usize) -> Result<Self> {
        let images = |t: usize| {
            let images = cx.memory.get(t).and_then(Option::as_ref);
            images.ok_or_else(|| Error::new(Kind::Internal, "a twin has no memory images"))
        };
        let table = |t: usize| cx.tree.tasks[t].ids.files_id;
        Ok(Self {
            task,
            memory: memory::twin::changes(cx.source, images(elder)?, images(task)?)?,
            files: cx.files.changes(table(elder), table(task))?,
        })
    }

    /// Bytes of memory to be read.
    pub(super) fn bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// Upper bound of what these changes take in a plan.
    pub(super) fn plan_bytes(&self) -> u64 {
        self.memory.plan_bytes() + self.files.plan_bytes()
    }

    /// Adds the calls that make them. `images` is the number of a descriptor of the image directory.
    pub(super) fn plan(&self, p: &mut Program, plan: PlanId, images: RawFd) {
        self.memory.plan(p, plan, images);
        self.files.plan(p, plan);
    }
}

/// Who is forked from whose plan.
#[derive(Debug, Default)]
pub(super) struct Twins {
    elder: Vec<Option<usize>>,
    twins: Vec<Vec<usize>>,
}

impl Twins {
    /// Finds the twins of a tree. Large groups are divided among as many elders as there are processors.
    pub(super) fn find(tree: &Tree, memory: &[Option<memory::Images>], files: &FileImages, opts: &Options) -> Self {
        let n = tree.tasks.len();
        let mut found = Self { elder: vec![None; n], twins: vec![Vec::new(); n] };
        // For tests: every task is built by itself.
        if cfg!(debug_assertions) && std::env::var_os("CRUST_TEST_NO_TWINS").is_some() {
            return found;
        }
        let alone = alone(tree);
        let mut processors = None;
        for parent in &tree.tasks {
            let mut groups: Vec<Vec<usize>> = Vec::new();
            for &c in parent.bears.iter().filter(|&&c| alone[c]) {
                let same = |g: &&mut Vec<usize>| {
                    let e = g.first().copied().unwrap_or(c);
                    match (&memory[e], &memory[c]) {
                        (Some(ours), Some(theirs)) => {
                            alike(&tree.tasks[e], &tree.tasks[c], files, opts) && memory::twin::alike(ours, theirs)
                        }
                        _ => false,
                    }
                };
                match groups.iter_mut().rev().take(CANDIDATES).find(same) {
                    Some(group) => group.push(c),
                    None => groups.push(vec![c]),
                }
            }
            for group in groups.into_iter().filter(|g| g.len() >= FEW) {
                let ask = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
                let processors = *processors.get_or_insert_with(ask);
                for part in group.chunks(group.len().div_ceil(processors).max(SMALL)) {
                    let [elder, others @ ..] = part else { continue };
                    for &t in others {
                        found.elder[t] = Some(*elder);
                    }
                    found.twins[*elder] = others.to_vec();
                }
            }
        }
        found
    }

    /// Who forks this task, if it is no task that builds itself.
    pub(super) fn elder_of(&self, task: usize) -> Option<usize> {
        self.elder.get(task).copied().flatten()
    }

    /// Whom this task forks in its plan.
    pub(super) fn of(&self, elder: usize) -> &[usize] {
        self.twins.get(elder).map_or(&[], Vec::as_slice)
    }
}

/// For each task, whether all its own kernel objects are its alone.
fn alone(tree: &Tree) -> Vec<bool> {
    use std::collections::HashMap;
    let own = |t: &Task| [t.ids.vm_id, t.ids.files_id, t.ids.fs_id, t.ids.sighand_id];
    let mut users: [HashMap<u32, usize>; 4] = Default::default();
    for t in tree.tasks.iter().filter(|t| t.is_live()) {
        for (map, id) in users.iter_mut().zip(own(t)) {
            *map.entry(id).or_default() += 1;
        }
    }
    let single = |t: &Task| users.iter().zip(own(t)).all(|(map, id)| map.get(&id) == Some(&1));
    tree.tasks.iter().map(single).collect()
}

/// True if `b`, a later child of `a`'s parent, is as `a` in all that a fork passes on and plans do not set.
fn alike(a: &Task, b: &Task, files: &FileImages, opts: &Options) -> bool {
    let born = |t: &Task| (t.born_by, t.ppid, t.birth, t.pgid, t.sid);
    let pid = b.pid.as_raw();
    let plain = a.is_live()
        && b.is_live()
        && a.birth == Birth::Plain
        && b.bears.is_empty()
        && b.pgid != pid
        && b.sid != pid
        && born(a) == born(b)
        && a.core().is_some_and(compat::is) == b.core().is_some_and(compat::is);
    plain
        && inherited(a).is_some_and(|x| inherited(b).is_some_and(|y| x == y))
        && kernel_objects(a) == kernel_objects(b)
        && files.inherits((a.pid.as_raw(), a.ids.files_id), (pid, b.ids.files_id), opts)
}

/// The task's record without what plans set for each task.
fn inherited(t: &Task) -> Option<TaskCoreEntry> {
    let core = t.core()?;
    let cgroup = core.thread_core.as_ref().and_then(|c| c.cg_set);
    let tc = core.tc.as_deref()?;
    Some(TaskCoreEntry {
        task_state: 0,
        exit_code: 0,
        flags: 0,
        blk_sigset: 0,
        blk_sigset_extended: None,
        comm: Vec::new(),
        timers: None,
        rlimits: None,
        cg_set: tc.cg_set.or(cgroup),
        signals_s: None,
        stop_signo: None,
        ..tc.clone()
    })
}

/// Ids of the objects that tasks may share, without those that every fork has for itself.
fn kernel_objects(t: &Task) -> crust_image::proto::TaskKobjIdsEntry {
    crust_image::proto::TaskKobjIdsEntry { vm_id: 0, files_id: 0, fs_id: 0, sighand_id: 0, ..t.ids }
}

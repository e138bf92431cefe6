//! Processes that have a descriptor table, or directories and umask, in common (CLONE_FILES, CLONE_FS). Only a clone makes
//! such a bond: each of them is born so from one that belongs, down from the first. The first alone restores what they share.
use super::tree::{Birth, Task, Tree};
use crate::error::Error;
use crate::{Kind, Object};
use std::collections::HashMap;

/// Groups of tasks that share one kind of object.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// By task: its group, if it is not alone.
    of: Vec<Option<usize>>,
    /// Members in the order of their birth.
    groups: Vec<Vec<usize>>,
}

impl Groups {
    fn find(tree: &Tree, id: impl Fn(&Task) -> u32) -> Self {
        let mut by_id: HashMap<u32, Vec<usize>> = HashMap::new();
        let mut todo = vec![0];
        while let Some(i) = todo.pop() {
            let t = &tree.tasks[i];
            if t.is_live() {
                by_id.entry(id(t)).or_default().push(i);
            }
            todo.extend(t.bears.iter().rev());
        }
        let mut found = Self { of: vec![None; tree.tasks.len()], groups: Vec::new() };
        for members in by_id.into_values().filter(|m| m.len() > 1) {
            for &m in &members {
                found.of[m] = Some(found.groups.len());
            }
            found.groups.push(members);
        }
        found
    }

    /// All who share with this task, itself included; nobody if it is alone.
    pub(super) fn with(&self, task: usize) -> &[usize] {
        let group = self.of.get(task).copied().flatten();
        group.and_then(|g| self.groups.get(g)).map_or(&[], Vec::as_slice)
    }

    /// Who restores what this task has: itself, if it is alone or the first.
    pub(super) fn first(&self, task: usize) -> usize {
        self.with(task).first().copied().unwrap_or(task)
    }

    /// The member that was born before this one.
    pub(super) fn before(&self, task: usize) -> Option<usize> {
        let group = self.with(task);
        let at = group.iter().position(|&m| m == task)?;
        at.checked_sub(1).map(|at| group[at])
    }

    /// True if this task is born with its bearer's object.
    fn is_born_into(&self, tree: &Tree, task: usize) -> bool {
        let group = |t: usize| self.of.get(t).copied().flatten();
        let t = &tree.tasks[task];
        t.birth != Birth::Orphan && group(task).is_some() && t.born_by.is_some_and(|b| group(b) == group(task))
    }
}

/// Who shares what in a tree.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    /// Descriptor tables.
    pub(super) files: Groups,
    /// Root and working directory, and umask.
    pub(super) fs: Groups,
}

impl Sharing {
    pub(super) fn find(tree: &Tree) -> Self {
        Self { files: Groups::find(tree, |t| t.ids.files_id), fs: Groups::find(tree, |t| t.ids.fs_id) }
    }

    /// What the bearer of this task passes to clone.
    pub(super) fn clone_flags(&self, tree: &Tree, task: usize) -> u64 {
        let kinds = [(&self.files, libc::CLONE_FILES), (&self.fs, libc::CLONE_FS)];
        let flags = kinds.iter().filter(|(groups, _)| groups.is_born_into(tree, task));
        flags.fold(0, |all, (_, flag)| all | *flag as u64)
    }

    /// Those whose bond no clone from their bearer would make.
    pub(super) fn check(&self, tree: &Tree) -> Vec<Error> {
        let mut errors = Vec::new();
        for (groups, what) in [(&self.files, "descriptor table"), (&self.fs, "directories and umask")] {
            for &m in groups.groups.iter().flatten() {
                let first = groups.first(m);
                if m != first && !groups.is_born_into(tree, m) {
                    let (t, first) = (&tree.tasks[m], tree.tasks[first].pid);
                    let text = format!("shares its {what} with task {first}, and does not come from there");
                    let help = "only a child can be given what its parent has";
                    errors.push(Error::new(Kind::Unsupported, text).help(help).on(Object::Task(t.pid.as_raw())));
                }
            }
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::Fate;
    use super::*;
    use crust_image::proto::TaskKobjIdsEntry;
    use crust_kernel::NsTid;

    fn task(pid: i32, ppid: i32, files_id: u32, fs_id: u32) -> Task {
        let id = NsTid::new(pid).expect("positive");
        let ids = TaskKobjIdsEntry { files_id, fs_id, ..Default::default() };
        Task { threads: vec![id], ids, ..Task::new(id, [ppid, 10, 10], Fate::Alive) }
    }

    #[test]
    fn a_bond_goes_from_parent_to_child() {
        let tasks = vec![task(10, 0, 1, 1), task(11, 10, 1, 2), task(12, 11, 1, 2), task(13, 12, 4, 3)];
        let tree = Tree::plan(tasks, false).expect("plans");
        let s = Sharing::find(&tree);
        assert!(s.check(&tree).is_empty());
        let flags: Vec<u64> = (0..4).map(|i| s.clone_flags(&tree, i)).collect();
        assert_eq!(flags, [0, libc::CLONE_FILES as u64, (libc::CLONE_FILES | libc::CLONE_FS) as u64, 0]);
        assert_eq!((s.files.first(2), s.fs.first(2), s.fs.first(3)), (0, 1, 3));
        assert_eq!((s.files.before(2), s.files.before(0), s.fs.before(2)), (Some(1), None, Some(1)));
    }

    #[test]
    fn siblings_without_their_parent_are_named() {
        let tree = Tree::plan(vec![task(10, 0, 1, 1), task(11, 10, 2, 2), task(12, 10, 2, 3)], false).expect("plans");
        let errors = Sharing::find(&tree).check(&tree);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].headline().contains("descriptor table") && errors[0].to_string().contains("12"));
    }
}

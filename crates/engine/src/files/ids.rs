//! Identity of kernel objects over a whole tree: kcmp(2) gives an order, a search tree per cheap key keeps it linear.
use crate::{Result, ResultExt};
use crust_kernel::kcmp::{self, Shared};
use crust_kernel::{HostTid, TargetFd};
use rustix::io::Errno;
use std::cmp::Ordering;
use std::collections::HashMap;

/// A binary search tree ordered by the kernel. The kernel's order is scrambled, so the tree needs no balancing.
#[derive(Debug)]
struct Tree<T> {
    nodes: Vec<Node<T>>,
}

#[derive(Debug)]
struct Node<T> {
    item: T,
    id: u32,
    less: Option<usize>,
    greater: Option<usize>,
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self { nodes: Vec::new() }
    }
}

impl<T> Tree<T> {
    /// The id of the equal item; else inserts `item` under `next()`. The flag says whether it is new.
    fn intern<E>(
        &mut self,
        item: T,
        next: impl FnOnce() -> u32,
        mut compare: impl FnMut(&T, &T) -> std::result::Result<Ordering, E>,
    ) -> std::result::Result<(u32, bool), E> {
        let mut at = if self.nodes.is_empty() { None } else { Some(0) };
        let mut link = None;
        while let Some(i) = at {
            let node = &self.nodes[i];
            match compare(&item, &node.item)? {
                Ordering::Equal => return Ok((node.id, false)),
                Ordering::Less => (at, link) = (node.less, Some((i, true))),
                Ordering::Greater => (at, link) = (node.greater, Some((i, false))),
            }
        }
        let id = next();
        let new = self.nodes.len();
        self.nodes.push(Node { item, id, less: None, greater: None });
        match link {
            Some((parent, true)) => self.nodes[parent].less = Some(new),
            Some((parent, false)) => self.nodes[parent].greater = Some(new),
            None => {}
        }
        Ok((id, true))
    }
}

/// What two descriptors of one open file description always have in common, and others rarely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileKey {
    pub(super) dev: u64,
    pub(super) ino: u64,
    pub(super) pos: u64,
    pub(super) flags: u32,
    pub(super) mnt_id: i32,
    /// A number of the kind's own where all files of the kind share an inode (`eventfd-id`), else 0.
    pub(super) own: u64,
}

/// Ids of open file descriptions.
#[derive(Debug, Default)]
pub(super) struct FileIds {
    by_key: HashMap<FileKey, Tree<(HostTid, TargetFd)>>,
}

impl FileIds {
    /// The file's id; `next` is asked for one if the file was not seen before.
    pub(super) fn intern(
        &mut self,
        key: FileKey,
        at: (HostTid, TargetFd),
        next: impl FnOnce() -> u32,
    ) -> std::result::Result<(u32, bool), Errno> {
        self.by_key.entry(key).or_default().intern(at, next, |a, b| kcmp::file(*a, *b))
    }
}

/// Ids of the objects that tasks may share (`task_kobj_ids_entry`): equal id, same object. Ids start at 1 per kind.
#[derive(Debug, Default)]
pub struct TaskIds {
    trees: HashMap<Shared, (Tree<HostTid>, u32)>,
}

impl TaskIds {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The id of the object of kind `what` that `task` uses, and whether this is the first task seen with it.
    ///
    /// # Errors
    /// The task is gone, or we may not look at it.
    pub fn intern(&mut self, task: HostTid, what: Shared) -> Result<(u32, bool)> {
        let (tree, count) = self.trees.entry(what).or_default();
        let next = || {
            *count += 1;
            *count
        };
        tree.intern(task, next, |a, b| kcmp::task(*a, *b, what))
            .during("comparing what two tasks share (kcmp)")
            .map_err(|e| e.on(crate::Object::Task(task.as_raw())))
    }
}

/// Ids of tables of signal handlers. Who shares one shares the address space too (CLONE_SIGHAND demands CLONE_VM, and exec
/// ends both), so that only those need comparing.
#[derive(Debug, Default)]
pub struct SighandIds {
    by_vm: HashMap<u32, Vec<(HostTid, u32)>>,
    count: u32,
}

impl SighandIds {
    /// The id of the handlers of `task`, whose address space has the id `vm`.
    ///
    /// # Errors
    /// As [`TaskIds::intern`].
    pub fn intern(&mut self, task: HostTid, vm: u32) -> Result<u32> {
        let neighbours = self.by_vm.entry(vm).or_default();
        for &(other, id) in neighbours.iter() {
            let order = kcmp::task(task, other, Shared::Sighand).during("comparing what two tasks share (kcmp)");
            if order.map_err(|e| e.on(crate::Object::Task(task.as_raw())))? == Ordering::Equal {
                return Ok(id);
            }
        }
        self.count += 1;
        neighbours.push((task, self.count));
        Ok(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tree_finds_every_equal_item() {
        let mut tree = Tree::default();
        let mut count = 0u32;
        let mut of = |n: u64| {
            let next = || {
                count += 1;
                count
            };
            tree.intern(n, next, |a, b| Ok::<_, ()>((a.wrapping_mul(0x9E37_79B9)).cmp(&b.wrapping_mul(0x9E37_79B9))))
        };
        let first: Vec<_> = (0..1000).map(|n| of(n).expect("no error")).collect();
        assert!(first.iter().all(|(_, new)| *new));
        for (n, (id, _)) in first.iter().enumerate() {
            assert_eq!(of(n as u64), Ok((*id, false)));
        }
    }

    #[test]
    fn own_threads_share_everything() {
        let me = HostTid::new(std::process::id() as i32).expect("a pid");
        let mut ids = TaskIds::new();
        assert_eq!(ids.intern(me, Shared::Files).expect("kcmp"), (1, true));
        assert_eq!(ids.intern(me, Shared::Files).expect("kcmp"), (1, false));
        assert_eq!(ids.intern(me, Shared::Vm).expect("kcmp"), (1, true));
    }
}

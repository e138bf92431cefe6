//! Identity of kernel objects over a whole tree: kcmp(2) gives an order, a search tree per cheap key keeps it linear.
use crate::{Result, ResultExt};
use crust_kernel::kcmp::{self, Shared};
use crust_kernel::{HostTid, TargetFd};
use rustix::io::Errno;
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

/// A binary search tree ordered by the kernel. Whenever it has doubled its owner makes it as flat as can be: a comparison is a system
/// call, and a tree grown at random needs a third more of them.
#[derive(Debug)]
struct Tree<T> {
    nodes: Vec<Node<T>>,
    root: Option<usize>,
    /// Size at the last time.
    balanced: usize,
    /// Changes with every rebuilding, which makes places found before worthless.
    shape: u32,
}

#[derive(Debug)]
struct Node<T> {
    item: T,
    id: u32,
    less: Option<usize>,
    greater: Option<usize>,
}

/// What a search ended at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Known(u32),
    Free(Place),
}

/// Where an item would have to be put: below which node, and at its lesser side or not. `None`: the tree is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    shape: u32,
    below: Option<(usize, bool)>,
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self { nodes: Vec::new(), root: None, balanced: 0, shape: 0 }
    }
}

impl<T> Tree<T> {
    fn child(&self, place: Place) -> Option<usize> {
        match place.below {
            Some((parent, less)) if place.shape == self.shape => {
                let node = self.nodes.get(parent)?;
                if less { node.less } else { node.greater }
            }
            _ => self.root,
        }
    }

    /// Goes on from a place that was free; the tree may have grown since.
    fn search<E>(
        &self,
        mut place: Place,
        mut compare: impl FnMut(&T) -> std::result::Result<Ordering, E>,
    ) -> std::result::Result<Found, E> {
        if place.shape != self.shape {
            place = Place { shape: self.shape, below: None };
        }
        while let Some(i) = self.child(place) {
            let node = &self.nodes[i];
            match compare(&node.item)? {
                Ordering::Equal => return Ok(Found::Known(node.id)),
                less => place.below = Some((i, less == Ordering::Less)),
            }
        }
        Ok(Found::Free(place))
    }

    /// Puts an item at a place that is free.
    fn insert(&mut self, place: Place, item: T, id: u32) {
        let new = self.nodes.len();
        self.nodes.push(Node { item, id, less: None, greater: None });
        match place.below {
            Some((parent, true)) => self.nodes[parent].less = Some(new),
            Some((parent, false)) => self.nodes[parent].greater = Some(new),
            None => self.root = Some(new),
        }
    }

    /// True if it has doubled since it was made flat.
    fn is_due(&self) -> bool {
        self.nodes.len() > 2 * self.balanced + 2
    }

    /// The id of the equal item; else inserts `item` under `next()`. The flag says whether it is new.
    fn intern<E>(
        &mut self,
        from: Place,
        item: T,
        next: impl FnOnce() -> u32,
        mut compare: impl FnMut(&T, &T) -> std::result::Result<Ordering, E>,
    ) -> std::result::Result<(u32, bool), E> {
        match self.search(from, |node| compare(&item, node))? {
            Found::Known(id) => Ok((id, false)),
            Found::Free(place) => {
                let id = next();
                self.insert(place, item, id);
                Ok((id, true))
            }
        }
    }

    fn balance(&mut self) {
        let mut sorted = Vec::with_capacity(self.nodes.len());
        let mut above = Vec::new();
        let mut at = self.root;
        loop {
            while let Some(i) = at {
                above.push(i);
                at = self.nodes[i].less;
            }
            let Some(i) = above.pop() else { break };
            sorted.push(i);
            at = self.nodes[i].greater;
        }
        self.root = self.link(&sorted);
        self.balanced = self.nodes.len();
        self.shape = self.shape.wrapping_add(1);
    }

    /// Links nodes in order to a tree as flat as can be; gives its root.
    fn link(&mut self, sorted: &[usize]) -> Option<usize> {
        let (less, rest) = sorted.split_at(sorted.len() / 2);
        let (&middle, greater) = rest.split_first()?;
        self.nodes[middle].less = self.link(less);
        self.nodes[middle].greater = self.link(greater);
        Some(middle)
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
    /// Trees to be made flat.
    due: HashSet<FileKey>,
}

/// How far a file was searched for. Files that came since may still be it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Searched(Option<Found>);

impl Searched {
    /// True if the file was found.
    pub(super) fn is_known(self) -> bool {
        matches!(self.0, Some(Found::Known(_)))
    }
}

impl FileIds {
    /// Searches among the files so far, for [`FileIds::intern`] to go on from.
    pub(super) fn search(&self, key: &FileKey, at: (HostTid, TargetFd)) -> std::result::Result<Searched, Errno> {
        let Some(tree) = self.by_key.get(key) else { return Ok(Searched(None)) };
        tree.search(Place::default(), |known| kcmp::file(at, *known)).map(|found| Searched(Some(found)))
    }

    /// The file's id; `next` is asked for one if the file was not seen before.
    pub(super) fn intern(
        &mut self,
        key: FileKey,
        at: (HostTid, TargetFd),
        searched: Searched,
        next: impl FnOnce() -> u32,
    ) -> std::result::Result<(u32, bool), Errno> {
        let from = match searched.0 {
            Some(Found::Known(id)) => return Ok((id, false)),
            Some(Found::Free(place)) => place,
            None => Place::default(),
        };
        let tree = self.by_key.entry(key).or_default();
        let interned = tree.intern(from, at, next, |a, b| kcmp::file(*a, *b))?;
        if tree.is_due() {
            self.due.insert(key);
        }
        Ok(interned)
    }

    /// Makes trees flat that have grown. Searches from before start over.
    pub(super) fn tidy(&mut self) {
        for key in self.due.drain() {
            if let Some(tree) = self.by_key.get_mut(&key) {
                tree.balance();
            }
        }
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
        if tree.is_due() {
            tree.balance();
        }
        tree.intern(Place::default(), task, next, |a, b| kcmp::task(*a, *b, what))
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

    fn scrambled(a: &u64, b: &u64) -> std::result::Result<Ordering, ()> {
        Ok(a.wrapping_mul(0x9E37_79B9_7F4A_7C15).cmp(&b.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
    }

    #[test]
    fn tree_finds_every_equal_item() {
        let mut tree = Tree::default();
        let mut count = 0u32;
        let mut of = |n: u64| {
            let next = || {
                count += 1;
                count
            };
            if tree.is_due() {
                tree.balance();
            }
            tree.intern(Place::default(), n, next, scrambled)
        };
        let first: Vec<_> = (0..1000).map(|n| of(n).expect("no error")).collect();
        assert!(first.iter().all(|(_, new)| *new));
        for (n, (id, _)) in first.iter().enumerate() {
            assert_eq!(of(n as u64), Ok((*id, false)));
        }
    }

    #[test]
    fn a_search_goes_on_where_it_ended_while_the_tree_grows() {
        let mut tree = Tree::default();
        for batch in 0..50u64 {
            if batch % 3 == 2 {
                tree.balance();
            }
            let items: Vec<u64> = (0..40).map(|n| (batch * 40 + n) / 2).collect();
            let searched: Vec<Found> = items
                .iter()
                .map(|n| tree.search(Place::default(), |known| scrambled(n, known)).expect("no error"))
                .collect();
            for (i, (n, found)) in items.iter().zip(searched).enumerate() {
                let Found::Free(place) = found else { panic!("{n} was not there yet") };
                let next = tree.nodes.len() as u32;
                assert_eq!(tree.intern(place, *n, || next, scrambled), Ok((*n as u32, i % 2 == 0)));
            }
        }
        assert_eq!(tree.nodes.len(), 1000);
    }

    #[test]
    fn a_large_tree_is_flat() {
        let mut tree = Tree::default();
        let mut compared = 0;
        for n in 0..10_000u64 {
            if tree.is_due() {
                tree.balance();
            }
            let compare = |a: &u64, b: &u64| {
                compared += 1;
                scrambled(a, b)
            };
            tree.intern(Place::default(), n, || n as u32, compare).expect("no error");
        }
        // The best possible is 12.1 each (the binary logarithm of 10000 factorial); a tree that just grows needs 16.
        assert!(compared < 10_000 * 135 / 10, "{compared}");
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

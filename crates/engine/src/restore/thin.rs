//! Cheap forks: a tree's records are tens of megabytes, and each task is a fork of the one that read them. What the root task
//! has on its heap by then becomes a private mapping of a file in memory: a fork copies no page tables for that, and a
//! child maps only what it looks at. So does what the dynamic linker has made read-only: every mapping with pages of its own
//! costs each of a row of descendants more than the one before, as the kernel links it to those of all ancestors.
#![allow(unsafe_code, reason = "replaces our own memory by a copy of itself")]
use super::tree::Tree;
use crate::Result;
use crate::memory::layout;
use crust_kernel::maps::Mapping;
use crust_kernel::rehome::rehome;
use rustix::fs::MemfdFlags;
use std::os::fd::AsFd;

/// A tree of fewer tasks is not worth it.
const FEW_TASKS: usize = 16;
/// Nor are mappings as small as this.
const SMALL: u64 = 128 << 10;
/// A mapping of ours that is larger is not moved again: its pages would be there once for every time.
const MOVED_AGAIN: u64 = 2 << 20;
/// After so many generations a task begins anew with memory that it shares with no ancestor. It is a small part of the tasks
/// that so have pages of their own which they shared before, and the cost of a fork stays below that of so many ancestors.
const GENERATIONS: usize = 64;
/// Bytes that are there twice for a moment.
const PIECE: u64 = 16 << 20;

/// To be called in the root task, before it maps anything of the program's and before it forks.
///
/// # Errors
/// If our own mappings cannot be read. Memory that cannot be moved stays where it is.
pub(super) fn prepare(tree: &Tree) -> Result<()> {
    if tree.tasks.len() < FEW_TASKS {
        return Ok(());
    }
    let own = layout::own()?;
    let after = own.iter().skip(1).map(Some).chain([None]);
    let ranges: Vec<&Mapping> =
        own.iter().zip(after).filter(|(m, next)| is_heap(m) || is_relocated(m, *next)).map(|(m, _)| m).collect();
    if let Err(e) = move_all(&ranges) {
        log::debug!("forks copy what is left of our memory: {e}");
    }
    Ok(())
}

/// True if task `i` is to have nothing of what its ancestors share with each other.
pub(super) fn begins_anew(tree: &Tree, i: usize) -> bool {
    let bearer = |&i: &usize| tree.tasks[i].born_by;
    let generation = std::iter::successors(Some(i), bearer).count() - 1;
    generation > 0 && generation.is_multiple_of(GENERATIONS)
}

/// To be called in a task that begins anew, before it maps anything of the program's and before it forks: what was written to
/// since the root's [`prepare`] is linked to the same of every ancestor.
///
/// # Errors
/// If our own mappings cannot be read. Memory that cannot be moved stays where it is.
pub(super) fn prepare_again() -> Result<()> {
    let on_stack = 0u8;
    // What the calls that move memory write to themselves.
    let in_use = [&raw const on_stack as u64, crust_kernel::process::errno_address()];
    let own = layout::own()?;
    let private = |m: &&Mapping| {
        let named = m.inode == 0 && !matches!(m.name.as_slice(), b"" | b"[heap]");
        m.read && m.write && !m.exec && !m.shared && !named && m.len_bytes() <= MOVED_AGAIN
    };
    let is_in_use = |m: &Mapping| in_use.iter().any(|a| (m.start..m.end).contains(a));
    let ranges: Vec<&Mapping> = own.iter().filter(private).filter(|m| !is_in_use(m)).collect();
    if let Err(e) = move_all(&ranges) {
        log::debug!("forks copy what is left of our memory: {e}");
    }
    Ok(())
}

fn move_all(ranges: &[&Mapping]) -> rustix::io::Result<()> {
    let file = rustix::fs::memfd_create("crust", MemfdFlags::CLOEXEC)?;
    let mut offset = 0;
    for m in ranges {
        let prot = libc::PROT_READ | if m.write { libc::PROT_WRITE } else { 0 };
        let mut at = m.start;
        while at < m.end {
            let len = PIECE.min(m.end - at);
            // SAFETY: private and readable memory, by what chose it; a task is single-threaded; nobody else has the file.
            unsafe { rehome(file.as_fd(), offset, (at, len), prot) }?;
            (at, offset) = (at + len, offset + len);
        }
    }
    Ok(())
}

/// What the dynamic linker has written to and then made read-only (RELRO): it lies before a writable part of the same file.
fn is_relocated(m: &Mapping, next: Option<&Mapping>) -> bool {
    let before_data = next.is_some_and(|n| n.start == m.end && n.write && n.inode == m.inode && n.dev == m.dev);
    m.inode != 0 && m.read && !m.write && !m.exec && !m.shared && before_data
}

fn is_heap(m: &Mapping) -> bool {
    let anonymous = m.inode == 0 && matches!(m.name.as_slice(), b"" | b"[heap]");
    anonymous && m.read && m.write && !m.exec && !m.shared && m.len_bytes() > SMALL
}

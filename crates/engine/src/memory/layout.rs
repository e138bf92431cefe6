//! Address ranges: what this process occupies, what the restored one will, and holes that are free in both.
use crate::Result;
use crate::error::ResultExt;
use crust_inject::arch::compat;
use crust_kernel::ids::PAGE_SIZE;
use crust_kernel::maps::{self, Mapping};
use crust_kernel::procfs::ProcDir;
use crust_kernel::remote_mem::RemoteMem;
use crust_kernel::{HostTid, VirtAddr, mman};

/// Sorts ranges and joins those that touch or overlap. What comes in order is joined as it comes.
pub fn merged(ranges: impl IntoIterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut all: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        match all.last_mut() {
            Some(last) if (last.0..=last.1).contains(&start) => last.1 = last.1.max(end),
            _ => all.push((start, end)),
        }
    }
    all.sort_unstable();
    all.dedup_by(|next, last| {
        let joins = next.0 <= last.1;
        if joins {
            last.1 = last.1.max(next.1);
        }
        joins
    });
    all
}

/// True if `start..end` meets none of the merged ranges.
pub fn is_free(ranges: &[(u64, u64)], start: u64, end: u64) -> bool {
    let next = ranges.partition_point(|r| r.1 <= start);
    ranges.get(next).is_none_or(|r| r.0 >= end)
}

/// The lowest free range of `len` bytes at `align`, far above the addresses of null and small programs and away from where
/// the kernel itself likes to put new mappings. `occupied` is merged.
pub fn find_hole(occupied: &[(u64, u64)], len: u64, align: u64) -> Option<u64> {
    const LOWEST: u64 = 0x10_0000_0000;
    hole_within(occupied, len, align, (LOWEST, super::TASK_SIZE), MARGIN)
}

/// A free range of `len` bytes that 32-bit code reaches.
pub fn find_low_hole(occupied: &[(u64, u64)], len: u64) -> Option<u64> {
    /// Lower addresses may be the kernel's to refuse (vm.mmap_min_addr).
    const LOWEST: u64 = 1 << 20;
    let within = |margin| hole_within(occupied, len, PAGE_SIZE, (LOWEST, compat::END), margin);
    within(MARGIN).or_else(|| within(PAGE_SIZE))
}

/// A stack may grow into what lies below a range.
const MARGIN: u64 = 16 << 20;

fn hole_within(occupied: &[(u64, u64)], len: u64, align: u64, (from, to): (u64, u64), margin: u64) -> Option<u64> {
    let mut at = from.next_multiple_of(align);
    for &(start, end) in occupied {
        if at + len + margin <= start.min(to) {
            return Some(at);
        }
        at = at.max((end + margin).next_multiple_of(align));
    }
    (at + len + margin <= to).then_some(at)
}

/// This process's mappings now, below the end of user space.
///
/// # Errors
/// If /proc/self/maps cannot be read.
pub fn own() -> Result<Vec<Mapping>> {
    let mut all = maps::read_own_maps().during("reading our own mappings")?;
    all.retain(|m| m.end <= super::TASK_SIZE);
    Ok(all)
}

/// The ranges that must not be mapped over while this process still runs its own code.
pub fn busy(own: &[Mapping]) -> Vec<(u64, u64)> {
    // The kernel grows our stack downwards, and refuses to if something comes near.
    const STACK: u64 = 8 << 20;
    const GAP: u64 = 2 << 20;
    let ranges = own.iter().map(|m| match m.name.as_slice() {
        b"[stack]" => (m.end.saturating_sub(STACK + GAP).min(m.start), m.end),
        _ => (m.start, m.end),
    });
    merged(ranges)
}

/// The kernel's own mappings of a process: the vDSO's data, in one or more parts, and its code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Special {
    /// `[vvar]` and its neighbours, in address order.
    pub vvar: Vec<(u64, u64)>,
    /// `[vdso]`.
    pub vdso: Option<(u64, u64)>,
}

impl Special {
    /// Finds them by name.
    pub fn of(own: &[Mapping]) -> Self {
        let mut found = Self::default();
        for m in own {
            match m.name.as_slice() {
                b"[vvar]" | b"[vvar_vclock]" => found.vvar.push((m.start, m.end)),
                b"[vdso]" => found.vdso = Some((m.start, m.end)),
                _ => {}
            }
        }
        found
    }

    /// First address and length of both together, if there are any.
    pub fn span(&self) -> Option<(u64, u64)> {
        let all = self.vvar.iter().copied().chain(self.vdso);
        let start = all.clone().map(|r| r.0).min()?;
        Some((start, all.map(|r| r.1).max()? - start))
    }
}

/// The bytes of our own vDSO.
pub(super) fn own_vdso(special: &Special) -> Option<&'static [u8]> {
    // The same in every process of this kernel, wherever it lies: read once, before the first fork.
    static BYTES: std::sync::OnceLock<Option<Vec<u8>>> = std::sync::OnceLock::new();
    let read = || {
        let (start, end) = special.vdso?;
        let mut bytes = vec![0; (end - start) as usize];
        let id = HostTid::new(rustix::process::getpid().as_raw_nonzero().get())?;
        let n = mman::process_vm_readv(id, &[(start, end - start)], &mut bytes).ok()?;
        (n == end - start).then_some(bytes)
    };
    special.vdso.and_then(|_| BYTES.get_or_init(read).as_deref())
}

impl Special {
    /// Those that the kernel gives to 32-bit programs, wherever it likes; and the code's bytes.
    pub(super) fn of_32bit() -> Option<(Self, &'static [u8])> {
        let found = compat::vdso()?;
        Some((Self { vvar: found.vvar.clone(), vdso: Some(found.vdso) }, &found.code))
    }
}

/// Where the contents of this kernel's vDSO end, counted from its start.
pub fn vdso_content_len(of_32bit: bool) -> Option<u64> {
    if of_32bit {
        return crust_inject::elf_content_len(&compat::vdso()?.code);
    }
    static LEN: std::sync::OnceLock<Option<u64>> = std::sync::OnceLock::new();
    *LEN.get_or_init(|| crust_inject::elf_content_len(own_vdso(&Special::of(&own().ok()?))?))
}

/// Offset of a system call instruction inside the vDSO of this kernel. It is ordinary code that stays when everything of
/// ours is gone.
pub fn syscall_offset(of_32bit: bool) -> Option<u64> {
    let at = if of_32bit {
        compat::find_int80(&compat::vdso()?.code)
    } else {
        crate::task::regs::find_syscall(own_vdso(&Special::of(&own().ok()?))?)
    };
    at.map(|at| at as u64)
}

/// True if the vDSO of 64-bit programs has data of its own on this kernel.
pub fn kernel_has_vvar() -> bool {
    own().is_ok_and(|own| !Special::of(&own).vvar.is_empty())
}

/// Address of a system call instruction in the code of a 64-bit program that has no vDSO, as [`syscall_offset`] in those that
/// have one. `except`: start and length of what is ours in it.
///
/// # Errors
/// Its mappings cannot be read.
pub fn syscall_in_code(proc: &ProcDir, pid: HostTid, except: (u64, u64)) -> Result<Option<u64>> {
    const STEP: u64 = 1 << 20;
    let mem = RemoteMem::open_read_only(pid).during("opening its memory")?;
    let all = maps::read_maps(proc).during("reading its mappings")?;
    let ours = |m: &Mapping| m.start < except.0 + except.1 && except.0 < m.end;
    for m in all.iter().filter(|m| m.read && m.exec && m.name != b"[vsyscall]" && !ours(m)) {
        for at in (m.start..m.end).step_by(STEP as usize) {
            // An instruction may stand across the end of a step.
            let mut code = vec![0; (m.end - at).min(STEP + 1) as usize];
            if mem.read(VirtAddr(at), &mut code).is_ok()
                && let Some(inside) = crate::task::regs::find_syscall(&code)
            {
                return Ok(Some(at + inside as u64));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let all = merged(vec![(0x30, 0x40), (0x10, 0x20), (0x20, 0x28), (0x35, 0x38)]);
        assert_eq!(all, [(0x10, 0x28), (0x30, 0x40)]);
        assert!(is_free(&all, 0x28, 0x30) && is_free(&all, 0, 0x10) && is_free(&all, 0x40, 0x50));
        assert!(!is_free(&all, 0x27, 0x30) && !is_free(&all, 0, 0x100) && !is_free(&all, 0x32, 0x33));
    }

    #[test]
    fn holes_are_free() {
        let own = own().expect("own mappings");
        let busy = busy(&own);
        let at = find_hole(&busy, 1 << 30, 2 << 20).expect("there is room");
        assert!(at.is_multiple_of(2 << 20) && is_free(&busy, at, at + (1 << 30)));
        assert_eq!(find_hole(&[(0, super::super::TASK_SIZE)], 4096, 4096), None);
        assert_eq!(find_low_hole(&[(0, 0xffff_0000)], 4096), Some(0xffff_1000));
        assert_eq!(find_low_hole(&[(0, 0xffff_0000)], 1 << 20), None);
        assert_eq!(find_low_hole(&[(0x1000_0000, 1 << 40)], 1 << 20), Some(1 << 20));
    }

    #[test]
    fn our_own_vdso_is_found() {
        let own = own().expect("own mappings");
        let special = Special::of(&own);
        assert!(special.vdso.is_some() && !special.vvar.is_empty());
        assert_eq!(own_vdso(&special).expect("readable")[..4], *b"\x7fELF");
    }
}

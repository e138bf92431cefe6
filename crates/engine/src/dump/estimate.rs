//! How much room the images will need, asked while the tree still runs.
//!
//! What processes hold in anonymous memory and swap is written nearly as it is; only pages of zeros are left out. Where that
//! much is free, nothing more is asked; where even all memory in use on this machine would fit, not so much as that. Else the bytes that are certainly no zeros by accident decide: anonymous memory
//! without its huge pages, of which a program may have touched a byte each. Shared memory is not counted, because each
//! process of a tree would count it again.
use super::freeze::below;
use crate::Result;
use crate::images::Partial;
use crust_kernel::HostTid;
use crust_kernel::procfs::{ProcDir, Status};
use std::collections::HashSet;

/// Records of one process, its threads and descriptors: a small tree's files take about this much.
const RECORDS_BYTES: u64 = 16 << 10;

/// Refuses a dump whose images cannot fit. Looks only; whoever comes or goes meanwhile makes no error.
pub(super) fn check(root: HostTid, out: &Partial) -> Result<()> {
    if everything().is_some_and(|bytes| out.check_space(bytes).is_ok()) {
        return Ok(());
    }
    let tree = below(vec![(root, 0)], &HashSet::new());
    let of = |what: fn(&ProcDir) -> Option<u64>| {
        tree.iter().filter_map(|&(pid, _)| what(&ProcDir::open(pid).ok()?)).sum::<u64>()
    };
    let records = RECORDS_BYTES * tree.len() as u64;
    let probable = of(anonymous) + records;
    let Err(probably_full) = out.check_space(probable) else { return Ok(()) };
    let certain = of(certain) + records;
    out.check_space(certain)?;
    log::warn!("{}: the dump is tried all the same, because pages of zeros are left out", probably_full.headline());
    Ok(())
}

/// More than any tree can need: all anonymous memory and swap in use, and records of 65536 tasks; `None` if nobody tells. It
/// takes one file, where a look at a tree takes some for each of its threads.
fn everything() -> Option<u64> {
    let all = Status::new(std::fs::read_to_string("/proc/meminfo").ok()?);
    let kib = |key| all.get(key)?.split_whitespace().next()?.parse::<u64>().ok();
    let used = kib("AnonPages")?.saturating_add(kib("SwapTotal")?.saturating_sub(kib("SwapFree")?));
    Some((used << 10).saturating_add(RECORDS_BYTES << 16))
}

fn kib(status: &Status, key: &str) -> u64 {
    let words = status.get(key).and_then(|v| v.split_whitespace().next());
    words.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
}

/// Bytes of anonymous memory and swap; `None` for a process that is gone.
fn anonymous(p: &ProcDir) -> Option<u64> {
    let text = p.read_small("status").ok()?;
    let status = Status::new(String::from_utf8_lossy(&text).into_owned());
    Some((kib(&status, "RssAnon") + kib(&status, "VmSwap")) << 10)
}

/// As [`anonymous`], without huge pages. Walks the page tables, so it is asked only if room is scarce.
fn certain(p: &ProcDir) -> Option<u64> {
    let rollup = Status::new(p.read_text("smaps_rollup").ok()?);
    let small = kib(&rollup, "Anonymous").saturating_sub(kib(&rollup, "AnonHugePages"));
    Some((small + kib(&rollup, "Swap")) << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_memory_is_counted() {
        let me = HostTid::new(rustix::process::getpid().as_raw_nonzero().get()).unwrap();
        let proc = ProcDir::open(me).unwrap();
        let held = vec![1_u8; 64 << 20];
        let (probable, certain) = (anonymous(&proc).unwrap(), certain(&proc).unwrap());
        assert!(probable >= held.len() as u64, "{probable}");
        assert!(probable < everything().unwrap());
        assert!(certain > 0 && certain <= probable + (8 << 20), "{certain} of {probable}");
        assert!(below(vec![(me, 0)], &HashSet::new()).contains(&(me, 0)));
    }
}

//! A thread group whose leader has ended while other threads live on: nothing is left of the leader but ids, name,
//! credentials and exit code.
//!
//! In the image it is a thread about to end: its registers stand at a `syscall` instruction of the vDSO with the number of
//! exit(2). Whoever restores it, CRIU included, makes the leader and lets it end as the first thing it does.
use super::compat;
use crate::error::ResultExt;
use crate::{Error, Kind, Result};
use crust_image::proto::{CoreEntry, CredsEntry, ThreadCoreEntry, ThreadSasEntry};
use crust_kernel::procfs::{ProcDir, Stat};
use crust_kernel::{Backoff, Deadline, HostTid};

/// SS_DISABLE: no alternate signal stack.
const NO_STACK: u32 = 2;
const ROBUST_LIST_BYTES: u32 = 24;

/// The record of a leader that has ended, from that of a thread that lives and shares the rest with it.
///
/// # Errors
/// `Unsupported` on a kernel whose vDSO has no system call.
pub fn record(living: &CoreEntry, stat: &Stat, creds: CredsEntry, syscall_at: Option<u64>) -> Result<CoreEntry> {
    let at = syscall_at.ok_or_else(|| {
        let help = "wait until all its threads have ended";
        Error::unsupported("the thread group's leader has ended, and the vDSO has no system call", help)
    })?;
    let in_32bit_code = compat::is(living);
    let mut core = living.clone();
    if let Some(info) = &mut core.thread_info {
        info.clear_tid_addr = 0;
        let r = &mut info.gpregs;
        // exit(2) with the code that the process ends with if nobody calls exit_group(2).
        let code = (stat.exit_code >> 8 & 0xff) as u64;
        (r.ip, r.ax, r.di, r.orig_ax) = (at, libc::SYS_exit as u64, code, u64::MAX);
        if in_32bit_code {
            (r.ax, r.bx) = (crust_inject::arch::compat::NR_EXIT.into(), code);
        }
    }
    core.thread_core = core.thread_core.map(|living| ThreadCoreEntry {
        futex_rla: 0,
        futex_rla_len: if in_32bit_code { compat::ROBUST_LIST_BYTES } else { ROBUST_LIST_BYTES },
        // No signal may be handled in its name.
        blk_sigset: Some(u64::MAX),
        sas: Some(ThreadSasEntry { ss_sp: 0, ss_size: 0, ss_flags: NO_STACK }),
        pdeath_sig: None,
        signals_p: Some(Default::default()),
        creds: Some(creds),
        seccomp_mode: None,
        seccomp_filter: None,
        comm: Some(stat.comm.clone()),
        rseq_entry: None,
        crust_ended: Some(true),
        ..living
    });
    Ok(core)
}

/// Whether this is the record of a leader that has ended. For images by CRIU this is never so: it refuses such a group.
pub fn is(core: &CoreEntry) -> bool {
    core.thread_core.as_ref().is_some_and(|t| t.crust_ended())
}

/// Waits until a restored leader has ended after all.
///
/// # Errors
/// `Timeout`.
pub fn wait(pid: HostTid, deadline: Deadline) -> Result<()> {
    let mut backoff = Backoff::new();
    loop {
        let proc = ProcDir::open_thread(pid, pid).during("opening /proc/PID/task/PID")?;
        let stat = proc.read("stat").during("reading the stat file")?;
        if Stat::parse(&stat).is_some_and(|s| s.state == b'Z') {
            return Ok(());
        }
        if !backoff.pause(deadline) {
            return Err(Error::new(Kind::Timeout, format!("the leader of {pid} did not end in time")));
        }
    }
}

//! Waits that had a time left. Each thread makes its call once more, with what is left as the limit and an interruption waiting
//! for it: so the kernel itself remembers when the wait ends, and goes on with it when the thread is let go. The thread's
//! registers, and with them the limit that the program gave, stay as they were.
use super::finish::{Process, expect_stop};
use crate::Result;
use crate::error::{Error, Kind, OnObject, ResultExt};
use crate::lend::Lent;
use crate::task::regs;
use crate::task::wait::{After, Call, Limit};
use crust_image::proto::CoreEntry;
use crust_inject::arch::regs as inject;
use crust_kernel::ptrace::{self, Stop};
use crust_kernel::remote_mem::process_vm_write;
use crust_kernel::{Deadline, HostTid, VirtAddr};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What the calls said: that they are to go on, or how they ended.
#[derive(Debug, Default)]
pub(super) struct Renewed(HashMap<HostTid, i64>);

const ERESTART_RESTARTBLOCK: i64 = 516;
/// Bytes of a `struct timespec`.
const TIMESPEC: u64 = 16;

/// Begins all waits of `processes` anew whose threads stand still and still have our region.
pub(super) fn renew(processes: &[Process<'_>], deadline: Deadline) -> Result<Renewed> {
    let mut renewed = Renewed::default();
    for p in processes {
        for (core, &tid) in p.task.cores.iter().zip(&p.threads) {
            let Some(left) = left(core) else { continue };
            if let Some(result) = renew_one(p, core, tid, left, deadline).on_task(p.pid.as_raw())? {
                renewed.0.insert(tid, result);
            }
        }
    }
    Ok(renewed)
}

/// What is to be lent to a thread when it is let go: its wait cannot be renewed.
pub(super) fn lent(p: &Process<'_>, core: &CoreEntry, tid: HostTid) -> Result<Option<Lent>> {
    let Some((left, info)) = left(core).zip(core.thread_info.as_ref()) else { return Ok(None) };
    let call = Call::begun_by(&regs::general(info)?);
    let lent = || Lent { pid: p.pid, tid, call, left, at: Instant::now() };
    Ok((call.after_stop() == Some(After::Lent)).then(lent))
}

fn left(core: &CoreEntry) -> Option<Duration> {
    core.thread_core.as_ref()?.crust_wait_left_ns.map(Duration::from_nanos)
}

/// The wait of one thread. `None` for a call that has no such limit: then it begins as it was made.
fn renew_one(
    p: &Process<'_>,
    core: &CoreEntry,
    tid: HostTid,
    left: Duration,
    deadline: Deadline,
) -> Result<Option<i64>> {
    let Some(info) = &core.thread_info else { return Ok(None) };
    let begun = regs::general(info)?;
    let call = Call::begun_by(&begun);
    let mut args = call.args;
    let (arg, value) = match call.limit() {
        _ if call.after_stop() != Some(After::Renewed) => return Ok(None),
        Some(Limit::Ms(arg, _)) => (arg, left.as_micros().div_ceil(1000).min(i32::MAX as u128) as u64),
        Some(Limit::Time(arg, time)) => {
            let time = time.bytes(left);
            // The end of our region is nobody's by now.
            let room = (p.boot.0 + p.boot.1).saturating_sub(TIMESPEC);
            if process_vm_write(p.pid, VirtAddr(room), &time) != Ok(time.len()) {
                return Err(Error::new(Kind::Internal, "what is left of a wait cannot be written"));
            }
            (arg, room)
        }
        _ => return Ok(None),
    };
    args[arg] = value;
    let with = if p.is_32bit { inject::with_syscall32 } else { inject::with_syscall };
    inject::write(tid, &with(&begun, p.syscall_at, begun.rax, args)).during("setting registers")?;
    ptrace::resume_to_syscall(tid, 0).during("PTRACE_SYSCALL")?;
    expect_stop(p.pid, tid, Stop::Syscall, deadline)?;
    // It comes before the wait begins, so that the wait ends at once.
    ptrace::interrupt(tid).during("PTRACE_INTERRUPT")?;
    ptrace::resume_to_syscall(tid, 0).during("PTRACE_SYSCALL")?;
    expect_stop(p.pid, tid, Stop::Syscall, deadline)?;
    let result = inject::result(&inject::read(tid).during("reading registers")?);
    to_signal_stop(p.pid, tid, deadline)?;
    Ok(Some(result))
}

/// Brings a thread from a stop at a call into one in the kernel's signal code. Each stop uses an interruption up.
fn to_signal_stop(pid: HostTid, tid: HostTid, deadline: Deadline) -> Result<()> {
    ptrace::interrupt(tid).during("PTRACE_INTERRUPT")?;
    ptrace::resume(tid, 0).during("PTRACE_CONT")?;
    expect_stop(pid, tid, Stop::Interrupted, deadline)
}

impl Renewed {
    /// Puts a thread's registers where its renewed call left it.
    pub(super) fn apply(&self, tid: HostTid, regs: &mut inject::Regs) {
        const SYSCALL_INSN_BYTES: u64 = 2;
        let Some(&result) = self.0.get(&tid) else { return };
        let nr = regs.rax;
        regs.rip = regs.rip.wrapping_add(SYSCALL_INSN_BYTES);
        regs.rax = result as u64;
        regs.orig_rax = if result == -ERESTART_RESTARTBLOCK { nr } else { u64::MAX };
    }

    /// The kernel goes on with an interrupted call on the way from a stop in its signal code only. Brings a thread that
    /// stopped at another call of ours there, if it has a wait.
    pub(super) fn to_signal_stop(&self, pid: HostTid, tid: HostTid, deadline: Deadline) -> Result<()> {
        match self.0.get(&tid) {
            Some(&result) if result == -ERESTART_RESTARTBLOCK => {
                to_signal_stop(pid, tid, deadline).on_task(pid.as_raw())
            }
            _ => Ok(()),
        }
    }
}

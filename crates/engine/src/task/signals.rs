//! Signals: actions of a process, alternate stacks and queues of pending signals.
//!
//! Actions and alternate stacks can only be asked for from inside; queues are read by ptrace without taking anything out.
use super::compat;
use crate::{Error, Kind, Result, ResultExt};
use crust_image::proto::{SaEntry, SiginfoEntry, SignalQueueEntry, ThreadSasEntry};
use crust_inject::plan::{Arg, DataRef, Expect, PlanId, Program};
use crust_kernel::{HostTid, ptrace};

/// Size of the kernel's sigset.
const SIGSET_BYTES: u64 = 8;
/// struct kernel_sigaction: handler, flags, restorer, mask.
const ACTION_BYTES: usize = 32;
const SIGINFO_BYTES: usize = 128;
/// The signals that our own C library handles as soon as it makes a thread, as tasks with much memory do while it is filled.
const OURS: [i32; 2] = [32, 33];

/// Signals whose action can be something: all but SIGKILL and SIGSTOP, in CRIU's order.
fn signals() -> impl Iterator<Item = i32> {
    (1..=64).filter(|&s| s != libc::SIGKILL && s != libc::SIGSTOP)
}

/// Where a look's plan leaves the actions.
#[derive(Clone, Copy, Debug)]
pub struct ActionsAt(DataRef);

/// Adds the questions to a plan that runs inside the task.
pub fn ask_actions(p: &mut Program, plan: PlanId) -> ActionsAt {
    let at = p.reserve(64 * ACTION_BYTES);
    for (i, signal) in signals().enumerate() {
        let args = [signal.into(), 0.into(), at.offset((i * ACTION_BYTES) as u64).into(), SIGSET_BYTES.into()];
        p.syscall(plan, "rt_sigaction", libc::SYS_rt_sigaction, &args);
    }
    ActionsAt(at)
}

/// Reads the answers; `read` gives bytes of the plan's data.
///
/// # Errors
/// As `read`.
pub fn actions(
    at: ActionsAt,
    of_32bit_code: bool,
    read: &dyn Fn(DataRef, usize) -> Result<Vec<u8>>,
) -> Result<Vec<SaEntry>> {
    let bytes = read(at.0, signals().count() * ACTION_BYTES)?;
    let entries = bytes.chunks_exact(ACTION_BYTES).map(|c| {
        let word = |i: usize| u64::from_le_bytes(c[8 * i..8 * i + 8].try_into().unwrap_or_default());
        SaEntry {
            sigaction: word(0),
            flags: word(1),
            restorer: word(2),
            mask: word(3),
            compat_sigaction: Some(of_32bit_code),
            mask_extended: None,
        }
    });
    Ok(entries.collect())
}

/// The flags of the handler that a thread with this mask runs next, if a signal with a handler waits for it: queues of the thread and
/// of its process are served in this order, low numbers first.
pub fn next_handler(mask: u64, queues: [&SignalQueueEntry; 2], actions: &[SaEntry]) -> Option<u64> {
    let handler = |signal: i32| {
        let at = signals().position(|s| s == signal)?;
        // SIG_DFL and SIG_IGN run nothing.
        actions.get(at).filter(|a| a.sigaction > 1).map(|a| a.flags)
    };
    queues.into_iter().find_map(|queue| {
        let number =
            |s: &SiginfoEntry| s.siginfo.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_le_bytes);
        let mut waiting: Vec<i32> = queue.signals.iter().map(number).collect();
        waiting.sort_unstable();
        let free = |&signal: &i32| (1..=64).contains(&signal) && mask & (1 << (signal - 1)) == 0;
        waiting.into_iter().filter(free).find_map(handler)
    })
}

/// True if the process does with `signal` what the kernel does by default.
pub fn is_default(entries: &[SaEntry], signal: i32) -> bool {
    let at = signals().position(|s| s == signal);
    at.is_some_and(|at| entries.get(at).is_none_or(|e| e.sigaction == 0))
}

/// Sets all actions in a restored task.
///
/// # Errors
/// `BadImage` if there are more than there are signals, or for handlers of 32-bit code that it cannot reach.
pub fn plan_actions(p: &mut Program, plan: PlanId, entries: &[SaEntry]) -> Result<()> {
    if entries.len() > signals().count() {
        return Err(Error::new(Kind::BadImage, format!("the core image has {} signal actions", entries.len())));
    }
    for (entry, signal) in entries.iter().zip(signals()) {
        let default = (entry.sigaction, entry.flags, entry.restorer, entry.mask) == (0, 0, 0, 0);
        if default && !OURS.contains(&signal) {
            continue; // the task comes with defaults
        }
        if entry.compat_sigaction == Some(true) {
            compat::plan_action(p, plan, signal, entry)?;
            continue;
        }
        let words = [entry.sigaction, entry.flags, entry.restorer, entry.mask];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let at = p.data(&bytes);
        let args = [signal.into(), at.into(), 0.into(), SIGSET_BYTES.into()];
        p.syscall(plan, "rt_sigaction", libc::SYS_rt_sigaction, &args);
    }
    Ok(())
}

/// Adds the question for the calling thread's alternate stack.
pub fn ask_altstack(p: &mut Program, plan: PlanId) -> DataRef {
    let at = p.reserve(24);
    p.syscall(plan, "sigaltstack", libc::SYS_sigaltstack, &[0.into(), at.into()]);
    at
}

/// Reads the answer (stack_t).
///
/// # Errors
/// As `read`.
pub fn altstack(at: DataRef, read: &dyn Fn(DataRef, usize) -> Result<Vec<u8>>) -> Result<ThreadSasEntry> {
    let b = read(at, 24)?;
    let word = |i: usize| u64::from_le_bytes(b[i..i + 8].try_into().unwrap_or_default());
    Ok(ThreadSasEntry { ss_sp: word(0), ss_flags: word(8) as u32, ss_size: word(16) })
}

/// Sets the alternate stack of a restored thread. SS_ONSTACK is a report, not a setting.
pub fn plan_altstack(p: &mut Program, plan: PlanId, sas: &ThreadSasEntry) {
    const SS_DISABLE: u32 = 2;
    // A task's first thread comes with the stack that our own runtime gave it, which is unmapped soon: a task that has
    // none must be told so, or its first SA_ONSTACK handler faults.
    let none = sas.ss_sp == 0 && sas.ss_size == 0;
    let flags = if none { SS_DISABLE } else { sas.ss_flags & !1 };
    let bytes: Vec<u8> = [sas.ss_sp, u64::from(flags), sas.ss_size].iter().flat_map(|w| w.to_le_bytes()).collect();
    let at = p.data(&bytes);
    p.syscall(plan, "sigaltstack", libc::SYS_sigaltstack, &[at.into(), 0.into()]);
}

/// Signals waiting for a thread, or for its whole process, left where they are.
///
/// # Errors
/// As ptrace(2), PTRACE_PEEKSIGINFO.
pub fn queue(tid: HostTid, shared: bool) -> Result<SignalQueueEntry> {
    let infos = ptrace::peek_siginfo(tid, shared).during("reading the signal queue")?;
    Ok(SignalQueueEntry { signals: infos.iter().map(|i| SiginfoEntry { siginfo: i.0.to_vec() }).collect() })
}

/// Queues signals again. All are blocked while the plan runs, so none is taken before the task is complete.
///
/// # Errors
/// `BadImage` for a siginfo of the wrong size or without a signal.
pub fn plan_queue(p: &mut Program, plan: PlanId, queue: &SignalQueueEntry, pid: i32, tid: Option<i32>) -> Result<()> {
    for entry in &queue.signals {
        let info = &entry.siginfo;
        let signal = info.get(..4).map_or(0, |b| i32::from_le_bytes(b.try_into().unwrap_or_default()));
        if info.len() != SIGINFO_BYTES || !(1..=64).contains(&signal) {
            return Err(Error::new(Kind::BadImage, "a pending signal in the core image is malformed"));
        }
        let at = p.data(info);
        match tid {
            Some(tid) => {
                let args: [Arg; 4] = [pid.into(), tid.into(), signal.into(), at.into()];
                p.syscall(plan, "rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo, &args);
            }
            None => {
                let args: [Arg; 3] = [pid.into(), signal.into(), at.into()];
                p.syscall_expect(plan, "rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, &args, Expect::Ok);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_siginfo_is_refused() {
        let mut p = Program::new();
        let plan = p.plan("x");
        for bytes in [vec![], vec![0; 128], vec![9; 127]] {
            let queue = SignalQueueEntry { signals: vec![SiginfoEntry { siginfo: bytes }] };
            assert!(plan_queue(&mut p, plan, &queue, 1, None).is_err());
        }
    }

    #[test]
    fn default_actions_cost_nothing_but_for_our_own() {
        let mut p = Program::new();
        let plan = p.plan("x");
        plan_actions(&mut p, plan, &vec![SaEntry::default(); 62]).expect("fits");
        assert_eq!(p.len(plan), OURS.len());
        assert!(plan_actions(&mut p, plan, &vec![SaEntry::default(); 63]).is_err());
    }
}

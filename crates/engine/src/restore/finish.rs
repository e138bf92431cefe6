//! The last step: every thread stands in the interpreter. The coordinator seizes all, lets them cut the tie to us that is not
//! theirs (the parent's death signal), stops them, removes what is left of us from their memory, gives them their registers
//! and lets them go. If the coordinator dies here the kernel kills the whole tree with it.
use super::tree::{Fate, Task, Tree};
use super::waits::{self, Renewed};
use crate::error::{Error, Kind, OnObject, ResultExt};
use crate::lend::{Lent, lend};
use crate::task::compat::set_segments;
use crate::task::{breakpoints, dispatch, ended, regs, signals};
use crate::{Result, Stage};
use crust_inject::arch::{compat, regs as inject};
use crust_kernel::procfs::{ProcDir, Stat};
use crust_kernel::ptrace::{self, RegSet, Stop, Waited};
use crust_kernel::{Deadline, HostTid};
use rustix::io::Errno;
use rustix::process::Signal;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// A tree whose threads all stand still with their final state.
#[must_use = "the tree stands still until it is released"]
#[derive(Debug)]
pub(super) struct Ready {
    threads: Vec<(HostTid, HostTid)>,
    /// Leaders that end before anything else happens.
    ended: Vec<HostTid>,
    /// Waits that begin again, with less than their whole time left.
    lent: Vec<Lent>,
    deadline: Deadline,
}

/// One live process: its threads as the kernel here knows them, and where our region lies in it.
pub(super) struct Process<'a> {
    pub(super) task: &'a Task,
    pub(super) pid: HostTid,
    pub(super) threads: Vec<HostTid>,
    /// Start and length of the bootstrap region.
    pub(super) boot: (u64, u64),
    /// Address of a `syscall` instruction that stays.
    pub(super) syscall_at: u64,
    /// It is a 32-bit program, and so is that instruction.
    pub(super) is_32bit: bool,
}

const OPTIONS: ptrace::Options = ptrace::Options { exit_kill: true, suspend_seccomp: false };

/// Ties the root to our life while it builds itself, where it is no child of ours. It is not stopped. With
/// `suspend_seccomp` no filter that it installs applies until it is let go.
pub(super) fn hold(root: HostTid, suspend_seccomp: bool) -> Result<()> {
    ptrace::seize(root, ptrace::Options { suspend_seccomp, ..OPTIONS }).during("PTRACE_SEIZE").on_task(root.as_raw())
}

/// Hands a held root the signals that come to it: a tracee stops at each until its tracer passes it on.
pub(super) fn pass_on(root: HostTid) {
    while let Ok(Some(Waited::Stopped(stop))) = ptrace::poll_wait(root) {
        let signal = if let Stop::Signal(signal) = stop { signal } else { 0 };
        if ptrace::resume(root, signal).is_err() {
            return; // it was killed just now, which the line-up sees
        }
    }
}

/// Seizes and completes all processes. `part` lets their threads go on from the barrier and comes back when they have.
/// Threads in `traced` are seized already.
pub(super) fn complete(
    processes: &[Process<'_>],
    traced: &HashSet<HostTid>,
    part: impl FnOnce() -> Result<()>,
    deadline: Deadline,
) -> Result<Ready> {
    let all = || processes.iter().flat_map(|p| p.threads.iter().map(move |&t| (p, t)));
    for (p, tid) in all() {
        if !traced.contains(&tid) {
            ptrace::seize(tid, OPTIONS).during("PTRACE_SEIZE").on_task(p.pid.as_raw())?;
        }
    }
    part()?;
    for (p, tid) in all() {
        ptrace::interrupt(tid).during("PTRACE_INTERRUPT").on_task(p.pid.as_raw())?;
    }
    for (p, tid) in all() {
        expect_stop(p.pid, tid, Stop::Interrupted, deadline)?;
    }
    for p in processes {
        for (core, &tid) in p.task.cores.iter().zip(&p.threads) {
            let segments = core.thread_info.as_ref().map_or(&[][..], |info| &info.tls);
            set_segments(tid, segments).on_task(p.pid.as_raw())?;
        }
    }
    let waits = waits::renew(processes, deadline)?;
    unmap(processes, deadline)?;
    for p in processes {
        waits.to_signal_stop(p.pid, p.pid, deadline)?;
    }
    let mut lent = Vec::new();
    let mut template = vec![0u8; 16384];
    if let Some(first) = processes.first() {
        let n = ptrace::get_regset(first.pid, RegSet::XState, &mut template).during("reading the XSAVE area")?;
        template.truncate(n);
    }
    for p in processes {
        for (core, &tid) in p.task.cores.iter().zip(&p.threads) {
            let at = ended::is(core).then_some(p.syscall_at);
            set_state(core, tid, &template, at, &waits).on_task(p.pid.as_raw())?;
            lent.extend(waits::lent(p, core, tid)?);
        }
    }
    let gone = |p: &&Process<'_>| p.task.core().is_some_and(ended::is);
    let ended: Vec<HostTid> = processes.iter().filter(gone).map(|p| p.pid).collect();
    let threads = all().filter(|(_, t)| !ended.contains(t)).map(|(p, t)| (p.pid, t)).collect();
    Ok(Ready { threads, ended, lent, deadline })
}

/// `at`: where to go on, if that is not what the image says.
fn set_state(
    core: &crust_image::proto::CoreEntry,
    tid: HostTid,
    template: &[u8],
    at: Option<u64>,
    waits: &Renewed,
) -> Result<()> {
    let missing = || Error::new(Kind::BadImage, format!("thread {tid} has no x86 registers in its core image"));
    let info = core.thread_info.as_ref().ok_or_else(missing)?;
    let mut general = regs::general(info)?;
    general.rip = at.unwrap_or(general.rip);
    waits.apply(tid, &mut general);
    inject::write(tid, &general).during("setting general registers")?;
    let xstate = regs::xstate(&info.fpregs, template);
    ptrace::set_regset(tid, RegSet::XState, &xstate).during("setting floating point registers")?;
    let mask =
        core.thread_core.as_ref().and_then(|t| t.blk_sigset).or(core.tc.as_ref().map(|tc| tc.blk_sigset)).unwrap_or(0);
    ptrace::set_sigmask(tid, mask).during("setting the signal mask")?;
    let settings = core.thread_core.as_ref().and_then(|t| t.crust_settings.as_ref());
    let Some(settings) = settings else { return Ok(()) };
    breakpoints::set(tid, &settings.debug_registers)?;
    settings.dispatch.map_or(Ok(()), |want| dispatch::set(tid, want))
}

pub(super) fn expect_stop(pid: HostTid, tid: HostTid, want: Stop, deadline: Deadline) -> Result<()> {
    /// A leader's death is not reported before its dead threads were asked for, so who waits for one must look, too.
    const LOOK: std::time::Duration = std::time::Duration::from_millis(100);
    loop {
        match ptrace::wait(tid, deadline.capped(LOOK)) {
            Ok(Waited::Stopped(stop)) if stop == want => return Ok(()),
            Err(Errno::TIMEDOUT) if !deadline.expired() && !has_ended(pid, tid) => {}
            Err(Errno::TIMEDOUT) if !deadline.expired() => {
                let what = format!("thread {tid} was killed while its tree was being restored");
                return Err(Error::new(Kind::TargetChanged, what)).on_task(pid.as_raw());
            }
            Ok(other) => {
                let what = format!("thread {tid} did not stop as expected ({want:?}) but: {other:?}");
                return Err(Error::new(Kind::TargetChanged, what)).on_task(pid.as_raw());
            }
            Err(e) => return Err(e).during("waiting for a restored thread to stop").on_task(pid.as_raw()),
        }
    }
}

fn has_ended(pid: HostTid, tid: HostTid) -> bool {
    let stat = ProcDir::open_thread(pid, tid).and_then(|d| d.read("stat")).ok().and_then(|s| Stat::parse(&s));
    stat.is_none_or(|s| matches!(s.state, b'Z' | b'X'))
}

/// Removes our region from every process, by calls of their own leaders. All move together from stop to stop, so that nobody
/// waits for one thread's wake-up alone.
fn unmap(processes: &[Process<'_>], deadline: Deadline) -> Result<()> {
    let what = "munmap of the bootstrap region";
    for p in processes {
        // Whatever the registers are now, nobody will miss them.
        let args = [p.boot.0, p.boot.1, 0, 0, 0, 0];
        let info = p.task.core().and_then(|c| c.thread_info.as_ref());
        let from = info.map(regs::general).transpose().on_task(p.pid.as_raw())?.unwrap_or_else(inject::zeroed);
        let call = if p.is_32bit {
            inject::with_syscall32(&from, p.syscall_at, compat::NR_MUNMAP.into(), args)
        } else {
            inject::with_syscall(&from, p.syscall_at, libc::SYS_munmap as u64, args)
        };
        inject::write(p.pid, &call).during("setting registers").on_task(p.pid.as_raw())?;
        ptrace::resume_to_syscall(p.pid, 0).during("PTRACE_SYSCALL").on_task(p.pid.as_raw())?;
    }
    for p in processes {
        expect_stop(p.pid, p.pid, Stop::Syscall, deadline)?;
        ptrace::resume_to_syscall(p.pid, 0).during("PTRACE_SYSCALL").on_task(p.pid.as_raw())?;
    }
    for p in processes {
        expect_stop(p.pid, p.pid, Stop::Syscall, deadline)?;
        let regs = inject::read(p.pid).during("reading registers").on_task(p.pid.as_raw())?;
        let result = inject::result(&regs);
        if (-4095..0).contains(&result) {
            let errno = rustix::io::Errno::from_raw_os_error(-result as i32);
            return Err(Error::kernel(what, errno)).on_task(p.pid.as_raw());
        }
    }
    Ok(())
}

impl Ready {
    /// True if some thread ends before anything else happens, for which it has to run.
    pub(super) fn has_to_end(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Lets every thread run. `stop` has the processes that are to be stopped instead, each with the signal that does it.
    pub(super) fn release(self, stop: &[(HostTid, Signal)]) -> Result<()> {
        let failed = |pid: HostTid, e: Errno| {
            Error::kernel("PTRACE_DETACH failed", e).on(crate::Object::Task(pid.as_raw())).at(Stage::Resume)
        };
        for &pid in &self.ended {
            ptrace::detach(pid, 0).map_err(|e| failed(pid, e))?;
            ended::wait(pid, self.deadline).on_task(pid.as_raw())?;
        }
        for &(pid, signal) in stop {
            if let Some(id) = rustix::process::Pid::from_raw(pid.as_raw()) {
                rustix::process::kill_process(id, signal).during("stopping a task")?;
            }
        }
        // From here on the tree lives, also if we die: the kernel lets a dead tracer's tasks run. All are told before the
        // first runs, which is quick, so that hardly any moment is left in which a part would die with us. The root comes
        // last: while it is not told yet, its end is the end of those that have only it.
        let free = ptrace::Options::default();
        for &(pid, tid) in self.threads.iter().rev() {
            ptrace::set_options(tid, free)
                .during("PTRACE_SETOPTIONS")
                .on_task(pid.as_raw())
                .map_err(|e| e.at(Stage::Resume))?;
        }
        let let_go = |pid, tid| match ptrace::detach(tid, 0) {
            // Killed while the others run already: that is its own end, as it would have been a moment later.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(failed(pid, e)),
        };
        let stands = |pid: HostTid| stop.iter().any(|s| s.0 == pid);
        let mut lent = self.lent;
        lent.retain(|w| !stands(w.pid));
        for w in &mut lent {
            w.at = Instant::now();
            let_go(w.pid, w.tid)?;
        }
        lend(&lent);
        let ahead: HashSet<HostTid> = lent.iter().map(|w| w.tid).collect();
        for (pid, tid) in self.threads.into_iter().filter(|(_, tid)| !ahead.contains(tid)) {
            let_go(pid, tid)?;
        }
        await_stops(stop);
        Ok(())
    }
}

/// Waits until tasks that were sent a signal to stop have taken it: whoever called us may look at once. Somebody may have
/// told them to go on meanwhile, so the wait is short.
fn await_stops(stop: &[(HostTid, Signal)]) {
    const LONG_ENOUGH: Duration = Duration::from_secs(2);
    let start = Instant::now();
    let state = |pid| ProcDir::open(pid).ok()?.read("stat").ok().and_then(|text| Stat::parse(&text)).map(|s| s.state);
    for &(pid, _) in stop {
        while !matches!(state(pid), None | Some(b'T' | b'Z' | b'X')) {
            if start.elapsed() > LONG_ENOUGH {
                log::info!("task {pid} was told to stop and has not, or goes on already");
                return;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Processes of the tree that the image has stopped, or all of them,
/// with the signals.
pub(super) fn to_stop(tree: &Tree, pid_of: impl Fn(&Task) -> Option<HostTid>, all: bool) -> Vec<(HostTid, Signal)> {
    let wanted = |t: &&Task| matches!(t.fate, Fate::Stopped(_)) || (all && t.is_live());
    tree.tasks.iter().filter(wanted).filter_map(|t| Some((pid_of(t)?, stop_signal(tree, t)))).collect()
}

/// The signal that stops `t` again: the terminal's, if it had done so and would do so now; for certain, SIGSTOP.
fn stop_signal(tree: &Tree, t: &Task) -> Signal {
    let signal = match t.fate {
        Fate::Stopped(libc::SIGTSTP) => Signal::TSTP,
        Fate::Stopped(libc::SIGTTIN) => Signal::TTIN,
        Fate::Stopped(libc::SIGTTOU) => Signal::TTOU,
        _ => return Signal::STOP,
    };
    let Some(tc) = t.core().and_then(|c| c.tc.as_ref()) else { return Signal::STOP };
    let blocked = t.cores.iter().any(|c| {
        let mask = c.thread_core.as_ref().and_then(|th| th.blk_sigset).unwrap_or(0);
        mask & (1 << (signal.as_raw() - 1)) != 0
    });
    // Such signals do not stop a process group that no parent in its session looks after.
    let parent = |m: &Task| tree.tasks.iter().find(|p| p.pid.as_raw() == m.ppid && p.is_live());
    let looked_after = tree
        .tasks
        .iter()
        .filter(|m| m.pgid == t.pgid && m.is_live())
        .any(|m| parent(m).is_some_and(|p| p.sid == m.sid && p.pgid != m.pgid));
    let default = signals::is_default(&tc.sigactions, signal.as_raw());
    if default && !blocked && looked_after { signal } else { Signal::STOP }
}

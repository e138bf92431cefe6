//! All threads of a process stopped without it noticing, and let go again as if nothing had been.
//!
//! Stopping is PTRACE_SEIZE and INTERRUPT: no signal is sent, a stopped (SIGSTOP) task stays stopped, a blocked call is
//! restarted by the kernel itself on release. All requests are issued first and the stops collected afterwards, so many
//! threads stop at once. Threads started meanwhile are found by looking again until nothing is new.
//!
//! Everything here is bound to the calling thread, which becomes the tracer.
use crate::arch::compat;
use crate::arch::regs::{self, Regs};
use crate::error::{During, Error, Kind, Result};
use crate::home::Away;
use crate::site::Site;
use crust_kernel::procfs::{ProcDir, Stat, Status};
use crust_kernel::ptrace::{self, Options, RseqConfig, SigInfo, Stop, StopWaiter, Waited};
use crust_kernel::remote_mem::RemoteMem;
use crust_kernel::{Deadline, HostTid, VirtAddr};
use rustix::io::Errno;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

/// How long putting things back may take once the request's own deadline has passed.
pub(crate) const GRACE: Duration = Duration::from_secs(2);

/// One stopped thread. `regs` and `sigmask` are what it goes on with.
#[derive(Debug)]
pub struct SeizedThread {
    pub(crate) tid: HostTid,
    pub(crate) regs: Regs,
    pub(crate) sigmask: u64,
    pub(crate) rseq: RseqConfig,
    pub(crate) in_rseq: bool,
    pub(crate) stopped: Option<Stop>,
    pub(crate) group_stop: Option<i32>,
    pub(crate) away: Option<Away>,
    pub(crate) gone: bool,
    pub(crate) suspended_seccomp: bool,
}

impl SeizedThread {
    fn new(tid: HostTid) -> Self {
        Self {
            tid,
            regs: regs::zeroed(),
            sigmask: 0,
            rseq: RseqConfig::default(),
            in_rseq: false,
            stopped: None,
            group_stop: None,
            away: None,
            gone: false,
            suspended_seccomp: false,
        }
    }

    /// Its id here.
    pub fn tid(&self) -> HostTid {
        self.tid
    }

    /// General registers as stopped: an interrupted call still shows its kernel-internal result and its number in
    /// `orig_rax`. Only a restartable sequence that was cut is already at its abort handler.
    pub fn regs(&self) -> &Regs {
        &self.regs
    }

    /// Blocked signals, bit `n - 1` for signal `n`; inside sigsuspend and the like the mask that comes back afterwards.
    pub fn sigmask(&self) -> u64 {
        self.sigmask
    }

    /// True if it was stopped inside a system call.
    pub fn in_syscall(&self) -> bool {
        regs::in_syscall(&self.regs)
    }

    /// Its rseq registration; `address` 0 if there is none.
    pub fn rseq(&self) -> &RseqConfig {
        &self.rseq
    }

    /// True if it was cut inside a restartable sequence, so that [`SeizedThread::regs`] point at the abort handler.
    pub fn rseq_aborted(&self) -> bool {
        self.in_rseq
    }

    /// The signal whose group stop it is part of.
    pub fn group_stop(&self) -> Option<i32> {
        self.group_stop
    }

    /// What `keep` makes of the vector and floating point state (`NT_X86_XSTATE`). Injection never touches it, so it may be read at any time.
    ///
    /// # Errors
    /// `Died` if the thread is gone.
    pub fn xsave<T>(&self, keep: impl FnOnce(&[u8]) -> T) -> Result<T> {
        regs::read_xsave(self.tid, keep).during(self.tid, "reading the XSAVE area")
    }

    /// Whether the kernel has room for its AMX tiles, as it has once they were used.
    ///
    /// # Errors
    /// `Died` if the thread is gone.
    pub fn has_tile_room(&self) -> Result<bool> {
        regs::has_tile_room(self.tid).during(self.tid, "looking for room for AMX tiles")
    }

    /// Signals queued for this thread alone, oldest first, without taking them.
    ///
    /// # Errors
    /// `Died` if the thread is gone.
    pub fn pending_signals(&self) -> Result<Vec<SigInfo>> {
        ptrace::peek_siginfo(self.tid, false).during(self.tid, "reading its pending signals")
    }

    /// Reads everything that is read of each thread. The thread stands still.
    fn look(&mut self) -> rustix::io::Result<()> {
        self.regs = regs::read(self.tid)?;
        self.sigmask = ptrace::get_sigmask(self.tid)?;
        self.rseq = match ptrace::get_rseq_configuration(self.tid) {
            Err(Errno::IO | Errno::INVAL | Errno::OPNOTSUPP) => RseqConfig::default(),
            other => other?,
        };
        self.in_rseq = false;
        Ok(())
    }

    /// If the thread was cut inside a restartable sequence, the registers are moved to its abort handler: what the kernel
    /// does on the way back to user mode, but it cannot once the registers have been elsewhere.
    fn abort_rseq(&mut self) {
        const RSEQ_CS: u64 = 8;
        // A restartable sequence makes no system calls.
        if self.in_syscall() {
            return;
        }
        let Some(pointer) = self.rseq.area().and_then(|a| a.checked_add(RSEQ_CS)) else { return };
        let mut word = [0; 8];
        let mut section = [0; 32];
        // What cannot be read is not in force: the kernel would kill the task for it at its next preemption.
        if crust_kernel::remote_mem::process_vm_read(self.tid, pointer, &mut word) != Ok(8) {
            return;
        }
        let at = VirtAddr(u64::from_ne_bytes(word));
        if at.as_raw() == 0 || crust_kernel::remote_mem::process_vm_read(self.tid, at, &mut section) != Ok(32) {
            return;
        }
        if let Some(abort) = rseq_abort_ip(&section, regs::ip(&self.regs)) {
            regs::set_ip(&mut self.regs, abort);
            self.in_rseq = true;
        }
    }
}

/// Where a thread at `ip` has to go on, if that lies inside the `struct rseq_cs` given as bytes.
fn rseq_abort_ip(section: &[u8; 32], ip: u64) -> Option<u64> {
    let word = |at: usize| Some(u64::from_ne_bytes(section.get(at..at + 8)?.try_into().ok()?));
    let (start, length, abort) = (word(8)?, word(16)?, word(24)?);
    (ip.wrapping_sub(start) < length).then_some(abort)
}

/// True for a task that the calling thread traces.
fn is_ours(error: &Error) -> bool {
    let me = rustix::thread::gettid().as_raw_pid();
    matches!(error.kind(), Kind::Traced { tracer, .. } if *tracer == me)
}

/// A process whose threads were asked to stop.
#[derive(Debug)]
#[must_use = "dropping it waits for its threads to stop and lets them run again"]
pub struct Asked {
    process: SeizedProcess,
    deadline: Deadline,
}

impl Asked {
    /// The process.
    pub fn pid(&self) -> HostTid {
        self.process.pid
    }

    /// The second half of [`SeizedProcess::seize_with`]. Gives itself back if `limit` or its own deadline comes first.
    ///
    /// # Errors
    /// As [`SeizedProcess::seize`], but for the time.
    pub fn await_stop_for(mut self, limit: Duration) -> Result<std::result::Result<SeizedProcess, Self>> {
        self.process.deadline = self.deadline.capped(limit);
        let stopped = self.process.collect();
        self.process.deadline = self.deadline;
        match stopped {
            Ok(()) => Ok(Ok(self.process)),
            Err(e) if *e.kind() == Kind::Timeout => Ok(Err(self)),
            Err(e) => Err(e),
        }
    }

    /// What to tell if nobody waits for it any longer.
    pub fn timed_out(&self) -> Error {
        let running = self.process.threads.iter().find(|t| t.stopped.is_none()).map_or(self.process.pid, |t| t.tid);
        self.process.did_not_stop(running)
    }

    /// Lets many run again that have to stop first. In a chain of vforks each can do so only after the one below it is free, so
    /// they are asked in turn, as long as it helps.
    pub fn let_go_all(all: Vec<Self>) {
        /// However long the chain is.
        const LONGEST: Duration = Duration::from_secs(5);
        let last = Deadline::after(LONGEST);
        let (mut rest, mut patience) = (all, last.capped(GRACE));
        let mut waiter = StopWaiter::new();
        while !rest.is_empty() {
            let before = rest.len();
            rest = rest.into_iter().rev().filter_map(|a| a.await_stop_for(Duration::ZERO).ok()?.err()).rev().collect();
            if rest.len() < before {
                patience = last.capped(GRACE);
                waiter.reset();
            }
            if !rest.is_empty() && !waiter.pause(patience) {
                break;
            }
        }
        if let Some(one) = rest.first() {
            let e = one.timed_out();
            log::error!("while letting {} processes go: {e}; the kernel lets them go when we end", rest.len());
        }
        // They were waited for long enough.
        rest.iter_mut().for_each(|asked| asked.process.threads.clear());
    }

    /// True if one of its threads cannot stop before a child of it that was born by vfork(2) ends or executes something.
    pub fn waits_for_vfork(&self) -> bool {
        self.process.threads.iter().filter(|t| t.stopped.is_none()).any(|t| self.process.is_in_vfork(t.tid))
    }
}

/// A process all of whose threads stand still. Dropping it lets them run on; [`SeizedProcess::release`] reports how that went.
#[derive(Debug)]
#[must_use = "dropping a seized process lets it run again"]
pub struct SeizedProcess {
    pub(crate) pid: HostTid,
    pub(crate) threads: Vec<SeizedThread>,
    pub(crate) deadline: Deadline,
    pub(crate) options: Options,
    pub(crate) leader_is_zombie: bool,
    /// A thread that was traced is gone: after an exec it may be traced still, under the leader's id.
    lost: bool,
    dir: Option<Arc<ProcDir>>,
    pub(crate) mem: Option<RemoteMem>,
    pub(crate) site: Option<Site>,
    /// ptrace obeys only the thread that seized.
    not_send: PhantomData<*const ()>,
}

impl SeizedProcess {
    /// Stops all threads of `pid`.
    ///
    /// # Errors
    /// `Gone`, `Zombie`, `Traced` (names the tracer), `Permission`, `Timeout` (names the thread that did not stop),
    /// `Unsupported` for code in segments of its own. In all cases every thread that was stopped runs again.
    pub fn seize(pid: HostTid, deadline: Deadline) -> Result<Self> {
        Self::seize_with(pid, Options::default(), deadline)
    }

    /// As [`SeizedProcess::seize`], with options: restore sets `exit_kill`, so that a dead coordinator leaves nothing.
    ///
    /// # Errors
    /// As [`SeizedProcess::seize`].
    pub fn seize_with(pid: HostTid, options: Options, deadline: Deadline) -> Result<Self> {
        let mut process = Self::ask(pid, options, deadline);
        process.collect()?;
        Ok(process)
    }

    /// The first half of [`SeizedProcess::seize_with`]: its leader is asked to stop. Most processes have one thread; whether
    /// there are more is seen once that one stands still.
    pub fn ask_leader(pid: HostTid, options: Options, deadline: Deadline) -> Asked {
        let mut process = Self::ask(pid, options, deadline);
        // Errors come back from `collect`, which asks again.
        let _asked_again_below = process.seize_thread(pid);
        Asked { process, deadline }
    }

    /// As [`SeizedProcess::ask_leader`], for threads that may be unable to stop at once: all threads that there are now are
    /// asked to.
    ///
    /// # Errors
    /// As [`SeizedProcess::seize`].
    pub fn ask_all(pid: HostTid, options: Options, deadline: Deadline) -> Result<Asked> {
        let mut process = Self::ask(pid, options, deadline);
        process.rescan()?;
        process.rest();
        Ok(Asked { process, deadline })
    }

    fn ask(pid: HostTid, options: Options, deadline: Deadline) -> Self {
        Self {
            pid,
            threads: Vec::new(),
            deadline,
            options,
            leader_is_zombie: false,
            lost: false,
            dir: None,
            mem: None,
            site: None,
            not_send: PhantomData,
        }
    }

    /// `/proc/PID`. It keeps the files `stat`, `status` and `auxv` as they were first read after the stop.
    pub fn proc(&self) -> Option<&Arc<ProcDir>> {
        self.dir.as_ref()
    }

    /// Its directory takes no descriptor until it is looked into again.
    fn rest(&self) {
        if let Some(dir) = &self.dir {
            dir.rest();
        }
    }

    pub(crate) fn dir(&mut self) -> Result<Arc<ProcDir>> {
        if let Some(dir) = &self.dir {
            return Ok(dir.clone());
        }
        let gone = |_| Error::new(Kind::Gone, self.pid, "no such process");
        let dir = Arc::new(ProcDir::open(self.pid).map_err(gone)?);
        self.dir = Some(dir.clone());
        Ok(dir)
    }

    /// Its status file, or that of a thread that lives if the leader has ended.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn status(&mut self) -> Result<Status> {
        let (pid, living) = (self.pid, self.living());
        let dir = self.dir()?;
        let read = if living == pid {
            dir.read_kept("status")
        } else {
            dir.read_small(&format!("task/{living}/status")).map(Arc::from)
        };
        Ok(Status::new(String::from_utf8_lossy(&read.during(pid, "reading its status")?).into_owned()))
    }

    /// True if the kernel counts as many threads as stand still here: then there are no others. To be asked when all that
    /// are known stand still.
    fn all_counted(&mut self) -> Result<bool> {
        let dir = self.dir()?;
        // Whatever was read before everything stood still may be wrong by now.
        dir.forget();
        let known = self.threads.len() + usize::from(self.leader_is_zombie);
        Ok(dir.count_threads() == Ok(known))
    }

    /// Seizes and interrupts threads not seen so far; true if there were any.
    fn rescan(&mut self) -> Result<bool> {
        let tids = match self.dir()?.threads() {
            Ok(tids) => tids,
            Err(Errno::NOENT | Errno::SRCH) => return Err(Error::new(Kind::Gone, self.pid, "no such process")),
            Err(errno) => return Err(Error::call(self.pid, "listing its threads", errno)),
        };
        // An exec makes the kernel list the leader's id twice.
        let mut known: std::collections::HashSet<HostTid> = self.threads.iter().map(|t| t.tid).collect();
        let mut new = false;
        for tid in tids.into_iter().filter(|t| known.insert(*t)) {
            if tid == self.pid && self.leader_is_zombie {
                continue;
            }
            new |= self.seize_thread(tid)?;
        }
        Ok(new)
    }

    /// Seizes and interrupts one thread; false if it is dead or dying.
    fn seize_thread(&mut self, tid: HostTid) -> Result<bool> {
        /// An exec kills threads and moves an id to another task: what is refused now may be there a moment later. So may
        /// a leader that we let go just as an exec of another thread killed it.
        const TRIES: u32 = 5;
        for left in (0..TRIES).rev() {
            match ptrace::seize(tid, self.options) {
                Ok(()) => return self.interrupt_new(tid),
                Err(Errno::SRCH) => return Ok(false),
                Err(errno) => match self.refused(tid, errno) {
                    Ok(()) => return Ok(false),
                    Err(e) if tid == self.pid && is_ours(&e) && self.may_have_moved() => {
                        return self.interrupt_new(tid);
                    }
                    Err(e) if left == 0 || *e.kind() != Kind::Permission && !is_ours(&e) => return Err(e),
                    Err(_) => std::thread::sleep(Duration::from_micros(200)),
                },
            }
        }
        Ok(false)
    }

    /// True if a thread of ours may have made an exec while the leader was ending, and have its id now.
    fn may_have_moved(&self) -> bool {
        self.lost || self.threads.iter().any(|t| t.stopped.is_none())
    }

    /// Adds a thread that has just become ours.
    fn interrupt_new(&mut self, tid: HostTid) -> Result<bool> {
        self.threads.push(SeizedThread::new(tid));
        match ptrace::interrupt(tid) {
            // ESRCH: ended just now; collecting will see it.
            Ok(()) | Err(Errno::SRCH) => Ok(true),
            Err(errno) => Err(Error::call(tid, "interrupting it", errno)),
        }
    }

    /// Finds out why a seize was refused. `Ok`: the thread is dead or dying, go on without it.
    fn refused(&mut self, tid: HostTid, errno: Errno) -> Result<()> {
        let Ok(dir) = ProcDir::open_thread(self.pid, tid) else { return Ok(()) };
        let Ok(status) = dir.read_text("status").map(Status::new) else { return Ok(()) };
        if let Some(tracer) = status.number("TracerPid").filter(|&t| t != 0) {
            let tracer = i32::try_from(tracer).unwrap_or(0);
            let comm = HostTid::new(tracer)
                .and_then(|t| ProcDir::open(t).ok()?.read_text("comm").ok())
                .map_or_else(String::new, |c| c.trim_end().to_owned());
            return Err(Error::new(Kind::Traced { tracer, comm }, tid, "it is traced already"));
        }
        match status.get("State").and_then(|s| s.bytes().next()) {
            Some(b'Z') if tid == self.pid => {
                if status.number("Threads").unwrap_or(1) <= 1 {
                    return Err(Error::new(Kind::Zombie, tid, "it is a zombie"));
                }
                // The leader has called pthread_exit: its threads live on without it.
                self.leader_is_zombie = true;
                Ok(())
            }
            Some(b'Z' | b'X') | None => Ok(()),
            _ => Err(Error::call(tid, "seizing it", errno)),
        }
    }

    /// Waits for all stops, looking for new threads until there are none, then reads registers. May be called again after
    /// it ran out of time.
    fn collect(&mut self) -> Result<()> {
        let stopped = self.collect_all();
        self.rest();
        stopped
    }

    fn collect_all(&mut self) -> Result<()> {
        if self.threads.is_empty() {
            self.rescan()?;
        }
        loop {
            let lost = self.await_stops()?;
            // Only now, when all that are known stand still, can no new one appear behind the look's back.
            let complete = !lost && (self.all_counted()? || !self.rescan()?);
            // Seen as the zombie that an exec is about to put away: the thread that did it has its id next.
            let replaced = self.threads.is_empty() && self.leader_is_zombie;
            if replaced {
                self.leader_is_zombie = false;
                std::thread::sleep(Duration::from_micros(200));
            } else if complete && self.read_all()? {
                break;
            }
            if self.deadline.expired() {
                return Err(Error::new(
                    Kind::Timeout,
                    self.pid,
                    "its threads come and go faster than they can be stopped",
                ));
            }
        }
        if self.threads.is_empty() {
            let kind = if self.leader_is_zombie { Kind::Zombie } else { Kind::Gone };
            return Err(Error::new(kind, self.pid, "none of its threads is alive"));
        }
        Ok(())
    }

    /// Reads every thread's state. False if one was not where it should be (an exec takes over the leader's id), or
    /// is gone: then everything must be looked at again.
    fn read_all(&mut self) -> Result<bool> {
        for thread in &mut self.threads {
            match thread.look() {
                Ok(()) => thread.abort_rseq(),
                Err(Errno::SRCH) => {
                    // A task that took this id over may have missed our interrupt, which went to its old id.
                    thread.stopped = None;
                    return match ptrace::interrupt(thread.tid) {
                        Ok(()) | Err(Errno::SRCH) => Ok(false),
                        Err(errno) => Err(Error::call(thread.tid, "interrupting it", errno)),
                    };
                }
                Err(Errno::NOEXEC) => {
                    return Err(Error::new(
                        Kind::Unsupported,
                        thread.tid,
                        "it runs code in a segment of its own, which crust cannot borrow",
                    ));
                }
                Err(errno) => return Err(Error::call(thread.tid, "reading its registers", errno)),
            }
        }
        Ok(true)
    }

    /// Waits until all known threads stand still or are gone. True if one is gone: its id may name another task by now (an
    /// exec takes over the leader's), so everything must be looked at again.
    fn await_stops(&mut self) -> Result<bool> {
        /// Pauses after which everybody is asked once more.
        const ASK_AGAIN: u32 = 32;
        let mut waiter = StopWaiter::new();
        let mut pauses = 0u32;
        loop {
            let mut waiting = None;
            let mut progress = false;
            let mut vanished = false;
            for thread in self.threads.iter_mut().filter(|t| t.stopped.is_none() && !t.gone) {
                match ptrace::poll_wait(thread.tid) {
                    Ok(None) => {
                        waiting = Some(thread.tid);
                        continue;
                    }
                    Ok(Some(Waited::Stopped(stop @ (Stop::Interrupted | Stop::GroupStop(_))))) => {
                        thread.stopped = Some(stop);
                        thread.group_stop = if let Stop::GroupStop(signal) = stop { Some(signal) } else { None };
                    }
                    // A signal on its way, or another stop: it takes its course. Any stop clears the pending interrupt.
                    Ok(Some(Waited::Stopped(stop))) => {
                        waiting = Some(thread.tid);
                        let signal = if let Stop::Signal(signal) = stop { signal } else { 0 };
                        match ptrace::interrupt(thread.tid).and_then(|()| ptrace::resume(thread.tid, signal)) {
                            Ok(()) | Err(Errno::SRCH) => {}
                            Err(errno) => return Err(Error::call(thread.tid, "passing on a signal", errno)),
                        }
                    }
                    Ok(Some(Waited::Exited(_) | Waited::Killed(_))) | Err(Errno::CHILD) => {
                        thread.gone = true;
                        vanished = true;
                    }
                    Err(errno) => return Err(Error::call(thread.tid, "waiting for it to stop", errno)),
                }
                progress = true;
            }
            let Some(tid) = waiting else { break };
            pauses += 1;
            if vanished || pauses.is_multiple_of(ASK_AGAIN) {
                // In an exec a thread takes the leader's id; an interrupt sent to its old id at that moment is lost.
                for thread in self.threads.iter_mut().filter(|t| t.stopped.is_none() && !t.gone) {
                    match ptrace::interrupt(thread.tid) {
                        Ok(()) => {}
                        // Not traced by us any more: the id of a leader that was, with a thread that was not yet. If it
                        // is our child besides, waiting for it does not tell.
                        Err(Errno::SRCH) => thread.gone = true,
                        Err(errno) => return Err(Error::call(thread.tid, "interrupting it", errno)),
                    }
                }
            }
            if progress {
                waiter.reset();
            }
            if !waiter.pause(self.deadline) {
                return Err(self.did_not_stop(tid));
            }
        }
        let before = self.threads.len();
        self.threads.retain(|t| !t.gone);
        let lost = self.threads.len() != before;
        if lost {
            self.lost = true;
            // The one that is gone may have become the leader.
            self.leader_is_zombie = false;
        }
        Ok(lost)
    }

    fn did_not_stop(&self, tid: HostTid) -> Error {
        let state = ProcDir::open_thread(self.pid, tid)
            .and_then(|d| d.read("stat"))
            .ok()
            .and_then(|text| Stat::parse(&text))
            .map_or('?', |s| char::from(s.state));
        let vfork = self.is_in_vfork(tid);
        let why = if vfork { "it waits for its vfork child" } else { "it does not come out of the kernel" };
        Error::new(Kind::Timeout, tid, format!("it did not stop (state {state}): {why}"))
    }

    /// True if that is the system call in which a thread stays that does not stop.
    fn is_in_vfork(&self, tid: HostTid) -> bool {
        let call = ProcDir::open_thread(self.pid, tid).and_then(|d| d.read_text("syscall")).unwrap_or_default();
        let mut words = call.split_ascii_whitespace();
        let nr = words.next().and_then(|w| w.parse::<i64>().ok());
        // Its arguments, stack pointer and place.
        let rest: Vec<u64> = words.map_while(|w| u64::from_str_radix(w.strip_prefix("0x")?, 16).ok()).collect();
        let first = rest.first().copied().unwrap_or(0);
        let low = rest.len() == 8 && rest[6..].iter().all(|&at| at < compat::END);
        let nr = if low { nr.and_then(compat::as_native).map(|(nr, _)| nr) } else { nr };
        match nr {
            Some(libc::SYS_vfork) => true,
            Some(libc::SYS_clone) => first & libc::CLONE_VFORK as u64 != 0,
            // Its flags lie in memory; a thread does not stay in clone3 for anything else.
            Some(libc::SYS_clone3) => true,
            _ => false,
        }
    }

    /// The process.
    pub fn pid(&self) -> HostTid {
        self.pid
    }

    /// Its threads, all stopped, in the order of their ids.
    pub fn threads(&self) -> &[SeizedThread] {
        &self.threads
    }

    /// One thread.
    pub fn thread(&self, tid: HostTid) -> Option<&SeizedThread> {
        self.threads.iter().find(|t| t.tid == tid)
    }

    /// True if the leader has ended while other threads live on: it has an exit status and nothing else.
    pub fn leader_is_zombie(&self) -> bool {
        self.leader_is_zombie
    }

    /// Has a thread make the call again that its stop ended, with another fourth argument: the kernel begins it when the thread
    /// is let go, also by our death, and ends it with EINTR if a signal with a handler comes first.
    ///
    /// # Errors
    /// Its registers cannot be set. A thread that is gone is none: whoever asks it next is told.
    pub fn call_again(&mut self, tid: HostTid, fourth: u64) -> Result<()> {
        let Some(thread) = self.threads.iter_mut().find(|t| t.tid == tid && t.away.is_none()) else { return Ok(()) };
        regs::call_again(&mut thread.regs, fourth);
        match regs::write(tid, &thread.regs) {
            Err(Errno::SRCH) => Ok(()),
            written => written.during(tid, "setting its registers"),
        }
    }

    /// The signal that had stopped the whole process before we came.
    pub fn group_stop(&self) -> Option<i32> {
        self.threads.iter().find_map(SeizedThread::group_stop)
    }

    /// Signals queued for the process as a whole, oldest first, without taking them.
    ///
    /// # Errors
    /// `Died` if it is gone.
    pub fn shared_pending_signals(&self) -> Result<Vec<SigInfo>> {
        let thread = self.threads.first().ok_or_else(|| Error::new(Kind::Died, self.pid, "it is gone"))?;
        ptrace::peek_siginfo(thread.tid, true).during(thread.tid, "reading its shared pending signals")
    }

    /// Replaces the deadline that bounds every further wait.
    pub fn set_deadline(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    /// Puts everything back and lets all threads run: removes what was mapped, restores registers and masks, detaches.
    /// Interrupted calls are started again by the kernel, without EINTR. A process in group stop stays in it.
    ///
    /// # Errors
    /// What could not be put back. Every thread is let go nevertheless.
    pub fn release(mut self) -> Result<()> {
        self.let_go()
    }

    /// The same for some of its threads, while the others stand still.
    ///
    /// # Errors
    /// As [`SeizedProcess::release`].
    pub fn release_some(&mut self, which: impl Fn(HostTid) -> bool) -> Result<()> {
        self.let_go_those(which)
    }

    fn let_go(&mut self) -> Result<()> {
        self.let_go_those(|_| true)
    }

    fn let_go_those(&mut self, which: impl Fn(HostTid) -> bool) -> Result<()> {
        let cleaned = self.clean_up();
        self.mem = None;
        self.site = None;
        let mut first = cleaned.err().filter(|e| *e.kind() != Kind::Died);
        let deadline = Deadline::after(GRACE);
        let (those, others) = std::mem::take(&mut self.threads).into_iter().partition::<Vec<_>, _>(|t| which(t.tid));
        self.threads = others;
        for mut thread in those {
            match thread.let_go(deadline) {
                Ok(()) => {}
                Err(e) if *e.kind() == Kind::Died => {}
                Err(e) => {
                    first.get_or_insert(e);
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Kills the process and waits until all of it is gone. Returns once the leader is a zombie for its parent, or was
    /// reaped here because the parent is us.
    ///
    /// # Errors
    /// `Timeout` if the kernel does not let it die.
    pub fn kill(mut self) -> Result<()> {
        self.kill_now()?;
        self.await_death()
    }

    /// The first half of [`SeizedProcess::kill`]: for many processes, kill all, then wait for each with
    /// [`SeizedProcess::await_death`].
    ///
    /// # Errors
    /// `Permission` or `Kernel` if the signal could not be sent.
    pub fn kill_now(&mut self) -> Result<()> {
        match ptrace::tgkill(self.pid, self.threads.first().map_or(self.pid, |t| t.tid), libc::SIGKILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(Error::call(self.pid, "killing it", errno)),
        }
    }

    /// The second half of [`SeizedProcess::kill`].
    ///
    /// # Errors
    /// As [`SeizedProcess::kill`].
    pub fn await_death(mut self) -> Result<()> {
        let deadline = Deadline::after(self.deadline.remaining().max(GRACE));
        let mut threads = std::mem::take(&mut self.threads);
        self.mem = None;
        self.site = None;
        // Other threads first: a traced leader is not reported while one of them has not been waited for.
        threads.sort_by_key(|t| t.tid == self.pid);
        for thread in threads.iter().filter(|t| !t.gone) {
            loop {
                match ptrace::wait(thread.tid, deadline) {
                    Ok(Waited::Exited(_) | Waited::Killed(_)) | Err(Errno::CHILD) => break,
                    Ok(Waited::Stopped(_)) => {}
                    Err(errno) => return Err(Error::call(thread.tid, "waiting for its death", errno)),
                }
            }
        }
        Ok(())
    }
}

impl SeizedThread {
    /// Home, if it was away, and free.
    fn let_go(&mut self, deadline: Deadline) -> Result<()> {
        if self.gone {
            return Ok(());
        }
        let mut home = Ok(());
        if self.stopped.is_none() {
            // It was asked to stop and has not so far: only a stopped thread can be let go.
            home = self.await_any_stop(deadline);
        }
        if home.is_ok() && self.away.is_some() {
            home = self.bring_home(deadline);
        }
        let freed = match ptrace::detach(self.tid, self.pass_on()) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(Error::call(self.tid, "letting it go", errno)),
        };
        home.and(freed)
    }

    /// The signal to hand over when it leaves its present stop.
    fn pass_on(&self) -> i32 {
        match self.stopped {
            Some(Stop::Signal(signal)) if self.away.is_none() => signal,
            _ => 0,
        }
    }

    fn await_any_stop(&mut self, deadline: Deadline) -> Result<()> {
        match ptrace::wait(self.tid, deadline.capped(GRACE)) {
            Ok(Waited::Stopped(stop)) => {
                self.stopped = Some(stop);
                Ok(())
            }
            Ok(Waited::Exited(_) | Waited::Killed(_)) | Err(Errno::CHILD) => {
                self.gone = true;
                Ok(())
            }
            Err(errno) => Err(Error::call(self.tid, "waiting for it, to let it go", errno)),
        }
    }
}

impl Drop for SeizedProcess {
    fn drop(&mut self) {
        if self.threads.is_empty() {
            return;
        }
        if let Err(e) = self.let_go() {
            log::error!("while letting process {} go: {e}; the kernel lets it go when we end", self.pid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rseq_sections_are_half_open() {
        let mut section = [0; 32];
        section[8..16].copy_from_slice(&0x1000u64.to_ne_bytes());
        section[16..24].copy_from_slice(&0x20u64.to_ne_bytes());
        section[24..].copy_from_slice(&0x9000u64.to_ne_bytes());
        assert_eq!(rseq_abort_ip(&section, 0x1000), Some(0x9000));
        assert_eq!(rseq_abort_ip(&section, 0x101f), Some(0x9000));
        assert_eq!(rseq_abort_ip(&section, 0x1020), None);
        assert_eq!(rseq_abort_ip(&section, 0xfff), None);
    }
}

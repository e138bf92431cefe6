//! The look: every process of a frozen tree becomes image records. One plan runs inside each process for what only it can
//! be asked; everything else is read from outside.
use super::freeze::Process;
use crate::error::{Error, Kind, Object, OnObject, ResultExt};
use crate::files::FileTable;
use crate::files::ids::TaskIds;
use crate::memory::{self, Mm};
use crate::task::{Target, creds, ended, limits, regs, seccomp, settings, signals, timers};
use crate::{Options, Result, namespaces};
use crust_image::proto::{
    CoreEntry, PstreeEntry, RseqEntry, SignalQueueEntry, TaskCoreEntry, TaskKobjIdsEntry, ThreadCoreEntry,
};
use crust_inject::plan::{DataRef, Expect, PlanId, Program, Slot};
use crust_inject::{Ran, SeizedThread};
use crust_kernel::kcmp::Shared;
use crust_kernel::procfs::{ProcDir, Stat, Status};
use crust_kernel::{HostTid, NsTid, ptrace};
use std::os::fd::AsFd;

/// MEMBARRIER_CMD_GET_REGISTRATIONS (Linux 6.3).
const GET_REGISTRATIONS: u32 = 1 << 9;
const PR_GET_TID_ADDRESS: i32 = 40;
/// No signals wait.
static NO_SIGNALS: SignalQueueEntry = SignalQueueEntry { signals: Vec::new() };
/// The one control group set of a tree that stays where its restorer is.
const CG_SET: u32 = 1;

/// A process as records.
#[derive(Debug)]
pub(crate) struct Looked {
    pub(crate) pstree: PstreeEntry,
    /// Thread id inside, and its record.
    pub(crate) cores: Vec<(NsTid, CoreEntry)>,
    /// `None` for zombies.
    pub(crate) ids: Option<TaskKobjIdsEntry>,
    pub(crate) mm: Option<Mm>,
}

/// What is collected over the whole tree.
pub(crate) struct Collected<'o> {
    pub(crate) files: FileTable<'o>,
    pub(crate) ids: TaskIds,
    pub(crate) shared: memory::SharedMemory,
    pub(crate) own: namespaces::Own,
    pub(crate) seccomp: seccomp::Chains,
    /// What cannot be saved, found so far.
    pub(crate) blockers: Vec<Error>,
}

impl<'o> Collected<'o> {
    pub(crate) fn new(opts: &'o Options) -> Self {
        Self {
            files: FileTable::new(opts),
            ids: TaskIds::new(),
            shared: memory::SharedMemory::default(),
            own: namespaces::Own::look(),
            seccomp: seccomp::Chains::default(),
            blockers: Vec::new(),
        }
    }
}

/// The id of a task in its own pid namespace, from its status file.
pub(crate) fn inner_id(status: &Status) -> Option<NsTid> {
    NsTid::new(status.numbers("NSpid")?.last().copied()? as i32)
}

/// What can be said against a process without stopping it. Also the first part of every dump's look.
pub(crate) fn blockers_outside(pid: HostTid, proc: &ProcDir, status: &Status, own: &namespaces::Own) -> Vec<Error> {
    let mut found = namespaces::foreign(pid, proc, own);
    found.extend(seccomp::blocker(status));
    found.extend(settings::blocker(status));
    found.into_iter().map(|e| e.on(Object::Task(pid.as_raw()))).collect()
}

/// The same of its thread group.
fn inner_group(status: &Status) -> Option<NsTid> {
    NsTid::new(status.numbers("NStgid")?.last().copied()? as i32)
}

/// Questions that only the process itself can answer.
struct Questions {
    main: PlanId,
    actions: signals::ActionsAt,
    timers: timers::Asked,
    brk: Slot,
    dumpable: Slot,
    thp_disabled: Slot,
    subreaper: DataRef,
    membarrier: Slot,
    settings: settings::AskedProcess,
    threads: Vec<ThreadQuestions>,
}

struct ThreadQuestions {
    plan: PlanId,
    altstack: DataRef,
    tid_address: DataRef,
    death_signal: DataRef,
    securebits: Slot,
    settings: settings::AskedThread,
}

impl Questions {
    fn ask(p: &mut Program, tids: &[HostTid], timer_list: &str) -> Result<Self> {
        let plans: Vec<PlanId> = tids.iter().map(|t| p.plan(format!("thread {t}"))).collect();
        let main = *plans.first().ok_or_else(|| Error::new(Kind::Internal, "a process without threads"))?;
        let prctl = |p: &mut Program, option: i32| {
            let args = [option.into(), 0.into(), 0.into(), 0.into(), 0.into()];
            p.syscall_slot(main, "prctl", libc::SYS_prctl, &args, Expect::Ok)
        };
        let actions = signals::ask_actions(p, main);
        let timers = timers::ask(p, main, timer_list)?;
        let brk = p.syscall_slot(main, "brk", libc::SYS_brk, &[0.into()], Expect::Ok);
        let dumpable = prctl(p, libc::PR_GET_DUMPABLE);
        let thp_disabled = prctl(p, libc::PR_GET_THP_DISABLE);
        let subreaper = p.reserve(8);
        let args = [libc::PR_GET_CHILD_SUBREAPER.into(), subreaper.into()];
        p.syscall(main, "PR_GET_CHILD_SUBREAPER", libc::SYS_prctl, &args);
        let args = [GET_REGISTRATIONS.into(), 0.into(), 0.into()];
        let membarrier = p.syscall_slot(main, "membarrier", libc::SYS_membarrier, &args, Expect::Any);
        let settings = settings::ask_process(p, main);
        let threads = plans.iter().map(|&plan| Self::ask_thread(p, plan)).collect();
        Ok(Self { main, actions, timers, brk, dumpable, thp_disabled, subreaper, membarrier, settings, threads })
    }

    fn ask_thread(p: &mut Program, plan: PlanId) -> ThreadQuestions {
        let altstack = signals::ask_altstack(p, plan);
        let tid_address = p.reserve(8);
        let args = [PR_GET_TID_ADDRESS.into(), tid_address.into(), 0.into(), 0.into(), 0.into()];
        p.syscall(plan, "PR_GET_TID_ADDRESS", libc::SYS_prctl, &args);
        let death_signal = p.reserve(8);
        let args = [libc::PR_GET_PDEATHSIG.into(), death_signal.into()];
        p.syscall(plan, "PR_GET_PDEATHSIG", libc::SYS_prctl, &args);
        let args = [libc::PR_GET_SECUREBITS.into()];
        let securebits = p.syscall_slot(plan, "PR_GET_SECUREBITS", libc::SYS_prctl, &args, Expect::Ok);
        let settings = settings::ask_thread(p, plan);
        ThreadQuestions { plan, altstack, tid_address, death_signal, securebits, settings }
    }
}

/// Looks at one process. What it cannot save goes to `cx.blockers`; an error means that it cannot even be looked at.
pub(crate) fn look(p: &mut Process, cx: &mut Collected<'_>) -> Result<Looked> {
    let pid = p.pid;
    match p.seized {
        None => look_zombie(p),
        Some(_) => look_live(p, cx),
    }
    .on_task(pid.as_raw())
}

fn status_of(proc: &ProcDir) -> Result<Status> {
    Ok(Status::new(proc.read_text("status").during("reading the status file")?))
}

fn look_zombie(p: &Process) -> Result<Looked> {
    let status = status_of(&p.proc)?;
    let ns_pid = inner_id(&status).ok_or_else(|| Error::new(Kind::Internal, "the status file has no NSpid"))?;
    let tc = TaskCoreEntry {
        task_state: 2,
        exit_code: p.stat.exit_code as u32,
        flags: p.stat.flags as u32,
        comm: p.stat.comm.clone(),
        ..Default::default()
    };
    let core = CoreEntry { mtype: MTYPE, tc: Some(tc), ..Default::default() };
    Ok(Looked { pstree: pstree(p, ns_pid, vec![ns_pid]), cores: vec![(ns_pid, core)], ids: None, mm: None })
}

#[cfg(target_arch = "x86_64")]
const MTYPE: i32 = 1;

fn pstree(p: &Process, ns_pid: NsTid, threads: Vec<NsTid>) -> PstreeEntry {
    PstreeEntry {
        pid: ns_pid.as_raw() as u32,
        ppid: p.ppid as u32,
        pgid: p.stat.pgrp as u32,
        sid: p.stat.session as u32,
        threads: threads.iter().map(|t| t.as_raw() as u32).collect(),
    }
}

fn look_live(p: &mut Process, cx: &mut Collected<'_>) -> Result<Looked> {
    let status = status_of(&p.proc)?;
    let ns_pid = inner_group(&status).ok_or_else(|| Error::new(Kind::Internal, "the status file has no NStgid"))?;
    cx.blockers.extend(blockers_outside(p.pid, &p.proc, &status, &cx.own));
    let seized = p.seized.as_mut().ok_or_else(|| Error::new(Kind::Internal, "a live process that is not seized"))?;

    let timer_list = p.proc.read_text("timers").during("reading the list of timers")?;
    let tids: Vec<HostTid> = seized.threads().iter().map(SeizedThread::tid).collect();
    for &tid in &tids {
        settings::refuse_dispatch(tid)?;
    }
    let mut program = Program::new();
    let questions = Questions::ask(&mut program, &tids, &timer_list)?;
    let on: Vec<(HostTid, PlanId)> = tids.iter().zip(&questions.threads).map(|(&t, q)| (t, q.plan)).collect();
    let ran = seized.run(&program, &on)?;
    // Nothing of ours may be seen in the memory that is saved.
    seized.clean_up()?;
    for q in &questions.threads {
        if let Some(failure) = ran.failure(q.plan) {
            return Err(Error::new(Kind::Kernel, format!("asking the task failed: {failure:?}")));
        }
    }

    let target = Target { pid: p.live, ns_pid, proc: &p.proc, pidfd: p.pidfd.as_fd() };
    let mut mm = memory::collect(&target, &mut cx.files)?;
    still_on_its_way(seized.threads(), &mm)?;
    let answers = Answers { ran: &ran };
    mm.entry.mm_brk = answers.slot(questions.main, questions.brk)? as u64;
    mm.entry.dumpable = Some(answers.slot(questions.main, questions.dumpable)? as i32);
    mm.entry.thp_disabled = (answers.slot(questions.main, questions.thp_disabled)? & 1 != 0).then_some(true);
    cx.shared.collect(&target, &mm)?;
    let files_id = cx.files.dump_fds(&target)?;
    cx.files.dump_fs(&target)?;
    let mut id = |what| cx.ids.intern(p.live, what).map(|(id, _)| id);
    let ids = TaskKobjIdsEntry {
        vm_id: id(Shared::Vm)?,
        files_id,
        fs_id: id(Shared::Fs)?,
        sighand_id: id(Shared::Sighand)?,
        pid_ns_id: Some(1),
        net_ns_id: Some(2),
        ipc_ns_id: Some(3),
        uts_ns_id: Some(4),
        time_ns_id: Some(5),
        mnt_ns_id: Some(6),
        user_ns_id: Some(7),
        cgroup_ns_id: Some(8),
    };

    let process = TaskCoreEntry {
        signals_s: Some(signals::queue(p.live, true)?),
        sigactions: signals::actions(questions.actions, &|at, len| answers.data(at, len))?,
        ..Default::default()
    };
    let mut cores = Vec::with_capacity(tids.len());
    let mut filters = Vec::with_capacity(tids.len());
    for (thread, q) in seized.threads().iter().zip(&questions.threads) {
        let (core, mode) = look_thread(p.pid, thread, q, &answers, &process)?;
        cores.push(core);
        filters.push(mode);
    }
    cx.seccomp.save(&filters, cores.iter_mut().map(|c| &mut c.1));
    let mut inner: Vec<NsTid> = cores.iter().map(|c| c.0).collect();
    let tid_inside =
        |raw: i32| tids.iter().position(|t| t.as_raw() == raw).and_then(|i| inner.get(i)).map(|t| t.as_raw());
    let tc = process_part(p, &questions, &answers, &tid_inside, process)?;
    if p.live != p.pid
        && let Some((_, living)) = cores.first()
    {
        let vdso = mm.vmas.iter().find(|v| v.is(memory::status::VDSO)).map(|v| v.entry.start);
        let syscall_at = vdso.zip(memory::layout::own_syscall_offset()).map(|(start, at)| start + at);
        let leader = ProcDir::open_thread(p.pid, p.pid).during("opening /proc/PID/task/PID")?;
        let gone = || Error::new(Kind::TargetChanged, "ended while it was being looked at");
        // Of the thread alone: the process's own shows the signal that stopped it instead.
        let stat = super::freeze::stat_of(&leader).ok_or_else(gone)?;
        let creds = creds::from_status(
            &status_of(&leader)?,
            living.thread_core.as_ref().and_then(|t| t.creds.as_ref()).map_or(0, |c| c.secbits),
        )?;
        let core = ended::record(living, &stat, creds, syscall_at)?;
        cores.insert(0, (ns_pid, core));
        inner.insert(0, ns_pid);
    }
    if let Some((_, core)) = cores.first_mut() {
        let mask = core.thread_core.as_ref().and_then(|t| t.blk_sigset).unwrap_or(0);
        core.tc = Some(TaskCoreEntry { blk_sigset: mask, ..tc });
    }
    Ok(Looked { pstree: pstree(p, ns_pid, inner), cores, ids: Some(ids), mm: Some(mm) })
}

/// A thread that a killed dump left inside its landing, behind the vDSO's contents, must come home first: the landing is not
/// restored.
fn still_on_its_way(threads: &[SeizedThread], mm: &Mm) -> Result<()> {
    let Some(vdso) = mm.vmas.iter().find(|v| v.is(memory::status::VDSO)) else { return Ok(()) };
    let contents = memory::layout::own_vdso_content_len().unwrap_or(u64::MAX);
    let padding = vdso.entry.start.saturating_add(contents)..vdso.entry.end;
    match threads.iter().find(|t| padding.contains(&crust_inject::arch::regs::ip(t.regs()))) {
        Some(t) => {
            let what = format!("thread {} is still on its way back from a dump that was killed", t.tid());
            Err(Error::new(Kind::TargetChanged, what))
        }
        None => Ok(()),
    }
}

/// What the plan brought home.
struct Answers<'a> {
    ran: &'a Ran,
}

impl Answers<'_> {
    fn slot(&self, plan: PlanId, slot: Slot) -> Result<i64> {
        self.ran.result(plan, slot).ok_or_else(|| Error::new(Kind::Internal, "a plan's result is missing"))
    }

    fn data(&self, at: DataRef, len: usize) -> Result<Vec<u8>> {
        let bytes = self.ran.data(at, len).ok_or_else(|| Error::new(Kind::Internal, "a plan's data is missing"))?;
        Ok(bytes.to_vec())
    }

    fn word(&self, at: DataRef) -> Result<u64> {
        Ok(u64::from_le_bytes(self.data(at, 8)?.try_into().unwrap_or_default()))
    }
}

fn process_part(
    p: &Process,
    q: &Questions,
    a: &Answers<'_>,
    tid_inside: &dyn Fn(i32) -> Option<i32>,
    begun: TaskCoreEntry,
) -> Result<TaskCoreEntry> {
    let read = |at: DataRef, len: usize| a.data(at, len);
    let text = |name: &str| p.proc.read_text(name).during("reading a file of /proc/PID");
    let personality = u32::from_str_radix(text("personality")?.trim(), 16).unwrap_or(0);
    let number = |name: &str| text(name).ok().and_then(|t| t.trim().parse::<i64>().ok());
    let stopped = p.seized.as_ref().and_then(crust_inject::SeizedProcess::group_stop);
    let timers = timers::answers(&q.timers, &read, &|slot| a.slot(q.main, slot), tid_inside)?;
    let membarrier = a.slot(q.main, q.membarrier)?;
    Ok(TaskCoreEntry {
        task_state: if stopped.is_some() { 3 } else { 1 },
        stop_signo: stopped.map(|s| s as u32),
        personality,
        flags: p.stat.flags as u32,
        comm: p.stat.comm.clone(),
        timers: Some(timers),
        rlimits: Some(limits::record(&limits::look(&p.proc)?)),
        loginuid: number("loginuid").map(|n| n as u32),
        oom_score_adj: number("oom_score_adj").map(|n| n as i32),
        child_subreaper: Some(a.word(q.subreaper)? as u32 != 0),
        membarrier_registration_mask: (membarrier > 0).then_some(membarrier as u32),
        crust_settings: Some(settings::process(&q.settings, &p.proc, p.stat.flags, &|slot| a.slot(q.main, slot))?),
        ..begun
    })
}

fn look_thread(
    pid: HostTid,
    t: &SeizedThread,
    q: &ThreadQuestions,
    a: &Answers<'_>,
    process: &TaskCoreEntry,
) -> Result<((NsTid, CoreEntry), seccomp::Mode)> {
    let proc = ProcDir::open_thread(pid, t.tid()).during("opening /proc/PID/task/TID")?;
    let status = status_of(&proc)?;
    let tid = inner_id(&status).ok_or_else(|| Error::new(Kind::Internal, "the status file has no NSpid"))?;
    let stat = proc.read("stat").during("reading the stat file")?;
    let stat = Stat::parse(&stat).ok_or_else(|| Error::new(Kind::Internal, "the stat file has an unknown form"))?;
    let read = |at: DataRef, len: usize| a.data(at, len);
    let creds = creds::from_status(&status, a.slot(q.plan, q.securebits)? as u32)?;
    let (robust_list, robust_len) = ptrace::get_robust_list(t.tid()).during("get_robust_list")?;
    let rseq = t.rseq();
    let thread_core = ThreadCoreEntry {
        futex_rla: robust_list,
        futex_rla_len: robust_len as u32,
        sched_nice: Some(stat.nice),
        sched_policy: Some(crust_kernel::process::sched_policy(t.tid()).during("sched_getscheduler")?),
        sched_prio: (stat.rt_priority != 0).then_some(stat.rt_priority),
        blk_sigset: Some(t.sigmask()),
        sas: Some(signals::altstack(q.altstack, &read)?),
        pdeath_sig: Some(a.word(q.death_signal)? as u32).filter(|&s| s != 0),
        signals_p: Some(signals::queue(t.tid(), false)?),
        creds: Some(creds),
        comm: Some(stat.comm.clone()),
        rseq_entry: rseq.area().map(|area| RseqEntry {
            rseq_abi_pointer: area.as_raw(),
            rseq_abi_size: rseq.size,
            signature: rseq.signature,
            rseq_cs_pointer: None,
        }),
        cg_set: Some(CG_SET),
        crust_settings: Some(settings::thread(&q.settings, &read, &|slot| a.slot(q.plan, slot))?),
        ..Default::default()
    };
    let queues = [thread_core.signals_p.as_ref(), process.signals_s.as_ref()].map(|q| q.unwrap_or(&NO_SIGNALS));
    let handled = signals::next_handler(t.sigmask(), queues, &process.sigactions).map(|flags| {
        let restarts = flags & libc::SA_RESTART as u64 != 0;
        if restarts { regs::Handled::RestartsCalls } else { regs::Handled::EndsCalls }
    });
    let info = regs::to_image(t.regs(), &t.xsave()?, a.word(q.tid_address)?, handled)?;
    let core =
        CoreEntry { mtype: MTYPE, thread_info: Some(info), thread_core: Some(thread_core), ..Default::default() };
    Ok(((tid, core), seccomp::look(t.tid(), &status)?))
}

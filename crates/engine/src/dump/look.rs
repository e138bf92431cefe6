//! The look: every process of a frozen tree becomes image records. One plan runs inside each process for what only it can
//! be asked; everything else is read from outside.
use super::ask::{Asked, COMM_BYTES, Thread, ThreadQuestions};
use super::freeze::Seen;
use super::glance::Glance;
use super::waits::Wait;
use crate::cgroup::look::Groups;
use crate::error::{Error, Kind, Object, OnObject, ResultExt};
use crate::files::ids::{SighandIds, TaskIds};
use crate::files::{FileTable, Known};
use crate::memory::{self, Mm};
use crate::task::{
    Target, compat, creds, ended, landlock, limits, lsm, odds, regs, seccomp, settings, signals, timers,
};
use crate::{Options, Result, namespaces, together};
use crust_image::proto::{
    CoreEntry, CrustProcessSettings, CrustThreadSettings, PstreeEntry, RseqEntry, SignalQueueEntry, TaskCoreEntry,
    TaskKobjIdsEntry, ThreadCoreEntry,
};
use crust_inject::plan::DataRef;
use crust_kernel::kcmp::Shared;
use crust_kernel::procfs::{ProcDir, Status};
use crust_kernel::{HostTid, NsTid, TargetFd};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender};

/// No signals wait.
static NO_SIGNALS: SignalQueueEntry = SignalQueueEntry { signals: Vec::new() };

/// A process as records.
#[derive(Debug)]
pub(crate) struct Looked {
    pub(crate) pstree: PstreeEntry,
    /// Thread id inside, and its record.
    pub(crate) cores: Vec<(NsTid, Box<CoreEntry>)>,
    /// `None` for zombies.
    pub(crate) ids: Option<TaskKobjIdsEntry>,
    pub(crate) mm: Option<Mm>,
    /// Nothing found so far, here or in processes before, makes the dump fail.
    pub(crate) clean: bool,
}

/// What is collected over the whole tree.
pub(crate) struct Collected<'o> {
    pub(crate) files: FileTable<'o>,
    pub(crate) ids: TaskIds,
    pub(crate) sighands: SighandIds,
    pub(crate) shared: memory::SharedMemory,
    pub(crate) own: namespaces::Own,
    /// The time namespace of the first process, which all must share.
    pub(crate) time: Option<Option<Vec<u8>>>,
    pub(crate) seccomp: seccomp::Chains,
    pub(crate) groups: Groups<'o>,
    /// What cannot be saved, found so far.
    pub(crate) blockers: Vec<Error>,
}

impl<'o> Collected<'o> {
    pub(crate) fn new(opts: &'o Options) -> Self {
        Self {
            files: FileTable::new(opts),
            ids: TaskIds::new(),
            sighands: SighandIds::default(),
            shared: memory::SharedMemory::default(),
            own: namespaces::Own::look(),
            time: None,
            seccomp: seccomp::Chains::default(),
            groups: Groups::new(opts),
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

/// Looks at one process after the other, as their answers come in, and hands on what became of them. Ends early if nobody
/// wants to know any more.
pub(crate) fn look_at_each(
    seen: &[&Seen],
    asked: Receiver<Result<Option<Asked>>>,
    cx: &mut Collected<'_>,
    done: &Sender<Looked>,
) -> Result<()> {
    for (i, (p, asked)) in seen.iter().zip(asked).enumerate() {
        cx.files.note_task(p.pid.as_raw());
        let looked = asked.and_then(|asked| look(p, asked, cx));
        // Until it is written, which may be much later.
        p.proc.rest();
        match looked {
            Ok(mut l) => {
                if i == 0 {
                    l.pstree.ppid = 0;
                }
                l.clean = cx.blockers.is_empty() && !cx.files.has_blockers();
                if done.send(l).is_err() {
                    break;
                }
            }
            // A blocker is no reason to stop looking: the user wants all of them at once.
            Err(e) if e.kind() == Kind::Unsupported => cx.blockers.push(e),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Looks at one process, with what it said if it lives. What it cannot save goes to `cx.blockers`; an error means that it
/// cannot even be looked at.
fn look(p: &Seen, asked: Option<Asked>, cx: &mut Collected<'_>) -> Result<Looked> {
    match asked {
        None => look_zombie(p),
        Some(asked) => look_live(p, &asked, cx),
    }
    .on_task(p.pid.as_raw())
}

fn status_of(proc: &ProcDir) -> Result<Status> {
    Ok(Status::new(proc.read_text("status").during("reading the status file")?))
}

fn look_zombie(p: &Seen) -> Result<Looked> {
    let status = status_of(&p.proc)?;
    let ns_pid = inner_id(&status).ok_or_else(|| Error::new(Kind::Internal, "the status file has no NSpid"))?;
    let tc = TaskCoreEntry {
        task_state: 2,
        exit_code: p.stat.exit_code as u32,
        flags: p.stat.flags as u32,
        comm: p.stat.comm.clone(),
        ..Default::default()
    };
    let core = Box::new(CoreEntry { mtype: regs::MTYPE, tc: Some(Box::new(tc)), ..Default::default() });
    Ok(Looked {
        pstree: pstree(p, ns_pid, vec![ns_pid]),
        cores: vec![(ns_pid, core)],
        ids: None,
        mm: None,
        clean: true,
    })
}

fn pstree(p: &Seen, ns_pid: NsTid, threads: Vec<NsTid>) -> PstreeEntry {
    PstreeEntry {
        pid: ns_pid.as_raw() as u32,
        ppid: p.ppid as u32,
        pgid: p.stat.pgrp as u32,
        sid: p.stat.session as u32,
        threads: threads.iter().map(|t| t.as_raw() as u32).collect(),
    }
}

fn look_live(p: &Seen, asked: &Asked, cx: &mut Collected<'_>) -> Result<Looked> {
    let status = status_of(&p.proc)?;
    let ns_pid = inner_group(&status).ok_or_else(|| Error::new(Kind::Internal, "the status file has no NStgid"))?;
    cx.blockers.extend(blockers_outside(p.pid, &p.proc, &status, &cx.own));
    let Asked { questions, answers, .. } = asked;
    let time = p.proc.readlink("ns/time").ok();
    if *cx.time.get_or_insert_with(|| time.clone()) != time {
        let help = "trees that span several time namespaces are not supported";
        return Err(Error::unsupported("lives in another time namespace than the root task", help));
    }

    let pidfd = p.pidfd()?;
    let target = Target { pid: p.live, ns_pid, proc: &p.proc, pidfd: pidfd.as_fd() };
    let process = TaskCoreEntry {
        signals_s: Some(asked.pending.clone()),
        sigactions: signals::actions(questions.actions, questions.is_32bit, &|at, len| answers.data(at, len))?,
        ..Default::default()
    };
    let view =
        Threads { p, asked, process: &process, net: p.proc.readlink("ns/net").ok(), groups: cx.groups.are_saved() };
    let (threads, what_is_shared) =
        together::with_help(asked.threads.len(), |i| view.look(i), || look_shared(&target, asked, cx));
    let (mm, files_id) = what_is_shared?;
    cx.blockers.extend(compat::refuse_table(answers.slot(questions.main, questions.segments)?));
    let ids = TaskKobjIdsEntry {
        vm_id: asked.vm,
        files_id,
        fs_id: cx.ids.intern(p.live, Shared::Fs)?.0,
        sighand_id: cx.sighands.intern(p.live, asked.vm)?,
        pid_ns_id: Some(1),
        net_ns_id: Some(2),
        ipc_ns_id: Some(3),
        uts_ns_id: Some(4),
        time_ns_id: Some(5),
        mnt_ns_id: Some(6),
        user_ns_id: Some(7),
        cgroup_ns_id: Some(8),
    };

    let mut cores = Vec::with_capacity(threads.len());
    for thread in threads {
        let OneThread { apart, tid, mut core, groups } = thread?;
        cx.blockers.extend(apart);
        if let Some(th) = &mut core.thread_core {
            th.cg_set = Some(cx.groups.set_of(groups)?);
        }
        cores.push((tid, core));
    }
    cx.seccomp.save(&asked.seccomp, cores.iter_mut().map(|c| &mut *c.1));
    let mut inner: Vec<NsTid> = cores.iter().map(|c| c.0).collect();
    let tid_inside = |raw: i32| {
        asked.threads.iter().position(|t| t.tid.as_raw() == raw).and_then(|i| inner.get(i)).map(|t| t.as_raw())
    };
    let tc = process_part(p, asked, &tid_inside, (ns_pid, &inner), process)?;
    if p.live != p.pid
        && let Some((_, living)) = cores.first()
    {
        let leader = ProcDir::open_thread(p.pid, p.pid).during("opening /proc/PID/task/PID")?;
        let gone = || Error::new(Kind::TargetChanged, "ended while it was being looked at");
        // Of the thread alone: the process's own shows the signal that stopped it instead.
        let stat = super::freeze::stat_of(&leader).ok_or_else(gone)?;
        let creds = creds::from_status(
            &status_of(&leader)?,
            living.thread_core.as_ref().and_then(|t| t.creds.as_ref()).map_or(0, |c| c.secbits),
        )?;
        let core = ended::record(living, &stat, creds, call_place(&target, questions.is_32bit, &mm)?)?;
        cores.insert(0, (ns_pid, Box::new(core)));
        inner.insert(0, ns_pid);
    }
    if let Some((_, core)) = cores.first_mut() {
        let mask = core.thread_core.as_ref().and_then(|t| t.blk_sigset).unwrap_or(0);
        core.tc = Some(Box::new(TaskCoreEntry { blk_sigset: mask, ..tc }));
    }
    Ok(Looked { pstree: pstree(p, ns_pid, inner), cores, ids: Some(ids), mm: Some(mm), clean: true })
}

/// Memory, descriptors and directories of a process: what its threads share. The id is that of the table of descriptors.
fn look_shared(target: &Target<'_>, asked: &Asked, cx: &mut Collected<'_>) -> Result<(Mm, u32)> {
    let Asked { questions, answers, .. } = asked;
    let mut mm = memory::collect(target, &mut cx.files)?;
    cx.blockers.extend(odds::mapping_policy(target.pid.as_raw(), target.proc));
    still_on_its_way(asked, &mm)?;
    cx.blockers.extend(kernel_mappings(target, questions.is_32bit, &mm)?);
    mm.entry.mm_brk = answers.slot(questions.main, questions.brk)? as u64;
    mm.entry.dumpable = Some(answers.slot(questions.main, questions.dumpable)? as i32);
    mm.entry.thp_disabled = (answers.slot(questions.main, questions.thp_disabled)? & 1 != 0).then_some(true);
    cx.shared.collect(target, &mm)?;
    let files_id = cx.files.dump_known_fds(target, &descriptors(target, asked)?)?;
    cx.files.dump_fs(target)?;
    Ok((mm, files_id))
}

/// The descriptors of a process, as it has told.
fn descriptors(target: &Target<'_>, asked: &Asked) -> Result<Vec<Known>> {
    let Asked { questions, answers, .. } = asked;
    let mut open = Vec::with_capacity(questions.descriptors.len());
    for &(fd, flags) in &questions.descriptors {
        let flags = flags.map(|slot| answers.slot(questions.main, slot)).transpose()?;
        if questions.descriptors_open.is_some() && flags == Some(-i64::from(libc::EBADF)) {
            continue;
        }
        // Why a call failed else is for the look from outside to tell.
        let cloexec = flags.filter(|&flags| flags >= 0).map(|flags| flags & i64::from(libc::FD_CLOEXEC) != 0);
        open.push(Known { fd, cloexec });
    }
    if questions.descriptors_open.is_none_or(|count| count == open.len()) {
        return Ok(open);
    }
    // Some have higher numbers than were asked for.
    let told: HashMap<TargetFd, Known> = open.into_iter().map(|known| (known.fd, known)).collect();
    let all = target.proc.numbers("fd").during("listing descriptors")?.into_iter().map(TargetFd);
    Ok(all.map(|fd| told.get(&fd).copied().unwrap_or(Known { fd, cloexec: None })).collect())
}

/// The threads of a process, each to be looked at by itself.
struct Threads<'a> {
    p: &'a Seen,
    asked: &'a Asked,
    process: &'a TaskCoreEntry,
    /// The process's net namespace.
    net: Option<Vec<u8>>,
    /// Control groups are saved.
    groups: bool,
}

/// What became of one of them.
struct OneThread {
    apart: Vec<Error>,
    tid: NsTid,
    core: Box<CoreEntry>,
    /// Its control groups as text.
    groups: Option<Vec<u8>>,
}

impl Threads<'_> {
    fn look(&self, i: usize) -> Result<OneThread> {
        let both = self.asked.threads.get(i).zip(self.asked.questions.threads.get(i));
        let (t, q) = both.ok_or_else(|| Error::new(Kind::Internal, "a thread that was not asked"))?;
        let now;
        let glance = match &t.glance {
            Some(early) => early,
            None => {
                now = Glance::take(&self.p.proc, self.p.live, t.tid, self.groups)?;
                &now
            }
        };
        let apart = glance.apart(self.net.as_deref(), t.tid);
        let (tid, mut core) = look_thread(t, q, glance, self.asked, self.process, self.p.waits.get(&t.tid))?;
        let creds = core.thread_core.as_mut().and_then(|t| t.creds.as_mut());
        let label = creds.and_then(|creds| lsm::save(creds, &self.p.proc, t.tid).err());
        let confined = self.asked.confined.contains(&t.tid).then(|| landlock::refusal(t.tid));
        let apart =
            apart.into_iter().chain(label).chain(confined).map(|e| e.on(Object::Task(self.p.pid.as_raw()))).collect();
        Ok(OneThread { apart, tid, core: Box::new(core), groups: glance.groups.clone() })
    }
}

/// Address of a system call instruction that the restored program has, too.
fn call_place(target: &Target<'_>, is_32bit: bool, mm: &Mm) -> Result<Option<u64>> {
    let Some(vdso) = mm.vmas.iter().find(|v| v.is(memory::status::VDSO)) else {
        return memory::layout::syscall_in_code(target.proc, target.pid, (0, 0));
    };
    Ok(memory::layout::syscall_offset(is_32bit).map(|at| vdso.entry.start + at))
}

/// What hinders a program that has not all of the mappings that its kernel gave it. With none of them it can be restored if it
/// is a 64-bit program that makes calls itself.
pub(crate) fn kernel_mappings(target: &Target<'_>, is_32bit: bool, mm: &Mm) -> Result<Option<Error>> {
    let has = |status| mm.vmas.iter().any(|v| v.is(status));
    let (code, data) = (has(memory::status::VDSO), has(memory::status::VVAR));
    let what = match (code, data) {
        (true, true) => return Ok(None),
        (true, false) if !memory::layout::kernel_has_vvar() => return Ok(None),
        (true, false) => "it has unmapped the data of its vDSO, but not the code",
        (false, true) => "it has unmapped the code of its vDSO, but not the data",
        (false, false) if is_32bit => "it is a 32-bit program without a vDSO",
        (false, false) if call_place(target, is_32bit, mm)?.is_some() => return Ok(None),
        (false, false) => "it has no vDSO, and no system call instruction in its code",
    };
    Ok(Some(
        Error::unsupported(what, "let it keep what its kernel mapped, or unmap all of it")
            .on(Object::Task(target.ns_pid.as_raw())),
    ))
}

/// A thread that a killed dump left inside its landing, behind the vDSO's contents, must come home first: the landing is not
/// restored.
fn still_on_its_way(asked: &Asked, mm: &Mm) -> Result<()> {
    let Some(vdso) = mm.vmas.iter().find(|v| v.is(memory::status::VDSO)) else { return Ok(()) };
    let contents = memory::layout::vdso_content_len(asked.questions.is_32bit).unwrap_or(u64::MAX);
    let padding = vdso.entry.start.saturating_add(contents)..vdso.entry.end;
    match asked.threads.iter().find(|t| padding.contains(&crust_inject::arch::regs::ip(&t.regs))) {
        Some(t) => {
            let what = format!("thread {} is still on its way back from a dump that was killed", t.tid);
            Err(Error::new(Kind::TargetChanged, what))
        }
        None => Ok(()),
    }
}

fn process_part(
    p: &Seen,
    asked: &Asked,
    tid_inside: &dyn Fn(i32) -> Option<i32>,
    (ns_pid, inner): (NsTid, &[NsTid]),
    begun: TaskCoreEntry,
) -> Result<TaskCoreEntry> {
    let Asked { questions: q, answers: a, .. } = asked;
    let read = |at: DataRef, len: usize| a.data(at, len);
    let number = |name: &str| {
        let text = p.proc.read_small(name).ok()?;
        std::str::from_utf8(&text).ok()?.trim().parse::<i64>().ok()
    };
    let stopped = asked.group_stop;
    let is_thread = |tid: i32| inner.iter().any(|t| t.as_raw() == tid);
    let own_ids: (i32, &dyn Fn(i32) -> bool) = (ns_pid.as_raw(), &is_thread);
    let timers = timers::answers(&q.timers, &read, &|slot| a.slot(q.main, slot), tid_inside, own_ids)?;
    let mut settings = settings::process(&q.settings, &p.proc, p.stat.flags, &read, &|slot| a.slot(q.main, slot))?;
    settings.locks_new = asked.locks_new;
    if p.stat.session == p.pid.as_raw() {
        settings.autogroup_nice = odds::autogroup_nice(&p.proc);
    }
    let membarrier = a.slot(q.main, q.membarrier)?;
    Ok(TaskCoreEntry {
        task_state: if stopped.is_some() { 3 } else { 1 },
        stop_signo: stopped.map(|s| s as u32),
        personality: a.slot(q.main, q.personality)? as u32,
        flags: p.stat.flags as u32,
        comm: p.stat.comm.clone(),
        timers: Some(timers),
        rlimits: Some(limits::answers(q.limits, &read)?),
        loginuid: number("loginuid").map(|n| n as u32),
        oom_score_adj: number("oom_score_adj").map(|n| n as i32),
        child_subreaper: Some(a.word(q.subreaper)? as u32 != 0),
        membarrier_registration_mask: (membarrier > 0).then_some(membarrier as u32),
        crust_settings: Some(settings).filter(|s| *s != CrustProcessSettings::default()),
        ..begun
    })
}

/// Head of a thread's list of robust futexes, and the head's length.
fn robust_list(glance: &Glance, q: &ThreadQuestions, a: &super::ask::Answers) -> Result<(u64, u64)> {
    let (head, len) = glance.robust_list;
    let Some(at) = q.robust_list else { return Ok((head, len)) };
    if head != 0 {
        let help = "let the thread end before the dump";
        return Err(Error::unsupported("a 32-bit thread has a robust list of 64-bit code, too", help));
    }
    let word = |at| a.word(at).map(|w| w & u64::from(u32::MAX));
    Ok((word(at)?, word(at.offset(8))?))
}

fn look_thread(
    t: &Thread,
    q: &ThreadQuestions,
    glance: &Glance,
    asked: &Asked,
    process: &TaskCoreEntry,
    wait: Option<&Wait>,
) -> Result<(NsTid, CoreEntry)> {
    let a = &asked.answers;
    let status = &t.status;
    let tid = inner_id(status).ok_or_else(|| Error::new(Kind::Internal, "the status file has no NSpid"))?;
    let read = |at: DataRef, len: usize| a.data(at, len);
    let sched = &glance.sched;
    if sched.is_clamped() {
        let help = "take the clamp off before the dump (uclampset, sched_setattr)";
        return Err(Error::unsupported(format!("thread {tid} has utilization clamps, which cannot be saved"), help));
    }
    let creds = creds::from_status(status, a.slot(q.plan, q.securebits)? as u32)?;
    let (robust_list, robust_len) = robust_list(glance, q, a)?;
    let rseq = &t.rseq;
    let mut comm = a.data(q.comm, COMM_BYTES)?;
    comm.truncate(comm.iter().position(|&b| b == 0).unwrap_or(COMM_BYTES));
    let mut thread_core = ThreadCoreEntry {
        futex_rla: robust_list,
        futex_rla_len: robust_len as u32,
        sched_nice: Some(sched.nice),
        sched_policy: Some(sched.policy),
        sched_prio: (sched.rt_priority != 0).then_some(sched.rt_priority),
        blk_sigset: Some(t.sigmask),
        sas: Some(signals::altstack(q.altstack, &read)?),
        pdeath_sig: Some(a.word(q.death_signal)? as u32).filter(|&s| s != 0),
        signals_p: Some(t.pending.clone()),
        creds: Some(creds),
        comm: Some(comm),
        rseq_entry: rseq.area().map(|area| RseqEntry {
            rseq_abi_pointer: area.as_raw(),
            rseq_abi_size: rseq.size,
            signature: rseq.signature,
            rseq_cs_pointer: None,
        }),
        crust_settings: Some(CrustThreadSettings {
            dispatch: asked.dispatch.get(&t.tid).copied(),
            debug_registers: t.debug_registers.clone(),
            tile_room: t.tile_room.then_some(true),
            ..settings::thread(&q.settings, &read, &|slot| a.slot(q.plan, slot))?
        })
        .filter(|s| *s != CrustThreadSettings::default()),
        ..Default::default()
    };
    let queues = [thread_core.signals_p.as_ref(), process.signals_s.as_ref()].map(|q| q.unwrap_or(&NO_SIGNALS));
    let handled = signals::next_handler(t.sigmask, queues, &process.sigactions).map(|flags| {
        let restarts = flags & libc::SA_RESTART as u64 != 0;
        if restarts { regs::Handled::RestartsCalls } else { regs::Handled::EndsCalls }
    });
    let mut general = t.regs;
    if let Some(wait) = wait.filter(|_| handled.is_none()) {
        if wait.goes_on_by(&general) {
            general.orig_rax = wait.nr() as u64;
        }
        thread_core.crust_wait_left_ns = wait.left(t.tid, &t.regs).and_then(|left| left.as_nanos().try_into().ok());
    }
    let info = regs::to_image(&general, &t.segments, &t.xsave, a.word(q.tid_address)?, handled)?;
    Ok((
        tid,
        CoreEntry { mtype: regs::MTYPE, thread_info: Some(info), thread_core: Some(thread_core), ..Default::default() },
    ))
}

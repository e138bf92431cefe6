//! The questions that only a process itself and its tracer can answer, put to many processes at the same time. What comes back
//! is plain data, for another thread to go on with.
use super::freeze::Seen;
use super::glance::Glance;
use crate::error::{Error, Kind, Object, OnObject, ResultExt};
use crate::files::ids::TaskIds;
use crate::task::{
    breakpoints, compat, dispatch, landlock, limits, lockall, odds, regs, seccomp, settings, signals, timers,
};
use crate::{Result, together};
use crust_image::proto::{CrustDispatch, SignalQueueEntry};
use crust_inject::plan::{DataRef, Expect, PlanId, Program, Slot};
use crust_inject::{Job, Ran, SeizedProcess, SeizedThread, arch};
use crust_kernel::kcmp::Shared;
use crust_kernel::procfs::{ProcDir, Status};
use crust_kernel::ptrace::RseqConfig;
use crust_kernel::ptrace_x86::Segment;
use crust_kernel::{HostTid, TargetFd};
use std::collections::HashMap;
use std::sync::Arc;

/// MEMBARRIER_CMD_GET_REGISTRATIONS (Linux 6.3).
const GET_REGISTRATIONS: u32 = 1 << 9;
const PR_GET_TID_ADDRESS: i32 = 40;
/// Bytes that PR_GET_NAME gives, NUL included.
pub(super) const COMM_BYTES: usize = 16;
/// The flags of more descriptors would need too much room in the process; their fdinfo files tell them as well.
const DESCRIPTORS_ASKED: usize = 4096;
/// personality(2) with this changes nothing.
const PERSONALITY_ASK: u32 = 0xffff_ffff;

/// What a process and its tracer said.
pub(super) struct Asked {
    pub(super) questions: Questions,
    pub(super) answers: Answers,
    pub(super) threads: Vec<Thread>,
    /// Signals queued for the process as a whole.
    pub(super) pending: SignalQueueEntry,
    pub(super) group_stop: Option<i32>,
    /// Of each thread.
    pub(super) seccomp: Vec<seccomp::Mode>,
    /// Id of its address space.
    pub(super) vm: u32,
    /// Threads whose system calls can be sent to themselves.
    pub(super) dispatch: HashMap<HostTid, CrustDispatch>,
    /// As [`CrustProcessSettings::locks_new`](crust_image::proto::CrustProcessSettings).
    pub(super) locks_new: Option<u32>,
    /// Threads that Landlock confines.
    pub(super) confined: Vec<HostTid>,
}

/// What the tracer knows of a thread.
pub(super) struct Thread {
    pub(super) tid: HostTid,
    pub(super) status: Status,
    pub(super) regs: arch::regs::Regs,
    pub(super) segments: Vec<Segment>,
    pub(super) debug_registers: Vec<u64>,
    pub(super) xsave: Vec<u8>,
    /// The kernel has room for its AMX tiles.
    pub(super) tile_room: bool,
    pub(super) sigmask: u64,
    pub(super) rseq: RseqConfig,
    pub(super) pending: SignalQueueEntry,
    /// If it has been taken already.
    pub(super) glance: Option<Glance>,
}

/// What was seen of threads before they were asked.
#[derive(Default)]
struct Early {
    statuses: HashMap<HostTid, Status>,
    glances: HashMap<HostTid, Glance>,
}

impl Thread {
    /// `timed`: the process has timers; `tiles`: it may use AMX tiles.
    fn look(seen: &Seen, t: &SeizedThread, early: &mut Early, timed: bool, tiles: bool) -> Result<Self> {
        let glance = early.glances.remove(&t.tid());
        let early = early.statuses.remove(&t.tid());
        // A timer may have sent its signal after that: its state, which was asked for meanwhile, no longer tells.
        let may_wait = timed && early.is_some();
        let status = match early {
            Some(status) => status,
            None if t.tid() == seen.live => {
                let text = seen.proc.read("status").during(READING_STATUS)?;
                Status::new(String::from_utf8_lossy(&text).into_owned())
            }
            None => Status::new(status_file(&seen.proc, t.tid()).during(READING_STATUS)?),
        };
        let waiting = may_wait || status.mask("SigPnd") != Some(0);
        Ok(Self {
            tid: t.tid(),
            regs: *t.regs(),
            segments: compat::segments(t.tid(), t.regs())?,
            debug_registers: breakpoints::look(t.tid())?,
            xsave: t.xsave(|area| regs::in_use(area).to_vec())?,
            tile_room: tiles && t.has_tile_room()?,
            sigmask: t.sigmask(),
            rseq: *t.rseq(),
            pending: if waiting { signals::queue(t.tid(), false)? } else { SignalQueueEntry::default() },
            status,
            glance,
        })
    }
}

const READING_STATUS: &str = "reading the status file";

fn status_file(process: &ProcDir, tid: HostTid) -> rustix::io::Result<String> {
    let text = process.read_small(&format!("task/{tid}/status"))?;
    Ok(String::from_utf8(text).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// A thread besides the first of its process.
struct Other {
    process: Arc<ProcDir>,
    live: HostTid,
    tid: HostTid,
}

/// Threads besides the first of each process, if there are so many that others of ours shall help to look at them.
fn crowd(processes: &[(&Seen, &mut SeizedProcess, u32)]) -> Vec<Other> {
    const CROWD: usize = 32;
    let others = |(seen, process, _): &(&Seen, &mut SeizedProcess, u32)| {
        let (dir, live) = (seen.proc.clone(), seen.live);
        let tids: Vec<HostTid> = process.threads().iter().map(SeizedThread::tid).filter(|&t| t != live).collect();
        tids.into_iter().map(move |tid| Other { process: dir.clone(), live, tid })
    };
    let wanted: Vec<_> = processes.iter().flat_map(others).collect();
    if wanted.len() < CROWD { Vec::new() } else { wanted }
}

/// Processes that are asked at the same time, and threads.
pub(super) const TOGETHER: usize = 32;
const THREADS_TOGETHER: usize = 512;

/// The answers of a tree, in waves of processes that are asked at the same time; `None` stands for a zombie.
pub(super) struct Waves<'a> {
    left: std::iter::Peekable<Pairs<'a>>,
    address_spaces: TaskIds,
    /// Who was asked in each.
    asked_in: HashMap<u32, HostTid>,
    /// Control groups are saved.
    groups: bool,
    /// If anybody can be confined by Landlock at all.
    outside: Option<landlock::Outside>,
}

/// What becomes of a process in a wave.
enum Part {
    Zombie,
    Asked,
    Refused(Error),
}

/// What hinders a process that shares its memory with `other`.
pub(crate) fn shared_memory(other: HostTid) -> Error {
    let text = format!("shares its memory with process {other}");
    Error::unsupported(
        text,
        "processes that share memory (vfork in progress, CLONE_VM) are not supported: wait until one ends",
    )
}

type Pairs<'a> = std::iter::Zip<std::slice::Iter<'a, &'a Seen>, std::vec::IntoIter<Option<&'a mut SeizedProcess>>>;

impl<'a> Waves<'a> {
    pub(super) fn new(seen: &'a [&'a Seen], seized: Vec<Option<&'a mut SeizedProcess>>, groups: bool) -> Self {
        let left = seen.iter().zip(seized).peekable();
        // Without /proc nothing of this goes anywhere.
        let outside = landlock::Outside::look().ok().flatten();
        Self { left, address_spaces: TaskIds::new(), asked_in: HashMap::new(), groups, outside }
    }

    /// The next wave, or the reason why it cannot be.
    fn ask(&mut self) -> Result<Vec<Result<Option<Asked>>>> {
        let mut live = Vec::new();
        let mut wave = Vec::new();
        let mut threads = 0;
        while wave.len() < TOGETHER && threads < THREADS_TOGETHER {
            let Some((seen, seized)) = self.left.peek() else { break };
            if seized.is_some() {
                let (vm, _) = self.address_spaces.intern(seen.live, Shared::Vm)?;
                // What we put into an address space must not be there while anybody looks at it through another process.
                if let Some(other) = self.asked_in.insert(vm, seen.pid) {
                    wave.push(Part::Refused(shared_memory(other).on(Object::Task(seen.pid.as_raw()))));
                    self.left.next();
                    continue;
                }
                if let Some((seen, Some(process))) = self.left.next() {
                    threads += process.threads().len();
                    live.push((*seen, process, vm));
                }
                wave.push(Part::Asked);
            } else {
                self.left.next();
                wave.push(Part::Zombie);
            }
        }
        let mut asked = ask(&mut live, self.groups, self.outside.as_ref()).into_iter();
        let missing = || Error::new(Kind::Internal, "a process was not asked");
        let answer = |part| match part {
            Part::Asked => asked.next().ok_or_else(missing)?.map(Some),
            Part::Zombie => Ok(None),
            Part::Refused(e) => Err(e),
        };
        Ok(wave.into_iter().map(answer).collect())
    }
}

impl Iterator for Waves<'_> {
    type Item = Vec<Result<Option<Asked>>>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.ask() {
            Ok(wave) if wave.is_empty() => None,
            Ok(wave) => Some(wave),
            Err(e) => Some(vec![Err(e)]),
        }
    }
}

/// What there is of `results`, by thread.
fn of_each<T>(crowd: &[Other], results: Vec<Option<T>>) -> HashMap<HostTid, T> {
    crowd.iter().zip(results).filter_map(|(other, result)| Some((other.tid, result?))).collect()
}

/// Asks some live processes, all at once. One result for each, in order. `groups`: control groups are saved.
fn ask(
    processes: &mut [(&Seen, &mut SeizedProcess, u32)],
    groups: bool,
    outside: Option<&landlock::Outside>,
) -> Vec<Result<Asked>> {
    let mut prepared: Vec<Result<Prepared>> =
        processes.iter_mut().map(|(seen, p, _)| Prepared::new(seen, p, outside)).collect();
    // What cannot be read is left to whoever needs it.
    let crowd = crowd(processes);
    let mut early = Early::default();
    let status = |other: &Other| Some(Status::new(status_file(&other.process, other.tid).ok()?));
    early.statuses = of_each(&crowd, together::each(crowd.len(), |i| status(crowd.get(i)?)));
    if !early.statuses.is_empty() {
        for (_, process, _) in processes.iter_mut() {
            process.no_seccomp_in(|tid| early.statuses.get(&tid).is_some_and(|s| s.number("Seccomp") == Some(0)));
        }
    }
    // Only this thread can ask; others look meanwhile.
    let glance = |o: &Other| Glance::take(&o.process, o.live, o.tid, groups).ok();
    let (glances, ran) = together::with_help(
        crowd.len(),
        |i| glance(crowd.get(i)?),
        || crust_inject::run_each(jobs(processes, &mut prepared)),
    );
    early.glances = of_each(&crowd, glances);
    let mut ran = ran.into_iter();
    let asked = processes.iter_mut().zip(prepared.drain(..)).map(|((seen, process, vm), prepared)| {
        let asked = prepared.and_then(|prepared| {
            let ran = ran.next().ok_or_else(|| Error::new(Kind::Internal, "a process was not asked"))??;
            prepared.finish(seen, process, *vm, ran, &mut early, outside)
        });
        // Until it is looked at, which may be much later.
        seen.proc.rest();
        asked.on_task(seen.pid.as_raw())
    });
    asked.collect()
}

fn jobs<'a>(
    processes: &'a mut [(&Seen, &mut SeizedProcess, u32)],
    prepared: &'a mut [Result<Prepared>],
) -> impl Iterator<Item = Job<'a>> {
    processes.iter_mut().zip(prepared).filter_map(|((_, process, _), prepared)| {
        let Prepared { program, on, .. } = prepared.as_mut().ok()?;
        Some(Job { process, program: std::mem::take(program), on })
    })
}

/// Threads that Landlock confines, of those who could be asked; warns of those who may be and could not.
fn confined(
    seen: &Seen,
    threads: &[Thread],
    questions: &Questions,
    ran: &Ran,
    outside: Option<&landlock::Outside>,
) -> Vec<HostTid> {
    use landlock::Verdict;
    let Some(us) = outside else { return Vec::new() };
    let mut found = Vec::new();
    let mut unknown = false;
    for (t, q) in threads.iter().zip(&questions.threads) {
        let answer = q.sees_us.and_then(|slot| ran.result(q.plan, slot));
        match us.judge(&t.status, answer, || landlock::is_at_home(&seen.proc)) {
            Verdict::Free => {}
            Verdict::Confined => found.push(t.tid),
            // Who may gain privileges needed one to confine itself: hardly anybody does that.
            Verdict::Unknown => unknown |= t.status.number("NoNewPrivs") == Some(1),
        }
    }
    if unknown {
        let pid = seen.pid;
        log::warn!(
            "whether task {pid} confined itself with Landlock cannot be told from here: if so, it comes back without"
        );
    }
    found
}

/// Descriptors to ask a process for.
struct Descriptors {
    numbers: Vec<u32>,
    /// How many of them are open, if that is all that is known.
    count: Option<usize>,
    flags_too: bool,
}

impl Descriptors {
    /// To list many takes as long as to look at them: where the kernel counts them (Linux 6.2), the process is asked for as many
    /// numbers and some more, and says which of them are open.
    fn look(proc: &ProcDir, cheap: bool) -> rustix::io::Result<Self> {
        const WORTH_ASKING: usize = 32;
        let count = if cheap { proc.stat_file("fd").map_or(0, |dir| dir.st_size.max(0) as usize) } else { 0 };
        if (WORTH_ASKING..=DESCRIPTORS_ASKED).contains(&count) {
            let some_more = count + count / 16 + 8;
            return Ok(Self { numbers: (0..some_more as u32).collect(), count: Some(count), flags_too: true });
        }
        let numbers = proc.numbers("fd")?;
        let flags_too = cheap && numbers.len() <= DESCRIPTORS_ASKED;
        Ok(Self { numbers, count: None, flags_too })
    }
}

struct Prepared {
    program: Program,
    questions: Questions,
    on: Vec<(HostTid, PlanId)>,
    /// It has timers.
    timed: bool,
    dispatch: HashMap<HostTid, CrustDispatch>,
}

impl Prepared {
    fn new(seen: &Seen, process: &mut SeizedProcess, outside: Option<&landlock::Outside>) -> Result<Self> {
        let timer_list = seen.proc.read_text("timers").during("reading the list of timers")?;
        let tids: Vec<HostTid> = process.threads().iter().map(SeizedThread::tid).collect();
        for thread in process.threads() {
            odds::refuse_worker(&seen.proc, thread)?;
        }
        let dispatch = dispatch::look(&tids)?;
        let mut program = Program::new();
        let status = process.status()?;
        let cheap = !process.steps_plans(&status);
        let outside = outside.filter(|us| us.asks(&status));
        let descriptors = Descriptors::look(&seen.proc, cheap).during("listing descriptors")?;
        let is_32bit = process.is_32bit()?;
        let questions = Questions::ask(&mut program, &tids, &timer_list, descriptors, is_32bit, outside)?;
        let on = tids.iter().zip(&questions.threads).map(|(&t, q)| (t, q.plan)).collect();
        Ok(Self { program, questions, on, timed: !timer_list.trim().is_empty(), dispatch })
    }

    fn finish(
        self,
        seen: &Seen,
        process: &mut SeizedProcess,
        vm: u32,
        ran: Ran,
        early: &mut Early,
        outside: Option<&landlock::Outside>,
    ) -> Result<Asked> {
        for q in &self.questions.threads {
            if let Some(failure) = ran.failure(q.plan) {
                return Err(Error::new(Kind::Kernel, format!("asking the task failed: {failure:?}")));
            }
        }
        let tiles = settings::may_use_tiles(&self.questions.settings, &ran);
        let look = |t| Thread::look(seen, t, early, self.timed, tiles);
        let threads = process.threads().iter().map(look).collect::<Result<Vec<_>>>()?;
        let locks = ran.result(self.questions.main, self.questions.locks);
        let locks_new = lockall::look(process, seen.live, locks)?;
        let seccomp = threads.iter().map(|t| seccomp::look(t.tid, &t.status)).collect::<Result<_>>()?;
        let confined = confined(seen, &threads, &self.questions, &ran, outside);
        let waiting = threads.first().is_none_or(|t| t.status.mask("ShdPnd") != Some(0));
        Ok(Asked {
            threads,
            seccomp,
            vm,
            pending: if waiting { signals::queue(seen.live, true)? } else { SignalQueueEntry::default() },
            group_stop: process.group_stop(),
            questions: self.questions,
            answers: Answers { ran },
            dispatch: self.dispatch,
            locks_new,
            confined,
        })
    }
}

/// Questions that only the process itself can answer.
pub(super) struct Questions {
    pub(super) main: PlanId,
    pub(super) actions: signals::ActionsAt,
    pub(super) timers: timers::Asked,
    pub(super) brk: Slot,
    pub(super) dumpable: Slot,
    pub(super) thp_disabled: Slot,
    pub(super) subreaper: DataRef,
    pub(super) membarrier: Slot,
    pub(super) personality: Slot,
    pub(super) limits: DataRef,
    /// Where the flags are of each descriptor, if they were asked for.
    pub(super) descriptors: Vec<(TargetFd, Option<Slot>)>,
    /// How many of those are open; all, if this is not there.
    pub(super) descriptors_open: Option<usize>,
    pub(super) settings: settings::AskedProcess,
    locks: Slot,
    pub(super) segments: Slot,
    pub(super) threads: Vec<ThreadQuestions>,
    /// They were put to a 32-bit program.
    pub(super) is_32bit: bool,
}

pub(super) struct ThreadQuestions {
    pub(super) plan: PlanId,
    /// Whether it may look at us.
    sees_us: Option<Slot>,
    /// Of 32-bit code: others can be asked from outside.
    pub(super) robust_list: Option<DataRef>,
    pub(super) altstack: DataRef,
    pub(super) tid_address: DataRef,
    pub(super) death_signal: DataRef,
    pub(super) securebits: Slot,
    pub(super) comm: DataRef,
    pub(super) settings: settings::AskedThread,
}

impl Questions {
    fn ask(
        p: &mut Program,
        tids: &[HostTid],
        timer_list: &str,
        Descriptors { numbers, count, flags_too }: Descriptors,
        is_32bit: bool,
        outside: Option<&landlock::Outside>,
    ) -> Result<Self> {
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
        let personality =
            p.syscall_slot(main, "personality", libc::SYS_personality, &[PERSONALITY_ASK.into()], Expect::Ok);
        let limits = limits::ask(p, main);
        let mut getfd =
            |fd: u32| p.syscall_slot(main, "F_GETFD", libc::SYS_fcntl, &[fd.into(), libc::F_GETFD.into()], Expect::Any);
        let descriptors = numbers.into_iter().map(|fd| (TargetFd(fd), flags_too.then(|| getfd(fd)))).collect();
        let settings = settings::ask_process(p, main);
        let locks = lockall::ask(p, main);
        let threads = plans.iter().map(|&plan| Self::ask_thread(p, plan, is_32bit, outside)).collect();
        let segments = compat::ask_table(p, main);
        Ok(Self {
            main,
            actions,
            timers,
            brk,
            dumpable,
            thp_disabled,
            subreaper,
            membarrier,
            personality,
            limits,
            descriptors,
            descriptors_open: count,
            settings,
            locks,
            segments,
            threads,
            is_32bit,
        })
    }

    fn ask_thread(
        p: &mut Program,
        plan: PlanId,
        is_32bit: bool,
        outside: Option<&landlock::Outside>,
    ) -> ThreadQuestions {
        let robust_list = is_32bit.then(|| compat::ask_robust_list(p, plan));
        let altstack = signals::ask_altstack(p, plan);
        let tid_address = p.reserve(8);
        let args = [PR_GET_TID_ADDRESS.into(), tid_address.into(), 0.into(), 0.into(), 0.into()];
        p.syscall(plan, "PR_GET_TID_ADDRESS", libc::SYS_prctl, &args);
        let death_signal = p.reserve(8);
        let args = [libc::PR_GET_PDEATHSIG.into(), death_signal.into()];
        p.syscall(plan, "PR_GET_PDEATHSIG", libc::SYS_prctl, &args);
        let args = [libc::PR_GET_SECUREBITS.into()];
        let securebits = p.syscall_slot(plan, "PR_GET_SECUREBITS", libc::SYS_prctl, &args, Expect::Ok);
        let comm = p.reserve(COMM_BYTES);
        p.syscall(plan, "PR_GET_NAME", libc::SYS_prctl, &[libc::PR_GET_NAME.into(), comm.into()]);
        let settings = settings::ask_thread(p, plan);
        let sees_us = outside.map(|us| us.ask(p, plan));
        ThreadQuestions { sees_us, plan, robust_list, altstack, tid_address, death_signal, securebits, comm, settings }
    }
}

/// What the plan brought home.
pub(super) struct Answers {
    ran: Ran,
}

impl Answers {
    pub(super) fn slot(&self, plan: PlanId, slot: Slot) -> Result<i64> {
        self.ran.result(plan, slot).ok_or_else(|| Error::new(Kind::Internal, "a plan's result is missing"))
    }

    pub(super) fn data(&self, at: DataRef, len: usize) -> Result<Vec<u8>> {
        let bytes = self.ran.data(at, len).ok_or_else(|| Error::new(Kind::Internal, "a plan's data is missing"))?;
        Ok(bytes.to_vec())
    }

    pub(super) fn word(&self, at: DataRef) -> Result<u64> {
        Ok(u64::from_le_bytes(self.data(at, 8)?.try_into().unwrap_or_default()))
    }
}

//! Programs run in several processes at the same time.
//!
//! Each process goes through the same steps: an area is mapped in it, its plans run, the area goes, its threads come home. All
//! processes take a step together, so that nobody waits for one thread's wake-up alone, and so that they work on all
//! processors. One that fails drops out and is left to its release; the others go on.
use crate::error::{Error, Kind, Result};
use crate::home::Call;
use crate::plan::{PlanId, Program};
use crate::remote::{errno_of, writable_args};
use crate::run::{Ran, Running, room_for};
use crate::seccomp;
use crate::seize::{GRACE, SeizedProcess};
use crate::site::Site;
use crust_kernel::ptrace::{Stop, StopWaiter};
use crust_kernel::{Deadline, HostTid};
use std::time::Duration;

/// A program for one process, and which thread runs which of its plans.
#[derive(Debug)]
pub struct Job<'a> {
    /// Where it runs.
    pub process: &'a mut SeizedProcess,
    /// What runs.
    pub program: Program,
    /// By whom. The first thread also maps and unmaps our area.
    pub on: &'a [(HostTid, PlanId)],
}

/// Runs each job as [`SeizedProcess::run`] does, then cleans up as [`SeizedProcess::clean_up`] does, all jobs together. One
/// result per job, in order.
pub fn run_each<'a>(jobs: impl IntoIterator<Item = Job<'a>>) -> Vec<Result<Ran>> {
    let mut turns: Vec<Turn<'_>> = jobs.into_iter().map(Turn::new).collect();
    run_all(&mut turns);
    clean_up_all(&mut turns);
    turns.into_iter().map(Turn::end).collect()
}

/// [`SeizedProcess::run`]: a single job that is not cleaned up behind.
pub(crate) fn run_one(process: &mut SeizedProcess, program: Program, on: &[(HostTid, PlanId)]) -> Result<Ran> {
    let mut turns = [Turn::new(Job { process, program, on })];
    run_all(&mut turns);
    bring_home_all(&mut turns, |_, _| true);
    let [turn] = turns;
    turn.end()
}

/// A job on its way.
struct Turn<'a> {
    job: Job<'a>,
    indices: Vec<usize>,
    /// The area being made: its length, and where its data begin.
    plan: Option<(u64, u64)>,
    /// A call under way, and the result of the last one.
    call: Option<(usize, Call)>,
    value: i64,
    running: Option<Running>,
    ran: Option<Ran>,
    failed: Option<Error>,
}

/// What a look at a turn showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Idle,
    Moved,
    Done,
}

impl<'a> Turn<'a> {
    fn new(job: Job<'a>) -> Self {
        Self { job, indices: Vec::new(), plan: None, call: None, value: 0, running: None, ran: None, failed: None }
    }

    fn end(self) -> Result<Ran> {
        let pid = self.job.process.pid;
        match (self.failed, self.ran) {
            (Some(e), _) => Err(e),
            (None, Some(ran)) => Ok(ran),
            (None, None) => Err(Error::new(Kind::Unexpected, pid, "a program without results")),
        }
    }

    /// The thread that maps and unmaps.
    fn carrier(&self) -> Result<usize> {
        let none = || Error::new(Kind::Unexpected, self.job.process.pid, "a program for no thread");
        self.indices.first().copied().ok_or_else(none)
    }

    fn start_call(&mut self, nr: i64, args: [u64; 6]) -> Result<()> {
        let carrier = self.carrier()?;
        self.call = Some((carrier, self.job.process.start_from_vdso(carrier, nr, args)?));
        Ok(())
    }

    fn step_call(&mut self) -> Result<Step> {
        let Some((index, call)) = &mut self.call else { return Ok(Step::Done) };
        let thread = &mut self.job.process.threads[*index];
        let Some(stop) = thread.poll_stop()? else { return Ok(Step::Idle) };
        let Some(value) = call.step(thread, stop)? else { return Ok(Step::Moved) };
        self.value = value;
        self.call = None;
        Ok(Step::Done)
    }

    /// Begins to map an area if there is none with room.
    fn begin(&mut self) -> Result<()> {
        let Job { process, on, .. } = &mut self.job;
        self.indices = process.indices_of(on.iter().map(|(tid, _)| *tid))?;
        let carrier = self.carrier()?;
        let Job { process, program, on } = &mut self.job;
        seccomp::make_way_for(process, &self.indices)?;
        process.find_site()?;
        let room = room_for(program, on.len());
        let (site, mem, threads) = process.parts()?;
        if site.has_room(mem, on.len(), room) {
            return Ok(());
        }
        if !site.has_vdso_place(threads[carrier].tid) {
            return process.ensure_area(carrier, on.len(), room);
        }
        let (len, data_at) = Site::plan_area(on.len(), room, false);
        let args = site.map_args(len);
        self.plan = Some((len, data_at));
        self.start_call(libc::SYS_mmap, args)
    }

    /// The area is mapped: begins to make part of it writable.
    fn mapped(&mut self) -> Result<()> {
        let Some((len, data_at)) = self.plan else { return Ok(()) };
        if errno_of(self.value).is_some() {
            return self.map_alone();
        }
        let base = self.value as u64;
        self.start_call(libc::SYS_mprotect, writable_args(base, len, data_at))?;
        let (site, _, _) = self.job.process.parts()?;
        site.adopt(base, len, data_at);
        Ok(())
    }

    /// In a process that refused, whoever can do with less does it.
    fn map_alone(&mut self) -> Result<()> {
        self.plan = None;
        let carrier = self.carrier()?;
        let Job { process, program, on } = &mut self.job;
        process.ensure_area(carrier, on.len(), room_for(program, on.len()))
    }

    fn writable(&mut self) -> Result<()> {
        let refused = self.plan.and(errno_of(self.value));
        match refused {
            None => Ok(()),
            Some(errno) => Err(Error::call(self.job.process.pid, "making part of our area writable", errno)),
        }
    }

    fn launch(&mut self) -> Result<()> {
        let Job { process, program, on } = &mut self.job;
        self.running = Some(process.launch(std::mem::take(program), on, &self.indices)?);
        Ok(())
    }

    fn step_plans(&mut self) -> Result<Step> {
        let Some(running) = &mut self.running else { return Ok(Step::Done) };
        Ok(match self.job.process.poll_plans(running)? {
            (_, true) => Step::Done,
            (true, false) => Step::Moved,
            (false, false) => Step::Idle,
        })
    }

    fn read_results(&mut self) -> Result<()> {
        if let Some(running) = self.running.take() {
            self.ran = Some(self.job.process.results(running)?);
        }
        Ok(())
    }

    /// Begins to unmap the area through the carrier, if that is all there is to clean up.
    fn unmap(&mut self) -> Result<()> {
        let carrier = self.carrier()?;
        let (site, _, threads) = self.job.process.parts()?;
        self.plan = None;
        if let [(base, len)] = site.removable_areas()[..]
            && site.has_vdso_place(threads[carrier].tid)
        {
            self.plan = Some((base, len));
            return self.start_call(libc::SYS_munmap, [base, len, 0, 0, 0, 0]);
        }
        Ok(())
    }

    fn unmapped(&mut self) -> Result<()> {
        if let Some(errno) = self.plan.and(errno_of(self.value)) {
            return Err(Error::call(self.job.process.pid, "unmapping our area", errno));
        }
        if self.plan.is_some() {
            let (site, mem, _) = self.job.process.parts()?;
            site.areas_removed(mem)?;
        }
        self.job.process.clean_up()
    }
}

/// What threads do for us takes microseconds. One that has not come a step further for so long, on however busy a machine, is
/// stuck, and its tree has stood still for long enough.
const STUCK: Duration = Duration::from_secs(60);

/// Takes one step in every turn that has not failed.
fn each<'a>(turns: &mut [Turn<'a>], mut step: impl FnMut(&mut Turn<'a>) -> Result<()>) {
    for turn in turns.iter_mut().filter(|t| t.failed.is_none()) {
        if let Err(e) = step(turn) {
            turn.failed = Some(e);
        }
    }
}

/// Lets `look` see all turns, in order and over again, until it has called each of them done. Who is idle is waited for
/// before the next one is looked at: meanwhile that one comes to its stop too, and nobody is looked at in vain.
fn until_done<'a>(turns: &mut [Turn<'a>], mut look: impl FnMut(&mut Turn<'a>) -> Result<Step>) {
    let mut waiter = StopWaiter::new();
    let mut left: Vec<&mut Turn<'a>> = turns.iter_mut().filter(|t| t.failed.is_none()).collect();
    while !left.is_empty() {
        left.retain_mut(|turn| {
            waiter.reset();
            let patience = turn.job.process.deadline.capped(STUCK);
            loop {
                match look(turn) {
                    Ok(Step::Done) => return false,
                    Ok(Step::Moved) => return true,
                    Ok(Step::Idle) if waiter.pause(patience) => {}
                    Ok(Step::Idle) => {
                        let what = "its threads did not come to the end of what they do for us";
                        turn.failed = Some(Error::new(Kind::Timeout, turn.job.process.pid, what));
                        return false;
                    }
                    Err(e) => {
                        turn.failed = Some(e);
                        return false;
                    }
                }
            }
        });
    }
}

/// Up to the results, with threads where their plans ended.
fn run_all(turns: &mut [Turn<'_>]) {
    each(turns, Turn::begin);
    until_done(turns, Turn::step_call);
    each(turns, Turn::mapped);
    until_done(turns, Turn::step_call);
    each(turns, Turn::writable);
    each(turns, Turn::launch);
    until_done(turns, Turn::step_plans);
    each(turns, |turn| {
        // A thread whose plan was stepped through stands at the entry of a call.
        turn.indices = turn.running.iter().flat_map(Running::indices).collect();
        turn.read_results()
    });
}

/// Brings the threads home that `which` says.
fn bring_home_all(turns: &mut [Turn<'_>], which: impl Fn(usize, Option<Stop>) -> bool) {
    let mut on_their_way: Vec<usize> = Vec::new();
    for turn in turns.iter_mut().filter(|t| t.failed.is_none()) {
        on_their_way.clear();
        let threads = &turn.job.process.threads;
        on_their_way
            .extend(turn.indices.iter().enumerate().filter(|&(n, &i)| which(n, threads[i].stopped)).map(|(_, &i)| i));
        let begun = on_their_way.iter().try_for_each(|&i| turn.job.process.threads[i].step_home().map(drop));
        turn.failed = begun.err();
    }
    until_done(turns, |turn| {
        let mut step = Step::Done;
        for thread in turn.job.process.threads.iter_mut().filter(|t| t.away.is_some() && t.stopped.is_none()) {
            match thread.poll_stop()? {
                Some(_) if thread.step_home()? => {}
                Some(_) => step = Step::Moved,
                None => step = if step == Step::Moved { step } else { Step::Idle },
            }
        }
        Ok(step)
    });
}

fn clean_up_all(turns: &mut [Turn<'_>]) {
    // The carrier unmaps from where its plan ended, if that is no call's entry; the others go home before their landings go.
    bring_home_all(turns, |n, stop| n > 0 || !matches!(stop, Some(Stop::Signal(_))));
    // Putting back what was borrowed must not fail for want of time.
    let asked: Vec<Deadline> = turns.iter().map(|t| t.job.process.deadline).collect();
    for turn in turns.iter_mut() {
        let process = &mut turn.job.process;
        process.deadline = Deadline::after(process.deadline.remaining().max(GRACE));
    }
    each(turns, Turn::unmap);
    until_done(turns, Turn::step_call);
    bring_home_all(turns, |_, _| true);
    each(turns, Turn::unmapped);
    for (turn, deadline) in turns.iter_mut().zip(asked) {
        turn.job.process.deadline = deadline;
    }
}

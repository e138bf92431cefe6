//! Waits for a time, as they are just before the stop that interrupts them. What is left of such a wait the kernel keeps to
//! itself (its restart block). Where it says nothing, the thread's scheduling data do, until it wakes: they tell when it
//! went to sleep. And a wait that had been interrupted before is told by where in the kernel it sleeps.
//!
//! What is taken for left is not less than what is: everything that is not certain counts as not slept. The one exception is a
//! wait that ended and began anew just alike within [`MAY_RUN`] of running before the stop.
//!
//! Some calls the kernel ends with EINTR at every stop (signal(7)). Those it is told to begin again instead. Waits on epoll have
//! their limit in a register, which then holds what is left, in the image as in a program that is let go; for those whose limit
//! is elsewhere see [`crate::lend`].
use crate::lend::{Lent, Socket};
use crate::task::wait::{self, After, Call, Limit};
use crate::together;
use crust_inject::arch::compat;
use crust_inject::arch::regs::{self, Regs};
use crust_inject::{CrashSafety, SeizedProcess};
use crust_kernel::HostTid;
use crust_kernel::procfs::ProcDir;
use rustix::thread::CpuSet;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is known of waits, by thread.
pub(crate) type Waits = HashMap<HostTid, Wait>;

/// A call that waits for a time.
#[derive(Clone, Debug)]
pub(crate) struct Wait {
    call: Call,
    /// The time limit of the socket that it waits for.
    of_socket: Option<Duration>,
    /// Absent where that is not known, or not worth knowing.
    slept: Option<Duration>,
    /// When that was true, or later.
    looked: Instant,
    /// The kernel may go on with the call by restart_syscall(2).
    may_restart: bool,
    before: Option<Sched>,
}

/// What `/proc/TID/sched` says of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sched {
    /// When it last ran, in the time of its processor.
    last: Duration,
    /// How long it has run altogether.
    ran: Duration,
    /// How often it went to sleep.
    sleeps: u64,
}

/// Processes that are looked at by several threads of ours before the next are.
const PROCESSES_TOGETHER: usize = 64;
/// A wait that has slept for less begins anew: it costs no more than that, and loops of short waits never come near what
/// [`MAY_RUN`] cannot tell.
const WORTH: Duration = Duration::from_millis(500);
/// What a thread runs from its wait to its stop, at most. A thread that ran longer may have ended its wait and begun another.
const MAY_RUN: Duration = Duration::from_millis(1);

/// The fourth argument with which a call that a stop ended with EINTR goes on as if it had not been. Where what is left is not
/// known, or the limit is no register, it is what it was.
fn again(call: &Call, slept: Option<Duration>) -> u64 {
    match (call.limit(), slept) {
        (Some(Limit::Ms(FOURTH, ms)), Some(slept)) => {
            let left = Duration::from_millis(ms).saturating_sub(slept);
            left.as_micros().div_ceil(1000).min(u128::from(ms)) as u64
        }
        _ => call.args[FOURTH],
    }
}

const FOURTH: usize = 3;

impl Sched {
    fn parse(text: &str) -> Option<Self> {
        let value = |name: &str| {
            let line = text.lines().find(|l| l.split([' ', ':']).next() == Some(name))?;
            line.rsplit(':').next().map(str::trim)
        };
        // Milliseconds, with six places behind the point.
        let time = |name: &str| {
            let (ms, ns) = value(name)?.split_once('.')?;
            let ns = ns.parse::<u64>().ok().filter(|_| ns.len() == 6)?;
            ms.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(ns).map(Duration::from_nanos)
        };
        let last = time("se.exec_start").filter(|t| !t.is_zero())?;
        let sleeps = value("nr_voluntary_switches")?.parse().ok()?;
        Some(Self { last, ran: time("se.sum_exec_runtime")?, sleeps })
    }

    fn of(proc: &ProcDir, tid: HostTid) -> Option<Self> {
        Self::parse(&String::from_utf8_lossy(&proc.read_small(&format!("task/{tid}/sched")).ok()?))
    }
}

/// Which call a thread sleeps in that restart_syscall(2) goes on with, by the name of the kernel's function.
fn restarted(place: &str, args: &[u64; 6], in_32bit_code: bool) -> Option<i64> {
    /// No request lies there, and no clock has such a number.
    const FIRST_PAGE: u64 = 4096;
    Some(match place {
        // Of the others there are two, for times of 32 and of 64 bits.
        p if in_32bit_code && p.contains("nanosleep") && args[0] >= FIRST_PAGE => compat::NR_NANOSLEEP.into(),
        p if in_32bit_code && p.contains("poll") => compat::NR_POLL.into(),
        _ if in_32bit_code => return None,
        p if p.contains("nanosleep") && args[0] < FIRST_PAGE => libc::SYS_clock_nanosleep,
        p if p.contains("nanosleep") => libc::SYS_nanosleep,
        p if p.contains("futex") => libc::SYS_futex,
        p if p.contains("poll") => libc::SYS_poll,
        _ => return None,
    })
}

/// Where a thread ran last, from its stat file.
fn processor(stat: &str) -> Option<u32> {
    /// Counted from the state, which follows the name.
    const FIELD: usize = 36;
    stat.rsplit(')').next()?.split_ascii_whitespace().nth(FIELD)?.parse().ok()
}

/// Looks at the threads of processes that run. Whoever changes meanwhile is not in the answer, or found out by [`of`].
pub(crate) fn look(pids: impl Iterator<Item = HostTid>) -> Waits {
    let mut waits = Waits::new();
    let mut cpus: HashMap<u32, Vec<(HostTid, Duration)>> = HashMap::new();
    let mut processes = pids.filter_map(|pid| ProcDir::open(pid).ok()).peekable();
    while processes.peek().is_some() {
        // Each of them takes a descriptor.
        let threads: Vec<(Arc<ProcDir>, HostTid)> = processes
            .by_ref()
            .take(PROCESSES_TOGETHER)
            .flat_map(|proc| {
                let proc = Arc::new(proc);
                proc.threads().unwrap_or_default().into_iter().map(move |tid| (proc.clone(), tid))
            })
            .collect();
        let seen = together::each(threads.len(), |i| threads.get(i).and_then(|(proc, tid)| one(proc, *tid)));
        for ((_, tid), (wait, cpu)) in threads.iter().zip(seen).filter_map(|(thread, seen)| Some((thread, seen?))) {
            if let Some((cpu, sched)) = cpu.zip(wait.before) {
                cpus.entry(cpu).or_default().push((*tid, sched.last));
            }
            waits.insert(*tid, wait);
        }
    }
    let slept = since(cpus);
    // Not before: what was slept until then must not count twice.
    let looked = Instant::now();
    for (tid, slept) in slept {
        if let Some(wait) = waits.get_mut(&tid) {
            wait.looked = looked;
            wait.slept = Some(slept).filter(|&s| s >= WORTH);
        }
    }
    waits
}

/// The wait of a thread, if it is in one, and where it ran last, if that is worth knowing.
fn one(proc: &ProcDir, tid: HostTid) -> Option<(Wait, Option<u32>)> {
    let read = |name: &str| {
        let bytes = proc.read_small(&format!("task/{tid}/{name}")).ok()?;
        String::from_utf8(bytes).ok()
    };
    let mut call = Call::parse(&read("syscall")?)?;
    let again = call.goes_on();
    if again {
        call.nr = restarted(&read("wchan")?, &call.args, call.in_32bit_code)?;
    }
    let told = call.sleep().is_some_and(|(_, rest)| rest.at != 0);
    let of_socket = match call.limit() {
        Some(Limit::Socket(limit)) => Socket::open(proc, limit).and_then(|s| s.limit()),
        _ => None,
    };
    let long = !told
        && match call.limit() {
            Some(Limit::Ms(_, ms)) => u128::from(ms) > WORTH.as_millis(),
            Some(Limit::Time(..)) => call.is_by_a_clock_that_runs(),
            Some(Limit::Socket(_)) => of_socket.is_some_and(|t| t > WORTH),
            None => false,
        };
    if !(again || told || long) {
        return None;
    }
    let mut wait = Wait { call, of_socket, slept: None, looked: Instant::now(), may_restart: true, before: None };
    let ran = || Some((Sched::of(proc, tid)?, processor(&read("stat")?)?));
    let Some((sched, cpu)) = long.then(ran).flatten() else { return Some((wait, None)) };
    wait.before = Some(sched);
    Some((wait, Some(cpu)))
}

/// How long ago moments of processors were. Each processor has a time of its own (what interrupts and the hypervisor took
/// does not count), which can be read there only.
fn since(cpus: HashMap<u32, Vec<(HostTid, Duration)>>) -> Vec<(HostTid, Duration)> {
    let mut all = Vec::new();
    if cpus.is_empty() {
        return all;
    }
    let Ok(ours) = rustix::thread::sched_getaffinity(None) else { return all };
    for (cpu, moments) in cpus {
        let Some(there) = usize::try_from(cpu).ok().filter(|&c| c < CpuSet::MAX_CPU && ours.is_set(c)) else {
            continue;
        };
        let mut only = CpuSet::new();
        only.set(there);
        if rustix::thread::sched_setaffinity(None, &only).is_err() {
            continue;
        }
        let text = std::fs::read_to_string("/proc/thread-self/sched").unwrap_or_default();
        let Some(now) = Sched::parse(&text).map(|s| s.last) else { continue };
        all.extend(moments.into_iter().filter_map(|(tid, then)| Some((tid, now.checked_sub(then)?))));
    }
    if let Err(e) = rustix::thread::sched_setaffinity(None, &ours) {
        log::warn!("cannot go back to all processors: {e}");
    }
    all
}

/// Takes from `waits` those of a process, as far as they are still true now that all of it stands still, and has calls go on
/// that the stop would end.
///
/// # Errors
/// A thread that is gone.
pub(crate) fn of(process: &mut SeizedProcess, waits: &mut Waits) -> crust_inject::Result<Waits> {
    let ours = still(process, waits);
    let ended: Vec<(HostTid, u64)> = process
        .threads()
        .iter()
        .filter(|t| t.group_stop().is_none() && wait::ended_by_stop(t.regs()))
        .map(|t| (t.tid(), again(&Call::of(t.regs()), ours.get(&t.tid()).and_then(|w| w.slept))))
        .collect();
    for (tid, arg) in ended {
        process.call_again(tid, arg)?;
    }
    Ok(ours)
}

fn still(process: &SeizedProcess, waits: &mut Waits) -> Waits {
    let mut ours = Waits::new();
    for thread in process.threads() {
        let tid = thread.tid();
        let Some(mut wait) = waits.remove(&tid) else { continue };
        if !wait.call.is_made_as(&Call::of(thread.regs())) {
            continue;
        }
        // It woke for the stop, and slept nowhere else.
        let same = |a: Sched, b: Sched| b.sleeps <= a.sleeps + 1 && b.ran.saturating_sub(a.ran) <= MAY_RUN;
        let now = || Sched::of(process.proc()?, tid);
        wait.slept = wait.slept.filter(|_| wait.before.zip(now()).is_some_and(|(a, b)| same(a, b)));
        wait.may_restart = process.crash_safety(tid, &[libc::SYS_restart_syscall]) == CrashSafety::Safe;
        ours.insert(tid, wait);
    }
    ours
}

impl Wait {
    /// What is left of the wait, if the thread's call was interrupted so that it goes on, and nothing in its registers says it.
    pub(crate) fn left(&self, tid: HostTid, regs: &Regs) -> Option<Duration> {
        let goes_on = match self.call.after_stop() {
            Some(After::Again) => false,
            Some(After::Lent) => regs::begins_again(regs),
            // A sleep by another clock goes on, too.
            Some(After::Renewed) | None => regs::goes_on_by_restart(regs) && self.may_restart,
        };
        if !goes_on {
            return None;
        }
        let whole = match self.call.sleep() {
            // The kernel has told it.
            Some((request, rest)) if rest.at != 0 => {
                return (rest.at != request.at).then(|| rest.read(tid)).flatten();
            }
            _ => match self.call.limit()? {
                Limit::Ms(_, ms) => Duration::from_millis(ms),
                Limit::Time(_, time) => time.read(tid)?,
                Limit::Socket(_) => self.of_socket?,
            },
        };
        // The clocks that the images have go on while the tree stands still.
        Some(whole.saturating_sub(self.slept? + self.looked.elapsed()).max(wait::LEAST))
    }

    /// What has to be lent to the call, so that it ends in time when the thread is let go.
    pub(crate) fn lent(&self, pid: HostTid, tid: HostTid, regs: &Regs) -> Option<Lent> {
        (self.call.after_stop() == Some(After::Lent)).then_some(())?;
        Some(Lent { pid, tid, call: self.call, left: self.left(tid, regs)?, at: Instant::now() })
    }

    /// The fourth argument with which the call goes on now, if a register has what is left of it: it was that of the stop.
    pub(crate) fn again_now(&self, regs: &Regs) -> Option<u64> {
        let in_register = self.call.after_stop() == Some(After::Again) && regs::begins_again(regs);
        let slept = self.slept.filter(|_| in_register)?;
        Some(again(&self.call, Some(slept + self.looked.elapsed())))
    }

    /// True if these registers show restart_syscall(2), which goes on with this wait.
    pub(crate) fn goes_on_by(&self, regs: &Regs) -> bool {
        Call::of(regs).goes_on()
    }

    /// The number of the call that was interrupted.
    pub(crate) fn nr(&self) -> i64 {
        self.call.nr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_a_stop_ends() {
        let args = |limit| [3, 0x1000, 4, limit, 0, 8];
        let call = |nr, limit: u64| Call { nr, args: args(limit), sp: 0, ip: 0, in_32bit_code: false };
        let low = |nr, limit: u64| Call { in_32bit_code: true, ..call(nr, limit) };
        let slept = |us| Some(Duration::from_micros(us));
        for whole in
            [libc::SYS_epoll_wait, libc::SYS_epoll_pwait].map(|nr| call(nr, 9000)).into_iter().chain([low(256, 9000)])
        {
            assert_eq!(again(&whole, None), 9000, "not known");
            assert_eq!([1, 1000, 8_999_001, 60_000_000].map(|us| again(&whole, slept(us))), [9000, 8999, 1, 0]);
        }
        for (nr, fourth) in [
            (libc::SYS_epoll_wait, u64::from(u32::MAX)),
            (libc::SYS_epoll_wait, 0),
            (libc::SYS_epoll_pwait2, 0x2000),
            (libc::SYS_recvfrom, 0x40),
        ] {
            assert_eq!(again(&call(nr, fourth), slept(1)), fourth, "call {nr}");
        }
    }

    #[test]
    fn what_a_thread_sleeps_in() {
        let args = |first| [first, 0, 0, 0, 0, 0];
        assert_eq!(restarted("hrtimer_nanosleep_restart", &args(1), false), Some(libc::SYS_clock_nanosleep));
        assert_eq!(restarted("hrtimer_nanosleep_restart", &args(0x7fff_0000), false), Some(libc::SYS_nanosleep));
        assert_eq!(restarted("do_sys_poll", &args(0), false), Some(libc::SYS_poll));
        assert_eq!(restarted("0", &args(0), false), None);
        assert_eq!(restarted("hrtimer_nanosleep_restart", &args(0x5660_0000), true), Some(162));
        assert_eq!(restarted("hrtimer_nanosleep_restart", &args(1), true), None, "267 or 407");
    }

    #[test]
    fn our_own_scheduling_data() {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/{name}")).expect("read");
        let place = || processor(&read("stat")).expect("a processor");
        let (cpu, ours) = loop {
            let (before, ours) = (place(), Sched::parse(&read("sched")).expect("parsed"));
            if before == place() {
                break (before, ours);
            }
        };
        assert_eq!(Sched::parse("se.exec_start : 0.000000\nnr_voluntary_switches : 3"), None);
        let tid = HostTid::new(rustix::thread::gettid().as_raw_nonzero().get()).expect("an id");
        let ago = since(HashMap::from([(cpu, vec![(tid, ours.last)])]));
        assert!(matches!(ago[..], [(t, ago)] if t == tid && ago < Duration::from_secs(30)), "{ago:?}");
    }
}

//! Waits for a time, as they are just before the stop that interrupts them. What is left of such a wait the kernel keeps to
//! itself (its restart block). Where it says nothing, the thread's scheduling data do, until it wakes: they tell when it
//! went to sleep. And a wait that had been interrupted before is told by where in the kernel it sleeps.
//!
//! What is taken for left is not less than what is: everything that is not certain counts as not slept. The one exception is a
//! wait that ended and began anew just alike within [`MAY_RUN`] of running before the stop.
//!
//! Some calls the kernel ends with EINTR at every stop (signal(7)). Those that have no limit, and waits on epoll of whose limit
//! it is known what is left, it is told to begin again instead: the limit is a register, which then holds what is left, in the
//! image as in a program that is let go.
use crate::task::regs;
use crate::together;
use crust_inject::arch::compat;
use crust_inject::arch::regs::{Regs, is_32bit, syscall_args};
use crust_inject::{CrashSafety, SeizedProcess};
use crust_kernel::procfs::ProcDir;
use crust_kernel::remote_mem::process_vm_read;
use crust_kernel::{HostTid, VirtAddr};
use rustix::thread::CpuSet;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// What is known of waits, by thread.
pub(crate) type Waits = HashMap<HostTid, Wait>;

/// A call that waits for a time.
#[derive(Clone, Debug)]
pub(crate) struct Wait {
    call: Call,
    /// Absent where that is not known, or not worth knowing.
    slept: Option<Duration>,
    /// The kernel may go on with the call by restart_syscall(2).
    may_restart: bool,
    before: Option<Sched>,
}

/// A system call of a thread, and from where it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    /// Of the call itself, also where that was interrupted once and goes on by restart_syscall(2).
    nr: i64,
    args: [u64; 6],
    sp: u64,
    ip: u64,
    /// Its number is one of i386. What is left of such a wait is not looked for.
    in_32bit_code: bool,
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

const FUTEX_COMMAND: u64 = 0x7f;
const FUTEX_WAIT: u64 = 0;

/// A limit of a call that counts from the call on.
enum Limit {
    Ms(u64),
    /// A `struct timespec` there.
    At(u64),
}

impl Call {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let nr = words.next()?.parse().ok().filter(|&nr| nr >= 0)?;
        let mut hex = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        let args = [hex()?, hex()?, hex()?, hex()?, hex()?, hex()?];
        let (sp, ip) = (hex()?, hex()?);
        // What is taken for the other sort of code is no thread's call once that stands still.
        Some(Self { nr, args, sp, ip, in_32bit_code: sp.max(ip) < compat::END })
    }

    fn of(regs: &Regs) -> Self {
        let (args, in_32bit_code) = (syscall_args(regs), is_32bit(regs));
        Self { nr: regs.orig_rax as i64, args, sp: regs.rsp, ip: regs.rip, in_32bit_code }
    }

    /// The same call from the same place, whatever its number.
    fn is_made_as(&self, other: &Self) -> bool {
        let place = |c: &Self| (c.args, c.sp, c.ip, c.in_32bit_code);
        place(self) == place(other)
    }

    /// It goes on with another call, interrupted before.
    fn goes_on(&self) -> bool {
        self.nr == if self.in_32bit_code { 0 } else { libc::SYS_restart_syscall }
    }

    fn limit(&self) -> Option<Limit> {
        let [a, _, c, d, ..] = self.args;
        match self.nr {
            _ if self.in_32bit_code => None,
            libc::SYS_poll => u64::try_from(c as i32).ok().filter(|&ms| ms > 0).map(Limit::Ms),
            libc::SYS_nanosleep => Some(Limit::At(a)),
            libc::SYS_clock_nanosleep => {
                let counts = matches!(a as i32, libc::CLOCK_REALTIME | libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME);
                (counts && self.args[1] & libc::TIMER_ABSTIME as u64 == 0).then_some(Limit::At(c))
            }
            libc::SYS_futex => (self.args[1] & FUTEX_COMMAND == FUTEX_WAIT && d != 0).then_some(Limit::At(d)),
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait => {
                u64::try_from(d as i32).ok().filter(|&ms| ms > 0).map(Limit::Ms)
            }
            _ => None,
        }
    }

    /// The fourth argument with which a call that a stop ended with EINTR goes on as if it had not been. `None` if it has a
    /// limit that is not in a register, or of which `slept` is not known.
    fn again(&self, slept: Option<Duration>) -> Option<u64> {
        let [_, _, c, d, ..] = self.args;
        let nr = if self.in_32bit_code { compat::as_native(self.nr)?.0 } else { self.nr };
        match nr {
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait => match u64::try_from(d as i32) {
                Ok(ms @ 1..) => {
                    let left = Duration::from_millis(ms).saturating_sub(slept?);
                    Some(left.as_micros().div_ceil(1000).min(u128::from(ms)) as u64)
                }
                _ => Some(d),
            },
            libc::SYS_epoll_pwait2 | libc::SYS_semtimedop => (d == 0).then_some(d),
            libc::SYS_rt_sigtimedwait => (c == 0).then_some(d),
            libc::SYS_semop => Some(d),
            _ => None,
        }
    }

    /// Request and place for the rest of a sleep.
    fn sleep(&self) -> Option<(u64, u64)> {
        match self.nr {
            _ if self.in_32bit_code => None,
            libc::SYS_nanosleep => Some((self.args[0], self.args[1])),
            libc::SYS_clock_nanosleep if self.args[1] & libc::TIMER_ABSTIME as u64 == 0 => {
                Some((self.args[2], self.args[3]))
            }
            _ => None,
        }
    }
}

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
    for (tid, slept) in since(cpus) {
        if let Some(wait) = waits.get_mut(&tid) {
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
    let told = call.sleep().is_some_and(|(_, rest)| rest != 0);
    let long =
        !told && call.limit().is_some_and(|l| !matches!(l, Limit::Ms(ms) if u128::from(ms) <= WORTH.as_millis()));
    if !(again || told || long) {
        return None;
    }
    let mut wait = Wait { call, slept: None, may_restart: true, before: None };
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
        .filter(|t| t.group_stop().is_none() && regs::ended_by_stop(t.regs()))
        .filter_map(|t| Some((t.tid(), Call::of(t.regs()).again(ours.get(&t.tid()).and_then(|w| w.slept))?)))
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
    /// What is left of the wait, if the thread's call was interrupted so that the kernel would go on with it.
    pub(crate) fn left(&self, tid: HostTid, regs: &Regs) -> Option<Duration> {
        const ERESTART_RESTARTBLOCK: i64 = 516;
        if regs.rax as i64 != -ERESTART_RESTARTBLOCK || !self.may_restart {
            return None;
        }
        let whole = match self.call.sleep() {
            // The kernel has told it.
            Some((request, rest)) if rest != 0 => return (rest != request).then(|| timespec(tid, rest)).flatten(),
            _ => match self.call.limit()? {
                Limit::Ms(ms) => Duration::from_millis(ms),
                Limit::At(at) => timespec(tid, at)?,
            },
        };
        whole.checked_sub(self.slept?).filter(|left| !left.is_zero())
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

fn timespec(tid: HostTid, at: u64) -> Option<Duration> {
    let mut bytes = [0; 16];
    (process_vm_read(tid, VirtAddr(at), &mut bytes) == Ok(bytes.len())).then_some(())?;
    let (secs, nanos) = bytes.split_at(8);
    let [secs, nanos] = [secs, nanos].map(|b| b.try_into().map_or(-1, i64::from_ne_bytes));
    Some(Duration::new(secs.try_into().ok()?, nanos.try_into().ok().filter(|&n: &u32| n < 1_000_000_000)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_their_limits() {
        let text = "230 0x0 0x0 0x7ffc401fb100 0x7ffc401fb140 0x0 0x0 0x7ffc401fb0e8 0x7ff07b833503\n";
        let call = Call::parse(text).expect("a call");
        assert_eq!((call.nr, call.sp, call.ip), (libc::SYS_clock_nanosleep, 0x7ffc_401f_b0e8, 0x7ff0_7b83_3503));
        assert_eq!(call.sleep(), Some((0x7ffc_401f_b100, 0x7ffc_401f_b140)));
        let low = Call::parse("162 0xffaf7664 0x0 0x0 0x0 0x0 0x0 0xffaf7630 0xf7f595e9\n").expect("a call");
        assert!(low.in_32bit_code && low.sleep().is_none() && !low.goes_on());
        for other in ["running", "-1 0x7ffc 0x7ff0", "0 0x1", ""] {
            assert_eq!(Call::parse(other), None, "{other}");
        }
        let poll = |ms: i32| Call {
            nr: libc::SYS_poll,
            args: [0, 0, u64::from(ms as u32), 0, 0, 0],
            sp: 0,
            ip: 0,
            in_32bit_code: false,
        };
        assert!(matches!(poll(700).limit(), Some(Limit::Ms(700))));
        assert!(poll(-1).limit().is_none(), "for ever");
    }

    #[test]
    fn calls_that_a_stop_ends() {
        let args = |limit| [3, 0x1000, 4, limit, 0, 8];
        let call = |nr, limit: u64| Call { nr, args: args(limit), sp: 0, ip: 0, in_32bit_code: false };
        let low = |nr, limit: u64| Call { in_32bit_code: true, ..call(nr, limit) };
        let slept = |us| Some(Duration::from_micros(us));
        for nr in [libc::SYS_epoll_wait, libc::SYS_epoll_pwait] {
            let whole = call(nr, 9000);
            assert_eq!(whole.again(None), None, "not known");
            assert_eq!([1, 1000, 8_999_001, 60_000_000].map(|us| whole.again(slept(us))), [9000, 8999, 1, 0].map(Some));
            assert_eq!(call(nr, u64::from(u32::MAX)).again(None), Some(u64::from(u32::MAX)), "for ever");
            assert_eq!(call(nr, 0).again(None), Some(0));
        }
        assert_eq!(low(256, u64::from(u32::MAX)).again(None), Some(u64::from(u32::MAX)), "i386's epoll_wait");
        assert_eq!(low(256, 9000).again(None), None);
        assert_eq!(low(libc::SYS_epoll_wait, 0).again(None), None, "another call there");
        assert_eq!(call(libc::SYS_epoll_pwait2, 0x2000).again(slept(1)), None, "in memory");
        assert_eq!(call(libc::SYS_semtimedop, 0).again(None), Some(0));
        assert_eq!(call(libc::SYS_rt_sigtimedwait, 0).again(None), None, "the third has the limit");
        assert_eq!(call(libc::SYS_recvfrom, 0).again(slept(1)), None, "the socket has the limit");
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

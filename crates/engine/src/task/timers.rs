//! Interval timers and POSIX timers of a process, with their ids.
use crate::{Error, Kind, Result};
use crust_image::proto::{ItimerEntry, PosixTimerEntry, TaskTimersEntry};
use crust_inject::plan::{Arg, DataRef, Expect, PlanId, Program, Slot};

const SIGEVENT_BYTES: usize = 64;
const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;

/// One line group of /proc/PID/timers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Listed {
    id: u32,
    signo: u32,
    value: u64,
    notify: u32,
    thread: i32,
    clock: i32,
}

/// Parses /proc/PID/timers; `None` if a group is incomplete.
fn parse_list(text: &str) -> Option<Vec<Listed>> {
    let mut all: Vec<Listed> = Vec::new();
    for line in text.lines() {
        let (key, value) = line.split_once(':')?;
        let value = value.trim();
        if key == "ID" {
            all.push(Listed { id: value.parse().ok()?, ..Default::default() });
            continue;
        }
        let now = all.last_mut()?;
        match key {
            "signal" => {
                let (signo, address) = value.split_once('/')?;
                now.signo = signo.parse().ok()?;
                now.value = u64::from_str_radix(address.trim_start_matches("0x"), 16).ok()?;
            }
            "notify" => {
                let (how, whom) = value.split_once('/')?;
                let (scope, id) = whom.split_once('.')?;
                now.notify = match how {
                    "signal" => 0,
                    "none" => 1,
                    "thread" => 2,
                    _ => return None,
                };
                if scope == "tid" {
                    now.notify |= 4;
                    now.thread = id.parse().ok()?;
                }
            }
            "ClockID" => now.clock = value.parse().ok()?,
            _ => {}
        }
    }
    Some(all)
}

/// Questions put to the task about its timers.
#[derive(Debug)]
pub struct Asked {
    itimers: DataRef,
    posix: Vec<(Listed, DataRef, Slot)>,
}

/// Adds the questions to a plan that runs inside; `list` is /proc/PID/timers.
///
/// # Errors
/// `Internal` if the list has another form than every kernel since 3.10 gives it.
pub fn ask(p: &mut Program, plan: PlanId, list: &str) -> Result<Asked> {
    let itimers = p.reserve(3 * 32);
    for which in 0..3u64 {
        p.syscall(plan, "getitimer", libc::SYS_getitimer, &[which.into(), itimers.offset(which * 32).into()]);
    }
    let listed = parse_list(list).ok_or_else(|| Error::new(Kind::Internal, "/proc/PID/timers has an unknown form"))?;
    let posix = listed
        .into_iter()
        .map(|t| {
            let at = p.reserve(32);
            p.syscall(plan, "timer_gettime", libc::SYS_timer_gettime, &[t.id.into(), at.into()]);
            let over =
                p.syscall_slot(plan, "timer_getoverrun", libc::SYS_timer_getoverrun, &[t.id.into()], Expect::Any);
            (t, at, over)
        })
        .collect();
    Ok(Asked { itimers, posix })
}

/// A negative clock id is the CPU clock of a task: the complement of its id (0: of whoever makes the timer), shifted by
/// three, one bit for "of a thread", and what is counted.
mod cpu_clock {
    pub(super) const THREAD: i32 = 4;
    const SORT: i32 = 3;
    /// Time on the processor, by the scheduler's account.
    const SCHED: i32 = 2;

    pub(super) fn task(clock: i32) -> i32 {
        !(clock >> 3)
    }

    /// The clock of thread `tid` for a clock that was "that of the calling thread"; `None` for other clocks.
    pub(super) fn of_caller_for(clock: i32, tid: i32) -> Option<i32> {
        let sort = match clock {
            libc::CLOCK_THREAD_CPUTIME_ID => SCHED,
            c if c < 0 && task(c) == 0 && c & THREAD != 0 => c & SORT,
            _ => return None,
        };
        Some((!tid << 3) | THREAD | sort)
    }
}

/// Why a timer on `clock` could not be made again, if so; `threads` are the process and its threads, by their own ids.
fn obstacle(id: u32, clock: i32, pid: i32, is_thread: impl Fn(i32) -> bool) -> Option<Error> {
    let task = cpu_clock::task(clock);
    if clock >= 0 || task == 0 {
        return None;
    }
    let (what, help) = match clock & cpu_clock::THREAD != 0 {
        true if is_thread(task) => return None,
        false if task == pid => return None,
        true => ("a thread that has ended", "delete the timer before the dump"),
        false => ("another process", "use a clock of the process itself"),
    };
    Some(Error::unsupported(format!("POSIX timer {id} runs on the CPU clock of {what}"), help))
}

/// Reads the answers. `slot` gives a result of the plan, `tid` turns a thread id that we see into the task's own; `pid` and
/// what `is_thread` knows are the task's own ids.
///
/// # Errors
/// As `read`; `Unsupported` for a timer on the CPU clock of another process or of a thread that is gone.
pub fn answers(
    asked: &Asked,
    read: &dyn Fn(DataRef, usize) -> Result<Vec<u8>>,
    slot: &dyn Fn(Slot) -> Result<i64>,
    tid: &dyn Fn(i32) -> Option<i32>,
    (pid, is_thread): (i32, &dyn Fn(i32) -> bool),
) -> Result<TaskTimersEntry> {
    let word = |b: &[u8], i: usize| {
        b.get(8 * i..8 * i + 8).map_or(0, |w| u64::from_le_bytes(w.try_into().unwrap_or_default()))
    };
    let bytes = read(asked.itimers, 96)?;
    // struct itimerval: interval, then the time left.
    let itimer = |i: usize| {
        let b = &bytes[32 * i..];
        ItimerEntry { isec: word(b, 0), iusec: word(b, 1), vsec: word(b, 2), vusec: word(b, 3) }
    };
    let mut posix = Vec::new();
    for (listed, at, over) in &asked.posix {
        if let Some(obstacle) = obstacle(listed.id, listed.clock, pid, is_thread) {
            return Err(obstacle);
        }
        let b = read(*at, 32)?;
        let notify_thread_id = if listed.notify & 4 != 0 {
            let own = tid(listed.thread).ok_or_else(|| {
                Error::new(Kind::TargetChanged, format!("POSIX timer {} signals a thread that is gone", listed.id))
            })?;
            Some(own)
        } else {
            None
        };
        posix.push(PosixTimerEntry {
            it_id: listed.id,
            clock_id: listed.clock as u32,
            si_signo: listed.signo,
            it_sigev_notify: listed.notify,
            sival_ptr: listed.value,
            overrun: slot(*over)?.max(0) as u32,
            isec: word(&b, 0),
            insec: word(&b, 1),
            vsec: word(&b, 2),
            vnsec: word(&b, 3),
            notify_thread_id,
        });
    }
    Ok(TaskTimersEntry { real: itimer(0), virt: itimer(1), prof: itimer(2), posix })
}

/// How timers get their old ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdMode {
    /// PR_TIMER_CREATE_RESTORE_IDS (6.15+): the id is asked for.
    Exact,
    /// Older kernels count up: timers are made and deleted until the number comes.
    CountUp,
}

/// Above this id counting up takes too long to be meant seriously.
pub(crate) const COUNT_UP_LIMIT: u32 = 20_000;

/// Creates and arms all timers. Threads that timers signal must exist already. Arming comes last, so that little time is lost.
///
/// # Errors
/// `Unsupported` if an id is out of reach on this kernel.
pub fn plan(p: &mut Program, plan: PlanId, timers: &TaskTimersEntry, mode: IdMode) -> Result<()> {
    let switch = |p: &mut Program, on: i32| {
        let args = [PR_TIMER_CREATE_RESTORE_IDS.into(), on.into(), 0.into(), 0.into(), 0.into()];
        p.syscall(plan, "PR_TIMER_CREATE_RESTORE_IDS", libc::SYS_prctl, &args);
    };
    let mut posix: Vec<&PosixTimerEntry> = timers.posix.iter().collect();
    posix.sort_by_key(|t| t.it_id);
    if !posix.is_empty() && mode == IdMode::Exact {
        switch(p, 1);
    }
    let mut next = 0;
    for t in &posix {
        let mut event = vec![0u8; SIGEVENT_BYTES];
        event[..8].copy_from_slice(&t.sival_ptr.to_le_bytes());
        event[8..12].copy_from_slice(&t.si_signo.to_le_bytes());
        event[12..16].copy_from_slice(&t.it_sigev_notify.to_le_bytes());
        event[16..20].copy_from_slice(&t.notify_thread_id.unwrap_or(0).to_le_bytes());
        let event = p.data(&event);
        let id = p.data(&t.it_id.to_le_bytes());
        // The kernel does not tell whose clock "that of the calling thread" was: it was the thread's that is told, which is
        // how profilers use it.
        let own_clock = t.notify_thread_id.and_then(|tid| cpu_clock::of_caller_for(t.clock_id as i32, tid));
        let args: [Arg; 3] = [own_clock.unwrap_or(t.clock_id as i32).into(), event.into(), id.into()];
        if mode == IdMode::CountUp {
            if t.it_id > COUNT_UP_LIMIT || t.it_id < next {
                let what = format!("POSIX timer id {} cannot be had on this kernel", t.it_id);
                return Err(Error::unsupported(what, "restore on Linux 6.15 or newer"));
            }
            while next < t.it_id {
                p.syscall(plan, "timer_create of a placeholder", libc::SYS_timer_create, &args);
                p.syscall(plan, "timer_delete of a placeholder", libc::SYS_timer_delete, &[next.into()]);
                next += 1;
            }
            next = t.it_id + 1;
        }
        p.syscall(plan, "timer_create", libc::SYS_timer_create, &args);
    }
    if !posix.is_empty() && mode == IdMode::Exact {
        switch(p, 0);
    }
    for t in &posix {
        if (t.vsec, t.vnsec, t.isec, t.insec) == (0, 0, 0, 0) {
            continue;
        }
        // A one-shot timer with nothing left has fired already: zero would disarm a periodic one, so the least time is set.
        let vnsec = if t.vsec == 0 && t.vnsec == 0 { u64::from(t.isec != 0 || t.insec != 0) } else { t.vnsec };
        let spec: Vec<u8> = [t.isec, t.insec, t.vsec, vnsec].iter().flat_map(|w| w.to_le_bytes()).collect();
        let spec = p.data(&spec);
        p.syscall(plan, "timer_settime", libc::SYS_timer_settime, &[t.it_id.into(), 0.into(), spec.into(), 0.into()]);
    }
    for (which, t) in [&timers.real, &timers.virt, &timers.prof].into_iter().enumerate() {
        // No time left but an interval: its signal was pending at the dump, and taking it starts the next interval.
        let left = if (t.vsec, t.vusec) == (0, 0) { (t.isec, t.iusec) } else { (t.vsec, t.vusec) };
        if left == (0, 0) {
            continue;
        }
        let spec: Vec<u8> = [t.isec, t.iusec, left.0, left.1].iter().flat_map(|w| w.to_le_bytes()).collect();
        let spec = p.data(&spec);
        p.syscall(plan, "setitimer", libc::SYS_setitimer, &[which.into(), spec.into(), 0.into()]);
    }
    Ok(())
}

/// Finds out how this kernel gives ids, by asking it.
pub fn probe_id_mode() -> IdMode {
    match crust_kernel::process::timer_restore_ids(false) {
        Ok(()) => IdMode::Exact,
        Err(_) => IdMode::CountUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_list() {
        let text = "ID: 7\nsignal: 34/00007ffc12345678\nnotify: signal/tid.4711\nClockID: 1\nID: 9\nsignal: 14/0000000000000000\nnotify: none/pid.12\nClockID: 0\n";
        let list = parse_list(text).expect("parses");
        assert_eq!(list[0], Listed { id: 7, signo: 34, value: 0x7ffc_1234_5678, notify: 4, thread: 4711, clock: 1 });
        assert_eq!((list[1].notify, list[1].clock), (1, 0));
        assert_eq!(parse_list("signal: 1/0"), None);
    }

    #[test]
    fn clocks_of_threads_of_the_process_are_taken() {
        let clock = |task: i32, bits: i32| (!task << 3) | bits;
        let free = |clock| obstacle(0, clock, 40, |tid| tid == 40 || tid == 41).is_none();
        assert!(free(libc::CLOCK_MONOTONIC) && free(clock(0, 2)) && free(clock(0, 6)));
        assert!(free(clock(40, 2)) && free(clock(40, 6)) && free(clock(41, 6)));
        assert!(!free(clock(41, 2)), "another process");
        assert!(!free(clock(42, 6)), "no thread of this process any more");
    }

    #[test]
    fn the_clock_of_the_calling_thread_gets_a_name() {
        assert_eq!(cpu_clock::of_caller_for(libc::CLOCK_THREAD_CPUTIME_ID, 41), Some((!41 << 3) | 6));
        assert_eq!(cpu_clock::of_caller_for(-3, 41), Some((!41 << 3) | 5));
        assert_eq!(cpu_clock::of_caller_for(libc::CLOCK_PROCESS_CPUTIME_ID, 41), None);
        assert_eq!(cpu_clock::of_caller_for((!40 << 3) | 6, 41), None);
    }

    #[test]
    fn ids_out_of_reach_are_refused() {
        let mut p = Program::new();
        let main = p.plan("x");
        let far = TaskTimersEntry {
            posix: vec![PosixTimerEntry { it_id: 1 << 30, ..Default::default() }],
            ..Default::default()
        };
        assert!(plan(&mut p, main, &far, IdMode::CountUp).is_err());
        plan(&mut p, main, &far, IdMode::Exact).expect("exact ids have no limit");
    }
}

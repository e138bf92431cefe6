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

/// Reads the answers. `slot` gives a result of the plan, `tid` turns a thread id that we see into the task's own.
///
/// # Errors
/// As `read`; `Unsupported` for a timer on a CPU clock of another task.
pub fn answers(
    asked: &Asked,
    read: &dyn Fn(DataRef, usize) -> Result<Vec<u8>>,
    slot: &dyn Fn(Slot) -> Result<i64>,
    tid: &dyn Fn(i32) -> Option<i32>,
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
        // Negative clock ids name the CPU clock of a task; those of the process itself have pid bits zero.
        if listed.clock < 0 && (!listed.clock) >> 3 != 0 {
            let what = format!("POSIX timer {} runs on the CPU clock of another task", listed.id);
            return Err(Error::unsupported(what, "use a clock of the process itself"));
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
const COUNT_UP_LIMIT: u32 = 20_000;

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
        let args: [Arg; 3] = [(t.clock_id as i32).into(), event.into(), id.into()];
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

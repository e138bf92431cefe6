//! The ids that a tree needs: who has them now, and a short wait for holders that are ending.
use crate::{Error, Kind};
use crust_kernel::ids::{HostTid, NsTid};
use crust_kernel::procfs::{ProcDir, Stat, Status};
use crust_kernel::ptrace;
use rustix::io::Errno;
use std::time::{Duration, Instant};

/// How long holders that are ending may take. Memory of many GiB takes its time to go.
const ENDING: Duration = Duration::from_secs(10);
/// How long one that has ended may wait for its parent: a parent at work waits for it soon, any other never does.
const ENDED: Duration = Duration::from_secs(3);
/// How long the kernel may keep an id after its task is gone from /proc.
const UNHASHED: Duration = Duration::from_millis(200);
const STEP: Duration = Duration::from_millis(1);

/// PF_EXITING, include/linux/sched.h.
const EXITING: u64 = 4;
const SIGKILL: u64 = 1 << (libc::SIGKILL - 1);

/// Who has an id: a process, or a thread of one.
struct Holder {
    id: NsTid,
    comm: String,
    /// Set if it is on its way out; how long that may take.
    ending: Option<Duration>,
    /// Whom a process that ended waits for.
    ended_below: Option<i32>,
}

impl Holder {
    fn of(id: NsTid) -> Option<Self> {
        let dir = ProcDir::open(HostTid::new(id.as_raw())?).ok()?;
        let stat = dir.read("stat").ok().and_then(|s| Stat::parse(&s));
        let Some(stat) = stat else { return Some(Self { id, comm: String::new(), ending: None, ended_below: None }) };
        let killed = || {
            let status = dir.read("status").ok().and_then(|s| String::from_utf8(s).ok()).map(Status::new);
            let pending = |key| status.as_ref().and_then(|s| s.mask(key)).unwrap_or(0);
            (pending("ShdPnd") | pending("SigPnd")) & SIGKILL != 0
        };
        // A leader is a zombie as well while its last threads go.
        let ended = stat.state == b'Z' && stat.threads <= 1;
        let ending = match stat.state {
            _ if ended => Some(ENDED),
            b'Z' | b'X' => Some(ENDING),
            _ => (stat.flags & EXITING != 0 || killed()).then_some(ENDING),
        };
        let comm = String::from_utf8_lossy(&stat.comm).into_owned();
        Some(Self { id, comm, ending, ended_below: ended.then_some(stat.ppid) })
    }

    fn text(&self) -> String {
        let Self { id, comm, .. } = self;
        match self.ended_below {
            Some(parent) => format!("{id} ({comm}, which ended, but its parent {parent} has not waited for it)"),
            None => format!("{id} ({comm})"),
        }
    }
}

/// An error that names every id that somebody here has, with its holder. Those who are just ending are waited for: what
/// was killed a moment ago is no obstacle.
pub(super) fn check_free(ids: &[NsTid]) -> Option<Error> {
    let start = Instant::now();
    let taken = |id: &NsTid| HostTid::new(id.as_raw()).is_some_and(ptrace::is_taken);
    let mut holders: Vec<Holder> = ids.iter().copied().filter(taken).filter_map(Holder::of).collect();
    while !holders.is_empty() && holders.iter().all(|h| h.ending.is_some_and(|limit| start.elapsed() < limit)) {
        std::thread::sleep(STEP);
        holders = holders.into_iter().filter_map(|h| Holder::of(h.id)).collect();
    }
    // Who went while we looked shows nothing of himself: another look tells.
    if holders.iter().any(|h| h.ending.is_none()) {
        std::thread::sleep(STEP);
        holders = holders.into_iter().filter_map(|h| Holder::of(h.id)).collect();
    }
    if holders.is_empty() {
        return None;
    }
    let more = if holders.len() > 32 { format!(" and {} more", holders.len() - 32) } else { String::new() };
    let named: Vec<String> = holders.iter().take(32).map(Holder::text).collect();
    let e = Error::new(Kind::Taken, format!("ids that the tree needs are taken: {}{more}", named.join(", ")));
    Some(match holders.iter().all(|h| h.ended_below.is_some()) {
        true => e.help(
            "a process that ended keeps its id until its parent waits for it: let the parent do so, or end the parent; or restore \
             inside a fresh pid namespace (`unshare -pf --mount-proc`)",
        ),
        false => e,
    })
}

/// Keeps ids that the kernel hands out by itself (to threads that fill memory) clear of the tree's, which are in order.
/// True if they are.
pub(super) fn keep_clear(ids: &[NsTid]) -> bool {
    const NEAR: i32 = 4096;
    let path = "/proc/sys/kernel/ns_last_pid";
    let Some(last) = std::fs::read_to_string(path).ok().and_then(|t| t.trim().parse::<i32>().ok()) else {
        return false;
    };
    let near = |id: &NsTid| (1..=NEAR).contains(&(id.as_raw() - last));
    match (ids.iter().any(near), ids.last()) {
        (true, Some(highest)) => std::fs::write(path, highest.as_raw().to_string()).is_ok(),
        _ => true,
    }
}

/// Forks with a chosen id. A task that was just waited for may keep its id for a moment although nobody sees it any more.
pub(super) fn with_free<T>(id: NsTid, mut fork: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    let start = Instant::now();
    loop {
        match fork() {
            Err(Errno::EXIST) if start.elapsed() < UNHASHED && Holder::of(id).is_none() => std::thread::sleep(STEP),
            done => return done,
        }
    }
}

/// The error for an id that was free when it was checked and is not when it is needed.
pub(super) fn taken_meanwhile(id: NsTid) -> Error {
    let holder = Holder::of(id);
    // An id is taken, too, while it is that of a session or a process group.
    let member = if holder.is_none() { member_of(id) } else { None };
    let again = "try again, or restore in a pid namespace of its own (`unshare -p`)";
    let (by, help) = match (holder, member) {
        (Some(holder), _) => (holder.text(), again),
        (None, Some(member)) => {
            let by = format!("{id} is the session or process group of {}", member.text());
            (by, "end that process: it is no descendant of the root task, so the dump has left it")
        }
        // A process that ended has its id until it is waited for; it may be gone by now.
        (None, None) => (format!("{id}, by a process that is gone again"), again),
    };
    Error::new(Kind::Taken, format!("an id that the tree needs was taken while the tree was being built: {by}"))
        .help(help)
}

/// Some process in the session, or in the process group, that has this number.
fn member_of(id: NsTid) -> Option<Holder> {
    let is_member = |pid: &NsTid| {
        let dir = HostTid::new(pid.as_raw()).and_then(|pid| ProcDir::open(pid).ok());
        let stat = dir.and_then(|dir| dir.read("stat").ok()).and_then(|s| Stat::parse(&s));
        stat.is_some_and(|s| s.session == id.as_raw() || s.pgrp == id.as_raw())
    };
    let names = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids = names.filter_map(|e| e.file_name().to_str()?.parse().ok().and_then(NsTid::new));
    pids.find(is_member).and_then(Holder::of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_keeps_an_id_as_that_of_a_group_is_named() {
        let group = NsTid::new(rustix::process::getpgrp().as_raw_nonzero().get()).expect("a group of this namespace");
        assert!(member_of(group).is_some_and(|m| !m.comm.is_empty()));
        assert!(member_of(NsTid::new(i32::MAX).expect("positive")).is_none());
    }
}

//! Questions without consequences: what this kernel offers, and what in a tree would block a dump.
use crate::dump::{
    Collected, blockers_outside, find_root, foreign_session, inner_id, kernel_mappings, shared_memory, stat_of,
};
use crate::error::ResultExt;
use crate::files::ids::TaskIds;
use crate::task::{Target, lsm, odds};
use crate::{Error, Kind, Object, Options, Result, memory};
use crust_image::proto::{CredsEntry, PstreeEntry};
use crust_kernel::kcmp::Shared;
use crust_kernel::pidfd::PidFd;
use crust_kernel::procfs::{ProcDir, Stat, Status};
use crust_kernel::{HostTid, NsTid};
use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;

/// One answer of [`host`].
#[derive(Clone, Debug)]
pub struct Feature {
    /// CRIU's name for `check --feature`, or our own for what CRIU does not know.
    pub name: &'static str,
    /// Found by trying it.
    pub present: bool,
    /// False where crust works without it, only slower or with less.
    pub required: bool,
    /// What is lost without it and what to do.
    pub help: &'static str,
}

/// Tries every kernel interface that crust can use.
pub fn host() -> Vec<Feature> {
    crate::features::all()
}

/// CRIU's 45 names for `check --feature`: `None` for a name nobody knows.
pub fn feature(name: &str) -> Option<bool> {
    crate::features::one(name).map(|f| f.present)
}

/// Everything in the tree below `pid` that would make a dump fail, one error each; looks only, stops nothing.
///
/// # Errors
/// Only if the tree cannot be looked at; blockers are the `Ok` value.
pub fn tree(pid: i32, opts: &Options) -> Result<Vec<Error>> {
    let root = find_root(pid)?;
    let mut blockers = Vec::new();
    let mut cx = Collected::new(opts);
    cx.files.leave_queues();
    let mut pids = vec![(root, 0)];
    let mut seen = HashSet::from([root]);
    let mut records = Vec::new();
    let mut spaces = HashMap::new();
    let mut at = 0;
    while let Some(&(pid, ppid)) = pids.get(at) {
        at += 1;
        // A task may end while we look: then it blocks nothing any more.
        let Ok(proc) = ProcDir::open(pid) else { continue };
        let (Some(stat), Ok(status)) = (stat_of(&proc), proc.read_text("status")) else { continue };
        let Some(ns_pid) = inner_id(&Status::new(status.clone())) else { continue };
        records.push(PstreeEntry {
            pid: ns_pid.as_raw() as u32,
            ppid,
            pgid: stat.pgrp as u32,
            sid: stat.session as u32,
            threads: Vec::new(),
        });
        cx.files.note_task(pid.as_raw());
        let (mut proc, mut status) = (proc, status);
        if stat.state == b'Z' {
            // A leader may have ended before its threads; those have what is to be looked at.
            let other = proc.threads().unwrap_or_default().into_iter().find(|&t| t != pid);
            let Some(live) = other.and_then(|t| ProcDir::open(t).ok()) else { continue };
            let Ok(text) = live.read_text("status") else { continue };
            (proc, status) = (live, text);
        }
        blockers.extend(shares_memory(&mut cx.ids, &mut spaces, proc.id(), &stat));
        blockers.extend(task(&proc, &Status::new(status), ns_pid, &mut cx));
        for child in proc.children().unwrap_or_default() {
            if seen.insert(child) {
                pids.push((child, ns_pid.as_raw() as u32));
            }
        }
    }
    blockers.extend(foreign_session(&records, opts));
    blockers.extend(cx.files.take_blockers());
    blockers.extend(cx.shared.check_sysv());
    Ok(blockers)
}

/// A process with the memory of another one of the tree (`spaces`: who has which). A dump waits for the end of a vfork, in
/// which the parent sleeps undisturbed.
fn shares_memory(ids: &mut TaskIds, spaces: &mut HashMap<u32, HostTid>, pid: HostTid, stat: &Stat) -> Option<Error> {
    let (space, _) = ids.intern(pid, Shared::Vm).ok()?;
    let Some(&other) = spaces.get(&space) else {
        spaces.insert(space, pid);
        return None;
    };
    let sleeps = |tid| ProcDir::open(tid).ok().and_then(|dir| stat_of(&dir)).is_none_or(|stat| stat.state == b'D');
    let parents = || ProcDir::open(other).and_then(|dir| dir.threads()).unwrap_or_default();
    let in_vfork = stat.ppid == other.as_raw() && parents().into_iter().any(sleeps);
    (!in_vfork).then(|| shared_memory(other).on(Object::Task(pid.as_raw())))
}

/// What one running process has that would block a dump.
fn task(proc: &ProcDir, status: &Status, ns_pid: NsTid, cx: &mut Collected<'_>) -> Vec<Error> {
    let pid = proc.id();
    let mut found = blockers_outside(pid, proc, status, &cx.own);
    if let Some(tracer) = status.number("TracerPid").filter(|&t| t != 0) {
        let what = format!("is traced by process {tracer}");
        found.push(Error::unsupported(what, "end the debugger or tracer first: a task has only one"));
    }
    // A label is a thread's own.
    let label = |tid| lsm::save(&mut CredsEntry::default(), proc, tid).err();
    found.extend(proc.threads().unwrap_or_default().into_iter().filter_map(label));
    let pidfd = PidFd::open(pid).or_else(|_| PidFd::open_thread(pid));
    let looked = pidfd.during("pidfd_open").and_then(|pidfd| {
        let target = Target { pid, ns_pid, proc, pidfd: pidfd.as_fd() };
        let mm = memory::collect(&target, &mut cx.files)?;
        // Of a 32-bit program only its stopped threads tell that it is one.
        found.extend(kernel_mappings(&target, false, &mm)?);
        found.extend(odds::mapping_policy(pid.as_raw(), proc));
        cx.shared.note_sysv(&target, &mm);
        cx.files.dump_fds(&target)?;
        cx.files.dump_fs(&target)
    });
    // A task that ended meanwhile blocks nothing.
    found.extend(looked.err().filter(|e| e.kind() != Kind::TargetChanged));
    found.into_iter().map(|e| e.on(Object::Task(pid.as_raw()))).collect()
}

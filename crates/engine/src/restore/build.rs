//! One task builds itself: forked with its old id, it forks its children, opens its files, fills its memory, writes its plan
//! and leaves our code for the interpreter. All of this is ordinary Rust in a single-threaded process.
#![allow(unsafe_code, reason = "forks, and leaves Rust for the interpreter at the end")]
use super::arena::{Arena, Step};
use super::sharing::Sharing;
use super::tree::{Birth, Fate, Task, Tree};
use super::twins::{Changes, Twins};
use crate::cgroup::rebuild::{Groups, set_of};
use crate::error::{Error, Kind, OnObject, ResultExt};
use crate::files::FileImages;
use crate::images::Source;
use crate::memory;
use crate::task::timers::IdMode;
use crate::task::{compat, creds, limits, lockall, lsm, odds, seccomp, settings, signals, thread, timers};
use crate::{Options, Result, Stage};
use crust_image::proto::{
    CoreEntry, CredsEntry, CrustProcessSettings, MmEntry, SignalQueueEntry, TaskCoreEntry, VmaEntry,
};
use crust_inject::arch::interp;
use crust_inject::plan::{Arg, Expect, PlanId, Program};
use crust_kernel::fork::{Fork, fork_as};
use crust_kernel::process::{self, CloneArgs};
use crust_kernel::{NsTid, VirtAddr, mman};
use rustix::process::{Pid, WaitIdOptions, WaitIdStatus};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// What every task needs; copied to each by fork.
pub(super) struct Cx<'a> {
    pub(super) tree: &'a Tree,
    pub(super) twins: &'a Twins,
    pub(super) sharing: &'a Sharing,
    pub(super) arena: &'a Arena,
    pub(super) files: &'a mut FileImages,
    /// By task; `None` for zombies and helpers.
    pub(super) memory: &'a [Option<memory::Images>],
    pub(super) segments: &'a memory::Segments,
    pub(super) source: &'a Source,
    pub(super) opts: &'a Options,
    pub(super) deadline: Instant,
    pub(super) timer_ids: IdMode,
    /// What we are now: the base that credentials are changed from.
    pub(super) creds: CredsEntry,
    pub(super) own: thread::Own,
    pub(super) filters: &'a seccomp::Filters,
    /// By task: what it installs of them.
    pub(super) duties: &'a [Option<seccomp::Duty>],
    /// Control groups, if tasks change theirs.
    pub(super) groups: Option<&'a Groups>,
    /// The coordinator's own mappings.
    pub(super) busy: Vec<(u64, u64)>,
    /// Threads that may fill one task's memory; 0 leaves it to the memory module.
    pub(super) fill_threads: usize,
    /// By task: its mappings from which children may take pages.
    pub(super) common: &'a [Vec<bool>],
    /// What stands of this process's memory to come, own or inherited.
    pub(super) held: memory::Held,
    /// How many threads meet where.
    pub(super) meeting: Meeting,
}

/// How many threads of the tree are awaited at the barriers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meeting {
    /// At the last.
    live: u32,
    /// Before filters are installed.
    filtered: u32,
    /// Where ties to us are cut.
    parting: u32,
}

impl Meeting {
    pub(super) fn new(tree: &Tree, duties: &[Option<seccomp::Duty>]) -> Self {
        let under = tree.tasks.iter().zip(duties).filter(|(_, d)| d.is_some());
        let filtered = under.map(|(t, _)| t.threads.len()).sum::<usize>() as u32;
        Self { live: tree.live_threads() as u32, filtered, parting: tree.parting_threads() as u32 }
    }
}

/// Where the pieces of a task's bootstrap region lie; the coordinator removes it from outside at the end.
#[derive(Clone, Copy, Debug)]
struct Boot {
    start: u64,
    len: u64,
    arena: u64,
    program: u64,
}

const PAGE: u64 = 4096;

/// Forks the root task. Returns in the coordinator only.
pub(super) fn fork_root(cx: &mut Cx<'_>) -> Result<i32> {
    let mut flags = 0;
    if cx.opts.restore_sibling {
        flags |= libc::CLONE_PARENT as u64;
    }
    let parent = if cx.opts.restore_sibling { 0 } else { cx.arena.coordinator() };
    fork_task(cx, 0, flags, parent)
}

/// Forks task `i` of the tree; the child never returns.
fn fork_task(cx: &mut Cx<'_>, i: usize, flags: u64, parent: i32) -> Result<i32> {
    let pid = cx.tree.tasks[i].pid;
    // SAFETY: the coordinator and every task are single-threaded while they fork.
    match super::ids::with_free(pid, || unsafe { fork_as(Some(pid), flags) }) {
        Ok(Fork::Parent(id)) => {
            cx.arena.born(i);
            Ok(id.as_raw())
        }
        Ok(Fork::Child) => {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(cx, i, parent)));
            let error = match done {
                Ok(Ok(never)) => match never {},
                Ok(Err(e)) => e,
                Err(_) => Error::new(Kind::Internal, "building the task panicked"),
            };
            cx.arena.fail(i, &error);
            process::exit_now(1);
        }
        Err(rustix::io::Errno::EXIST) => Err(super::ids::taken_meanwhile(pid)),
        Err(e) => Err(Error::kernel(format!("clone3 with the id {pid}"), e).help(match e {
            rustix::io::Errno::AGAIN | rustix::io::Errno::NOMEM => {
                "there is no room for another task: raise pids.max of the cgroup, RLIMIT_NPROC of the user, or pid_max"
            }
            _ => "choosing ids needs CAP_CHECKPOINT_RESTORE over the pid namespace: be root, or use `unshare -Urpf`",
        })),
    }
}

enum Never {}

/// The life of task `i` up to the interpreter.
fn run(cx: &mut Cx<'_>, i: usize, parent: i32) -> Result<Never> {
    let orphan = cx.tree.tasks[i].birth == Birth::Orphan;
    if !orphan {
        tie_to(parent)?;
    }
    if i == 0 {
        process::default_signals(); // the others inherit them
        if parent == 0 {
            cx.arena.wait_held(cx.deadline)?;
        }
    }
    let tree = cx.tree;
    let t = &tree.tasks[i];
    if let Some(groups) = cx.groups {
        // Before anything is allocated, and before children are born, so that it is theirs, too.
        groups.enter(t.born_by.and_then(|b| group_set(tree, b)), group_set(tree, i))?;
    }
    if t.adopts {
        process::set_child_subreaper(true).during("prctl PR_SET_CHILD_SUBREAPER")?;
    }
    if i == 0 {
        cx.files.open_shared(cx.source, cx.opts).at(Stage::Build)?;
        super::thin::prepare(tree)?;
    }
    if super::thin::begins_anew(tree, i) {
        cx.held.give_up()?;
        super::thin::prepare_again()?;
    }
    hold(cx, i)?;
    let mut reap = Vec::new();
    bear(cx, i, |b| b == Birth::BeforeSetsid, &mut reap)?;
    if t.sid == t.pid.as_raw() {
        rustix::process::setsid().during("setsid")?;
        if t.is_live() {
            // Children inherit the terminal, so it comes before them.
            cx.files.take_controlling_tty(t.pid.as_raw())?;
        }
    } else if t.pgid == t.pid.as_raw() {
        rustix::process::setpgid(None, None).during("setpgid")?;
    }
    cx.arena.reached(i, Step::Grouped);
    bear(cx, i, |b| b != Birth::BeforeSetsid, &mut reap)?;
    if let Some(leader) = t.group_leader
        && rustix::process::getpgrp().as_raw_nonzero().get() != t.pgid
    {
        cx.arena.wait_for(leader, Step::Grouped, cx.deadline)?;
        rustix::process::setpgid(None, Pid::from_raw(t.pgid)).during("joining the process group")?;
    }
    cx.arena.reached(i, Step::Joined);
    for &twin in cx.twins.of(i) {
        // Born into the same session and group, whenever that is.
        cx.arena.reached(twin, Step::Joined);
    }
    match t.fate {
        Fate::Helper => {
            for (m, member) in tree.tasks.iter().enumerate() {
                if member.group_leader == Some(i) {
                    cx.arena.wait_for(m, Step::Joined, cx.deadline)?;
                }
            }
            reap_all(cx, &reap)?;
            cx.arena.reached(i, Step::Leaving);
            process::exit_now(0)
        }
        Fate::Zombie(status) => {
            reap_all(cx, &reap)?;
            become_zombie(t, status)
        }
        Fate::Alive | Fate::Stopped(_) => {}
    }
    reap_all(cx, &reap)?;
    await_zombies(cx, i)?;
    if orphan {
        // Whoever bore us ends soon, and the image's parent adopts us.
        let adopter = t.ppid;
        wait_until(cx, || parent_id() == adopter).map_err(|e| e.help("the orphan was not adopted by the root task"))?;
        tie_to(adopter)?;
    }
    if i == 0 || t.sid == t.pid.as_raw() {
        for (m, member) in tree.tasks.iter().enumerate() {
            if member.sid == t.sid {
                cx.arena.wait_for(m, Step::Joined, cx.deadline)?;
            }
        }
        cx.files.set_foreground(t.pid.as_raw(), cx.opts)?;
    }
    live(cx, i)
}

/// The set of control groups that task `i` is in once it is built: zombies and helpers are in their bearer's.
fn group_set(tree: &Tree, i: usize) -> Option<u32> {
    let t = &tree.tasks[i];
    t.core().and_then(set_of).or_else(|| t.born_by.and_then(|b| group_set(tree, b)))
}

/// From here on the end of the parent is ours; `parent` is 0 if it cannot be seen from here.
fn tie_to(parent: i32) -> Result<()> {
    process::set_parent_death_signal(libc::SIGKILL).during("prctl PR_SET_PDEATHSIG")?;
    if parent != 0 && parent_id() != parent {
        return Err(Error::new(Kind::Cancelled, "the process that builds the tree is gone"));
    }
    Ok(())
}

fn parent_id() -> i32 {
    rustix::process::getppid().map_or(0, |p| p.as_raw_nonzero().get())
}

/// Before children are born: the memory that they share with this task, and that this task shares with whom it is born from.
fn hold(cx: &mut Cx<'_>, i: usize) -> Result<()> {
    let tree = cx.tree;
    let Some(images) = cx.memory.get(i).and_then(Option::as_ref).filter(|_| tree.tasks[i].is_live()) else {
        return Ok(());
    };
    let before = cx.held.owner().and_then(|owner| cx.memory.get(owner)).and_then(Option::as_ref);
    let marks = cx.common.get(i).map_or(&[][..], Vec::as_slice);
    let first_service = cx.files.first_service_fd();
    let mut opener = Opener { files: &mut *cx.files, source: cx.source, opts: cx.opts, first_service, exe: None };
    memory::hold(&mut cx.held, (i, images), before, marks, cx.source, &mut opener, cx.fill_threads)
}

/// By task: its mappings from which its children may take pages, twins excepted: they are forked from their elder.
pub(super) fn common(tree: &Tree, twins: &Twins, memory: &[Option<memory::Images>]) -> Vec<Vec<bool>> {
    let mut found = vec![Vec::new(); tree.tasks.len()];
    // For tests: what is parked is not shared.
    if cfg!(debug_assertions) && std::env::var_os("CRUST_TEST_PARK_ALL").is_some() {
        return found;
    }
    let takes = |i: usize| twins.elder_of(i).is_none() && !super::thin::begins_anew(tree, i);
    for (i, t) in tree.tasks.iter().enumerate().filter(|(i, t)| t.is_live() && takes(*i)) {
        let mut above = t.born_by;
        while let Some(p) = above.filter(|&p| !tree.tasks[p].is_live()) {
            above = tree.tasks[p].born_by;
        }
        let Some(p) = above else { continue };
        if let (Some(Some(ours)), Some(Some(theirs))) = (memory.get(p), memory.get(i)) {
            memory::mark_common(ours, theirs, &mut found[p]);
        }
    }
    found
}

/// Forks those of `i`'s children whose birth is wanted now. Orphans come through a short-lived process in between.
fn bear(cx: &mut Cx<'_>, i: usize, now: impl Fn(Birth) -> bool, reap: &mut Vec<i32>) -> Result<()> {
    let tree = cx.tree;
    let me = tree.tasks[i].pid.as_raw();
    for &c in &tree.tasks[i].bears {
        let child = &tree.tasks[c];
        if !now(child.birth) || cx.twins.elder_of(c).is_some() {
            continue;
        }
        if child.birth == Birth::Orphan && tree.tasks[i].fate != Fate::Helper {
            reap.push(bear_orphan(cx, c)?);
            continue;
        }
        fork_task(cx, c, cx.sharing.clone_flags(tree, c), me)?;
        if child.fate == Fate::Helper {
            reap.push(child.pid.as_raw());
        }
    }
    Ok(())
}

/// Forks a process that forks task `c` and exits, so that `c` falls to the subreaper. The one in between takes no id of the tree.
fn bear_orphan(cx: &mut Cx<'_>, c: usize) -> Result<i32> {
    let taken = cx.tree.all_ids();
    let mut free = (2..32768)
        .rev()
        .filter_map(NsTid::new)
        .filter(|id| taken.binary_search(id).is_err() && !std::path::Path::new(&format!("/proc/{id}")).exists());
    let forked = loop {
        let id = free.next().ok_or_else(|| Error::new(Kind::Taken, "no process id is free for a helper"))?;
        // SAFETY: single-threaded, see `fork_task`.
        match unsafe { fork_as(Some(id), 0) } {
            // Another task of the tree has taken it for a helper of its own.
            Err(rustix::io::Errno::EXIST) => {}
            done => break done.during("forking a helper")?,
        }
    };
    match forked {
        Fork::Parent(id) => Ok(id.as_raw()),
        Fork::Child => {
            let failed = fork_task(cx, c, 0, 0);
            if let Err(e) = &failed {
                cx.arena.fail(c, e);
            }
            process::exit_now(i32::from(failed.is_err()));
        }
    }
}

/// Waits for helpers, so that neither they nor a SIGCHLD of theirs is left.
fn reap_all(cx: &Cx<'_>, pids: &[i32]) -> Result<()> {
    for &pid in pids {
        let mut clean = true;
        wait_until(cx, || match rustix::process::waitpid(Pid::from_raw(pid), rustix::process::WaitOptions::NOHANG) {
            Ok(Some((_, status))) => {
                clean = status.exit_status() == Some(0);
                true
            }
            Err(rustix::io::Errno::CHILD) => true,
            _ => false,
        })
        .map_err(|e| e.help("a helper process did not end"))?;
        if !clean {
            return Err(Error::new(Kind::TargetChanged, format!("helper process {pid} was killed, or failed")));
        }
    }
    Ok(())
}

/// Waits until the children that are to be zombies have died; they stay unreaped.
fn await_zombies(cx: &Cx<'_>, i: usize) -> Result<()> {
    for &c in &cx.tree.tasks[i].bears {
        let child = &cx.tree.tasks[c];
        if !matches!(child.fate, Fate::Zombie(_)) {
            continue;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let mut ended = None;
        wait_until(cx, || {
            let id = Pid::from_raw(child.pid.as_raw()).map(rustix::process::WaitId::Pid);
            ended = id.and_then(|id| rustix::process::waitid(id, options).ok().flatten());
            ended.as_ref().is_some_and(|s| WaitIdStatus::exited(s) || s.killed() || s.dumped())
        })?;
        let (code, signal) = ended.map_or((None, None), |s| (s.exit_status(), s.terminating_signal()));
        if let Fate::Zombie(want) = child.fate
            && !died_as(want, code, signal)
        {
            let what = format!("zombie {} came to another end than in the image ({code:?}, {signal:?})", child.pid);
            return Err(Error::new(Kind::TargetChanged, what));
        }
    }
    Ok(())
}

fn wait_until(cx: &Cx<'_>, mut done: impl FnMut() -> bool) -> Result<()> {
    let mut backoff = crust_kernel::Backoff::new();
    let deadline = crust_kernel::Deadline::at(cx.deadline);
    while !done() {
        if cx.arena.control().failed.load(Ordering::Acquire) != 0 {
            return Err(Error::new(Kind::Cancelled, "another task of the tree failed"));
        }
        if !cx.arena.coordinator_lives() {
            return Err(Error::new(Kind::Cancelled, "the process that builds the tree is gone"));
        }
        if !backoff.pause(deadline) {
            return Err(Error::new(Kind::Timeout, "a child did not come to its end in time"));
        }
    }
    Ok(())
}

/// True if this is the end that [`become_zombie`] gives for the wait status `want`.
fn died_as(want: i32, code: Option<i32>, signal: Option<i32>) -> bool {
    match want & 0x7f {
        0 => code == Some((want >> 8) & 0xff),
        n => signal == Some(n) || code == Some(128 + n),
    }
}

/// Dies as the zombie in the image died.
fn become_zombie(t: &Task, status: i32) -> ! {
    if let Some(tc) = t.core().and_then(|c| c.tc.as_ref()) {
        thread::set_own_comm(&tc.comm);
    }
    let signal = status & 0x7f;
    if signal != 0 {
        let off = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        let _no_core_file = rustix::process::setrlimit(rustix::process::Resource::Core, off);
        process::raise(signal);
        // A signal that does not kill: nothing better is possible than its number as a status.
        process::exit_now(128 + signal)
    }
    process::exit_now((status >> 8) & 0xff)
}

/// Files, memory, plan, and off.
fn live(cx: &mut Cx<'_>, i: usize) -> Result<Never> {
    let images = cx.memory.get(i).and_then(Option::as_ref);
    let images = images.ok_or_else(|| Error::new(Kind::Internal, "a live task has no memory images"))?;
    // From here on descriptors change their meaning, the log's among them.
    log::set_max_level(log::LevelFilter::Off);

    let twins = cx.twins.of(i).iter().map(|&twin| Changes::find(cx, i, twin)).collect::<Result<Vec<_>>>()?;
    let boot = make_boot(cx, i, images, &twins)?;
    let (staged, exe) = build_memory(cx, i, images, &boot, &twins)?;
    cx.arena.set_exe(i, exe);
    cx.arena.reached(i, Step::Staged);
    build_table(cx, i, exe)?;
    settle_files(cx, i)?;

    let program = write_plan(cx, i, &boot, staged, &images.mm, &twins)?;
    let linked_len = program.linked_len() as u64;
    if boot.program + linked_len > boot.start + boot.len {
        return Err(Error::new(Kind::Internal, format!("the plan needs {linked_len} bytes, more than was reserved")));
    }
    let linked = program.link(boot.program);
    cx.arena.reached(i, Step::Leaving);
    process::block_all_signals();
    // SAFETY: the program's place was mapped for it by `map_boot` and holds at least `linked_len` bytes. The interpreter's
    // code stands at `boot.start`. Nothing of this process is needed after that: its children are forked, its files in place.
    unsafe {
        std::ptr::copy_nonoverlapping(linked.bytes.as_ptr(), boot.program as *mut u8, linked.bytes.len());
        interp::enter(boot.start, linked.headers[0])
    }
}

/// Region for interpreter, arena and program, in a hole of both address spaces.
fn make_boot(cx: &Cx<'_>, i: usize, images: &memory::Images, twins: &[Changes]) -> Result<Boot> {
    let room = |task: &usize| {
        let filters = cx.duties.get(*task).and_then(Option::as_ref).map_or(0, |duty| cx.filters.room(duty));
        plan_room(&cx.tree.tasks[*task]) + filters
    };
    let program_room = 256 * 1024
        + images.mm.vmas.len() as u64 * 768
        + std::iter::once(&i).chain(cx.twins.of(i)).map(room).sum::<u64>()
        + twins.iter().map(Changes::plan_bytes).sum::<u64>();
    let len = (PAGE + cx.arena.len() as u64 + program_room).next_multiple_of(PAGE);
    let hole = find_hole(images, &cx.busy, len, is_32bit(&cx.tree.tasks[i]))?;
    let boot = Boot { start: hole, len, arena: hole + PAGE, program: hole + PAGE + cx.arena.len() as u64 };
    map_boot(cx.arena, &boot, !twins.is_empty())?;
    Ok(boot)
}

/// Room for what a task's plan holds as often as the program wants: all else fits in the allowance for each thread.
fn plan_room(t: &Task) -> u64 {
    const THREAD: usize = 16 * 1024;
    const SIGNAL: usize = 256;
    const TIMER: usize = 512;
    let waiting = |queue: Option<&SignalQueueEntry>| queue.map_or(0, |q| q.signals.len() * SIGNAL);
    let thread = |core: &CoreEntry| {
        let th = core.thread_core.as_ref();
        let groups = th.and_then(|c| c.creds.as_ref()).map_or(0, |c| size_of_val(&c.groups[..]));
        THREAD + groups + waiting(th.and_then(|c| c.signals_p.as_ref()))
    };
    let tc = t.core().and_then(|c| c.tc.as_ref());
    let timers = tc.and_then(|tc| tc.timers.as_ref()).map_or(&[][..], |timers| &timers.posix);
    // Where ids can only be counted up to, those below are made and deleted.
    let timer_ids =
        timers.iter().map(|timer| timer.it_id as usize + 1).max().unwrap_or(0).min(timers::COUNT_UP_LIMIT as usize);
    let room = t.cores.iter().map(thread).sum::<usize>()
        + waiting(tc.and_then(|tc| tc.signals_s.as_ref()))
        + timers.len().max(timer_ids) * TIMER;
    room as u64
}

/// Maps and fills the task's memory. The executable's descriptor comes with it.
fn build_memory<'a>(
    cx: &mut Cx<'_>,
    i: usize,
    images: &'a memory::Images,
    boot: &Boot,
    twins: &[Changes],
) -> Result<(memory::Staged<'a>, Option<RawFd>)> {
    let first_service = cx.files.first_service_fd();
    let boot_range = [(boot.start, boot.start + boot.len)];
    let park_all = cfg!(debug_assertions) && std::env::var_os("CRUST_TEST_PARK_ALL").is_some();
    let mut opener = Opener { files: &mut *cx.files, source: cx.source, opts: cx.opts, first_service, exe: None };
    let is_32bit = is_32bit(&cx.tree.tasks[i]);
    let options = memory::StageOptions { park_all, threads: cx.fill_threads, is_32bit };
    let staged = memory::stage(cx.source, images, cx.segments, &mut opener, &boot_range, &cx.held, options)?;
    let exe = opener.exe;
    let filled = staged.filled_bytes + twins.iter().map(Changes::bytes).sum::<u64>();
    cx.arena.control().pages.fetch_add(filled / PAGE, Ordering::Relaxed);
    for &task in std::iter::once(&i).chain(cx.twins.of(i)) {
        cx.arena.set_boot(task, boot.start, boot.len);
    }
    Ok((staged, exe))
}

/// Puts every descriptor into its place, or waits for the task that does so for a table they share.
fn build_table(cx: &mut Cx<'_>, i: usize, exe: Option<RawFd>) -> Result<()> {
    let tree = cx.tree;
    let table = cx.sharing.files.with(i);
    let files_id = tree.tasks[i].ids.files_id;
    let opens = cx.sharing.files.first(i) == i;
    if opens {
        for &other in table {
            cx.arena.wait_for(other, Step::Staged, cx.deadline)?;
        }
        if let Some(before) = cx.sharing.fs.before(i) {
            // Sockets are given their names from the directories they had: one after the other goes there.
            cx.arena.wait_for(before, Step::Tables, cx.deadline)?;
        }
        let mut keep: Vec<RawFd> = vec![cx.source.dir().as_raw_fd()];
        keep.extend(exe);
        keep.extend(table.iter().filter_map(|&other| cx.arena.exe(other)));
        cx.files.open_table(files_id, &keep, cx.source, cx.opts)?;
    } else {
        // Numbers are about to be filled: whatever we opened now might be lost, or closed by us when it is the program's.
        cx.arena.wait_quietly(cx.sharing.files.first(i), Step::Tables, cx.deadline)?;
    }
    for &task in std::iter::once(&i).chain(cx.twins.of(i)) {
        cx.arena.reached(task, Step::Tables);
    }
    if opens && cx.files.has_watches(files_id) {
        for other in (0..tree.tasks.len()).filter(|&o| tree.tasks[o].is_live()) {
            cx.arena.wait_for(other, Step::Tables, cx.deadline)?;
        }
        cx.files.watch_files(files_id, cx.source, cx.opts)?;
    }
    Ok(())
}

/// What is set through /proc, the directories, and what is left of files that several tables have.
fn settle_files(cx: &mut Cx<'_>, i: usize) -> Result<()> {
    let tree = cx.tree;
    let t = &tree.tasks[i];
    let tc = task_record(t)?;
    // Before the root directory changes: there may be no /proc below the new one.
    limits::set_oom_score_adj(tc.oom_score_adj)?;
    odds::set_loginuid(tc.loginuid)?;
    let ordinary = CrustProcessSettings::default();
    let settings = tc.crust_settings.as_ref().unwrap_or(&ordinary);
    settings::set_coredump_filter(settings)?;
    odds::set_autogroup_nice(settings.autogroup_nice.filter(|_| t.sid == t.pid.as_raw()))?;
    if cx.sharing.fs.first(i) == i {
        for &other in cx.sharing.fs.with(i).iter().filter(|&&o| o != i) {
            cx.arena.wait_for(other, Step::Files, cx.deadline)?;
        }
        cx.files.set_fs(t.pid.as_raw(), cx.source, cx.opts)?;
    }
    cx.arena.reached(i, Step::Files);
    if i == 0 && cx.files.has_stand_ins() {
        let by_itself = |o: &usize| tree.tasks[*o].is_live() && cx.twins.elder_of(*o).is_none();
        for other in (1..tree.tasks.len()).filter(by_itself) {
            cx.arena.wait_for(other, Step::Files, cx.deadline)?;
        }
    }
    // Twins take what they need of shared files, and close the rest themselves; locks they have none.
    if cx.sharing.files.first(i) != i || !cx.twins.of(i).is_empty() {
        cx.files.leave_shared();
        return Ok(());
    }
    for &other in cx.sharing.files.with(i) {
        cx.arena.wait_quietly(other, Step::Files, cx.deadline)?;
    }
    cx.files.close_shared()
}

fn is_32bit(t: &Task) -> bool {
    t.core().is_some_and(compat::is)
}

/// A range that is free in our address space and in the one to come; `low`: and that 32-bit code reaches.
fn find_hole(images: &memory::Images, busy: &[(u64, u64)], len: u64, low: bool) -> Result<u64> {
    let mut occupied = images.occupied();
    // What this process has mapped since the fork lies where the kernel likes to put things, far from any hole.
    occupied.extend_from_slice(busy);
    let occupied = memory::layout::merged(occupied);
    let found = match low {
        true => memory::layout::find_low_hole(&occupied, len),
        false => memory::layout::find_hole(&occupied, len, PAGE),
    };
    found.ok_or_else(|| Error::unsupported("no free addresses are left for the restorer", "restore it with CRIU"))
}

/// Opens mapped files and the executable for the memory module.
struct Opener<'a> {
    files: &'a mut FileImages,
    source: &'a Source,
    opts: &'a Options,
    first_service: RawFd,
    /// The executable's descriptor, which must outlive the descriptor table of the build.
    exe: Option<RawFd>,
}

impl memory::MapFiles for Opener<'_> {
    fn open(&mut self, vma: &VmaEntry) -> Result<OwnedFd> {
        // CRIU keeps the file's id in the field that is a shared memory id for anonymous mappings.
        self.files.open_mapped(vma.shmid as u32, vma.fdflags, self.source, self.opts)
    }

    fn exe(&mut self, file_id: u32) -> Result<OwnedFd> {
        let fd = self.files.open_file_id(file_id, self.source, self.opts)?;
        let fd =
            rustix::io::fcntl_dupfd_cloexec(&fd, self.first_service).during("moving a descriptor out of the way")?;
        self.exe = Some(fd.as_raw_fd());
        Ok(fd)
    }
}

/// Maps the bootstrap region. `forks`: the program is to be the same memory for the processes that it forks.
fn map_boot(arena: &Arena, boot: &Boot, forks: bool) -> Result<()> {
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    let fixed = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let code = interp::code();
    // SAFETY: the hole was found free; NOREPLACE makes the kernel check it again. The windows of arena and program take the
    // place of parts of this very mapping, and a shared mapping is doubled by mremap with old length zero, never moved.
    unsafe {
        mman::mmap(boot.start, boot.len, rw, fixed, None, 0).during("mapping the bootstrap region")?;
        std::ptr::copy_nonoverlapping(code.as_ptr(), boot.start as *mut u8, code.len());
        mman::mprotect(boot.start, PAGE, libc::PROT_READ | libc::PROT_EXEC)
            .during("making the interpreter executable")?;
        mman::mremap(arena.base(), 0, arena.len() as u64, boot.arena).during("placing the arena")?;
        if forks {
            let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
            let room = boot.start + boot.len - boot.program;
            mman::mmap(boot.program, room, rw, shared, None, 0).during("mapping room for the plans of many tasks")?;
        }
    }
    Ok(())
}

/// The whole rest of the restore of one process and its twins, as data.
fn write_plan(
    cx: &Cx<'_>,
    i: usize,
    boot: &Boot,
    staged: memory::Staged<'_>,
    mm: &MmEntry,
    twins: &[Changes],
) -> Result<Program> {
    let t = &cx.tree.tasks[i];
    let tc = task_record(t)?;
    let mut p = Program::new();
    let main = p.plan("leader");
    thread::plan_forget_rseq(&mut p, main);
    staged.plan(&mut p, main, &[(boot.start, boot.start + boot.len)]);
    signals::plan_actions(&mut p, main, &tc.sigactions)?;
    for changes in twins {
        plan_twin(cx, &mut p, main, changes, boot, mm)?;
    }
    plan_process(cx, &mut p, main, i, boot, mm)?;
    Ok(p)
}

fn task_record(t: &Task) -> Result<&TaskCoreEntry> {
    t.core().and_then(|c| c.tc.as_deref()).ok_or_else(|| Error::new(Kind::Internal, "no task record"))
}

/// Forks a twin from its elder's plan `main`, and says how it goes on.
fn plan_twin(cx: &Cx<'_>, p: &mut Program, main: PlanId, changes: &Changes, boot: &Boot, mm: &MmEntry) -> Result<()> {
    let twin = changes.task;
    let t = &cx.tree.tasks[twin];
    let plan = p.plan("twin");
    let id = p.data(&t.pid.as_raw().to_le_bytes());
    let args = CloneArgs { flags: libc::CLONE_PARENT as u64, set_tid_size: 1, ..Default::default() };
    let at = p.data(&args.to_bytes());
    p.pointer(at.offset(std::mem::offset_of!(CloneArgs, set_tid) as u64), id);
    p.spawn(main, FORK_OF_TWIN, at, size_of::<CloneArgs>(), plan);
    // By the elder too: a twin killed before its first step would not be missed.
    let one = boot.arena + std::mem::offset_of!(super::arena::Control, one) as u64;
    p.copy(main, boot.arena + cx.arena.born_offset(twin), one, 4);

    // As `tie_to` does it.
    let args = [libc::PR_SET_PDEATHSIG.into(), libc::SIGKILL.into()];
    p.syscall(plan, "PR_SET_PDEATHSIG", libc::SYS_prctl, &args);
    let one = boot.arena + std::mem::offset_of!(super::arena::Control, one) as u64;
    p.copy(plan, boot.arena + cx.arena.born_offset(twin), one, 4);
    changes.plan(p, plan, cx.source.dir().as_raw_fd());
    plan_process(cx, p, plan, twin, boot, mm)
}

/// What a process does for itself once its memory, descriptors and signal actions are there, up to the barrier.
fn plan_process(cx: &Cx<'_>, p: &mut Program, main: PlanId, i: usize, boot: &Boot, mm: &MmEntry) -> Result<()> {
    let t = &cx.tree.tasks[i];
    let tc = task_record(t)?;
    let plans: Vec<PlanId> = std::iter::once(main).chain(t.threads.iter().skip(1).map(|_| p.plan("thread"))).collect();
    plan_last_files(cx, p, main, i, boot);
    thread::plan_process(p, main, tc, mm.thp_disabled(), &cx.own);
    if let Some(settings) = &tc.crust_settings {
        settings::plan_process(p, main, settings);
        lockall::plan(p, main, settings);
    }
    if let Some(want) = t.core().and_then(|c| c.thread_core.as_ref()?.creds.as_ref()) {
        lsm::plan_process(p, main, want);
    }
    for (k, &tid) in t.threads.iter().enumerate().skip(1) {
        start_thread(p, main, plans[k], tid);
    }
    if let Some(timers) = &tc.timers {
        timers::plan(p, main, timers, cx.timer_ids)?;
    }
    plan_threads(cx, p, &plans, i, boot, tc)?;
    if let Some(duty) = cx.duties.get(i).and_then(Option::as_ref) {
        cx.filters.plan(p, &plans, duty);
    }
    for (k, core) in t.cores.iter().enumerate() {
        let plan = plans[k];
        if let Some(want) = core.thread_core.as_ref().and_then(|c| c.creds.as_ref()) {
            creds::plan(p, plan, &cx.creds, want);
        }
        if k == 0 {
            plan_ties(cx, p, plan, i, mm);
        }
        plan_arrival(cx, p, plan, Task::parting_signal(k, core), boot);
        error_path(p, plan, cx.arena.plan_failure_offset(i), boot.arena);
    }
    Ok(())
}

/// Closes what is ours in a table of descriptors, once everybody who has it needs that no more.
fn plan_last_files(cx: &Cx<'_>, p: &mut Program, main: PlanId, i: usize, boot: &Boot) {
    let table = cx.sharing.files.with(i);
    if !table.is_empty() {
        // Every one of them has closed its executable.
        let meeting = boot.arena + cx.arena.meeting_offset(cx.sharing.files.first(i));
        p.barrier(main, meeting, table.len() as u32, meeting, table.len() as u32);
    }
    if cx.sharing.files.first(i) == i {
        let services = [cx.files.first_service_fd().into(), u32::MAX.into(), 0.into()];
        p.syscall(main, "close_range", libc::SYS_close_range, &services);
    }
}

/// Settings, pending signals and limits, which a thread with seccomp filters or less rights might not set.
fn plan_threads(
    cx: &Cx<'_>,
    p: &mut Program,
    plans: &[PlanId],
    i: usize,
    boot: &Boot,
    tc: &TaskCoreEntry,
) -> Result<()> {
    let t = &cx.tree.tasks[i];
    let word = |offset: usize| boot.arena + offset as u64;
    let unfiltered = word(std::mem::offset_of!(super::arena::Control, unfiltered));
    let filter = word(std::mem::offset_of!(super::arena::Control, filter));
    for (k, (&tid, core)) in t.threads.iter().zip(&t.cores).enumerate() {
        let plan = plans[k];
        thread::plan_thread(p, plan, core, tid, &cx.own)?;
        if let Some(queue) = core.thread_core.as_ref().and_then(|c| c.signals_p.as_ref()) {
            signals::plan_queue(p, plan, queue, t.pid.as_raw(), Some(tid.as_raw()))?;
        }
        if k == 0 {
            if let Some(queue) = &tc.signals_s {
                signals::plan_queue(p, plan, queue, t.pid.as_raw(), None)?;
            }
            limits::plan(p, plan, tc.rlimits.as_ref(), &cx.own.limits);
        }
        if cx.duties.get(i).is_some_and(Option::is_some) {
            p.barrier(plan, unfiltered, cx.meeting.filtered, filter, 1);
        }
    }
    Ok(())
}

/// What a change of credentials takes from the first thread of a process.
fn plan_ties(cx: &Cx<'_>, p: &mut Program, plan: PlanId, i: usize, mm: &MmEntry) {
    if let Some(dumpable) = mm.dumpable {
        let value = i32::from(dumpable == 1);
        p.syscall(plan, "PR_SET_DUMPABLE", libc::SYS_prctl, &[libc::PR_SET_DUMPABLE.into(), value.into()]);
    }
    // A change of credentials forgets the parent's death signal.
    let args = [libc::PR_SET_PDEATHSIG.into(), libc::SIGKILL.into()];
    p.syscall(plan, "PR_SET_PDEATHSIG", libc::SYS_prctl, &args);
    // A parent that died in between sent nothing.
    let parent = parent_id();
    if i != 0 || !cx.opts.restore_sibling {
        p.syscall_expect(plan, "getppid", libc::SYS_getppid, &[], Expect::Equals(parent as u64));
    }
}

/// The barrier at which the coordinator takes over. `parting`: the thread's own signal at its parent's death.
fn plan_arrival(cx: &Cx<'_>, p: &mut Program, plan: PlanId, parting: Option<u32>, boot: &Boot) {
    let word = |offset: usize| boot.arena + offset as u64;
    let arrived = word(std::mem::offset_of!(super::arena::Control, arrived));
    let never = word(std::mem::offset_of!(super::arena::Control, never));
    let Meeting { live, parting: parted_threads, .. } = cx.meeting;
    let Some(signal) = parting else { return p.barrier(plan, arrived, live, never, 1) };
    // Seized by the coordinator, the thread needs no tie to its parent any more but its own.
    p.barrier(plan, arrived, live, word(std::mem::offset_of!(super::arena::Control, go)), 1);
    let args = [libc::PR_SET_PDEATHSIG.into(), signal.into()];
    p.syscall(plan, "PR_SET_PDEATHSIG", libc::SYS_prctl, &args);
    p.barrier(plan, word(std::mem::offset_of!(super::arena::Control, parted)), parted_threads, never, 1);
}

const FORK_OF_TWIN: &str = "clone3 of a task";

/// The id that a call to clone3 in a task's plan asks for; `args` is the address of the call's arguments there.
pub(super) fn chosen_id(mem: &crust_kernel::remote_mem::RemoteMem, args: u64) -> Option<NsTid> {
    let at = args + std::mem::offset_of!(CloneArgs, set_tid) as u64;
    let at = mem.read_u64(VirtAddr(at)).ok()?;
    let mut id = [0; 4];
    mem.read(VirtAddr(at), &mut id).ok()?;
    NsTid::new(i32::from_le_bytes(id))
}

/// CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM; no stack: the interpreter needs none.
const THREAD_FLAGS: u64 = 0x0005_0f00;

fn start_thread(p: &mut Program, main: PlanId, child: PlanId, tid: NsTid) {
    let id = p.data(&tid.as_raw().to_le_bytes());
    let args = CloneArgs { flags: THREAD_FLAGS, set_tid_size: 1, ..Default::default() };
    let at = p.data(&args.to_bytes());
    p.pointer(at.offset(std::mem::offset_of!(CloneArgs, set_tid) as u64), id);
    p.thread(main, at, size_of::<CloneArgs>(), child);
}

/// How long a failed task lets itself be looked at. So long at most it outlives a coordinator that died before it.
const PARK_SECONDS: i64 = 10;

/// A failed step tells the coordinator and waits to be looked at and killed.
fn error_path(p: &mut Program, plan: PlanId, note: u64, arena: u64) {
    let word = |offset: usize| arena + offset as u64;
    let arrived = word(std::mem::offset_of!(super::arena::Control, arrived));
    let failed = word(std::mem::offset_of!(super::arena::Control, failed));
    let one = word(std::mem::offset_of!(super::arena::Control, one));
    p.error_path(plan);
    p.copy(plan, arena + note, Arg::Header(plan), 24);
    p.copy(plan, failed, one, 4);
    // FUTEX_WAKE, shared
    let args = [arrived.into(), 1.into(), i32::MAX.into()];
    p.syscall_expect(plan, "waking the coordinator", libc::SYS_futex, &args, Expect::Any);
    // Parks: the coordinator reads the failed record from this memory, then kills the tree. If there is none any more,
    // the end comes by itself.
    let never = word(std::mem::offset_of!(super::arena::Control, never));
    let limit = p.data(&[PARK_SECONDS.to_le_bytes(), 0i64.to_le_bytes()].concat());
    // FUTEX_WAIT, shared
    let args = [never.into(), 0.into(), 0.into(), limit.into()];
    p.syscall_expect(plan, "waiting to be looked at", libc::SYS_futex, &args, Expect::Any);
    p.syscall_expect(plan, "exit_group", libc::SYS_exit_group, &[1.into()], Expect::Any);
}

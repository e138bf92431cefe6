//! The restore, readable top to bottom: read → check → plan → build → swap → line up → resume.
use crate::cgroup::rebuild::Groups;
use crate::clock::Clock;
use crate::error::{Error, Kind, OnObject, ResultExt};
use crate::events::Bounded;
use crate::files::{FileImages, TaskFiles};
use crate::images::Source;
use crate::plugins::{self, Hook, Plugins};
use crate::task::creds::{self, Cap};
use crate::task::{compat, limits, lockall, lsm, odds, regs, seccomp, settings, thread, tiles, timers};
use crate::{Event, Events, Object, Options, Result, Stage, memory, namespaces};
use crust_image::ImageKind;
use crust_image::proto::core_entry::March;
use crust_image::proto::{InventoryEntry, TaskKobjIdsEntry};
use crust_kernel::procfs::{ProcDir, Stat, Status};
use crust_kernel::ptrace::{self, Waited};
use crust_kernel::{Deadline, HostTid, NsTid, VirtAddr, remote_mem};
use rustix::process::{Pid, Signal};
use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(crate) mod arena;
mod build;
mod finish;
mod ids;
mod sharing;
mod thin;
pub(crate) mod tree;
mod twins;
mod waits;

use arena::Arena;
use sharing::Sharing;
use tree::{Fate, Tree};
use twins::Twins;

/// A tree that runs again.
#[derive(Clone, Debug, Default)]
pub struct RestoreReport {
    /// Root task, in our pid namespace.
    pub pid: i32,
    /// Processes brought back.
    pub tasks: usize,
    /// Threads brought back, leaders included.
    pub threads: usize,
    /// Pages filled from images.
    pub pages_restored: u64,
    /// Wall time of the forks.
    pub forking: Duration,
    /// Wall time of everything up to the resume.
    pub restoring: Duration,
    /// Named steps with their wall time, in order.
    pub phases: Vec<(&'static str, Duration)>,
}

/// How long a restore may take when the caller sets no limit.
const DEFAULT_LIMIT: Duration = Duration::from_secs(600);

/// What is left when a restore fails before its tree runs.
const REMOVED: &str = "every task of the tree was removed again";

/// Everything the images say, checked.
struct Plan {
    source: Source,
    tree: Tree,
    files: FileImages,
    memory: Vec<Option<memory::Images>>,
    own: thread::Own,
    creds: crust_image::proto::CredsEntry,
    filters: seccomp::Filters,
    /// By task: what it installs of them.
    duties: Vec<Option<seccomp::Duty>>,
    /// The dumper's kernel objects; CRIU before 2.0 named none.
    dumper: Option<TaskKobjIdsEntry>,
    /// Why threads cannot have their security labels.
    labels: Vec<Error>,
}

/// Brings the tree in `opts.images_dir` back and lets it run.
/// The root task is a child of the caller's thread group (a sibling with `restore_sibling`); the caller waits for it or not.
///
/// # Errors
/// Any error leaves no task of the tree behind.
pub fn restore(opts: &Options, events: &mut dyn Events) -> Result<RestoreReport> {
    let clock = Clock::start();
    let deadline = clock.started + opts.timeout.unwrap_or(DEFAULT_LIMIT);
    let events = &mut Bounded::new(events, Some(Deadline::at(deadline)));
    refuse_options(opts)?;
    let until = plugins::Until { deadline: Deadline::at(deadline), watch: events.watch() };
    let plugins = Plugins::connect(&opts.plugins, plugins::Stage::Restore, until)
        .map_err(|e| e.at(Stage::Read).state("nothing was created"))?;
    let done = restore_with(&plugins, opts, events, clock, deadline);
    plugins.end(done.is_ok());
    match done {
        Err(e) if e.kind() == Kind::Cancelled && events.is_late() => {
            Err(late(opts).at(Stage::Build).state("no task of the tree is left"))
        }
        done => done,
    }
}

fn restore_with(
    plugins: &Plugins,
    opts: &Options,
    events: &mut Bounded<'_>,
    mut clock: Clock,
    deadline: Instant,
) -> Result<RestoreReport> {
    let (mut plan, mut groups) = begin(plugins, opts, events, &mut clock)?;
    let pid = plan.tree.tasks[0].pid.as_raw();
    let masters =
        plan.files.offer_masters(opts, events).map_err(|e| e.at(Stage::Build).state("nothing was created"))?;
    plan.files.find_outside().map_err(|e| e.at(Stage::Build).state("nothing was created"))?;
    let arena = Arena::new(plan.tree.tasks.len())?;
    let segments = memory::Segments::create(&plan.source, plan.memory.iter().flatten(), &events.pulse())?;
    plan.source.dismiss();
    clock.done("shared memory");
    let started = Instant::now();
    let root = fork_root((&mut plan, groups.as_ref()), &arena, &segments, opts, deadline)?;
    let guard = KillOnDrop { root, arena: &arena, tree: &plan.tree, armed: true };
    let sibling = opts.restore_sibling.then(|| HostTid::new(root)).flatten();
    if let Some(root) = sibling {
        // Its parent is not us, so our death would be nothing to it: it hangs on us as a tracee from the start.
        finish::hold(root, plan.duties.iter().any(Option::is_some)).map_err(|e| e.at(Stage::Build))?;
        arena.hold_root();
    }
    let lines = Lines { plan: &plan, arena: &arena, root, held: sibling, deadline };
    let traced = take_filtered(&lines, events)
        .and_then(|traced| line_up(&lines, events).map(|()| traced))
        .map_err(|e| e.at(Stage::Build).state(REMOVED))?;
    if let Some(groups) = &mut groups {
        settle(groups, &plan.tree).map_err(|e| e.at(Stage::LineUp).state(REMOVED))?;
    }
    drop(masters);
    let forking = started.elapsed();
    clock.done("build");

    let in_time = || in_time(opts, deadline).map_err(|e| e.at(Stage::LineUp).state(REMOVED));
    events.notify(Event::PostRestore { pid }, Some(pid), None)?;
    in_time()?;
    if let Some(path) = &opts.pidfile {
        write_pidfile(path, pid)?;
    }
    let devices = plan.files.kept_devices().map_err(|e| e.at(Stage::LineUp).state(REMOVED))?;
    plan.files.set_late_owners().map_err(|e| e.at(Stage::LineUp).state(REMOVED))?;
    let processes = processes(&plan, &arena)?;
    let part = || {
        arena::open(&arena.control().go);
        wait_at(&lines, &arena.control().parted, plan.tree.parting_threads() as u32, events)
    };
    let ready = finish::complete(&processes, &traced, part, Deadline::at(deadline))
        .map_err(|e| e.at(Stage::LineUp).state(REMOVED))?;
    clock.done("swap");
    for p in &processes {
        plugins.tell(Hook::ResumeDevicesLate, p.pid.as_raw()).map_err(|e| e.at(Stage::LineUp).state(REMOVED))?;
    }
    in_time()?;
    // The last moment to turn back: from here on the tree runs.
    not_cancelled(events).map_err(|e| e.at(Stage::LineUp).state(REMOVED))?;
    let_run(ready, &plan.tree, groups.as_mut(), pid, opts, events)?;
    guard.disarm();
    if let Some(mut groups) = groups {
        groups.set_late();
        groups.keep();
    }
    segments.keep();
    plan.files.remove_links();
    devices.let_go();
    clock.done("resume");
    if let Err(e) = events.notify(Event::PostResume { pid }, Some(pid), None) {
        log::error!("post-resume failed: {e}");
    }
    let live = plan.tree.tasks.iter().filter(|t| t.fate != Fate::Helper).count();
    Ok(RestoreReport {
        pid,
        tasks: live,
        threads: plan.tree.live_threads(),
        pages_restored: arena.control().pages.load(Ordering::Relaxed),
        forking,
        restoring: clock.started.elapsed(),
        phases: clock.phases,
    })
}

/// Lets the tree go, which is complete.
fn let_run(
    ready: finish::Ready,
    tree: &Tree,
    groups: Option<&mut Groups>,
    pid: i32,
    opts: &Options,
    events: &mut dyn Events,
) -> Result<()> {
    // As CRIU has it, a refusal from here on is only logged. No network-unlock: that is for trees with a network of their own.
    let event = Event::PreResume { pid };
    if let Err(e) = events.notify(event, Some(pid), None) {
        log::error!("{} failed: {e}", event.script_name());
    }
    let stop = finish::to_stop(tree, |t| HostTid::new(t.pid.as_raw()), opts.leave_stopped);
    // A thread that is to end first could not in a frozen group.
    let late = ready.has_to_end();
    if let Some(groups) = groups.filter(|_| !late) {
        groups.set_late();
    }
    ready.release(&stop).map_err(|e| e.at(Stage::Resume))
}

fn in_time(opts: &Options, deadline: Instant) -> Result<()> {
    if Instant::now() < deadline {
        return Ok(());
    }
    Err(late(opts))
}

fn late(opts: &Options) -> Error {
    let what = format!("the restore was not complete within {:?}", opts.timeout.unwrap_or(DEFAULT_LIMIT));
    Error::new(Kind::Timeout, what).help("give it more time with --timeout, or let its action scripts take less")
}

/// Reads and checks everything. Control groups are there then, and nothing else is.
fn begin(
    plugins: &Plugins,
    opts: &Options,
    events: &mut Bounded<'_>,
    clock: &mut Clock,
) -> Result<(Plan, Option<Groups>)> {
    let (mut plan, mut groups) = read(opts, events).map_err(|e| e.at(Stage::Read))?;
    clock.done("read");
    if let Some(groups) = &mut groups {
        // Files in them are looked for below. What is made here goes again if anything fails.
        prepare(groups, &plan).map_err(|e| e.at(Stage::Check).state("nothing was created"))?;
    }
    let created = "nothing was created";
    check(&mut plan, plugins, opts).map_err(|e| e.at(Stage::Check).state(created))?;
    plan.files.ask_plugins(plugins, &plan.source).map_err(|e| e.at(Stage::Check).state(created))?;
    clock.done("check");
    not_cancelled(events).map_err(|e| e.at(Stage::Check).state(created))?;
    events.notify(Event::PreRestore, None, None)?;
    Ok((plan, groups))
}

/// Forks the root task, which builds itself and the others.
fn fork_root(
    (plan, groups): (&mut Plan, Option<&Groups>),
    arena: &Arena,
    segments: &memory::Segments,
    opts: &Options,
    deadline: Instant,
) -> Result<i32> {
    let twins = Twins::find(&plan.tree, &plan.memory, &plan.files, opts);
    let sharing = Sharing::find(&plan.tree);
    let common = build::common(&plan.tree, &twins, &plan.memory);
    let mut cx = build::Cx {
        tree: &plan.tree,
        twins: &twins,
        sharing: &sharing,
        arena,
        files: &mut plan.files,
        memory: &plan.memory,
        segments,
        source: &plan.source,
        opts,
        deadline,
        timer_ids: timers::probe_id_mode(),
        creds: plan.creds.clone(),
        own: plan.own,
        filters: &plan.filters,
        duties: &plan.duties,
        groups,
        busy: memory::prepare()?,
        fill_threads: if ids::keep_clear(&plan.tree.all_ids()) { 0 } else { 1 },
        common: &common,
        held: memory::Held::default(),
        meeting: build::Meeting::new(&plan.tree, &plan.duties),
    };
    let clocks = namespaces::time::enter(&plan.source).map_err(|e| e.at(Stage::Build))?;
    let root = build::fork_root(&mut cx).map_err(|e| e.at(Stage::Build))?;
    drop(clocks);
    Ok(root)
}

/// Kills what was built, unless all went well. The root's death takes its descendants with it, one by one.
struct KillOnDrop<'a> {
    root: i32,
    arena: &'a Arena,
    tree: &'a Tree,
    armed: bool,
}

impl KillOnDrop<'_> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for KillOnDrop<'_> {
    fn drop(&mut self) {
        let Some(pid) = Pid::from_raw(self.root).filter(|_| self.armed) else { return };
        // Whoever is on its way between two parents, and so below none of those listed here, sees this and leaves.
        self.arena.raise_failed();
        let mut descendants = descendants(self.root);
        // Those whose parent died hang on us by ptrace, and nowhere else.
        descendants.extend(self.tree.all_ids().iter().map(|id| id.as_raw()).filter(|&id| is_traced_by_us(id)));
        for id in std::iter::once(pid).chain(descendants.iter().filter_map(|&d| Pid::from_raw(d))) {
            let _gone_is_fine = rustix::process::kill_process(id, Signal::KILL);
        }
        // Threads that were seized are ours to reap, or they and their processes would stay as zombies while we live. A
        // sibling's and a descendant's end is its parent's affair then.
        let ids = self.tree.all_ids();
        let mut left: Vec<HostTid> =
            std::iter::once(self.root).chain(ids.iter().map(|i| i.as_raw())).filter_map(HostTid::new).collect();
        let deadline = Deadline::after(Duration::from_secs(30));
        let mut backoff = crust_kernel::Backoff::new();
        loop {
            left.retain(|&id| matches!(ptrace::poll_wait(id), Ok(None | Some(Waited::Stopped(_)))));
            if left.is_empty() {
                break;
            }
            if !backoff.pause(deadline) {
                log::error!("task {} could not be removed in time", left[0]);
                break;
            }
        }
    }
}

fn is_traced_by_us(id: i32) -> bool {
    let status = HostTid::new(id).and_then(|id| ProcDir::open(id).ok()?.read_text("status").ok()).map(Status::new);
    status.and_then(|s| s.number("TracerPid")) == Some(i64::from(rustix::process::getpid().as_raw_nonzero().get()))
}

fn descendants(root: i32) -> Vec<i32> {
    let mut all = vec![root];
    let mut i = 0;
    while let Some(&pid) = all.get(i) {
        if let Some(proc) = HostTid::new(pid).and_then(|p| ProcDir::open(p).ok()) {
            all.extend(proc.children().unwrap_or_default().iter().map(|c| c.as_raw()));
        }
        i += 1;
    }
    all.remove(0);
    all
}

fn read(opts: &Options, events: &mut Bounded<'_>) -> Result<(Plan, Option<Groups>)> {
    let dir = opts.images_dir.as_ref().ok_or_else(|| Error::new(Kind::BadRequest, "no image directory was given"))?;
    let (dir, work_dir) = (dir.as_fd(), opts.work_dir.as_ref().map(|d| d.as_fd()));
    let source = match &opts.images_tar {
        Some(tar) => Source::open_tar(tar, work_dir, &events.pulse())?,
        None if opts.stream => {
            events.notify(Event::PreStream, None, None)?;
            Source::open_streamer(dir, work_dir, events.pulse())?
        }
        None => Source::open(dir)?,
    };
    let inventory: InventoryEntry = source.read_one(ImageKind::Inventory, 0)?;
    // Images of version 1 lack the second magic; version 2 is CRIU's last.
    if inventory.img_version > 2 {
        return Err(Error::bad_image("inventory.img", format!("has version {}", inventory.img_version)));
    }
    let mut tree = Tree::read(&source, opts.shell_job)?;
    let labels = settle_labels(&mut tree, &lsm::Wish::new(inventory.lsmtype(), opts.lsm_profile.as_deref())?);
    let mut memory: Vec<Option<memory::Images>> = Vec::with_capacity(tree.tasks.len());
    let mut tasks = Vec::with_capacity(tree.tasks.len());
    for t in &tree.tasks {
        if !t.is_live() {
            memory.push(None);
            continue;
        }
        let pid = t.pid.as_raw();
        let images = memory::Images::read(&source, pid as u64).on_task(pid)?;
        let mapped = images.mm.vmas.iter().filter(|v| memory::needs_file(v)).map(|v| v.shmid as u32);
        let also = mapped.chain([images.mm.exe_file_id]).collect();
        tasks.push(TaskFiles { pid, table: t.ids.files_id, also });
        memory.push(Some(images));
    }
    let files = FileImages::read(&source, &tasks)?;
    // CRIU may list a file twice. Whoever compares mappings compares ids.
    let same = files.same_files();
    let mapped = memory.iter_mut().flatten().flat_map(|i| &mut i.mm.vmas);
    for vma in mapped.filter(|v| v.status & memory::status::FILE_PRIVATE != 0) {
        vma.shmid = same.get(&vma.shmid).copied().unwrap_or(vma.shmid);
    }
    // The directory must stay open while tables are rebuilt around it.
    let high = rustix::io::fcntl_dupfd_cloexec(source.dir(), files.first_service_fd())
        .during("moving a descriptor above all that the images use")
        .map_err(|e| e.help("raise our own limit of open files (ulimit -n)"))?;
    let source = source.through(high);
    if source.is_fed() {
        // Files that are opened only while tasks are built, when nobody can be asked any more.
        files.fetch_late(&source)?;
        source.exists(&ImageKind::Timens.file_name(0))?;
    }
    let me = HostTid::new(rustix::process::getpid().as_raw_nonzero().get());
    let me = me.ok_or_else(|| Error::new(Kind::Internal, "we have no pid"))?;
    let status = ProcDir::open_self(me).and_then(|p| p.read_text("status")).during("reading /proc/self/status")?;
    let creds =
        creds::from_status(&Status::new(status), crust_kernel::process::securebits().during("PR_GET_SECUREBITS")?)?;
    let filters = seccomp::Filters::new(source.read_one_if(ImageKind::Seccomp, 0)?);
    let mut duties = Vec::with_capacity(tree.tasks.len());
    for t in &tree.tasks {
        let duty = if t.is_live() { filters.duty(&t.cores).on_task(t.pid.as_raw())? } else { None };
        duties.push(duty);
    }
    let own = thread::Own::look()?;
    let groups = Groups::read(&source, opts, inventory.root_cg_set)?;
    Ok((Plan { source, tree, files, memory, own, creds, filters, duties, dumper: inventory.root_ids, labels }, groups))
}

/// Gives the records of all threads the security labels that they are to have here; says which cannot be.
fn settle_labels(tree: &mut Tree, wish: &lsm::Wish) -> Vec<Error> {
    let mut found = Vec::new();
    for t in tree.tasks.iter_mut().filter(|t| t.is_live()) {
        let creds = t.cores.iter_mut().filter_map(|c| c.thread_core.as_mut()?.creds.as_mut());
        // All threads of a process may say the same.
        let errors: Vec<Error> = creds.filter_map(|c| wish.settle(c, lsm::Machine::here())).collect();
        let threads = t.cores.iter().filter_map(|c| c.thread_core.as_ref()?.creds.as_ref());
        let error = errors.into_iter().next().or_else(|| lsm::check_threads(threads, lsm::Machine::here()));
        found.extend(error.map(|e| e.on(Object::Task(t.pid.as_raw()))));
    }
    found
}

fn refuse_options(opts: &Options) -> Result<()> {
    let asked = [
        (opts.root.is_some(), "--root"),
        (!opts.join_ns.is_empty(), "--join-ns"),
        (opts.empty_ns != 0, "--empty-ns"),
        (opts.lsm_mount_context.is_some(), "--lsm-mount-context"),
        (opts.auto_dedup, "--auto-dedup"),
        (opts.lazy_pages, "--lazy-pages"),
    ];
    let refused = Options::refuse(&asked, "leave the option out, or restore with CRIU");
    refused.map_err(|e| e.state("nothing was created"))
}

/// Makes the control groups of the tree.
fn prepare(groups: &mut Groups, plan: &Plan) -> Result<()> {
    let cores = plan.tree.tasks.iter().flat_map(|t| &t.cores);
    Error::all(groups.check(cores)).map_or(Ok(()), Err)?;
    groups.create(plan.files.first_service_fd())
}

/// All threads are there: those in other groups than their process go into them, and the groups get their settings.
fn settle(groups: &mut Groups, tree: &Tree) -> Result<()> {
    for t in tree.tasks.iter().filter(|t| t.is_live()) {
        groups.place_threads(t.threads.iter().map(|t| t.as_raw()).zip(&t.cores))?;
    }
    groups.set_properties()
}

/// Everything that would fail later, asked now and told at once.
fn check(plan: &mut Plan, plugins: &Plugins, opts: &Options) -> Result<()> {
    let mut errors: Vec<Error> = ids::check_free(&plan.tree.all_ids()).into_iter().collect();
    errors.append(&mut plan.labels);
    errors.extend(may_choose_ids(&plan.creds));
    errors.extend(crate::cpu::check_if_asked(&plan.source, opts.cpu_cap));
    errors.extend(plan.files.check(opts, plugins));
    let may_set_loginuid = Cap::AUDIT_CONTROL.is_held(&plan.creds);
    let privileged = Cap::SYS_RESOURCE.is_held(&plan.creds);
    if plan.duties.iter().any(Option::is_some) {
        errors.extend(seccomp::check());
    }
    for t in plan.tree.tasks.iter().filter(|t| t.is_live()) {
        let mut found = plan.dumper.as_ref().map_or_else(Vec::new, |d| namespaces::imaged(d, &t.ids));
        let mut said = HashSet::new();
        for core in &t.cores {
            if core.mtype != regs::MTYPE {
                let what = March::try_from(core.mtype).map_or("unknown", |march| march.as_str_name());
                let what = format!("the image is of another architecture ({what})");
                found.push(Error::unsupported(what, "restore it on such a machine"));
                break;
            }
            let Some(th) = &core.thread_core else {
                found.push(Error::bad_image(format!("core-{}.img", t.pid), "has no thread part"));
                continue;
            };
            found.extend(compat::check(core));
            found.extend(th.crust_settings.as_ref().and_then(settings::check));
            // Threads mostly say the same.
            let refused = th.creds.as_ref().map_or_else(Vec::new, |want| creds::check(&plan.creds, want));
            found.extend(refused.into_iter().filter(|e| said.insert(e.to_string())));
            match &core.thread_info {
                Some(info) => {
                    found.extend(regs::general(info).err());
                    found.extend(regs::check_fpu(&info.fpregs).err().filter(|e| said.insert(e.to_string())));
                }
                None => found.push(Error::bad_image(format!("core-{}.img", t.pid), "has no registers")),
            }
        }
        if let Some(tc) = t.core().and_then(|c| c.tc.as_ref()) {
            let wants = tc.crust_settings.as_ref().and_then(settings::check_process);
            found.extend(wants.filter(|e| said.insert(e.to_string())));
            found.extend(tiles::check(t.pid, &t.cores));
            odds::check_loginuid(tc.loginuid, may_set_loginuid);
            found.extend(limits::check(tc.rlimits.as_ref(), &plan.own.limits, privileged));
            found.extend(
                tc.crust_settings.as_ref().and_then(|want| lockall::check(want, &plan.creds, &plan.own.limits)),
            );
        }
        found.truncate(8);
        errors.extend(found.into_iter().map(|e| e.on(Object::Task(t.pid.as_raw()))));
    }
    shared_objects(&plan.tree, &mut errors);
    Error::all(errors).map_or(Ok(()), Err)
}

/// Without one of these capabilities the first fork of the tree would fail.
fn may_choose_ids(own: &crust_image::proto::CredsEntry) -> Option<Error> {
    (!creds::may_choose_ids(own)).then(|| {
        Error::new(Kind::Permission, "restoring a tree with its process ids needs CAP_CHECKPOINT_RESTORE")
            .help("get that capability (setcap cap_checkpoint_restore+ep), be root, or restore without --unprivileged, in namespaces of its own")
    })
}

/// Processes that share what cannot be restored; say so before anything is created.
fn shared_objects(tree: &Tree, errors: &mut Vec<Error>) {
    use std::collections::HashMap;
    let mut seen: [HashMap<u32, i32>; 2] = Default::default();
    for t in tree.tasks.iter().filter(|t| t.is_live()) {
        for (map, (id, what)) in seen.iter_mut().zip([(t.ids.vm_id, "memory"), (t.ids.sighand_id, "signal handlers")]) {
            if let Some(other) = map.insert(id, t.pid.as_raw()) {
                let text = format!("shares its {what} with task {other}");
                let help = "this version restores threads, but not processes that share memory (CLONE_VM)";
                errors.push(Error::unsupported(text, help).on(Object::Task(t.pid.as_raw())));
            }
        }
    }
    errors.extend(Sharing::find(tree).check(tree));
}

fn not_cancelled(events: &mut dyn Events) -> Result<()> {
    match events.cancelled() {
        true => Err(Error::new(Kind::Cancelled, "the request was cancelled")
            .help("the images are as they were: restore them again")),
        false => Ok(()),
    }
}

/// What every wait for the tree needs.
#[derive(Clone, Copy)]
struct Lines<'a> {
    plan: &'a Plan,
    arena: &'a Arena,
    root: i32,
    /// The root, if it hangs on us by ptrace.
    held: Option<HostTid>,
    deadline: Instant,
}

/// Tasks under seccomp stop once more before their filters are installed: there their threads are seized with all filters
/// suspended. The ids of all threads that are seized by now.
fn take_filtered(lines: &Lines<'_>, events: &mut dyn Events) -> Result<HashSet<HostTid>> {
    let Lines { plan, arena, held, .. } = *lines;
    let filtered = plan.tree.tasks.iter().zip(&plan.duties).filter(|(_, duty)| duty.is_some());
    let inner: Vec<NsTid> = filtered.flat_map(|(t, _)| t.threads.iter().copied()).collect();
    if inner.is_empty() {
        return Ok(held.into_iter().collect());
    }
    let control = arena.control();
    wait_at(lines, &control.unfiltered, inner.len() as u32, events)?;
    let threads: Vec<(HostTid, NsTid)> =
        inner.into_iter().filter_map(|t| HostTid::new(t.as_raw()).map(|host| (host, t))).collect();
    let free: Vec<(HostTid, NsTid)> = threads.iter().copied().filter(|(host, _)| held != Some(*host)).collect();
    seccomp::suspend(&free)?;
    arena::open(&control.filter);
    Ok(threads.into_iter().map(|(host, _)| host).chain(held).collect())
}

/// Waits until every thread stands at the last barrier, or something failed.
fn line_up(lines: &Lines<'_>, events: &mut dyn Events) -> Result<()> {
    let want = lines.plan.tree.live_threads() as u32;
    wait_at(lines, &lines.arena.control().arrived, want, events)
}

/// Waits until `want` threads have counted themselves in at `word`, or something failed.
fn wait_at(lines: &Lines<'_>, word: &AtomicU32, want: u32, events: &mut dyn Events) -> Result<()> {
    let Lines { plan, arena, root, held, deadline } = *lines;
    let control = arena.control();
    let mut last_look = Instant::now();
    let mut next = 0;
    loop {
        if let Some(root) = held {
            finish::pass_on(root);
        }
        let arrived = word.load(Ordering::Acquire);
        if control.failed.load(Ordering::Acquire) != 0 {
            return Err(failure(plan, arena));
        }
        if arrived >= want {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let late: Vec<String> = plan
                .tree
                .tasks
                .iter()
                .enumerate()
                .map(|(i, t)| format!("{}: step {}", t.pid, arena.step_of(i)))
                .take(8)
                .collect();
            return Err(Error::new(Kind::Timeout, format!("the tree was not complete in time ({})", late.join(", "))));
        }
        not_cancelled(events)?;
        events.progress("threads", u64::from(arrived), u64::from(want));
        arena::sleep_on(word, arrived);
        if last_look.elapsed() > Duration::from_millis(100) {
            last_look = Instant::now();
            next = died(plan, arena, root, next)?;
        }
    }
}

/// The error of whichever task failed first.
fn failure(plan: &Plan, arena: &Arena) -> Error {
    // A failing plan and a failing build may race by microseconds with their notes.
    for _ in 0..50 {
        if let Some((task, record, value)) = arena.plan_failure() {
            let pid = plan.tree.tasks[task].pid;
            return plan_error(pid, record, value);
        }
        if let Some((task, error)) = arena.rust_failure() {
            return arena::of_task(error, plan.tree.tasks[task].pid.as_raw());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Error::new(Kind::Internal, "a task failed without saying why")
}

/// Reads the failed record from the parked task and names the call.
fn plan_error(pid: NsTid, record: u64, value: i64) -> Error {
    let describe = || -> Option<(String, [u64; 6], Option<NsTid>)> {
        let mem = remote_mem::RemoteMem::open_read_only(HostTid::new(pid.as_raw())?).ok()?;
        let mut bytes = [0u8; crust_inject::plan::RECORD_BYTES];
        mem.read(VirtAddr(record), &mut bytes).ok()?;
        let distance = crust_inject::plan::Failure::label_distance(&bytes)?;
        let mut label = Vec::new();
        for i in 0..120 {
            let mut byte = [0u8];
            mem.read(VirtAddr(record + u64::from(distance) + i), &mut byte).ok()?;
            if byte[0] == 0 {
                break;
            }
            label.push(byte[0]);
        }
        let args = crust_inject::plan::Failure::args(&bytes)?;
        let label = String::from_utf8_lossy(&label).into_owned();
        let id = label.starts_with("clone3").then(|| build::chosen_id(&mem, args[0])).flatten();
        Some((label, args, id))
    };
    let (label, args, id) = describe().unwrap_or_else(|| ("a step of the restorer".into(), [0; 6], None));
    if let Some(id) = id.filter(|_| value == -i64::from(libc::EEXIST)) {
        return ids::taken_meanwhile(id).on(Object::Task(pid.as_raw())).at(Stage::Swap);
    }
    let error = if (-4095..0).contains(&value) {
        let error = Error::kernel(format!("{label} {args:x?}"), rustix::io::Errno::from_raw_os_error(-value as i32));
        let missing = thread::takes(&label).filter(|_| error.kind() == Kind::Permission);
        match missing {
            Some(cap) => error.help(cap.remedy()),
            None => error,
        }
    } else {
        Error::new(Kind::Internal, format!("{label} {args:x?} gave {value:#x}"))
    };
    error.on(Object::Task(pid.as_raw())).at(Stage::Swap)
}

/// Notices a task that died without a word. Looks at some tasks from number `from` on; gives the number to go on with.
fn died(plan: &Plan, arena: &Arena, root: i32, from: usize) -> Result<usize> {
    const AT_ONCE: usize = 64;
    let from = if from < plan.tree.tasks.len() { from } else { 0 };
    for (i, t) in plan.tree.tasks.iter().enumerate().skip(from).take(AT_ONCE) {
        if !t.is_live() || !arena.is_born(i) {
            continue;
        }
        let pid = if i == 0 { root } else { t.pid.as_raw() };
        let state = HostTid::new(pid)
            .and_then(|p| ProcDir::open(p).ok())
            .and_then(|d| d.read("stat").ok())
            .and_then(|s| Stat::parse(&s));
        let dead = state.as_ref().is_none_or(|s| s.state == b'Z' || s.state == b'X');
        if dead && arena.control().failed.load(Ordering::Acquire) == 0 {
            let code = state.map_or(0, |s| s.exit_code);
            let what = format!("died while it was being built (step {}, wait status {code:#x})", arena.step_of(i));
            return Err(Error::new(Kind::Internal, what).on(Object::Task(t.pid.as_raw())));
        }
    }
    Ok(from + AT_ONCE)
}

/// The live processes with what the last step needs to know of each.
fn processes<'a>(plan: &'a Plan, arena: &Arena) -> Result<Vec<finish::Process<'a>>> {
    let none = || Error::unsupported("our own vDSO has no system call instruction", "restore with CRIU");
    let host = |id: NsTid| HostTid::new(id.as_raw()).ok_or_else(|| Error::new(Kind::Internal, "no id"));
    let mut all = Vec::new();
    for (i, task) in plan.tree.tasks.iter().enumerate() {
        let Some(images) = &plan.memory[i] else { continue };
        let vdso = images.mm.vmas.iter().find(|v| v.status & memory::status::VDSO != 0);
        let is_32bit = task.core().is_some_and(compat::is);
        let (pid, boot) = (host(task.pid)?, arena.boot(i));
        let syscall_at = match vdso {
            Some(vdso) => vdso.start + memory::layout::syscall_offset(is_32bit).ok_or_else(none)?,
            None => syscall_in_code(pid, boot).on_task(task.pid.as_raw())?,
        };
        all.push(finish::Process {
            task,
            pid,
            threads: task.threads.iter().map(|&t| host(t)).collect::<Result<_>>()?,
            boot,
            syscall_at,
            is_32bit,
        });
    }
    Ok(all)
}

/// Where a program without a vDSO, complete but for its registers, has an instruction for our last calls.
fn syscall_in_code(pid: HostTid, boot: (u64, u64)) -> Result<u64> {
    let proc = ProcDir::open(pid).during("opening its /proc directory")?;
    memory::layout::syscall_in_code(&proc, pid, boot)?.ok_or_else(|| {
        let help = "restore with CRIU";
        Error::unsupported("the program has no vDSO, and no system call instruction in its code", help)
    })
}

/// CRIU's pid file: the number alone, refused if the file is there already.
fn write_pidfile(path: &std::path::Path, pid: i32) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut f| f.write_all(pid.to_string().as_bytes()))
        .during("writing the pid file")
        .on_path(&path.to_string_lossy())
}

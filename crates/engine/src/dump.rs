//! The dump, readable top to bottom: find → freeze → look → write → commit → kill or resume.
use crate::cgroup::freezer::{AsFound, Freezer};
use crate::cgroup::look::OWN_SET;
use crate::clock::Clock;
use crate::error::ResultExt;
use crate::events::Bounded;
use crate::fault;
use crate::images::{Committed, Outlet, Partial};
use crate::memory::{self, Ahead, PageCount, PagesDump};
use crate::options::After;
use crate::plugins::{self, Hook, Plugins};
use crate::restore::tree::Tree;
use crate::task::lsm;
use crate::{Error, Event, Events, Kind, Object, OnObject, Options, Result, Stage, namespaces, together};
use crust_image::ImageKind;
use crust_image::proto::{CoreEntry, InventoryEntry, Lsmtype, PstreeEntry, TaskKobjIdsEntry};
use crust_kernel::elsewhere;
use crust_kernel::ids::PAGE_SIZE;
use crust_kernel::{Deadline, NsTid};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{self, TryRecvError, TrySendError};
use std::time::{Duration, Instant};

mod ask;
mod estimate;
mod freeze;
mod glance;
mod look;
mod waits;

pub(crate) use ask::shared_memory;
use freeze::{FrozenTree, Seen};
pub(crate) use freeze::{find_root, stat_of};
use look::Looked;
pub(crate) use look::{Collected, blockers_outside, inner_id, kernel_mappings};

/// What a dump did; becomes `stats-dump` and the lines people read.
#[derive(Clone, Debug, Default)]
pub struct DumpReport {
    /// Root task, in our pid namespace.
    pub pid: i32,
    /// Processes and threads saved.
    pub tasks: usize,
    /// Threads saved, leaders included.
    pub threads: usize,
    /// How long the freeze itself took.
    pub freezing: Duration,
    /// How long the tree did not run.
    pub frozen: Duration,
    /// Time spent on memory.
    pub memdump: Duration,
    /// Time spent writing memory out.
    pub memwrite: Duration,
    /// Pages looked at.
    pub pages_scanned: u64,
    /// Pages of private memory written to `pages-*.img`.
    pub pages_written: u64,
    /// Pages found in the parent images.
    pub pages_skipped_parent: u64,
    /// Pages of shared segments looked at.
    pub shared_pages_scanned: u64,
    /// Pages of shared segments written to `pages-*.img`.
    pub shared_pages_written: u64,
    /// Bytes of all images together.
    pub image_bytes: u64,
    /// Named steps with their wall time, in order.
    pub phases: Vec<(&'static str, Duration)>,
}

/// Room in our own table: a few for each of the processes that are looked at together, and a batch of copies. How many there
/// are in the tree does not matter.
const DESCRIPTORS: i32 = 1024;

/// Checkpoints the tree below `opts.pid` into `opts.images_dir`.
///
/// # Errors
/// Any error leaves the tree running as before and no image directory that could be taken for a good one.
pub fn dump(opts: &Options, events: &mut dyn Events) -> Result<DumpReport> {
    let mut bounded = Bounded::new(events, opts.timeout.map(Deadline::after));
    let started = Instant::now();
    let done = loop {
        match dump_within(opts, &mut bounded) {
            Err(e)
                if e.stage() == Some(Stage::Look)
                    && e.kind() == Kind::TargetChanged
                    && may_begin_again(opts, started) =>
            {
                log::info!("{}; once more", e.headline());
                std::thread::sleep(Duration::from_millis(10));
            }
            done => break done,
        }
    };
    match done {
        Err(e) if e.kind() == Kind::Cancelled && bounded.is_late() => {
            let limit = opts.timeout.unwrap_or_default();
            Err(Error::new(Kind::Timeout, format!("the dump was not complete within {limit:?}"))
                .help("give it more time with --timeout, or none of that option")
                .at(Stage::Write)
                .state(RUNS_ON))
        }
        done => done,
    }
}

/// A tree that changed under our hands runs on as it was: it is another one a moment later. What went to somebody else's
/// pipe cannot be called back.
fn may_begin_again(opts: &Options, started: Instant) -> bool {
    const CHANGING: Duration = Duration::from_secs(5);
    opts.images_tar.is_none() && !opts.stream && started.elapsed() < opts.timeout.unwrap_or(CHANGING).min(CHANGING)
}

fn dump_within(opts: &Options, events: &mut Bounded<'_>) -> Result<DumpReport> {
    let mut clock = Clock::start();
    let (deadline, pulse) = (events.within(Options::DEFAULT_TIMEOUT), events.pulse());
    refuse_options(opts)?;
    if let Err(e) = crust_kernel::fd::make_room(DESCRIPTORS) {
        log::debug!("no room for {DESCRIPTORS} descriptors beforehand: {e}");
    }
    let root = find_root(opts.pid)?;
    fault::point(Stage::Find)?;
    let dir = opts.images_dir.as_ref().ok_or_else(|| Error::new(Kind::BadRequest, "no image directory was given"))?;
    let out = match &opts.images_tar {
        Some(tar) => Partial::to_tar(tar),
        None if opts.stream => {
            events.notify(Event::PreStream, Some(opts.pid), None)?;
            Partial::to_streamer(dir.as_fd())
        }
        None => Partial::create(dir.as_fd()),
    };
    let out = out.at(Stage::Write)?.watched(pulse.clone());
    estimate::check(root, &out).at(Stage::Write)?;
    let until = plugins::Until { deadline: events.within(LOOK_LIMIT), watch: events.watch() };
    let plugins = Plugins::connect(&opts.plugins, plugins::Stage::Dump, until)
        .and_then(|all| all.tell(Hook::PauseDevices, opts.pid).map(|()| Arc::new(all)))
        .map_err(|e| e.at(Stage::Find).state(UNTOUCHED))?;
    events.notify(Event::PreDump, Some(opts.pid), None)?;
    clock.done("find");

    let freezing = Instant::now();
    let mut freezer = opts.freeze_cgroup.as_deref().map(Freezer::open).transpose().at(Stage::Freeze)?;
    let mut tree = FrozenTree::freeze(root, freezer.as_mut(), (deadline, &pulse))
        .map_err(|e| e.at(Stage::Freeze).state(UNTOUCHED))?;
    tree.set_deadline(events.within(LOOK_LIMIT));
    let mut report = DumpReport { pid: opts.pid, freezing: freezing.elapsed(), ..Default::default() };
    clock.done("freeze");

    let found = freezer.as_ref().map(Freezer::as_found);
    let saved = save(&mut tree, opts, (out, &plugins), found, events, &mut report, &mut clock);
    let committed = match saved {
        Ok(committed) => committed,
        // Whatever went wrong: the tree first, then the words.
        Err(e) => {
            let e = roll_back(tree, opts, events, e);
            plugins.end(false);
            return Err(e);
        }
    };
    // What ends it now is not to be cut short.
    tree.set_deadline(Deadline::after(LOOK_LIMIT));
    // Neither the tree nor its freeze waits for this; a dying tree, whose memory takes time to go, is waited for behind it.
    let hash = || {
        if let Err(e) = committed.hash_rest(!opts.no_sync) {
            log::warn!("the images are good, but large ones are not hashed, so that verify cannot check them: {e}");
        }
    };
    if opts.after == After::Kill && !opts.leave_stopped {
        tree.kill().at(Stage::Kill)?;
        hash();
        clock.done("hash");
        tree.await_death().at(Stage::Kill)?;
        report.frozen = freezing.elapsed();
        clock.done("kill");
    } else {
        let stays = opts.leave_stopped || opts.after == After::Stop;
        if stays { tree.stop() } else { tree.resume() }.at(Stage::Kill)?;
        report.frozen = freezing.elapsed();
        clock.done("resume");
        hash();
        clock.done("hash");
    }
    plugins.end(true);
    report.phases = clock.phases;
    log::info!("dumped {} tasks, {} threads in {:?}", report.tasks, report.threads, clock.started.elapsed());
    Ok(report)
}

/// `event` for a tree whose network is its own: who cuts it off at network-lock cuts off nobody else.
fn tell_of_network(event: Event, pid: i32, events: &mut dyn Events) -> Result<()> {
    if namespaces::has_own_net(pid) {
        let _reply = events.notify(event, Some(pid), None)?;
    }
    Ok(())
}

/// Lets the tree run after `e`, and says how that went.
fn roll_back(tree: FrozenTree, opts: &Options, events: &mut dyn Events, e: Error) -> Error {
    let resumed = tree.resume();
    if let Err(r) = &resumed {
        log::error!("after a failed dump: {r}");
    }
    // Whoever cut the network at network-lock has to join it again.
    if let Err(also) = tell_of_network(Event::NetworkUnlock, opts.pid, events) {
        log::error!("network-unlock failed: {also}");
    }
    e.state(if resumed.is_ok() { RUNS_ON } else { "not every task could be put back, see the log" })
}

/// No wait of the look is longer, however large the tree.
const LOOK_LIMIT: Duration = Duration::from_secs(600);
const UNTOUCHED: &str = "nothing written, nothing stopped";
const RUNS_ON: &str = "no images left behind, all tasks running again";

fn refuse_options(opts: &Options) -> Result<()> {
    for odd in opts.odd_externals() {
        log::warn!("--external {odd}: names nothing, it should be as unix[INODE] or mnt[PATH]:KEY (see --help)");
    }
    let asked = [
        (opts.page_server.is_some(), "--page-server"),
        (opts.lazy_pages, "--lazy-pages"),
        (opts.prev_images_dir.is_some(), "--prev-images-dir"),
        (opts.track_mem, "--track-mem"),
    ];
    Options::refuse(&asked, "leave the option out: the dump is then complete by itself")
}

/// Look, write, commit: everything between the freeze and the end of the tree's wait.
fn save(
    tree: &mut FrozenTree,
    opts: &Options,
    (out, plugins): (Partial, &Arc<Plugins>),
    freezer: Option<&AsFound>,
    events: &mut dyn Events,
    report: &mut DumpReport,
    clock: &mut Clock,
) -> Result<Committed> {
    fault::point(Stage::Freeze)?;
    tell_of_network(Event::NetworkLock, opts.pid, events)?;
    let _more_external = events.notify(Event::QueryExtFiles, Some(opts.pid), None)?;
    let mut cx = Collected::new(opts);
    cx.files.use_plugins(plugins.clone());
    for process in tree.processes.iter().filter(|p| p.seized.is_some()) {
        plugins.tell(Hook::CheckpointDevices, process.seen.pid.as_raw()).at(Stage::Look)?;
    }
    let mut memory = MemoryWriter::new(&out);
    let mut looked = look_at_all(tree, &mut cx, &mut memory, opts, events)?;
    show_segments(&mut looked, &mut cx).at(Stage::Look)?;
    fault::point(Stage::Look)?;
    clock.done("look");

    cx.shared.write_sysv(&out).at(Stage::Write)?;
    memory.write_shared(&cx.shared).at(Stage::Write)?;
    clock.done("shared memory");
    write_records(&looked, &cx, &out).map_err(|e| e.at(Stage::Write))?;
    if let Some(groups) = cx.groups.record(freezer).at(Stage::Look)? {
        out.put_one(ImageKind::Cgroup, 0, &groups).at(Stage::Write)?;
    }
    write_clocks(tree, &out).map_err(|e| e.at(Stage::Write))?;
    let (changed, memfds) = cx.files.finish(&out).map_err(|e| e.at(Stage::Write))?;
    memory.shared += memfds;
    memory.report(report);
    fault::point(Stage::Write)?;
    write_inventory(&looked, &out).map_err(|e| e.at(Stage::Write))?;
    if opts.cpu_cap & crate::cpu::IMAGE != 0 {
        out.put_one(ImageKind::Cpuinfo, 0, &crate::cpu::record()).at(Stage::Write)?;
    }
    // The last moment to turn back: from the commit on the checkpoint exists.
    cancelled(events)?;
    fault::point(Stage::Commit)?;
    let committed = out.commit(!opts.no_sync).map_err(|e| e.at(Stage::Commit))?;
    report.image_bytes = committed.image_bytes();
    report.tasks = looked.len();
    report.threads = looked.iter().filter(|l| l.mm.is_some()).map(|l| l.cores.len()).sum();
    clock.done("commit");
    if let Err(e) = events.notify(Event::PostDump, Some(opts.pid), None) {
        if let Err(also) = committed.discard() {
            log::error!("after a refused checkpoint: {also}");
        }
        return Err(e);
    }
    changed.keep();
    if opts.after != After::Kill
        && let Err(e) = tell_of_network(Event::NetworkUnlock, opts.pid, events)
    {
        log::error!("network-unlock failed: {e}");
    }
    Ok(committed)
}

/// What to do where no thread is to be had.
const THREADS: &str = "raise pids.max of the cgroup crust runs in, or RLIMIT_NPROC of its user";

/// Bytes of memory from which on room for them is made before they are looked at.
const WORTH_WORK_AHEAD: u64 = 12 << 20;

/// Looks at every process and writes its memory. This thread, which alone may trace, asks them; another one goes on with what
/// they said and looks at them from outside. While that one has enough to do, this one writes the memory of those it is
/// through with.
fn look_at_all(
    tree: &mut FrozenTree,
    cx: &mut Collected<'_>,
    memory: &mut MemoryWriter<'_>,
    opts: &Options,
    events: &mut dyn Events,
) -> Result<Vec<Looked>> {
    let (seen, seized): (Vec<&Seen>, Vec<_>) = tree.processes.iter_mut().map(|p| (&p.seen, p.seized.as_mut())).unzip();
    let mut looked: Vec<Looked> = Vec::with_capacity(seen.len());
    let (give, given) = mpsc::sync_channel(2 * ask::TOGETHER);
    let (done, finished) = mpsc::channel();
    let groups = cx.groups.are_saved();
    std::thread::scope(|scope| {
        let (seen, cx) = (&seen[..], &mut *cx);
        let looker = elsewhere::spawn(scope, "look", move || look::look_at_each(seen, given, cx, &done));
        let looker = looker.during("starting a thread").map_err(|e| e.help(THREADS)).at(Stage::Look)?;
        let mut taken = 0;
        let mut take = |memory: &mut MemoryWriter<'_>, taken: &mut usize, l: Looked, events: &mut dyn Events| {
            let i = *taken;
            *taken += 1;
            if l.clean {
                write_process(memory, seen[i], &l).at(Stage::Write)?;
            }
            seen[i].proc.rest();
            looked.push(l);
            events.progress("processes", i as u64 + 1, seen.len() as u64);
            cancelled(events)
        };
        let waves = ask::Waves::new(seen, seized, groups);
        let asked: Result<()> = (|| {
            for wave in waves {
                cancelled(events)?;
                for mut answer in wave {
                    while let Err(e) = give.try_send(answer) {
                        let TrySendError::Full(back) = e else { return Ok(()) };
                        answer = back;
                        let Ok(l) = finished.recv() else { return Ok(()) };
                        take(memory, &mut taken, l, events)?;
                    }
                }
            }
            drop(give);
            loop {
                let next = match finished.try_recv() {
                    Err(TryRecvError::Empty) if seen.get(taken).is_some_and(|p| memory.work_ahead(p)) => continue,
                    Err(TryRecvError::Empty) => finished.recv().ok(),
                    other => other.ok(),
                };
                let Some(l) = next else { return Ok(()) };
                take(memory, &mut taken, l, events)?;
            }
        })();
        drop(finished);
        // If the looker gave up, that is why the other half ended early.
        looker
            .join()
            .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the looking thread panicked")))
            .at(Stage::Look)?;
        asked
    })?;
    let tree: Vec<PstreeEntry> = looked.iter().map(|l| l.pstree.clone()).collect();
    cx.blockers.extend(foreign_session(&tree, opts));
    let records = looked.iter().map(|l| (&l.pstree, l.cores.first().and_then(|(_, core)| core.tc.as_deref())));
    // Who was refused is missing among them; that has been said.
    if looked.len() == seen.len() {
        cx.blockers.extend(Tree::check_shape(records).err());
    }
    cx.blockers.extend(shared_objects(&looked));
    cx.blockers.extend(cx.files.take_blockers());
    cx.blockers.extend(cx.shared.check_sysv());
    match Error::all(std::mem::take(&mut cx.blockers)) {
        Some(e) => Err(e.at(Stage::Look)),
        None => Ok(looked),
    }
}

fn cancelled(events: &mut dyn Events) -> Result<()> {
    match events.cancelled() {
        true => Err(Error::new(Kind::Cancelled, "the request was cancelled")),
        false => Ok(()),
    }
}

/// The root's session or group, if its leader is outside of the tree and the caller did not say --shell-job.
pub(crate) fn foreign_session(tree: &[PstreeEntry], opts: &Options) -> Option<Error> {
    let root = tree.first()?;
    let inside = |id: u32| tree.iter().any(|t| t.pid == id);
    if opts.shell_job || (root.sid == root.pid && inside(root.pgid)) {
        return None;
    }
    let what =
        format!("belongs to session {} and process group {}, whose leader is outside of the tree", root.sid, root.pgid);
    let help = "dump with --shell-job (and restore with it from a terminal), or start the program with setsid";
    Some(Error::new(Kind::BadRequest, what).help(help).on(Object::Task(root.pid as i32)))
}

/// Processes that share what restore cannot share between processes.
fn shared_objects(looked: &[Looked]) -> Vec<Error> {
    let mut errors = Vec::new();
    let mut seen: [HashMap<u32, u32>; 2] = Default::default();
    let mut first: [HashMap<u32, u32>; 2] = Default::default();
    let live: HashMap<u32, &Looked> = looked.iter().filter(|l| l.ids.is_some()).map(|l| (l.pstree.pid, l)).collect();
    for l in looked {
        let Some(ids) = &l.ids else { continue };
        let on = |e: Error| e.on(Object::Task(l.pstree.pid as i32));
        for (map, (id, what)) in seen.iter_mut().zip([(ids.vm_id, "memory"), (ids.sighand_id, "signal handlers")]) {
            if let Some(other) = map.insert(id, l.pstree.pid) {
                let text = format!("shares its {what} with process {other}");
                let help = "processes that share memory (vfork in progress, CLONE_VM) are not supported";
                errors.push(on(Error::unsupported(text, help)));
            }
        }
        // These a child has from its parent, if it was born into the same session.
        let parent = live.get(&l.pstree.ppid);
        let from = parent.filter(|p| p.pstree.sid == l.pstree.sid || l.pstree.sid == l.pstree.pid);
        let theirs = from.and_then(|p| p.ids.as_ref());
        let kinds = [
            (ids.files_id, theirs.map(|t| t.files_id), "descriptor table"),
            (ids.fs_id, theirs.map(|t| t.fs_id), "directories and umask"),
        ];
        for (map, (id, parents, what)) in first.iter_mut().zip(kinds) {
            let other = *map.entry(id).or_insert(l.pstree.pid);
            if other != l.pstree.pid && parents != Some(id) {
                let text = format!("shares its {what} with process {other}, which is not its parent");
                let help = "only what parent and child share (CLONE_FILES, CLONE_FS) can be restored as shared";
                errors.push(on(Error::unsupported(text, help)));
            }
        }
    }
    errors
}

/// Writes the content of memory, process by process.
struct MemoryWriter<'a> {
    out: &'a Partial,
    pages_id: u32,
    /// The next pages image, if room is being made in it.
    ahead: Option<(Outlet, Ahead)>,
    took: Duration,
    private: PageCount,
    shared: PageCount,
}

impl<'a> MemoryWriter<'a> {
    fn new(out: &'a Partial) -> Self {
        Self {
            out,
            pages_id: 0,
            ahead: None,
            took: Duration::ZERO,
            private: PageCount::default(),
            shared: PageCount::default(),
        }
    }

    /// Makes a little of the room ready that the memory of `p` will need, the process that is written next; false if there
    /// is nothing to do.
    fn work_ahead(&mut self, p: &Seen) -> bool {
        let about = p.stat.resident_pages * PAGE_SIZE;
        // A stream has no room to make.
        if about < WORTH_WORK_AHEAD || self.out.is_stream() {
            return false;
        }
        if self.ahead.is_none() {
            let name = ImageKind::Pages.file_name(u64::from(self.pages_id + 1));
            let Ok(mut file) = self.out.outlet(&name) else { return false };
            let ahead = Ahead::begin(&mut file, about).unwrap_or_default();
            self.ahead = Some((file, ahead));
        }
        self.ahead.as_mut().is_some_and(|(file, ahead)| ahead.step(file))
    }

    fn put(
        &mut self,
        kind: ImageKind,
        id: u64,
        dump: impl FnOnce(&mut Outlet, Ahead) -> Result<PagesDump>,
    ) -> Result<()> {
        self.pages_id += 1;
        let name = ImageKind::Pages.file_name(u64::from(self.pages_id));
        let (mut file, ahead) = match self.ahead.take() {
            Some(begun) => begun,
            None => (self.out.outlet(&name)?, Ahead::default()),
        };
        let pages = dump(&mut file, ahead)?;
        let is_file = file.file().is_some();
        self.out.close(file)?;
        if let Some(hash) = pages.hash.filter(|_| is_file) {
            self.out.note_written(&name, pages.written * PAGE_SIZE, hash);
        }
        let count = if kind == ImageKind::ShmemPagemap { &mut self.shared } else { &mut self.private };
        count.add(&pages);
        self.out.put(&kind.file_name(id), &pages.pagemap(kind, self.pages_id)?)
    }

    /// The private memory of one process.
    fn write(&mut self, p: &Seen, l: &Looked) -> Result<()> {
        let Some(mm) = &l.mm else { return Ok(()) };
        let started = Instant::now();
        let ns_pid = l.cores[0].0;
        self.put(ImageKind::Pagemap, ns_pid.as_raw() as u64, |file, ahead| {
            memory::dump_pages_into(&p.proc, mm, file, ahead).on_task(p.pid.as_raw())
        })?;
        self.took += started.elapsed();
        Ok(())
    }

    /// What several processes share.
    fn write_shared(&mut self, shared: &memory::SharedMemory) -> Result<()> {
        let started = Instant::now();
        for id in shared.ids() {
            self.put(ImageKind::ShmemPagemap, id, |file, _| shared.dump(id, file))?;
        }
        self.took += started.elapsed();
        Ok(())
    }

    fn report(&self, report: &mut DumpReport) {
        report.memdump = self.took;
        report.memwrite = self.took;
        report.pages_scanned = self.private.scanned;
        report.pages_written = self.private.written;
        report.shared_pages_scanned = self.shared.scanned;
        report.shared_pages_written = self.shared.written;
    }
}

/// Anonymous shared memory that descriptors lead to as well becomes the memory of a file everywhere. Of the other it is said how
/// long it is, if nobody maps it to its end.
fn show_segments(looked: &mut [Looked], cx: &mut Collected<'_>) -> Result<()> {
    for segment in cx.files.segments_with_files() {
        let id = cx.files.segment_file(segment)?;
        for mm in looked.iter_mut().filter_map(|l| l.mm.as_mut()) {
            mm.show_file(segment, id);
        }
        cx.shared.forget(segment);
    }
    for (segment, bytes) in cx.shared.longer_than_mapped() {
        for mm in looked.iter_mut().filter_map(|l| l.mm.as_mut()) {
            mm.show_length(segment, bytes);
        }
    }
    Ok(())
}

fn write_records(looked: &[Looked], cx: &Collected<'_>, out: &Partial) -> Result<()> {
    out.put_all(ImageKind::Pstree, 0, looked.iter().map(|l| &l.pstree))?;
    for l in looked {
        if let Some((mm, (ns_pid, _))) = l.mm.as_ref().zip(l.cores.first()) {
            out.put_one(ImageKind::Mm, ns_pid.as_raw() as u64, &mm.record())?;
        }
    }
    out.put_one(ImageKind::Seccomp, 0, cx.seccomp.record())
}

/// The memory and the records of one process and its threads. Many threads have many files: others write them while this
/// thread writes memory.
fn write_process(memory: &mut MemoryWriter<'_>, seen: &Seen, l: &Looked) -> Result<()> {
    let out = memory.out;
    let write = |(tid, core): &(NsTid, Box<CoreEntry>)| out.put_one(ImageKind::Core, tid.as_raw() as u64, &**core);
    if out.is_stream() {
        memory.write(seen, l)?;
        l.cores.iter().try_for_each(write)?;
    } else {
        let (cores, written) = together::with_help(l.cores.len(), |i| write(&l.cores[i]), || memory.write(seen, l));
        written?;
        cores.into_iter().collect::<Result<()>>()?;
    }
    l.ids.as_ref().map_or(Ok(()), |ids| out.put_one(ImageKind::Ids, u64::from(l.pstree.pid), ids))
}

/// The clocks of the tree's time namespace.
fn write_clocks(tree: &FrozenTree, out: &Partial) -> Result<()> {
    let Some(root) = tree.processes.first() else { return Ok(()) };
    out.put_one(ImageKind::Timens, 0, &namespaces::time::look(&root.seen.proc))
}

fn write_inventory(looked: &[Looked], out: &Partial) -> Result<()> {
    let run_id = std::fs::read_to_string("/proc/sys/kernel/random/uuid").during("making a run id")?;
    let inventory = InventoryEntry {
        img_version: 2,
        fdinfo_per_id: Some(true),
        root_ids: Some(our_ids(looked)),
        ns_per_id: Some(true),
        root_cg_set: Some(OWN_SET),
        lsmtype: Some(lsm::Machine::here().map_or(Lsmtype::NoLsm, lsm::Machine::kind).into()),
        network_lock_method: Some(0),
        plugins_entry: Some(Default::default()),
        dump_criu_run_id: Some(run_id.trim().to_owned()),
        ..Default::default()
    };
    out.put_one(ImageKind::Inventory, 0, &inventory)
}

/// Ids of the dumper itself, as CRIU records them: its own objects are nobody's of the tree, its namespaces are theirs.
fn our_ids(looked: &[Looked]) -> TaskKobjIdsEntry {
    let all = || looked.iter().filter_map(|l| l.ids.as_ref());
    let beyond = |id: fn(&TaskKobjIdsEntry) -> u32| all().map(id).max().unwrap_or(0) + 1;
    TaskKobjIdsEntry {
        vm_id: beyond(|i| i.vm_id),
        files_id: beyond(|i| i.files_id),
        fs_id: beyond(|i| i.fs_id),
        sighand_id: beyond(|i| i.sighand_id),
        ..all().next().copied().unwrap_or_default()
    }
}

/// Writes the memory of the tree while it runs on, for a later dump with `prev_images_dir`.
///
/// # Errors
/// As [`dump`].
pub fn pre_dump(opts: &Options, events: &mut dyn Events) -> Result<DumpReport> {
    let _ = (opts, events);
    Err(Error::unsupported("pre-dump is not supported yet", "dump at once, without --prev-images-dir"))
}

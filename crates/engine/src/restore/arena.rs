//! Memory shared by the coordinator and every task it builds: how far each has come, and what went wrong where.
#![allow(unsafe_code, reason = "one shared mapping seen as structures of atomics")]
use crate::error::{Error, Kind, ResultExt};
use crate::{Object, Result, Stage};
use crust_kernel::HostTid;
use crust_kernel::procfs::{ProcDir, Stat};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::thread::futex;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Words the whole tree meets at.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Control {
    /// Threads that stand at the last barrier. The coordinator sleeps here.
    pub(crate) arrived: AtomicU32,
    /// Becomes 1 once every thread is seized: those with something left to do without a net go on then.
    pub(crate) go: AtomicU32,
    /// Threads that have done that. The coordinator sleeps here.
    pub(crate) parted: AtomicU32,
    /// Stays 0: where threads wait for the coordinator to take them away.
    pub(crate) never: AtomicU32,
    /// Non-zero once any task failed.
    pub(crate) failed: AtomicU32,
    /// Always 1: the source of the plan's "failed" note.
    pub(crate) one: AtomicU32,
    /// Threads of tasks under seccomp that stand before their filters.
    pub(crate) unfiltered: AtomicU32,
    /// 1 once they are traced with filters suspended and may go on.
    pub(crate) filter: AtomicU32,
    /// 1 once a root that is no child of the coordinator hangs on it otherwise; the root waits here.
    held: AtomicU32,
    /// Pages the tasks filled.
    pub(crate) pages: AtomicU64,
}

/// How far a task's ordinary part has come. Others wait for these steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// Its session and, if it leads one, its process group exist.
    Grouped = 1,
    /// It is in its process group.
    Joined = 2,
    /// Its memory stands, as far as its own code can make it. The executable is the only file it holds open for itself.
    Staged = 3,
    /// Its descriptors are in place; none of them watches files yet.
    Tables = 4,
    /// It has all that it needs of the filesystem.
    Files = 5,
    /// It jumps into the interpreter next.
    Leaving = 6,
}

const TEXT: usize = 944;

/// One task's corner.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct TaskSlot {
    step: AtomicU32,
    failed: AtomicU32,
    errno: AtomicI32,
    kind: AtomicU32,
    /// Header of a failed plan: status, record, value; copied here by the plan's error path.
    plan_failure: [AtomicU64; 3],
    /// Start and length of the bootstrap region, for the coordinator to remove.
    boot: [AtomicU64; 2],
    text_len: AtomicU32,
    /// 1 once it was forked: from then on it is missed if it is not there.
    born: AtomicU32,
    /// Its own descriptor for the executable, plus one.
    exe: AtomicI32,
    /// Where those who share a descriptor table meet: this is the first of them.
    meeting: AtomicU32,
    text: [AtomicU64; TEXT / 8],
}

/// The mapping. Forked children share it; nobody unmaps it before the plan does.
#[derive(Debug)]
pub(crate) struct Arena {
    base: NonNull<Control>,
    tasks: usize,
    len: usize,
    /// The process that made the arena, and builds the tree.
    coordinator: i32,
}

/// Where the task slots start.
const SLOTS: usize = 4096;
/// Wakes all who wait. The kernel's count is signed: more than this would wake one.
const ALL: u32 = i32::MAX as u32;
/// Wait slices: long enough to cost nothing, short enough to notice a death or a cancel.
const SLICE: Duration = Duration::from_millis(20);

impl Arena {
    /// Room for `tasks` tasks.
    pub(crate) fn new(tasks: usize) -> Result<Self> {
        let len = (SLOTS + tasks * size_of::<TaskSlot>()).next_multiple_of(4096);
        // SAFETY: new memory at an address of the kernel's choice.
        let at = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)
        }
        .during("mapping the shared arena")?;
        let base = NonNull::new(at.cast()).ok_or_else(|| Error::new(Kind::Internal, "mmap gave address zero"))?;
        let coordinator = rustix::process::getpid().as_raw_nonzero().get();
        let arena = Self { base, tasks, len, coordinator };
        arena.control().one.store(1, Ordering::Relaxed);
        Ok(arena)
    }

    pub(crate) fn base(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn control(&self) -> &Control {
        // SAFETY: the mapping is at least a page, zeroed, never unmapped while `self` lives; all fields are atomics.
        unsafe { self.base.as_ref() }
    }

    /// The coordinator's process id.
    pub(crate) fn coordinator(&self) -> i32 {
        self.coordinator
    }

    /// False once the coordinator has ended: for those whom no signal tells.
    pub(crate) fn coordinator_lives(&self) -> bool {
        let Some(id) = HostTid::new(self.coordinator) else { return true };
        let there = rustix::process::Pid::from_raw(self.coordinator).map(rustix::process::test_kill_process);
        if there == Some(Err(rustix::io::Errno::SRCH)) {
            return false;
        }
        let stat = ProcDir::open(id).and_then(|p| p.read("stat")).ok().and_then(|s| Stat::parse(&s));
        stat.is_none_or(|s| !matches!(s.state, b'Z' | b'X'))
    }

    /// Lets a root go on that waits in [`Arena::wait_held`].
    pub(crate) fn hold_root(&self) {
        let word = &self.control().held;
        word.store(1, Ordering::Release);
        let _woken = futex::wake(word, futex::Flags::empty(), u32::MAX);
    }

    /// Waits until the coordinator has made the root's life hang on its own.
    pub(crate) fn wait_held(&self, deadline: Instant) -> Result<()> {
        let word = &self.control().held;
        while word.load(Ordering::Acquire) == 0 {
            if !self.coordinator_lives() || Instant::now() >= deadline {
                return Err(Error::new(Kind::Cancelled, "the process that builds the tree is gone"));
            }
            sleep_on(word, 0);
        }
        Ok(())
    }

    fn slot(&self, task: usize) -> &TaskSlot {
        assert!(task < self.tasks, "task index out of the arena");
        // SAFETY: index checked above; slots are zeroed memory of atomics, correctly aligned behind the first page.
        unsafe { &*self.base.as_ptr().byte_add(SLOTS + task * size_of::<TaskSlot>()).cast::<TaskSlot>() }
    }

    /// Offset from the arena's base of the place where a failing plan of this task puts its header.
    pub(crate) fn plan_failure_offset(&self, task: usize) -> u64 {
        (SLOTS + task * size_of::<TaskSlot>() + std::mem::offset_of!(TaskSlot, plan_failure)) as u64
    }

    /// Says that this task has come to `step`, and wakes whoever waits for it.
    pub(crate) fn reached(&self, task: usize, step: Step) {
        let word = &self.slot(task).step;
        word.store(step as u32, Ordering::Release);
        let _woken = futex::wake(word, futex::Flags::empty(), ALL);
    }

    /// Waits until another task has come to `step`.
    pub(crate) fn wait_for(&self, task: usize, step: Step, deadline: Instant) -> Result<()> {
        self.wait(task, step, deadline, || self.coordinator_lives())
    }

    /// As [`Arena::wait_for`], and opens no file meanwhile. The end of the coordinator is not seen here.
    pub(crate) fn wait_quietly(&self, task: usize, step: Step, deadline: Instant) -> Result<()> {
        self.wait(task, step, deadline, || true)
    }

    fn wait(&self, task: usize, step: Step, deadline: Instant, goes_on: impl Fn() -> bool) -> Result<()> {
        let word = &self.slot(task).step;
        loop {
            let now = word.load(Ordering::Acquire);
            if now >= step as u32 {
                return Ok(());
            }
            if self.control().failed.load(Ordering::Acquire) != 0 {
                return Err(Error::new(Kind::Cancelled, "another task of the tree failed"));
            }
            if Instant::now() >= deadline {
                return Err(Error::new(Kind::Timeout, format!("another task did not reach {step:?} in time")));
            }
            sleep_on(word, now);
            if word.load(Ordering::Relaxed) == now && !goes_on() {
                return Err(Error::new(Kind::Cancelled, "the process that builds the tree is gone"));
            }
        }
    }

    /// Notes a task's failure for the coordinator and wakes it.
    pub(crate) fn fail(&self, task: usize, error: &Error) {
        let slot = self.slot(task);
        if slot.failed.swap(1, Ordering::AcqRel) == 0 {
            let text = error.to_string();
            let bytes = text.as_bytes();
            let len = bytes.len().min(TEXT);
            for (word, chunk) in slot.text.iter().zip(bytes[..len].chunks(8)) {
                let mut eight = [0; 8];
                eight[..chunk.len()].copy_from_slice(chunk);
                word.store(u64::from_le_bytes(eight), Ordering::Relaxed);
            }
            slot.text_len.store(len as u32, Ordering::Relaxed);
            slot.kind.store(kind_code(error.kind()), Ordering::Relaxed);
            slot.errno.store(error.errno().map_or(0, |e| e.raw_os_error()), Ordering::Relaxed);
            slot.failed.store(2, Ordering::Release);
        }
        self.raise_failed();
    }

    /// Marks the whole restore as failed and wakes every waiter.
    pub(crate) fn raise_failed(&self) {
        let control = self.control();
        control.failed.store(1, Ordering::Release);
        for word in [&control.arrived, &control.parted] {
            let _woken = futex::wake(word, futex::Flags::empty(), ALL);
        }
        for task in 0..self.tasks {
            let step = &self.slot(task).step;
            if step.load(Ordering::Relaxed) < Step::Leaving as u32 {
                let _woken = futex::wake(step, futex::Flags::empty(), ALL);
            }
        }
    }

    /// The first task that failed in its ordinary part, with its error.
    pub(crate) fn rust_failure(&self) -> Option<(usize, Error)> {
        let mut fallback = None;
        for task in 0..self.tasks {
            let slot = self.slot(task);
            if slot.failed.load(Ordering::Acquire) != 2 {
                continue;
            }
            let len = (slot.text_len.load(Ordering::Relaxed) as usize).min(TEXT);
            let bytes: Vec<u8> =
                slot.text.iter().flat_map(|w| w.load(Ordering::Relaxed).to_le_bytes()).take(len).collect();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let kind = kind_from(slot.kind.load(Ordering::Relaxed));
            let error = parse_report(kind, &text);
            if kind != Kind::Cancelled {
                return Some((task, error));
            }
            fallback.get_or_insert((task, error));
        }
        fallback
    }

    /// The first task whose plan failed: (task, address of the record, its result).
    pub(crate) fn plan_failure(&self) -> Option<(usize, u64, i64)> {
        (0..self.tasks).find_map(|task| {
            let note = &self.slot(task).plan_failure;
            let status = note[0].load(Ordering::Acquire) as u32;
            let value = note[2].load(Ordering::Relaxed) as i64;
            (status == crust_inject::plan::STATUS_FAILED).then(|| (task, note[1].load(Ordering::Relaxed), value))
        })
    }

    /// A task was forked.
    pub(crate) fn born(&self, task: usize) {
        self.slot(task).born.store(1, Ordering::Release);
    }

    /// Offset from the arena's base of the word by which that is said.
    pub(crate) fn born_offset(&self, task: usize) -> u64 {
        (SLOTS + task * size_of::<TaskSlot>() + std::mem::offset_of!(TaskSlot, born)) as u64
    }

    /// True if [`Arena::born`] was said of it.
    pub(crate) fn is_born(&self, task: usize) -> bool {
        self.slot(task).born.load(Ordering::Acquire) != 0
    }

    /// A task tells the number by which it holds the executable.
    pub(crate) fn set_exe(&self, task: usize, exe: Option<i32>) {
        self.slot(task).exe.store(exe.map_or(0, |fd| fd + 1), Ordering::Release);
    }

    /// What [`Arena::set_exe`] was told.
    pub(crate) fn exe(&self, task: usize) -> Option<i32> {
        let exe = self.slot(task).exe.load(Ordering::Acquire);
        (exe > 0).then(|| exe - 1)
    }

    /// Offset from the arena's base of the word at which those meet who share this task's descriptor table.
    pub(crate) fn meeting_offset(&self, task: usize) -> u64 {
        (SLOTS + task * size_of::<TaskSlot>() + std::mem::offset_of!(TaskSlot, meeting)) as u64
    }

    /// A task tells where its bootstrap region lies.
    pub(crate) fn set_boot(&self, task: usize, start: u64, len: u64) {
        let [s, l] = &self.slot(task).boot;
        s.store(start, Ordering::Relaxed);
        l.store(len, Ordering::Release);
    }

    /// Start and length of a task's bootstrap region.
    pub(crate) fn boot(&self, task: usize) -> (u64, u64) {
        let [s, l] = &self.slot(task).boot;
        let len = l.load(Ordering::Acquire);
        (s.load(Ordering::Relaxed), len)
    }

    /// How far a task has come, for messages.
    pub(crate) fn step_of(&self, task: usize) -> u32 {
        self.slot(task).step.load(Ordering::Acquire)
    }
}

/// Lets everybody pass who waits for `word` to be 1.
pub(crate) fn open(word: &AtomicU32) {
    word.store(1, Ordering::Release);
    let _woken = futex::wake(word, futex::Flags::empty(), ALL);
}

/// Sleeps until the word changes from `seen`, or a slice has passed.
pub(crate) fn sleep_on(word: &AtomicU32, seen: u32) {
    let slice = rustix::time::Timespec { tv_sec: 0, tv_nsec: SLICE.as_nanos() as i64 };
    let _woken_or_late = futex::wait(word, futex::Flags::empty(), seen, Some(&slice));
}

const KINDS: [Kind; 13] = [
    Kind::Internal,
    Kind::NoSuchTask,
    Kind::Taken,
    Kind::BadRequest,
    Kind::Unsupported,
    Kind::BadImage,
    Kind::Kernel,
    Kind::Permission,
    Kind::Timeout,
    Kind::Cancelled,
    Kind::Script,
    Kind::TargetChanged,
    Kind::NoSpace,
];

fn kind_code(kind: Kind) -> u32 {
    KINDS.iter().position(|&k| k == kind).unwrap_or(0) as u32
}

fn kind_from(code: u32) -> Kind {
    KINDS.get(code as usize).copied().unwrap_or(Kind::Internal)
}

/// Rebuilds an error from the text another process printed; its own lines for stage and help are taken apart again.
fn parse_report(kind: Kind, text: &str) -> Error {
    let mut lines = text.lines();
    let mut error = Error::new(kind, lines.next().unwrap_or("failed without a word"));
    for line in lines {
        if let Some(help) = line.strip_prefix("  help: ") {
            error = error.help(help);
        }
    }
    error.at(Stage::Build)
}

/// Adds the task to an error that came from its corner.
pub(crate) fn of_task(error: Error, pid: i32) -> Error {
    error.on(Object::Task(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_cross_over() {
        let arena = Arena::new(3).expect("maps");
        assert!(arena.rust_failure().is_none() && arena.plan_failure().is_none());
        let error = Error::new(Kind::Taken, "pid 7 is taken").help("kill it");
        arena.fail(1, &error);
        let (task, back) = arena.rust_failure().expect("noted");
        assert_eq!((task, back.kind(), back.advice()), (1, Kind::Taken, "kill it"));
        assert!(back.headline().starts_with("pid 7 is taken"));
    }

    #[test]
    fn waits_end_at_the_deadline() {
        let arena = Arena::new(1).expect("maps");
        let soon = Instant::now() + Duration::from_millis(30);
        let error = arena.wait_for(0, Step::Grouped, soon).expect_err("nobody comes");
        assert_eq!(error.kind(), Kind::Timeout);
        arena.reached(0, Step::Joined);
        arena.wait_for(0, Step::Grouped, soon).expect("came");
    }

    #[test]
    fn every_kind_has_a_code() {
        for kind in KINDS {
            assert_eq!(kind_from(kind_code(kind)), kind);
        }
    }
}

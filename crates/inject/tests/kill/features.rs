//! What borrowing promises, without kills: each function is one promise.
use crate::shared::Word;
use crate::{Parts, Tally, Target, tracer};
use crust_inject::plan::{Expect, Program};
use crust_inject::{CrashSafety, Kind, SeizedProcess};
use crust_kernel::ptrace::{self, Options};
use crust_kernel::{Deadline, HostTid, VirtAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

type Test = (&'static str, fn(&Path));

pub(crate) fn all(dir: &Path, parts: &mut Parts) {
    let tests: [Test; 15] = [
        ("costs", costs),
        ("many threads", many_threads),
        ("nothing left behind", nothing_left),
        ("threads coming and going", churn),
        ("exec meanwhile", exec),
        ("refusals", refusals),
        ("vfork parent", vfork_parent),
        ("leader gone", leader_gone),
        ("all marks caught", all_marks_caught),
        ("seccomp", seccomp),
        ("sigsuspend, pending signals", sigsuspend),
        ("plan failures", plan_failures),
        ("rt_sigreturn exit and munmap", sigreturn),
        ("address space limit", tight),
        ("kill", kill),
    ];
    for (name, test) in tests {
        parts.run(name, || {
            test(dir);
            Some(true)
        });
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn seize(target: &Target) -> SeizedProcess {
    SeizedProcess::seize(target.pid(), soon()).unwrap()
}

/// Alive, unharmed, no call interrupted.
fn fine(mut target: Target) {
    let mut tally = Tally::default();
    assert!(target.check(&mut tally));
    let name = target.name;
    target.end(&mut tally);
    assert_eq!(tally.bad(), 0, "{name}");
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn costs(dir: &Path) {
    for name in ["counter", "sleep", "threads"] {
        let target = Target::start(name, dir).unwrap();
        let (mut seized, mut calls, mut whole) = (vec![], vec![], vec![]);
        for _ in 0..200 {
            let start = Instant::now();
            let process = seize(&target);
            process.release().unwrap();
            seized.push(start.elapsed());
            let start = Instant::now();
            tracer::round(target.pid(), &target.page);
            whole.push(start.elapsed());
            let mut process = seize(&target);
            let mut remote = process.borrow_thread(target.pid()).unwrap();
            remote.syscall(libc::SYS_getpid, [0; 6]).unwrap();
            let start = Instant::now();
            for _ in 0..10 {
                remote.syscall(libc::SYS_getpid, [0; 6]).unwrap();
            }
            calls.push(start.elapsed() / 10);
            remote.finish().unwrap();
            process.release().unwrap();
        }
        println!(
            "   {name:8} seize and release {:?}, one stepped call {:?}, whole round (3 calls, 66-record plan) {:?}",
            median(seized),
            median(calls),
            median(whole)
        );
        fine(target);
    }
}

fn many_threads(dir: &Path) {
    let target = Target::start("many", dir).unwrap();
    let (mut seized, mut ran, mut released) = (vec![], vec![], vec![]);
    for _ in 0..10 {
        let start = Instant::now();
        let mut process = seize(&target);
        seized.push(start.elapsed());
        assert!(process.threads().len() >= 500);
        let mut program = Program::new();
        let mut on = vec![];
        for thread in process.threads() {
            let plan = program.plan("thread");
            let stack = program.reserve(24);
            program.syscall(plan, "sigaltstack", libc::SYS_sigaltstack, &[0u64.into(), stack.into()]);
            on.push((thread.tid(), plan, program.syscall_slot(plan, "gettid", libc::SYS_gettid, &[], Expect::Ok)));
        }
        let pairs: Vec<_> = on.iter().map(|(tid, plan, _)| (*tid, *plan)).collect();
        let start = Instant::now();
        let outcome = process.run(program, &pairs).unwrap();
        ran.push(start.elapsed());
        for (tid, plan, slot) in on {
            assert_eq!(outcome.failure(plan), None);
            assert_eq!(outcome.result(plan, slot), Some(i64::from(tid.as_raw())));
        }
        let start = Instant::now();
        process.release().unwrap();
        released.push(start.elapsed());
    }
    println!(
        "   500 threads or CRUST_MANY: seize {:?}, plan in each {:?}, clean up and release {:?}",
        median(seized),
        median(ran),
        median(released)
    );
    fine(target);
}

/// Mappings and the vDSO's last page, as the target has them.
fn traces(pid: HostTid) -> (String, Vec<u8>) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let vdso = maps.lines().find(|l| l.ends_with("[vdso]")).unwrap();
    let (start, end) = vdso.split(' ').next().unwrap().split_once('-').unwrap();
    let address = |text| u64::from_str_radix(text, 16).unwrap();
    let mut bytes = vec![0; (address(end) - address(start)) as usize];
    let mem = crust_kernel::remote_mem::RemoteMem::open_read_only(pid).unwrap();
    mem.read(VirtAddr(address(start)), &mut bytes).unwrap();
    (maps, bytes)
}

fn same_traces(pid: HostTid, before: &(String, Vec<u8>)) {
    let (maps, vdso) = traces(pid);
    let differs = maps.lines().zip(before.0.lines()).find(|(new, old)| new != old);
    assert!(differs.is_none(), "{differs:?}");
    assert_eq!(maps.lines().count(), before.0.lines().count());
    assert!(vdso == before.1, "the vDSO is not what it was");
}

fn nothing_left(dir: &Path) {
    for name in ["counter", "sleep", "threads", "altstack"] {
        let target = Target::start(name, dir).unwrap();
        // Starting threads map stacks and arenas for a while.
        std::thread::sleep(Duration::from_millis(100));
        let before = traces(target.pid());
        for _ in 0..20 {
            tracer::round(target.pid(), &target.page);
        }
        same_traces(target.pid(), &before);
        fine(target);
    }
}

fn churn(dir: &Path) {
    let target = Target::start("churn", dir).unwrap();
    let mut most = 0;
    for _ in 0..150 {
        let process = seize(&target);
        most = most.max(process.threads().len());
        // Nothing was missed: no thread runs on. Those at their very end stay listed for a moment.
        let limit = soon();
        let listed = || std::fs::read_dir(format!("/proc/{}/task", target.pid())).unwrap().count();
        while listed() != process.threads().len() {
            assert!(!limit.expired(), "{} of {} threads", process.threads().len(), listed());
            std::thread::sleep(Duration::from_micros(100));
        }
        let before = target.progress();
        std::thread::sleep(Duration::from_micros(300));
        assert_eq!(target.progress(), before);
        process.release().unwrap();
        tracer::round(target.pid(), &target.page);
    }
    assert!(most > 3);
    fine(target);
}

fn exec(dir: &Path) {
    let target = Target::start("exec", dir).unwrap();
    for _ in 0..500 {
        let mut process = seize(&target);
        let tid = process.threads()[0].tid();
        let mut remote = process.borrow_thread(tid).unwrap();
        assert_eq!(remote.syscall(libc::SYS_getpid, [0; 6]).unwrap(), i64::from(target.pid().as_raw()));
        remote.lend(b"scratch").unwrap();
        remote.finish().unwrap();
        process.release().unwrap();
        std::thread::sleep(Duration::from_micros(u64::from(tid.as_raw() as u32 % 7) * 300));
    }
    fine(target);
}

fn refusals(dir: &Path) {
    let mut child = Command::new("true").spawn().unwrap();
    let pid = HostTid::new(i32::try_from(child.id()).unwrap()).unwrap();
    while std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().rsplit(") ").next().unwrap().as_bytes()[0]
        != b'Z'
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(*SeizedProcess::seize(pid, soon()).unwrap_err().kind(), Kind::Zombie);
    child.wait().unwrap();
    assert_eq!(*SeizedProcess::seize(pid, soon()).unwrap_err().kind(), Kind::Gone);

    let target = Target::start("threads", dir).unwrap();
    let held = target.pid();
    let (ready, done) =
        (std::sync::Arc::new(std::sync::Barrier::new(2)), std::sync::Arc::new(std::sync::Barrier::new(2)));
    let (theirs, end) = (ready.clone(), done.clone());
    let other = std::thread::spawn(move || {
        let process = SeizedProcess::seize(held, soon()).unwrap();
        theirs.wait();
        end.wait();
        process.release().unwrap();
    });
    ready.wait();
    let error = SeizedProcess::seize(held, soon()).unwrap_err();
    let Kind::Traced { tracer, comm } = error.kind() else { panic!("{error}") };
    assert!(*tracer > 0 && !comm.is_empty(), "{error}");
    done.wait();
    other.join().unwrap();
    fine(target);
}

/// A vfork parent cannot be stopped: the seize must give up at its deadline and leave it as it was.
fn vfork_parent(dir: &Path) {
    let target = Target::start("vfork", dir).unwrap();
    // A parent that waits for its vfork child is in uninterruptible sleep.
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", target.pid())).unwrap();
    let limit = soon();
    while !state().contains(") D ") {
        assert!(!limit.expired(), "{}", state());
        std::thread::sleep(Duration::from_millis(1));
    }
    let start = Instant::now();
    let error = SeizedProcess::seize(target.pid(), Deadline::after(Duration::from_millis(200))).unwrap_err();
    assert_eq!(*error.kind(), Kind::Timeout, "{error}");
    assert!(error.to_string().contains("vfork"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(40));
    fine(target);
}

fn leader_gone(dir: &Path) {
    let target = Target::start("headless", dir).unwrap();
    let mut process = seize(&target);
    assert!(process.leader_is_zombie());
    assert_eq!(process.threads().len(), 1);
    let tid = process.threads()[0].tid();
    assert_ne!(tid, target.pid());
    let mut remote = process.borrow_thread(tid).unwrap();
    assert_eq!(remote.syscall(libc::SYS_gettid, [0; 6]).unwrap(), i64::from(tid.as_raw()));
    let scratch = remote.lend(b"abc").unwrap();
    let mut back = [0; 3];
    remote.read(scratch, &mut back).unwrap();
    assert_eq!(&back, b"abc");
    remote.finish().unwrap();
    process.release().unwrap();
    fine(target);
}

fn all_marks_caught(dir: &Path) {
    let target = Target::start("catchall", dir).unwrap();
    for _ in 0..20 {
        tracer::round(target.pid(), &target.page);
    }
    fine(target);
}

fn seccomp(dir: &Path) {
    let target = Target::start("filtered", dir).unwrap();
    let process = seize(&target);
    let suspended = ptrace::set_options(target.pid(), Options { suspend_seccomp: true, ..Options::default() }).is_ok();
    assert_eq!(
        process.crash_safety(target.pid(), &[]),
        if suspended { CrashSafety::Unsafe { nr: libc::SYS_rt_sigprocmask } } else { CrashSafety::Unknown }
    );
    process.release().unwrap();
    for _ in 0..20 {
        let mut process = seize(&target);
        let remote = process.borrow_thread(target.pid());
        if suspended {
            let mut remote = remote.unwrap();
            remote.lend(b"into a filtered process").unwrap();
            assert!(remote.syscall(libc::SYS_getpid, [0; 6]).unwrap() > 0);
            remote.finish().unwrap();
        } else {
            assert_eq!(*remote.unwrap_err().kind(), Kind::Unsupported);
        }
        process.release().unwrap();
    }
    fine(target);
    let target = Target::start("sleep", dir).unwrap();
    let process = seize(&target);
    assert_eq!(process.crash_safety(target.pid(), &[libc::SYS_read]), CrashSafety::Safe);
    process.release().unwrap();
    fine(target);
}

fn sigsuspend(dir: &Path) {
    let target = Target::start("suspended", dir).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let bit = |s: i32| 1u64 << (s - 1);
    ptrace::tgkill(target.pid(), target.pid(), libc::SIGUSR2).unwrap();
    for round in 1..=10u64 {
        let mut process = seize(&target);
        // What comes back after sigsuspend, not what is blocked inside.
        assert_eq!(process.threads()[0].sigmask(), bit(libc::SIGUSR1) | bit(libc::SIGUSR2));
        assert!(process.threads()[0].in_syscall());
        let mut remote = process.borrow_thread(target.pid()).unwrap();
        remote.syscall(libc::SYS_getpid, [0; 6]).unwrap();
        remote.finish().unwrap();
        let pending = process.threads()[0].pending_signals().unwrap();
        assert_eq!(pending.iter().map(|s| s.signo()).collect::<Vec<_>>(), [libc::SIGUSR2]);
        assert!(process.shared_pending_signals().unwrap().is_empty());
        process.release().unwrap();
        // It is still inside: only a signal that sigsuspend lets through ends it.
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(target.page.get(Word::Messages), round - 1);
        ptrace::tgkill(target.pid(), target.pid(), libc::SIGUSR1).unwrap();
        let limit = soon();
        while target.page.get(Word::Messages) != round {
            assert!(!limit.expired());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    target.end(&mut Tally::default());
}

fn plan_failures(dir: &Path) {
    let target = Target::start("threads", dir).unwrap();
    let mut process = seize(&target);
    let mut program = Program::new();
    let (good, bad) = (program.plan("good"), program.plan("bad"));
    let slot = program.syscall_slot(good, "getpid", libc::SYS_getpid, &[], Expect::Ok);
    program.syscall_expect(bad, "a close that may fail", libc::SYS_close, &[9999u64.into()], Expect::Any);
    program.syscall(bad, "a close that must not", libc::SYS_close, &[8888u64.into()]);
    let never = program.syscall_slot(bad, "never reached", libc::SYS_getpid, &[], Expect::Ok);
    let tids = [process.threads()[1].tid(), process.threads()[2].tid()];
    let ran = process.run(program, &[(tids[0], good), (tids[1], bad)]).unwrap();
    assert_eq!(ran.failure(good), None);
    assert_eq!(ran.result(good, slot), Some(i64::from(target.pid().as_raw())));
    let failure = ran.failure(bad).unwrap();
    assert_eq!((failure.label.as_str(), failure.nr, failure.value), ("a close that must not", 3, -9));
    assert_eq!(failure.args[0], 8888);
    assert_eq!(ran.result(bad, never), Some(0));
    process.release().unwrap();
    fine(target);
}

fn sigreturn(dir: &Path) {
    for _ in 0..20 {
        let target = Target::start("handler", dir).unwrap();
        let area = VirtAddr(target.page.get(Word::Messages));
        let mut process =
            SeizedProcess::seize_with(target.pid(), Options { exit_kill: true, ..Options::default() }, soon()).unwrap();
        process.start_to_sigreturn().unwrap();
        target.page.set(Word::Go, 1);
        process.await_sigreturn().unwrap();
        assert!(!process.threads()[0].in_syscall());
        let before = target.progress();
        process.munmap_from_outside(target.pid(), area, 16384).unwrap();
        assert!(process.memory().unwrap().read(area, &mut [0]).is_err());
        assert_eq!(target.progress(), before);
        process.release().unwrap();
        fine(target);
    }
}

fn tight(dir: &Path) {
    let target = Target::start("tight", dir).unwrap();
    let before = traces(target.pid());
    for _ in 0..5 {
        tracer::round(target.pid(), &target.page);
    }
    same_traces(target.pid(), &before);
    fine(target);
}

fn kill(dir: &Path) {
    for name in ["counter", "threads", "many"] {
        let mut target = Target::start(name, dir).unwrap();
        let mut process = seize(&target);
        let mut remote = process.borrow_thread(target.pid()).unwrap();
        remote.lend(b"x").unwrap();
        remote.finish().unwrap();
        process.kill().unwrap();
        assert!(!Path::new(&format!("/proc/{}", target.pid())).exists());
        // Reaped by the kill, because this process is the parent as well: the library must not wait for it again.
        drop(target.child.try_wait());
        target.reaped = true;
        std::fs::remove_file(&target.path).unwrap();
    }
}

//! The tracer that gets killed: everything a dump does to a target, over and over.
use crate::shared::{Page, Word};
use crust_inject::plan::{Expect, PlanId, Program, Slot};
use crust_inject::{Job, Ran, SeizedProcess, run_each};
use crust_kernel::{Deadline, HostTid};
use std::path::Path;
use std::time::Duration;

pub(crate) const PHASES: [&str; 8] = ["start", "seize", "calls", "plan", "clean-up", "all at once", "release", "idle"];

/// One dump's worth of borrowing. Panics if anything is not as it must be.
pub(crate) fn round(pid: HostTid, page: &Page) {
    let phase = |n: u64| page.set(Word::Phase, n);
    phase(1);
    let mut process = SeizedProcess::seize(pid, Deadline::after(Duration::from_secs(20))).unwrap();
    let tids: Vec<HostTid> = process.threads().iter().map(|t| t.tid()).collect();
    for thread in process.threads() {
        thread.has_tile_room().unwrap();
    }
    phase(2);
    let mut remote = process.borrow_thread(tids[0]).unwrap();
    let at = remote.lend(b"/proc/self/stat\0").unwrap();
    assert_eq!(remote.syscall(libc::SYS_access, [at.as_raw(), 0, 0, 0, 0, 0]).unwrap(), 0);
    assert!(remote.syscall_ok("getpid", libc::SYS_getpid, [0; 6]).unwrap() > 0);
    remote.finish().unwrap();
    phase(3);
    let mut program = Program::new();
    let mut on = Vec::new();
    let old = program.reserve(64 * 32);
    let mut stacks = Vec::new();
    for &tid in &tids {
        let plan = program.plan(format!("thread {tid}"));
        if on.is_empty() {
            for signal in 1..=64u64 {
                let to = old.offset(32 * (signal - 1));
                let args = [signal.into(), 0u64.into(), to.into(), 8u64.into()];
                program.syscall(plan, "rt_sigaction", libc::SYS_rt_sigaction, &args);
            }
        }
        let stack = program.reserve(24);
        program.syscall(plan, "sigaltstack", libc::SYS_sigaltstack, &[0u64.into(), stack.into()]);
        let slot = program.syscall_slot(plan, "gettid", libc::SYS_gettid, &[], Expect::Ok);
        stacks.push((plan, slot));
        on.push((tid, plan));
    }
    let ran = process.run(program.clone(), &on).unwrap();
    check(&ran, &stacks, &tids);
    phase(4);
    process.clean_up().unwrap();
    phase(5);
    // The way of a dump: area, plans and clean-up in one.
    let job = Job { process: &mut process, program, on: &on };
    let ran = run_each([job]).remove(0).unwrap();
    check(&ran, &stacks, &tids);
    phase(6);
    process.release().unwrap();
    phase(7);
    page.add(Word::Rounds, 1);
}

/// The targets live in our pid namespace.
fn check(ran: &Ran, stacks: &[(PlanId, Slot)], tids: &[HostTid]) {
    for ((plan, slot), tid) in stacks.iter().zip(tids) {
        assert_eq!(ran.failure(*plan), None);
        assert_eq!(ran.result(*plan, *slot), Some(i64::from(tid.as_raw())));
    }
}

/// Rounds until killed, with pauses of up to a millisecond.
pub(crate) fn run(pid: HostTid, page: &Path) -> ! {
    let page = Page::open(page);
    let mut pause = 1u64;
    loop {
        round(pid, &page);
        pause = pause.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_micros((pause >> 33) % 500));
    }
}

/// One round when told to.
pub(crate) fn once(pid: HostTid, page: &Path) -> ! {
    let page = Page::open(page);
    while page.get(Word::Go) == 0 {
        std::thread::sleep(Duration::from_micros(100));
    }
    round(pid, &page);
    std::process::exit(0)
}

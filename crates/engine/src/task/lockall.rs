//! mlockall(2) with MCL_FUTURE: whatever a process maps from now on is locked in memory, at once or (MCL_ONFAULT) when touched.
//!
//! The kernel shows it nowhere, but does so to our own area in the process: msync(2) refuses to invalidate what is locked
//! (EBUSY) and does nothing else. Only where it refuses the area is mapped once more, for smaps to say of which sort it is.
use super::creds::Cap;
use super::limits::{NAMES, RLIMIT_MEMLOCK};
use crate::error::ResultExt;
use crate::{Error, Kind, Result};
use crust_image::proto::{CredsEntry, CrustProcessSettings};
use crust_inject::SeizedProcess;
use crust_inject::plan::{Arg, Expect, PlanId, Program, Slot};
use crust_kernel::HostTid;
use crust_kernel::maps::{self, VmFlag};
use crust_kernel::procfs::{Limit, ProcDir};
use rustix::io::Errno;

/// Values of our field: locked at once, locked when touched.
const AT_ONCE: u32 = 1;
const ON_FAULT: u32 = 2;
const PAGE: usize = 4096;

/// Asks whether what lies in our area is locked.
pub fn ask(p: &mut Program, plan: PlanId) -> Slot {
    let inside = p.reserve(1);
    let args = [Arg::PageOf(inside), PAGE.into(), libc::MS_INVALIDATE.into()];
    p.syscall_slot(plan, "msync", libc::SYS_msync, &args, Expect::Any)
}

/// What to record, from the answer of a process that stands still and has been cleaned up. `by`: a thread of it.
///
/// # Errors
/// If it cannot be asked of which sort its locks are.
pub fn look(process: &mut SeizedProcess, by: HostTid, answer: Option<i64>) -> Result<Option<u32>> {
    if answer != Some(-i64::from(Errno::BUSY.raw_os_error())) {
        return Ok(None);
    }
    let mut p = Program::new();
    let plan = p.plan("locks");
    ask(&mut p, plan);
    let ran = process.run(p, &[(by, plan)]);
    let kind = ran.map_err(Error::from).and_then(|ran| kind_at(by, ran.address().as_raw()));
    process.clean_up()?;
    kind.map(Some)
}

fn kind_at(tid: HostTid, at: u64) -> Result<u32> {
    let what = "asking how its new mappings are locked";
    let all = ProcDir::open(tid).and_then(|proc| maps::read_smaps(&proc)).during(what)?;
    let ours = all.iter().find(|m| (m.start..m.end).contains(&at)).and_then(|m| m.detail.as_ref());
    let has = |flag| ours.is_some_and(|detail| detail.flags.has(flag));
    match (has(VmFlag::Locked), has(VmFlag::LockOnFault)) {
        (true, false) => Ok(AT_ONCE),
        (true, true) => Ok(ON_FAULT),
        (false, _) => Err(Error::new(Kind::TargetChanged, "its new mappings are locked no more").help("try again")),
    }
}

/// Why that cannot be set by whoever has these rights and limits; asked before anything is created.
pub fn check(want: &CrustProcessSettings, own: &CredsEntry, limits: &[Limit; 16]) -> Option<Error> {
    needs_right(want, limits).filter(|_| !Cap::IPC_LOCK.is_held(own)).map(|why| {
        Error::new(Kind::Permission, why)
            .help("raise our limit of locked memory first (ulimit -l), or give CAP_IPC_LOCK")
    })
}

/// What it is that takes CAP_IPC_LOCK of somebody with these limits.
pub fn needs_right(want: &CrustProcessSettings, limits: &[Limit; 16]) -> Option<String> {
    (want.locks_new.is_some() && limits[RLIMIT_MEMLOCK].cur == 0)
        .then(|| format!("locks what it maps (mlockall with MCL_FUTURE), and our {} is 0", NAMES[RLIMIT_MEMLOCK]))
}

/// Sets it; what is mapped already stays as it is.
pub fn plan(p: &mut Program, plan: PlanId, want: &CrustProcessSettings) {
    let flags = match want.locks_new {
        Some(ON_FAULT) => libc::MCL_FUTURE | libc::MCL_ONFAULT,
        Some(_) => libc::MCL_FUTURE,
        None => return,
    };
    p.syscall(plan, "mlockall", libc::SYS_mlockall, &[flags.into()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_a_limit_or_a_right() {
        let (want, nobody) =
            (CrustProcessSettings { locks_new: Some(AT_ONCE), ..Default::default() }, CredsEntry::default());
        let root = CredsEntry { cap_eff: vec![!0, !0], ..Default::default() };
        let (none, some) = ([Limit { cur: 0, max: 0 }; 16], [Limit { cur: 1, max: 1 }; 16]);
        let refused = check(&want, &nobody, &none).expect("refused");
        assert!(refused.kind() == Kind::Permission && refused.headline().contains("RLIMIT_MEMLOCK"));
        assert!(check(&want, &root, &none).is_none() && check(&want, &nobody, &some).is_none());
        assert!(check(&CrustProcessSettings::default(), &nobody, &none).is_none());
    }
}

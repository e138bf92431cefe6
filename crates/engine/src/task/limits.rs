//! Resource limits and the OOM score of a process. Never needs CAP_SYS_RESOURCE for what the image does not raise.
use crate::error::ResultExt;
use crate::{Error, Kind, Result};
use crust_image::proto::{RlimitEntry, TaskRlimitsEntry};
use crust_inject::plan::{DataRef, PlanId, Program};
use crust_kernel::HostTid;
use crust_kernel::procfs::{Limit, ProcDir, Status, parse_limits};
use rustix::io::Errno;

const RLIMIT_DATA: usize = 2;
pub(crate) const RLIMIT_MEMLOCK: usize = 8;
const RLIMIT_AS: usize = 9;
/// struct rlimit64: soft limit, hard limit.
const LIMIT_BYTES: usize = 16;

pub(crate) const NAMES: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

/// Reads a process's limits from /proc.
///
/// # Errors
/// If the file cannot be read or has an unknown form.
pub fn look(proc: &ProcDir) -> Result<[Limit; 16]> {
    let text = proc.read_text("limits").during("reading the resource limits")?;
    parse_limits(&text).ok_or_else(|| Error::new(Kind::Internal, "/proc/PID/limits has an unknown form"))
}

/// What keeps a process from having one more mapping, where it refused one for want of memory: which limit, and the way out.
pub(crate) fn out_of_memory(pid: HostTid, errno: Errno) -> Option<String> {
    if !matches!(errno, Errno::NOMEM | Errno::AGAIN) {
        return None;
    }
    /// More than we ask of a process.
    const OURS: u64 = 16 << 20;
    let proc = ProcDir::open(pid).ok()?;
    let limits = look(&proc).ok()?;
    let status = Status::new(proc.read_text("status").ok()?);
    // That of locked memory counts where new mappings are locked (mlockall with MCL_FUTURE).
    let kinds = [(RLIMIT_AS, "VmSize", "as"), (RLIMIT_DATA, "VmData", "data"), (RLIMIT_MEMLOCK, "VmLck", "memlock")];
    let (locked, others) = (&kinds[2..], &kinds[..2]);
    for &(index, size, option) in if errno == Errno::AGAIN { locked } else { others } {
        let used = u64::try_from(status.number(size)?).ok()? << 10;
        let limit = limits[index].cur;
        if used.saturating_add(OURS) > limit {
            let room = used + OURS;
            return Some(format!(
                "it has {used} bytes of the {limit} that {} allows it: `prlimit --pid {pid} --{option}={room}:`, dump, and the \
                 old value again in the restored process",
                NAMES[index]
            ));
        }
    }
    if errno == Errno::AGAIN {
        return None;
    }
    let most: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()?;
    (proc.read_text("maps").ok()?.lines().count() + 8 > most)
        .then(|| format!("it has as many mappings as it may: raise /proc/sys/vm/max_map_count ({most})"))
}

/// Adds the questions to a plan that runs inside the task: nobody needs a right to ask for his own limits.
pub fn ask(p: &mut Program, plan: PlanId) -> DataRef {
    let at = p.reserve(NAMES.len() * LIMIT_BYTES);
    for (i, name) in NAMES.into_iter().enumerate() {
        let to = at.offset((i * LIMIT_BYTES) as u64);
        p.syscall(plan, name, libc::SYS_prlimit64, &[0.into(), i.into(), 0.into(), to.into()]);
    }
    at
}

/// Reads the answers; `read` gives bytes of the plan's data.
///
/// # Errors
/// As `read`.
pub fn answers(at: DataRef, read: &dyn Fn(DataRef, usize) -> Result<Vec<u8>>) -> Result<TaskRlimitsEntry> {
    let bytes = read(at, NAMES.len() * LIMIT_BYTES)?;
    let word = |b: &[u8]| b.try_into().map_or(0, u64::from_le_bytes);
    let limit = |c: &[u8]| RlimitEntry { cur: word(&c[..8]), max: word(&c[8..]) };
    Ok(TaskRlimitsEntry { rlimits: bytes.chunks_exact(LIMIT_BYTES).map(limit).collect() })
}

/// The limits as records, in RLIMIT_* order.
pub fn record(limits: &[Limit; 16]) -> TaskRlimitsEntry {
    TaskRlimitsEntry { rlimits: limits.iter().map(|l| RlimitEntry { cur: l.cur, max: l.max }).collect() }
}

/// Hard limits that the image raises above our own, which takes CAP_SYS_RESOURCE.
pub fn check(want: Option<&TaskRlimitsEntry>, own: &[Limit; 16], privileged: bool) -> Vec<Error> {
    if privileged {
        return Vec::new();
    }
    let error = |(name, want, have)| {
        let what = format!("{name} has the hard limit {want} in the image, ours is {have}");
        Error::new(Kind::Permission, what).help("raise our own hard limit first (ulimit -H), or give CAP_SYS_RESOURCE")
    };
    let want = want.map_or(&[][..], |w| &w.rlimits[..]);
    raised(want.iter().map(|w| w.max), own.iter().map(|o| o.max)).map(error).collect()
}

/// Which hard limits are above ours, each with the two.
pub fn raised(
    want: impl Iterator<Item = u64>,
    own: impl Iterator<Item = u64>,
) -> impl Iterator<Item = (&'static str, u64, u64)> {
    let names = NAMES.iter().copied();
    names.zip(want.zip(own)).filter(|(_, (want, have))| want > have).map(|(name, (want, have))| (name, want, have))
}

/// Sets what differs from our own.
pub fn plan(p: &mut Program, plan: PlanId, want: Option<&TaskRlimitsEntry>, own: &[Limit; 16]) {
    for (i, (w, o)) in want.map_or(&[][..], |w| &w.rlimits[..]).iter().zip(own).enumerate() {
        if (w.cur, w.max) != (o.cur, o.max) {
            let at = p.data(&[w.cur.to_le_bytes(), w.max.to_le_bytes()].concat());
            p.syscall(plan, NAMES[i], libc::SYS_prlimit64, &[0.into(), i.into(), at.into(), 0.into()]);
        }
    }
}

/// Sets this process's OOM score adjustment if it differs.
///
/// # Errors
/// `Permission` if it would have to be lowered without CAP_SYS_RESOURCE.
pub fn set_oom_score_adj(want: Option<i32>) -> Result<()> {
    let Some(want) = want else { return Ok(()) };
    let path = "/proc/self/oom_score_adj";
    let now = std::fs::read_to_string(path).during("reading oom_score_adj")?;
    if now.trim() == want.to_string() {
        return Ok(());
    }
    std::fs::write(path, want.to_string()).during("setting oom_score_adj").map_err(|e| {
        e.help(format!("the image has {want}, we have {}: lowering it takes CAP_SYS_RESOURCE", now.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_raise_needs_privilege() {
        let own = [Limit { cur: 10, max: 20 }; 16];
        let mut want = record(&own);
        assert!(check(Some(&want), &own, false).is_empty());
        want.rlimits[7].max = 21;
        let errors = check(Some(&want), &own, false);
        assert!(errors.len() == 1 && errors[0].headline().contains("RLIMIT_NOFILE"));
        assert!(check(Some(&want), &own, true).is_empty());
        let mut p = Program::new();
        let main = p.plan("x");
        plan(&mut p, main, Some(&want), &own);
        assert_eq!(p.len(main), 1);
    }
}

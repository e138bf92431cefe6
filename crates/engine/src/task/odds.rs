//! Small things of a task that /proc alone tells: the login user id, the nice value of a session's scheduling group, and the
//! memory policy of single mappings.
use crate::error::{Error, Object, Result, ResultExt};
use crust_inject::SeizedThread;
use crust_kernel::procfs::ProcDir;
use crust_kernel::procfs::Stat;
use rustix::io::Errno;

/// A thread that runs in the kernel only, on behalf of an io_uring or of vhost: it can be asked nothing, and would wait for
/// ever instead of answering.
///
/// # Errors
/// `Unsupported` if it is one.
pub fn refuse_worker(proc: &ProcDir, thread: &SeizedThread) -> Result<()> {
    const PF_IO_WORKER: u64 = 0x10;
    const PF_USER_WORKER: u64 = 0x4000;
    // It has no stack: the kernel shows debuggers a stack pointer of zero.
    if crust_inject::arch::regs::sp(thread.regs()) != 0 {
        return Ok(());
    }
    let tid = thread.tid();
    let text = proc.read_small(&format!("task/{tid}/stat")).during("reading /proc/PID/task/TID/stat")?;
    let Some(stat) = Stat::parse(&text).filter(|s| s.flags & (PF_IO_WORKER | PF_USER_WORKER) != 0) else {
        return Ok(());
    };
    let (of, help) = match stat.flags & PF_IO_WORKER != 0 {
        true => ("an io_uring", "close the ring before the dump"),
        false => ("vhost", "close the device before the dump"),
    };
    let comm = String::from_utf8_lossy(&stat.comm).into_owned();
    Err(Error::unsupported(format!("thread {tid} ({comm}) works for {of} in the kernel"), help))
}

/// Gives the calling process the login user id that is recorded.
///
/// # Errors
/// If the kernel refuses for another reason than a missing CAP_AUDIT_CONTROL: without that nobody can have another id than
/// the one he logged in with.
pub fn set_loginuid(want: Option<u32>) -> Result<()> {
    let Some(want) = want else { return Ok(()) };
    let path = "/proc/self/loginuid";
    let now = std::fs::read_to_string(path).ok().and_then(|t| t.trim().parse::<u32>().ok());
    // A kernel without audit has none.
    if now.is_none_or(|now| now == want) {
        return Ok(());
    }
    match std::fs::write(path, want.to_string()) {
        Err(e) if Errno::from_io_error(&e) == Some(Errno::PERM) => Ok(()),
        other => other.during("setting the login user id"),
    }
}

/// Warns of a login user id that cannot be given back.
pub fn check_loginuid(want: Option<u32>, may_set: bool) {
    let now = std::fs::read_to_string("/proc/self/loginuid").ok().and_then(|t| t.trim().parse::<u32>().ok());
    if let (Some(want), Some(now), false) = (want, now, may_set)
        && want != now
    {
        log::warn!("the login user id is {now} instead of {want}: setting it takes CAP_AUDIT_CONTROL");
    }
}

/// The nice value of the scheduling group of `proc`'s session, if it was set. Its leader is asked.
pub fn autogroup_nice(proc: &ProcDir) -> Option<i32> {
    let text = proc.read_text("autogroup").ok()?;
    text.trim().rsplit_once("nice ")?.1.parse::<i32>().ok().filter(|&nice| nice != 0)
}

/// Gives the scheduling group of the calling process's session its nice value.
///
/// # Errors
/// `Permission` if it would have to be lowered without CAP_SYS_NICE.
pub fn set_autogroup_nice(want: Option<i32>) -> Result<()> {
    match want {
        None => Ok(()),
        Some(nice) => std::fs::write("/proc/self/autogroup", nice.to_string())
            .during("setting the nice value of the session's scheduling group")
            .map_err(|e| e.help("a negative value takes CAP_SYS_NICE")),
    }
}

/// A mapping with a memory policy of its own (mbind), which nobody saves. Where there is one node only, policies have no
/// effect, and are not looked for.
pub fn mapping_policy(pid: i32, proc: &ProcDir) -> Option<Error> {
    let nodes = std::fs::read_to_string("/sys/devices/system/node/online").unwrap_or_default();
    if matches!(nodes.trim(), "" | "0") {
        return None;
    }
    let (start, policy) = odd_policy(&proc.read_text("numa_maps").ok()?)?;
    let what = format!("has a memory policy of its own ({policy}), which cannot be saved");
    let help = "use a policy for the whole process (set_mempolicy, numactl) instead of mbind";
    Some(Error::unsupported(what, help).on(Object::Vma(pid, start, start)))
}

/// The first mapping whose policy is another than most have: that of the task.
fn odd_policy(numa_maps: &str) -> Option<(u64, String)> {
    let lines = || {
        numa_maps.lines().filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.next()?))
        })
    };
    let mut counts = std::collections::HashMap::<&str, usize>::new();
    for (_, policy) in lines() {
        *counts.entry(policy).or_default() += 1;
    }
    let (common, _) = counts.iter().max_by_key(|(_, n)| **n)?;
    let (start, policy) = lines().find(|(_, policy)| policy != common)?;
    Some((u64::from_str_radix(start, 16).ok()?, policy.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_with_another_policy_is_found() {
        let text = "7f00 default file=/lib/x\n7f10 default anon=1\n7f20 bind:1 anon=3 N1=3\n7f30 default stack\n";
        assert_eq!(odd_policy(text), Some((0x7f20, "bind:1".to_owned())));
        assert_eq!(odd_policy("7f00 interleave:0-1 file=/lib/x\n7f10 interleave:0-1\n"), None);
        assert_eq!(odd_policy(""), None);
    }
}

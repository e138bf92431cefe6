//! Threads that confined themselves with Landlock (landlock_restrict_self(2)): a restored one would be free, so they are refused.
//!
//! The kernel shows nobody who is confined. But it lets a confined thread look at nobody outside of its domain, so each is asked
//! to compare us with ourselves (kcmp(2), which changes nothing). Where its ids are ours and it has all of our capabilities, only
//! Landlock says EPERM to that; other security modules say EACCES. Of others, whom the kernel may refuse for who they are, the
//! answer proves nothing, unless it is a yes. Whoever is confined together with us has what the restored program will have.
use crate::error::ResultExt;
use crate::{Error, Result};
use crust_inject::plan::{Expect, PlanId, Program, Slot};
use crust_kernel::HostTid;
use crust_kernel::kcmp::Shared;
use crust_kernel::procfs::{ProcDir, Status};
use rustix::io::Errno;
use rustix::process::DumpableBehavior;

/// Whom confined threads may not look at: us.
#[derive(Clone, Debug)]
pub struct Outside {
    pid: HostTid,
    uid: u32,
    gid: u32,
    capabilities: u64,
}

/// What is known of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not confined, or not more than we are.
    Free,
    /// Landlock confines it.
    Confined,
    /// It was not to be found out.
    Unknown,
}

impl Outside {
    /// Us; `None` where the kernel has no Landlock, or where we are not of one kind ourselves.
    ///
    /// # Errors
    /// If our own /proc directory cannot be read.
    pub fn look() -> Result<Option<Self>> {
        let pid = HostTid::new(rustix::process::getpid().as_raw_nonzero().get());
        let Some(pid) = pid.filter(|_| crust_kernel::probe::landlock()) else { return Ok(None) };
        let what = "reading /proc/self/status";
        let status = Status::new(ProcDir::open_self(pid).and_then(|dir| dir.read_text("status")).during(what)?);
        let hidden = !matches!(rustix::process::dumpable_behavior(), Ok(DumpableBehavior::Dumpable));
        let ids = one_of(&status, "Uid").zip(one_of(&status, "Gid")).zip(status.mask("CapPrm"));
        Ok(ids.filter(|_| !hidden).map(|((uid, gid), capabilities)| Self { pid, uid, gid, capabilities }))
    }

    /// Nothing but Landlock, or a user namespace, lets the kernel hide us from the thread of which `status` is.
    fn is_open_to(&self, status: &Status) -> bool {
        let real = |key| status.numbers(key).and_then(|ids| ids.first().copied());
        real("Uid") == Some(self.uid)
            && real("Gid") == Some(self.gid)
            && status.mask("CapPrm").is_some_and(|theirs| self.capabilities & !theirs == 0)
    }

    /// Whether the threads of a process shall be asked. Of others nothing would be learned, and a right that they use shows.
    pub fn asks(&self, leader: &Status) -> bool {
        self.is_open_to(leader)
    }

    /// Asks a thread to look at us.
    pub fn ask(&self, p: &mut Program, plan: PlanId) -> Slot {
        let args = [self.pid.as_raw().into(), self.pid.as_raw().into(), (Shared::Vm as i32).into(), 0.into(), 0.into()];
        p.syscall_slot(plan, "kcmp", libc::SYS_kcmp, &args, Expect::Any)
    }

    /// What follows from a thread's answer, if it was asked. `at_home`: whether it lives in our user and pid namespaces.
    pub fn judge(&self, status: &Status, answer: Option<i64>, at_home: impl FnOnce() -> bool) -> Verdict {
        const DENIED: i64 = -(Errno::PERM.raw_os_error() as i64);
        match answer {
            Some(0..) => Verdict::Free,
            Some(DENIED) if self.is_open_to(status) && at_home() => Verdict::Confined,
            _ => Verdict::Unknown,
        }
    }
}

/// The one id that all of a line's are.
fn one_of(status: &Status, key: &str) -> Option<u32> {
    let ids = status.numbers(key)?;
    ids.first().copied().filter(|first| ids.iter().all(|id| id == first))
}

/// Whether a process lives in our user and pid namespaces.
pub fn is_at_home(proc: &ProcDir) -> bool {
    let ours = |name: &str| std::fs::read_link(format!("/proc/self/{name}")).ok();
    ["ns/user", "ns/pid"].into_iter().all(|name| {
        let theirs = proc.readlink(name).ok();
        theirs.is_some()
            && theirs == ours(name).map(|link| std::os::unix::ffi::OsStringExt::into_vec(link.into_os_string()))
    })
}

/// What hinders a thread that is confined.
pub fn refusal(tid: HostTid) -> Error {
    let what = format!("thread {tid} confined itself with Landlock, which cannot be set up again");
    Error::unsupported(what, "run the program without that sandbox, or dump it before it enters it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(uid: u32, capabilities: &str) -> Status {
        Status::new(format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t5\t5\t5\t5\nCapPrm:\t{capabilities}\n"))
    }

    #[test]
    fn only_who_would_see_us_otherwise_is_called_confined() {
        let pid = HostTid::new(7).expect("a pid");
        let us = Outside { pid, uid: 4, gid: 5, capabilities: 3 };
        let denied = Some(-i64::from(libc::EPERM));
        assert_eq!(us.judge(&status(4, "7"), denied, || true), Verdict::Confined);
        assert_eq!(us.judge(&status(4, "7"), Some(0), || true), Verdict::Free);
        assert_eq!(us.judge(&status(4, "7"), denied, || false), Verdict::Unknown, "another user namespace");
        assert_eq!(us.judge(&status(4, "1"), denied, || true), Verdict::Unknown, "less capabilities than ours");
        assert_eq!(us.judge(&status(6, "7"), denied, || true), Verdict::Unknown, "another user");
        for other in
            [Some(-i64::from(libc::EACCES)), Some(-i64::from(libc::ENOSYS)), Some(-i64::from(libc::ESRCH)), None]
        {
            assert_eq!(us.judge(&status(4, "7"), other, || true), Verdict::Unknown);
        }
    }
}

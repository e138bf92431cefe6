//! What is seen of a thread without its help, from outside: what it has for itself, its schedule, robust list and groups. It may
//! be looked at while the thread runs our plans.
use crate::Result;
use crate::cgroup::look::membership;
use crate::error::{Error, ResultExt};
use crust_kernel::kcmp::{self, Shared};
use crust_kernel::process::{self, Sched};
use crust_kernel::procfs::ProcDir;
use crust_kernel::{HostTid, ptrace};

pub(super) struct Glance {
    /// Of what its process's threads share, what it has for itself.
    own_files: bool,
    own_directories: bool,
    /// Its net namespace, unless it is the process's first thread.
    net: Option<Vec<u8>>,
    pub(super) sched: Sched,
    /// Address, and length in bytes.
    pub(super) robust_list: (u64, u64),
    /// Its control groups as text, if they are wanted.
    pub(super) groups: Option<Vec<u8>>,
}

impl Glance {
    /// `live`: the process's first thread that has not ended.
    pub(super) fn take(process: &ProcDir, live: HostTid, tid: HostTid, groups: bool) -> Result<Self> {
        let differs = |what| tid != live && kcmp::task(live, tid, what).is_ok_and(std::cmp::Ordering::is_ne);
        let own_files = differs(Shared::Files);
        Ok(Self {
            own_files,
            own_directories: !own_files && differs(Shared::Fs),
            net: (tid != live).then(|| process.readlink(&format!("task/{tid}/ns/net")).ok()).flatten(),
            sched: process::sched(tid).during("sched_getattr")?,
            robust_list: ptrace::get_robust_list(tid).during("get_robust_list")?,
            groups: groups.then(|| membership(process, tid)).transpose()?,
        })
    }

    /// What it has for itself that a process's threads share. `net` is the process's net namespace.
    pub(super) fn apart(&self, net: Option<&[u8]>, tid: HostTid) -> Vec<Error> {
        let other_net = net.is_some() && self.net.is_some() && self.net.as_deref() != net;
        let found = [
            (self.own_files, "has a descriptor table of its own"),
            (self.own_directories, "has directories and a umask of its own"),
            (other_net, "lives in another net namespace than its process"),
        ];
        let help = "what a thread has left by unshare(2) or setns(2) cannot be restored; let it end before the dump";
        let error = |(_, what): &(bool, &str)| Error::unsupported(format!("thread {tid} {what}"), help);
        found.iter().filter(|(is_so, _)| *is_so).map(error).collect()
    }
}

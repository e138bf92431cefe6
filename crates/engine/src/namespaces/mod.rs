//! Namespaces: which a tree may live in, and the one that restore makes by itself, time.
pub mod time;

use crate::{Error, Object};
use crust_kernel::HostTid;
use crust_kernel::procfs::ProcDir;

/// Namespaces that a dumped task must share with us.
const SHARED: [&str; 7] = ["pid", "net", "ipc", "uts", "mnt", "user", "cgroup"];

/// Our own namespaces, for comparison.
#[derive(Clone, Debug)]
pub struct Own([Option<Vec<u8>>; SHARED.len()]);

impl Own {
    /// Looks at the calling process.
    pub fn look() -> Self {
        let link = |ns| rustix::fs::readlink(format!("/proc/self/ns/{ns}"), Vec::new()).ok().map(|l| l.into_bytes());
        Self(SHARED.map(link))
    }
}

/// Says in which namespaces `pid` lives that are not ours; saving those is not supported yet.
pub fn foreign(pid: HostTid, proc: &ProcDir, own: &Own) -> Vec<Error> {
    let mut found = Vec::new();
    for (ns, ours) in SHARED.iter().zip(&own.0) {
        let theirs = proc.readlink(&format!("ns/{ns}"));
        if let (Ok(theirs), Some(ours)) = (theirs, ours)
            && theirs != *ours
        {
            let what = format!("lives in another {ns} namespace than we do ({})", String::from_utf8_lossy(&theirs));
            let help = format!(
                "run crust inside of it: `nsenter -t {pid} --all crust …`; containers from outside are not supported yet"
            );
            found.push(Error::unsupported(what, help).on(Object::Task(pid.as_raw())));
        }
    }
    found
}

//! Namespaces: which a tree may live in, and the one that restore makes by itself, time.
pub mod time;

use crate::{Error, Object};
use crust_kernel::HostTid;
use crust_kernel::procfs::ProcDir;

/// Namespaces that a dumped task must share with us.
const SHARED: [&str; 7] = ["pid", "net", "ipc", "uts", "mnt", "user", "cgroup"];

/// Says in which namespaces `pid` lives that are not ours; saving those is not supported yet.
pub fn foreign(pid: HostTid, proc: &ProcDir) -> Vec<Error> {
    let mut found = Vec::new();
    for ns in SHARED {
        let theirs = proc.readlink(&format!("ns/{ns}"));
        let ours = rustix::fs::readlink(format!("/proc/self/ns/{ns}"), Vec::new()).map(|l| l.into_bytes());
        if let (Ok(theirs), Ok(ours)) = (theirs, ours)
            && theirs != ours
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

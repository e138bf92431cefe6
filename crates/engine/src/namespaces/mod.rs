//! Namespaces: which a tree may live in, and the one that restore makes by itself, time.
pub mod time;

use crate::{Error, Object};
use crust_image::proto::TaskKobjIdsEntry;
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

/// True if `pid` lives in a network namespace of its own, so that its network can be cut off without ours.
pub fn has_own_net(pid: i32) -> bool {
    let link = |of: &str| rustix::fs::readlink(format!("/proc/{of}/ns/net"), Vec::new()).ok();
    matches!((link("self"), link(&pid.to_string())), (Some(ours), Some(theirs)) if ours != theirs)
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
    for ns in ["pid", "time"] {
        let (own, children) = (proc.readlink(&format!("ns/{ns}")), proc.readlink(&format!("ns/{ns}_for_children")));
        // A pid namespace without its first process has no link yet.
        let other = match (&own, &children) {
            (Ok(own), Ok(children)) => own != children,
            (Ok(_), Err(e)) => ns == "pid" && *e == rustix::io::Errno::NOENT && has_links(proc),
            _ => false,
        };
        if other {
            let what = format!("its children would be born in another {ns} namespace than it lives in");
            let help = "processes that called unshare(2) or setns(2) for their children cannot be saved yet";
            found.push(Error::unsupported(what, help).on(Object::Task(pid.as_raw())));
        }
    }
    found
}

/// True if this kernel tells the namespace of a process's children.
fn has_links(proc: &ProcDir) -> bool {
    proc.readlink("ns/time_for_children").is_ok()
}

/// Says which namespaces of their own the tasks of an image had: those that differ from the dumper's. The time namespace is
/// made anew in any case.
pub fn imaged(dumper: &TaskKobjIdsEntry, task: &TaskKobjIdsEntry) -> Vec<Error> {
    let pairs = [
        ("pid", dumper.pid_ns_id, task.pid_ns_id),
        ("net", dumper.net_ns_id, task.net_ns_id),
        ("ipc", dumper.ipc_ns_id, task.ipc_ns_id),
        ("uts", dumper.uts_ns_id, task.uts_ns_id),
        ("mnt", dumper.mnt_ns_id, task.mnt_ns_id),
        ("user", dumper.user_ns_id, task.user_ns_id),
        ("cgroup", dumper.cgroup_ns_id, task.cgroup_ns_id),
    ];
    let own = pairs.into_iter().filter(|(_, d, t)| t.is_some() && d.is_some() && d != t);
    own.map(|(ns, ..)| {
        let help = "restore it with CRIU; containers are not supported yet";
        Error::unsupported(format!("the task in the image has a {ns} namespace of its own"), help)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_named_and_a_clock_is_not() {
        let host =
            TaskKobjIdsEntry { pid_ns_id: Some(1), net_ns_id: Some(2), time_ns_id: Some(5), ..Default::default() };
        assert!(imaged(&host, &TaskKobjIdsEntry { time_ns_id: Some(9), ..host }).is_empty());
        let found = imaged(&host, &TaskKobjIdsEntry { net_ns_id: Some(10), ..host });
        assert!(found.len() == 1 && found[0].headline().contains("net namespace"));
        // Old images say nothing about namespaces.
        assert!(imaged(&TaskKobjIdsEntry::default(), &host).is_empty());
    }
}

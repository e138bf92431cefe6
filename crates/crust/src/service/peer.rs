//! The caller: who it is, whether the service works for it, its descriptors, and how a worker becomes it.
use crust_engine::{Error, Kind, Object, OnObject, Result, ResultExt};
use crust_kernel::HostTid;
use crust_kernel::peer::{PeerCred, peer_cred, peer_groups, peer_pidfd};
use crust_kernel::procfs::{ProcDir, Status};
use crust_rpc::Connection;
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Gid, Pid, PidfdFlags, PidfdGetfdFlags, Uid, pidfd_getfd, pidfd_open};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// How long the last steps of an ending process may take.
const EXIT_TIME: Duration = Duration::from_secs(1);

/// Who sent the request.
#[derive(Debug)]
pub(crate) struct Peer {
    cred: PeerCred,
    /// Absent if it has ended already, or cannot be seen from here.
    pidfd: Option<OwnedFd>,
    /// Its supplementary groups.
    groups: Vec<u32>,
}

/// Why the service does not work for a caller.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    what: String,
    help: String,
}

impl Refusal {
    /// As the reply to a request.
    pub(crate) fn error(&self) -> Error {
        Error::new(Kind::Permission, self.what.clone()).help(self.help.clone())
    }
}

impl From<Error> for Refusal {
    fn from(e: Error) -> Self {
        Self { what: e.headline(), help: e.advice().to_owned() }
    }
}

/// What of the caller's surroundings decides whether it may call, seen while we may look at everybody.
struct Surroundings {
    user_ns: bool,
    mnt_ns: bool,
    pid_ns: bool,
    root: bool,
    filters: i64,
    permitted: CapabilitySet,
    /// What a security module calls the caller, and us.
    labels: [Option<String>; 2],
}

impl Surroundings {
    /// Each field but the last two says whether the caller has the same as we have.
    fn of(pid: HostTid) -> Result<Self> {
        let same = |name: &str| -> Result<bool> {
            let of = |who: &str| rustix::fs::stat(format!("/proc/{who}/{name}"));
            let (its, ours) = (of(&pid.as_raw().to_string()), of("self"));
            let its = its.during("looking where the caller lives").on_path(&format!("/proc/{pid}/{name}"))?;
            let ours = ours.during("looking where we live")?;
            Ok((its.st_dev, its.st_ino) == (ours.st_dev, ours.st_ino))
        };
        let status = status_of(pid)?;
        // Our own filters may be those of a service manager. The first process has what everybody here has.
        let first = HostTid::new(1).map(status_of).transpose().ok().flatten();
        Ok(Self {
            user_ns: same("ns/user")?,
            mnt_ns: same("ns/mnt")?,
            pid_ns: same("ns/pid")?,
            root: same("root")?,
            filters: filters(&status) - first.as_ref().map_or(0, filters),
            permitted: CapabilitySet::from_bits_retain(status.mask("CapPrm").unwrap_or(0)),
            labels: [pid.as_raw().to_string().as_str(), "self"].map(label_of),
        })
    }
}

fn status_of(pid: HostTid) -> Result<Status> {
    let text = ProcDir::open(pid).and_then(|dir| dir.read_text("status"));
    text.map(Status::new).during("looking at a status").map_err(|e| e.on(Object::Task(pid.as_raw())))
}

/// The label that a security module gave a process. None without one that has labels.
fn label_of(who: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{who}/attr/current")).ok()?;
    Some(text.trim_end_matches(['\n', '\0']).to_owned()).filter(|label| !label.is_empty())
}

/// True if our label lets us do something that the caller's forbids: it is another one, and not one without limits.
fn is_confined([its, ours]: &[Option<String>; 2]) -> bool {
    let Some(its) = its else { return false };
    // AppArmor's word, and the type in SELinux's user:role:type:level.
    let free = its == "unconfined" || its.split(':').nth(2) == Some("unconfined_t");
    !free && Some(its) != ours.as_ref()
}

/// Number of seccomp filters; before Linux 5.9 whether there are any.
fn filters(status: &Status) -> i64 {
    status.number("Seccomp_filters").or_else(|| status.number("Seccomp")).unwrap_or(0)
}

impl Peer {
    /// Asks the socket.
    pub(crate) fn of(connection: &Connection) -> Result<Self> {
        let cred = peer_cred(connection).during("asking who the caller is")?;
        let pidfd = match peer_pidfd(connection) {
            // Before Linux 6.5 the pid is all there is. Another process that has the number by now gives nothing away
            // that the caller could not take itself: we are the caller when we ask it for anything.
            Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                let pid = cred.pid.and_then(|p| Pid::from_raw(p.as_raw())).ok_or(e);
                pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).map_err(std::io::Error::from))
            }
            // Any other refusal says that it has ended: whoever has its pid now is somebody else.
            asked => asked,
        };
        let groups = peer_groups(connection).unwrap_or_default();
        Ok(Self { cred, pidfd: pidfd.ok(), groups })
    }

    /// Takes a caller of the service in, before a byte of its request is read: this process gives up every privilege
    /// that the caller does not have, and afterwards says whether it works for it at all.
    pub(crate) fn admit(connection: &Connection) -> std::result::Result<Self, Refusal> {
        let peer = Self::of(connection)?;
        let seen = peer.pid().and_then(Surroundings::of);
        // What we saw was the caller's only if it has not ended since: then nobody else can have had its pid. One that
        // is just ending has lost its namespaces a moment before.
        let alive = peer.alive() && (seen.is_ok() || !peer.ends_within(EXIT_TIME));
        let permitted = seen.as_ref().map(|s| s.permitted).unwrap_or(CapabilitySet::empty());
        peer.become_it(if alive { permitted } else { CapabilitySet::empty() })?;
        if !alive {
            return Err(Error::new(Kind::Permission, "the caller has ended")
                .help("call again, and stay connected")
                .into());
        }
        peer.may_call(&seen?)?;
        Ok(peer)
    }

    /// We act in our own namespaces, with no filter on our system calls. A caller that is kept from any of that must
    /// not get out of its sandbox through us. One that could join our namespaces by itself may call from elsewhere.
    fn may_call(&self, seen: &Surroundings) -> Result<()> {
        let no = |what: &str| {
            Err(Error::new(Kind::Permission, format!("the service does not work for a caller {what}"))
                .help("run `crust swrk` where the caller lives"))
        };
        if !seen.user_ns {
            return no("in another user namespace");
        }
        // Root, too, can be confined by a label, and would not be by ours.
        if is_confined(&seen.labels) {
            return no("whom a security module confines in another way than us");
        }
        if self.cred.uid == 0 && seen.permitted.contains(CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE) {
            return Ok(());
        }
        match () {
            () if !seen.mnt_ns => no("in another mount namespace: its paths are other files here"),
            () if !seen.pid_ns => no("in another pid namespace: its pids are other tasks here"),
            () if !seen.root => no("with another root directory: its paths are other files here"),
            () if seen.filters > 0 => no("under a seccomp filter"),
            () => Ok(()),
        }
    }

    /// Its pid here.
    pub(crate) fn pid(&self) -> Result<HostTid> {
        self.cred.pid.ok_or_else(|| {
            Error::new(Kind::BadRequest, "the caller lives in another pid namespace")
                .help("call from the service's pid namespace, or run `crust swrk` inside the caller's")
        })
    }

    /// Its user.
    pub(crate) fn uid(&self) -> u32 {
        self.cred.uid
    }

    /// A copy of its descriptor `number`. Never one of ours that happens to have the same number. In the service this
    /// happens with the caller's rights: it may have executed a setuid program since it connected, and that program's
    /// descriptors are not the caller's.
    pub(crate) fn descriptor(&self, number: i32) -> Result<OwnedFd> {
        let what = format!("fetching the caller's descriptor {number}");
        let wrong = |e: Error| e.kind_is(Kind::BadRequest);
        let pidfd =
            self.pidfd.as_ref().ok_or_else(|| wrong(Error::new(Kind::BadRequest, format!("{what}: it has ended"))))?;
        if number < 0 {
            return Err(Error::new(Kind::BadRequest, format!("{what}: no such descriptor")));
        }
        let first = match pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty()) {
            Ok(fd) => return Ok(fd),
            Err(e) => e,
        };
        // Yama lets a child not attach to its parent; a directory can still be opened anew through /proc. The pidfd
        // tells afterwards that the pid was the caller's all the while.
        if first == rustix::io::Errno::PERM {
            let path = format!("/proc/{}/fd/{number}", self.pid()?);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            if let Ok(fd) = rustix::fs::open(path, flags, Mode::empty())
                && self.alive()
            {
                return Ok(fd);
            }
        }
        let help = "send paths (images_dir) instead if the caller may not be traced, for instance under Yama";
        Err(first).during(&what).map_err(|e| {
            let denied = e.kind() == Kind::Permission;
            if denied { wrong(e).help(help) } else { wrong(e) }
        })
    }

    /// True as long as it has not ended: its pid is its own.
    pub(crate) fn alive(&self) -> bool {
        !self.ends_within(Duration::ZERO)
    }

    /// Waits so long for its end; an end that cannot be seen has been.
    fn ends_within(&self, limit: Duration) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let Some(pidfd) = &self.pidfd else { return true };
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        poll(&mut fds, Timespec::try_from(limit).ok().as_ref()) != Ok(0)
    }

    /// Gives every privilege up that the caller does not have, for good: from here on the kernel decides what this
    /// process may trace, read, write and create, exactly as it would for the caller. An ordinary user has none;
    /// root has what its process is permitted.
    fn become_it(&self, permitted: CapabilitySet) -> Result<()> {
        let me = rustix::process::geteuid();
        let same = me.as_raw() == self.cred.uid && rustix::process::getuid() == me;
        if same && !me.is_root() {
            return Ok(());
        }
        if same {
            return limit_capabilities(permitted);
        }
        if self.cred.uid == 0 {
            return Err(Error::new(Kind::Permission, "a service of an ordinary user does not serve root")
                .help("run `crust swrk`, or use root's service"));
        }
        let refused = |e: Error| {
            e.kind_is(Kind::Permission).help("this service serves its own user only: run `crust swrk` as the caller")
        };
        // Before Linux 4.13 the groups are unknown; without them the worker has fewer rights than its caller.
        let groups = self.groups.iter().map(|g| Gid::from_raw(*g)).collect::<Vec<_>>();
        let (uid, gid) = (Uid::from_raw(self.cred.uid), Gid::from_raw(self.cred.gid));
        rustix::thread::set_thread_groups(&groups).during("taking the caller's groups").map_err(refused)?;
        rustix::thread::set_thread_res_gid(gid, gid, gid).during("taking the caller's group").map_err(refused)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).during("taking the caller's user").map_err(refused)?;
        let none = CapabilitySet::empty();
        rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
            .during("giving up our capabilities")?;
        rustix::thread::set_no_new_privs(true).during("giving up setuid programs")?;
        // The kernel has done this already; an administrator may have told it otherwise (fs.suid_dumpable). Nobody but
        // root may look into this process, or steer it: it has root's past.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).during("hiding our memory")
    }
}

/// Leaves root with those capabilities that its caller is permitted, also for programs that we become.
fn limit_capabilities(permitted: CapabilitySet) -> Result<()> {
    let own = rustix::thread::capabilities(None).during("asking for our capabilities")?;
    let kept = own.permitted & permitted;
    if kept == own.permitted {
        return Ok(());
    }
    for one in own.permitted.difference(kept).iter() {
        rustix::thread::remove_capability_from_bounding_set(one).during("giving up a capability")?;
    }
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: own.inheritable & kept },
    )
    .during("giving up capabilities that the caller does not have")
}

#[cfg(test)]
mod tests {
    use super::is_confined;

    #[test]
    fn a_label_that_confines_is_no_place_to_call_from() {
        let labels = |its: &str, ours: &str| [its, ours].map(|l| Some(l.to_owned()).filter(|l| !l.is_empty()));
        for (its, ours, confined) in [
            ("", "", false),
            ("unconfined", "unconfined", false),
            ("docker-default (enforce)", "unconfined", true),
            ("docker-default (enforce)", "docker-default (enforce)", false),
            ("unconfined", "crust (enforce)", false),
            ("unconfined_u:unconfined_r:unconfined_t:s0", "system_u:system_r:unconfined_service_t:s0", false),
            ("system_u:system_r:container_t:s0:c1,c2", "system_u:system_r:unconfined_service_t:s0", true),
            ("system_u:system_r:init_t:s0", "system_u:system_r:init_t:s0", false),
            ("_", "", true),
        ] {
            assert_eq!(is_confined(&labels(its, ours)), confined, "{its} calls {ours}");
        }
    }
}

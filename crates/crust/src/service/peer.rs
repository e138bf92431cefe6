//! The caller: who it is, its descriptors, and how a worker becomes it.
use crust_engine::{Error, Kind, Result, ResultExt};
use crust_kernel::HostTid;
use crust_kernel::peer::{PeerCred, peer_cred, peer_pidfd};
use crust_rpc::Connection;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Pid, PidfdFlags, PidfdGetfdFlags, Uid, pidfd_getfd, pidfd_open};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// Who sent the request.
#[derive(Debug)]
pub(crate) struct Peer {
    cred: PeerCred,
    /// Absent if it has ended already, or cannot be seen from here.
    pidfd: Option<OwnedFd>,
    /// Its descriptors that were fetched while we still had the right to.
    fetched: BTreeMap<i32, OwnedFd>,
}

impl Peer {
    /// Asks the socket.
    pub(crate) fn of(connection: &Connection) -> Result<Self> {
        let cred = peer_cred(connection).during("asking who the caller is")?;
        let pidfd = peer_pidfd(connection).or_else(|e| {
            // Before Linux 6.5 the pid is all there is.
            let pid = cred.pid.and_then(|p| Pid::from_raw(p.as_raw())).ok_or(e)?;
            pidfd_open(pid, PidfdFlags::empty()).map_err(std::io::Error::from)
        });
        Ok(Self { cred, pidfd: pidfd.ok(), fetched: BTreeMap::new() })
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

    /// Fetches descriptors that the request names, before [`Peer::become_it`]: an ordinary user may be kept from
    /// tracing its own processes, and these are its own descriptors in any case. What cannot be had is told when it is
    /// asked for.
    pub(crate) fn fetch(&mut self, numbers: impl IntoIterator<Item = i32>) {
        for number in numbers {
            if let Ok(fd) = self.descriptor(number) {
                self.fetched.insert(number, fd);
            }
        }
    }

    /// A copy of its descriptor `number`. Never one of ours that happens to have the same number.
    pub(crate) fn descriptor(&self, number: i32) -> Result<OwnedFd> {
        if let Some(fd) = self.fetched.get(&number) {
            return fd.try_clone().during("copying a descriptor");
        }
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
        Err(first).during(&what).map_err(wrong)
    }

    fn alive(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let Some(pidfd) = &self.pidfd else { return false };
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(0)
    }

    /// Gives every privilege up that the caller does not have, for good: from here on the kernel decides what this
    /// process may trace, read, write and create, exactly as it would for the caller. Does nothing among equals.
    pub(crate) fn become_it(&self) -> Result<()> {
        let me = rustix::process::geteuid();
        if me.as_raw() == self.cred.uid && rustix::process::getuid() == me {
            return Ok(());
        }
        if self.cred.uid == 0 {
            return Err(Error::new(Kind::Permission, "a service of an ordinary user does not serve root"));
        }
        let (uid, gid) = (Uid::from_raw(self.cred.uid), Gid::from_raw(self.cred.gid));
        let refused = |e: Error| {
            e.kind_is(Kind::Permission).help("this service serves its own user only: run `crust swrk` as the caller")
        };
        rustix::thread::set_thread_groups(&[]).during("giving up our groups").map_err(refused)?;
        rustix::thread::set_thread_res_gid(gid, gid, gid).during("taking the caller's group").map_err(refused)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).during("taking the caller's user").map_err(refused)?;
        let none = rustix::thread::CapabilitySet::empty();
        rustix::thread::set_capabilities(
            None,
            rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none },
        )
        .during("giving up our capabilities")
    }
}

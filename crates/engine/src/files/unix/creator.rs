//! Peer credentials (SO_PEERCRED): those of who made a pair, listened or connected, at that moment. So that is done again by a
//! process with that id and that user: by ourselves, or by a child that stands in for one that is gone or is not born yet.
#![allow(unsafe_code, reason = "a stand-in for a socket's creator is forked")]
use super::super::look::FdView;
use crate::{Error, Kind, Result, ResultExt};
use crust_image::proto::{CrustPeerCred, UnixSkEntry};
use crust_kernel::fork::{Fork, fork_as};
use crust_kernel::{NsTid, fd as kfd, peer, process};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, WaitOptions};

/// The credentials that a socket shows, ids as the target sees them. `None`: it has no peer, or one that the target does not see.
pub(super) fn look(v: &FdView<'_>) -> Option<CrustPeerCred> {
    let cred = peer::peer_cred(v.copy().ok()?).ok()?;
    let pid = v.inner_id(cred.pid?.as_raw()).ok()?;
    Some(CrustPeerCred { pid, uid: cred.uid, gid: cred.gid })
}

/// True if the process that opens a socket can give it its credentials by itself.
pub(in super::super) fn is(s: &UnixSkEntry, pid: i32) -> bool {
    s.crust_peer.is_none_or(|peer| i32::try_from(peer.pid) == Ok(pid))
}

/// Does what the kernel takes credentials at as the process and user that had done it. Where that cannot be, we do it as we are.
pub(super) fn act_as(peer: Option<CrustPeerCred>, act: &(impl Fn() -> Result<()> + Sync)) -> Result<()> {
    let Some(peer) = peer else { return act() };
    let own = i32::try_from(peer.pid) == Ok(rustix::process::getpid().as_raw_nonzero().get());
    let same_user = (peer.uid, peer.gid) == (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let done = match (own, same_user) {
        (true, true) => return act(),
        (true, false) => as_user(peer, act),
        (false, _) => as_stand_in(peer, act),
    };
    done.or_else(|e| {
        log::warn!("a unix socket's peer credentials (process {}, user {}) are ours now: {e}", peer.pid, peer.uid);
        act()
    })
}

/// By a thread that is that user: ids are a thread's own, so nothing else of us changes but that we count as one whom others may
/// not look at.
fn as_user(peer: CrustPeerCred, act: &(impl Fn() -> Result<()> + Sync)) -> Result<()> {
    let dumpable = rustix::process::dumpable_behavior();
    let done = std::thread::scope(|scope| {
        let as_them = || become_user(peer).and_then(|()| act());
        let thread = std::thread::Builder::new().spawn_scoped(scope, as_them).during("starting a thread")?;
        thread.join().unwrap_or_else(|_| Err(Error::new(Kind::Internal, "a thread of ours failed")))
    });
    if let Ok(dumpable @ DumpableBehavior::Dumpable) = dumpable {
        rustix::process::set_dumpable_behavior(dumpable).during("prctl PR_SET_DUMPABLE")?;
    }
    done
}

fn become_user(peer: CrustPeerCred) -> Result<()> {
    kfd::set_thread_gid(peer.gid).during("taking the group of a socket's creator")?;
    kfd::set_thread_uids(u32::MAX, peer.uid).during("taking the user of a socket's creator")
}

/// By a child with that id, which shares our descriptors and ends with us: whoever ends us when the restore takes too long also
/// ends what it waits for.
fn as_stand_in(peer: CrustPeerCred, act: &impl Fn() -> Result<()>) -> Result<()> {
    let pid = i32::try_from(peer.pid).ok().and_then(NsTid::new);
    let pid = pid.ok_or_else(|| Error::bad_image("files.img", format!("a socket of the process {}", peer.pid)))?;
    let act_as_child = || {
        become_user(peer)?;
        // Becoming another user takes that back.
        process::set_parent_death_signal(libc::SIGKILL).during("prctl PR_SET_PDEATHSIG")?;
        act()
    };
    // SAFETY: sockets are made in a process with a single thread; the child leaves at once.
    let child = match unsafe { fork_as(Some(pid), libc::CLONE_FILES as u64) }.during("forking a stand-in")? {
        Fork::Parent(child) => child,
        Fork::Child => process::exit_now(i32::from(act_as_child().is_err())),
    };
    let child = Pid::from_raw(child.as_raw()).ok_or_else(|| Error::new(Kind::Internal, "no id"))?;
    loop {
        match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) if status.exit_status() == Some(0) => return Ok(()),
            Ok(_) => return Err(Error::new(Kind::Kernel, "its stand-in could not do it")),
            Err(Errno::INTR) => {}
            Err(e) => return Err(Error::kernel("waiting for a stand-in failed", e)),
        }
    }
}

//! Namespaces of our own, also for an ordinary user.
#![allow(unsafe_code, reason = "rustix marks unshare(2) unsafe, because CLONE_FILES would break descriptor ownership")]
use rustix::thread::UnshareFlags;
use std::io;

/// Moves this process into a new user, pid (for its next children) and mount namespace, with our user as its root.
///
/// # Errors
/// `EPERM` where the kernel or its configuration forbids it, `EINVAL` with more than one thread.
pub fn own_namespaces() -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let flags = UnshareFlags::NEWUSER | UnshareFlags::NEWPID | UnshareFlags::NEWNS;
    // SAFETY: no CLONE_FILES and no CLONE_FS: descriptors and directories stay what they were to all their owners.
    unsafe { rustix::thread::unshare_unsafe(flags) }?;
    // Before the group map may be written, the right to drop groups must be given up.
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))
}

/// Moves this process into a new user and pid namespace (the latter for its next children), in which our ids stay what they
/// are. Until it runs another program it has every capability there.
///
/// # Errors
/// As [`own_namespaces`].
pub fn job_namespaces() -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let flags = UnshareFlags::NEWUSER | UnshareFlags::NEWPID;
    // SAFETY: as in `own_namespaces`.
    unsafe { rustix::thread::unshare_unsafe(flags) }?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))
}

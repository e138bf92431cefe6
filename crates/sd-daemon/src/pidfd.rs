//! The inode number of a pidfd: an identity of a process that is never reused, unlike its pid (Linux >= 6.9).
use crate::error::During;
use crate::{Error, Result, sys};
use std::os::fd::AsFd;
use std::sync::OnceLock;

const PID_FS_MAGIC: u64 = 0x5049_4446;

/// The number for `MAINPIDFDID=` of the process behind `pidfd`.
///
/// # Errors
/// `EOPNOTSUPP` on kernels whose pidfds share one inode, or whose inode numbers are too small to be unique (32 bit);
/// `EBADF` if the descriptor is no pidfd.
pub fn pidfd_inode_id(pidfd: impl AsFd) -> Result<u64> {
    if own_id().is_none() {
        let what = "pidfds have no inode numbers of their own here";
        return Err(Error::Argument { what, errno: libc::EOPNOTSUPP });
    }
    id(&pidfd)
}

/// This process's number, if the kernel has such.
pub(crate) fn own_id() -> Option<u64> {
    // A child of fork has another id than the value its parent kept.
    static OWN: OnceLock<(u32, Option<u64>)> = OnceLock::new();
    let ask = || sys::pidfd_self().ok().and_then(|fd| id(&fd).ok());
    if cfg!(not(target_pointer_width = "64")) {
        return None;
    }
    let me = std::process::id();
    match OWN.get_or_init(|| (me, ask())) {
        (pid, id) if *pid == me => *id,
        _ => ask(),
    }
}

fn id(fd: &impl AsFd) -> Result<u64> {
    let magic = sys::fs_magic(fd.as_fd()).during("asking for a pidfd's file system")?;
    if magic != PID_FS_MAGIC {
        return Err(Error::Argument { what: "not a pidfd", errno: libc::EBADF });
    }
    Ok(sys::fstat(fd.as_fd()).during("asking for a pidfd's inode")?.st_ino)
}

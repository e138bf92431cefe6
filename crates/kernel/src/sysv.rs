//! System V shared memory: shmget(2), shmat(2), shmctl(2) and /proc/sysvipc/shm.
#![allow(unsafe_code, reason = "shmat maps memory; the other calls take structures that rustix lacks")]
use rustix::io::{Errno, Result};

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn check(ret: i32) -> Result<i32> {
    if ret < 0 { Err(last()) } else { Ok(ret) }
}

/// The segment is gone when the last process lets go of it.
pub const SHM_DEST: u32 = 0o1000;
/// The segment is locked in memory.
pub const SHM_LOCKED: u32 = 0o2000;

/// One segment, as /proc/sysvipc/shm shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's own names, see proc_sysvipc(5) and shmctl(2)")]
pub struct ShmSegment {
    pub key: i32,
    pub id: i32,
    /// Permissions, [`SHM_DEST`] and [`SHM_LOCKED`].
    pub mode: u32,
    pub size: u64,
    /// Mappings of it, in all processes.
    pub attached: u64,
    pub uid: u32,
    pub gid: u32,
    pub cuid: u32,
    pub cgid: u32,
    /// When it was made or its owner changed, in seconds.
    pub changed: i64,
}

/// All segments of our IPC namespace.
///
/// # Errors
/// If /proc/sysvipc/shm cannot be read.
pub fn shm_segments() -> std::io::Result<Vec<ShmSegment>> {
    Ok(std::fs::read_to_string("/proc/sysvipc/shm")?.lines().filter_map(parse).collect())
}

/// `key shmid perms size cpid lpid nattch uid gid cuid cgid atime dtime ctime rss swap`
fn parse(line: &str) -> Option<ShmSegment> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let number = |n: usize| words.get(n)?.parse::<u32>().ok();
    Some(ShmSegment {
        key: words.first()?.parse::<i64>().ok()? as i32,
        id: words.get(1)?.parse().ok()?,
        mode: u32::from_str_radix(words.get(2)?, 8).ok()?,
        size: words.get(3)?.parse().ok()?,
        attached: words.get(6)?.parse().ok()?,
        uid: number(7)?,
        gid: number(8)?,
        cuid: number(9)?,
        cgid: number(10)?,
        changed: words.get(13)?.parse().ok()?,
    })
}

/// Makes a new segment that must not be there yet, readable and writable by us only.
///
/// # Errors
/// `EEXIST`: the key is taken. Else as shmget(2).
pub fn shm_create(key: i32, size: u64) -> Result<i32> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::shmget(key, size as usize, libc::IPC_CREAT | libc::IPC_EXCL | 0o600) })
}

/// Maps a segment anywhere; its address.
///
/// # Errors
/// As shmat(2).
pub fn shm_attach(id: i32) -> Result<u64> {
    // SAFETY: without an address the kernel takes only what is free.
    let at = unsafe { libc::shmat(id, std::ptr::null(), 0) };
    if at as isize == -1 { Err(last()) } else { Ok(at as u64) }
}

/// Gives a segment its owner and permissions.
///
/// # Errors
/// As shmctl(2).
pub fn shm_set(id: i32, uid: u32, gid: u32, mode: u32) -> Result<()> {
    // SAFETY: shmid_ds is plain memory; zero is valid for every field.
    let mut ds: libc::shmid_ds = unsafe { std::mem::zeroed() };
    ds.shm_perm.uid = uid;
    ds.shm_perm.gid = gid;
    ds.shm_perm.mode = (mode & 0o777) as _;
    // SAFETY: the kernel only reads `ds`, which lives over the call.
    check(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut ds) }).map(drop)
}

/// Removes a segment's id: it goes when nobody has it mapped.
///
/// # Errors
/// As shmctl(2).
pub fn shm_remove(id: i32) -> Result<()> {
    // SAFETY: the third argument is not used.
    check(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

/// Locks a segment in memory.
///
/// # Errors
/// As shmctl(2).
pub fn shm_lock(id: i32) -> Result<()> {
    const SHM_LOCK: i32 = 11;
    // SAFETY: the third argument is not used.
    check(unsafe { libc::shmctl(id, SHM_LOCK, std::ptr::null_mut()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_comes_and_goes() {
        let id = shm_create(libc::IPC_PRIVATE, 5000).unwrap();
        shm_set(id, 0, 0, 0o640).or_else(|e| if e == Errno::PERM { Ok(()) } else { Err(e) }).unwrap();
        let at = shm_attach(id).unwrap();
        shm_remove(id).unwrap();
        let seen = shm_segments().unwrap().into_iter().find(|s| s.id == id).unwrap();
        assert_eq!((seen.size, seen.attached, seen.mode & SHM_DEST), (5000, 1, SHM_DEST));
        // SAFETY: the mapping was made above, and nothing refers to it.
        assert_eq!(unsafe { libc::shmdt(at as *const _) }, 0);
        assert!(shm_segments().unwrap().iter().all(|s| s.id != id));
    }
}

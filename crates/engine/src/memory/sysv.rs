//! System V shared memory of the host: a segment whose attachments are all in the tree is saved with its content.
//!
//! The dump leaves the segment where it is, as the kernel does when its users die. The restore takes it back into use if it
//! is still the same and nobody else has it attached, else makes it again with its old id and key.
#![allow(unsafe_code, reason = "the content of a segment left behind is dropped by address")]
use super::collect::Mm;
use super::status as st;
use crate::Result;
use crate::error::{Error, Kind, Object, ResultExt};
use crust_image::proto::{IpcDescEntry, IpcShmEntry};
use crust_kernel::ids::PAGE_SIZE;
use crust_kernel::mman;
use crust_kernel::sysv::{self, ShmSegment};
use rustix::io::Errno;
use std::collections::BTreeMap;

/// `ids.ipc_ns_id` of a tree that lives in the dumper's IPC namespace: the number of `ipcns-shm-N.img`.
pub(super) const HOST_IPC: u64 = 3;

/// What the tree has attached: mappings of each segment, and where the first was seen.
#[derive(Debug, Default)]
pub(super) struct Attached {
    seen: BTreeMap<u64, (u64, Object)>,
}

impl Attached {
    pub(super) fn note(&mut self, pid: i32, mm: &Mm) {
        for vma in mm.vmas.iter().filter(|v| v.is(st::SYSVIPC)) {
            let first = || Object::Vma(pid, vma.entry.start, vma.entry.end);
            self.seen.entry(vma.entry.shmid).or_insert_with(|| (0, first())).0 += 1;
        }
    }

    /// The segments as records, and what keeps others from being saved.
    pub(super) fn look(&self) -> (Vec<IpcShmEntry>, Vec<Error>) {
        let (mut records, mut errors) = (Vec::new(), Vec::new());
        if self.seen.is_empty() {
            return (records, errors);
        }
        let all = sysv::shm_segments().unwrap_or_default();
        for (&id, (count, object)) in &self.seen {
            let Some(s) = all.iter().find(|s| s.id as u64 == id) else {
                errors.push(
                    Error::unsupported(
                        format!("System V shared memory segment {id} is not one of our IPC namespace"),
                        "dump from inside the program's IPC namespace",
                    )
                    .on(object.clone()),
                );
                continue;
            };
            if s.attached != *count {
                errors.push(
                    Error::unsupported(
                        format!(
                            "System V shared memory segment {id} is attached {} times, and only {count} of them are in the tree",
                            s.attached
                        ),
                        "dump the common parent of all its users",
                    )
                    .on(object.clone()),
                );
                continue;
            }
            records.push(record(s));
        }
        (records, errors)
    }
}

fn record(s: &ShmSegment) -> IpcShmEntry {
    let desc = IpcDescEntry {
        key: s.key as u32,
        uid: s.uid,
        gid: s.gid,
        cuid: s.cuid,
        cgid: s.cgid,
        mode: s.mode,
        id: s.id as u32,
    };
    IpcShmEntry { desc, size: s.size, in_pagemaps: Some(true), hugetlb_flag: None, crust_changed: Some(s.changed) }
}

/// A segment that is ready to be filled.
#[derive(Debug)]
pub(super) struct Made {
    /// Where it is mapped here.
    pub(super) base: u64,
    pub(super) len: u64,
    /// Its id, if it was made now: removed again unless the restore succeeds.
    pub(super) undo: Option<i32>,
}

/// Takes the segment back into use, or makes it again.
pub(super) fn open(e: &IpcShmEntry) -> Result<Made> {
    let (id, key) = (e.desc.id as i32, e.desc.key as i32);
    let on = |err: Error| err.on(Object::Path(format!("System V shared memory segment {id} (key {key:#x})")));
    let len = e.size.checked_next_multiple_of(PAGE_SIZE).filter(|len| *len <= super::TASK_SIZE && *len > 0);
    let len = len.ok_or_else(|| on(Error::new(Kind::BadImage, "an impossible size")))?;
    let all = sysv::shm_segments().during("reading /proc/sysvipc/shm").map_err(on)?;
    if let Some(there) = all.iter().find(|s| s.id == id) {
        let same = there.key == key && there.size == e.size && e.crust_changed.is_none_or(|c| c == there.changed);
        if !same || there.attached != 0 {
            let what = if same { "is attached by other processes" } else { "is another one now" };
            return Err(
                on(Error::new(Kind::Taken, what)).help("stop its users, and remove it with ipcrm if they leave it")
            );
        }
        let base = sysv::shm_attach(id).during("shmat").map_err(on)?;
        // What others may have written since the dump goes.
        // SAFETY: the mapping was made just now, and nothing refers to it.
        unsafe { mman::madvise(base, len, libc::MADV_REMOVE) }.during("emptying the segment").map_err(on)?;
        return Ok(Made { base, len, undo: None });
    }
    let id = create(e).map_err(on)?;
    let finished = (|| {
        sysv::shm_set(id, e.desc.uid, e.desc.gid, e.desc.mode).during("giving the segment to its owner")?;
        if e.desc.mode & sysv::SHM_LOCKED != 0 {
            sysv::shm_lock(id).during("locking the segment in memory")?;
        }
        let base = sysv::shm_attach(id).during("shmat")?;
        if e.desc.mode & sysv::SHM_DEST != 0 {
            sysv::shm_remove(id).during("marking the segment for removal")?;
            return Ok(Made { base, len, undo: None });
        }
        Ok(Made { base, len, undo: Some(id) })
    })();
    finished.map_err(|err| {
        if let Err(also) = sysv::shm_remove(id) {
            log::warn!("System V shared memory segment {id} stays: {also}");
        }
        on(err)
    })
}

/// A new segment with the id that it had. The wish for an id is the namespace's, so another restore may take it: asked again.
fn create(e: &IpcShmEntry) -> Result<i32> {
    let (id, key) = (e.desc.id as i32, e.desc.key as i32);
    let mut got = -1;
    for _ in 0..16 {
        std::fs::write("/proc/sys/kernel/shm_next_id", id.to_string())
            .during("choosing the id of the segment (/proc/sys/kernel/shm_next_id)")?;
        got = sysv::shm_create(key, e.size).map_err(|errno| {
            let err = Error::kernel("shmget failed", errno);
            match errno {
                Errno::EXIST => {
                    err.kind_is(Kind::Taken).help("its key is in use: see ipcs -m, and remove it with ipcrm")
                }
                _ => err,
            }
        })?;
        if got == id {
            return Ok(id);
        }
        sysv::shm_remove(got).during("removing a segment with another id")?;
    }
    Err(Error::new(Kind::Taken, format!("its id is not free: the kernel gave {got} instead")))
}

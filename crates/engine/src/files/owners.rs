//! Who gets SIGIO and SIGURG for a file (F_SETOWN, F_SETSIG). An owner that was not born yet when the file was opened, such as
//! a thread, is set when the tree stands.
use super::restore::FileImages;
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::{FileEntry, FownEntry};
use crust_kernel::fd as kfd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::BTreeSet;
use std::os::fd::AsFd;

/// The owner in a record.
fn of<'a>(f: &'a FileEntry, images: &'a FileImages) -> Option<&'a FownEntry> {
    let fifo = f.fifo.as_ref().and_then(|f| images.regular(f.regf_id?).ok());
    None.or(f.reg.as_ref().map(|r| &r.fown))
        .or(fifo.map(|r| &r.fown))
        .or(f.pipe.as_ref().map(|r| &r.fown))
        .or(f.usk.as_ref().map(|r| &r.fown))
        .or(f.isk.as_ref().map(|r| &r.fown))
        .or(f.nlsk.as_ref().map(|r| &r.fown))
        .or(f.psk.as_ref().map(|r| &r.fown))
        .or(f.tty.as_ref().map(|r| &r.fown))
        .or(f.efd.as_ref().map(|r| &r.fown))
        .or(f.epfd.as_ref().map(|r| &r.fown))
        .or(f.sgfd.as_ref().map(|r| &r.fown))
        .or(f.tfd.as_ref().map(|r| &r.fown))
        .or(f.ify.as_ref().map(|r| &r.fown))
        .or(f.ffy.as_ref().map(|r| &r.fown))
        .or(f.memfd.as_ref().map(|r| &r.fown))
        .or(f.pidfd.as_ref().map(|r| &r.fown))
}

/// Sets signal and owner as the user who had set them. [`Errno::SRCH`]: the owner is gone, or not there yet.
pub(super) fn set(fd: impl AsFd, fown: &FownEntry) -> Result<Option<Errno>> {
    if fown.pid == 0 && fown.signum == 0 {
        return Ok(None);
    }
    let (uid, euid) = (rustix::process::getuid().as_raw(), rustix::process::geteuid().as_raw());
    let other = fown.pid != 0 && (fown.uid, fown.euid) != (uid, euid);
    if other {
        kfd::set_thread_uids(fown.uid, fown.euid).during("becoming the owner of a file's signals")?;
    }
    let owner = kfd::Owner { kind: fown.pid_type as i32, id: fown.pid as i32, signal: fown.signum as i32 };
    let set = kfd::set_owner(fd, owner);
    if other {
        kfd::set_thread_uids(uid, euid).during("becoming ourselves again")?;
    }
    match set {
        Ok(()) => Ok(None),
        Err(Errno::SRCH) => Ok(Some(Errno::SRCH)),
        Err(e) => Err(Error::kernel("setting the owner of a file's signals failed", e)),
    }
}

impl FileImages {
    /// Sets owners that were not there when their files were opened. To be called in the coordinator when all threads of the
    /// tree stand.
    ///
    /// # Errors
    /// A descriptor of the tree cannot be reached.
    pub fn set_late_owners(&self) -> Result<()> {
        let mut done = BTreeSet::new();
        for (pid, number, file) in self.placed() {
            let Some(fown) = of(file, self).filter(|fown| fown.pid != 0) else { continue };
            if !done.insert(file.id) {
                continue;
            }
            let on = |e: Error| e.on(Object::Fd(pid, number as u32));
            let task = Pid::from_raw(pid).ok_or_else(|| Error::new(Kind::Internal, "no id"))?;
            let pidfd = pidfd_open(task, PidfdFlags::empty()).during("pidfd_open").map_err(on)?;
            let fd = pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).during("pidfd_getfd").map_err(on)?;
            if kfd::owner(&fd).is_ok_and(|owner| owner.id != 0) {
                continue;
            }
            if set(&fd, fown).map_err(on)?.is_some() {
                log::warn!(
                    "task {pid}, fd {number}: task {} that got its signals is not there: nobody gets them now",
                    fown.pid
                );
            }
        }
        Ok(())
    }
}

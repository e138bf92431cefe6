//! Working directory, root and umask (fs-PID.img), and the executable: files that no descriptor refers to.
use super::look::unreadable;
use super::regular;
use super::restore::{FileImages, Opener};
use super::table::FileTable;
use crate::images::Source;
use crate::task::Target;
use crate::{Error, Kind, Object, Options, Result, ResultExt};
use crust_image::proto::FsEntry;
use crust_kernel::procfs::Status;
use rustix::fs::{Mode, OFlags};
use std::os::fd::AsFd;

/// A link in /proc/PID that leads to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathLink {
    /// The executable.
    Exe,
    /// The working directory.
    Cwd,
    /// The root directory.
    Root,
}

impl FileTable<'_> {
    /// The id of the file that a link of the task leads to.
    ///
    /// # Errors
    /// The link cannot be followed, or the file cannot be saved.
    pub fn path_file(&mut self, t: &Target<'_>, which: PathLink) -> Result<u32> {
        let name = match which {
            PathLink::Exe => "exe",
            PathLink::Cwd => "cwd",
            PathLink::Root => "root",
        };
        let on = |e: Error| e.on(Object::Path(format!("/proc/{}/{name}", t.pid)));
        let link = t.proc.readlink(name).map_err(unreadable).map_err(on)?;
        let stat = t.proc.stat_file(name).during("following the link").map_err(on)?;
        let flags = OFlags::RDONLY.bits();
        if let Some(id) = regular::known_special(&stat, &link, flags, self.records()) {
            return Ok(id);
        }
        let fd = t.proc.open_with(name, OFlags::PATH).during("following the link").map_err(on)?;
        regular::special(fd.as_fd(), &link, flags, t, self.records()).map_err(|e| e.on(Object::Task(t.pid.as_raw())))
    }

    /// Takes working directory, root and umask of a task; they go to fs-PID.img.
    ///
    /// # Errors
    /// The task cannot be looked at, or a directory cannot be saved.
    pub fn dump_fs(&mut self, t: &Target<'_>) -> Result<FsEntry> {
        let cwd_id = self.path_file(t, PathLink::Cwd)?;
        let root_id = self.path_file(t, PathLink::Root)?;
        let status = t.proc.read_text("status").during("reading the task's status")?;
        let umask = Status::new(status).get("Umask").and_then(|m| u32::from_str_radix(m, 8).ok());
        let entry = FsEntry { cwd_id, root_id, umask };
        self.add_fs(t.ns_pid.as_raw(), entry);
        Ok(entry)
    }
}

impl FileImages {
    /// Takes the working directory, root and umask of the task `pid` (id in its namespace). Call it after everything else
    /// that opens paths.
    ///
    /// # Errors
    /// A directory is not there, or may not be entered.
    pub fn set_fs(&mut self, pid: i32, source: &Source, opts: &Options) -> Result<()> {
        let Some(entry) = self.fs.get(&pid).copied() else {
            return Err(Error::bad_image(format!("fs-{pid}.img"), "the image is missing"));
        };
        self.with_opener(source, opts, |cx| {
            let root = cx.images.regular(entry.root_id)?;
            let cwd_fd = open_dir(entry.cwd_id, cx)?;
            if root.name != b"/" {
                let root_fd = open_dir(entry.root_id, cx)?;
                let on = |e: Error| e.on(regular::path_object(root));
                rustix::process::fchdir(&root_fd).during("entering the task's root").map_err(on)?;
                rustix::process::chroot(".").during("chroot").map_err(on)?;
            }
            rustix::process::fchdir(&cwd_fd).during("entering the task's working directory")?;
            Ok(())
        })?;
        if let Some(umask) = entry.umask {
            rustix::process::umask(Mode::from_bits_retain(umask & 0o777));
        }
        Ok(())
    }
}

fn open_dir(id: u32, cx: &mut Opener<'_>) -> Result<std::os::fd::OwnedFd> {
    let fd = cx.open_id(id)?;
    let stat = rustix::fs::fstat(&fd).during("fstat")?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
        return Err(Error::new(Kind::BadImage, format!("file {id} should be a directory and is none")));
    }
    Ok(fd)
}

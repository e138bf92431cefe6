//! One descriptor of a frozen task as seen from outside: link, stat, fdinfo and a copy of the descriptor.
use crate::task::Target;
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::FownEntry;
use crust_kernel::fdinfo::FdInfo;
use crust_kernel::{HostTid, TargetFd};
use rustix::fs::{OFlags, Stat};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The descriptor. The copy shares the open file description with the target: nothing may change its position or flags.
pub(super) struct FdView<'a> {
    pub(super) target: &'a Target<'a>,
    pub(super) fd: TargetFd,
    /// Text of /proc/PID/fd/FD.
    pub(super) link: Vec<u8>,
    pub(super) stat: Stat,
    pub(super) info: FdInfo,
    copy: OwnedFd,
    /// For a file that is on its way through a socket of the target: our own id, under which `fd` is a copy of it.
    held: Option<HostTid>,
    /// The descriptor by which the target gets at the file: `fd`, or that socket.
    carrier: TargetFd,
}

impl<'a> FdView<'a> {
    /// Looks at the descriptor.
    pub(super) fn look(target: &'a Target<'a>, fd: TargetFd) -> Result<Self> {
        let on = |e: Error| e.on(Object::Fd(target.pid.as_raw(), fd.0));
        let number = i32::try_from(fd.0).map_err(|_| Error::new(Kind::Internal, "descriptor number out of range"))?;
        let copy = rustix::process::pidfd_getfd(target.pidfd, number, rustix::process::PidfdGetfdFlags::empty())
            .during("copying the descriptor (pidfd_getfd)")
            .map_err(on)?;
        let stat = rustix::fs::fstat(&copy).during("fstat").map_err(on)?;
        let link = target.proc.readlink(&format!("fd/{fd}")).during("reading the fd link").map_err(on)?;
        let info = read_fdinfo(target, fd).map_err(on)?;
        Ok(Self { target, fd, link, stat, info, copy, held: None, carrier: fd })
    }

    /// Looks at a file that waits in the queue of the target's socket `carrier`; `copy` is our descriptor for it.
    pub(super) fn held(target: &'a Target<'a>, carrier: TargetFd, copy: OwnedFd) -> Result<Self> {
        let number = copy.as_raw_fd();
        let own = HostTid::new(rustix::process::getpid().as_raw_nonzero().get())
            .ok_or_else(|| Error::new(Kind::Internal, "we have no id"))?;
        let stat = rustix::fs::fstat(&copy).during("fstat")?;
        let link = rustix::fs::readlink(format!("/proc/self/fd/{number}"), Vec::new());
        let link = link.during("reading the fd link")?.into_bytes();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).during("reading fdinfo")?;
        let info = FdInfo::parse(info).ok_or_else(|| Error::new(Kind::Internal, "fdinfo has an unknown form"))?;
        Ok(Self { target, fd: TargetFd(number.unsigned_abs()), link, stat, info, copy, held: Some(own), carrier })
    }

    /// Where the file can be compared with others (kcmp).
    pub(super) fn at(&self) -> (HostTid, TargetFd) {
        (self.held.unwrap_or(self.target.pid), self.fd)
    }

    /// The descriptor of the target by which it gets at the file.
    pub(super) fn carrier(&self) -> TargetFd {
        self.carrier
    }

    /// The copy, to be kept: what was compared with it is known by its number.
    pub(super) fn into_copy(self) -> OwnedFd {
        self.copy
    }

    /// The copy.
    pub(super) fn copy(&self) -> BorrowedFd<'_> {
        self.copy.as_fd()
    }

    /// True if the link is `anon_inode:NAME`.
    pub(super) fn is_anon(&self, name: &str) -> bool {
        self.link.strip_prefix(b"anon_inode:") == Some(name.as_bytes())
    }

    /// True if the link is a path.
    pub(super) fn is_path(&self) -> bool {
        self.link.first() == Some(&b'/')
    }

    /// True for an `O_PATH` descriptor.
    pub(super) fn is_o_path(&self) -> bool {
        self.info.flags & OFlags::PATH.bits() != 0
    }

    /// The file type bits of the mode.
    pub(super) fn file_type(&self) -> u32 {
        self.stat.st_mode & libc::S_IFMT
    }

    /// The link as text for messages.
    pub(super) fn name(&self) -> String {
        String::from_utf8_lossy(&self.link).into_owned()
    }

    /// What waits in the descriptor's queue and cannot be saved: an error, unless the caller gives it up (`--skip-in-flight`).
    pub(super) fn in_flight(&self, opts: &crate::Options, what: String) -> Result<()> {
        if opts.tcp_skip_in_flight {
            log::warn!("{self:?}: {what}: lost, as --skip-in-flight allows");
            return Ok(());
        }
        Err(Error::unsupported(what, "try again when the program has taken it, or pass `--skip-in-flight` to lose it"))
    }

    /// The object for errors.
    pub(super) fn object(&self) -> Object {
        Object::Fd(self.target.pid.as_raw(), self.carrier.0)
    }

    /// Who gets SIGIO for the file, ids as the target sees them.
    pub(super) fn fown(&self) -> Result<FownEntry> {
        if self.is_o_path() {
            return Ok(FownEntry::default());
        }
        let owner = crust_kernel::fd::owner(&self.copy).during("asking who owns the file's signals")?;
        let mut entry = FownEntry { signum: owner.signal as u32, ..FownEntry::default() };
        if owner.id != 0 {
            let (uid, euid) = crust_kernel::fd::owner_uids(&self.copy).during("asking for the owner's uids")?;
            entry.uid = uid;
            entry.euid = euid;
            entry.pid_type = owner.kind as u32;
            entry.pid = self.inner_id(owner.id)?;
        }
        Ok(entry)
    }

    /// An id of our pid namespace as the target sees it.
    pub(super) fn inner_id(&self, id: i32) -> Result<u32> {
        if self.target.pid.as_raw() == self.target.ns_pid.as_raw() {
            return Ok(id as u32);
        }
        let text = std::fs::read_to_string(format!("/proc/{id}/status")).during("reading the signal owner's status")?;
        let ids = crust_kernel::procfs::Status::new(text).numbers("NSpid").unwrap_or_default();
        ids.last().copied().ok_or_else(|| Error::new(Kind::Internal, "status has no NSpid line"))
    }
}

/// The descriptor's fdinfo file.
pub(super) fn read_fdinfo(target: &Target<'_>, fd: TargetFd) -> Result<FdInfo> {
    let bytes = target.proc.read_small(&format!("fdinfo/{fd}")).during("reading fdinfo")?;
    FdInfo::parse(String::from_utf8_lossy(&bytes).into_owned())
        .ok_or_else(|| Error::new(Kind::Internal, "fdinfo has an unknown form"))
}

impl fmt::Debug for FdView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {}, fd {} -> {}", self.target.pid, self.fd, self.name())
    }
}

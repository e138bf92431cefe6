//! One descriptor of a frozen task as seen from outside: link, stat, fdinfo and a copy of the descriptor.
use super::ids::FileKey;
use super::sockopt::{self, Fresh};
use crate::task::Target;
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::{FownEntry, SkOptsEntry};
use crust_kernel::fdinfo::FdInfo;
use crust_kernel::own_fd::{self, OwnFds};
use crust_kernel::{HostTid, TargetFd};
use rustix::fs::{OFlags, Stat};
use std::cell::Cell;
use std::collections::HashMap;
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
    /// A socket's options, if they were read along with the rest.
    options: Cell<Option<Result<SkOptsEntry>>>,
}

/// A descriptor of a task that stands still, as the task itself knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its number.
    pub fd: TargetFd,
    /// Its FD_CLOEXEC, if the task was asked; else fdinfo says it.
    pub cloexec: Option<bool>,
}

/// What a looking thread keeps from one descriptor to the next.
#[derive(Debug)]
pub(super) struct Eyes {
    own: Option<OwnFds>,
    /// The device of all pipes.
    pipefs: Option<u64>,
    /// Whether a device's files may be asked for locks: no server has to answer.
    local: HashMap<u64, bool>,
    fresh: Fresh,
}

impl Eyes {
    /// That keeps so many fdinfo files of ours open.
    pub(super) fn new(kept: usize) -> Self {
        let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).ok();
        let pipefs = pipe.and_then(|(r, _)| rustix::fs::fstat(r).ok()).map(|stat| stat.st_dev);
        // Whatever we lack here, the task's own files tell.
        Self { own: OwnFds::open(kept).ok(), pipefs, local: HashMap::new(), fresh: Fresh::default() }
    }

    fn is_local(&mut self, copy: &OwnedFd, stat: &Stat) -> bool {
        /// tmpfs, ext4, xfs, btrfs, overlayfs, proc, sysfs, anonymous inodes, sockets, pipes, devpts.
        const LOCAL: [u64; 11] = [
            0x0102_1994,
            0xef53,
            0x5846_5342,
            0x9123_683e,
            0x794c_7630,
            0x9fa0,
            0x6265_6572,
            0x0904_1934,
            0x534f_434b,
            0x5049_5045,
            0x1cd1,
        ];
        let ask = || rustix::fs::fstatfs(copy).is_ok_and(|fs| LOCAL.contains(&(fs.f_type as u64 & 0xffff_ffff)));
        Some(stat.st_dev) == self.pipefs || *self.local.entry(stat.st_dev).or_insert_with(ask)
    }

    /// Text of the link.
    fn link(&self, target: &Target<'_>, fd: TargetFd, copy: &OwnedFd, stat: &Stat) -> Result<Vec<u8>> {
        if stat.st_mode & libc::S_IFMT == libc::S_IFIFO && Some(stat.st_dev) == self.pipefs {
            return Ok(format!("pipe:[{}]", stat.st_ino).into_bytes());
        }
        if let Some(Ok(link)) = self.own.as_ref().map(|own| own.link(copy)) {
            return Ok(link);
        }
        target.proc.readlink(&format!("fd/{fd}")).during("reading the fd link")
    }

    /// The fdinfo, by way of our copy where that says all.
    fn info(&mut self, target: &Target<'_>, known: Known, copy: &OwnedFd, stat: &Stat) -> Result<FdInfo> {
        let seen = match (known.cloexec, &mut self.own) {
            (Some(cloexec), Some(own)) => own.info(copy).ok().flatten().map(|info| info.with_cloexec(cloexec)),
            _ => None,
        };
        // Locks are shown as the task has them.
        let bare = |info: &FdInfo| {
            info.get("lock").is_none()
                && (info.flags & OFlags::PATH.bits() != 0
                    || self.is_local(copy, stat) && own_fd::is_locked(copy) == Ok(false))
        };
        match seen.filter(bare) {
            Some(info) => Ok(info),
            None => read_fdinfo(target, known.fd),
        }
    }
}

impl<'a> FdView<'a> {
    /// Looks at the descriptor.
    pub(super) fn look(target: &'a Target<'a>, known: Known, eyes: &mut Eyes) -> Result<Self> {
        let fd = known.fd;
        let on = |e: Error| e.on(Object::Fd(target.pid.as_raw(), fd.0));
        let number = i32::try_from(fd.0).map_err(|_| Error::new(Kind::Internal, "descriptor number out of range"))?;
        let copy = rustix::process::pidfd_getfd(target.pidfd, number, rustix::process::PidfdGetfdFlags::empty())
            .during("copying the descriptor (pidfd_getfd)")
            .map_err(on)?;
        let stat = rustix::fs::fstat(&copy).during("fstat").map_err(on)?;
        let link = eyes.link(target, fd, &copy, &stat).map_err(on)?;
        let info = eyes.info(target, known, &copy, &stat).map_err(on)?;
        Ok(Self { target, fd, link, stat, info, copy, held: None, carrier: fd, options: Cell::new(None) })
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
        Ok(Self {
            target,
            fd: TargetFd(number.unsigned_abs()),
            link,
            stat,
            info,
            copy,
            held: Some(own),
            carrier,
            options: Cell::new(None),
        })
    }

    /// Reads what only a new file's record needs and takes many calls: a socket's options.
    pub(super) fn look_closely(&self, eyes: &mut Eyes) {
        if self.file_type() == libc::S_IFSOCK {
            self.options.set(Some(sockopt::dump(self.copy(), &mut eyes.fresh)));
        }
    }

    /// The options of a socket.
    pub(super) fn socket_options(&self, fresh: &mut Fresh) -> Result<SkOptsEntry> {
        self.options.take().unwrap_or_else(|| sockopt::dump(self.copy(), fresh))
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

    /// What tells it apart from most other open files.
    pub(super) fn key(&self) -> FileKey {
        FileKey {
            dev: self.stat.st_dev,
            ino: self.stat.st_ino,
            pos: self.info.pos,
            flags: self.info.flags,
            mnt_id: self.info.mnt_id,
            own: self.info.number("eventfd-id").unwrap_or(0),
        }
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

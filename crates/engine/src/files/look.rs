//! One descriptor of a frozen task as seen from outside: link, stat, fdinfo and a copy of the descriptor.
use super::ids::FileKey;
use super::pipe;
use super::sockopt::{self, Fresh};
use crate::task::Target;
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::{FownEntry, SkOptsEntry};
use crust_kernel::fdinfo::FdInfo;
use crust_kernel::own_fd::{self, OwnFds};
use crust_kernel::{HostTid, TargetFd};
use rustix::fs::{OFlags, Stat};
use rustix::io::Errno;
use std::cell::{Cell, OnceCell};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Why one of a task's links in /proc cannot be read.
pub(super) fn unreadable(e: Errno) -> Error {
    match e {
        Errno::NAMETOOLONG => Error::unsupported(
            "leads to a path of more than 4096 bytes, which the kernel does not tell",
            "give a directory above it a shorter name, or let the program leave it",
        ),
        e => Error::kernel("the link cannot be read", e),
    }
}

/// The descriptor. The copy shares the open file description with the target: nothing may change its position or flags.
pub(super) struct FdView<'a> {
    pub(super) target: &'a Target<'a>,
    pub(super) fd: TargetFd,
    /// Text of /proc/PID/fd/FD.
    pub(super) link: Vec<u8>,
    pub(super) stat: Stat,
    pub(super) info: FdInfo,
    /// Empty if it was given back, as what it is for was read along with the rest: then it can be had again.
    copy: OnceCell<OwnedFd>,
    /// For a file that is on its way through a socket of the target: our own id, under which `fd` is a copy of it.
    held: Option<HostTid>,
    /// The descriptor by which the target gets at the file: `fd`, or that socket.
    carrier: TargetFd,
    /// What only a new file's record needs, if it was read along with the rest.
    closely: Closely,
}

/// A socket's options, the owner of a file's signals, a pipe's content.
#[derive(Default)]
struct Closely {
    options: Cell<Option<Result<SkOptsEntry>>>,
    owner: Cell<Option<FownEntry>>,
    content: Cell<Option<pipe::Content>>,
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
    /// The inode that eventfds and other things without one of their own share.
    anonymous: Option<(u64, u64)>,
    /// Whether a device's files may be asked for locks: no server has to answer.
    local: HashMap<u64, bool>,
    /// Inodes on which nobody has a lock of a process's or an open file's own: the tree stands still.
    unlocked: HashSet<(u64, u64)>,
    scratch: pipe::Scratch,
    fresh: Fresh,
}

/// What fdinfo alone tells of files on the shared inode: the line that only these have, and where the link leads.
const TOLD_BY_FDINFO: [(&str, &str); 3] = [
    ("eventfd-count", "anon_inode:[eventfd]"),
    ("sigmask", "anon_inode:[signalfd]"),
    ("clockid", "anon_inode:[timerfd]"),
];

impl Eyes {
    /// That keeps so many files of our own /proc open.
    pub(super) fn new(kept: usize) -> Self {
        // Whatever we lack here, the task's own files tell.
        let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).ok();
        let pipefs = pipe.and_then(|(r, _)| rustix::fs::fstat(r).ok()).map(|stat| stat.st_dev);
        let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).ok();
        let anonymous = eventfd.and_then(|fd| rustix::fs::fstat(fd).ok()).map(|stat| (stat.st_dev, stat.st_ino));
        Self {
            own: OwnFds::open(kept).ok(),
            pipefs,
            anonymous,
            local: HashMap::new(),
            unlocked: HashSet::new(),
            scratch: pipe::Scratch::default(),
            fresh: Fresh::default(),
        }
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

    /// True if nobody but us has a POSIX lock or an OFD lock on the file; false where that is not known.
    fn is_unlocked(&mut self, copy: &OwnedFd, stat: &Stat) -> bool {
        let inode = (stat.st_dev, stat.st_ino);
        if self.unlocked.contains(&inode) {
            return true;
        }
        let unlocked = self.is_local(copy, stat) && own_fd::is_locked(copy) == Ok(false);
        if unlocked {
            self.unlocked.insert(inode);
        }
        unlocked
    }

    /// Text of the link.
    fn link(
        &mut self,
        target: &Target<'_>,
        fd: TargetFd,
        (copy, stat, info): (&OwnedFd, &Stat, &FdInfo),
    ) -> Result<Vec<u8>> {
        if stat.st_mode & libc::S_IFMT == libc::S_IFIFO && Some(stat.st_dev) == self.pipefs {
            return Ok(format!("pipe:[{}]", stat.st_ino).into_bytes());
        }
        if Some((stat.st_dev, stat.st_ino)) == self.anonymous
            && let Some((_, link)) = TOLD_BY_FDINFO.iter().find(|(line, _)| info.get(line).is_some())
        {
            return Ok(link.as_bytes().to_vec());
        }
        if let Some(Ok(link)) = self.own.as_mut().map(|own| own.link(copy)) {
            return Ok(link);
        }
        target.proc.readlink(&format!("fd/{fd}")).map_err(unreadable)
    }

    /// The fdinfo, by way of our copy where that says all.
    fn info(&mut self, target: &Target<'_>, known: Known, copy: &OwnedFd, stat: &Stat) -> Result<FdInfo> {
        let seen = match (known.cloexec, &mut self.own) {
            (Some(cloexec), Some(own)) => own.info(copy).ok().flatten().map(|info| info.with_cloexec(cloexec)),
            _ => None,
        };
        // Locks are shown as the task has them.
        let bare = |info: &FdInfo| {
            info.get("lock").is_none() && (info.flags & OFlags::PATH.bits() != 0 || self.is_unlocked(copy, stat))
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
        let copy = copy_of(target, fd).map_err(on)?;
        let stat = rustix::fs::fstat(&copy).during("fstat").map_err(on)?;
        let info = eyes.info(target, known, &copy, &stat).map_err(on)?;
        let link = eyes.link(target, fd, (&copy, &stat, &info)).map_err(on)?;
        let copy = OnceCell::from(copy);
        Ok(Self { target, fd, link, stat, info, copy, held: None, carrier: fd, closely: Closely::default() })
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
            copy: OnceCell::from(copy),
            held: Some(own),
            carrier,
            closely: Closely::default(),
        })
    }

    /// Reads what only a new file's record needs and takes calls. Where `still`, the task has the file at this number until it
    /// goes on, the copy is given back if nothing is left to do with it: our next copy has its number again then, for which much
    /// is at hand.
    pub(super) fn look_closely(&mut self, eyes: &mut Eyes, still: bool) {
        let Ok(copy) = self.copy() else { return };
        if self.file_type() == libc::S_IFSOCK {
            self.closely.options.set(Some(sockopt::dump(copy, &mut eyes.fresh)));
            return;
        }
        // What fails is tried again by whoever makes the record.
        self.closely.owner.set(self.fown().ok());
        let mut is_done = self.is_named_file() || TOLD_BY_FDINFO.iter().any(|(_, link)| self.link == link.as_bytes());
        if pipe::is_pipe(self) {
            let content = pipe::can_read(self).then(|| pipe::content(copy, pipe::id(self), &mut eyes.scratch));
            is_done = !matches!(content, Some(Err(_)));
            self.closely.content.set(content.and_then(Result::ok));
        }
        if is_done && still {
            self.copy = OnceCell::new();
        }
    }

    /// True for a regular file that has a name, or had one.
    fn is_named_file(&self) -> bool {
        self.file_type() == libc::S_IFREG && self.stat.st_nlink > 0 && self.is_path() && !self.is_o_path()
    }

    /// The options of a socket.
    pub(super) fn socket_options(&self, fresh: &mut Fresh) -> Result<SkOptsEntry> {
        self.closely.options.take().unwrap_or_else(|| sockopt::dump(self.copy()?, fresh))
    }

    /// The content of a pipe.
    pub(super) fn pipe_content(&self, scratch: &mut pipe::Scratch) -> Result<pipe::Content> {
        self.closely.content.take().map_or_else(|| pipe::content(self.copy()?, pipe::id(self), scratch), Ok)
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
    pub(super) fn into_copy(mut self) -> Result<OwnedFd> {
        self.copy.take().map_or_else(|| copy_of(self.target, self.fd), Ok)
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
    pub(super) fn copy(&self) -> Result<BorrowedFd<'_>> {
        if self.copy.get().is_none() {
            let again = copy_of(self.target, self.fd)?;
            return Ok(self.copy.get_or_init(|| again).as_fd());
        }
        self.copy.get().map(AsFd::as_fd).ok_or_else(|| Error::new(Kind::Internal, "a copy was lost"))
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
        if let Some(owner) = self.closely.owner.take() {
            self.closely.owner.set(Some(owner));
            return Ok(owner);
        }
        let copy = self.copy()?;
        let owner = crust_kernel::fd::owner(copy).during("asking who owns the file's signals")?;
        let mut entry = FownEntry { signum: owner.signal as u32, ..FownEntry::default() };
        if owner.id != 0 {
            let (uid, euid) = crust_kernel::fd::owner_uids(copy).during("asking for the owner's uids")?;
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

/// Our copy of a task's descriptor.
fn copy_of(target: &Target<'_>, fd: TargetFd) -> Result<OwnedFd> {
    let number = i32::try_from(fd.0).map_err(|_| Error::new(Kind::Internal, "descriptor number out of range"))?;
    rustix::process::pidfd_getfd(target.pidfd, number, rustix::process::PidfdGetfdFlags::empty())
        .during("copying the descriptor (pidfd_getfd)")
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

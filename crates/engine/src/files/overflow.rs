//! What waits unread at an inotify or a fanotify: it cannot be looked at without taking it, and not put back, but both have
//! an event that says that others were lost (IN_Q_OVERFLOW, FAN_Q_OVERFLOW), upon which a program looks at everything again.
//!
//! Dump: notes that something waited. Restore: the queue of the new instance is filled with events of files of our own until
//! it overflows, and all but the last one, which says so, are taken out again. Nothing has a name outside: files are in memory.
use super::look::FdView;
use crate::{Error, Kind, Options, Result, ResultExt, images};
use crust_image::proto::FileEntry;
use crust_kernel::notify::{Taken, fanotify_mark, fanotify_take, inotify_next, inotify_watch};
use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Longer queues are not filled: an inotify's would take a second, and 128 MiB of the kernel's memory.
const MOST: u64 = 1 << 21;
/// The limit where the kernel does not tell it (that of fanotify before Linux 5.13).
const USUAL: u64 = 16384;
/// Directories that are opened through one mount after the other.
const DIRS: u64 = 512;
/// How often a queue is filled if it did not overflow as it should.
const TRIES: u32 = 3;

/// Events with handles of files and directories, and names, instead of descriptors.
const BY_HANDLE: u32 = 0x1e00;
/// Flags of fanotify_init(2) that leave a queue as we know it. FAN_REPORT_MNT (mount namespaces) is none of them.
const KNOWN: u32 = 0x3fff;
/// FAN_CLASS_CONTENT, FAN_CLASS_PRE_CONTENT.
const CLASSES: u32 = libc::FAN_CLASS_CONTENT | libc::FAN_CLASS_PRE_CONTENT;

/// Whose queue it is; of a fanotify with the flags it was made with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Queue {
    Inotify,
    Fanotify(u32),
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inotify => "inotify",
            Self::Fanotify(_) => "fanotify",
        })
    }
}

impl Queue {
    fn event(self) -> &'static str {
        match self {
            Self::Inotify => "IN_Q_OVERFLOW",
            Self::Fanotify(_) => "FAN_Q_OVERFLOW",
        }
    }

    /// The least that read(2) gives of an event; what FIONREAD counts it as, if it has no name.
    fn event_bytes(self) -> u64 {
        match self {
            Self::Inotify => 16,
            Self::Fanotify(_) => 24,
        }
    }

    /// How many events a new queue takes, before the one that says that others were lost.
    fn limit(self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/sys/fs/{self}/max_queued_events"));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL)
    }

    /// Why such a queue cannot be made to say that events were lost, wherever it is restored.
    fn obstacle(self) -> Option<&'static str> {
        match self {
            Self::Fanotify(flags) if flags & libc::FAN_UNLIMITED_QUEUE != 0 => {
                Some("a queue without a limit (FAN_UNLIMITED_QUEUE) never says that some were lost")
            }
            Self::Fanotify(flags) if flags & CLASSES != 0 => Some("some may ask for a permission"),
            Self::Fanotify(flags) if flags & !KNOWN != 0 => Some("the group has flags that this version does not know"),
            Self::Inotify | Self::Fanotify(_) => None,
        }
    }

    /// Why it cannot be done here and now.
    fn too_long(self, limit: u64) -> Option<String> {
        (limit > MOST).then(|| {
            format!(
                "a queue of {limit} events (fs.{self}.max_queued_events) is too long to be filled until some are lost"
            )
        })
    }

    fn check_limit(self) -> Result<u64> {
        let limit = self.limit();
        match self.too_long(limit) {
            None => Ok(limit),
            Some(what) => Err(Error::unsupported(
                what,
                format!(
                    "lower fs.{self}.max_queued_events to {MOST} or less for the restore: queues that are there keep theirs"
                ),
            )),
        }
    }
}

/// Whether the queue has to begin with the loss of what waits in it.
pub(super) fn look(v: &FdView<'_>, queue: Queue, opts: &Options) -> Result<Option<bool>> {
    let waiting = rustix::io::ioctl_fionread(v.copy()?).during("asking how many events wait")?;
    if waiting == 0 {
        return Ok(None);
    }
    let what = format!("{waiting} bytes of {queue} events wait to be read, and events cannot be saved");
    // The limit is that of the machine that restores, which is likely to be this one.
    match queue.obstacle().map(str::to_owned).or_else(|| queue.too_long(queue.limit())) {
        Some(obstacle) => {
            v.in_flight(opts, format!("{what}; {obstacle}"))?;
            Ok(None)
        }
        None => {
            log::warn!("{v:?}: {what}: if restored, the program finds {} instead and must look itself", queue.event());
            Ok(Some(true))
        }
    }
}

/// What is in the way of such an event, before anything is made.
pub(super) fn check(file: &FileEntry) -> Option<Error> {
    let inotify = file.ify.as_ref().filter(|i| i.crust_overflow == Some(true)).map(|_| Queue::Inotify);
    let fanotify = file.ffy.as_ref().filter(|f| f.crust_overflow == Some(true)).map(|f| Queue::Fanotify(f.faflags));
    let queue = inotify.or(fanotify)?;
    match queue.obstacle() {
        Some(obstacle) => Some(Error::bad_image("files.img", format!("{} cannot be made: {obstacle}", queue.event()))),
        None => queue.check_limit().err(),
    }
}

/// Lets the queue of a new instance, which watches nothing yet, begin with the loss of events. Its flags must be set after.
pub(super) fn make(queue: Queue, fd: BorrowedFd<'_>) -> Result<()> {
    // Nobody may wait for an event that is not there.
    rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK).during("setting a file's flags")?;
    for _ in 0..TRIES {
        let limit = queue.check_limit()?;
        match queue {
            Queue::Inotify => fill_inotify(fd, limit)?,
            Queue::Fanotify(flags) => fill_fanotify(fd, flags, limit)?,
        }
        let waiting = rustix::io::ioctl_fionread(fd).during("asking how many events wait")? / queue.event_bytes();
        // Others where the setting changed meanwhile, or memory was short: then it may be one in the middle that says so.
        let overflows = waiting == limit + 1;
        let early = take(queue, fd, if overflows { limit } else { waiting })?;
        if overflows && !early {
            return Ok(());
        }
        take(queue, fd, u64::from(overflows))?;
    }
    Err(Error::new(Kind::Kernel, format!("the queue does not overflow, so there is no {} to be had", queue.event()))
        .help("see that the restore can have some MiB of memory more, also in the program's cgroup"))
}

/// Reads from and writes to a watched file by turns: equal events would become one. The watch goes while the queue is full,
/// which leaves no trace, and the next one has the first number again.
fn fill_inotify(fd: BorrowedFd<'_>, limit: u64) -> Result<()> {
    let memfd = rustix::fs::memfd_create("crust-events", MemfdFlags::CLOEXEC).during("memfd_create")?;
    rustix::fs::ftruncate(&memfd, 1).during("ftruncate")?;
    // Since Linux 6.14 the descriptor of memfd_create(2) raises no events.
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).during("opening a memfd again")?;
    let watch = inotify_watch(fd, memfd.as_fd(), libc::IN_ACCESS | libc::IN_MODIFY).during("inotify_add_watch")?;
    let mut byte = [0];
    for _ in 0..=limit / 2 {
        rustix::io::pread(&file, &mut byte, 0).during("reading a memfd")?;
        rustix::io::pwrite(&file, &byte, 0).during("writing to a memfd")?;
    }
    rustix::fs::inotify::remove_watch(fd, watch).during("inotify_rm_watch")?;
    inotify_next(fd, 1).during("choosing the number of a watch (INOTIFY_IOC_SETNEXTWD)")
}

/// Opens directories below a marked one, no two of which are one to the group: each is new if events tell them by handle; if
/// they bring descriptors, a path is a directory and a mount, and few of both do.
fn fill_fanotify(fd: BorrowedFd<'_>, flags: u32, limit: u64) -> Result<()> {
    const MASK: u64 = libc::FAN_OPEN | libc::FAN_ONDIR | libc::FAN_EVENT_ON_CHILD;
    let root = images::nameless_tmpfs().during("making a tmpfs")?;
    fanotify_mark(fd, libc::FAN_MARK_ADD, MASK, root.as_fd()).during("fanotify_mark")?;
    let mkdir = |name: &str| rustix::fs::mkdirat(&root, name, Mode::RWXU).during("making a directory");
    let open = |at: &OwnedFd, name: &str| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(at, name, flags, Mode::empty()).during("opening a directory").map(drop)
    };
    if flags & BY_HANDLE != 0 {
        for _ in 0..=limit {
            mkdir("new")?;
            open(&root, "new")?;
            rustix::fs::unlinkat(&root, "new", AtFlags::REMOVEDIR).during("removing a directory")?;
        }
    } else {
        let names: Vec<String> = (0..=limit).take(DIRS as usize).map(|n| n.to_string()).collect();
        names.iter().try_for_each(|name| mkdir(name))?;
        let mut left = limit + 1;
        while left > 0 {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let mount = open_tree(&root, "", flags | OpenTreeFlags::AT_EMPTY_PATH).during("copying a mount")?;
            let now = names.get(..left.min(DIRS) as usize).unwrap_or(&names);
            now.iter().try_for_each(|name| open(&mount, name))?;
            left -= now.len() as u64;
        }
    }
    fanotify_mark(fd, libc::FAN_MARK_FLUSH, 0, root.as_fd()).during("fanotify_mark (none is left)")
}

/// Takes exactly so many events; true if one of them said that others were lost.
fn take(queue: Queue, fd: BorrowedFd<'_>, count: u64) -> Result<bool> {
    let at_once = match queue {
        Queue::Inotify => 2048,
        Queue::Fanotify(flags) if flags & BY_HANDLE != 0 && flags & libc::FAN_REPORT_PIDFD == 0 => 128,
        // Descriptors come with these: not too many at a time.
        Queue::Fanotify(_) => 16,
    };
    let mut buffer = vec![0; 1 << 15];
    let (mut left, mut early, mut more) = (count, false, 0);
    while left > 0 {
        // For the shortest ones: longer ones are fewer. Where the first does not fit at all, room is made for it alone.
        let room = (left.min(at_once) * queue.event_bytes()) as usize + more;
        let room = buffer.get_mut(..room).ok_or_else(|| Error::new(Kind::Internal, "an event is too long"))?;
        let taken = match queue {
            Queue::Inotify => inotify_take(fd, room),
            Queue::Fanotify(_) => fanotify_take(fd, room),
        };
        if taken == Err(Errno::INVAL) {
            more += 4;
            continue;
        }
        let taken = taken.during("taking events of our own")?;
        let odd = || Error::new(Kind::Internal, format!("{} events were taken when there were {left}", taken.events));
        left = left.checked_sub(taken.events).filter(|_| taken.events > 0).ok_or_else(odd)?;
        early |= taken.overflow;
        more = 0;
    }
    Ok(early)
}

fn inotify_take(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> rustix::io::Result<Taken> {
    const NO_WATCH: [u8; 4] = (-1i32).to_ne_bytes();
    let len = rustix::io::read(fd, &mut *buffer)?;
    // Those of a file itself have no names.
    let mut events = buffer.get(..len).unwrap_or_default().chunks_exact(16);
    Ok(Taken { events: events.len() as u64, overflow: events.any(|event| event.starts_with(&NO_WATCH)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_image::proto::{FanotifyFileEntry, InotifyFileEntry};
    use crust_kernel::notify::fanotify_init;
    use rustix::fs::inotify::{CreateFlags, init};

    fn descriptors() -> usize {
        std::fs::read_dir("/proc/self/fdinfo").unwrap().count()
    }

    #[test]
    fn an_inotify_begins_with_the_loss_and_its_watches_with_one() {
        let fd = init(CreateFlags::CLOEXEC).unwrap();
        make(Queue::Inotify, fd.as_fd()).unwrap();
        let mut bytes = [0; 4096];
        let len = rustix::io::read(&fd, &mut bytes).unwrap();
        let overflow: Vec<u8> = [-1i32, 0x4000, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(&bytes[..len], overflow);
        let dir = rustix::fs::open("/", OFlags::PATH, Mode::empty()).unwrap();
        assert_eq!(inotify_watch(fd.as_fd(), dir.as_fd(), libc::IN_CREATE), Ok(1));
        assert_eq!(rustix::io::read(&fd, &mut bytes), Err(Errno::AGAIN));
    }

    #[test]
    fn a_fanotify_of_every_sort_begins_with_the_loss() {
        // Descriptors; with pidfds; handles of files; of directories, with names, of all, with errors as descriptors.
        for flags in [0, 0x80, 0x100, 0x200, 0x400, 0xc00, 0xe00, 0x1e00, 0xc80, 0x280, 0x2000] {
            let fd = match fanotify_init(flags | libc::FAN_CLOEXEC, 0) {
                Ok(fd) => fd,
                Err(Errno::INVAL | Errno::PERM | Errno::NOSYS) => continue,
                Err(e) => panic!("{flags:#x}: {e}"),
            };
            make(Queue::Fanotify(flags), fd.as_fd()).unwrap_or_else(|e| panic!("{flags:#x}: {e}"));
            let waiting = rustix::io::ioctl_fionread(&fd).unwrap();
            let taken = fanotify_take(fd.as_fd(), &mut [0; 4096]);
            assert_eq!((waiting, taken), (24, Ok(Taken { events: 1, overflow: true })), "{flags:#x}");
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
            assert!(!info.contains("fanotify ino"), "no mark is left: {info}");
        }
        assert!(descriptors() < 64, "descriptors that came with events are closed");
    }

    #[test]
    fn what_cannot_be_is_refused_beforehand() {
        let inotify = |overflow| {
            let ify = InotifyFileEntry { crust_overflow: overflow, ..InotifyFileEntry::default() };
            check(&FileEntry { ify: Some(Box::new(ify)), ..FileEntry::default() })
        };
        let fanotify = |faflags| {
            let ffy = FanotifyFileEntry { faflags, crust_overflow: Some(true), ..FanotifyFileEntry::default() };
            check(&FileEntry { ffy: Some(Box::new(ffy)), ..FileEntry::default() }).map(|e| e.to_string())
        };
        assert!(inotify(None).is_none() && inotify(Some(true)).is_none());
        assert!(fanotify(libc::FAN_REPORT_FID).is_none());
        for (flags, why) in [(0x10, "FAN_UNLIMITED_QUEUE"), (4, "permission"), (8, "permission"), (0x4000, "flags")] {
            assert!(fanotify(flags).is_some_and(|e| e.contains(why)), "{flags:#x}");
        }
        let long = Queue::Inotify.too_long(10_000_000).unwrap();
        assert!(long.contains("fs.inotify.max_queued_events"), "{long}");
        assert_eq!(Queue::Fanotify(0).too_long(1 << 20), None);
    }
}

//! Many descriptors of many kinds with gaps between their numbers, and some far above all others; owners of signals and locks
//! on a few of them.
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use zoo::calls::{Owner, fcntl, owner, set_owner};

const GROUPS: u64 = 24;
const FAR: i32 = 700;
/// `F_SETSIG`, `F_GETSIG`.
const SETSIG: i32 = 10;
const GETSIG: i32 = 11;

struct Group {
    event: OwnedFd,
    file: std::fs::File,
    reader: std::io::PipeReader,
    writer: std::io::PipeWriter,
    epoll: OwnedFd,
    timer: OwnedFd,
}

impl Group {
    fn all(&self) -> [i32; 6] {
        let Self { event, file, reader, writer, epoll, timer } = self;
        let fds: [&dyn AsRawFd; 6] = [event, file, reader, writer, epoll, timer];
        fds.map(AsRawFd::as_raw_fd)
    }
}

fn make(n: u64) -> Group {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC);
    let (reader, mut writer) = zoo::must(std::io::pipe());
    if n.is_multiple_of(3) {
        zoo::must(writer.write_all(&n.to_le_bytes()));
    }
    let mut file = zoo::must(std::fs::OpenOptions::new().read(true).write(true).open("data"));
    zoo::must(file.seek(SeekFrom::Start(n % 2)));
    let event = zoo::must(eventfd(n as u32, EventfdFlags::CLOEXEC));
    Group { event, file, reader, writer, epoll: zoo::must(epoll), timer: zoo::must(timer) }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::write("data", [7; 64]));
    let groups: Vec<Group> = (0..GROUPS).map(make).collect();
    // Every second group leaves gaps, and has copies far above.
    let mut kept = Vec::new();
    let mut far = Vec::new();
    for (n, group) in (0i32..).zip(groups) {
        if n % 2 == 0 {
            far.push((n as usize / 2, zoo::must(fcntl_dupfd_cloexec(&group.event, FAR + 7 * n))));
            kept.push((n as u64, group));
        }
    }
    let wanted = Owner { kind: 1, id: zoo::sys::getpid() };
    for (n, group) in &kept {
        if n.is_multiple_of(4) {
            zoo::must(set_owner(&group.event, wanted));
            zoo::must(set_owner(&group.writer, wanted));
            zoo::must(set_owner(&group.file, wanted));
            zoo::must(fcntl(&group.event, SETSIG, libc::SIGUSR2));
            zoo::must(fcntl_setfd(&group.reader, FdFlags::empty()));
        }
    }
    let Some((_, first)) = kept.first() else { return };
    zoo.get("lock", fcntl_lock(&first.file, FlockOperation::LockExclusive));
    let mut numbers: Vec<[i32; 6]> = kept.iter().map(|(_, group)| group.all()).collect();
    while zoo.gap() {
        for (n, group) in &mut kept {
            let owned = n.is_multiple_of(4);
            let has =
                [owner(&group.event), owner(&group.file), owner(&group.writer)].map(|o| o.ok().filter(|o| o.id != 0));
            zoo.eq("owners of signals", has, [owned.then_some(wanted); 3]);
            let signal = if owned { libc::SIGUSR2 } else { 0 };
            zoo.eq("signal", fcntl(&group.event, GETSIG, 0).ok(), Some(signal));
            let flags = if owned { FdFlags::empty() } else { FdFlags::CLOEXEC };
            zoo.eq("close-on-exec", fcntl_getfd(&group.reader), Ok(flags));
            zoo.eq("position", group.file.stream_position().ok(), Some(*n % 2));
            let waiting = if n.is_multiple_of(3) { 8 } else { 0 };
            zoo.eq("bytes in the pipe", rustix::io::ioctl_fionread(&group.reader), Ok(waiting));
            if waiting > 0 {
                let mut bytes = [0; 8];
                zoo.eq("from the pipe", group.reader.read(&mut bytes).ok(), Some(8));
                zoo.eq("in the pipe", u64::from_le_bytes(bytes), *n);
                zoo::must(group.writer.write_all(&bytes));
            }
        }
        for (place, copy) in &far {
            let of = kept.get(*place).map(|(_, group)| group.event.as_raw_fd());
            zoo.ok("far copies", of.is_some_and(|of| zoo::sys::same_file(of, copy.as_raw_fd())));
            zoo.eq("close-on-exec of a far copy", fcntl_getfd(copy), Ok(FdFlags::CLOEXEC));
        }
        let now: Vec<[i32; 6]> = kept.iter().map(|(_, group)| group.all()).collect();
        let alike = |a: &[i32; 6], b: &[i32; 6]| a.iter().zip(b).any(|(&a, &b)| zoo::sys::same_file(a, b));
        let distinct = now.iter().enumerate().all(|(i, a)| now.iter().skip(i + 1).all(|b| !alike(a, b)));
        zoo.ok("no two groups share", distinct);
        zoo.eq("numbers", std::mem::replace(&mut numbers, now.clone()), now);
        let child = zoo::sys::fork(|| {
            let again = std::fs::OpenOptions::new().read(true).write(true).open("data");
            i32::from(!matches!(
                again.map(|file| fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)),
                Ok(Err(_))
            ))
        });
        zoo.eq("a rival's lock is refused", zoo::sys::waitpid(child).ok(), Some(0));
    }
}

//! Leases (`--file-locks`): for reading, for writing, and two that are being broken, one to nothing and one to reading.
use rustix::fs::{Mode, OFlags, open};
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};
use zoo::calls::fcntl;
use zoo::sys::{bit, set_mask, take_signal};

const SIGNAL: i32 = 40;
/// `F_SETSIG`, `F_GETSIG`.
const SETSIG: i32 = 10;
const GETSIG: i32 = 11;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    set_mask(bit(SIGNAL) | bit(libc::SIGIO));
    let lease = |zoo: &mut zoo::Zoo, name: &str, flags: OFlags, kind: i32| -> OwnedFd {
        zoo::must(std::fs::write(name, "x"));
        let file = zoo::must(open(name, flags | OFlags::CLOEXEC, Mode::empty()));
        if let Err(e) = fcntl(&file, libc::F_SETLEASE, kind) {
            zoo.skip(&format!("no leases here: {e}"));
        }
        file
    };
    let reading = lease(&mut zoo, "reading", OFlags::RDONLY, libc::F_RDLCK);
    let writing = lease(&mut zoo, "writing", OFlags::WRONLY, libc::F_WRLCK);
    let ghost = lease(&mut zoo, "ghost", OFlags::RDWR, libc::F_WRLCK);
    zoo::must(std::fs::remove_file("ghost"));
    // How long a lease stands that is being broken is the machine's affair; a test on a busy one may take longer.
    let limit = std::fs::read_to_string("/proc/sys/fs/lease-break-time").ok().and_then(|t| t.trim().parse().ok());
    let limit = Duration::from_secs(limit.unwrap_or(45));
    let since = SystemTime::now();
    let mut broken = Vec::new();
    for (name, flags, kind, breaker, to) in [
        ("to nothing", OFlags::RDWR, libc::F_WRLCK, OFlags::WRONLY, libc::F_UNLCK),
        ("to reading", OFlags::RDWR, libc::F_WRLCK, OFlags::RDONLY, libc::F_RDLCK),
        ("of a reader", OFlags::RDONLY, libc::F_RDLCK, OFlags::WRONLY, libc::F_UNLCK),
    ] {
        let file = lease(&mut zoo, name, flags, kind);
        zoo::must(fcntl(&file, SETSIG, SIGNAL));
        let got = open(name, breaker | OFlags::NONBLOCK, Mode::empty()).err();
        zoo.eq("the breaker is told to wait", got, Some(rustix::io::Errno::AGAIN));
        zoo.eq("we are told", take_signal(bit(SIGNAL), Duration::ZERO).map(|s| s.signo), Some(SIGNAL));
        broken.push((name, file, breaker, to));
    }
    while zoo.gap() {
        let kind = |fd: &OwnedFd| fcntl(fd, libc::F_GETLEASE, 0).ok();
        zoo.eq("for reading", kind(&reading), Some(libc::F_RDLCK));
        zoo.eq("for writing", kind(&writing), Some(libc::F_WRLCK));
        zoo.eq("on a deleted file", kind(&ghost), Some(libc::F_WRLCK));
        zoo.eq(
            "nobody is told again",
            take_signal(bit(SIGNAL) | bit(libc::SIGIO), Duration::ZERO).map(|s| s.signo),
            None,
        );
        for (name, file, breaker, to) in &broken {
            zoo.eq(&format!("{name}: signal"), fcntl(file, GETSIG, 0).ok(), Some(SIGNAL));
            let owner = fcntl(file, libc::F_GETOWN, 0).ok();
            zoo.eq(&format!("{name}: owner"), owner, Some(zoo::sys::getpid()));
            let kind = kind(file);
            // Still there, and not just a kind that nobody asked for.
            let got = open(*name, *breaker | OFlags::NONBLOCK, Mode::empty()).err();
            if since.elapsed().is_ok_and(|gone| gone < limit) {
                zoo.eq(name, kind, Some(*to));
                zoo.eq(&format!("{name}: in the way"), got, Some(rustix::io::Errno::AGAIN));
            }
        }
        take_signal(bit(SIGNAL), Duration::ZERO);
    }
}

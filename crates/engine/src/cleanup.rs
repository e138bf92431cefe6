//! What crashed runs left, found and removed. Nothing that belongs to a living run is touched: its directories are locked,
//! its tasks are traced, its sockets answer, its pid files name a process, its groups name a restore at work.
use crate::images::{MANIFEST_UNDER_WAY, PARTIAL_PREFIX, remove_partial};
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_kernel::procfs::{ProcDir, Stat, Status};
use crust_kernel::{Deadline, HostTid, kcmp};
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// One thing that was found.
#[derive(Debug)]
pub struct Found {
    /// What it is, in words.
    pub what: String,
    /// `None`: it is only shown. Otherwise what removing it came to.
    pub removed: Option<Result<()>>,
}

/// Unfinished checkpoints in an image directory.
///
/// # Errors
/// The directory cannot be read.
pub fn images(dir: BorrowedFd<'_>, dry: bool) -> Result<Vec<Found>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir: OwnedFd = rustix::fs::openat(dir, ".", flags, Mode::empty()).during("opening the image directory")?;
    let mut dead = Vec::new();
    let (mut manifest, mut alive) = (false, false);
    for entry in Dir::read_from(dir.as_fd()).during("reading the image directory")? {
        let name = entry.during("reading the image directory")?.file_name().to_string_lossy().into_owned();
        manifest |= name == MANIFEST_UNDER_WAY;
        if name.starts_with(PARTIAL_PREFIX) {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let Ok(aside) = rustix::fs::openat(&dir, name.as_str(), flags, Mode::empty()) else { continue };
            match rustix::fs::flock(&aside, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => dead.push((name, Some(aside))),
                Err(_) => alive = true, // a dump that runs, or a file system that cannot say so
            }
        }
    }
    if manifest && !alive {
        dead.push((MANIFEST_UNDER_WAY.to_owned(), None));
    }
    dead.sort_by(|a, b| a.0.cmp(&b.0));
    let remove = |name: &str, aside: &Option<OwnedFd>| {
        match aside {
            Some(aside) => remove_partial(&dir, aside, name),
            None => rustix::fs::unlinkat(&dir, name, AtFlags::empty()).during("removing it")?,
        }
        match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => Ok(()),
            _ => Err(Error::new(Kind::Kernel, "it cannot be removed, see the log")),
        }
    };
    let found = dead.iter().map(|(name, aside)| Found {
        what: format!("{name}: a checkpoint that was never finished"),
        removed: (!dry).then(|| remove(name, aside)),
    });
    Ok(found.collect())
}

/// Landings and areas of dead tracers in the processes given, or in all that we may look into.
///
/// # Errors
/// A process that was named is not there.
pub fn tasks(root: Option<i32>, dry: bool) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for pid in candidates(root)? {
        let Ok(proc) = ProcDir::open(pid) else { continue };
        let Ok(status) = proc.read_text("status").map(Status::new) else { continue };
        // A kernel thread has no memory, and who is traced is in somebody's hands.
        if status.get("VmSize").is_none() || status.number("TracerPid") != Some(0) {
            continue;
        }
        let Ok(left) = crust_inject::leftovers(pid) else { continue };
        if left.is_empty() {
            continue;
        }
        let comm = proc.read("stat").ok().and_then(|s| Stat::parse(&s)).map_or_else(Vec::new, |s| s.comm);
        let area = left.area.map_or_else(String::new, |(_, len)| format!(", {} KiB of address space", len >> 10));
        let what = format!(
            "task {pid} ({}): {} landings of tracers that died{area}",
            String::from_utf8_lossy(&comm),
            left.places
        );
        found.push(Found { what, removed: (!dry).then(|| reclaim(pid)) });
    }
    Ok(found)
}

/// Control groups that restores made which were killed before their trees ran, as far as we may look for them.
pub fn groups(dry: bool) -> Vec<Found> {
    let left = crate::cgroup::mark::left_behind();
    let found = left.iter().map(|group| Found {
        what: format!("{}: made by a restore that was killed", group.object()),
        removed: (!dry).then(|| group.remove()),
    });
    found.collect()
}

/// All processes, or those of a tree.
fn candidates(root: Option<i32>) -> Result<Vec<HostTid>> {
    let Some(root) = root else {
        let me = std::process::id();
        let all = std::fs::read_dir("/proc").during("reading /proc")?.flatten();
        let ids = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        return Ok(ids.filter(|&id| id.unsigned_abs() != me).filter_map(HostTid::new).collect());
    };
    let mut tree = vec![crate::dump::find_root(root)?];
    let mut at = 0;
    while let Some(&pid) = tree.get(at) {
        at += 1;
        tree.extend(ProcDir::open(pid).and_then(|p| p.children()).unwrap_or_default());
    }
    Ok(tree)
}

fn reclaim(pid: HostTid) -> Result<()> {
    // Somebody else with the same memory could be in there and would not be stopped.
    let others = candidates(None)?.into_iter().filter(|&other| other != pid);
    if let Some(other) = others.into_iter().find(|&o| kcmp::task(pid, o, kcmp::Shared::Vm).is_ok_and(|o| o.is_eq())) {
        return Err(Error::unsupported(
            format!("it shares its memory with process {other}"),
            "end one of the two first",
        ));
    }
    // On a busy machine a thread may not have run since its tracer died, and so still have to come out of its landing.
    let patience = Deadline::after(Duration::from_secs(30));
    let mut backoff = crust_kernel::Backoff::new();
    loop {
        let mut process = crust_inject::SeizedProcess::seize(pid, Deadline::after(Duration::from_secs(10)))?;
        process.set_deadline(Deadline::after(Duration::from_secs(60)));
        let reclaimed = process.reclaim();
        process.release()?;
        match reclaimed {
            Ok(_) => return Ok(()),
            Err(e) if *e.kind() == crust_inject::Kind::Unsupported && backoff.pause(patience) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// A socket of a service that is gone.
pub fn socket(path: &Path, dry: bool) -> Option<Found> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let address = SocketAddrUnix::new(path).ok()?;
    let kinds = [SocketType::SEQPACKET, SocketType::STREAM];
    // EPROTOTYPE: somebody listens, in another way.
    let refused = kinds.iter().all(|&kind| {
        let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None);
        socket.and_then(|s| connect(&s, &address)) == Err(rustix::io::Errno::CONNREFUSED)
    });
    refused
        .then(|| Found { what: format!("{}: a socket nobody listens on", path.display()), removed: unlink(path, dry) })
}

/// A pid file whose process is gone.
pub fn pidfile(path: &Path, dry: bool) -> Option<Found> {
    let pid: i32 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
    let gone = HostTid::new(pid).is_none_or(|id| ProcDir::open(id).is_err());
    gone.then(|| Found {
        what: format!("{}: names process {pid}, which is gone", path.display()),
        removed: unlink(path, dry),
    })
}

fn unlink(path: &Path, dry: bool) -> Option<Result<()>> {
    (!dry).then(|| {
        let name = path.display().to_string();
        std::fs::remove_file(path).during("removing it").map_err(|e| e.on(Object::Path(name)))
    })
}

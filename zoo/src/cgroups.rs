//! Control groups for programs and tests: where the hierarchies are mounted, and groups below one's own.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The directory of our own group in a hierarchy: of version 2 for "", else of a version 1 controller. `None` if it is not
/// mounted here.
pub fn own(controller: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let (kind, options) = after.split_once(' ')?;
        let mut fields = before.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        let has = options.rsplit(' ').next()?.split(',').any(|o| o == controller);
        let is_it = if controller.is_empty() { kind == "cgroup2" } else { kind == "cgroup" && has };
        (is_it && root == "/").then(|| PathBuf::from(at))
    })?;
    let path = path_of("self", controller)?;
    Some(mount.join(path.trim_start_matches('/')))
}

/// The path of a task (a directory name below /proc) in a hierarchy.
pub fn path_of(task: &str, controller: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{task}/cgroup")).ok()?;
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (id, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        // A hierarchy of version 1 that is being unmounted has no names for a moment.
        let is_it = if controller.is_empty() { id == "0" } else { names.split(',').any(|n| n == controller) };
        is_it.then(|| path.to_owned())
    })
}

/// Moves the calling process into the group at `dir`.
///
/// # Errors
/// What the kernel says.
pub fn enter(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("cgroup.procs"), "0")
}

/// Removes the groups at `dir` and below, if they are there. Whoever was in them may take a moment to be gone.
///
/// # Errors
/// If one is still in use after a minute.
pub fn remove(dir: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove(&entry.path())?;
    }
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        match fs::remove_dir(dir) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && std::time::Instant::now() < end => {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
}

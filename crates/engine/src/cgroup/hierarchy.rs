//! A hierarchy by its name in /proc/PID/cgroup: membership parsed, its root opened without a mount that anybody could see.
use crate::error::{Error, Kind, Object, OnObject, Result};
use crust_kernel::{Backoff, Deadline};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// Where a task is in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Member {
    /// Empty for version 2, `name=…` for a named one, else its controllers with commas between.
    pub(super) name: String,
    /// Absolute, without a slash at its end.
    pub(super) path: Vec<u8>,
}

/// Parses /proc/PID/cgroup. In CRIU's order: by name, then path.
pub(super) fn parse(text: &[u8]) -> Vec<Member> {
    let line = |line: &[u8]| {
        let mut parts = line.splitn(3, |&b| b == b':');
        let (id, name) = (parts.next()?, String::from_utf8(parts.next()?.to_vec()).ok()?);
        // One of version 1 that is being made or unmade has no name at this moment, and nobody in it.
        if name.is_empty() && id != b"0" {
            return None;
        }
        Some(Member { name, path: parts.next()?.to_vec() })
    };
    let mut members: Vec<Member> = text.split(|&b| b == b'\n').filter_map(line).collect();
    members.sort_unstable();
    members
}

/// The hierarchy's directory in a yard, and in CRIU's.
pub(super) fn yard_name(name: &str) -> &str {
    match name {
        "" => "unified",
        name => name.strip_prefix("name=").unwrap_or(name),
    }
}

/// Opens the root of hierarchy `name`. A yard (`--cgroup-yard`) has it mounted already. A named one that does not exist
/// comes into being, and goes again when nobody uses it.
pub(super) fn open(name: &str, yard: Option<&Path>) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Some(yard) = yard {
        let dir = yard.join(yard_name(name));
        return rustix::fs::open(&dir, flags, Mode::empty())
            .map_err(|e| Error::kernel("opening a hierarchy in the cgroup yard failed", e))
            .on_path(&dir.to_string_lossy());
    }
    // A controller whose last hierarchy was unmounted a moment ago is busy until the kernel has taken that down.
    let (mut backoff, limit) = (Backoff::new(), Deadline::after(Duration::from_secs(5)));
    let refused = loop {
        match attach(name) {
            Ok(dir) => return Ok(dir),
            Err(Errno::BUSY) if backoff.pause(limit) => {}
            Err(e) => break e,
        }
    };
    // Without the right to mount, what is mounted already must do.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let opened = find_mount(&mounts, name).and_then(|at| rustix::fs::open(at, flags, Mode::empty()).ok());
    opened.ok_or_else(|| {
        let label = if name.is_empty() { "version 2" } else { name };
        Error::kernel(format!("opening the cgroup hierarchy {label} failed"), refused)
            .help("mount it, name a directory where it is mounted with --cgroup-yard, or leave cgroups alone with --manage-cgroups=ignore")
    })
}

fn attach(name: &str) -> std::result::Result<OwnedFd, Errno> {
    let context = fsopen(if name.is_empty() { "cgroup2" } else { "cgroup" }, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if let Some(own) = name.strip_prefix("name=") {
        fsconfig_set_string(&context, "name", own)?;
        fsconfig_set_flag(&context, "none")?;
    } else {
        for controller in name.split(',').filter(|c| !c.is_empty()) {
            fsconfig_set_flag(&context, controller)?;
        }
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// Where the root of a hierarchy is mounted, from /proc/self/mountinfo.
fn find_mount<'a>(mountinfo: &'a str, name: &str) -> Option<&'a str> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        let mut fields = after.split(' ');
        let (kind, options) = (fields.next()?, fields.nth(1)?);
        let is_it = match name {
            "" => kind == "cgroup2",
            name => kind == "cgroup" && name.split(',').all(|want| options.split(',').any(|has| has == want)),
        };
        (root == "/" && is_it && !at.contains('\\')).then_some(at)
    })
}

/// A path for openat(2) below a hierarchy's root.
pub(super) fn relative(path: &[u8]) -> Vec<u8> {
    let from = path.iter().position(|&b| b != b'/').unwrap_or(path.len());
    let rest = &path[from..];
    if rest.is_empty() { b".".to_vec() } else { rest.to_vec() }
}

/// True if `path` is `of` or lies below it; both absolute.
pub(super) fn is_within(path: &[u8], of: &[u8]) -> bool {
    let of = of.strip_suffix(b"/").unwrap_or(of);
    path.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// The path with every step that a walk out of our cgroup namespace would take refused.
pub(super) fn check_inside(member: &Member) -> Result<()> {
    if member.path.split(|&b| b == b'/').all(|step| step != b"..") {
        return Ok(());
    }
    let what = format!("is in cgroup {}, which is outside of our own cgroup namespace", show(member));
    Err(Error::new(Kind::Unsupported, what)
        .help("run crust in the cgroup namespace of the task's parent, or leave out --manage-cgroups=full|strict"))
}

/// A group as messages show it.
pub(super) fn show(member: &Member) -> String {
    format!("{}:{}", yard_name(&member.name), String::from_utf8_lossy(&member.path))
}

/// The same as an object of an error.
pub(super) fn object(name: &str, path: &[u8]) -> Object {
    let path = String::from_utf8_lossy(path);
    Object::Path(format!("cgroup {}:/{}", yard_name(name), path.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership_is_read_in_order() {
        let found = parse(b"9:name=systemd:/a:b\n4:cpu,cpuacct:/\n5::/\n0::/x\n");
        let want = [("", "/x"), ("cpu,cpuacct", "/"), ("name=systemd", "/a:b")];
        assert_eq!(found.len(), 3);
        for (m, (name, path)) in found.iter().zip(want) {
            assert_eq!((m.name.as_str(), m.path.as_slice()), (name, path.as_bytes()));
        }
    }

    #[test]
    fn mounts_are_found_by_what_they_hold() {
        let text = "30 1 0:1 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 - cgroup none rw,cpu,cpuacct\n\
                    31 1 0:2 /sub /elsewhere rw - cgroup2 none rw\n32 1 0:2 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    33 1 0:3 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
        assert_eq!(find_mount(text, "cpuacct,cpu"), Some("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(find_mount(text, ""), Some("/sys/fs/cgroup/unified"));
        assert_eq!(find_mount(text, "name=systemd"), Some("/sys/fs/cgroup/systemd"));
        assert_eq!(find_mount(text, "memory"), None);
    }

    #[test]
    fn paths_within_paths() {
        assert!(is_within(b"/a/b", b"/a") && is_within(b"/a", b"/a") && is_within(b"/a", b"/"));
        assert!(!is_within(b"/ab", b"/a") && !is_within(b"/", b"/a"));
        assert_eq!((relative(b"/"), relative(b"//a/b")), (b".".to_vec(), b"a/b".to_vec()));
        let outside = Member { name: String::new(), path: b"/../x".to_vec() };
        assert!(check_inside(&outside).is_err());
    }
}

//! Descriptors of namespaces (/proc/PID/ns/NAME): of those that the tree lives in.
use super::look::FdView;
use super::restore::Opener;
use super::table::Records;
use super::{FdKind, alone};
use crate::{Error, Result, ResultExt};
use crust_image::proto::{FdTypes, FileEntry, NsFileEntry};
use rustix::fs::Mode;
use std::os::fd::OwnedFd;

pub(super) static KIND: FdKind = FdKind {
    name: "namespace",
    fd_type: FdTypes::Ns,
    recognise: |v| !v.is_path() && !v.is_o_path() && sort_of(&v.link).is_some(),
    dump,
    group: alone,
    open,
};

/// A sort of namespace: its name below /proc/PID/ns, its CLONE_NEW flag, and its id in the records of our tasks, which all
/// live in the same ones.
struct Sort(&'static str, u32, u32);

const SORTS: [Sort; 8] = [
    Sort("pid", libc::CLONE_NEWPID as u32, 1),
    Sort("net", libc::CLONE_NEWNET as u32, 2),
    Sort("ipc", libc::CLONE_NEWIPC as u32, 3),
    Sort("uts", libc::CLONE_NEWUTS as u32, 4),
    Sort("time", 0x80, 5), // CLONE_NEWTIME
    Sort("mnt", libc::CLONE_NEWNS as u32, 6),
    Sort("user", libc::CLONE_NEWUSER as u32, 7),
    Sort("cgroup", libc::CLONE_NEWCGROUP as u32, 8),
];

/// `net:[4026531840]`
fn sort_of(link: &[u8]) -> Option<&'static Sort> {
    let text = std::str::from_utf8(link).ok()?;
    let (name, number) = text.split_once(":[")?;
    number.strip_suffix(']')?.parse::<u64>().ok()?;
    SORTS.iter().find(|s| s.0 == name)
}

fn dump(v: &FdView<'_>, id: u32, _: &mut Records<'_>) -> Result<FileEntry> {
    let refused = || {
        Error::unsupported(
            format!("this descriptor leads to a namespace that the program does not live in ({})", v.name()),
            "close it before the dump",
        )
    };
    let Some(Sort(name, flag, ns_id)) = sort_of(&v.link) else { return Err(refused()) };
    let own = v.target.proc.stat_file(&format!("ns/{name}")).during("looking at the task's namespace")?;
    if (own.st_dev, own.st_ino) != (v.stat.st_dev, v.stat.st_ino) {
        return Err(refused());
    }
    let nsf = NsFileEntry { id, ns_id: *ns_id, ns_cflag: *flag, flags: v.info.flags };
    Ok(FileEntry { nsf: Some(Box::new(nsf)), ..FileEntry::default() })
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    for e in entries {
        let r = cx.body(e, e.nsf.as_ref())?;
        let sort = SORTS.iter().find(|s| s.1 == r.ns_cflag);
        let Sort(name, ..) = sort.ok_or_else(|| {
            Error::bad_image("files.img", format!("file {} is a namespace of no known sort ({:#x})", e.id, r.ns_cflag))
        })?;
        let flags = super::regular::open_flags(r.flags);
        let fd = rustix::fs::open(format!("/proc/self/ns/{name}"), flags, Mode::empty())
            .during("opening a namespace of the program")?;
        opened.push((e.id, fd));
    }
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaces_are_recognised() {
        assert_eq!(sort_of(b"net:[4026531840]").map(|s| s.0), Some("net"));
        for other in [&b"pipe:[1]"[..], b"socket:[1]", b"net:[x]", b"net:[1", b"/proc/self/ns/net", b"foo:[1]"] {
            assert!(sort_of(other).is_none(), "{}", String::from_utf8_lossy(other));
        }
    }
}

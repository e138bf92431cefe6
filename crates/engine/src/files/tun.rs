//! Open /dev/net/tun files (tun and tap devices): attached to a device or to none, queues, also switched off ones.
//!
//! The device is the host's, with its addresses, routes and places in bridges. One that would go with the killed program is made
//! to stay until the restored one has it. Packets that wait for the program are lost, as on any wire.
use super::look::FdView;
use super::restore::{FileImages, Opener};
use super::table::Records;
use super::{FdKind, regular};
use crate::options::After;
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::{FdTypes, FileEntry, TunLinkEntry, TunfileEntry};
use crust_kernel::tun::{self, IFF_DETACH_QUEUE, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_PERSIST, IFF_TAP, IFF_VNET_HDR};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::OwnedFd;

pub(super) static KIND: FdKind = FdKind { name: "tun file", fd_type: FdTypes::Tunf, recognise, dump, group, open };

/// `MISC_MAJOR` of the kernel, and its number for tun.
const TUN: (u32, u32) = (10, 200);

fn recognise(v: &FdView<'_>) -> bool {
    let device = (rustix::fs::major(v.stat.st_rdev), rustix::fs::minor(v.stat.st_rdev));
    v.file_type() == libc::S_IFCHR && device == TUN && v.is_path() && !v.is_o_path()
}

fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let attached = tun::attached(v.copy()?).during("asking for a tun file's device")?;
    check_namespaces(v)?;
    let mut record = TunfileEntry { id, ..TunfileEntry::default() };
    if let Some((name, flags)) = attached {
        record.crust_link = Some(link(v, &name, flags)?);
        record.detached = (flags & IFF_DETACH_QUEUE != 0).then_some(true);
        if flags & IFF_PERSIST == 0 && !out.running {
            out.tun_devices.note(&name, v)?;
        }
        record.netdev = Some(name);
    }
    // CRIU has the path in a record of its own, under the same id.
    let mut path = regular::dump(v, id, out)?;
    path.r#type = FdTypes::Reg as i32;
    path.id = id;
    out.files.push(path);
    Ok(FileEntry { tunf: Some(Box::new(record)), ..FileEntry::default() })
}

/// The file and its device must be where a restore finds them again.
fn check_namespaces(v: &FdView<'_>) -> Result<()> {
    let (file, device) = tun::namespaces(v.copy()?)
        .during("asking for the network namespace of a tun file")
        .map_err(|e| e.help("this needs CAP_NET_ADMIN there: dump as root"))?;
    let ours = rustix::fs::stat("/proc/self/ns/net").during("looking at our network namespace")?;
    for other in [Some(file), device].into_iter().flatten() {
        if rustix::fs::fstat(other).during("fstat")?.st_ino != ours.st_ino {
            return Err(Error::unsupported(
                "a tun or tap device of another network namespace cannot be saved",
                "close it before the dump, or run crust in that namespace, and the program too",
            ));
        }
    }
    Ok(())
}

/// What is needed to attach again.
fn link(v: &FdView<'_>, name: &str, flags: u32) -> Result<TunLinkEntry> {
    let fd = v.copy()?;
    if flags & IFF_TAP != 0 && tun::has_filter(fd).during("asking for a tap device's filter")? {
        return Err(Error::unsupported(
            format!("the filter of packets at the tap device {name} cannot be saved"),
            "let the program detach it (TUNDETACHFILTER) before the dump",
        ));
    }
    let listed = tun::device(name).during("asking for a tun device")?;
    let listed = listed.ok_or_else(|| Error::new(Kind::TargetChanged, format!("the device {name} is not listed")))?;
    let (sndbuf, vnethdr) = tun::sizes(fd).during("asking for a tun device's sizes")?;
    Ok(TunLinkEntry {
        // TUNGETIFF cannot tell this one.
        flags: flags & !(IFF_NO_PI | IFF_DETACH_QUEUE) | listed.flags & IFF_NO_PI,
        owner: listed.owner,
        group: listed.group,
        vnethdr: vnethdr as u32,
        sndbuf: sndbuf as u32,
    })
}

/// Devices that end with the program, each by one of its files.
#[derive(Debug, Default)]
pub struct Devices(Vec<(String, OwnedFd)>);

impl Devices {
    fn note(&mut self, name: &str, v: &FdView<'_>) -> Result<()> {
        if !self.0.iter().any(|(known, _)| known == name) {
            self.0.push((name.to_owned(), v.copy()?.try_clone_to_owned().during("copying a descriptor")?));
        }
        Ok(())
    }

    /// Makes them stay, if the program is to be killed.
    pub(super) fn keep(self, opts: &crate::Options) -> Result<Kept> {
        let mut kept = Kept(Vec::new());
        if opts.after == After::Kill && !opts.leave_stopped {
            for (name, fd) in self.0 {
                tun::set_persistent(&fd, true).during(&format!("keeping the network device {name}"))?;
                log::info!("the network device {name} stays until the program is restored");
                kept.0.push((name, fd));
            }
        }
        Ok(kept)
    }

    /// Lets them end with the program that has them now.
    pub fn let_go(self) {
        drop(Kept(self.0));
    }
}

/// Devices that were made to stay. Dropped, it lets them end with their program again.
#[derive(Debug, Default)]
#[must_use = "dropping it lets the devices go"]
pub(super) struct Kept(Vec<(String, OwnedFd)>);

impl Kept {
    /// Leaves the devices: a checkpoint counts on them.
    pub(super) fn leave(mut self) {
        self.0.clear();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for (name, fd) in &self.0 {
            if let Err(e) = tun::set_persistent(fd, false) {
                log::warn!("the network device {name} stays when its program ends: {e}");
            }
        }
    }
}

/// Queues of one device are attached in the order of the dump.
fn group(e: &FileEntry, _: &FileImages) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    e.tunf.as_ref()?.netdev.as_ref()?.hash(&mut hasher);
    Some(hasher.finish())
}

/// Why a file cannot be attached as it was; asked before anything is made.
pub(super) fn check(file: &FileEntry) -> Option<Error> {
    let record = file.tunf.as_ref()?;
    let name = record.netdev.as_deref()?;
    let on = |e: Error| Some(e.on(Object::Path(format!("network device {name}"))));
    let Some(link) = &record.crust_link else {
        return on(Error::unsupported(
            "the image tells of the device only what belongs to a network namespace",
            "such images cannot be restored yet",
        ));
    };
    let told = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;
    let now = match tun::device(name) {
        Ok(now) => now,
        Err(e) => return on(Error::kernel("asking for the device failed", e)),
    };
    match now {
        // What an attaching file may change is no matter.
        Some(now) if (now.flags ^ link.flags) & (IFF_TAP | IFF_MULTI_QUEUE) == 0 => None,
        Some(now) => on(Error::new(
            Kind::Taken,
            format!(
                "the device has other flags than at the dump ({:#x}, not {:#x})",
                now.flags & told,
                link.flags & told
            ),
        )
        .help("remove it, and make it as it was")),
        None => on(Error::new(Kind::Kernel, "the tun or tap device that the program was attached to is not there")
            .help(format!("make it with its addresses and routes, then restore again: `{}`", remake(name, link)))),
    }
}

/// The command that makes a device.
fn remake(name: &str, link: &TunLinkEntry) -> String {
    let mode = if link.flags & IFF_TAP != 0 { "tap" } else { "tun" };
    let mut text = format!("ip tuntap add dev {name} mode {mode}");
    for (set, word) in [
        (link.flags & IFF_NO_PI == 0, " pi"),
        (link.flags & IFF_VNET_HDR != 0, " vnet_hdr"),
        (link.flags & IFF_MULTI_QUEUE != 0, " multi_queue"),
    ] {
        text += if set { word } else { "" };
    }
    for (id, word) in [(link.owner, "user"), (link.group, "group")] {
        if id != -1 {
            text += &format!(" {word} {id}");
        }
    }
    text
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    for e in entries {
        let (record, path) = (cx.body(e, e.tunf.as_ref())?, cx.body(e, e.reg.as_ref())?);
        // Signals are switched on when the file is open.
        let fd = regular::open_entry(path, Some(path.flags & !(libc::O_ASYNC as u32)), cx)?;
        cx.settle(&fd, path.flags, &path.fown)?;
        if let Some(name) = record.netdev.as_deref() {
            let link = cx.part(e, record.crust_link.as_ref())?;
            attach(&fd, name, record, link).map_err(|e| e.on(Object::Path(format!("network device {name}"))))?;
            if link.flags & IFF_PERSIST == 0 && cx.images.holder_of(e.id).is_none() {
                // It waits in a socket, where nobody finds it later.
                tun::set_persistent(&fd, false).during("letting a network device end with its program")?;
            }
        }
        opened.push((e.id, fd));
    }
    Ok(opened)
}

fn attach(fd: &OwnedFd, name: &str, record: &TunfileEntry, link: &TunLinkEntry) -> Result<()> {
    let flags = link.flags & !(IFF_PERSIST | IFF_DETACH_QUEUE);
    tun::attach(fd, name, flags).map_err(|errno| {
        let e = Error::kernel("attaching a tun file to its device failed", errno);
        match errno {
            Errno::BUSY => e.help("stop the program that is attached to it"),
            Errno::PERM => e.help("this needs CAP_NET_ADMIN, or a device that belongs to the user"),
            _ => e,
        }
    })?;
    let sizes = (link.sndbuf as i32, link.vnethdr as i32);
    tun::set_sizes(fd, sizes).during("setting a tun device's sizes")?;
    if record.detached == Some(true) {
        tun::detach_queue(fd).during("switching a tun device's queue off")?;
    }
    Ok(())
}

impl FileImages {
    /// Devices of the restored tree that are to end with it; to be let go when it is complete. Until then they stay, for another try.
    ///
    /// # Errors
    /// A descriptor of the tree cannot be reached.
    pub fn kept_devices(&self) -> Result<Devices> {
        let mut kept = Devices::default();
        let mut done = BTreeSet::new();
        for (pid, number, file) in self.placed() {
            let Some(record) = file.tunf.as_ref().filter(|_| done.insert(file.id)) else { continue };
            let (Some(name), Some(link)) = (&record.netdev, &record.crust_link) else { continue };
            if link.flags & IFF_PERSIST != 0 {
                continue;
            }
            let on = |e: Error| e.on(Object::Fd(pid, number as u32));
            let task = Pid::from_raw(pid).ok_or_else(|| Error::new(Kind::Internal, "no id"))?;
            let pidfd = pidfd_open(task, PidfdFlags::empty()).during("pidfd_open").map_err(on)?;
            let fd = pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).during("pidfd_getfd").map_err(on)?;
            kept.0.push((name.clone(), fd));
        }
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_makes_the_same_device() {
        let link = TunLinkEntry { flags: IFF_TAP | IFF_MULTI_QUEUE, owner: 7, group: -1, vnethdr: 10, sndbuf: 1 };
        assert_eq!(remake("t0", &link), "ip tuntap add dev t0 mode tap pi multi_queue user 7");
        let link = TunLinkEntry { flags: 1 | IFF_NO_PI | IFF_VNET_HDR, owner: -1, group: 8, ..link };
        assert_eq!(remake("t1", &link), "ip tuntap add dev t1 mode tun vnet_hdr group 8");
    }
}

//! memfd_create(2): a file in memory with a name of its own, seals, and content that goes to pagemap-shmem-N.img.
use super::FdKind;
use super::look::FdView;
use super::regular::{self, By, Seen};
use super::restore::{FileImages, Opener};
use super::table::{FileTable, Records};
use crate::images::{Partial, Source};
use crate::{Error, Kind, Object, Result, ResultExt, memory};
use crust_image::ImageKind;
use crust_image::proto::{FdTypes, FileEntry, MemfdFileEntry, MemfdInodeEntry};
use rustix::fs::{MemfdFlags, Mode, SealFlags, SeekFrom, Stat};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::OnceLock;

pub(super) static KIND: FdKind = FdKind {
    name: "memfd",
    fd_type: FdTypes::Memfd,
    recognise: |v| is_shmem(&v.link, &v.stat) && !v.is_o_path(),
    dump,
    group,
    open,
};

/// Page images of memfds have numbers from here on, out of the way of those of processes.
const FIRST_PAGES_ID: u32 = 1 << 20;

/// True for the link of a memfd. A real path could look the same only below a directory of that odd name.
fn is_memfd(link: &[u8]) -> bool {
    link.starts_with(b"/memfd:") && link.ends_with(b" (deleted)")
}

/// What a descriptor for anonymous shared memory leads to. It can be had through /proc/PID/map_files.
const ANONYMOUS: &[u8] = b"/dev/zero (deleted)";

/// True for a memfd, and for anonymous shared memory that has become a file: CRIU stores both as memfds.
pub(super) fn is_shmem(link: &[u8], stat: &Stat) -> bool {
    let nameless = stat.st_nlink == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    nameless && (is_memfd(link) || link == ANONYMOUS && Some(stat.st_dev) == shmem_device())
}

/// Deleted files of the kernel's own tmpfs that have no path to be made again at.
pub(super) fn refuse_foreign(name: &str, stat: &Stat) -> Result<()> {
    if Some(stat.st_dev) != shmem_device() {
        return Ok(());
    }
    Err(Error::unsupported(
        format!("{name} is a descriptor of shared memory that is no memfd"),
        "close it before the dump",
    ))
}

/// The device of the kernel's own tmpfs, where memfds and shared anonymous memory live.
fn shmem_device() -> Option<u64> {
    static DEVICE: OnceLock<Option<u64>> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let file = rustix::fs::memfd_create("crust-probe", MemfdFlags::CLOEXEC).ok()?;
        Some(rustix::fs::fstat(&file).ok()?.st_dev)
    })
}

/// A memfd whose content is to be written.
#[derive(Debug)]
pub(super) struct Inode {
    entry: MemfdInodeEntry,
    content: OwnedFd,
}

fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let seen = Seen {
        link: &v.link,
        stat: &v.stat,
        mnt_id: v.info.mnt_id,
        by: By::View(v),
        flags: v.info.flags,
        pos: v.info.pos,
        fown: v.fown()?,
        code: false,
    };
    entry(&seen, id, out)
}

/// The record of an open memfd, by whatever way it was found; notes its inode.
pub(super) fn entry(seen: &Seen<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let inode_id = inode(seen, out)?;
    let memfd = MemfdFileEntry { id, flags: seen.flags, pos: seen.pos, fown: seen.fown, inode_id };
    Ok(FileEntry { r#type: FdTypes::Memfd as i32, id, memfd: Some(Box::new(memfd)), ..FileEntry::default() })
}

fn inode(seen: &Seen<'_>, out: &mut Records<'_>) -> Result<u32> {
    let stat = seen.stat;
    if let Some(known) = out.memfd_of.get(&(stat.st_dev, stat.st_ino)) {
        return Ok(*known);
    }
    let name = seen.link.strip_suffix(b" (deleted)").unwrap_or(seen.link);
    let name = name.strip_prefix(b"/memfd:").or_else(|| name.strip_prefix(b"/")).unwrap_or(name);
    let page = stat.st_blksize as u64;
    let huge = page > crust_kernel::ids::PAGE_SIZE;
    let hugetlb_flag = huge.then(|| libc::MFD_HUGETLB | page.trailing_zeros() << libc::MFD_HUGE_SHIFT);
    let content = regular::reopen_for_reading(seen.fd()?).during("opening a memfd to read it")?;
    let seals = rustix::fs::fcntl_get_seals(&content).during("asking for a memfd's seals")?;
    let inode_id = out.memfds.len() as u32 + 1;
    let entry = MemfdInodeEntry {
        name: name.to_vec(),
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size as u64,
        // Inode numbers of shared memory are not reused while the inode lives, and fit in practice.
        shmid: stat.st_ino as u32,
        seals: seals.bits(),
        inode_id: inode_id.into(),
        hugetlb_flag,
        mode: Some(stat.st_mode & 0o7777),
    };
    out.memfds.push(Inode { entry, content });
    out.memfd_of.insert((stat.st_dev, stat.st_ino), inode_id);
    Ok(inode_id)
}

impl FileTable<'_> {
    /// Numbers of anonymous shared segments that descriptors or private mappings lead to as well. Their mappings must be
    /// those of a file then, or they would show another segment after the restore.
    pub(crate) fn segments_with_files(&self) -> BTreeSet<u64> {
        let anonymous = ANONYMOUS.strip_prefix(b"/").and_then(|n| n.strip_suffix(b" (deleted)"));
        let memfds = self.memfds().iter().filter(|m| Some(m.entry.name.as_slice()) == anonymous);
        memfds.map(|m| u64::from(m.entry.shmid)).collect()
    }

    /// The id of a file for mappings of such a segment.
    ///
    /// # Errors
    /// There is none of that number.
    pub(crate) fn segment_file(&mut self, segment: u64) -> Result<u32> {
        let found = self.memfds().iter().find(|m| u64::from(m.entry.shmid) == segment);
        let missing = || Error::new(Kind::Internal, format!("no file for shared segment {segment}"));
        let inode_id = found.and_then(|m| u32::try_from(m.entry.inode_id).ok()).ok_or_else(missing)?;
        let out = self.records();
        let id = out.new_id();
        let memfd = MemfdFileEntry { id, inode_id, ..MemfdFileEntry::default() };
        out.files.push(FileEntry {
            r#type: FdTypes::Memfd as i32,
            id,
            memfd: Some(Box::new(memfd)),
            ..FileEntry::default()
        });
        Ok(id)
    }
}

/// Writes memfd.img and the content of each; tells how many pages that was.
pub(super) fn write(memfds: &[Inode], out: &Partial) -> Result<memory::PageCount> {
    let mut count = memory::PageCount::default();
    if memfds.is_empty() {
        return Ok(count);
    }
    out.put_all(ImageKind::MemfdInode, 0, memfds.iter().map(|m| &m.entry))?;
    for (n, m) in memfds.iter().enumerate() {
        let pages_id = FIRST_PAGES_ID + n as u32;
        let mut file = out.outlet(&ImageKind::Pages.file_name(pages_id.into()))?;
        let pages = memory::dump_file(m.content.as_fd(), m.entry.size, &mut file)?;
        out.close(file)?;
        let name = ImageKind::ShmemPagemap.file_name(m.entry.shmid.into());
        out.put(&name, &pages.pagemap(ImageKind::ShmemPagemap, pages_id)?)?;
        count.add(&pages);
    }
    Ok(count)
}

/// Makes sure that a memfd's images are at hand.
pub(super) fn fetch(memfd: &MemfdInodeEntry, source: &Source) -> Result<()> {
    memory::Pages::read(source, ImageKind::ShmemPagemap, memfd.shmid.into()).map(drop)
}

fn group(e: &FileEntry, _: &FileImages) -> Option<u64> {
    e.memfd.as_ref().map(|m| u64::from(m.inode_id))
}

/// A memfd made for the tree.
#[derive(Debug)]
pub(super) struct Made {
    /// What memfd_create(2) returned. It does not count as open for writing, as anything opened later does: such a file can be
    /// executed.
    pub(super) held: OwnedFd,
    /// The process that made it, and has not given that to the program yet.
    maker: Option<u32>,
}

impl Made {
    /// The held descriptor's file, for whoever made it and asks first.
    fn original(&mut self) -> rustix::io::Result<Option<OwnedFd>> {
        if self.maker != Some(std::process::id()) {
            return Ok(None);
        }
        self.maker = None;
        let fd = rustix::io::fcntl_dupfd_cloexec(&self.held, 0)?;
        rustix::fs::seek(&fd, SeekFrom::Start(0))?;
        Ok(Some(fd))
    }
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    for e in entries {
        let r = cx.body(e, e.memfd.as_ref())?;
        if !cx.state.memfds.contains_key(&r.inode_id) {
            let made = make(r.inode_id, cx)?;
            let made = Made { held: cx.hold(made)?, maker: Some(std::process::id()) };
            cx.state.memfds.insert(r.inode_id, made);
        }
        let made = cx.state.memfds.get_mut(&r.inode_id);
        let base = made.as_ref().map_or(-1, |made| made.held.as_raw_fd());
        let writes = r.flags & libc::O_ACCMODE as u32 == libc::O_RDWR as u32;
        let original = made.filter(|_| writes).map_or(Ok(None), Made::original).during("handing out a memfd")?;
        let fd = match original {
            Some(fd) => fd,
            None => cx.reopen_number(base, r.flags)?,
        };
        if r.pos != 0 {
            rustix::fs::seek(&fd, SeekFrom::Start(r.pos)).during("setting the position")?;
        }
        cx.settle(&fd, r.flags, &r.fown)?;
        opened.push((e.id, fd));
    }
    Ok(opened)
}

fn make(inode_id: u32, cx: &Opener<'_>) -> Result<OwnedFd> {
    let Some(m) = cx.images.memfds.get(&inode_id) else {
        return Err(Error::bad_image("memfd.img", format!("memfd {inode_id} is missing")));
    };
    let on = |e: Error| e.on(Object::Path(format!("memfd {}", String::from_utf8_lossy(&m.name))));
    let huge = m.hugetlb_flag.unwrap_or(0);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::from_bits_retain(huge);
    let pool = |e: Error| match huge {
        0 => e,
        _ => e.help(
            "the pool of huge pages may be too small: raise nr_hugepages in /sys/kernel/mm/hugepages/hugepages-*",
        ),
    };
    let fd = rustix::fs::memfd_create(m.name.as_slice(), flags).during("memfd_create").map_err(on).map_err(pool)?;
    rustix::fs::ftruncate(&fd, m.size).during("sizing a memfd").map_err(on)?;
    memory::fill_file(cx.source, ImageKind::ShmemPagemap, m.shmid.into(), fd.as_fd(), m.size)
        .map_err(on)
        .map_err(pool)?;
    let stat = rustix::fs::fstat(&fd).during("fstat")?;
    if let Some(mode) = m.mode.filter(|mode| mode & 0o7777 != stat.st_mode & 0o7777) {
        rustix::fs::fchmod(&fd, Mode::from_bits_retain(mode & 0o7777)).during("setting a memfd's mode").map_err(on)?;
    }
    if (stat.st_uid, stat.st_gid) != (m.uid, m.gid) {
        let (uid, gid) = (rustix::fs::Uid::from_raw(m.uid), rustix::fs::Gid::from_raw(m.gid));
        rustix::fs::fchown(&fd, Some(uid), Some(gid)).during("giving a memfd to its owner").map_err(on)?;
    }
    let seals = SealFlags::from_bits_retain(m.seals);
    if !seals.is_empty() {
        rustix::fs::fcntl_add_seals(&fd, seals).during("sealing a memfd").map_err(on)?;
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(is_memfd(b"/memfd:a b (deleted)") && !is_memfd(b"/memfd:x") && !is_memfd(b"/tmp/x (deleted)"));
    }
}

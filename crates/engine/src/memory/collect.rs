//! What a frozen process has mapped, as CRIU's records; and what of it cannot be saved, by name.
use super::aio;
use super::hugetlb;
use super::pages::{Run, Selection, Selector};
use super::status as st;
use crate::error::{Error, Kind, Object, ResultExt};
use crate::task::Target;
use crate::{OnObject, Result};
use crust_image::proto::{CrustVmaName, MmEntry, VmaEntry};
use crust_kernel::ids::PAGE_SIZE;
use crust_kernel::maps::{self, Mapping, VmFlag};
use crust_kernel::procfs::{Stat, Status};
use rustix::io::Errno;
use std::collections::HashMap;
use std::sync::OnceLock;

/// Who turns mapped files into ids of files.img.
pub trait FileIds {
    /// The id of the file behind a mapping. Called once for each file, not for each mapping.
    ///
    /// # Errors
    /// If the file cannot be saved.
    fn map_file(&mut self, target: &Target<'_>, mapping: &Mapping) -> Result<u32>;
    /// The id of the process's executable.
    ///
    /// # Errors
    /// If the file cannot be saved.
    fn exe(&mut self, target: &Target<'_>) -> Result<u32>;
}

/// One mapping: the record, and what the kernel printed.
#[derive(Clone, Debug)]
pub struct Vma {
    /// As it goes into the image.
    pub entry: VmaEntry,
    /// As found.
    pub mapping: Mapping,
}

impl Vma {
    /// True if all of the status bits are set.
    pub fn is(&self, status: u32) -> bool {
        self.entry.status & status == status
    }
}

/// The memory of one process.
#[derive(Debug)]
pub struct Mm {
    /// All mappings in address order; `[vvar]` and its neighbours are one.
    pub vmas: Vec<Vma>,
    /// Regions made by MADV_GUARD_INSTALL.
    pub guards: Vec<(u64, u64)>,
    /// Pages whose content belongs into the images, in address order.
    pub(super) runs: Vec<Run>,
    /// Pages looked at.
    pub(super) scanned: u64,
    /// The record without its mappings. Whoever can ask the task sets `mm_brk` and `dumpable` to what it says.
    pub entry: MmEntry,
}

impl Mm {
    /// Makes the mappings of an anonymous shared segment those of a file: descriptors lead to it, too.
    pub fn show_file(&mut self, segment: u64, file_id: u32) {
        for vma in self.vmas.iter_mut().filter(|v| v.is(st::ANON_SHARED) && !v.is(st::SYSVIPC)) {
            let e = &mut vma.entry;
            if e.shmid == segment {
                e.status = e.status & !st::ANON_SHARED | st::FILE_SHARED | st::MEMFD;
                e.flags &= !(libc::MAP_ANONYMOUS as u32);
                e.fdflags = Some(libc::O_RDWR as u32);
                e.shmid = u64::from(file_id);
            }
        }
    }

    /// Says of a shared segment how long it is.
    pub fn show_length(&mut self, segment: u64, bytes: u64) {
        let of_it = |v: &&mut Vma| v.is(st::ANON_SHARED) && !v.is(st::SYSVIPC) && v.entry.shmid == segment;
        for vma in self.vmas.iter_mut().filter(of_it) {
            vma.entry.crust_segment_bytes = Some(bytes);
        }
    }

    /// The record with all mappings in it.
    pub fn record(&self) -> MmEntry {
        let mut entry = self.entry.clone();
        entry.vmas = self.vmas.iter().map(|v| v.entry).collect();
        // CRIU lists guards behind all mappings, as mappings without protection and flags.
        entry.vmas.extend(self.guards.iter().map(|&(start, end)| VmaEntry {
            start,
            end,
            status: st::GUARD,
            fd: -1,
            ..VmaEntry::default()
        }));
        entry
    }
}

/// Reads everything about the memory of `t` except the content of its pages.
///
/// # Errors
/// [`Kind::Unsupported`] names the first mapping of each sort that cannot be restored, all in one report.
pub fn collect(t: &Target<'_>, files: &mut dyn FileIds) -> Result<Mm> {
    let pid = t.pid.as_raw();
    read(t, files).on_task(pid)
}

fn read(t: &Target<'_>, files: &mut dyn FileIds) -> Result<Mm> {
    let text = t.proc.read("stat").during("reading stat")?;
    let stat = Stat::parse(&text).ok_or_else(|| Error::new(Kind::Internal, "/proc/PID/stat has another form"))?;
    let mut reading = Reading::new(t, &mut *files, stat.resident_pages)?;
    match maps::each_of_smaps(t.proc, stat.resident_pages, |mapping| reading.take(mapping)) {
        Err(Errno::NOENT) => {
            reading.pages = Selector::new(t, None)?;
            maps::read_maps(t.proc).map(|all| all.into_iter().for_each(|mapping| reading.take(mapping)))
        }
        other => other,
    }
    .during("reading the mappings")?;
    let (vmas, pages) = reading.finish()?;
    Ok(Mm {
        entry: mm_fields(t, &stat, &vmas, files)?,
        vmas,
        guards: pages.guards,
        runs: pages.runs,
        scanned: pages.scanned,
    })
}

/// After so many mappings their pages are looked for, while the kernel goes on printing others.
const TOGETHER: usize = 256;

/// The mappings of a process, taken one after the other.
struct Reading<'a, 'b> {
    t: &'a Target<'b>,
    files: &'a mut dyn FileIds,
    ids: FileCache,
    vmas: Vec<Vma>,
    /// For how many of them pages were looked for.
    walked: usize,
    pages: Selector,
    refused: Vec<Error>,
    /// Nothing more is taken.
    failed: Option<Error>,
}

impl<'a, 'b> Reading<'a, 'b> {
    fn new(t: &'a Target<'b>, files: &'a mut dyn FileIds, resident_pages: u64) -> Result<Self> {
        Ok(Self {
            t,
            files,
            ids: FileCache { known: HashMap::new(), last: None },
            vmas: Vec::new(),
            walked: 0,
            pages: Selector::new(t, Some(resident_pages))?,
            refused: Vec::new(),
            failed: None,
        })
    }

    fn take(&mut self, mapping: Mapping) {
        if self.failed.is_none() {
            self.failed = self.try_take(mapping).err();
        }
    }

    fn try_take(&mut self, mapping: Mapping) -> Result<()> {
        let classified = classify(&mapping).and_then(|entry| {
            if entry.status & st::AIORING != 0 {
                aio::look(self.t, &entry)?;
            }
            Ok(entry)
        });
        let mut entry = match classified {
            Ok(entry) => entry,
            Err(error) => {
                let object = Object::Vma(self.t.pid.as_raw(), mapping.start, mapping.end);
                if self.refused.len() < 16 {
                    self.refused.push(error.on(object));
                }
                return Ok(());
            }
        };
        if entry.status & (st::FILE_PRIVATE | st::FILE_SHARED) != 0 {
            let id = self.ids.id(self.t, &mapping, self.files)?;
            entry.shmid = u64::from(id);
        }
        match self.vmas.last_mut() {
            // The kernel shows the vDSO's data as several mappings, how many depends on its version; images have one.
            Some(last) if last.is(st::VVAR) && entry.status & st::VVAR != 0 && last.entry.end == entry.start => {
                last.entry.end = entry.end;
            }
            _ => self.vmas.push(Vma { entry, mapping }),
        }
        // The last one may still grow.
        if self.vmas.len() > self.walked + TOGETHER { self.walk(self.vmas.len() - 1) } else { Ok(()) }
    }

    fn walk(&mut self, to: usize) -> Result<()> {
        self.pages.walk(&self.vmas[self.walked..to])?;
        self.walked = to;
        Ok(())
    }

    fn finish(mut self) -> Result<(Vec<Vma>, Selection)> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if let Some(error) = Error::all(std::mem::take(&mut self.refused)) {
            return Err(error);
        }
        if self.vmas.is_empty() {
            return Err(Error::new(Kind::TargetChanged, "the process has no memory any more"));
        }
        self.walk(self.vmas.len())?;
        Ok((self.vmas, self.pages.finish()))
    }
}

/// Device, inode and path: a file may be mapped by several names.
type FileKey = ((u32, u32), u64, Vec<u8>);

/// Asks for each file once. Neighbouring mappings mostly show the same file, so the last answer is kept at hand.
struct FileCache {
    known: HashMap<FileKey, u32>,
    last: Option<(FileKey, u32)>,
}

impl FileCache {
    fn id(&mut self, t: &Target<'_>, m: &Mapping, files: &mut dyn FileIds) -> Result<u32> {
        if let Some((key, id)) = &self.last
            && (key.0, key.1) == (m.dev, m.inode)
            && key.2 == m.name
        {
            return Ok(*id);
        }
        let key = (m.dev, m.inode, m.name.clone());
        let id = match self.known.get(&key) {
            Some(&id) => id,
            None => files.map_file(t, m).map_err(|e| e.on(Object::Vma(t.pid.as_raw(), m.start, m.end)))?,
        };
        self.known.insert(key.clone(), id);
        self.last = Some((key, id));
        Ok(id)
    }
}

fn unsupported(what: &str, help: &str) -> Error {
    Error::unsupported(format!("{what} cannot be saved"), help)
}

/// What `m` is, as the image says it.
fn classify(m: &Mapping) -> Result<VmaEntry> {
    let mut entry = with_flags(m);
    if let Some(status) = made_by_the_kernel(m)? {
        entry.status = status;
        entry.flags |= libc::MAP_ANONYMOUS as u32;
        if m.name.starts_with(b"[vvar") {
            // Io and PfnMap, as the kernel makes it: advice on it is refused.
            entry.madv = entry.madv.map(|bits| bits & 1 << libc::MADV_DONTDUMP);
        }
        return Ok(entry);
    }
    if m.detail.is_some_and(|d| d.flags.unknown != [0; 2]) {
        log::warn!("mapping {:#x}-{:#x} has a flag this version does not know; it will be lost", m.start, m.end);
    }
    refuse(m)?;
    if m.inode == 0 && !m.name.starts_with(b"/") {
        // Plain, [heap], [stack], [anon:NAME].
        entry.status |= st::ANON_PRIVATE;
        entry.flags |= libc::MAP_ANONYMOUS as u32;
        if m.name == b"[heap]" {
            entry.status |= st::HEAP;
        }
        if m.has(VmFlag::Droppable) {
            entry.flags = entry.flags & !(libc::MAP_PRIVATE as u32) | MAP_DROPPABLE;
        }
    } else {
        of_a_file(m, &mut entry);
    }
    Ok(entry)
}

/// Place, protection, flags and advice.
fn with_flags(m: &Mapping) -> VmaEntry {
    let mut entry = VmaEntry {
        start: m.start,
        end: m.end,
        pgoff: m.offset,
        prot: protection(m),
        flags: if m.shared { libc::MAP_SHARED as u32 } else { libc::MAP_PRIVATE as u32 },
        status: st::REGULAR,
        fd: -1,
        ..VmaEntry::default()
    };
    for (flag, bit) in [
        (VmFlag::GrowsDown, libc::MAP_GROWSDOWN),
        (VmFlag::Locked, libc::MAP_LOCKED),
        (VmFlag::NoReserve, libc::MAP_NORESERVE),
    ] {
        if m.has(flag) {
            entry.flags |= bit as u32;
        }
    }
    let mut madv = 0u64;
    for (flag, advice) in [
        (VmFlag::Sequential, libc::MADV_SEQUENTIAL),
        (VmFlag::Random, libc::MADV_RANDOM),
        (VmFlag::DontCopy, libc::MADV_DONTFORK),
        (VmFlag::DontDump, libc::MADV_DONTDUMP),
        (VmFlag::Mergeable, libc::MADV_MERGEABLE),
        (VmFlag::HugePage, libc::MADV_HUGEPAGE),
        (VmFlag::NoHugePage, libc::MADV_NOHUGEPAGE),
        (VmFlag::WipeOnFork, libc::MADV_WIPEONFORK),
    ] {
        if m.has(flag) {
            madv |= 1 << advice;
        }
    }
    entry.madv = (madv != 0).then_some(madv);
    let ours = [(VmFlag::Sealed, SEALED), (VmFlag::LockOnFault, LOCK_ON_FAULT)];
    let ours = ours.iter().fold(0, |all, &(flag, bit)| if m.has(flag) { all | bit } else { all });
    entry.crust_flags = (ours != 0).then_some(ours);
    entry
}

/// The status of a mapping that the kernel puts into every process, unless `m` is none.
fn made_by_the_kernel(m: &Mapping) -> Result<Option<u32>> {
    Ok(match m.name.as_slice() {
        // No regular one: CRIU would map it.
        b"[vsyscall]" => Some(st::VSYSCALL | st::ANON_PRIVATE),
        b"[vdso]" => Some(st::REGULAR | st::VDSO | st::ANON_PRIVATE),
        b"[vvar]" | b"[vvar_vclock]" => Some(st::REGULAR | st::VVAR | st::ANON_PRIVATE),
        b"[uprobes]" => {
            return Err(unsupported(
                "memory of active uprobes",
                "end the tracing tool (perf, bpftrace) before the dump",
            ));
        }
        _ => None,
    })
}

/// A mapping that has an inode: one of those which the kernel makes for anonymous shared memory and the like, or a file's.
fn of_a_file(m: &Mapping, entry: &mut VmaEntry) {
    let anonymous = libc::MAP_ANONYMOUS as u32;
    if m.shared && m.name.starts_with(b"/[aio]") {
        entry.status = st::AIORING;
        entry.fdflags = Some(libc::O_RDWR as u32);
        return;
    }
    if let Some(size) = hugetlb_size(m) {
        // Nothing in a name or a device tells the size.
        entry.flags |= hugetlb::HUGETLB | hugetlb::size_bits(size);
        if m.name.starts_with(hugetlb::ANONYMOUS) {
            entry.flags |= anonymous;
            if m.shared {
                entry.status |= st::ANON_SHARED;
                entry.shmid = m.inode;
            } else {
                entry.status |= st::ANON_PRIVATE;
                entry.pgoff = 0;
            }
            return;
        }
    }
    let on_shmem = shmem_device().is_some_and(|dev| dev == m.dev);
    if on_shmem && m.shared && (m.name.starts_with(b"/dev/zero") || m.name.starts_with(b"[anon_shmem:")) {
        entry.status |= st::ANON_SHARED;
        entry.flags |= anonymous;
        entry.shmid = m.inode;
        return;
    }
    if on_shmem && m.shared && m.name.starts_with(b"/SYSV") {
        // The inode's number is the segment's id.
        entry.status |= st::ANON_SHARED | st::SYSVIPC;
        entry.flags |= anonymous;
        entry.shmid = m.inode;
        return;
    }
    if on_shmem || hugetlb::is(entry) {
        entry.status |= st::MEMFD;
    }
    // A shared mapping that may become writable came from a descriptor open for writing.
    let writable = m.shared && (m.has(VmFlag::MayWrite) || m.write);
    entry.fdflags = Some(if writable { libc::O_RDWR as u32 } else { libc::O_RDONLY as u32 });
    entry.status |= if m.shared { st::FILE_SHARED } else { st::FILE_PRIVATE };
}

fn protection(m: &Mapping) -> u32 {
    [(m.read, libc::PROT_READ), (m.write, libc::PROT_WRITE), (m.exec, libc::PROT_EXEC)]
        .iter()
        .fold(0, |all, &(set, bit)| if set { all | bit as u32 } else { all })
}

/// Bits of our own field `crust_flags`.
pub(super) const SEALED: u32 = 1;
pub(super) const LOCK_ON_FAULT: u32 = 2;

/// The name that the program gave to anonymous memory.
fn given_name(m: &Mapping) -> Option<&[u8]> {
    let rest = m.name.strip_prefix(b"[anon:").or_else(|| m.name.strip_prefix(b"[anon_shmem:"))?;
    rest.strip_suffix(b"]")
}

/// `MAP_DROPPABLE` (Linux 6.11).
pub(super) const MAP_DROPPABLE: u32 = 0x08;

fn refuse(m: &Mapping) -> Result<()> {
    let has = |flag| m.has(flag);
    let name = String::from_utf8_lossy(&m.name);
    let known = m.name.starts_with(hugetlb::ANONYMOUS) || m.name.starts_with(b"/memfd:");
    if hugetlb_size(m).is_some() && !known {
        return Err(unsupported(
            &format!("huge pages of a file or segment ({name})"),
            "let the program use anonymous huge pages (MAP_HUGETLB) or a memfd instead",
        ));
    }
    if has(VmFlag::HugeTlb) && hugetlb_size(m).is_none() {
        return Err(unsupported("huge pages of unknown size", "a kernel with /proc/PID/smaps is needed"));
    }
    if has(VmFlag::UffdMissing) || has(VmFlag::UffdWp) || has(VmFlag::UffdMinor) {
        return Err(unsupported("memory registered with userfaultfd", "unregister the range before the dump"));
    }
    if has(VmFlag::ShadowStack) {
        return Err(unsupported("a shadow stack", "start the program with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off"));
    }
    if name.contains("[io_uring]") {
        return Err(unsupported("an io_uring ring", "close the ring before the dump"));
    }
    if m.name.starts_with(b"/secretmem") || m.name.starts_with(b"secretmem") {
        return Err(unsupported("secret memory (memfd_secret)", "it is secret also from us: free it before the dump"));
    }
    if m.name.starts_with(b"socket:") {
        return Err(unsupported("a socket's ring (PACKET_MMAP)", "unmap the ring before the dump"));
    }
    if m.name.starts_with(b"anon_inode:") {
        return Err(unsupported(&format!("a mapping of {name}"), "close the object before the dump"));
    }
    if has(VmFlag::PfnMap) || has(VmFlag::Io) {
        return Err(unsupported(
            &format!("device memory ({name})"),
            "let the program close the device before the dump",
        ));
    }
    let device = m.name.starts_with(b"/dev/") && !m.name.starts_with(b"/dev/zero") && !m.name.starts_with(b"/dev/shm/");
    if device && !m.name.starts_with(b"/dev/hugepages/") {
        let path = name.strip_suffix(" (deleted)").unwrap_or(&name);
        let is_file = rustix::fs::stat(path).is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode).is_file());
        if !is_file {
            return Err(unsupported(
                &format!("a mapping of the device {name}"),
                "let the program close the device before the dump",
            ));
        }
    }
    if m.shared && m.name.is_empty() {
        return Err(unsupported("a shared mapping without a name", "unmap it before the dump"));
    }
    Ok(())
}

/// The size of the pages of a mapping of hugetlbfs.
fn hugetlb_size(m: &Mapping) -> Option<u64> {
    m.detail.map(|d| d.page_kib << 10).filter(|&size| m.has(VmFlag::HugeTlb) && size > PAGE_SIZE)
}

/// Device number of the kernel's own tmpfs, where memfds and shared anonymous memory live.
fn shmem_device() -> Option<(u32, u32)> {
    static DEVICE: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let file = rustix::fs::memfd_create("crust-probe", rustix::fs::MemfdFlags::CLOEXEC).ok()?;
        let dev = rustix::fs::fstat(&file).ok()?.st_dev;
        Some((rustix::fs::major(dev), rustix::fs::minor(dev)))
    })
}

fn mm_fields(t: &Target<'_>, stat: &Stat, vmas: &[Vma], files: &mut dyn FileIds) -> Result<MmEntry> {
    if stat.start_stack == 0 && stat.start_code == 0 {
        return Err(Error::new(Kind::Permission, "the kernel hides the addresses in /proc/PID/stat from us")
            .help("run as root, or as the user who may trace the task"));
    }
    let auxv = t.proc.read("auxv").during("reading the auxiliary vector")?;
    let mut saved: Vec<u64> =
        auxv.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default())).collect();
    // Images hold the pairs without the closing AT_NULL.
    if let Some(end) = saved.chunks(2).position(|pair| pair[0] == 0) {
        saved.truncate(2 * end);
    }
    let status = Status::new(t.proc.read_text("status").during("reading status")?);
    let heap_end = vmas.iter().rev().find(|v| v.is(st::HEAP)).map(|v| v.entry.end);
    Ok(MmEntry {
        mm_start_code: stat.start_code,
        mm_end_code: stat.end_code,
        mm_start_data: stat.start_data,
        mm_end_data: stat.end_data,
        mm_start_stack: stat.start_stack,
        mm_start_brk: stat.start_brk,
        mm_brk: heap_end.unwrap_or(stat.start_brk),
        mm_arg_start: stat.arg_start,
        mm_arg_end: stat.arg_end,
        mm_env_start: stat.env_start,
        mm_env_end: stat.env_end,
        exe_file_id: files.exe(t)?,
        mm_saved_auxv: saved,
        aios: vmas.iter().filter(|v| v.is(st::AIORING)).map(|v| aio::record(&v.entry)).collect(),
        crust_names: vmas
            .iter()
            .filter_map(|v| {
                let (start, end) = (v.entry.start, v.entry.end);
                given_name(&v.mapping).map(|name| CrustVmaName { start, end, name: name.to_vec() })
            })
            .collect(),
        thp_disabled: Some(status.number("THP_enabled") == Some(0)),
        ..MmEntry::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_makes_is_known_and_only_the_vsyscall_page_is_no_regular_mapping() {
        let status = |name: &str| {
            let line = format!("7ffc12c99000-7ffc12c9b000 r-xp 00000000 00:00 0                  [{name}]");
            classify(&Mapping::parse_line(line.as_bytes()).expect("parses")).expect("is known").status
        };
        assert_eq!(status("vsyscall"), st::VSYSCALL | st::ANON_PRIVATE);
        assert_eq!(status("vdso"), st::REGULAR | st::VDSO | st::ANON_PRIVATE);
        assert_eq!(status("vvar"), st::REGULAR | st::VVAR | st::ANON_PRIVATE);
        assert!(
            classify(&Mapping::parse_line(b"1000-2000 r-xp 00000000 00:00 0   [uprobes]").expect("parses")).is_err()
        );
    }
}

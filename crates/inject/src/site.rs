//! Where landings lie in the target: first in the zero padding behind the vDSO's contents (in a program without one: behind
//! its code, `tail.rs`), then in an area of our own.
//!
//! Rules, each paid for with lost targets in the prototype:
//! a place for a landing is used only while all of it is zero; an orderly end makes it zero again; a crash burns it, because
//! a thread may still be inside. An area left by a crash is found again through the registry word in the vDSO padding
//! and is only ever appended to. So whatever a dead tracer left is never changed under a thread that might run in it.
use crate::arch::{compat, interp, landing};
use crate::error::{During, Error, Kind, Result};
use crate::tail;
use crust_kernel::maps;
use crust_kernel::procfs::ProcDir;
use crust_kernel::remote_mem::RemoteMem;
use crust_kernel::{HostTid, VirtAddr, procmap};
use rustix::io::Errno;

const PAGE: u64 = crust_kernel::ids::PAGE_SIZE;
pub(crate) const REGISTRY_BYTES: u64 = 16;
/// First word of the registry and of an area. Changes with the layout of either.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"crustA01");
/// Head of an area: magic, bytes, start of data, next free landing, next free data.
const HEAD_BYTES: u64 = 64;
/// Room for landings in a new area: enough for hundreds of crashes before another area is needed.
const CODE_ROOM: u64 = 256 * 1024;
/// Room for plans and scratch memory in a new area. Untouched pages cost nothing.
const DATA_ROOM: u64 = 768 * 1024;

/// The padding behind the vDSO's contents, or behind other code.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Padding {
    start: u64,
    end: u64,
    /// It is the vDSO of a 32-bit program.
    low: bool,
    /// What lies there. Read once: as long as the process stands still nobody but us writes to it.
    bytes: Vec<u8>,
}

impl Padding {
    /// The bytes from `at` on, if they lie in the padding.
    fn at(&self, at: u64, len: usize) -> Option<&[u8]> {
        let from = usize::try_from(at.checked_sub(self.start)?).ok()?;
        self.bytes.get(from..from.checked_add(len)?)
    }

    /// Notes what is written there.
    fn note(&mut self, at: u64, bytes: &[u8]) {
        let from = at.checked_sub(self.start).and_then(|n| usize::try_from(n).ok());
        let known = from.and_then(|from| self.bytes.get_mut(from..from.checked_add(bytes.len())?));
        if let Some(known) = known {
            known.copy_from_slice(bytes);
        }
    }

    /// True if a landing may be written there.
    fn is_free(&self, at: u64) -> bool {
        self.at(at, landing::COMPACT_BYTES).is_some_and(|bytes| bytes.iter().all(|&b| b == 0))
    }

    /// Free places for landings, and those in use.
    fn places(&self) -> impl Iterator<Item = u64> + use<> {
        (self.start..)
            .step_by(landing::COMPACT_BYTES)
            .take((self.end - REGISTRY_BYTES - self.start) as usize / landing::COMPACT_BYTES)
    }

    fn registry(&self) -> u64 {
        self.end - REGISTRY_BYTES
    }
}

/// An area of ours inside the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) base: u64,
    pub(crate) len: u64,
    data_at: u64,
    code_next: u64,
    data_next: u64,
    /// Mapped by us, so that nobody else's leftovers can be in it and it may go again.
    fresh: bool,
    /// What was taken by others before us.
    code_first: u64,
    data_first: u64,
    /// Only here so far: neither its head nor the interpreter is written, and no registry names it.
    unwritten: bool,
}

/// Places in one target.
#[derive(Debug)]
pub(crate) struct Site {
    pid: HostTid,
    padding: Option<Padding>,
    pub(crate) area: Option<Area>,
    looked_for_area: bool,
    /// Areas mapped by this session that became too small.
    outgrown: Vec<(u64, u64)>,
    /// vDSO places in use by this session, by thread.
    vdso_slots: Vec<(HostTid, u64)>,
    /// Landings in the area in use by this session, by thread.
    landings: Vec<(HostTid, u64)>,
}

pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

pub(crate) fn half(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

fn quarter(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)))
}

/// Bytes of an ELF image's contents (segments, section headers), from its first page. `None`: no ELF.
pub fn elf_content_len(head: &[u8]) -> Option<u64> {
    match head.get(..5)? {
        b"\x7fELF\x01" => return elf32_content_len(head),
        b"\x7fELF\x02" => {}
        _ => return None,
    }
    let (phoff, shoff) = (word(head, 32)?, word(head, 40)?);
    let (phentsize, phnum) = (half(head, 54)?, half(head, 56)?);
    let (shentsize, shnum) = (half(head, 58)?, half(head, 60)?);
    let mut end = shoff.checked_add(shentsize * shnum)?;
    for i in 0..phnum {
        let at = usize::try_from(phoff.checked_add(i * phentsize)?).ok()?;
        let (offset, filesz, memsz) = (word(head, at + 8)?, word(head, at + 32)?, word(head, at + 40)?);
        end = end.max(offset.checked_add(filesz.max(memsz))?);
    }
    Some(end)
}

fn elf32_content_len(head: &[u8]) -> Option<u64> {
    let (phoff, shoff) = (quarter(head, 28)?, quarter(head, 32)?);
    let (phentsize, phnum) = (half(head, 42)?, half(head, 44)?);
    let (shentsize, shnum) = (half(head, 46)?, half(head, 48)?);
    let mut end = shoff + shentsize * shnum;
    for i in 0..phnum {
        let at = usize::try_from(phoff + i * phentsize).ok()?;
        let (offset, filesz, memsz) = (quarter(head, at + 4)?, quarter(head, at + 16)?, quarter(head, at + 20)?);
        end = end.max(offset + filesz.max(memsz));
    }
    Some(end)
}

impl Site {
    /// Looks for the vDSO, or other room, of the process that `pid`, a living thread, belongs to and `dir` is of.
    pub(crate) fn find(pid: HostTid, dir: &ProcDir, mem: &RemoteMem) -> Result<Self> {
        let padding = match Self::padding_from_auxv(dir, mem) {
            Some(padding) => Some(padding),
            None => Self::padding_from_maps(dir, mem).during(pid, "looking for its vDSO")?,
        };
        let padding = match padding {
            Some(padding) => Some(padding),
            None => Self::padding_of_code(dir, mem).during(pid, "looking for room behind its code")?,
        };
        let site = Self {
            pid,
            padding,
            area: None,
            looked_for_area: false,
            outgrown: Vec::new(),
            vdso_slots: Vec::new(),
            landings: Vec::new(),
        };
        Ok(site)
    }

    fn padding_from_auxv(dir: &ProcDir, mem: &RemoteMem) -> Option<Padding> {
        const AT_SYSINFO_EHDR: u64 = 33;
        let auxv = dir.read_kept("auxv").ok()?;
        let base = auxv.chunks_exact(16).find(|e| word(e, 0) == Some(AT_SYSINFO_EHDR)).and_then(|e| word(e, 8))?;
        let maps = dir.open_file("maps").ok()?;
        let covering = procmap::query(&maps, VirtAddr(base)).ok()?;
        let ok = covering.start.as_raw() == base && covering.executable && !covering.writable && !covering.shared;
        ok.then(|| Self::padding_of(mem, base, covering.end.as_raw())).flatten()
    }

    fn padding_from_maps(dir: &ProcDir, mem: &RemoteMem) -> rustix::io::Result<Option<Padding>> {
        let text = dir.read_text("maps")?;
        let found = text.lines().find(|l| l.ends_with("[vdso]")).and_then(|l| maps::Mapping::parse_line(l.as_bytes()));
        Ok(found.and_then(|m| Self::padding_of(mem, m.start, m.end)))
    }

    fn padding_of_code(dir: &ProcDir, mem: &RemoteMem) -> rustix::io::Result<Option<Padding>> {
        let found = tail::find(dir, mem)?;
        Ok(found.map(|tail::Tail { start, end, bytes }| Padding { start, end, low: false, bytes }))
    }

    fn padding_of(mem: &RemoteMem, base: u64, end: u64) -> Option<Padding> {
        const MOST: u64 = 16 * PAGE;
        let mut image = vec![0; usize::try_from(end.checked_sub(base).filter(|&len| len <= MOST)?).ok()?];
        mem.read(VirtAddr(base), &mut image).ok()?;
        let start = base.checked_add(elf_content_len(&image)?)?.next_multiple_of(16);
        let needed = landing::COMPACT_BYTES as u64 + REGISTRY_BYTES;
        // The contents must end in the last page: otherwise this is no vDSO as we know it.
        (start.checked_add(needed)? <= end && end - start < PAGE).then_some(())?;
        let low = image.get(4) == Some(&1);
        let bytes = image.split_off(usize::try_from(start - base).ok()?);
        Some(Padding { start, end, low, bytes })
    }

    /// Writes into the padding and keeps what is known of it true. What failed half-way counts as written.
    fn write_padding(&mut self, mem: &RemoteMem, at: u64, bytes: &[u8], what: &str) -> Result<()> {
        if let Some(padding) = &mut self.padding {
            padding.note(at, bytes);
        }
        mem.write(VirtAddr(at), bytes).during(self.pid, what)
    }

    /// The first place that is all zero.
    fn free_place(&self) -> Option<u64> {
        let padding = self.padding.as_ref()?;
        padding.places().find(|&at| padding.is_free(at))
    }

    /// A place in the vDSO padding for `tid`, with `code` written to it. A thread keeps its place until `Site::retire_vdso`.
    pub(crate) fn vdso_landing(
        &mut self,
        mem: &RemoteMem,
        tid: HostTid,
        code: &[u8; landing::COMPACT_BYTES],
    ) -> Result<u64> {
        if let Some(&(_, at)) = self.vdso_slots.iter().find(|(t, _)| *t == tid) {
            return Ok(at);
        }
        let none = |what: &str| Error::new(Kind::Unsupported, self.pid, what);
        if self.padding.is_none() {
            return Err(none(
                "it has no vDSO, and no code of a program file with room behind it, where it could make calls for us",
            ));
        }
        let all_burnt =
            none("all places for landings in it were burnt by tracers that died; `crust cleanup -t PID` can free them");
        let at = self.free_place().ok_or(all_burnt)?;
        self.vdso_slots.push((tid, at));
        self.write_padding(mem, at, code, "writing a landing into it")?;
        Ok(at)
    }

    /// Places in the vDSO that are neither free nor ours.
    pub(crate) fn burnt_places(&self) -> Vec<u64> {
        let Some(padding) = &self.padding else { return Vec::new() };
        let mine = |at: u64| self.vdso_slots.iter().any(|&(_, slot)| slot == at);
        padding.places().filter(|&at| !mine(at) && !padding.is_free(at)).collect()
    }

    /// Makes a burnt place free again. Nothing may lead to it.
    pub(crate) fn clear_place(&mut self, mem: &RemoteMem, at: u64) -> Result<()> {
        self.write_padding(mem, at, &[0; landing::COMPACT_BYTES], "clearing a landing")
    }

    /// Strikes an old area from the registry, before it is unmapped.
    pub(crate) fn forget_area(&mut self, mem: &RemoteMem) -> Result<()> {
        self.area = None;
        self.looked_for_area = true;
        self.write_registry(mem, None)
    }

    /// True if a vDSO place is free or held by `tid`, without taking it.
    pub(crate) fn has_vdso_place(&self, tid: HostTid) -> bool {
        self.vdso_slots.iter().any(|(t, _)| *t == tid) || self.free_place().is_some()
    }

    /// Makes the vDSO places of this session zero again. Their threads must have left them.
    pub(crate) fn retire_vdso(&mut self, mem: &RemoteMem) -> Result<()> {
        for (_, at) in std::mem::take(&mut self.vdso_slots) {
            self.write_padding(mem, at, &[0; landing::COMPACT_BYTES], "clearing a landing")?;
        }
        Ok(())
    }

    fn write_registry(&mut self, mem: &RemoteMem, area: Option<u64>) -> Result<()> {
        let Some(at) = self.padding.as_ref().map(Padding::registry) else { return Ok(()) };
        let mut bytes = [0; REGISTRY_BYTES as usize];
        if let Some(area) = area {
            bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
            bytes[8..].copy_from_slice(&area.to_le_bytes());
        }
        self.write_padding(mem, at, &bytes, "noting our area in it")
    }

    /// The area that a dead tracer left, if there is one with our interpreter in it.
    pub(crate) fn find_old_area(&self, mem: &RemoteMem) -> Option<Area> {
        let padding = self.padding.as_ref()?;
        let bytes = padding.at(padding.registry(), REGISTRY_BYTES as usize)?;
        (word(bytes, 0)? == MAGIC).then_some(())?;
        let base = word(bytes, 8)?;
        let mut head = vec![0; HEAD_BYTES as usize + interp::code().len()];
        mem.read(VirtAddr(base), &mut head).ok()?;
        (word(&head, 0)? == MAGIC && head[HEAD_BYTES as usize..] == *interp::code()).then_some(())?;
        let (len, data_at) = (word(&head, 8)?, word(&head, 16)?);
        let (code_next, data_next) = (word(&head, 24)?, word(&head, 32)?);
        let sound = base % PAGE == 0
            && len.is_multiple_of(PAGE)
            && data_at.is_multiple_of(PAGE)
            && code_next <= data_at
            && (data_at..=len).contains(&data_next)
            && len <= 1 << 32
            && base.checked_add(len).is_some();
        sound.then_some(())?;
        // The registry is only bytes in the target: what it names must be executable, or a landing would be a crash.
        let maps = ProcDir::open(self.pid).ok()?.open_file("maps").ok()?;
        let executable =
            match procmap::query(&maps, VirtAddr(base)) {
                Ok(c) => c.executable && c.end.as_raw() >= base + data_at,
                Err(Errno::NOTTY) => ProcDir::open(self.pid).ok()?.read_text("maps").ok()?.lines().any(|l| {
                    l.starts_with(&format!("{base:x}-")) && l.split(' ').nth(1).is_some_and(|p| p.contains('x'))
                }),
                Err(_) => false,
            };
        executable.then_some(Area {
            base,
            len,
            data_at,
            code_next,
            data_next,
            fresh: false,
            code_first: code_next,
            data_first: data_next,
            unwritten: false,
        })
    }

    /// True if there is an area with this much room; looks for one left by a crash first.
    pub(crate) fn has_room(&mut self, mem: &RemoteMem, landings: usize, data: u64) -> bool {
        if self.area.is_none() && !self.looked_for_area {
            self.looked_for_area = true;
            self.area = self.find_old_area(mem);
        }
        self.area.is_some_and(|a| {
            let code = landings as u64 * landing::FULL_BYTES as u64;
            a.code_next + code <= a.data_at && a.data_next.next_multiple_of(64) + data <= a.len
        })
    }

    /// True if the process is a 32-bit program.
    pub(crate) fn is_low(&self) -> bool {
        self.padding.as_ref().is_some_and(|p| p.low)
    }

    /// Arguments of mmap(2) for a new area: all of it executable for now. 32-bit code must reach its way home: a handler of
    /// a signal that meets it there comes back with 32 bits of its address.
    pub(crate) fn map_args(&self, len: u64) -> [u64; 6] {
        let low = if self.is_low() { libc::MAP_32BIT } else { 0 };
        let (prot, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | low);
        [0, len, prot as u64, flags as u64, u64::MAX, 0]
    }

    /// The same for a process that refused those. The kernel looks for low addresses between 1 and 2 GiB only; here the
    /// lowest free ones are asked for.
    pub(crate) fn map_args_anywhere(&self, len: u64) -> [u64; 6] {
        /// Lower addresses may be the kernel's to refuse (vm.mmap_min_addr).
        const LOWEST: u64 = 1 << 20;
        let mut args = self.map_args(len);
        let all = ProcDir::open(self.pid).and_then(|p| maps::read_maps(&p)).unwrap_or_default();
        let mut at = LOWEST;
        for m in all.iter().filter(|m| m.end > LOWEST) {
            // Stacks grow into what lies before them.
            if at + len + (1 << 20) <= m.start {
                break;
            }
            at = at.max(m.end);
        }
        if self.is_low() && at + len < compat::END {
            args[0] = at;
            args[3] = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        }
        args
    }

    /// Sizes for a new area: all of it, and where its data begin. `tight`: only what is needed now.
    pub(crate) fn plan_area(landings: usize, data: u64, tight: bool) -> (u64, u64) {
        let code = HEAD_BYTES + interp::code().len() as u64 + (landings as u64 + 2) * landing::FULL_BYTES as u64;
        let (code, data) = if tight { (code, data + 64) } else { (code.max(CODE_ROOM), (data + 64).max(DATA_ROOM)) };
        let code = code.next_multiple_of(PAGE);
        (code + data.next_multiple_of(PAGE), code)
    }

    /// Takes a mapping just made in the target as the area: executable up to `data_at`, writable from there on. Nothing is
    /// written before [`Site::publish`].
    pub(crate) fn adopt(&mut self, base: u64, len: u64, data_at: u64) {
        let code_first = (HEAD_BYTES + interp::code().len() as u64).next_multiple_of(landing::FULL_BYTES as u64);
        let area = Area {
            base,
            len,
            data_at,
            code_next: code_first,
            data_next: data_at,
            fresh: true,
            code_first,
            data_first: data_at,
            unwritten: true,
        };
        // Places in an older area stay what they are; new ones come from here.
        self.landings.clear();
        self.outgrown.extend(self.removable());
        self.area = Some(area);
    }

    /// Writes a new area's head and interpreter, and the landings that stand right behind it (`landings`: where the first
    /// one lies, and their bytes), in one go; then tells the registry. Only then may a thread be sent there.
    pub(crate) fn publish(&mut self, mem: &RemoteMem, landings: Option<(u64, &[u8])>) -> Result<()> {
        let Some(mut area) = self.area.filter(|a| a.unwritten) else { return Ok(()) };
        let mut bytes = Self::head(&area).to_vec();
        bytes.extend_from_slice(interp::code());
        if let Some((at, code)) = landings {
            bytes.resize((at - area.base) as usize, 0);
            bytes.extend_from_slice(code);
        }
        mem.write(VirtAddr(area.base), &bytes).during(self.pid, "writing our area")?;
        self.write_registry(mem, Some(area.base))?;
        area.unwritten = false;
        self.area = Some(area);
        Ok(())
    }

    /// True for a new area that [`Site::publish`] has yet to write.
    pub(crate) fn is_unwritten(&self) -> bool {
        self.area.is_some_and(|a| a.unwritten)
    }

    fn removable(&self) -> Option<(u64, u64)> {
        self.area.filter(|a| a.fresh).map(|a| (a.base, a.len))
    }

    fn head(area: &Area) -> [u8; HEAD_BYTES as usize] {
        let mut head = [0; HEAD_BYTES as usize];
        for (i, value) in [MAGIC, area.len, area.data_at, area.code_next, area.data_next].into_iter().enumerate() {
            head[8 * i..8 * i + 8].copy_from_slice(&value.to_le_bytes());
        }
        head
    }

    fn write_head(&self, mem: &RemoteMem, area: &Area) -> Result<()> {
        if area.unwritten {
            return Ok(());
        }
        mem.write(VirtAddr(area.base), &Self::head(area)).during(self.pid, "writing the head of our area")
    }

    /// The interpreter's entry.
    pub(crate) fn interpreter(&self) -> Option<u64> {
        self.area.map(|a| a.base + HEAD_BYTES)
    }

    /// Addresses for landings of `tids`, taken in the area's head before anything is written to them. Those that a thread
    /// already has are kept.
    pub(crate) fn take_landings(&mut self, mem: &RemoteMem, tids: &[HostTid]) -> Result<Vec<(u64, bool)>> {
        let mut area = self.area.ok_or_else(|| Error::new(Kind::Unexpected, self.pid, "no area"))?;
        let mut places = Vec::with_capacity(tids.len());
        for &tid in tids {
            if let Some(&(_, at)) = self.landings.iter().find(|(t, _)| *t == tid) {
                places.push((at, false));
                continue;
            }
            if area.code_next + landing::FULL_BYTES as u64 > area.data_at {
                return Err(Error::new(Kind::Unexpected, self.pid, "our area is full"));
            }
            places.push((area.base + area.code_next, true));
            area.code_next += landing::FULL_BYTES as u64;
        }
        self.write_head(mem, &area)?;
        for (&(at, new), &tid) in places.iter().zip(tids) {
            if new {
                self.landings.push((tid, at));
            }
        }
        self.area = Some(area);
        Ok(places)
    }

    /// Room for data in the area, aligned to 64 bytes and zero if nobody of this session used it before.
    pub(crate) fn take_data(&mut self, mem: &RemoteMem, bytes: u64) -> Result<u64> {
        let mut area = self.area.ok_or_else(|| Error::new(Kind::Unexpected, self.pid, "no area"))?;
        let at = area.data_next.next_multiple_of(64);
        if at + bytes > area.len {
            return Err(Error::new(Kind::Unexpected, self.pid, "our area is full"));
        }
        area.data_next = at + bytes;
        self.write_head(mem, &area)?;
        self.area = Some(area);
        Ok(area.base + at)
    }

    /// What has to be unmapped in an orderly end: every area that was ours from the start.
    pub(crate) fn removable_areas(&self) -> Vec<(u64, u64)> {
        self.outgrown.iter().copied().chain(self.removable()).collect()
    }

    /// They are unmapped.
    pub(crate) fn areas_removed(&mut self, mem: &RemoteMem) -> Result<()> {
        self.outgrown.clear();
        if self.removable().is_none() {
            return Ok(());
        }
        self.area = None;
        self.landings.clear();
        self.write_registry(mem, None)
    }

    /// An area that stays gets back the room this session took. No thread of ours may be in it any more.
    pub(crate) fn retire_area(&mut self, mem: &RemoteMem) -> Result<()> {
        let Some(mut area) = self.area.take() else { return Ok(()) };
        let zero = |from: u64, to: u64| {
            let mut at = from;
            while at < to {
                let piece = [0; 4096];
                let len = (to - at).min(4096);
                mem.write(VirtAddr(area.base + at), &piece[..len as usize]).during(self.pid, "clearing our area")?;
                at += len;
            }
            Ok(())
        };
        zero(area.code_first, area.code_next)?;
        zero(area.data_first, area.data_next)?;
        area.code_next = area.code_first;
        area.data_next = area.data_first;
        self.landings.clear();
        self.write_head(mem, &area)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_vdso_has_padding() {
        let me = HostTid::new(i32::try_from(std::process::id()).unwrap()).unwrap();
        let mem = RemoteMem::open_read_only(me).unwrap();
        let dir = ProcDir::open(me).unwrap();
        let by_maps = Site::padding_from_maps(&dir, &mem).unwrap().unwrap();
        assert!(by_maps.end - by_maps.start >= 160);
        let site = Site::find(me, &dir, &mem).unwrap();
        assert_eq!(site.padding, Some(by_maps));
        assert!(site.has_vdso_place(me));
    }

    #[test]
    fn no_elf_has_no_content() {
        assert_eq!(elf_content_len(&[0; 64]), None);
        assert_eq!(elf_content_len(b"\x7fELF\x02"), None);
        assert_eq!(elf_content_len(b"\x7fELF\x01"), None);
        let mut head = vec![0xff; 4096];
        head[..5].copy_from_slice(b"\x7fELF\x02");
        assert_eq!(elf_content_len(&head), None);
    }

    #[test]
    fn areas_hold_what_was_asked_for() {
        for tight in [true, false] {
            let (len, data_at) = Site::plan_area(500, 100_000, tight);
            assert!(data_at >= 500 * 256 && len - data_at >= 100_064);
            assert_eq!((len % PAGE, data_at % PAGE), (0, 0));
        }
        assert_eq!(Site::plan_area(1, 0, false), (1024 * 1024, CODE_ROOM));
    }
}

//! A task's memory is built around the program that builds it: mapped and filled at the final address where that is free,
//! else parked in a hole and moved by the plan. Ordinary code does all but the moving.
#![allow(unsafe_code, reason = "maps, fills and moves memory by address")]
use super::aio;
use super::collect::{LOCK_ON_FAULT, MAP_DROPPABLE, SEALED};
use super::fill::{Filler, Ground, huge_pages_allowed};
use super::held::Held;
use super::hugetlb;
use super::layout::{self, Special};
use super::load::{Extent, Images};
use super::shared::Segments;
use super::status as st;
use crate::error::{Error, Kind, Object, ResultExt};
use crate::images::Source;
use crate::{Result, Watch};
use crust_image::proto::VmaEntry;
use crust_inject::arch::compat;
use crust_inject::plan::{Arg, DataRef, Expect, PlanId, Program};
use crust_kernel::ids::PAGE_SIZE;
use crust_kernel::mman::{self, HUGE_PAGE};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Who opens the files that mappings show.
pub trait MapFiles {
    /// Opens the file `shmid` of a file mapping with `fdflags`. May be asked more than once for one id.
    ///
    /// # Errors
    /// If the file is gone or has changed.
    fn open(&mut self, vma: &VmaEntry) -> Result<OwnedFd>;
    /// Opens the executable, for PR_SET_MM_MAP.
    ///
    /// # Errors
    /// If the file is gone or has changed.
    fn exe(&mut self, file_id: u32) -> Result<OwnedFd>;
}

/// Choices for [`stage`].
#[derive(Clone, Copy, Debug, Default)]
pub struct StageOptions {
    /// Park every mapping, even those whose final place is free. For tests.
    pub park_all: bool,
    /// Threads that fill memory, at most; 0: as many as pay. A thread takes an id from the pid namespace: where ids are
    /// still to be given out by number, let the kernel count on from above them (ns_last_pid), or say 1 here.
    pub threads: usize,
    /// It is the memory of a 32-bit program.
    pub is_32bit: bool,
}

/// One mapping on its way.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    vma: &'a VmaEntry,
    /// Where it stands now.
    at: u64,
    /// Its protection now.
    prot: u32,
    /// It stands there with its content: held for children, or inherited.
    ready: bool,
}

/// Memory that stands ready; [`Staged::plan`] says what is left to do.
#[derive(Debug)]
pub struct Staged<'a> {
    places: Vec<Place<'a>>,
    /// Parking lot.
    hole: Option<(u64, u64)>,
    /// Room for the vDSO on its way.
    vdso_stop: Option<u64>,
    /// What goes to its place in the end: our own vDSO, or, for a 32-bit program, as its kernel gave it where it liked to.
    given: Special,
    wanted: Special,
    is_32bit: bool,
    mm: &'a crust_image::proto::MmEntry,
    exe: Option<OwnedFd>,
    /// Bytes filled from images.
    pub filled_bytes: u64,
}

/// Maps and fills the memory of one task in this process. `keep` are ranges that the plan itself needs to the end, `held`
/// is what stands already.
///
/// # Errors
/// With the mapping and the reason. The process is of no use then but to report.
pub fn stage<'a>(
    source: &Source,
    images: &'a Images,
    segments: &Segments,
    files: &mut dyn MapFiles,
    keep: &[(u64, u64)],
    held: &Held,
    options: StageOptions,
) -> Result<Staged<'a>> {
    let own = layout::own()?;
    let mut busy = layout::busy(&own);
    busy.extend_from_slice(keep);
    let busy = layout::merged(busy);
    let own_special = Special::of(&own);
    let (given, code) = match options.is_32bit.then(Special::of_32bit).flatten() {
        Some((given, code)) => (given, Some(code)),
        None => (own_special.clone(), layout::own_vdso(&own_special)),
    };
    let wanted = wanted_special(source, images, &given, code)?;
    let mut places = Vec::with_capacity(images.mm.vmas.len());
    for vma in &images.mm.vmas {
        if vma.status & (st::VSYSCALL | st::VDSO | st::VVAR | st::GUARD | st::UPROBES) != 0 {
            continue;
        }
        let held = held.whole(vma);
        let prot = held.map_or(vma.prot, |h| h.prot);
        places.push(Place { vma, at: vma.start, prot, ready: held.is_some() });
    }
    let mut parked = 0;
    for place in places.iter_mut().filter(|p| !p.ready) {
        if options.park_all || !layout::is_free(&busy, place.vma.start, place.vma.end) {
            place.at = 0;
            // Room to keep the position inside a huge page, and a distance for stacks that grow.
            parked += (place.vma.end - place.vma.start).next_multiple_of(HUGE_PAGE) + HUGE_PAGE + grain(place.vma);
        }
    }
    let vdso_room = given.span().map_or(0, |(_, len)| len.next_multiple_of(HUGE_PAGE));
    let mut hole = None;
    if parked + vdso_room > 0 {
        let mut all = busy.clone();
        all.extend(images.occupied());
        let len = parked + vdso_room + HUGE_PAGE;
        let start = layout::find_hole(&layout::merged(all), len, HUGE_PAGE)
            .ok_or_else(|| Error::new(Kind::Unsupported, "no free addresses are left to rebuild this program in"))?;
        hole = Some((start, start + len));
        let mut at = start + vdso_room;
        for place in places.iter_mut().filter(|p| p.at == 0) {
            let grain = grain(place.vma);
            place.at = at.next_multiple_of(grain) + place.vma.start % grain;
            at = (place.at + (place.vma.end - place.vma.start)).next_multiple_of(HUGE_PAGE) + HUGE_PAGE;
        }
    }
    let mut staged = Staged {
        places,
        vdso_stop: hole.filter(|_| vdso_room > 0).map(|h| h.0),
        hole,
        given,
        wanted,
        is_32bit: options.is_32bit,
        mm: &images.mm,
        exe: None,
        filled_bytes: held.bytes,
    };
    staged.map_all(source, images, segments, files)?;
    staged.fill(source, images, options.threads)?;
    staged.finish(images)?;
    staged.exe = staged.executable(files)?;
    Ok(staged)
}

fn on(vma: &VmaEntry) -> Object {
    Object::Vma(rustix::process::getpid().as_raw_nonzero().get(), vma.start, vma.end)
}

fn is(vma: &VmaEntry, bits: u32) -> bool {
    vma.status & bits == bits
}

fn is_private(vma: &VmaEntry) -> bool {
    vma.status & (st::ANON_PRIVATE | st::FILE_PRIVATE) != 0
}

/// What the distance between a mapping's place for a while and its final one is a multiple of.
fn grain(vma: &VmaEntry) -> u64 {
    hugetlb::grain(vma).map_or(HUGE_PAGE, |size| size.max(HUGE_PAGE))
}

const WRITE: u32 = libc::PROT_WRITE as u32;

/// Plain memory that can be mapped together with its neighbours and protected afterwards.
fn is_plain(vma: &VmaEntry) -> bool {
    let odd = libc::MAP_GROWSDOWN as u32 | MAP_DROPPABLE | libc::MAP_NORESERVE as u32 | hugetlb::HUGETLB;
    is(vma, st::ANON_PRIVATE) && vma.flags & odd == 0
}

/// What the kernel lets anybody have at once, however little memory there is.
const SMALL_PIECE: u64 = 64 << 20;

/// Makes memory that was just mapped without rights readable and writable. More than all of the machine's memory is refused at
/// once, but not piece by piece, as a heap grows.
fn make_writable(at: u64, len: u64) -> rustix::io::Result<()> {
    let open = |at, len| {
        // SAFETY: called only for memory just mapped, which nothing uses yet.
        unsafe { mman::mprotect(at, len, libc::PROT_READ | libc::PROT_WRITE) }
    };
    match open(at, len) {
        Err(Errno::NOMEM) => {
            (0..len).step_by(SMALL_PIECE as usize).try_for_each(|from| open(at + from, SMALL_PIECE.min(len - from)))
        }
        done => done,
    }
}

/// Maps private memory, piece by piece if it is too much at once; the protection that it has then.
fn map_anonymous(vma: &VmaEntry, at: u64, prot: u32, flags: u32) -> rustix::io::Result<u32> {
    let map = |prot: u32| {
        // SAFETY: FIXED_NOREPLACE takes only what is free.
        unsafe { mman::mmap(at, vma.end - vma.start, prot as i32, flags as i32, None, 0) }
    };
    match map(prot) {
        Err(Errno::NOMEM) if prot & WRITE != 0 && !hugetlb::is(vma) => {
            map(0)?;
            make_writable(at, vma.end - vma.start)?;
            Ok(libc::PROT_READ as u32 | WRITE)
        }
        done => done.map(|_| prot),
    }
}

impl<'a> Staged<'a> {
    fn map_all(
        &mut self,
        source: &Source,
        images: &'a Images,
        segments: &Segments,
        files: &mut dyn MapFiles,
    ) -> Result<()> {
        let extents = &images.pages.extents;
        let mut extent = 0;
        let mut last_file: Option<(u64, u32, OwnedFd)> = None;
        let mut i = 0;
        while i < self.places.len() {
            let Place { vma, at, ready, .. } = self.places[i];
            if ready {
                i += 1;
                continue;
            }
            while extents.get(extent).is_some_and(|e| e.end <= vma.start) {
                extent += 1;
            }
            let filled = extents.get(extent).is_some_and(|e| e.start < vma.end);
            let len = vma.end - vma.start;
            if is_plain(vma) {
                let (together, end) = self.neighbours(i);
                if together > 1 {
                    self.map_together(i, together, end - vma.start, extents, extent)?;
                    i += together;
                    continue;
                }
            }
            // Private memory must be writable while it is filled; `finish` puts the protection right.
            let mut prot = if filled && is_private(vma) { vma.prot | WRITE | libc::PROT_READ as u32 } else { vma.prot };
            let kept = libc::MAP_GROWSDOWN | libc::MAP_NORESERVE;
            let mut flags = vma.flags & kept as u32 | MAP_FIXED_NOREPLACE;
            let fail = |e: Errno, what: &str| {
                if hugetlb::is(vma) && e != Errno::EXIST {
                    return hugetlb::no_room(e, vma).on(on(vma));
                }
                let error = Error::kernel(format!("{what} failed"), e).on(on(vma));
                if e == Errno::EXIST { error.kind_is(Kind::Internal) } else { error }
            };
            if is(vma, st::AIORING) {
                aio::make(source, images, vma, at).map_err(|e| e.on(on(vma)))?;
                self.places[i].prot = libc::PROT_READ as u32 | WRITE;
                i += 1;
                continue;
            } else if is(vma, st::ANON_SHARED) {
                segments.place(vma, at).map_err(|e| e.on(on(vma)))?;
                self.places[i].prot = libc::PROT_READ as u32 | WRITE;
                i += 1;
                continue;
            } else if is(vma, st::ANON_PRIVATE) {
                flags |= libc::MAP_ANONYMOUS as u32 | hugetlb::bits(vma);
                flags |= if vma.flags & MAP_DROPPABLE != 0 { MAP_DROPPABLE } else { libc::MAP_PRIVATE as u32 };
                prot = map_anonymous(vma, at, prot, flags).map_err(|e| fail(e, "mapping memory"))?;
            } else if vma.status & (st::FILE_PRIVATE | st::FILE_SHARED) != 0 {
                let key = (vma.shmid, vma.fdflags.unwrap_or(0));
                if last_file.as_ref().is_none_or(|(id, flags, _)| (*id, *flags) != key) {
                    last_file = Some((key.0, key.1, files.open(vma).map_err(|e| e.on(on(vma)))?));
                }
                let fd = last_file.as_ref().map(|(.., fd)| fd.as_fd());
                flags |= if is(vma, st::FILE_SHARED) { libc::MAP_SHARED as u32 } else { libc::MAP_PRIVATE as u32 };
                // SAFETY: FIXED_NOREPLACE takes only what is free.
                unsafe { mman::mmap(at, len, prot as i32, flags as i32, fd, vma.pgoff) }
                    .map_err(|e| fail(e, "mapping a file"))?;
            } else {
                return Err(
                    Error::new(Kind::BadImage, format!("a mapping of unknown sort ({:#x})", vma.status)).on(on(vma))
                );
            }
            self.places[i].prot = prot;
            i += 1;
        }
        Ok(())
    }

    /// How many mappings from `first` on adjoin and are plain, and where the last ends.
    fn neighbours(&self, first: usize) -> (usize, u64) {
        let Place { vma, at, .. } = self.places[first];
        let mut end = vma.end;
        let next = |p: &&Place| {
            let fits =
                !p.ready && is_plain(p.vma) && p.vma.start == end && p.at.wrapping_sub(at) == p.vma.start - vma.start;
            if fits {
                end = p.vma.end;
            }
            fits
        };
        let more = self.places[first + 1..].iter().take_while(next).count();
        (more + 1, end)
    }

    /// Maps neighbours by one call, then makes those writable that are, or have content to come. The others are never
    /// writable, so they are not charged as committed memory, as they were not before.
    fn map_together(
        &mut self,
        first: usize,
        count: usize,
        len: u64,
        extents: &[Extent],
        mut extent: usize,
    ) -> Result<()> {
        let at = self.places[first].at;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | MAP_FIXED_NOREPLACE as i32;
        let fail = |e: Errno, vma: &VmaEntry| Error::kernel("mapping memory failed", e).on(on(vma));
        // SAFETY: FIXED_NOREPLACE takes only what is free.
        unsafe { mman::mmap(at, len, libc::PROT_NONE, flags, None, 0) }.map_err(|e| fail(e, self.places[first].vma))?;
        let mut open: Vec<(u64, u64)> = Vec::new();
        for place in &mut self.places[first..first + count] {
            let vma = place.vma;
            while extents.get(extent).is_some_and(|e| e.end <= vma.start) {
                extent += 1;
            }
            let filled = extents.get(extent).is_some_and(|e| e.start < vma.end);
            place.prot = if filled || vma.prot & WRITE != 0 { libc::PROT_READ as u32 | WRITE } else { 0 };
            if place.prot == 0 {
                continue;
            }
            let end = place.at + (vma.end - vma.start);
            match open.last_mut() {
                Some(last) if last.1 == place.at => last.1 = end,
                _ => open.push((place.at, end)),
            }
        }
        // From the end: the kernel cuts pieces off the end of a large mapping with less work than off its beginning.
        for (start, end) in open.into_iter().rev() {
            make_writable(start, end - start).map_err(|e| fail(e, self.places[first].vma))?;
        }
        Ok(())
    }

    fn fill(&mut self, source: &Source, images: &Images, threads: usize) -> Result<()> {
        let huge_allowed = huge_pages_allowed() && images.mm.thp_disabled != Some(true);
        let mut filler = Filler::default();
        let mut next = 0;
        for e in &images.pages.extents {
            while self.places.get(next).is_some_and(|p| p.vma.end <= e.start) {
                next += 1;
            }
            for place in self.places[next..].iter().take_while(|p| p.vma.start < e.end) {
                let vma = place.vma;
                if place.ready || !is_private(vma) {
                    continue;
                }
                let start = e.start.max(vma.start);
                let end = e.end.min(vma.end);
                let ground = Ground::of(vma, huge_allowed);
                filler.add(e.file, e.offset + (start - e.start), place.at + (start - vma.start), end - start, ground);
            }
        }
        if filler.bytes() > 0 {
            let open = images.pages.open(source)?;
            // Who builds a task is killed rather than asked.
            filler.run(&images.pages, &open, threads, &Watch::default())?;
        }
        self.filled_bytes += filler.bytes();
        Ok(())
    }

    /// Protection, advice, guards and locks: all of them travel with a mapping when it is moved.
    fn finish(&self, images: &Images) -> Result<()> {
        for (i, place) in self.places.iter().enumerate() {
            let Place { vma, at, .. } = *place;
            let len = vma.end - vma.start;
            let fail = |e: Errno, what: &str| Error::kernel(format!("{what} failed"), e).on(on(vma));
            // Mappings of the same protection side by side take one call, made for the first of them.
            let joins = |a: &Place, b: &Place| {
                a.vma.end == b.vma.start
                    && b.at.wrapping_sub(a.at) == b.vma.start - a.vma.start
                    && a.vma.prot == b.vma.prot
                    && a.prot != a.vma.prot
                    && b.prot != b.vma.prot
                    && is_plain(a.vma)
                    && is_plain(b.vma)
            };
            let led = i > 0 && joins(&self.places[i - 1], place);
            if place.prot != vma.prot && !led {
                let mut all = len;
                for pair in self.places[i..].windows(2).take_while(|w| joins(&w[0], &w[1])) {
                    all += pair[1].vma.end - pair[1].vma.start;
                }
                // SAFETY: memory mapped by this stage, which no reference points into.
                unsafe { mman::mprotect(at, all, vma.prot as i32) }.map_err(|e| fail(e, "setting the protection"))?;
            }
            let mut bits = vma.madv.unwrap_or(0);
            while bits != 0 {
                let advice = bits.trailing_zeros() as i32;
                bits &= bits - 1;
                if DROPS.contains(&advice) {
                    return Err(
                        Error::new(Kind::BadImage, format!("advice {advice} would drop the content")).on(on(vma))
                    );
                }
                // SAFETY: memory mapped by this stage; advice that drops content was refused above.
                unsafe { mman::madvise(at, len, advice) }.map_err(|e| fail(e, &format!("madvise {advice}")))?;
            }
            if vma.flags & libc::MAP_LOCKED as u32 != 0 {
                // SAFETY: as above; locking changes no content.
                match unsafe { mman::mlock(at, len, vma.crust_flags.unwrap_or(0) & LOCK_ON_FAULT != 0) } {
                    // What has no permissions gets the flag, and no pages.
                    Ok(()) | Err(Errno::NOMEM) if vma.prot == 0 => {}
                    Ok(()) => {}
                    Err(e) => {
                        return Err(fail(e, "locking memory").help("raise the limit of locked memory (ulimit -l)"));
                    }
                }
            }
        }
        for named in &images.mm.crust_names {
            let Ok(name) = std::ffi::CString::new(named.name.as_slice()) else { continue };
            for place in self.within(named.start, named.end) {
                let start = named.start.max(place.vma.start);
                let end = named.end.min(place.vma.end);
                if let Err(e) = mman::set_name(place.at + (start - place.vma.start), end - start, &name) {
                    // Only what /proc shows: not worth a failed restore.
                    log::warn!("the name of the mapping {start:#x}-{end:#x} is lost: {e}");
                }
            }
        }
        for guard in images.mm.vmas.iter().filter(|v| v.status & st::GUARD != 0) {
            for place in self.within(guard.start, guard.end) {
                let start = guard.start.max(place.vma.start);
                let end = guard.end.min(place.vma.end);
                // SAFETY: memory mapped by this stage; a guard region has no content.
                unsafe { mman::madvise(place.at + (start - place.vma.start), end - start, mman::MADV_GUARD_INSTALL) }
                    .map_err(|e| {
                    let error = Error::kernel("installing a guard region failed", e).on(on(guard));
                    if e == Errno::INVAL { error.help("guard regions need Linux 6.13 (in files: 6.15)") } else { error }
                })?;
            }
        }
        Ok(())
    }

    /// The mappings that have a part of `start..end`.
    fn within(&self, start: u64, end: u64) -> impl Iterator<Item = &Place<'a>> {
        let first = self.places.partition_point(|p| p.vma.end <= start);
        self.places[first..].iter().take_while(move |p| p.vma.start < end)
    }

    /// Opens the executable, unless this process has the same one already: then there is nothing to set.
    fn executable(&self, files: &mut dyn MapFiles) -> Result<Option<OwnedFd>> {
        let fd = files.exe(self.mm.exe_file_id)?;
        let wanted = rustix::fs::fstat(&fd).during("looking at the executable")?;
        let ours = rustix::fs::stat("/proc/self/exe").during("looking at our own executable")?;
        Ok(((wanted.st_dev, wanted.st_ino) != (ours.st_dev, ours.st_ino)).then_some(fd))
    }

    /// Ranges the plan must leave alone beside `keep`: what stands at its place, and the parking lot.
    fn standing(&self, keep: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let in_place = self.places.iter().filter(|p| p.at == p.vma.start).map(|p| (p.vma.start, p.vma.end));
        layout::merged(in_place.chain(self.hole).chain(keep.iter().copied()))
    }

    /// Adds the rest to `plan`: clear the address space except `keep`, move what is parked, put the vDSO where the program
    /// knows it, set the mm's own fields. Uses no memory outside of `keep` (where the program itself must lie).
    ///
    /// The descriptor of the executable stays open until then; the plan closes it.
    pub fn plan(self, program: &mut Program, plan: PlanId, keep: &[(u64, u64)]) {
        let moves = libc::MREMAP_MAYMOVE as u64 | libc::MREMAP_FIXED as u64;
        let shift = |program: &mut Program, label: String, from: u64, len: u64, to: u64| {
            let args = [from.into(), len.into(), len.into(), moves.into(), to.into()];
            program.syscall_expect(plan, label, libc::SYS_mremap, &args, Expect::Equals(to));
        };
        // The vDSO's parts first go to a stop of their own: their old and new places may overlap with anything.
        let (own_base, _) = self.given.span().unwrap_or((0, 0));
        let parts: Vec<(u64, u64)> = self.given.vvar.iter().copied().chain(self.given.vdso).collect();
        let wanted_base = self.wanted.span().map(|s| s.0);
        let keeps_vdso = wanted_base.zip(self.vdso_stop);
        if let Some((_, stop)) = keeps_vdso.filter(|_| !self.is_32bit) {
            for &(start, end) in &parts {
                shift(program, "vDSO to a stop".into(), start, end - start, stop + (start - own_base));
            }
        }
        let mut at = 0;
        for (start, end) in self.standing(keep).into_iter().chain([(super::TASK_SIZE, super::TASK_SIZE)]) {
            if at < start {
                let args = [at.into(), (start - at).into()];
                program.syscall(plan, format!("munmap {at:#x}-{start:#x}"), libc::SYS_munmap, &args);
            }
            at = end;
        }
        if let Some((_, stop)) = keeps_vdso.filter(|_| self.is_32bit) {
            // Now that our own is gone.
            let args = [compat::ARCH_MAP_VDSO_32.into(), stop.into()];
            program.syscall(plan, "ARCH_MAP_VDSO_32", libc::SYS_arch_prctl, &args);
        }
        for place in self.places.iter().filter(|p| p.at != p.vma.start) {
            let Place { vma, at, .. } = *place;
            shift(program, format!("move {:#x}-{:#x}", vma.start, vma.end), at, vma.end - vma.start, vma.start);
        }
        if let Some((to, stop)) = keeps_vdso {
            for &(start, end) in &parts {
                let offset = start - own_base;
                shift(program, "vDSO to its place".into(), stop + offset, end - start, to + offset);
            }
        }
        // Last, for a sealed mapping can be neither moved nor protected.
        for place in self.places.iter().filter(|p| p.vma.crust_flags.unwrap_or(0) & SEALED != 0) {
            let (start, len) = (place.vma.start, place.vma.end - place.vma.start);
            program.syscall(plan, format!("mseal {start:#x}"), SYS_MSEAL, &[start.into(), len.into(), 0u64.into()]);
        }
        self.plan_mm(program, plan);
    }

    fn plan_mm(self, program: &mut Program, plan: PlanId) {
        let mm = self.mm;
        let auxv: Vec<u8> = mm.mm_saved_auxv.iter().flat_map(|w| w.to_le_bytes()).collect();
        let vector: Option<DataRef> = (!auxv.is_empty()).then(|| program.data(&auxv));
        let words = [
            mm.mm_start_code,
            mm.mm_end_code,
            mm.mm_start_data,
            mm.mm_end_data,
            mm.mm_start_brk,
            mm.mm_brk,
            mm.mm_start_stack,
            mm.mm_arg_start,
            mm.mm_arg_end,
            mm.mm_env_start,
            mm.mm_env_end,
        ];
        let mut map: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        map.extend_from_slice(&[0; 8]);
        map.extend_from_slice(&(auxv.len() as u32).to_le_bytes());
        let exe = self.exe.as_ref().map_or(u32::MAX, |fd| fd.as_raw_fd() as u32);
        map.extend_from_slice(&exe.to_le_bytes());
        let size = map.len();
        let at = program.data(&map);
        if let Some(vector) = vector {
            program.pointer(at.offset(88), vector);
        }
        let args: [Arg; 5] = [PR_SET_MM.into(), PR_SET_MM_MAP.into(), at.into(), size.into(), 0u64.into()];
        program.syscall(plan, "PR_SET_MM_MAP", libc::SYS_prctl, &args);
        if let Some(fd) = self.exe {
            program.syscall(plan, "close the executable", libc::SYS_close, &[fd.as_raw_fd().into()]);
            // The plan runs in this process and needs the number.
            std::mem::forget(fd);
        }
        if mm.thp_disabled == Some(true) {
            let args: [Arg; 5] = [PR_SET_THP_DISABLE.into(), 1u64.into(), 0u64.into(), 0u64.into(), 0u64.into()];
            program.syscall(plan, "PR_SET_THP_DISABLE", libc::SYS_prctl, &args);
        }
    }
}

/// mseal(2) (Linux 6.10); the same number on all architectures.
const SYS_MSEAL: i64 = 462;
const PR_SET_MM: u64 = 35;
const PR_SET_MM_MAP: u64 = 14;
const PR_SET_THP_DISABLE: u64 = 41;
pub(super) const MAP_FIXED_NOREPLACE: u32 = libc::MAP_FIXED_NOREPLACE as u32;
/// Advice after which the content is gone: DONTNEED, FREE, REMOVE, DONTNEED_LOCKED, HWPOISON, SOFT_OFFLINE.
const DROPS: [i32; 6] = [4, 8, 9, 24, 100, 101];

/// True if two vDSOs are equal up to the end of their contents.
fn same_code(ours: &[u8], theirs: &[u8]) -> bool {
    let len = crust_inject::elf_content_len(ours).map_or(ours.len(), |len| (len as usize).min(ours.len()));
    theirs.get(..len) == ours.get(..len)
}

/// Where the images have the vDSO, after checking that ours does the same there.
fn wanted_special(source: &Source, images: &Images, own: &Special, code: Option<&[u8]>) -> Result<Special> {
    let mut wanted = Special::default();
    for vma in &images.mm.vmas {
        if vma.status & st::VVAR != 0 {
            wanted.vvar.push((vma.start, vma.end));
        } else if vma.status & st::VDSO != 0 {
            wanted.vdso = Some((vma.start, vma.end));
        }
    }
    let Some((start, end)) = wanted.vdso else { return Ok(Special::default()) };
    let other = |what: &str| {
        Err(Error::unsupported(
            format!("the vDSO of the images is another than this kernel's: {what}"),
            "restore under the kernel that ran the program",
        )
        .kind_is(Kind::Unsupported))
    };
    let (Some(our), Some((wanted_base, wanted_len)), Some((our_base, our_len))) = (own.vdso, wanted.span(), own.span())
    else {
        return other("this process has none");
    };
    if wanted_len != our_len || start - wanted_base != our.0 - our_base || end - start != our.1 - our.0 {
        return other("its size or layout differs");
    }
    let mut theirs = vec![0; (end - start) as usize];
    images.pages.read_bytes(source, start, &mut theirs)?;
    match code {
        // Behind the ELF's contents is padding, where a killed dump may have left a landing.
        Some(ours) if same_code(ours, &theirs) => Ok(wanted),
        // No content saved: an image of ours always has it, one from elsewhere may lack it.
        Some(_) if theirs.iter().all(|&b| b == 0) => Ok(wanted),
        Some(_) => other("its code differs"),
        None => other("ours cannot be read"),
    }
}

const _: () = assert!(HUGE_PAGE.is_multiple_of(PAGE_SIZE));

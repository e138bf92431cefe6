//! What tracers that died left in a process: seen from outside, and removed once it is proven that nothing leads back to it.
//!
//! A landing burnt by a crash may still hold a thread, or be the return address of a signal handler that began in it. So it
//! is cleared only while every thread stands still, none of their registers points into it, and no aligned word of the
//! process's memory does: a signal frame, wherever it was moved, holds the address it returns to.
use crate::arch::regs;
use crate::error::{During, Error, Kind, Result};
use crate::remote::errno_of;
use crate::seize::SeizedProcess;
use crate::site::Site;
use crust_kernel::maps::{self, Mapping};
use crust_kernel::procfs::ProcDir;
use crust_kernel::remote_mem::RemoteMem;
use crust_kernel::{Deadline, HostTid, VirtAddr};
use std::ops::Range;

/// What lies in a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Burnt places for landings in the vDSO's padding.
    pub places: usize,
    /// Start and length of an area of ours.
    pub area: Option<(u64, u64)>,
}

impl Leftovers {
    /// True if there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Looks for leftovers without stopping the process. While somebody traces it, what is found may be in use.
///
/// # Errors
/// `Permission`, or the process is gone.
pub fn leftovers(pid: HostTid) -> Result<Leftovers> {
    let mem = RemoteMem::open_read_only(pid).during(pid, "opening its memory")?;
    let dir = ProcDir::open(pid).during(pid, "opening its /proc directory")?;
    let site = Site::find(pid, &dir, &mem)?;
    Ok(seen(&site, &mem))
}

fn seen(site: &Site, mem: &RemoteMem) -> Leftovers {
    let area = site.find_old_area(mem).map(|a| (a.base, a.len));
    Leftovers { places: site.burnt_places().len(), area }
}

/// More memory than this is not searched.
const MOST_BYTES: u64 = 64 << 30;

impl SeizedProcess {
    /// Removes what dead tracers left. Gives what was there.
    ///
    /// # Errors
    /// `Unsupported`: something still leads there; nothing was changed then.
    pub fn reclaim(&mut self) -> Result<Leftovers> {
        self.find_site()?;
        let pid = self.pid;
        let (site, mem, threads) = self.parts()?;
        let found = seen(site, mem);
        if found.is_empty() {
            return Ok(found);
        }
        let places = site.burnt_places();
        let mut ranges: Vec<Range<u64>> =
            places.iter().map(|&at| at..at + crate::arch::landing::COMPACT_BYTES as u64).collect();
        ranges.extend(found.area.map(|(base, len)| base..base + len));
        let leads = |word: u64| ranges.iter().any(|r| r.contains(&word));
        for thread in threads.iter() {
            if regs::words(thread.regs()).any(leads) {
                return Err(Error::new(Kind::Unsupported, thread.tid, "it is still inside of a landing"));
            }
        }
        let first = threads.first().map_or(pid, |t| t.tid);
        let all = ProcDir::open(first).and_then(|p| maps::read_maps(&p)).during(pid, "reading its mappings")?;
        search(pid, mem, &all, &ranges)?;
        for at in places {
            site.clear_place(mem, at)?;
        }
        if let Some((base, len)) = found.area {
            site.forget_area(mem)?;
            let got = self.call_from_vdso(0, libc::SYS_munmap, [base, len, 0, 0, 0, 0])?;
            let deadline = Deadline::after(crate::seize::GRACE);
            self.threads[0].bring_home(deadline)?;
            if let Some(errno) = errno_of(got) {
                return Err(Error::call(pid, "unmapping an old area", errno));
            }
        }
        Ok(found)
    }
}

/// Looks for a word that leads into `ranges` in all memory that can hold one.
fn search(pid: HostTid, mem: &RemoteMem, all: &[Mapping], ranges: &[Range<u64>]) -> Result<()> {
    let holds = |m: &&Mapping| {
        let ours = ranges.iter().any(|r| m.start < r.end && r.start < m.end);
        let kernels = m.name.starts_with(b"[v");
        !ours && !kernels && m.read && (m.write || m.inode == 0)
    };
    let wanted: Vec<&Mapping> = all.iter().filter(holds).collect();
    if wanted.iter().map(|m| m.end - m.start).sum::<u64>() > MOST_BYTES {
        return Err(Error::new(Kind::Unsupported, pid, "it has too much memory to be searched"));
    }
    // What lies below 4 GiB may be led to by half a word.
    let low = ranges.iter().any(|r| r.start < crate::arch::compat::END);
    let mut buffer = vec![0; 1 << 20];
    for m in wanted {
        let mut at = m.start;
        while at < m.end {
            let len = (m.end - at).min(buffer.len() as u64) as usize;
            let piece = &mut buffer[..len];
            if let Err(errno) = mem.read(VirtAddr(at), piece) {
                return Err(Error::call(pid, "searching its memory", errno));
            }
            let leads = |word: u64| ranges.iter().any(|r| r.contains(&word));
            let words = piece.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
            let halves = piece.as_chunks::<4>().0.iter().map(|half| u64::from(u32::from_le_bytes(*half)));
            if words.chain(halves.take_while(|_| low)).any(leads) {
                return Err(Error::new(Kind::Unsupported, pid, "something in its memory leads to a landing"));
            }
            at += len as u64;
        }
    }
    Ok(())
}

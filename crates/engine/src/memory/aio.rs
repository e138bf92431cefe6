//! AIO contexts (io_setup(2)): the ring is memory of the process, the context behind it is made again with the ring's state.
#![allow(unsafe_code, reason = "a ring is made by the kernel somewhere, filled, and moved into its place")]
use super::load::Images;
use crate::Result;
use crate::error::{Error, Kind, ResultExt};
use crate::images::Source;
use crate::task::Target;
use crust_image::proto::{AioRingEntry, VmaEntry};
use crust_kernel::aio::{self, EVENT_BYTES, HEAD_BYTES, RingHead};
use crust_kernel::mman;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::os::fd::OwnedFd;

/// Makes sure that the ring can be made again.
pub(super) fn look(t: &Target<'_>, vma: &VmaEntry) -> Result<()> {
    let mut bytes = [0; HEAD_BYTES as usize];
    mman::process_vm_readv(t.pid, &[(vma.start, HEAD_BYTES)], &mut bytes)
        .during("reading the ring of an AIO context")?;
    if RingHead::parse(&bytes, vma.end - vma.start).is_none() {
        return Err(Error::unsupported(
            "the ring of an AIO context was overwritten, and cannot be made again",
            "call io_destroy before the dump",
        ));
    }
    // The kernel does not tell what is under way, nor can that be taken back.
    log::info!("task {}: requests under way in the AIO context {:#x} are not saved", t.pid, vma.start);
    Ok(())
}

/// The record of a ring.
pub(super) fn record(vma: &VmaEntry) -> AioRingEntry {
    let len = vma.end - vma.start;
    AioRingEntry { id: vma.start, nr_req: requests(len), ring_len: len as u32 }
}

/// What to ask io_setup for to get a ring of `len` bytes: it doubles the number, adds two, and fills the last page.
fn requests(len: u64) -> u32 {
    let room = len.saturating_sub(HEAD_BYTES) / EVENT_BYTES;
    u32::try_from(room.saturating_sub(2) / 2).unwrap_or(u32::MAX)
}

/// Makes the context of the ring `vma`, with its events, and moves the ring to `at`, where nothing is.
pub(super) fn make(source: &Source, images: &Images, vma: &VmaEntry, at: u64) -> Result<()> {
    let len = vma.end - vma.start;
    let odd = || Error::bad_image("mm", "the ring of an AIO context cannot be");
    let mut bytes = vec![0; usize::try_from(len).ok().filter(|len| *len <= 1 << 30).ok_or_else(odd)?];
    images.pages.read_bytes(source, vma.start, &mut bytes)?;
    let wanted = RingHead::parse(&bytes, len).ok_or_else(odd)?;
    let known = images.mm.aios.iter().find(|a| a.id == vma.start);
    let context = aio::setup(known.map_or_else(|| requests(len), |a| a.nr_req)).map_err(|e| {
        let err = Error::kernel("making an AIO context (io_setup) failed", e);
        if e == Errno::AGAIN { err.help("raise /proc/sys/fs/aio-max-nr") } else { err }
    })?;
    // SAFETY: the context was made just now; a ring of another length is refused by what its head says.
    let Some(made) = (unsafe { aio::ring_head(context, len) }) else {
        return Err(Error::new(
            Kind::Unsupported,
            format!("this kernel makes AIO rings of another length than {len} bytes"),
        )
        .help("it depends on the number of processors: restore on a machine that has no more of them"));
    };
    debug_assert_eq!(made.nr, wanted.nr);
    turn(context, wanted)?;
    // SAFETY: the ring has the length of `bytes`, and every request was finished when it was submitted.
    unsafe { aio::set_events(context, bytes.get(HEAD_BYTES as usize..).unwrap_or_default()) };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: FIXED_NOREPLACE takes only what is free.
    unsafe { mman::mmap(at, len, libc::PROT_NONE, flags, None, 0) }.during("reserving addresses")?;
    // SAFETY: nothing refers to the ring, and the reservation at `at` was made just now and holds nothing.
    unsafe { mman::mremap(context, len, len, at) }.during("moving the ring of an AIO context")
}

/// Brings a new ring to where the old one stood, by as many requests: only the kernel moves the tail. The ring never holds
/// more than in the end.
fn turn(context: u64, wanted: RingHead) -> Result<()> {
    if (wanted.head, wanted.tail) == (0, 0) {
        return Ok(());
    }
    let sink =
        rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).during("opening /dev/null")?;
    let once_round = if wanted.tail < wanted.head { wanted.nr } else { 0 };
    for done in 1..=wanted.tail + once_round {
        submit(context, &sink).during("filling the ring of an AIO context")?;
        // SAFETY: the ring of a context made just now; a program may move the head as far as events were written.
        unsafe { aio::set_head(context, done.min(wanted.head)) };
    }
    Ok(())
}

/// Submits one request. Processors keep some of the room for requests to themselves, so all are asked if this one has none.
fn submit(context: u64, sink: &OwnedFd) -> rustix::io::Result<()> {
    let first = aio::submit_one(context, sink);
    if first != Err(Errno::AGAIN) {
        return first;
    }
    let allowed = sched_getaffinity(None)?;
    let on = |cpu: usize| {
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one).and_then(|()| aio::submit_one(context, sink))
    };
    let done = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).any(|cpu| on(cpu).is_ok());
    sched_setaffinity(None, &allowed)?;
    if done { Ok(()) } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_as_criu_counts_them() {
        assert_eq!([4096, 8192].map(requests), [62, 126]);
    }
}

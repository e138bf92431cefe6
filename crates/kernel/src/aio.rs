//! AIO contexts (io_setup(2)) and the ring that the kernel maps for each.
#![allow(unsafe_code, reason = "io_setup, io_submit and the ring's memory are in no safe wrapper")]
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd};

fn check(ret: libc::c_long) -> Result<u64> {
    if ret < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(ret as u64)
}

/// Bytes of the ring's head, and of each event behind it.
pub const HEAD_BYTES: u64 = 32;
/// `sizeof(struct io_event)`.
pub const EVENT_BYTES: u64 = 32;
const MAGIC: u32 = 0xa10a_10a1;

/// What the ring's head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingHead {
    /// Events that there is room for.
    pub nr: u32,
    /// The next event to be read; the program moves it.
    pub head: u32,
    /// Where the kernel writes the next.
    pub tail: u32,
}

impl RingHead {
    /// Takes the head apart; `None` if a ring of `len` bytes cannot have it.
    pub fn parse(bytes: &[u8], len: u64) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let ring = Self { nr: word(4)?, head: word(8)?, tail: word(12)? };
        let fits = u64::from(ring.nr) == len.checked_sub(HEAD_BYTES)? / EVENT_BYTES;
        (fits && word(16)? == MAGIC && word(28)? == HEAD_BYTES as u32 && ring.head < ring.nr && ring.tail < ring.nr)
            .then_some(ring)
    }
}

/// `struct iocb`.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key_and_flags: u64,
    opcode: u16,
    priority: i16,
    fd: u32,
    buf: u64,
    nbytes: u64,
    rest: [u64; 3],
}

const _: () = assert!(size_of::<Iocb>() == 64);
const IOCB_CMD_PWRITE: u16 = 1;

/// Makes a context for `requests`; the kernel makes more of it. Gives its id, which is the address of its ring.
///
/// # Errors
/// `EAGAIN` over /proc/sys/fs/aio-max-nr, `ENOSYS` without CONFIG_AIO.
pub fn setup(requests: u32) -> Result<u64> {
    let mut id = 0u64;
    // SAFETY: the kernel writes the eight bytes of `id`, which lives over the call.
    check(unsafe { libc::syscall(libc::SYS_io_setup, requests, &raw mut id) })?;
    Ok(id)
}

/// Submits one write of a byte to `sink`, a file that takes it at once (/dev/null): one event more is in the ring.
///
/// # Errors
/// `EAGAIN` if the ring is full, `EINVAL` if `context` is none.
pub fn submit_one(context: u64, sink: impl AsFd) -> Result<()> {
    let byte = 0u8;
    let request = Iocb {
        opcode: IOCB_CMD_PWRITE,
        fd: sink.as_fd().as_raw_fd() as u32,
        buf: (&raw const byte) as u64,
        nbytes: 1,
        ..Iocb::default()
    };
    let list = [&raw const request];
    // SAFETY: one request, which the kernel reads during the call; the write is done when it returns, so `byte` lives.
    match check(unsafe { libc::syscall(libc::SYS_io_submit, context, 1, list.as_ptr()) })? {
        1 => Ok(()),
        _ => Err(Errno::AGAIN),
    }
}

/// The head of a ring of this process.
///
/// # Safety
/// At `context` is the ring of a context of this process, of `len` bytes.
pub unsafe fn ring_head(context: u64, len: u64) -> Option<RingHead> {
    let mut bytes = [0u8; HEAD_BYTES as usize];
    // SAFETY: by this function's own contract a page at least is mapped there, readable.
    unsafe { std::ptr::copy_nonoverlapping(context as *const u8, bytes.as_mut_ptr(), bytes.len()) };
    RingHead::parse(&bytes, len)
}

/// Says that all events before `head` were read, as programs do.
///
/// # Safety
/// At `context` is the ring of a context of this process, writable.
pub unsafe fn set_head(context: u64, head: u32) {
    // SAFETY: the word `head` of the ring, aligned; the kernel reads it at any time, hence volatile.
    unsafe { std::ptr::write_volatile((context as *mut u32).add(2), head) };
}

/// Overwrites the events of a ring.
///
/// # Safety
/// At `context` is the ring of a context of this process, writable, with room for them, and nothing is under way in it.
pub unsafe fn set_events(context: u64, events: &[u8]) {
    // SAFETY: by this function's own contract there is room behind the head; the two cannot overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(events.as_ptr(), (context + HEAD_BYTES) as *mut u8, events.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_cannot_be_are_refused() {
        let head = |words: [u32; 8]| -> Vec<u8> { words.iter().flat_map(|w| w.to_ne_bytes()).collect() };
        let good = [0, 127, 3, 9, MAGIC, 1, 0, 32];
        assert_eq!(RingHead::parse(&head(good), 4096), Some(RingHead { nr: 127, head: 3, tail: 9 }));
        for (at, value) in [(1, 126), (2, 127), (3, 500), (4, 0), (7, 33)] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(RingHead::parse(&head(bad), 4096), None, "word {at}");
        }
        assert_eq!(RingHead::parse(&head(good)[..20], 4096), None);
        assert_eq!(RingHead::parse(&head(good), 10), None);
    }

    #[test]
    fn a_ring_turns() {
        let Ok(context) = setup(1) else { return };
        let null = std::fs::File::options().write(true).open("/dev/null").expect("there");
        // SAFETY: the context was made just now; its ring has a page at least.
        let len = (1..8).map(|n| n * 4096).find(|&len| unsafe { ring_head(context, len) }.is_some()).expect("a ring");
        submit_one(context, &null).expect("room");
        // SAFETY: as above.
        let head = unsafe { ring_head(context, len) }.expect("a ring");
        assert_eq!((head.head, head.tail), (0, 1));
        // SAFETY: takes a number that io_setup gave.
        unsafe { libc::syscall(libc::SYS_io_destroy, context) };
    }
}

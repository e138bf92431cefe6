//! fcntl(2) for leases and signal owners, and io_setup(2) with its companions.
#![allow(unsafe_code, reason = "raw system calls, one each")]
use crate::sys::cvt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// fcntl(2) with a number.
///
/// # Errors
/// As the call.
pub fn fcntl(fd: impl AsFd, op: i32, arg: i32) -> io::Result<i32> {
    // SAFETY: the programs use operations whose argument is a number.
    cvt(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), op, arg) })
}

/// Who gets a file's signals: `F_OWNER_TID` 0, `F_OWNER_PID` 1, `F_OWNER_PGRP` 2, and an id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Sort of id.
    pub kind: i32,
    /// Id.
    pub id: i32,
}

/// `F_SETOWN_EX`.
///
/// # Errors
/// As fcntl(2).
pub fn set_owner(fd: impl AsFd, owner: Owner) -> io::Result<()> {
    // SAFETY: the kernel reads a `struct f_owner_ex`, two ints, which `owner` is; it lives over the call.
    cvt(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), 15, &raw const owner) }).map(drop)
}

/// `F_GETOWN_EX`.
///
/// # Errors
/// As fcntl(2).
pub fn owner(fd: impl AsFd) -> io::Result<Owner> {
    let mut owner = Owner::default();
    // SAFETY: the kernel writes a `struct f_owner_ex`, two ints, which `owner` is; it lives over the call.
    cvt(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), 16, &raw mut owner) })?;
    Ok(owner)
}

/// What stands at the start of the ring of an AIO context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// How many events it holds.
    pub nr: u32,
    /// The next event to be read.
    pub head: u32,
    /// Where the next event will be written.
    pub tail: u32,
}

/// An AIO context (io_setup(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aio(u64);

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoEvent {
    /// What the request carried.
    pub data: u64,
    /// The request.
    pub obj: u64,
    /// What it returned.
    pub res: i64,
    /// And again.
    pub res2: i64,
}

/// `struct iocb`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    prio: i16,
    fd: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

const _: () = assert!(size_of::<Iocb>() == 64);

impl Aio {
    /// io_setup(2).
    ///
    /// # Errors
    /// As the call.
    pub fn setup(requests: u32) -> io::Result<Self> {
        let mut id = 0_u64;
        // SAFETY: the kernel writes the context's id into `id`, which lives over the call.
        cvt(unsafe { libc::syscall(libc::SYS_io_setup, requests, &raw mut id) })?;
        Ok(Self(id))
    }

    /// The id, which is the ring's address.
    pub fn id(self) -> u64 {
        self.0
    }

    /// Submits one write of one byte to `fd`, which carries `data`.
    ///
    /// # Errors
    /// As io_submit(2).
    pub fn write(self, fd: impl AsFd, data: u64) -> io::Result<()> {
        let byte = [7_u8];
        let request = Iocb {
            data,
            opcode: 1, // IOCB_CMD_PWRITE
            fd: fd.as_fd().as_raw_fd().cast_unsigned(),
            buf: byte.as_ptr() as u64,
            nbytes: 1,
            ..Iocb::default()
        };
        let list = [&raw const request];
        // SAFETY: one request, live over the call; the files this is used for are written before it returns.
        let n = cvt(unsafe { libc::syscall(libc::SYS_io_submit, self.0, 1, list.as_ptr()) })?;
        if n == 1 { Ok(()) } else { Err(io::Error::other("not submitted")) }
    }

    /// Takes up to `most` events that are there.
    ///
    /// # Errors
    /// As io_getevents(2).
    pub fn take(self, most: usize) -> io::Result<Vec<IoEvent>> {
        let mut events = vec![IoEvent::default(); most];
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let at = events.as_mut_ptr();
        // SAFETY: `events` has room for `most` events, and the time lives over the call.
        let n = cvt(unsafe { libc::syscall(libc::SYS_io_getevents, self.0, 0, most, at, &raw const now) })?;
        events.truncate(usize::try_from(n).unwrap_or(0));
        Ok(events)
    }

    /// What the ring says of itself; `None` if the context's memory is no ring.
    pub fn ring(self) -> Option<Ring> {
        // SAFETY: the kernel maps the ring at the address that is the context's id, a page at least, readable.
        let words: [u32; 5] =
            std::array::from_fn(|i| unsafe { std::ptr::read_volatile((self.0 as *const u32).add(i)) });
        let [_, nr, head, tail, magic] = words;
        (magic == 0xa10a_10a1).then_some(Ring { nr, head, tail })
    }
}

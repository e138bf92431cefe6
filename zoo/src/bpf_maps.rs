//! bpf(2), for the programs that have maps.
#![allow(unsafe_code, reason = "bpf(2) takes a union")]
use crate::sys::{adopt, cvt};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

type Attr = [u32; 32];

fn call(command: i32, attr: &mut Attr) -> io::Result<i64> {
    // SAFETY: `attr` lives over the call and is as long as the kernel is told; the buffers that it points to live in the
    // callers below, as long as the map's keys and values are.
    cvt(unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of::<Attr>()) })
}

fn set(attr: &mut Attr, at: usize, pointer: *const u8) {
    let n = pointer as u64;
    (attr[at], attr[at + 1]) = (n as u32, (n >> 32) as u32);
}

fn number(fd: &OwnedFd) -> u32 {
    fd.as_fd().as_raw_fd().cast_unsigned()
}

/// A map: its type, length of keys and values, entries, flags; and a name of at most eight letters.
///
/// # Errors
/// As bpf(2).
pub fn create([kind, key, value, most, flags]: [u32; 5], name: &str) -> io::Result<OwnedFd> {
    let mut attr = Attr::default();
    attr[..5].copy_from_slice(&[kind, key, value, most, flags]);
    for (i, b) in name.bytes().take(8).enumerate() {
        attr[7 + i / 4] |= u32::from(b) << (8 * (i % 4));
    }
    adopt(call(0, &mut attr)? as i32)
}

fn element(command: i32, map: &OwnedFd, key: &[u8], value: *const u8) -> io::Result<()> {
    let mut attr = Attr::default();
    attr[0] = number(map);
    set(&mut attr, 2, key.as_ptr());
    set(&mut attr, 4, value);
    call(command, &mut attr).map(drop)
}

/// Puts a value into a map.
///
/// # Errors
/// As bpf(2).
pub fn put(map: &OwnedFd, key: &[u8], value: &[u8]) -> io::Result<()> {
    element(2, map, key, value.as_ptr())
}

/// A value of a map, which are `len` bytes long.
///
/// # Errors
/// As bpf(2).
pub fn get(map: &OwnedFd, key: &[u8], len: usize) -> io::Result<Vec<u8>> {
    let mut value = vec![0; len];
    element(1, map, key, value.as_mut_ptr()).map(|()| value)
}

/// Takes a key away.
///
/// # Errors
/// As bpf(2).
pub fn remove(map: &OwnedFd, key: &[u8]) -> io::Result<()> {
    element(3, map, key, std::ptr::null())
}

/// Freezes a map.
///
/// # Errors
/// As bpf(2).
pub fn freeze(map: &OwnedFd) -> io::Result<()> {
    let mut attr = Attr::default();
    attr[0] = number(map);
    call(22, &mut attr).map(drop)
}

/// The first words of what the kernel tells of a map: type, number, lengths, entries, flags, four of the name.
///
/// # Errors
/// As bpf(2).
pub fn info(map: &OwnedFd) -> io::Result<[u32; 10]> {
    let mut words = [0u32; 10];
    let mut attr = Attr::default();
    (attr[0], attr[1]) = (number(map), size_of_val(&words) as u32);
    set(&mut attr, 2, words.as_mut_ptr().cast());
    call(15, &mut attr).map(|_| words)
}

/// Another open file of a map, for reading only.
///
/// # Errors
/// As bpf(2).
pub fn open_for_reading(map: &OwnedFd) -> io::Result<OwnedFd> {
    let mut attr = Attr::default();
    (attr[0], attr[2]) = (info(map)?[1], 1 << 3);
    adopt(call(14, &mut attr)? as i32)
}

/// A program for sockets that knows a map and does nothing.
///
/// # Errors
/// As bpf(2).
pub fn program(map: &OwnedFd) -> io::Result<OwnedFd> {
    // Load the map's address into r1, two words; r0 = 0; end.
    let code: [[u32; 2]; 4] = [[0x1118, number(map)], [0, 0], [0xb7, 0], [0x95, 0]];
    let mut attr = Attr::default();
    (attr[0], attr[1]) = (1, code.len() as u32);
    set(&mut attr, 2, code.as_ptr().cast());
    set(&mut attr, 4, c"GPL".as_ptr().cast());
    adopt(call(5, &mut attr)? as i32)
}

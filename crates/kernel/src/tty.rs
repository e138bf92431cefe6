//! Terminal ioctls on raw kernel structures: termios with its locks, size, pty numbers, modes, controlling terminals.
#![allow(unsafe_code, reason = "ioctl(2) takes addresses")]
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// The kernel's `struct termios` (TCGETS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Termios {
    /// Input modes.
    pub iflag: u32,
    /// Output modes.
    pub oflag: u32,
    /// Control modes.
    pub cflag: u32,
    /// Local modes.
    pub lflag: u32,
    /// Line discipline.
    pub line: u8,
    /// Special characters.
    pub cc: [u8; 19],
}

/// Rows, columns, and pixels both ways.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Winsize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
    /// Width in pixels.
    pub xpixel: u16,
    /// Height in pixels.
    pub ypixel: u16,
}

const _: () = assert!(size_of::<Termios>() == 36 && size_of::<Winsize>() == 8);

const TCGETS: u64 = 0x5401;
const TCSETS: u64 = 0x5402;
const TIOCGLCKTRMIOS: u64 = 0x5456;
const TIOCSLCKTRMIOS: u64 = 0x5457;
const TIOCGWINSZ: u64 = 0x5413;
const TIOCSWINSZ: u64 = 0x5414;
const TIOCGPTN: u64 = 0x8004_5430;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGEXCL: u64 = 0x8004_5440;
const TIOCPKT: u64 = 0x5420;
const TIOCEXCL: u64 = 0x540C;
const TIOCSCTTY: u64 = 0x540E;
const TIOCSPGRP: u64 = 0x5410;
const TIOCGPGRP: u64 = 0x540F;
const TIOCGSID: u64 = 0x5429;
const TIOCGPTPEER: u64 = 0x5441;

fn check(ret: i32) -> Result<()> {
    if ret < 0 { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)) } else { Ok(()) }
}

fn get<T: Copy + Default>(fd: impl AsFd, op: u64) -> Result<T> {
    let mut value = T::default();
    // SAFETY: each caller below pairs an operation that writes one structure with that structure's type; `value` has
    // room for it and lives over the call. All bit patterns are valid for these integer structures.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), op, &raw mut value) })?;
    Ok(value)
}

fn set<T: Copy>(fd: impl AsFd, op: u64, value: T) -> Result<()> {
    // SAFETY: each caller below pairs an operation that reads one structure with that structure's type; `value` lives
    // over the call.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), op, &raw const value) })
}

/// Modes of the terminal.
///
/// # Errors
/// `EIO` if it is hung up, `ENOTTY`.
pub fn termios(fd: impl AsFd) -> Result<Termios> {
    get(fd, TCGETS)
}

/// Bits of the modes that nobody may change.
///
/// # Errors
/// As [`termios`].
pub fn termios_locked(fd: impl AsFd) -> Result<Termios> {
    get(fd, TIOCGLCKTRMIOS)
}

/// Sets the modes. A background process is sent SIGTTOU unless that is blocked or ignored.
///
/// # Errors
/// As [`termios`].
pub fn set_termios(fd: impl AsFd, value: &Termios) -> Result<()> {
    set(fd, TCSETS, *value)
}

/// Sets the locked bits.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN.
pub fn set_termios_locked(fd: impl AsFd, value: &Termios) -> Result<()> {
    set(fd, TIOCSLCKTRMIOS, *value)
}

/// Size of the window.
///
/// # Errors
/// As [`termios`].
pub fn winsize(fd: impl AsFd) -> Result<Winsize> {
    get(fd, TIOCGWINSZ)
}

/// Sets the size.
///
/// # Errors
/// As [`termios`].
pub fn set_winsize(fd: impl AsFd, value: &Winsize) -> Result<()> {
    set(fd, TIOCSWINSZ, *value)
}

/// Number of the pty behind a master.
///
/// # Errors
/// `ENOTTY` for anything else.
pub fn pty_index(master: impl AsFd) -> Result<u32> {
    get(master, TIOCGPTN)
}

/// Whether the slave of a master may not be opened.
///
/// # Errors
/// `ENOTTY` for anything else.
pub fn pty_locked(master: impl AsFd) -> Result<bool> {
    Ok(get::<i32>(master, TIOCGPTLCK)? != 0)
}

/// Locks or unlocks the slave.
///
/// # Errors
/// `ENOTTY` for anything else.
pub fn set_pty_locked(master: impl AsFd, on: bool) -> Result<()> {
    set(master, TIOCSPTLCK, i32::from(on))
}

/// Packet mode of a master.
///
/// # Errors
/// `ENOTTY` for anything else.
pub fn packet_mode(master: impl AsFd) -> Result<bool> {
    Ok(get::<i32>(master, TIOCGPKT)? != 0)
}

/// Sets packet mode.
///
/// # Errors
/// `ENOTTY` for anything else.
pub fn set_packet_mode(master: impl AsFd, on: bool) -> Result<()> {
    set(master, TIOCPKT, i32::from(on))
}

/// Whether only root may open the terminal again.
///
/// # Errors
/// As [`termios`].
pub fn exclusive(fd: impl AsFd) -> Result<bool> {
    Ok(get::<i32>(fd, TIOCGEXCL)? != 0)
}

/// Forbids further opens.
///
/// # Errors
/// As [`termios`].
pub fn set_exclusive(fd: impl AsFd) -> Result<()> {
    // SAFETY: TIOCEXCL takes no argument.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), TIOCEXCL, 0) })
}

/// Makes the terminal the controlling one of our session, which we must lead.
///
/// # Errors
/// `EPERM` if we lead no session, or it has another terminal, or the terminal has another session.
pub fn set_controlling(fd: impl AsFd) -> Result<()> {
    // SAFETY: TIOCSCTTY takes a plain number: 0 never steals.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), TIOCSCTTY, 0) })
}

/// Makes a process group of our session the foreground group.
///
/// # Errors
/// `ENOTTY` if this is not our controlling terminal, `EPERM` for a group of another session.
pub fn set_foreground(fd: impl AsFd, group: i32) -> Result<()> {
    set(fd, TIOCSPGRP, group)
}

/// Whose session the terminal of a pty master controls, and its foreground group; as our pid namespace sees them.
///
/// # Errors
/// `ENOTTY` if it is nobody's.
pub fn master_session(master: impl AsFd) -> Result<(i32, i32)> {
    let master = master.as_fd();
    Ok((get(master, TIOCGSID)?, get(master, TIOCGPGRP)?))
}

/// Opens the slave of a pty master, wherever it is mounted. It never becomes our controlling terminal, and never waits.
///
/// # Errors
/// `EIO` if it is locked.
pub fn open_slave(master: impl AsFd) -> Result<OwnedFd> {
    open_slave_with(master, libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC)
}

/// The same with flags of one's own: they stay as given, while open(2) adds O_LARGEFILE.
///
/// # Errors
/// As [`open_slave`].
pub fn open_slave_with(master: impl AsFd, flags: i32) -> Result<OwnedFd> {
    // SAFETY: TIOCGPTPEER takes a plain number.
    let fd = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), TIOCGPTPEER, flags) };
    check(fd)?;
    // SAFETY: the kernel has just opened it; nothing else knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs `f` with SIGTTOU blocked in this thread, so that a background process may change its terminal.
pub fn without_sigttou<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: sigset_t is plain memory that sigemptyset fills before use; both sets live over the calls, and the old mask
    // is put back below.
    let old = unsafe {
        let mut block: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut block);
        libc::sigaddset(&raw mut block, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const block, &raw mut old);
        old
    };
    let result = f();
    // SAFETY: `old` was filled by pthread_sigmask above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, std::ptr::null_mut()) };
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pty_pair() {
        let master =
            rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).expect("ptmx");
        assert_eq!(pty_locked(&master), Ok(true));
        set_pty_locked(&master, false).expect("unlock");
        assert_eq!(pty_locked(&master), Ok(false));
        let size = Winsize { rows: 5, cols: 6, xpixel: 7, ypixel: 8 };
        set_winsize(&master, &size).expect("size");
        assert_eq!(winsize(&master), Ok(size));
        let mut modes = termios(&master).expect("modes");
        modes.lflag &= !2;
        set_termios(&master, &modes).expect("set");
        assert_eq!(termios(&master), Ok(modes));
        assert_eq!((packet_mode(&master), exclusive(&master)), (Ok(false), Ok(false)));
        let (r, _w) = rustix::pipe::pipe().expect("pipe");
        assert_eq!(pty_index(&r), Err(Errno::NOTTY));
    }
}

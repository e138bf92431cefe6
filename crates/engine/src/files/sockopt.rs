//! Options that sockets of all families have (`sk_opts_entry`). Only what differs from a new socket is set.
use crate::{Error, Result, ResultExt};
use crust_image::proto::SkOptsEntry;
use crust_kernel::sock_diag::{option, option_time, set_option, set_option_time};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd};

const SOL: i32 = libc::SOL_SOCKET;
const SO_BUF_LOCK: i32 = 72;

/// Reads the options of a socket.
pub(super) fn dump(fd: BorrowedFd<'_>, unix: bool) -> Result<SkOptsEntry> {
    let get = |name: i32| option(fd, SOL, name).during("reading a socket option");
    let flag = |name: i32| get(name).map(|v| Some(v != 0));
    let number = |name: i32| get(name).map(|v| Some(v as u32));
    let (snd_s, snd_us) = option_time(fd, libc::SO_SNDTIMEO).during("reading a socket option")?;
    let (rcv_s, rcv_us) = option_time(fd, libc::SO_RCVTIMEO).during("reading a socket option")?;
    if option(fd, SOL, libc::SO_GET_FILTER).unwrap_or(0) != 0 {
        return Err(Error::unsupported("a socket with a packet filter is not supported yet", "detach the filter"));
    }
    let mut opts = SkOptsEntry {
        so_sndbuf: get(libc::SO_SNDBUF)? as u32,
        so_rcvbuf: get(libc::SO_RCVBUF)? as u32,
        so_snd_tmo_sec: snd_s as u64,
        so_snd_tmo_usec: snd_us as u64,
        so_rcv_tmo_sec: rcv_s as u64,
        so_rcv_tmo_usec: rcv_us as u64,
        reuseaddr: flag(libc::SO_REUSEADDR)?,
        so_priority: number(libc::SO_PRIORITY)?,
        so_rcvlowat: number(libc::SO_RCVLOWAT)?,
        so_dontroute: flag(libc::SO_DONTROUTE)?,
        so_no_check: flag(libc::SO_NO_CHECK)?,
        so_reuseport: flag(libc::SO_REUSEPORT)?,
        so_broadcast: flag(libc::SO_BROADCAST)?,
        so_keepalive: flag(libc::SO_KEEPALIVE)?,
        so_oobinline: number(libc::SO_OOBINLINE)?,
        so_buf_lock: option(fd, SOL, SO_BUF_LOCK).ok().map(|v| v as u32),
        ..SkOptsEntry::default()
    };
    let mark = get(libc::SO_MARK)?;
    if mark != 0 {
        opts.so_mark = Some(mark as u32);
    }
    if unix {
        opts.so_passcred = flag(libc::SO_PASSCRED)?;
        opts.so_passsec = flag(libc::SO_PASSSEC)?;
    }
    Ok(opts)
}

/// Gives a new socket its options. Reuse of addresses comes before bind: see [`before_bind`].
pub(super) fn restore(fd: impl AsFd, o: &SkOptsEntry) -> Result<()> {
    let fd = fd.as_fd();
    let set = |name: i32, want: Option<i32>| -> Result<()> {
        let Some(want) = want else { return Ok(()) };
        if option(fd, SOL, name) == Ok(want) {
            return Ok(());
        }
        match set_option(fd, SOL, name, want) {
            Err(Errno::OPNOTSUPP | Errno::NOPROTOOPT) if want == 0 => Ok(()),
            other => other.during("setting a socket option"),
        }
    };
    let flag = |v: Option<bool>| v.map(i32::from);
    let number = |v: Option<u32>| v.map(|v| v as i32);
    before_bind(fd, o)?;
    for (want, get, force, plain) in [
        (o.so_sndbuf, libc::SO_SNDBUF, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
        (o.so_rcvbuf, libc::SO_RCVBUF, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
    ] {
        // The kernel doubles what it is given.
        if option(fd, SOL, get) != Ok(want as i32) && want != 0 {
            let half = (want / 2) as i32;
            if set_option(fd, SOL, force, half).is_err() {
                set_option(fd, SOL, plain, half).during("setting a socket's buffer size")?;
            }
        }
    }
    if let Some(lock) = o.so_buf_lock
        && option(fd, SOL, SO_BUF_LOCK).is_ok_and(|now| now != lock as i32)
    {
        set_option(fd, SOL, SO_BUF_LOCK, lock as i32).during("setting a socket option")?;
    }
    for (name, s, us) in [
        (libc::SO_SNDTIMEO, o.so_snd_tmo_sec, o.so_snd_tmo_usec),
        (libc::SO_RCVTIMEO, o.so_rcv_tmo_sec, o.so_rcv_tmo_usec),
    ] {
        if (s, us) != (0, 0) {
            set_option_time(fd, name, (s as i64, us as i64)).during("setting a socket's timeout")?;
        }
    }
    set(libc::SO_PRIORITY, number(o.so_priority))?;
    set(libc::SO_RCVLOWAT, number(o.so_rcvlowat))?;
    set(libc::SO_MARK, number(o.so_mark))?;
    set(libc::SO_PASSCRED, flag(o.so_passcred))?;
    set(libc::SO_PASSSEC, flag(o.so_passsec))?;
    set(libc::SO_DONTROUTE, flag(o.so_dontroute))?;
    set(libc::SO_NO_CHECK, flag(o.so_no_check))?;
    set(libc::SO_BROADCAST, flag(o.so_broadcast))?;
    set(libc::SO_KEEPALIVE, flag(o.so_keepalive))?;
    set(libc::SO_OOBINLINE, number(o.so_oobinline))
}

/// Reuse of addresses and ports, which bind(2) asks for.
pub(super) fn before_bind(fd: impl AsFd, o: &SkOptsEntry) -> Result<()> {
    let fd = fd.as_fd();
    for (name, want) in [(libc::SO_REUSEADDR, o.reuseaddr), (libc::SO_REUSEPORT, o.so_reuseport)] {
        if want == Some(true) && option(fd, SOL, name) != Ok(1) {
            set_option(fd, SOL, name, 1).during("setting a socket option")?;
        }
    }
    Ok(())
}

//! timerfd(2): clock, time left, period, and expirations nobody has read.
use super::look::FdView;
use super::restore::Opener;
use super::table::Records;
use super::{FdKind, alone};
use crate::{Error, Kind, Result, ResultExt};
use crust_image::proto::{FdTypes, FileEntry, TimerfdEntry};
use crust_kernel::fd::{TimerSpec, timerfd_create, timerfd_set_ticks, timerfd_settime};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::time::Duration;

pub(super) static KIND: FdKind = FdKind {
    name: "timerfd",
    fd_type: FdTypes::Timerfd,
    recognise: |v| v.is_anon("[timerfd]"),
    dump,
    group: alone,
    open,
};

const ABSTIME: u32 = libc::TFD_TIMER_ABSTIME as u32;
const CANCEL_ON_SET: u32 = libc::TFD_TIMER_CANCEL_ON_SET as u32;

/// "(seconds, nanoseconds)"
fn pair(text: &str) -> Option<(u64, u64)> {
    let (s, ns) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    Some((s.trim().parse().ok()?, ns.trim().parse().ok()?))
}

fn dump(v: &FdView<'_>, id: u32, _: &mut Records<'_>) -> Result<FileEntry> {
    let odd = || Error::new(Kind::Internal, "fdinfo of a timerfd has an unknown form");
    let (vsec, vnsec) = v.info.get("it_value").and_then(pair).ok_or_else(odd)?;
    let (isec, insec) = v.info.get("it_interval").and_then(pair).ok_or_else(odd)?;
    let settime = v.info.get("settime flags").and_then(|f| u32::from_str_radix(f, 8).ok()).ok_or_else(odd)?;
    let tfd = TimerfdEntry {
        id,
        flags: v.info.flags,
        fown: v.fown()?,
        clockid: v.info.number("clockid").ok_or_else(odd)?,
        ticks: v.info.number("ticks").ok_or_else(odd)?,
        // The kernel shows time left in any case; CRIU's images carry the flags as the program gave them.
        settime_flags: settime,
        vsec,
        vnsec,
        isec,
        insec,
    };
    Ok(FileEntry { tfd: Some(Box::new(tfd)), ..FileEntry::default() })
}

/// The clock that tells what a timer's clock says: those of alarms are asked only where the machine can be woken.
fn told_by(clock: u32) -> u32 {
    match clock as libc::clockid_t {
        libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME as u32,
        libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME as u32,
        _ => clock,
    }
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    for e in entries {
        let r = cx.body(e, e.tfd.as_ref())?;
        let fd = timerfd_create(r.clockid).during("timerfd_create")?;
        let nanos = |n: u64| u32::try_from(n).ok().filter(|n| *n < 1_000_000_000);
        let (Some(vns), Some(ins)) = (nanos(r.vnsec), nanos(r.insec)) else {
            return Err(Error::bad_image("files.img", format!("timerfd {} has an impossible time", e.id)));
        };
        let mut value = Duration::new(r.vsec, vns);
        let interval = Duration::new(r.isec, ins);
        if r.settime_flags & ABSTIME != 0 && !value.is_zero() {
            // Time left was saved: absolute again from now on, so that clock changes are followed as before.
            let now = crust_kernel::fd::clock_now(told_by(r.clockid)).during("asking a clock")?;
            value = value.saturating_add(now);
        }
        // A period without a next time would never fire.
        if value.is_zero() && !interval.is_zero() {
            value = interval;
        }
        let flags = r.settime_flags & (ABSTIME | CANCEL_ON_SET);
        timerfd_settime(&fd, flags, TimerSpec { value, interval }).during("timerfd_settime")?;
        if r.ticks != 0 {
            match timerfd_set_ticks(&fd, r.ticks) {
                Ok(()) => {}
                Err(Errno::NOTTY) => log::warn!("this kernel cannot give a timerfd its unread expirations back"),
                Err(e) => return Err(Error::kernel("setting a timerfd's expirations failed", e)),
            }
        }
        cx.settle(&fd, r.flags, &r.fown)?;
        opened.push((e.id, fd));
    }
    Ok(opened)
}

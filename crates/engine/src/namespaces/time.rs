//! The time namespace: the monotonic and the boot-time clock of a restored tree go on from where they stood at the dump.
//!
//! The image holds both clocks as the tree saw them. Restore makes a time namespace whose offsets bring them back, so that a
//! program sees no jump, neither after minutes nor after a reboot. Linux 5.6.
use crate::images::Source;
use crate::{Error, Kind, Result};
use crust_image::ImageKind;
use crust_image::proto::{TimensEntry, Timespec};
use crust_kernel::process;
use crust_kernel::procfs::ProcDir;
use rustix::fs::{Mode, OFlags};
use rustix::time::ClockId;
use std::os::fd::{AsFd, OwnedFd};

const NANOS: i128 = 1_000_000_000;

fn now(id: ClockId) -> i128 {
    let t = rustix::time::clock_gettime(id);
    i128::from(t.tv_sec) * NANOS + i128::from(t.tv_nsec)
}

/// (monotonic, boottime) offsets in nanoseconds from `/proc/PID/timens_offsets`; `None` if the text is of another form.
fn parse_offsets(text: &str) -> Option<(i128, i128)> {
    let mut found = (None, None);
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (name, sec, nsec) = (words.next()?, words.next()?.parse::<i64>().ok()?, words.next()?.parse::<i64>().ok()?);
        let offset = Some(i128::from(sec) * NANOS + i128::from(nsec));
        match name {
            "monotonic" => found.0 = offset,
            "boottime" => found.1 = offset,
            _ => {}
        }
    }
    Some((found.0?, found.1?))
}

fn offsets_of(proc: &ProcDir) -> (i128, i128) {
    // Without time namespaces in the kernel there are no offsets.
    proc.read_text("timens_offsets").ok().and_then(|t| parse_offsets(&t)).unwrap_or((0, 0))
}

/// Both clocks as the process sees them now.
pub fn look(proc: &ProcDir) -> TimensEntry {
    let ours = offsets_of_self();
    let theirs = offsets_of(proc);
    let clock = |id, ours: i128, theirs: i128| {
        let t = now(id) - ours + theirs;
        Timespec { tv_sec: (t / NANOS) as u64, tv_nsec: (t % NANOS) as u64 }
    };
    TimensEntry {
        monotonic: clock(ClockId::Monotonic, ours.0, theirs.0),
        boottime: clock(ClockId::Boottime, ours.1, theirs.1),
    }
}

fn offsets_of_self() -> (i128, i128) {
    std::fs::read_to_string("/proc/self/timens_offsets").ok().and_then(|t| parse_offsets(&t)).unwrap_or((0, 0))
}

/// What the tree's tasks are forked into. Dropping it brings our own future children back to our own namespace.
#[derive(Debug)]
pub struct Entered(Option<OwnedFd>);

impl Drop for Entered {
    fn drop(&mut self) {
        let Some(own) = &self.0 else { return };
        match process::set_namespace(own.as_fd(), libc::CLONE_NEWTIME) {
            // A user without privileges may leave a time namespace for a new one only.
            Ok(()) | Err(rustix::io::Errno::PERM) => {}
            Err(e) => log::warn!("our own children stay in the time namespace of the restored tree: {e}"),
        }
    }
}

/// Makes a time namespace for the children that are forked from now on, with the clocks of the image.
///
/// # Errors
/// `Permission` if the clocks would go backwards and we may not make a time namespace. If they would only jump forward,
/// the tree is restored without one.
pub fn enter(source: &Source) -> Result<Entered> {
    let Some(image) = source.read_one_if::<TimensEntry>(ImageKind::Timens, 0)? else { return Ok(Entered(None)) };
    let nanos = |t: &Timespec| i128::from(t.tv_sec) * NANOS + i128::from(t.tv_nsec);
    let ours = offsets_of_self();
    // Offsets are counted from the clocks of the machine, not from those of the namespace we are in.
    let offset = |image: &Timespec, id, ours: i128| nanos(image) - (now(id) - ours);
    let mono = offset(&image.monotonic, ClockId::Monotonic, ours.0);
    let boot = offset(&image.boottime, ClockId::Boottime, ours.1);
    let split = |n: i128| (n.div_euclid(NANOS), n.rem_euclid(NANOS));
    let ((ms, mn), (bs, bn)) = (split(mono), split(boot));
    match make(&format!("monotonic {ms} {mn}\nboottime {bs} {bn}\n")) {
        Ok(entered) => Ok(entered),
        Err(e) if mono <= ours.0 && boot <= ours.1 => {
            log::info!("no time namespace ({e}): the tree's clocks jump forward by the time it was gone");
            Ok(Entered(None))
        }
        Err(e) => {
            Err(Error::kernel("the clocks of the image are ahead of this machine's, and no time namespace can be made", e)
                .kind_is(Kind::Permission)
                .help("restore as root or in a user namespace (CAP_SYS_ADMIN and CAP_SYS_TIME), or wait until this machine has been up as long"))
        }
    }
}

/// The first takes CAP_SYS_ADMIN, the offsets CAP_SYS_TIME.
fn make(offsets: &str) -> rustix::io::Result<Entered> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = rustix::fs::open("/proc/self/ns/time", flags, Mode::empty())?;
    process::unshare(libc::CLONE_NEWTIME)?;
    let entered = Entered(Some(own));
    let offsets = std::fs::write("/proc/self/timens_offsets", offsets);
    offsets.map_err(|e| rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::IO))?;
    Ok(entered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read() {
        assert_eq!(
            parse_offsets("monotonic           5 7\nboottime          -1 3\n"),
            Some((5 * NANOS + 7, 3 - NANOS))
        );
        assert_eq!(parse_offsets("monotonic 5\n"), None);
        assert_eq!(parse_offsets(""), None);
    }

    #[test]
    fn own_clocks_are_seen_as_they_are() {
        let me = crust_kernel::HostTid::new(std::process::id() as i32).expect("a pid");
        let before = now(ClockId::Monotonic);
        let seen = look(&ProcDir::open_self(me).expect("own /proc entry")).monotonic;
        let seen = i128::from(seen.tv_sec) * NANOS + i128::from(seen.tv_nsec);
        assert!(before <= seen && seen <= now(ClockId::Monotonic));
    }
}

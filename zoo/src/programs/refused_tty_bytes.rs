//! Refused: bytes that were typed at a terminal and wait to be read, which only reading would show. They are still there.
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use std::os::fd::AsRawFd;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let Ok(master) = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY) else { zoo.skip("no pseudo-terminals") };
    let name = grantpt(&master).and_then(|()| unlockpt(&master)).and_then(|()| ptsname(&master, Vec::new()));
    let slave = name.map(|name| rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()));
    let Ok(Ok(slave)) = slave else { zoo.skip("no pseudo-terminals") };
    let Ok(mut settings) = tcgetattr(&slave) else { return };
    settings.make_raw();
    zoo::must(tcsetattr(&slave, OptionalActions::Now, &settings));
    zoo.eq("type", rustix::io::write(&master, b"hello"), Ok(5));
    // The kernel brings them over in its own time.
    while rustix::io::ioctl_fionread(&slave) != Ok(5) {
        std::thread::yield_now();
    }
    super::hold_refused(&mut zoo, slave.as_raw_fd().into(), "5 bytes wait in a terminal");
    zoo.eq("the bytes", rustix::io::read(&slave, &mut [0; 16]), Ok(5));
}

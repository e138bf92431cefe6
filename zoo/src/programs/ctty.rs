//! A child with a controlling terminal of its own and a foreground group.
use rustix::process::{Pid, ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{tcgetpgrp, tcgetsid};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let Ok(master) = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY) else { zoo.skip("no pseudo-terminals") };
    let name = grantpt(&master).and_then(|()| unlockpt(&master)).and_then(|()| ptsname(&master, Vec::new()));
    let Ok(name) = name else { zoo.skip("no pseudo-terminals") };
    zoo.fork("shell", |mut zoo| {
        zoo.ok("setsid", setsid().is_ok());
        let path = name.to_string_lossy().into_owned();
        let Ok(tty) = std::fs::OpenOptions::new().read(true).write(true).open(path) else { return };
        let set = ioctl_tiocsctty(&tty);
        zoo.get("controlling terminal", set);
        let me = zoo::sys::getpid();
        while zoo.gap() {
            zoo.eq("session of the terminal", tcgetsid(&tty).map(|p| Pid::as_raw(Some(p))), Ok(me));
            zoo.eq("foreground group", tcgetpgrp(&tty).map(|p| Pid::as_raw(Some(p))), Ok(me));
            zoo.ok("/dev/tty", std::fs::File::open("/dev/tty").is_ok());
        }
    });
    while zoo.gap() {}
}

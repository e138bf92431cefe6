//! A session whose controlling terminal nobody of it has open, only the root has its master; and a slave that a process of
//! another session has open.
use rustix::process::{Pid, ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{tcgetpgrp, tcgetsid};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let Ok(master) = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY) else { zoo.skip("no pseudo-terminals") };
    let name = grantpt(&master).and_then(|()| unlockpt(&master)).and_then(|()| ptsname(&master, Vec::new()));
    let Ok(name) = name else { zoo.skip("no pseudo-terminals") };
    let path = name.to_string_lossy().into_owned();
    let open = || std::fs::OpenOptions::new().read(true).write(true).open(&path);
    zoo.expect("stranger");
    let leader = zoo.fork("leader", |mut zoo| {
        zoo.ok("setsid", setsid().is_ok());
        let Ok(tty) = open() else { return };
        let set = ioctl_tiocsctty(&tty);
        zoo.get("controlling terminal", set);
        let stranger = zoo.fork("stranger", |mut zoo| {
            zoo.ok("setsid", setsid().is_ok());
            while zoo.gap() {
                zoo.ok("no session's terminal", tcgetsid(&tty).is_err());
                zoo.ok("the terminal is there", rustix::termios::isatty(&tty));
                zoo.ok("no /dev/tty", std::fs::File::open("/dev/tty").is_err());
            }
        });
        drop(tty);
        while zoo.gap() {
            zoo.ok("/dev/tty", std::fs::File::open("/dev/tty").is_ok());
        }
        zoo.ok("the stranger ends", zoo::sys::waitpid(stranger).is_ok());
    });
    while zoo.gap() {
        let raw = |p: rustix::io::Result<Pid>| p.map(|p| Pid::as_raw(Some(p)));
        zoo.eq("session of the terminal", raw(tcgetsid(&master)), Ok(leader));
        zoo.eq("foreground group", raw(tcgetpgrp(&master)), Ok(leader));
    }
}

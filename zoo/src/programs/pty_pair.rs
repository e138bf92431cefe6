//! A pseudo-terminal with both ends here: settings, size, and it still talks.
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let Ok(master) = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY) else { zoo.skip("no pseudo-terminals") };
    let name = grantpt(&master).and_then(|()| unlockpt(&master)).and_then(|()| ptsname(&master, Vec::new()));
    let slave = name.map(|name| {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::open(name.as_c_str(), flags, Mode::empty())
    });
    let Ok(Ok(slave)) = slave else { zoo.skip("no pseudo-terminals") };
    zoo.tell("at", &format!("task {}: fd {}", zoo::sys::getpid(), std::os::fd::AsRawFd::as_raw_fd(&master)));
    let Ok(mut settings) = tcgetattr(&slave) else { return };
    settings.make_raw();
    zoo::must(tcsetattr(&slave, OptionalActions::Now, &settings));
    zoo::must(tcsetwinsize(&slave, Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 }));
    let look = || {
        let size = tcgetwinsize(&master).map(|w| (w.ws_row, w.ws_col));
        (size, tcgetattr(&slave).map(|t| (t.input_modes, t.output_modes, t.local_modes, t.control_modes)))
    };
    let before = look();
    while zoo.gap() {
        zoo.eq("size and settings", look(), before);
        for (from, to) in [(&master, &slave), (&slave, &master)] {
            zoo.eq("write", rustix::io::write(from, b"hello"), Ok(5));
            zoo.eq("read", rustix::io::read(to, &mut [0; 16]), Ok(5));
        }
    }
}

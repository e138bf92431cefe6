//! Bytes that wait in pseudo-terminals: typed lines, an end of file and half a line; raw bytes both ways; output in packet
//! mode at an exclusive terminal; the last words of one whose slave is closed.
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, ioctl_fionread, read, write};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::os::fd::{AsRawFd, OwnedFd};

const TIOCPKT: u64 = 0x5420;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCEXCL: u64 = 0x540C;
const TIOCGEXCL: u64 = 0x8004_5440;

fn pair(zoo: &zoo::Zoo, change: impl FnOnce(&mut Termios)) -> (OwnedFd, OwnedFd) {
    let Ok(master) = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY) else { zoo.skip("no pseudo-terminals") };
    let name = grantpt(&master).and_then(|()| unlockpt(&master)).and_then(|()| ptsname(&master, Vec::new()));
    let slave = name.map(|name| rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()));
    let Ok(Ok(slave)) = slave else { zoo.skip("no pseudo-terminals") };
    let mut settings = zoo::must(tcgetattr(&slave));
    change(&mut settings);
    zoo::must(tcsetattr(&slave, OptionalActions::Now, &settings));
    (master, slave)
}

/// The kernel brings bytes over in its own time.
fn wait(fd: &OwnedFd, n: u64) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while ioctl_fionread(fd) != Ok(n) {
        assert!(std::time::Instant::now() < end, "{n} bytes do not come, but {:?}", ioctl_fionread(fd));
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

fn take(fd: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut bytes = [0; 256];
    read(fd, &mut bytes).map(|n| bytes[..n].to_vec())
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (edited, editor) = pair(&zoo, |_| {});
    let (raw, plain) = pair(&zoo, Termios::make_raw);
    let (packets, strict) = pair(&zoo, Termios::make_raw);
    zoo::must(zoo::sys::ioctl_set(packets.as_raw_fd(), TIOCPKT, 1));
    zoo::must(zoo::sys::ioctl_set(strict.as_raw_fd(), TIOCEXCL, 0));
    // openpty(3) opens slaves so: without the flag that open(2) adds.
    let peer = rustix::pty::ioctl_tiocgptpeer(&raw, OpenptFlags::RDWR | OpenptFlags::NOCTTY);
    let Ok(peer) = peer else { zoo.skip("no slaves by their masters") };
    let peer_flags = zoo::must(rustix::fs::fcntl_getfl(&peer));
    let (heir, gone) = pair(&zoo, Termios::make_raw);
    zoo::must(write(&gone, b"last words"));
    drop(gone);
    wait(&heir, 10);
    let mut last = true;
    let modes = || {
        let of = |fd: &OwnedFd| {
            tcgetattr(fd).map(|t| (t.input_modes, t.output_modes, t.local_modes, format!("{:?}", t.special_codes)))
        };
        [of(&editor), of(&plain), of(&strict)]
    };
    let before = modes();
    let mut on = true;
    while on {
        // Ctrl-D ends "two"; the rest is no line yet. The echo comes when the bytes are there.
        zoo::must(write(&edited, b"one\ntwo\x04thr"));
        wait(&edited, 11);
        wait(&editor, 7);
        zoo::must(write(&raw, b"\x00typed\xff\x03\r\n"));
        zoo::must(write(&plain, b"\x11written\xff\n"));
        wait(&plain, 10);
        wait(&raw, 10);
        zoo::must(write(&strict, b"packet"));
        wait(&packets, 6);
        on = zoo.gap();
        if !on {
            break;
        }
        zoo.eq("settings", modes(), before.clone());
        zoo.eq("flags", rustix::fs::fcntl_getfl(&peer), Ok(peer_flags));
        zoo.eq("a line", take(&editor), Ok(b"one\n".to_vec()));
        zoo.eq("what an end of file ended", take(&editor), Ok(b"two".to_vec()));
        zoo.eq("no more lines", ioctl_fionread(&editor), Ok(0));
        zoo.eq("the echo", take(&edited), Ok(b"one\r\ntwothr".to_vec()));
        zoo::must(write(&edited, b"ee\n"));
        wait(&editor, 6);
        zoo.eq("half a line, completed", take(&editor), Ok(b"three\n".to_vec()));
        zoo.eq("its echo", take(&edited), Ok(b"ee\r\n".to_vec()));
        zoo.eq("typed bytes", take(&plain), Ok(b"\x00typed\xff\x03\r\n".to_vec()));
        zoo.eq("written bytes", take(&raw), Ok(b"\x11written\xff\n".to_vec()));
        zoo.eq("a packet", take(&packets), Ok(b"\0packet".to_vec()));
        zoo.eq("packet mode", zoo::sys::ioctl_int(packets.as_raw_fd(), TIOCGPKT).ok(), Some(1));
        zoo.eq("exclusive", zoo::sys::ioctl_int(strict.as_raw_fd(), TIOCGEXCL).ok(), Some(1));
        if last {
            zoo.eq("last words", take(&heir), Ok(b"last words".to_vec()));
            last = false;
        }
        zoo.eq("nobody is there any more", take(&heir), Err(Errno::IO));
    }
}

//! What systemd does for a socket unit, in a few lines: hold the socket, and start the service when somebody comes.
use crust_kernel::fork::{Fork, fork};
use crust_kernel::{HostTid, fd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The first descriptor that LISTEN_FDS counts.
const FIRST: i32 = sd_daemon::LISTEN_FDS_START;

/// Listens on `path` in a child that becomes `crust service` at the first connection; the child's pid.
pub(super) fn start(path: &Path, log: &Path) -> io::Result<HostTid> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, 16)?;
    let child = match fork()? {
        Fork::Parent(child) => return Ok(child),
        Fork::Child => move || -> io::Error {
            let mut fds = [PollFd::new(&socket, PollFlags::IN)];
            while let Err(e) = poll(&mut fds, None) {
                if e != rustix::io::Errno::INTR {
                    return e.into();
                }
            }
            // The socket may well be number 3 itself: then dup3 would refuse, and only its CLOEXEC has to go.
            let up = match rustix::io::fcntl_dupfd_cloexec(&socket, FIRST + 1) {
                Ok(up) => up,
                Err(e) => return e.into(),
            };
            if let Err(e) = fd::place(&up, FIRST, false) {
                return e.into();
            }
            Command::new("/proc/self/exe")
                .args(["service", "-v4", "-o"])
                .arg(log)
                .env("LISTEN_FDS", "1")
                .env("LISTEN_PID", std::process::id().to_string())
                .env_remove("LISTEN_FDNAMES")
                .env_remove("NOTIFY_SOCKET")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .exec()
        },
    };
    log::error!("the service cannot be started: {}", child());
    #[allow(clippy::exit, reason = "a forked child must never return into the demonstration")]
    std::process::exit(1)
}

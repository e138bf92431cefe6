//! Activation without a systemd as PID 1: by `systemd-socket-activate`, and by an environment made by hand.
use crate::common::{CRUST, Dir, Process, connect, inside_with, listener};
use crate::program::{Program, until};
use crate::skip;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, recv, socket_with, sockopt};
use rustix::process::{Pid, Signal};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const ACTIVATE: &str = "/usr/bin/systemd-socket-activate";

/// Inside of a pid namespace that goes with its maker.
fn inside(name: &str) -> bool {
    inside_with(name, &["--kill-child"])
}

fn terminate(process: &Process) {
    rustix::process::kill_process(Pid::from_child(&process.0), Signal::TERM).unwrap();
}

/// The first request ever is a dump; then the program comes back through the same service.
fn dump_and_restore(socket: &Path) {
    let program = Program::sample("tool", CRUST);
    let images = program.images();
    assert!(!connect(socket).dump(program.opts(&images), |_| true).unwrap());
    program.must_be_gone();
    assert_eq!(connect(socket).restore(program.opts(&images), |_| true).unwrap(), program.pid);
    program.goes_on();
    assert_eq!(connect(socket).version().unwrap().major_number, 4);
}

#[test]
fn systemds_activation_tool_starts_the_service() {
    const NAME: &str = "tools::systemds_activation_tool_starts_the_service";
    if !Path::new(ACTIVATE).exists() {
        return skip(NAME, "systemd is not installed");
    }
    if !inside(NAME) {
        return;
    }
    let dir = Dir::new("activate");
    let socket = dir.path("s");
    let stderr = File::create(dir.path("stderr")).unwrap();
    let mut tool = Command::new(ACTIVATE);
    tool.arg("--seqpacket").arg("--listen").arg(&socket).args([CRUST, "service", "-v4"]).current_dir(&dir.0);
    let mut tool = Process(tool.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap());
    until("the tool listens", || socket.exists());
    let pid = tool.0.id();
    let comm = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert!(comm().starts_with("systemd-socket"), "nobody has connected yet: {}", comm());
    dump_and_restore(&socket);
    assert_eq!(comm().trim(), "crust", "the tool becomes the service");
    terminate(&tool);
    assert_eq!(tool.code(), Some(0), "{}", fs::read_to_string(dir.path("stderr")).unwrap());
    assert!(socket.exists(), "a socket that was passed is not the service's to remove");
}

#[test]
fn an_environment_made_by_hand_is_enough() {
    const NAME: &str = "tools::an_environment_made_by_hand_is_enough";
    if !inside(NAME) {
        return;
    }
    let dir = Dir::new("by-hand");
    let (socket, manager) = (dir.path("s"), dir.path("notify"));
    let notify = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
    bind(&notify, &SocketAddrUnix::new(&manager).unwrap()).unwrap();
    sockopt::set_socket_timeout(&notify, sockopt::Timeout::Recv, Some(Duration::from_secs(60))).unwrap();
    let told = || {
        let mut bytes = [0; 4096];
        let (_, len) = recv(&notify, &mut bytes[..], rustix::net::RecvFlags::empty()).unwrap();
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    };
    let until_told = |what: &str| while !told().lines().any(|line| line == what) {};

    let fd: OwnedFd = listener(&socket, SocketType::SEQPACKET);
    let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=crust WATCHDOG_PID=$$; \
                  exec \"$0\" service -v4";
    let mut service = Command::new("sh");
    service.args(["-c", script, CRUST]).current_dir(&dir.0).env_clear();
    service.env("NOTIFY_SOCKET", &manager).env("WATCHDOG_USEC", "400000");
    let stderr = File::create(dir.path("stderr")).unwrap();
    let mut service = Process(service.stdin(fd).stdout(Stdio::null()).stderr(stderr).spawn().unwrap());
    dump_and_restore(&socket);
    until_told("READY=1");
    until_told("WATCHDOG=1");
    terminate(&service);
    until_told("STOPPING=1");
    assert_eq!(service.code(), Some(0), "{}", fs::read_to_string(dir.path("stderr")).unwrap());
}

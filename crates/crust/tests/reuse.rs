//! A caller that ends, and whose pid is somebody else's when its connection asks for something.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
mod common;

use common::{Dir, Process, activated, connect, inside, listener, must_sleep_undisturbed, request};
use crust_rpc::{Client, Opts, Packet, RequestType, Response};
use rustix::net::SocketType;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The directory of the scene, for the roles below.
fn there(name: &str) -> PathBuf {
    Path::new(&std::env::var_os("CRUST_SCENE").unwrap()).join(name)
}

fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < Duration::from_secs(100), "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// This program again, in one of the roles.
fn role(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--test-threads=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.env("CRUST_ROLE", name);
    command
}

fn plays(name: &str) -> bool {
    std::env::var_os("CRUST_ROLE").is_some_and(|role| role == name)
}

/// Not a test by itself: connects, leaves its connection to a child, and ends.
#[test]
#[allow(clippy::zombie_processes, clippy::exit, reason = "the child must live on after us")]
fn caller() {
    if !plays("caller") {
        return;
    }
    let client = connect(&there("s"));
    rustix::io::fcntl_setfd(client.connection(), rustix::io::FdFlags::empty()).unwrap();
    let mut heir = role("heir");
    heir.env("CRUST_FD", client.raw_fd().to_string()).env("CRUST_CALLER", std::process::id().to_string());
    heir.spawn().unwrap();
    std::process::exit(0);
}

/// Not a test by itself: asks, in the name of its parent that has ended, when it is told to.
#[test]
fn heir() {
    if !plays("heir") {
        return;
    }
    let number: i32 = std::env::var("CRUST_FD").unwrap().parse().unwrap();
    let caller: i32 = std::env::var("CRUST_CALLER").unwrap().parse().unwrap();
    let client = Client::from_fd(crust_kernel::inherited::take(number).unwrap());
    wait_for(&there("go"));
    // The pid is that of the one who has it now; the directory is whatever it has open under the number.
    let slot: i32 = fs::read_to_string(there("go")).unwrap().parse().unwrap();
    // A caller that wants itself dumped may send a path, so that nothing is fetched from it.
    let itself = std::env::var_os("CRUST_ITSELF").is_some();
    let opts = Opts {
        images_dir_fd: Some(if itself { -1 } else { slot }),
        images_dir: itself.then(|| there("its-own").into_os_string().into_encoded_bytes()),
        pid: (!itself).then_some(caller),
        shell_job: Some(true),
        leave_running: Some(true),
        log_file: Some(b"log".to_vec()),
        ..Opts::default()
    };
    client.connection().send(&request(RequestType::Dump, Some(opts)), None).unwrap();
    let said = match client.connection().receive::<Response>() {
        Ok(Packet::Message(reply, _)) => format!("{} {}", reply.success, reply.cr_errmsg.unwrap_or_default()),
        other => format!("{other:?}"),
    };
    fs::write(there("said.new"), said).unwrap();
    fs::rename(there("said.new"), there("said")).unwrap();
}

/// A sleeping process with this very pid, which has `dir` open under the number it was started with.
fn with_pid(pid: i32, dir: &File) -> Process {
    let start = Instant::now();
    loop {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process(command.spawn().unwrap());
        if process.0.id() == pid.unsigned_abs() {
            assert!(Path::new(&format!("/proc/{pid}/fd/{}", dir.as_raw_fd())).exists());
            return process;
        }
        // Somebody else in the namespace was faster, and has taken the number or the next one.
        assert!(start.elapsed() < Duration::from_secs(60), "pid {pid} is not to be had");
    }
}

/// Whether the service has taken the connection in before the pid goes to somebody else, or takes it in only then: it
/// has nothing of the new owner, neither its directory nor its memory.
#[test]
fn the_next_owner_of_a_pid_is_not_the_caller() {
    if !rustix::process::geteuid().is_root() || !inside("the_next_owner_of_a_pid_is_not_the_caller") {
        return;
    }
    for (late, itself) in [(false, false), (false, true), (true, false), (true, true)] {
        let dir = Dir::new("reuse");
        let socket = listener(&dir.path("s"), SocketType::SEQPACKET);
        let passed = socket.try_clone().unwrap();
        let serve = |fd| activated(&dir, fd, "1");
        let mut early = (!late).then(|| serve(passed.try_clone().unwrap()));
        let mut caller = role("caller");
        caller.env("CRUST_SCENE", &dir.0);
        if itself {
            caller.env("CRUST_ITSELF", "1");
        }
        let mut caller = Process(caller.spawn().unwrap());
        let pid = i32::try_from(caller.0.id()).unwrap();
        if let Some(service) = &early {
            // One worker: that of this connection. It may also see the caller alive, or ending, or gone.
            let children = format!("/proc/{0}/task/{0}/children", service.0.id());
            let start = Instant::now();
            while fs::read_to_string(&children).unwrap().is_empty() {
                assert!(start.elapsed() < Duration::from_secs(60));
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(caller.code(), Some(0));
        fs::create_dir(dir.path("its-own")).unwrap();
        let its_own = File::open(dir.path("its-own")).unwrap();
        rustix::io::fcntl_setfd(&its_own, rustix::io::FdFlags::empty()).unwrap();
        let mut next = with_pid(pid, &its_own);
        let mut service = early.take().unwrap_or_else(|| serve(passed));
        fs::write(dir.path("go.new"), its_own.as_raw_fd().to_string()).unwrap();
        fs::rename(dir.path("go.new"), dir.path("go")).unwrap();
        wait_for(&dir.path("said"));
        let said = fs::read_to_string(dir.path("said")).unwrap();
        let refused =
            said.starts_with("false ") && ["has ended", "o such process"].iter().any(|why| said.contains(why));
        assert!(refused, "late {late}, itself {itself}: {said}");
        must_sleep_undisturbed(next.0.id());
        assert!(next.0.try_wait().unwrap().is_none());
        assert!(!dir.path("its-own/inventory.img").exists());
        assert!(connect(&dir.path("s")).version().is_ok());
        assert!(service.0.try_wait().unwrap().is_none());
    }
}

//! The client library against the real service and real workers: whole checkpoints, in a pid namespace of their own.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
mod common;

use common::{CRUST, Dir, Process, activated, connect, inside, listener, must_sleep_undisturbed};
use crust_client::{Answer, Crust, Dump, Dumped, Error, Kind, Log, Notice, Restore};
use rustix::net::SocketType;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);

struct Scene {
    dir: Dir,
    images: File,
    _service: Process,
}

impl Scene {
    fn new(name: &str) -> Self {
        let dir = Dir::new(name);
        fs::create_dir(dir.path("images")).unwrap();
        let service = activated(&dir, listener(&dir.path("s"), SocketType::SEQPACKET), "1");
        connect(&dir.path("s"));
        Self { images: File::open(dir.path("images")).unwrap(), dir, _service: service }
    }

    fn service(&self) -> Crust {
        Crust::service_at(self.dir.path("s")).limit(LIMIT)
    }

    fn has_images(&self) -> bool {
        self.dir.path("images/inventory.img").exists()
    }
}

fn worker() -> Crust {
    Crust::worker(CRUST).limit(LIMIT)
}

fn sleeper() -> Process {
    let mut command = Command::new("sleep");
    command.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    let process = Process(command.spawn().unwrap());
    until(|| fs::read_to_string(format!("/proc/{}/comm", process.0.id())).unwrap_or_default() == "sleep\n");
    process
}

fn until(mut good: impl FnMut() -> bool) {
    let start = Instant::now();
    while !good() {
        assert!(start.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn pid_of(process: &Process) -> i32 {
    i32::try_from(process.0.id()).unwrap()
}

fn exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Ends a restored process, whoever its parent is.
fn end(pid: i32) {
    let raw = Pid::from_raw(pid).unwrap();
    kill_process(raw, Signal::KILL).unwrap();
    // Until its pid is free. Its parent is a worker that may not have ended yet; then it is ours, the namespace's first.
    until(|| {
        let _reaped = waitpid(Some(raw), WaitOptions::NOHANG);
        !exists(pid)
    });
}

#[test]
fn questions_are_answered_by_service_and_worker_alike() {
    let scene = Scene::new("client-ask");
    for crust in [scene.service(), worker()] {
        let version = crust.version().unwrap();
        assert_eq!((version.major, version.minor, version.git), (4, 2, None));
        crust.features().unwrap();
        match crust.check() {
            Ok(()) => {}
            Err(Error::Refused(refusal)) => assert!(refusal.message().is_some()),
            Err(e) => panic!("{e}"),
        }
        let refused = |outcome: Result<Dumped, Error>| match outcome {
            Err(Error::Refused(refusal)) => refusal.kind(),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(crust.dump(&Dump::of(999_999_999, &scene.images))), Kind::NoSuchTask);
        let file = File::open("/etc/hostname").or_else(|_| File::open(CRUST)).unwrap();
        assert_eq!(refused(crust.dump(&Dump::of(1, &file))), Kind::BadRequest);
        let log = Dump::of(999_999_999, &scene.images).log("a/b", Log::Debug);
        assert_eq!(refused(crust.dump(&log)), Kind::BadRequest);
    }
}

#[test]
fn a_process_goes_and_comes_back() {
    if !inside("a_process_goes_and_comes_back") {
        return;
    }
    let scene = Scene::new("client-trip");
    let mut process = sleeper();
    let pid = pid_of(&process);
    // By the service, with each step told.
    let mut steps = Vec::new();
    let dump = Dump::of(pid, &scene.images).shell_job(true).log("dump.log", Log::Debug);
    let done = scene.service().dump_with(&dump, |notice| {
        steps.push(format!("{notice:?}"));
        Answer::Go
    });
    assert_eq!(done.unwrap(), Dumped::Done);
    assert_eq!(steps, ["PreDump", "QueryExternalFiles", "PostDump"]);
    assert_eq!(process.code(), None, "killed");
    assert!(scene.has_images() && scene.dir.path("images/dump.log").exists());

    let mut root = None;
    let restore = Restore::from(&scene.images).shell_job(true).log("restore.log", Log::Debug);
    let back = scene.service().restore_with(&restore, |notice| {
        if let Notice::PostRestore { pid } = notice {
            root = pid;
        }
        Answer::Go
    });
    assert_eq!((back.unwrap(), root), (pid, Some(pid)));
    assert!(exists(pid));
    match scene.service().restore(&restore) {
        Err(Error::Refused(refusal)) => assert_eq!(refusal.kind(), Kind::Taken, "{refusal:?}"),
        other => panic!("{other:?}"),
    }
    end(pid);

    // By a worker, as a child of our own.
    assert_eq!(worker().restore(&restore.clone().sibling()).unwrap(), pid);
    let raw = Pid::from_raw(pid).unwrap();
    assert!(waitpid(Some(raw), WaitOptions::NOHANG).unwrap().is_none(), "ours, and alive");
    // A client that says no, or loses patience, gets its process back as it was.
    let again = Dump::of(pid, &scene.images).shell_job(true);
    let no = worker().dump_with(&again, |n| if matches!(n, Notice::PostDump) { Answer::Stop } else { Answer::Go });
    assert!(matches!(no, Err(Error::Refused(_))), "{no:?}");
    let hasty = Crust::worker(CRUST).limit(Duration::from_secs(2));
    let late = hasty.dump_with(&again, |_| {
        std::thread::sleep(Duration::from_secs(3));
        Answer::Go
    });
    assert!(matches!(late, Err(Error::TimedOut(_))), "{late:?}");
    must_sleep_undisturbed(pid.unsigned_abs());
    kill_process(raw, Signal::KILL).unwrap();
    let ended = waitpid(Some(raw), WaitOptions::empty()).unwrap().map(|(_, status)| status);
    assert_eq!(ended.and_then(WaitStatus::terminating_signal), Some(Signal::KILL.as_raw()));
}

#[test]
fn pipes_to_the_outside_are_inherited_through_a_worker() {
    if !inside("pipes_to_the_outside_are_inherited_through_a_worker") {
        return;
    }
    let scene = Scene::new("client-inherit");
    let mut command = Command::new("sh");
    command.args(["-c", "while read line; do echo got $line; done"]).current_dir("/");
    let mut process =
        Process(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let pid = pid_of(&process);
    let mut stdin = process.0.stdin.take().unwrap();
    let mut stdout = BufReader::new(process.0.stdout.take().unwrap());
    let mut line = String::new();
    stdin.write_all(b"one\n").unwrap();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "got one\n");
    let link = |fd| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap().into_os_string().into_string().unwrap();
    let keys = [link(0), link(1)];
    assert_eq!(worker().dump(&Dump::of(pid, &scene.images).shell_job(true)).unwrap(), Dumped::Done);
    assert_eq!(process.code(), None, "killed");

    // Other pipes take their place. The worker inherits their ends under our numbers.
    let (their_stdin, mut writer) = std::io::pipe().unwrap();
    let (reader, their_stdout) = std::io::pipe().unwrap();
    for fd in [their_stdin.as_raw_fd(), their_stdout.as_raw_fd()] {
        assert!(fd > 2);
    }
    rustix::io::fcntl_setfd(&their_stdin, rustix::io::FdFlags::empty()).unwrap();
    rustix::io::fcntl_setfd(&their_stdout, rustix::io::FdFlags::empty()).unwrap();
    let restore = Restore::from(&scene.images)
        .shell_job(true)
        .sibling()
        .inherit_fd(&keys[0], their_stdin.as_raw_fd())
        .inherit_fd(&keys[1], their_stdout.as_raw_fd());
    assert_eq!(worker().restore(&restore).unwrap(), pid);
    drop((their_stdin, their_stdout));
    writer.write_all(b"two\n").unwrap();
    let mut reader = BufReader::new(reader);
    line.clear();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "got two\n");
    drop(writer);
    let raw = Pid::from_raw(pid).unwrap();
    let ended = waitpid(Some(raw), WaitOptions::empty()).unwrap().map(|(_, status)| status);
    assert_eq!(ended.and_then(WaitStatus::exit_status), Some(0));
}

/// Not a test by itself: a process that asks for its own checkpoint, twice.
#[test]
fn dumps_itself() {
    let Some(dir) = std::env::var_os("CRUST_TEST_SELF") else { return };
    let dir = Path::new(&dir);
    rustix::process::setsid().unwrap();
    let images = File::open(dir.join("images")).unwrap();
    let crust = Crust::service_at(dir.join("s"));
    let said = |name: &str, outcome: &Result<Dumped, Error>| fs::write(dir.join(name), format!("{outcome:?}")).unwrap();
    said("first", &crust.dump(&Dump::of_caller(&images).leave_running(true).log("first.log", Log::Debug)));
    said("second", &crust.dump(&Dump::of_caller(&images).log("second.log", Log::Debug)));
}

#[test]
fn a_process_that_dumps_itself_is_told_that_it_came_back() {
    if !inside("a_process_that_dumps_itself_is_told_that_it_came_back") {
        return;
    }
    let scene = Scene::new("client-self");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "dumps_itself", "--test-threads=1"]).env("CRUST_TEST_SELF", &scene.dir.0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    let mut process = Process(command.spawn().unwrap());
    let pid = pid_of(&process);
    let code = process.code();
    let log = || fs::read_to_string(scene.dir.path("images/second.log")).unwrap_or_default();
    assert_eq!(code, None, "killed after its checkpoint: {}", log());
    assert_eq!(fs::read_to_string(scene.dir.path("first")).unwrap(), "Ok(Done)");
    assert!(scene.has_images() && !scene.dir.path("second").exists());

    assert_eq!(scene.service().restore(&Restore::from(&scene.images).log("restore.log", Log::Debug)).unwrap(), pid);
    until(|| scene.dir.path("second").exists());
    until(|| !fs::read_to_string(scene.dir.path("second")).unwrap().is_empty());
    assert_eq!(fs::read_to_string(scene.dir.path("second")).unwrap(), "Ok(Restored)");
    until(|| fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|s| s.contains("State:\tZ")) || !exists(pid));
}

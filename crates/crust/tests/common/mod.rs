//! What the tests of the RPC share: own directories, swrk and service processes that end with the test.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses a part; a test may panic")]
use crust_rpc::{Client, Connection, Error, Failure, Opts, Request, RequestType};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with, socketpair};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The binary under test.
pub(crate) const CRUST: &str = env!("CARGO_BIN_EXE_crust");

/// A directory of one test, removed at its end.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    /// Nobody else's, also where several runs have the same pid, each in a namespace of its own.
    pub(crate) fn new(name: &str) -> Self {
        let mut bytes = [0u8; 6];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
        let tail: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let dir = std::env::temp_dir().join(format!("crust-rpc-{name}-{tail}"));
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    pub(crate) fn open(&self) -> File {
        File::open(&self.0).unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Starts the demonstration's sample, whose files are here, beside an empty `images`, by way of the command `by`. Its
    /// pid.
    #[allow(clippy::zombie_processes, reason = "waited for by pid: what is restored is not this child any more")]
    pub(crate) fn start_sample(&self, by: &[&str]) -> i32 {
        fs::create_dir(self.path("images")).unwrap();
        let mut command = Command::new(by.first().unwrap_or(&CRUST));
        command.args(by.get(1..).unwrap_or_default()).args(by.first().map(|_| CRUST)).arg("demo-sample");
        command.args([self.path("status"), self.path("journal")]).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let pid = command.spawn().unwrap().id().cast_signed();
        self.sample_goes_on(2000);
        pid
    }

    pub(crate) fn sample_count(&self) -> u64 {
        let text = settled(&self.path("status"));
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.len() < 10 {
            return 0;
        }
        assert_eq!(words[9], "good", "{text}");
        words[1].parse().unwrap()
    }

    /// The sample counts `steps` further, and its memory, pipe and file are as they must be.
    pub(crate) fn sample_goes_on(&self, steps: u64) {
        let (start, from) = (Instant::now(), self.sample_count());
        while self.sample_count() < from + steps {
            assert!(start.elapsed() < Duration::from_secs(120), "the sample does not go on from {from}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A running sample of the demonstration and its directory. Whatever has its pid at the end is killed.
pub(crate) struct Sample {
    pub(crate) dir: Dir,
    pub(crate) pid: i32,
}

impl Sample {
    pub(crate) fn start(name: &str) -> Self {
        let dir = Dir::new(name);
        let pid = dir.start_sample(&[]);
        Self { dir, pid }
    }

    /// In a network namespace of its own: it cannot be dumped, but a dump of it meets network-lock.
    pub(crate) fn start_apart(name: &str) -> Self {
        let dir = Dir::new(name);
        let pid = dir.start_sample(&["unshare", "-n"]);
        Self { dir, pid }
    }

    /// It counts, and its memory, pipe and file are as they must be.
    pub(crate) fn goes_on(&self) {
        self.dir.sample_goes_on(5000);
    }

    /// A shell script in its directory, which can be run.
    pub(crate) fn script(&self, name: &str, text: &str) -> String {
        let path = self.dir.path(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    /// An action script that takes six seconds over `action`.
    pub(crate) fn slow_script(&self, action: &str) -> String {
        self.script("slow", &format!("[ \"$CRTOOLS_SCRIPT_ACTION\" != {action} ] || sleep 6"))
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _gone = kill_process(pid, Signal::KILL);
            let _reaped = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// A file that somebody writes again and again: twice the same, so that no half of a line is taken for a whole one.
pub(crate) fn settled(path: &Path) -> String {
    let read = || fs::read_to_string(path).unwrap_or_default();
    let mut text = read();
    loop {
        let again = read();
        if again == text {
            return text;
        }
        text = again;
    }
}

/// A copy of a program. By another program: a descriptor of ours that writes could be inherited by what another test
/// starts just now, and the copy would be "busy" when it is to run.
pub(crate) fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
    fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// Waits until nobody listens on `path` any more. What another test starts just now has, until it executes its
/// program, a copy of every descriptor of ours, and so of a socket that we have closed.
pub(crate) fn wait_deaf(path: &Path) {
    let start = Instant::now();
    while Client::connect(path).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(60), "somebody listens on {}", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

/// A process that does not outlive the test.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _dead = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Process {
    /// Its exit code; a test that waits longer than this has failed.
    pub(crate) fn code(&mut self) -> Option<i32> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the process does not end");
    }
}

/// A `swrk` and our end of its socket. Its messages go to `dir/stderr`.
pub(crate) fn swrk(dir: &Dir, args: &[&str]) -> (Client, Process) {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let stderr = File::options().append(true).create(true).open(dir.path("stderr")).unwrap();
    let mut command = Command::new(CRUST);
    command.args(args).args(["swrk", "0"]).stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(stderr);
    command.current_dir(&dir.0).env_clear();
    let child = command.spawn().unwrap();
    (Client::from_fd(ours), Process(child))
}

/// Starts `crust service` with `fd` as its number 3, as a service manager does; `count` goes into LISTEN_FDS.
pub(crate) fn activated(dir: &Dir, fd: OwnedFd, count: &str) -> Process {
    activated_with(dir, fd, count, &[], &[])
}

/// The same with more words behind the verb, and more environment.
pub(crate) fn activated_with(dir: &Dir, fd: OwnedFd, count: &str, args: &[&str], env: &[(&str, &str)]) -> Process {
    let stderr = File::options().append(true).create(true).open(dir.path("stderr")).unwrap();
    // A number that nobody takes would keep the socket open behind the service's back.
    let second = if count == "2" { "4<&0" } else { "" };
    let script = format!(
        "exec 3<&0 {second} </dev/null; export LISTEN_PID=$$ LISTEN_FDS={count}; exec \"$0\" service -v4 \"$@\""
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script, CRUST]).args(args).stdin(Stdio::from(fd)).stdout(Stdio::null()).stderr(stderr);
    command.current_dir(&dir.0).env_clear().envs(env.iter().copied());
    Process(command.spawn().unwrap())
}

/// A service manager's notification socket.
pub(crate) struct Manager(pub(crate) std::os::unix::net::UnixDatagram, String);

impl Manager {
    pub(crate) fn new(dir: &Dir) -> Self {
        let path = dir.path("notify");
        let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(socket, path.to_str().unwrap().to_owned())
    }

    pub(crate) fn env(&self) -> (&str, &str) {
        ("NOTIFY_SOCKET", &self.1)
    }

    /// The next message that has `part` in it.
    pub(crate) fn wait_for(&self, part: &str) -> String {
        let mut bytes = [0u8; 4096];
        loop {
            let n = match self.0.recv(&mut bytes) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                n => n.unwrap_or_else(|e| panic!("no message with {part}: {e}")),
            };
            let text = String::from_utf8(bytes[..n].to_vec()).unwrap();
            if text.contains(part) {
                return text;
            }
        }
    }
}

/// The process sleeps in a system call and nobody traces it, at the latest when it has had the processor once more.
pub(crate) fn must_sleep_undisturbed(pid: u32) {
    let start = Instant::now();
    loop {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        if status.contains("TracerPid:\t0\n") && status.contains("State:\tS") {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{status}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A socket that listens on `path`.
pub(crate) fn listener(path: &Path, kind: SocketType) -> OwnedFd {
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    if kind != SocketType::DGRAM {
        listen(&socket, 128).unwrap();
    }
    socket
}

/// Connects as soon as somebody listens.
pub(crate) fn connect(path: &Path) -> Client {
    let start = Instant::now();
    loop {
        match Client::connect(path) {
            Ok(client) => return client,
            Err(e) => assert!(start.elapsed() < Duration::from_secs(60), "{e}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A DUMP or RESTORE request that would be right except for what the test changes.
pub(crate) fn opts(dir: &File) -> Opts {
    Opts { images_dir_fd: Some(dir.as_raw_fd()), log_level: Some(4), ..Opts::default() }
}

pub(crate) fn request(kind: RequestType, opts: Option<Opts>) -> Request {
    crust_rpc::client::request(kind, opts)
}

/// The failure that a call must end in.
pub(crate) fn failure<T: std::fmt::Debug>(outcome: Result<T, Error>) -> Failure {
    match outcome {
        Err(Error::Failed(failure)) => {
            let text = failure.message.clone().unwrap_or_default();
            assert!(text.contains("Error ("), "no reason: {failure:?}");
            failure
        }
        other => panic!("a refusal was expected: {other:?}"),
    }
}

/// Sends bytes as they are.
pub(crate) fn send_raw(connection: &Connection, bytes: &[u8]) {
    let flags = rustix::net::SendFlags::NOSIGNAL;
    rustix::net::send(connection, bytes, flags).unwrap();
}

/// Both outputs of a program that ended.
pub(crate) fn output_text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// True inside of a pid namespace; outside, runs the test `name` again inside of one and says false.
pub(crate) fn inside(name: &str) -> bool {
    inside_with(name, &[])
}

/// Whether an ordinary user (`uid`, or who runs the tests) may make user, pid and mount namespaces here. If not, test `name` is
/// noted as skipped, where `.ci/run` finds it.
pub(crate) fn users_may_make_namespaces(name: &str, uid: Option<u32>) -> bool {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("unshare");
    command.args(["-Urpf", "--mount-proc", "true"]).current_dir("/").stdin(Stdio::null());
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    let output = command.output().unwrap();
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        skipped(name, &format!("ordinary users may not make namespaces here: {}", why.trim()));
    }
    output.status.success()
}

/// Notes that test `name` is skipped.
pub(crate) fn skipped(name: &str, why: &str) {
    // Past the harness, which keeps what a passing test prints to itself.
    std::io::Write::write_all(&mut std::io::stdout(), format!("\nzoo: skip 1: {name}: {why}\n").as_bytes()).unwrap();
}

/// The same with more options of unshare(1).
pub(crate) fn inside_with(name: &str, more: &[&str]) -> bool {
    if std::env::var_os("CRUST_TEST_INSIDE").is_some() {
        return true;
    }
    if !rustix::process::geteuid().is_root() && !users_may_make_namespaces(name, None) {
        return false;
    }
    // A job in the background of a script has SIGINT ignored, and hands that on.
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,QUIT,TERM,PIPE", "unshare"]);
    command.arg(if rustix::process::geteuid().is_root() { "-pf" } else { "-Urpf" }).arg("--mount-proc").args(more);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]);
    let output = command.env("CRUST_TEST_INSIDE", "1").output().unwrap();
    assert!(output.status.success(), "{}", output_text(&output));
    false
}

//! Plugins: what crust cannot save goes through a plugin and comes back, twice; a plugin that fails costs nothing.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(
    unsafe_code,
    reason = "a descriptor of a kind that crust does not know is made, and put at its number before exec"
)]
mod common;

use common::{CRUST, Dir, failure, inside, opts, output_text, swrk};
use crust_rpc::plugin::{Hook, Reply, Request};
use crust_rpc::{Connection, Packet};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);
/// Where the target has what crust does not know.
const NUMBER: u32 = 7;
const STATE: &[u8] = b"what the plugin wants back";

fn unknown_kind() -> OwnedFd {
    const USER_MODE_ONLY: i32 = 1;
    // SAFETY: flags are all that it takes.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) };
    assert!(fd >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
    // SAFETY: made just now, and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // Out of the way of where it goes.
    rustix::io::fcntl_dupfd_cloexec(&fd, 100).unwrap()
}

/// cat(1), with the descriptor, whose input and output are a connection to us.
struct Target {
    dir: Dir,
    pid: i32,
    ours: Option<UnixStream>,
    child: Option<Child>,
}

impl Target {
    fn start(name: &str) -> Self {
        let dir = Dir::new(name);
        fs::create_dir(dir.path("images")).unwrap();
        let (ours, its) = UnixStream::pair().unwrap();
        let odd = unknown_kind();
        let mut cat = Command::new("cat");
        cat.current_dir("/").stderr(Stdio::null());
        cat.stdin(OwnedFd::from(its.try_clone().unwrap())).stdout(OwnedFd::from(its));
        let at = odd.as_raw_fd();
        let prepare = move || {
            // SAFETY: system calls, safe between fork and exec; `odd` lives in the parent until the child has run them.
            let done = unsafe { libc::setsid() > 0 && libc::dup2(at, NUMBER as i32) > 0 };
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: as said above.
        unsafe { cat.pre_exec(prepare) };
        let child = cat.spawn().unwrap();
        let target = Self { dir, pid: child.id().cast_signed(), ours: Some(ours), child: Some(child) };
        target.echoes("before");
        target
    }

    fn echoes(&self, text: &str) {
        let mut end = self.ours.as_ref().unwrap();
        end.set_read_timeout(Some(LIMIT)).unwrap();
        end.write_all(text.as_bytes()).unwrap();
        let mut back = vec![0; text.len()];
        end.read_exact(&mut back).unwrap();
        assert_eq!(String::from_utf8_lossy(&back), text);
    }

    fn has(&self) -> String {
        let link = fs::read_link(format!("/proc/{}/fd/{NUMBER}", self.pid)).unwrap();
        link.to_string_lossy().into_owned()
    }

    fn crust(&self, args: &[&str]) -> Output {
        let mut command = Command::new(CRUST);
        command.args(args).current_dir(&self.dir.0).env_clear().stdin(Stdio::null());
        command.output().unwrap()
    }

    fn dump(&self, more: &[&str]) -> Output {
        self.crust(&[&["dump", "-t", &self.pid.to_string(), "-D", "images", "-o", "dump.log"], more].concat())
    }

    fn dump_by_rpc(&self, plugin: &Path) {
        let (mut client, _process) = swrk(&self.dir, &[]);
        let images = fs::File::open(self.dir.path("images")).unwrap();
        let crust_plugins = vec![plugin.to_str().unwrap().to_owned()];
        let asked = crust_rpc::Opts { crust_plugins, pid: Some(self.pid), ..opts(&images) };
        client.dump(asked, |_| true).unwrap();
    }

    fn restore(&self, more: &[&str]) -> Output {
        self.crust(&[&["restore", "-d", "-D", "images", "-o", "restore.log"], more].concat())
    }

    fn gone(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
        let start = Instant::now();
        while Path::new(&format!("/proc/{}", self.pid)).exists() {
            let _reaped = rustix::process::waitpid(Pid::from_raw(self.pid), rustix::process::WaitOptions::NOHANG);
            assert!(start.elapsed() < LIMIT, "it is still there");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _gone = kill_process(pid, Signal::KILL);
            let _reaped = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
        }
    }
}

fn good(output: &Output) {
    assert!(output.status.success(), "{}", output_text(output));
}

fn said(output: &Output, parts: &[&str]) {
    let text = output_text(output);
    let errors = text.matches("Error:").count();
    assert!(!output.status.success() && errors == 1 && text.contains("help: "), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// What a plugin answers, beside the descriptors.
struct Answer {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

fn answer(reply: &Reply, fds: Vec<OwnedFd>) -> Option<Answer> {
    Some(Answer { bytes: prost::Message::encode_to_vec(reply), fds })
}

fn done(request: &Request, fds: Vec<OwnedFd>) -> Option<Answer> {
    answer(&Reply { hook: request.hook, ..Reply::default() }, fds)
}

fn introduce(request: &Request) -> Option<Answer> {
    let hooks = [
        Hook::DumpUnixSk,
        Hook::RestoreUnixSk,
        Hook::DumpExtFile,
        Hook::RestoreExtFile,
        Hook::PauseDevices,
        Hook::CheckpointDevices,
        Hook::ResumeDevicesLate,
    ];
    let name = Some("test-plugin".to_owned());
    let hooks = hooks.map(i32::from).to_vec();
    answer(&Reply { hook: request.hook, version: Some(1), name, hooks, ..Reply::default() }, Vec::new())
}

fn memfd(bytes: &[u8], seals: SealFlags) -> OwnedFd {
    let fd = rustix::fs::memfd_create("kept", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    assert_eq!(rustix::io::write(&fd, bytes), Ok(bytes.len()));
    rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
    fd
}

fn sealed() -> OwnedFd {
    memfd(STATE, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)
}

/// A plugin that listens at `address` in a thread of its own, for the rest of the test. `None` from `behave`: it closes the
/// connection. What it is shown is dropped once it has answered.
fn plugin(address: &SocketAddrUnix, mut behave: impl FnMut(&Request, &[OwnedFd]) -> Option<Answer> + Send + 'static) {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    rustix::net::bind(&socket, address).unwrap();
    rustix::net::listen(&socket, 8).unwrap();
    std::thread::spawn(move || {
        loop {
            let connection = Connection::new(rustix::net::accept_with(&socket, flags).unwrap());
            while let Ok((Packet::Message(request, _), fds)) = connection.receive_all::<Request>(1 << 16) {
                if request.hook == i32::from(Hook::Exit) {
                    behave(&request, &fds);
                    continue;
                }
                let Some(answer) = behave(&request, &fds) else { break };
                let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
                let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
                let all: Vec<_> = answer.fds.iter().map(AsFd::as_fd).collect();
                assert!(all.is_empty() || control.push(rustix::net::SendAncillaryMessage::ScmRights(&all)));
                let bytes = [IoSlice::new(&answer.bytes)];
                // crust may have had enough.
                if rustix::net::sendmsg(&connection, &bytes, &mut control, rustix::net::SendFlags::NOSIGNAL).is_err() {
                    break;
                }
            }
        }
    });
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a good plugin was asked, and what it made.
#[derive(Default)]
struct Seen {
    hooks: Vec<String>,
    faults: Vec<String>,
    peer: Option<UnixStream>,
}

fn well_behaved(seen: &Arc<Mutex<Seen>>, request: &Request, fds: &[OwnedFd]) -> Option<Answer> {
    let mut seen = seen.lock().unwrap();
    let hook = Hook::try_from(request.hook).unwrap();
    seen.hooks.push(format!("{}{}", hook.as_str_name(), if request.success == Some(true) { " well" } else { "" }));
    let mut must = |holds: bool, what: &str| {
        if !holds {
            seen.faults.push(format!("{what}: {request:?}, {} descriptors", fds.len()));
        }
    };
    match hook {
        Hook::Init => introduce(request),
        Hook::DumpExtFile => {
            must(fds.len() == 1 && request.fd == Some(NUMBER), "the descriptor");
            must(request.link() == b"anon_inode:[userfaultfd]", "its link");
            done(request, vec![sealed()])
        }
        Hook::RestoreExtFile => {
            let mut bytes = vec![0; 100];
            let n = fds.first().map_or(0, |fd| rustix::io::pread(fd, &mut bytes, 0).unwrap());
            must(&bytes[..n] == STATE, "what it gave");
            done(request, vec![unknown_kind()])
        }
        Hook::DumpUnixSk => {
            must(fds.len() == 1 && request.link().starts_with(b"socket:["), "the socket");
            done(request, Vec::new())
        }
        Hook::RestoreUnixSk => {
            must(fds.is_empty(), "nothing was given");
            let (peer, its) = UnixStream::pair().unwrap();
            seen.peer = Some(peer);
            done(request, vec![OwnedFd::from(its)])
        }
        Hook::PauseDevices | Hook::CheckpointDevices | Hook::ResumeDevicesLate => {
            must(request.pid.is_some() && fds.is_empty(), "the process");
            done(request, Vec::new())
        }
        Hook::Exit => None,
    }
}

#[test]
fn what_crust_cannot_save_goes_through_a_plugin() {
    if !inside("what_crust_cannot_save_goes_through_a_plugin") {
        return;
    }
    let mut target = Target::start("plugin-good");
    let seen = Arc::new(Mutex::new(Seen::default()));
    let path = target.dir.path("plugin.socket");
    let (option, watch) = (["--plugin", "plugin.socket"], seen.clone());
    plugin(&SocketAddrUnix::new(&path).unwrap(), move |request, fds| well_behaved(&watch, request, fds));
    let text = output_text(&target.crust(&["check", "--pid", &target.pid.to_string()]));
    assert!(text.contains("userfaultfd") && text.contains("have a plugin save it (--plugin)"), "{text}");
    for round in 1..=2 {
        let before = target.has();
        if round == 1 {
            good(&target.dump(&option));
        } else {
            target.dump_by_rpc(&path);
        }
        target.gone();
        target.ours = None;
        said(&target.restore(&[]), &["saved by the plugin test-plugin", "--plugin"]);
        good(&target.crust(&["image", "verify", "images"]));
        good(&target.restore(&option));
        target.ours = seen.lock().unwrap().peer.take();
        target.echoes(&format!("after {round}"));
        assert_eq!(target.has(), before);
        let ends = |seen: &Seen| seen.hooks.iter().filter(|h| *h == "EXIT well").count();
        // The last word comes when all is done, and nobody waits for it.
        wait_for("the plugin hears the end", || (ends(&seen.lock().unwrap()) == 2).then_some(()));
        let mut seen = seen.lock().unwrap();
        assert_eq!(std::mem::take(&mut seen.faults), Vec::<String>::new());
        let dump = ["INIT", "PAUSE_DEVICES", "CHECKPOINT_DEVICES", "DUMP_EXT_FILE", "DUMP_UNIX_SK", "EXIT well"];
        let restore = ["INIT", "RESTORE_EXT_FILE", "RESTORE_UNIX_SK", "RESUME_DEVICES_LATE", "EXIT well"];
        let mut hooks = std::mem::take(&mut seen.hooks);
        hooks[dump.len()..].sort_by_key(|h| restore.iter().position(|r| r == h));
        assert_eq!(hooks, [&dump[..], &restore[..]].concat());
    }
}

/// How a plugin fails at a hook.
type Fault = fn(&Request) -> Option<Answer>;

const FAULTS: [(&str, Hook, Fault, &str); 9] = [
    ("ends", Hook::DumpExtFile, |_| None, "ended, or closed the connection"),
    (
        "garbage",
        Hook::DumpExtFile,
        |_| Some(Answer { bytes: vec![0xff; 40], fds: Vec::new() }),
        "answered with no message",
    ),
    (
        "another",
        Hook::DumpExtFile,
        |_| answer(&Reply { hook: 3, ..Reply::default() }, Vec::new()),
        "answered another hook",
    ),
    ("two", Hook::DumpExtFile, |r| done(r, vec![sealed(), sealed()]), "answered with 2 descriptors"),
    ("open", Hook::DumpExtFile, |r| done(r, vec![memfd(STATE, SealFlags::GROW)]), "no memfd sealed against changes"),
    (
        "refuses",
        Hook::DumpExtFile,
        |r| {
            answer(
                &Reply { hook: r.hook, result: -5, error: Some("the device\nis busy".into()), ..Reply::default() },
                Vec::new(),
            )
        },
        "failed: the device\\nis busy",
    ),
    (
        "pauses",
        Hook::PauseDevices,
        |r| answer(&Reply { hook: r.hook, result: -16, ..Reply::default() }, Vec::new()),
        "failed: ",
    ),
    (
        "nameless",
        Hook::Init,
        |r| answer(&Reply { hook: r.hook, version: Some(1), ..Reply::default() }, Vec::new()),
        "no name",
    ),
    (
        "newer",
        Hook::Init,
        |r| {
            answer(
                &Reply { hook: r.hook, version: Some(2), name: Some("newer".into()), ..Reply::default() },
                Vec::new(),
            )
        },
        "speaks version Some(2)",
    ),
];

#[test]
fn a_plugin_that_fails_costs_nothing() {
    if !inside("a_plugin_that_fails_costs_nothing") {
        return;
    }
    let target = Target::start("plugin-bad");
    let no_images = || !target.dir.path("images/inventory.img").exists();
    for (name, hook, fault, text) in FAULTS {
        let path = target.dir.path(name);
        plugin(&SocketAddrUnix::new(&path).unwrap(), move |request, _| match Hook::try_from(request.hook).unwrap() {
            asked if asked == hook => fault(request),
            Hook::Init => introduce(request),
            _ => done(request, Vec::new()),
        });
        let output = target.dump(&["--plugin", name]);
        let object = format!("fd {NUMBER}");
        let object = if hook == Hook::DumpExtFile { &object } else { hook.as_str_name() };
        said(&output, &[text, hook.as_str_name(), "plugin ", object]);
        target.echoes(name);
        assert!(no_images(), "{name}");
    }
    // Nobody there, and one that does not want it.
    said(&target.dump(&["--plugin", "nowhere"]), &["connecting to a plugin", "nowhere"]);
    let path = target.dir.path("modest");
    plugin(&SocketAddrUnix::new(&path).unwrap(), |request, _| match Hook::try_from(request.hook).unwrap() {
        Hook::Init => introduce(request),
        Hook::PauseDevices | Hook::CheckpointDevices => done(request, Vec::new()),
        _ => answer(&Reply { hook: request.hook, result: -libc::ENOTSUP, ..Reply::default() }, Vec::new()),
    });
    let output = target.dump(&["--plugin", "modest"]);
    let text = output_text(&output);
    assert!(!output.status.success() && text.contains("userfaultfd") && text.contains("unix socket"), "{text}");
    target.echoes("modest");
}

#[test]
fn a_plugin_that_says_nothing_is_not_waited_for() {
    if !inside("a_plugin_that_says_nothing_is_not_waited_for") {
        return;
    }
    let mut target = Target::start("plugin-silent");
    let (seen, path) = (Arc::new(Mutex::new(Seen::default())), target.dir.path("silent"));
    let silent = Arc::new(Mutex::new(Some(Hook::DumpExtFile)));
    let (watch, when) = (seen.clone(), silent.clone());
    plugin(&SocketAddrUnix::new(&path).unwrap(), move |request, fds| {
        let hook = *when.lock().unwrap();
        if hook.is_some_and(|hook| i32::from(hook) == request.hook) {
            // Until crust hangs up, which the next receive sees.
            wait_for("crust gives up", || when.lock().unwrap().is_none().then_some(()));
            return None;
        }
        well_behaved(&watch, request, fds)
    });
    let option = ["--plugin", "silent"];
    said(&target.dump(&option), &["plugin test-plugin did not answer within", "DUMP_EXT_FILE", "fd 7"]);
    target.echoes("it runs on");
    assert!(!target.dir.path("images/inventory.img").exists());
    *silent.lock().unwrap() = None;
    good(&target.dump(&option));
    target.gone();
    target.ours = None;
    *silent.lock().unwrap() = Some(Hook::RestoreExtFile);
    said(&target.restore(&option), &["did not answer within", "RESTORE_EXT_FILE", "nothing was created"]);
    assert!(!Path::new(&format!("/proc/{}", target.pid)).exists());
    *silent.lock().unwrap() = None;
}

/// Its answer may take ten seconds; who asked has not to wait for that.
#[test]
fn a_cancel_is_noticed_while_a_plugin_is_awaited() {
    if !inside("a_cancel_is_noticed_while_a_plugin_is_awaited") {
        return;
    }
    let target = Target::start("plugin-cancel");
    let path = target.dir.path("busy");
    let (ask, asked) = std::sync::mpsc::channel();
    let (let_go, gone) = std::sync::mpsc::channel();
    plugin(&SocketAddrUnix::new(&path).unwrap(), move |request, _| match Hook::try_from(request.hook).unwrap() {
        Hook::Init => introduce(request),
        Hook::DumpExtFile => {
            ask.send(()).unwrap();
            let _released = gone.recv();
            None
        }
        _ => done(request, Vec::new()),
    });
    let expect_cancelled = |log: &str| {
        let said = fs::read_to_string(target.dir.path(log)).unwrap();
        assert!(said.contains("the request was cancelled") && !said.contains("did not answer"), "{said}");
        target.echoes(log);
        assert!(!target.dir.path("images/inventory.img").exists(), "{log}");
    };

    // The client hangs up.
    let (client, mut process) = swrk(&target.dir, &[]);
    let images = fs::File::open(target.dir.path("images")).unwrap();
    let crust_plugins = vec![path.to_str().unwrap().to_owned()];
    let log_file = Some(b"hung-up.log".to_vec());
    let wanted = crust_rpc::Opts { crust_plugins, log_file, pid: Some(target.pid), ..opts(&images) };
    let request = common::request(crust_rpc::RequestType::Dump, Some(wanted));
    client.connection().send(&request, None).unwrap();
    asked.recv_timeout(LIMIT).unwrap();
    drop(client);
    assert!(process.code().is_some());
    expect_cancelled("images/hung-up.log");
    let_go.send(()).unwrap();

    // A signal.
    let mut dump = Command::new(CRUST);
    dump.args(["dump", "-t", &target.pid.to_string(), "-D", "images", "-W", ".", "-o", "signal.log"]);
    dump.args(["--plugin", "busy"]).current_dir(&target.dir.0).env_clear().stdin(Stdio::null()).stderr(Stdio::null());
    let mut dump = common::Process(dump.spawn().unwrap());
    asked.recv_timeout(LIMIT).unwrap();
    kill_process(Pid::from_raw(dump.0.id().cast_signed()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(dump.code(), Some(1));
    expect_cancelled("signal.log");
    let_go.send(()).unwrap();
}

#[test]
fn a_plugin_of_another_user_is_shown_nothing() {
    if !inside("a_plugin_of_another_user_is_shown_nothing") || !rustix::process::geteuid().is_root() {
        return;
    }
    let target = Target::start("plugin-other");
    let name = format!("crust-test-{}", target.dir.0.file_name().unwrap().to_string_lossy());
    let address = name.clone();
    let nobody = rustix::process::Uid::from_raw(65534);
    // Of this thread alone.
    let listener = std::thread::spawn(move || {
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        plugin(&SocketAddrUnix::new_abstract_name(address.as_bytes()).unwrap(), |request, _| introduce(request));
    });
    listener.join().unwrap();
    said(&target.dump(&["--plugin", &format!("@{name}")]), &["the plugin runs as user 65534, and crust as 0"]);
    target.echoes("it runs on");
}

#[test]
fn a_request_names_plugins_by_their_whole_path() {
    let dir = Dir::new("plugin-rpc");
    let (mut client, _process) = swrk(&dir, &[]);
    let images = dir.open();
    let asked = crust_rpc::Opts { crust_plugins: vec!["somewhere".into()], pid: Some(1), ..opts(&images) };
    let failed = failure(client.dump(asked, |_| true));
    assert!(failed.message.unwrap_or_default().contains("crust_plugins: somewhere"));
}

//! Every way we know in which a local user may try to gain something from root's service, or to harm others through it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test may panic, and says why it skips"
)]
mod common;

use common::{CRUST, Dir, Process, activated_with, connect, listener, must_sleep_undisturbed, opts, request};
use crust_rpc::{Client, Error, Opts, Packet, RequestType, Response};
use rustix::net::SocketType;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The user who attacks.
const NOBODY: u32 = 65534;
/// A group that it has besides its own.
const GROUP: u32 = 54321;
/// Random requests sent by one run; CI stays short, CRUST_HOSTILE_PACKETS=10000 is the full round.
const PACKETS: usize = 1500;

/// Everything an attack needs to know, passed in the environment.
struct Scene {
    dir: Dir,
    service: Process,
    /// root's tasks, and tasks of the attacker that it may not trace.
    victims: Vec<(&'static str, Process)>,
    /// How many descriptors the service had before the first attack.
    open: Option<usize>,
}

fn quiet(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// `setpriv` with the attacker's user and groups.
fn as_nobody() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--groups", &GROUP.to_string()]);
    command
}

fn install(dir: &Dir, from: &Path, name: &str, mode: u32) -> PathBuf {
    let to = dir.path(name);
    common::copy_program(from, &to);
    fs::set_permissions(&to, fs::Permissions::from_mode(mode)).unwrap();
    to
}

fn own_dir(dir: &Dir, name: &str, uid: u32, gid: u32, mode: u32) {
    let path = dir.path(name);
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    chown(&path, Some(uid), Some(gid)).unwrap();
}

/// False where the temporary directory, or a parent of ours, forbids setuid programs.
fn setuid_works(dir: &Dir) -> bool {
    let flags = rustix::fs::statvfs(&dir.0).unwrap().f_flag;
    let forbidden = flags.contains(rustix::fs::StatVfsMountFlags::NOSUID) || rustix::thread::no_new_privs().unwrap();
    if forbidden {
        eprintln!("skipped: setuid programs, which cannot be run here");
    }
    !forbidden
}

/// A root service that is open to everybody. `None` where we are not root, or lack a program, with the reason told.
fn scene(name: &str) -> Option<Scene> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can run root's service");
        return None;
    }
    if as_nobody().arg("true").status().is_err() {
        eprintln!("skipped: setpriv is missing");
        return None;
    }
    let dir = Dir::new(name);
    fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o755)).unwrap();
    let service =
        activated_with(&dir, listener(&dir.path("s"), SocketType::SEQPACKET), "1", &["--request-timeout", "300"], &[]);
    fs::set_permissions(dir.path("s"), fs::Permissions::from_mode(0o666)).unwrap();
    // The attacker cannot read the build directory; this file can act as any of its programs.
    install(&dir, &std::env::current_exe().unwrap(), "role", 0o755);
    own_dir(&dir, "mine", NOBODY, NOBODY, 0o755);
    own_dir(&dir, "group", 0, GROUP, 0o770);
    own_dir(&dir, "roots", 0, 0, 0o755);
    own_dir(&dir, "secret", 0, 0, 0o700);
    own_dir(&dir, "secret/open", 0, 0, 0o777);
    Some(Scene { dir, service, victims: Vec::new(), open: None })
}

impl Scene {
    /// A process, once its credentials are what its name says.
    fn victim(&mut self, name: &'static str, mut command: Command, ready: impl Fn(u32, &str) -> bool) {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        let process = Process(command.spawn().unwrap());
        let start = Instant::now();
        loop {
            let of = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", process.0.id())).unwrap_or_default();
            let program = of("comm");
            if (program.contains("sleep") || program == "role\n") && ready(process.0.id(), &of("status")) {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{name}: {}", of("status"));
            std::thread::sleep(Duration::from_millis(5));
        }
        self.victims.push((name, process));
    }

    /// The attack `role` by the attacker, through `prefix`.
    fn role(&self, role: &str, mut command: Command) -> std::process::Output {
        command.arg(self.dir.path("role")).args(["--exact", "role", "--nocapture", "--test-threads=1"]);
        command.current_dir("/").env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("CRUST_ROLE", role).env("CRUST_SCENE", &self.dir.0);
        for (name, victim) in &self.victims {
            command.env(format!("CRUST_VICTIM_{name}"), victim.0.id().to_string());
        }
        command.env("CRUST_SERVICE", self.service.0.id().to_string());
        if let Some(count) = std::env::var_os("CRUST_HOSTILE_PACKETS") {
            command.env("CRUST_HOSTILE_PACKETS", count);
        }
        command.output().unwrap()
    }

    fn good(&self, role: &str, command: Command) {
        let out = self.role(role, command);
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        let log = fs::read_to_string(self.dir.path("stderr")).unwrap_or_default();
        let end = log.len().saturating_sub(3000);
        assert!(
            out.status.success(),
            "{role}: {text}\nthe service's log ends with: {}",
            &log[log.floor_char_boundary(end)..]
        );
    }

    /// What must hold after every attack: nobody was harmed, nothing was created, nothing is left over.
    fn unharmed(&mut self) {
        assert_eq!(connect(&self.dir.path("s")).version().unwrap().major_number, 4, "the service is alive");
        for (name, victim) in &mut self.victims {
            assert!(victim.0.try_wait().unwrap().is_none(), "{name} was killed");
            must_sleep_undisturbed(victim.0.id());
        }
        for place in ["roots", "secret/open"] {
            let left: Vec<_> = fs::read_dir(self.dir.path(place)).unwrap().collect();
            assert!(left.is_empty(), "{place}: {left:?}");
        }
        // Workers end when their clients have.
        let (pid, start) = (self.service.0.id(), Instant::now());
        let children = || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        while !children().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(60), "workers are left: {}", children());
            std::thread::sleep(Duration::from_millis(20));
        }
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        assert_eq!(open, *self.open.get_or_insert(open), "the service keeps descriptors");
    }
}

/// What the attacker sees of the scene.
fn there(name: &str) -> PathBuf {
    Path::new(&std::env::var_os("CRUST_SCENE").unwrap()).join(name)
}

fn pid_of(name: &str) -> i32 {
    std::env::var(name).unwrap().parse().unwrap()
}

fn service() -> Client {
    connect(&there("s"))
}

/// The answer to a request that must not succeed: its text. A closed connection is none.
fn refused(what: &str, outcome: Result<impl std::fmt::Debug, Error>) -> String {
    match outcome {
        Err(Error::Failed(failure)) => {
            let text = failure.message.unwrap_or_default();
            assert!(text.contains("Error (") && text.contains("help: "), "{what}: not clear: {text}");
            text
        }
        other => panic!("{what}: a clear refusal was expected: {other:?}"),
    }
}

fn mine() -> File {
    File::open(there("mine")).unwrap()
}

/// A process of the attacker's own that may be dumped.
fn own_sleeper() -> Process {
    let process = Process(quiet(Path::new("sleep")).arg("1000").spawn().unwrap());
    let start = Instant::now();
    while !fs::read_to_string(format!("/proc/{}/comm", process.0.id())).unwrap().contains("sleep") {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    process
}

fn dump_of(process: &Process, images: &File) -> Opts {
    let pid = Some(i32::try_from(process.0.id()).unwrap());
    Opts { pid, shell_job: Some(true), leave_running: Some(true), ..opts(images) }
}

/// Not a test by itself: what the attacker's process does, when a test starts this file as the attacker.
#[test]
fn role() {
    let Some(role) = std::env::var_os("CRUST_ROLE") else { return };
    match role.to_str().unwrap() {
        "hide" => {
            rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).unwrap();
            std::thread::sleep(Duration::from_secs(1000));
        }
        "dumps" => dumps_of_others(),
        "own" => own_task_and_hostile_images(),
        "files" => files_of_others(),
        "fields" => fields_for_root(),
        "packets" => random_packets(),
        "flood" => flood(),
        "swap" => descriptor_swap(),
        "dies" => dies_and_leaves_a_child(),
        "heir" => heir(),
        "setuid" => becomes_setuid(),
        "outside" => {
            let images = mine();
            let said = refused("another namespace", service().dump(Opts { pid: Some(1), ..opts(&images) }, |_| true));
            assert!(said.contains("the service does not work for a caller"), "{said}");
        }
        other => panic!("{other}"),
    }
}

fn dumps_of_others() {
    let images = mine();
    let mut pids: Vec<(String, i32)> = std::env::vars()
        .filter_map(|(key, pid)| Some((key.strip_prefix("CRUST_VICTIM_")?.to_owned(), pid.parse().ok()?)))
        .collect();
    assert!(pids.len() >= 3, "{pids:?}");
    pids.push(("the service".to_owned(), pid_of("CRUST_SERVICE")));
    for (name, pid) in pids {
        for kind in [RequestType::Dump, RequestType::PreDump, RequestType::SinglePreDump] {
            let o = Opts { pid: Some(pid), shell_job: Some(true), ..opts(&images) };
            let said = refused(&name, service().call(request(kind, Some(o)), |_| true));
            let because = ["ermitted", "ermission", "criu itself"].iter().any(|why| said.contains(why));
            assert!(because || kind != RequestType::Dump, "{name}: {said}");
        }
    }
    assert!(!there("mine/inventory.img").exists());
}

fn own_task_and_hostile_images() {
    let (images, sleeper) = (mine(), own_sleeper());
    // What the kernel lets it do, the service does.
    service().dump(dump_of(&sleeper, &images), |_| true).unwrap();
    let made = fs::metadata(there("mine/inventory.img")).unwrap();
    assert_eq!((made.uid(), made.gid()), (NOBODY, NOBODY));
    // With the groups that the caller has, too.
    let by_group = File::open(there("group")).unwrap();
    service().dump(dump_of(&sleeper, &by_group), |_| true).unwrap();
    assert_eq!(fs::metadata(there("group/inventory.img")).unwrap().uid(), NOBODY);

    // And nothing comes back with its help, whatever the images say: other users, rights, programs, devices, mounts.
    let mounts = include_bytes!("../../../fuzz/corpus/image/record-mountpoints-1.img");
    fs::write(there("mine/mountpoints-1.img"), mounts).unwrap();
    let core = format!("core-{}.img", sleeper.0.id());
    for (name, from, to) in [
        (core.as_str(), "\"uid\": 65534", "\"uid\": 0"),
        (&core, "\"cap_eff\": [", "\"cap_eff\": [\n4294967295,"),
        ("files.img", "/sleep\"", "/su\""),
        ("files.img", "/dev/null", "/dev/mem"),
        ("mountpoints-1.img", "", ""),
    ] {
        let file = there("mine").join(name);
        let kept = fs::read(&file).unwrap();
        let decode =
            Command::new(there("crust")).args(["image", "decode", "--pretty", "-i"]).arg(&file).output().unwrap();
        assert!(decode.status.success(), "{decode:?}");
        let text = String::from_utf8(decode.stdout).unwrap();
        assert!(from == to || text.contains(from), "{name} has no {from}: {text}");
        fs::write(there("mine/edit.json"), text.replace(from, to)).unwrap();
        let mut encode = Command::new(there("crust"));
        encode.args(["image", "encode", "-i"]).arg(there("mine/edit.json")).arg("-o").arg(&file);
        assert!(encode.status().unwrap().success());
        let said = refused(to, service().restore(opts(&images), |_| true));
        assert!(said.contains("restores for root only"), "{said}");
        fs::write(&file, kept).unwrap();
    }
}

fn files_of_others() {
    let (images, sleeper) = (mine(), own_sleeper());
    let ask = |change: &dyn Fn(&mut Opts)| {
        let mut o = dump_of(&sleeper, &images);
        change(&mut o);
        refused("files", service().dump(o, |_| true))
    };
    for name in ["../roots/log", "a/b", "..", ".", "/etc/crust.log", ""] {
        ask(&|o| o.log_file = Some(name.as_bytes().to_vec()));
    }
    symlink(there("roots").join("log"), there("mine/link")).unwrap();
    symlink("/etc/passwd", there("mine/passwd")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        there("mine/fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let reader = File::options().read(true).write(true).open(there("mine/fifo")).unwrap();
    for name in ["link", "passwd", "fifo"] {
        ask(&|o| o.log_file = Some(name.as_bytes().to_vec()));
    }
    drop(reader);
    // Directories by path and by descriptor.
    let path = |name: &str| Some(there(name).into_os_string().into_encoded_bytes());
    for name in ["roots", "secret", "secret/open", "no/such"] {
        ask(&|o| (o.images_dir_fd, o.images_dir) = (None, path(name)));
    }
    let roots = File::open(there("roots")).unwrap();
    ask(&|o| o.images_dir_fd = Some(roots.as_raw_fd()));
    ask(&|o| o.work_dir_fd = Some(roots.as_raw_fd()));
    ask(&|o| o.images_dir_fd = Some(987_654));
    ask(&|o| o.status_fd = Some(987_654));
    // A link to the secret directory inside of its own is no way in.
    symlink(there("secret").join("open"), there("mine/way")).unwrap();
    ask(&|o| (o.images_dir_fd, o.images_dir) = (None, path("mine/way")));
    assert!(!there("mine/inventory.img").exists());
}

fn fields_for_root() {
    let (images, sleeper) = (mine(), own_sleeper());
    fs::write(there("mine/conf"), "action-script /bin/true\n").unwrap();
    type Change<'a> = &'a dyn Fn(&mut Opts);
    let set: [(&str, Change<'_>); 6] = [
        ("config_file is for root", &|o| o.config_file = Some(there("mine/conf").to_str().unwrap().into())),
        ("exec_cmd is for root", &|o| o.exec_cmd = vec![b"/bin/sh".to_vec()]),
        ("lsm_profile is for root", &|o| o.lsm_profile = Some("apparmor:unconfined".into())),
        ("lsm_mount_context is for root", &|o| o.lsm_mount_context = Some("x".into())),
        ("only in swrk", &|o| o.rst_sibling = Some(true)),
        ("only in swrk", &|o| o.inherit_fd = vec![crust_rpc::InheritFd { key: "x".into(), fd: 0 }]),
    ];
    for (said, change) in set {
        for kind in [RequestType::Dump, RequestType::Restore] {
            let mut o = dump_of(&sleeper, &images);
            change(&mut o);
            let text = refused(said, service().call(request(kind, Some(o)), |_| true));
            let root_only = kind == RequestType::Restore && text.contains("for root only");
            assert!(text.contains(said) || root_only, "{said}: {text}");
        }
    }
}

/// Numbers without a library; the start is told, so that a failure can be repeated.
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut x = seed | 1;
    move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    }
}

/// Half of them any bytes, half of them well-formed fields of random numbers and contents.
fn random_packets() {
    let count = std::env::var("CRUST_HOSTILE_PACKETS").ok().and_then(|n| n.parse().ok()).unwrap_or(PACKETS);
    let seed = u64::from(std::process::id()) << 20;
    println!("seed {seed}");
    let mut next = random(seed);
    // Never a pid that could be somebody's who must live: victims that the attacker may not touch, and impossible ones.
    let pids = [pid_of("CRUST_VICTIM_root"), 1, -1, i32::MAX, pid_of("CRUST_SERVICE")];
    for i in 0..count {
        let bytes: Vec<u8> = if i % 2 == 0 {
            (0..next() % 96)
                .map(|_| if next().is_multiple_of(3) { (next() % 24) as u8 } else { next() as u8 })
                .collect()
        } else {
            let mut body = Vec::new();
            for _ in 0..next() % 12 {
                let (field, wire) = (next() % 80, next() % 3);
                let wire = if wire == 1 { 2 } else { wire };
                prost::encoding::encode_varint(field.max(3) << 3 | wire, &mut body);
                if wire == 0 {
                    prost::encoding::encode_varint(next() >> (next() % 64), &mut body);
                } else {
                    let len = next() % 40;
                    prost::encoding::encode_varint(len, &mut body);
                    body.extend((0..len).map(|_| next() as u8));
                }
            }
            body.extend([2 << 3]);
            prost::encoding::encode_varint(pids[(next() % 5) as usize] as u64, &mut body);
            let mut all = vec![1 << 3, (next() % 16) as u8, 2 << 3 | 2];
            prost::encoding::encode_varint(body.len() as u64, &mut all);
            all.extend(body);
            all
        };
        // Clients that did not wait may have left 32 workers behind: then this one is turned away, and comes again.
        let start = Instant::now();
        let client = loop {
            let client = service();
            let flags = rustix::net::SendFlags::NOSIGNAL;
            if bytes.is_empty() || rustix::net::send(client.connection(), &bytes, flags).is_ok() {
                break client;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "packet {i} is never taken");
            std::thread::sleep(Duration::from_millis(5));
        };
        // Whatever it was, there is an end: an answer, or a closed connection. Some clients do not wait for it.
        if i % 5 != 0 && !bytes.is_empty() {
            match client.connection().receive::<Response>() {
                Ok(Packet::Message(..) | Packet::Closed) | Err(_) => {}
                Ok(Packet::Garbage(why)) => panic!("packet {i}: garbage came back: {why}"),
            }
        }
    }
    // Larger than an ordinary user may send, and larger than a socket takes.
    for len in [65_537, 200_000] {
        let client = service();
        if rustix::net::send(client.connection(), &vec![8u8; len], rustix::net::SendFlags::NOSIGNAL).is_ok() {
            assert!(matches!(client.connection().receive::<Response>(), Ok(Packet::Closed) | Err(_)));
        }
    }
}

fn flood() {
    let mut open = Vec::new();
    let mut away = 0;
    for _ in 0..300 {
        open.push(service());
    }
    // Those that are too many are told so at once, and may be read without waiting.
    let start = Instant::now();
    while away < 300 - 32 {
        away = 0;
        for client in &open {
            use rustix::event::{PollFd, PollFlags, Timespec, poll};
            let mut fds = [PollFd::new(client.connection(), PollFlags::IN)];
            away += usize::from(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0);
        }
        assert!(start.elapsed() < Duration::from_secs(120), "{away} were turned away");
        std::thread::sleep(Duration::from_millis(20));
    }
    let told = open.iter().rev().find_map(|client| match client.connection().receive::<Response>() {
        Ok(Packet::Message(reply, _)) => Some((reply.cr_errno, reply.cr_errmsg.unwrap_or_default())),
        _ => None,
    });
    let (errno, text) = told.unwrap();
    assert_eq!(errno, Some(libc::EAGAIN));
    assert!(text.contains("user 65534 has 32 connections open already"), "{text}");
    // The flood stays while root looks whether it is served.
    fs::write(there("mine/flooded"), "").unwrap();
    while there("mine/flooded").exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "nobody ended the flood");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The number of the image directory is another directory as soon as the request is sent.
fn descriptor_swap() {
    let (sleeper, roots) = (own_sleeper(), File::open(there("roots")).unwrap());
    let mut at_first = 0;
    for _ in 0..40 {
        let slot = mine();
        let number = slot.as_raw_fd();
        let client = service();
        client.connection().send(&request(RequestType::Dump, Some(dump_of(&sleeper, &slot))), None).unwrap();
        drop(slot);
        let there = rustix::io::fcntl_dupfd_cloexec(&roots, number).unwrap();
        match client.connection().receive::<Response>().unwrap() {
            Packet::Message(reply, _) => at_first += usize::from(reply.success),
            other => panic!("{other:?}"),
        }
        drop(there);
    }
    println!("{at_first} of 40 were served before the swap");
    assert!(!there("roots/inventory.img").exists());
}

/// A connection that a child inherits, whose number is told to it.
fn hand_on(client: &Client, images: &File, then: &str) -> Command {
    for fd in [client.raw_fd(), images.as_raw_fd()] {
        let path = format!("/proc/self/fd/{fd}");
        assert!(Path::new(&path).exists());
    }
    rustix::io::fcntl_setfd(client.connection(), rustix::io::FdFlags::empty()).unwrap();
    rustix::io::fcntl_setfd(images, rustix::io::FdFlags::empty()).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "role", "--nocapture", "--test-threads=1"]);
    command.env("CRUST_ROLE", then).env("CRUST_FD", client.raw_fd().to_string());
    command.env("CRUST_IMAGES", images.as_raw_fd().to_string()).env("CRUST_PARENT", std::process::id().to_string());
    command
}

/// The caller ends; its child has the connection, and somebody else may have its pid by now.
#[allow(clippy::zombie_processes, clippy::exit, reason = "the child must live on after us")]
fn dies_and_leaves_a_child() {
    let (client, images) = (service(), mine());
    hand_on(&client, &images, "heir").spawn().unwrap();
    std::process::exit(0);
}

/// Asks with a connection that another process has made.
fn heir() {
    let (parent, start) = (pid_of("CRUST_PARENT"), Instant::now());
    let setuid = std::env::var_os("CRUST_SETUID").is_some();
    loop {
        let status = fs::read_to_string(format!("/proc/{parent}/status")).unwrap_or_default();
        let is_setuid = status.contains("Uid:\t65534\t0\t0\t0");
        if if setuid { is_setuid } else { status.is_empty() || status.contains("State:\tZ") } {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{status}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let connection = crust_kernel::inherited::take(pid_of("CRUST_FD")).unwrap();
    let mut client = Client::from_fd(connection);
    let o = Opts { images_dir_fd: Some(pid_of("CRUST_IMAGES")), pid: Some(1), log_level: Some(4), ..Opts::default() };
    let said = refused("heir", client.dump(o, |_| true));
    let expected = if setuid { "fetching the caller's descriptor" } else { "ended" };
    let gone = !setuid && said.contains("o such process");
    assert!(said.contains(expected) || gone, "{said}");
    fs::write(there("mine").join(if setuid { "done-setuid" } else { "done-dies" }), said).unwrap();
    if setuid {
        // Its real user is ours.
        let parent = rustix::process::Pid::from_raw(parent).unwrap();
        rustix::process::kill_process(parent, rustix::process::Signal::TERM).unwrap();
    }
}

/// The caller becomes a setuid program after it has connected. What that has open is not the attacker's.
fn becomes_setuid() {
    let (client, images) = (service(), mine());
    let mut child = hand_on(&client, &images, "heir").env("CRUST_SETUID", "1").spawn().unwrap();
    // Until the child has seen enough and ends it.
    let error = Command::new(there("suid-sleep")).arg("100").exec();
    let _dead = child.kill();
    let _reaped = child.wait();
    panic!("{error}");
}

#[test]
fn a_hostile_user_gains_nothing_and_harms_nobody() {
    let Some(mut scene) = scene("hostile") else { return };
    let sleep = fs::canonicalize("/bin/sleep").or_else(|_| fs::canonicalize("/usr/bin/sleep")).unwrap();
    if fs::metadata(&sleep).unwrap().len() > 500_000 || !sleep.ends_with("sleep") {
        eprintln!("note: {} is a multi-call binary", sleep.display());
    }
    let mut command = Command::new("sleep");
    command.arg("1000");
    scene.victim("root", command, |_, status| status.contains("Uid:\t0\t0"));
    let has_setuid = setuid_works(&scene.dir);
    if has_setuid {
        let suid = install(&scene.dir, &sleep, "suid-sleep", 0o4755);
        let mut command = as_nobody();
        command.arg(&suid).arg("1000");
        scene.victim("setuid", command, |_, status| status.contains("Uid:\t65534\t0\t0\t0"));
    }
    // A process that has hidden itself from its user.
    let mut command = as_nobody();
    command.arg(scene.dir.path("role")).args(["--exact", "role"]).env("CRUST_ROLE", "hide");
    let owner = |pid| fs::metadata(format!("/proc/{pid}/environ")).map_or(NOBODY, |m| m.uid());
    scene.victim("hidden", command, |pid, status| status.contains("Uid:\t65534\t65534") && owner(pid) == 0);
    let mut command = as_nobody();
    command.args(["--inh-caps", "+net_raw", "--ambient-caps", "+net_raw", "sleep", "1000"]);
    scene.victim("capable", command, |_, status| status.contains("CapPrm:\t0000000000002000"));
    install(&scene.dir, Path::new(CRUST), "crust", 0o755);

    scene.unharmed();
    for role in ["dumps", "files", "fields", "own", "swap", "packets"] {
        scene.good(role, as_nobody());
        scene.unharmed();
        for image in fs::read_dir(scene.dir.path("mine")).unwrap() {
            fs::remove_file(image.unwrap().path()).unwrap();
        }
    }
    for role in ["dies", "setuid"].into_iter().filter(|role| *role != "setuid" || has_setuid) {
        // The heir writes to the same pipes, so it has ended when they are at their end.
        let out = scene.role(role, as_nobody());
        assert!(scene.dir.path(&format!("mine/done-{role}")).exists(), "{role}: {out:?}");
        scene.unharmed();
    }
    assert_eq!(scene.role("fields", as_nobody()).status.code(), Some(0));

    // A sandbox is no place to call from: neither for an ordinary user nor for its root.
    let mut elsewhere = Command::new("unshare");
    elsewhere.args(["-m", "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    let mut other_user = Command::new("unshare");
    other_user.args(["-U", "-r"]);
    let mut other_pids = Command::new("unshare");
    other_pids.args(["-pf", "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    let mut weak_root = Command::new("unshare");
    weak_root.args(["-m", "setpriv", "--bounding-set", "-all,+chown", "--inh-caps", "-all"]);
    for command in [elsewhere, other_user, other_pids, weak_root] {
        scene.good("outside", command);
    }
    scene.unharmed();
}

#[test]
fn a_flood_by_one_user_keeps_nobody_else_out() {
    let Some(mut scene) = scene("flood") else { return };
    scene.unharmed();
    std::thread::scope(|threads| {
        let attack = threads.spawn(|| scene.good("flood", as_nobody()));
        let (mark, start) = (scene.dir.path("mine/flooded"), Instant::now());
        while !mark.exists() && !attack.is_finished() {
            assert!(start.elapsed() < Duration::from_secs(120));
            std::thread::sleep(Duration::from_millis(10));
        }
        if mark.exists() {
            for _ in 0..20 {
                assert_eq!(connect(&scene.dir.path("s")).version().unwrap().major_number, 4);
            }
            fs::remove_file(&mark).unwrap();
        }
        attack.join().unwrap();
    });
    scene.unharmed();
}

#[test]
fn it_does_not_run_setuid() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make a setuid program of another user");
        return;
    }
    let dir = Dir::new("setuid");
    fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o755)).unwrap();
    if !setuid_works(&dir) {
        return;
    }
    for mode in [0o4755, 0o2755] {
        let program = install(&dir, Path::new(CRUST), &format!("crust-{mode:o}"), mode);
        let out = Command::new(program).arg("check").uid(NOBODY).gid(NOBODY).output().unwrap();
        assert_eq!(out.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&out.stderr).contains("does not run setuid"), "{out:?}");
        assert!(out.stdout.is_empty());
    }
}

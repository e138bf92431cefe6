//! Checkpoints by people who are not root: with no privilege at all in a job of their own, and with two capabilities on the host.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unsafe_code, reason = "capabilities are dropped between fork and exec")]
mod common;

use common::{CRUST, Dir, copy_program, inside, users_may_make_namespaces};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const NOBODY: u32 = 65534;
const LIMIT: Duration = Duration::from_secs(120);

/// A directory of an ordinary user, with a copy of the binary: the one that cargo built may lie where only root may look.
struct Home {
    dir: Dir,
    crust: PathBuf,
}

impl Home {
    fn new(name: &str) -> Self {
        let dir = Dir::new(name);
        let crust = dir.path("crust");
        copy_program(Path::new(CRUST), &crust);
        fs::create_dir(dir.path("images")).unwrap();
        for path in [dir.0.clone(), dir.path("images")] {
            std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        Self { dir, crust }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path(name).display().to_string()
    }

    /// crust as its owner runs it.
    fn crust(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.crust);
        command.args(args).current_dir(&self.dir.0).env_clear().stdin(Stdio::null());
        command.uid(NOBODY).gid(NOBODY);
        command
    }

    /// The sample counts, and its memory, pipe and file are as they must be.
    fn goes_on(&self) {
        self.dir.sample_goes_on(3000);
    }
}

fn good(output: &Output) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn field(pid: i32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().to_owned()
}

fn await_gone(pid: i32) {
    let start = Instant::now();
    while Path::new(&format!("/proc/{pid}")).exists() && !field(pid, "State:").starts_with('Z') {
        assert!(start.elapsed() < LIMIT, "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends a job with its pid 1, whatever the test came to.
struct Ends(i32);

impl Drop for Ends {
    fn drop(&mut self) {
        let init: i32 = field(self.0, "PPid:").parse().unwrap_or(0);
        if field(init, "Name:") == "crust-init"
            && let Some(init) = rustix::process::Pid::from_raw(init)
        {
            let _gone = rustix::process::kill_process(init, rustix::process::Signal::KILL);
        }
    }
}

#[test]
fn a_user_without_any_privilege_runs_dumps_and_restores() {
    if !rustix::process::geteuid().is_root() {
        return; // there is no other user to become
    }
    if !users_may_make_namespaces("a_user_without_any_privilege_runs_dumps_and_restores", Some(NOBODY)) {
        return;
    }
    let home = Home::new("rootless");
    let (pidfile, images) = (home.path("pid"), home.path("images"));
    // A shell that stays, and the sample as its child.
    let script =
        format!("{} demo-sample {} {}; exit $?", home.path("crust"), home.path("status"), home.path("journal"));
    let mut run = home.crust(&["run", "-d", "--pidfile", &pidfile, "--", "/bin/sh", "-c", &script]);
    let ran = run.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(ran.success(), "{ran}: are user namespaces allowed?");
    for cycle in 1..=2 {
        let pid: i32 = read(Path::new(&pidfile)).parse().unwrap();
        let ends = Ends(pid);
        home.goes_on();
        assert!(field(pid, "Uid:").starts_with("65534"), "{}", field(pid, "Uid:"));
        assert_eq!(u64::from_str_radix(&field(pid, "CapEff:"), 16), Ok(0));
        let init: i32 = field(pid, "PPid:").parse().unwrap();

        let log = format!("dump{cycle}.log");
        let dump = ["dump", "-t", &pid.to_string(), "-D", &images, "-o", &log, "-v4"];
        good(&home.crust(&dump).output().unwrap());
        await_gone(pid);
        await_gone(init); // pid 1 of the job goes with it
        let stopped_at = home.dir.sample_count();
        drop(ends);

        fs::remove_file(&pidfile).unwrap();
        let log = format!("restore{cycle}.log");
        let restore = ["restore", "-d", "--pidfile", &pidfile, "-D", &images, "-o", &log, "-v4"];
        good(&home.crust(&restore).output().unwrap());
        let pid: i32 = read(Path::new(&pidfile)).parse().unwrap();
        let _ends = std::mem::ManuallyDrop::new(Ends(pid));
        home.goes_on();
        assert!(home.dir.sample_count() > stopped_at);
        assert_eq!(field(pid, "NSpid:").split_whitespace().last(), Some("2"));
    }
    drop(Ends(read(Path::new(&pidfile)).parse().unwrap()));
}

#[test]
fn run_hands_on_signals_and_the_exit_code() {
    if !rustix::process::geteuid().is_root() {
        return; // there is no other user to become
    }
    if !users_may_make_namespaces("run_hands_on_signals_and_the_exit_code", Some(NOBODY)) {
        return;
    }
    let home = Home::new("run");
    let code = |args: &[&str]| home.crust(&[&["run", "--"], args].concat()).output().unwrap();
    let seven = code(&["/bin/sh", "-c", "exit 7"]);
    assert_eq!(seven.status.code(), Some(7), "{seven:?}");
    assert_eq!(code(&["/bin/sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    let missing = code(&["/no/such/program"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such/program"));

    let script = "trap 'exit 9' TERM; : > ready; while :; do sleep 0.05; done";
    let mut child = home.crust(&["run", "--", "/bin/sh", "-c", script]).spawn().unwrap();
    let start = Instant::now();
    while !home.dir.path("ready").exists() {
        assert!(start.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

const SYS_PTRACE: u32 = 19;
const CHECKPOINT_RESTORE: u32 = 40;

/// Becomes nobody, and keeps these capabilities.
fn with_caps(command: &mut Command, caps: &[u32]) {
    let caps = caps.to_vec();
    let become_nobody = move || {
        let set = caps.iter().fold(0u64, |set, cap| set | 1 << cap);
        let header = [0x2008_0522_u32, 0];
        let words = [set as u32, set as u32, set as u32, (set >> 32) as u32, (set >> 32) as u32, (set >> 32) as u32];
        let nobody = NOBODY as libc::uid_t;
        // SAFETY: system calls with numbers, and with arrays of the sizes that capset(2) version 3 has. Async-signal-safe.
        let ok = unsafe {
            libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
                && libc::setgroups(0, std::ptr::null()) == 0
                && libc::setresgid(nobody, nobody, nobody) == 0
                && libc::setresuid(nobody, nobody, nobody) == 0
                && libc::syscall(libc::SYS_capset, header.as_ptr(), words.as_ptr()) == 0
                && caps.iter().all(|&cap| {
                    libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, libc::c_ulong::from(cap), 0, 0) == 0
                })
        };
        if ok { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: only system calls happen in there, see above.
    unsafe { command.pre_exec(become_nobody) };
}

impl Home {
    fn with_caps(&self, args: &[&str], caps: &[u32]) -> Command {
        let mut command = Command::new(&self.crust);
        command.args(args).current_dir(&self.dir.0).env_clear().stdin(Stdio::null());
        with_caps(&mut command, caps);
        command
    }
}

#[test]
fn two_capabilities_are_enough_on_the_host() {
    if !rustix::process::geteuid().is_root() || !inside("two_capabilities_are_enough_on_the_host") {
        return;
    }
    let home = Home::new("caps");
    let mut sample = home.crust(&["demo-sample", &home.path("status"), &home.path("journal")]);
    let mut sample = sample.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    home.goes_on();
    let (pid, images) = (sample.id().to_string(), home.path("images"));
    let caps: &[u32] = &[SYS_PTRACE, CHECKPOINT_RESTORE];
    let says = |args: &[&str], caps| {
        let output = home.with_caps(&[&["check", "--needs", "--json"], args].concat(), caps).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let told = crust_image::json::Json::parse("needs", &text).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        assert_eq!(told.get("enough").and_then(crust_image::json::Json::as_bool), output.status.code().map(|c| c == 0));
        (output.status.success(), text)
    };
    let (enough, text) = says(&["--pid", &pid], caps);
    assert!(enough, "{text}");
    let (enough, text) = says(&["--pid", &pid], &[]);
    assert!(!enough && text.contains("CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN"), "{text}");
    // Somebody else's process, one of root's.
    let mut other = Command::new("sleep").arg("600").spawn().unwrap();
    let (enough, text) = says(&["--pid", &other.id().to_string()], caps);
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(!enough && text.contains("CAP_SETUID") && text.contains("belongs to uid 0"), "{text}");
    let plain = Command::new(CRUST).args(["check", "--needs", "--pid", &pid]).output().unwrap();
    let text = String::from_utf8_lossy(&plain.stdout);
    assert!(text.contains("- CAP_SYS_PTRACE [held]") && text.contains("- CAP_SETUID [held]"), "{text}");
    let dump = ["dump", "--unprivileged", "-t", &pid, "-D", &images, "-o", "dump.log", "-v4"];
    good(&home.with_caps(&dump, caps).output().unwrap());
    assert_eq!(sample.wait().unwrap().code(), None);
    let before = home.dir.sample_count();
    let (enough, text) = says(&["-D", &images], caps);
    assert!(enough && text.contains("time namespace"), "{text}");
    let (enough, text) = says(&["-D", &images], &[]);
    assert!(!enough && text.contains("uid 65534, gid 65534 needs none"), "{text}");

    // Without the capability: one error that names it, before anything is made.
    let restore = ["restore", "--unprivileged", "-d", "-D", &images, "-o", "restore.log", "-v4"];
    let refused = home.with_caps(&restore, &[]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("CAP_CHECKPOINT_RESTORE") && said.contains("nothing was created"), "{said}");
    assert_eq!(said.matches("Error:").count(), 1, "{said}");

    // What can never be given back: the planner and the restore say the same.
    for args in [&["check", "--needs", "-D", &images][..], &["restore", "--unprivileged", "-d", "-D", &images]] {
        let mut bound = Command::new(CRUST);
        // SAFETY: one system call with numbers.
        let bind = || match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        };
        // SAFETY: only that happens in there.
        let refused = unsafe { bound.args(args).current_dir(&home.dir.0).pre_exec(bind) }.output().unwrap();
        let said = [refused.stdout, refused.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(refused.status.code() == Some(1) && said.contains("no_new_privs"), "{args:?}: {said}");
    }

    good(&home.with_caps(&restore, caps).output().unwrap());
    let pid: i32 = pid.parse().unwrap();
    home.goes_on();
    assert!(home.dir.sample_count() > before);
    assert!(field(pid, "Uid:").starts_with("65534"));
    assert_eq!(field(pid, "NSpid:"), pid.to_string());
}

/// Capabilities that may matter, as capabilities(7) numbers them. This machine may lack some altogether.
const CAPS: [(&str, u32); 23] = [
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_DAC_READ_SEARCH", 2),
    ("CAP_FOWNER", 3),
    ("CAP_KILL", 5),
    ("CAP_SETGID", 6),
    ("CAP_SETUID", 7),
    ("CAP_SETPCAP", 8),
    ("CAP_NET_BIND_SERVICE", 10),
    ("CAP_NET_ADMIN", 12),
    ("CAP_NET_RAW", 13),
    ("CAP_IPC_LOCK", 14),
    ("CAP_SYS_CHROOT", 18),
    ("CAP_SYS_PTRACE", SYS_PTRACE),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_SYS_NICE", 23),
    ("CAP_SYS_RESOURCE", 24),
    ("CAP_SYS_TIME", 25),
    ("CAP_LEASE", 28),
    ("CAP_AUDIT_CONTROL", 30),
    ("CAP_WAKE_ALARM", 35),
    ("CAP_BPF", 39),
    ("CAP_CHECKPOINT_RESTORE", CHECKPOINT_RESTORE),
];

/// A tree for the matrix: what makes it, between fork and exec.
type Prepare = fn(&mut Command);

fn someone_else(command: &mut Command) {
    command.uid(1).gid(1);
}

/// Has the command do something as root, and be nobody's then.
fn first(command: &mut Command, what: fn()) {
    let prepare = move || {
        what();
        let nobody = NOBODY as libc::uid_t;
        // SAFETY: system calls with numbers; no groups are read.
        let ok = unsafe {
            libc::setgroups(0, std::ptr::null()) == 0
                && libc::setresgid(nobody, nobody, nobody) == 0
                && libc::setresuid(nobody, nobody, nobody) == 0
        };
        if ok { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: system calls are all that happens in there, and in what the caller gives.
    unsafe { command.pre_exec(prepare) };
}

/// A nice value, and descriptors that are kept over exec. Some of it took a privilege.
fn with_descriptors(command: &mut Command) {
    // SAFETY: system calls with numbers, and with an address that lives through the call.
    first(command, || unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, -5);
        libc::socket(libc::AF_INET, libc::SOCK_RAW, 1);
        let low = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 317_u16.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 9, 8, 7]) },
            sin_zero: [0; 8],
        };
        libc::bind(low, (&raw const address).cast(), size_of::<libc::sockaddr_in>() as u32);
        libc::eventfd(3, 0);
        libc::timerfd_create(libc::CLOCK_MONOTONIC, 0);
        libc::epoll_create1(0);
        libc::inotify_init1(0);
    });
}

/// What `check --needs` says that crust lacks, for that step.
fn lacks(home: &Home, args: &[&str], caps: &[u32], step: &str) -> Vec<String> {
    use crust_image::json::Json;
    let output = home.with_caps(&[&["check", "--needs", "--json"], args].concat(), caps).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = Json::parse("needs", &text).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let needs = told.get("needs").and_then(Json::as_array).unwrap();
    let word = |need: &Json, key: &str| need.get(key).and_then(Json::as_str).map(str::to_owned);
    let lacking = needs.iter().filter(|n| {
        word(n, "for").as_deref() == Some(step)
            && n.get("held").and_then(Json::as_bool) == Some(false)
            && word(n, "without").is_none()
    });
    lacking.filter_map(|n| word(n, "privilege")).collect()
}

/// Compares what was said beforehand with what came; `said` is what crust wrote if it failed.
fn compare(what: &str, planned: &[String], failed: Option<&str>, faults: &mut Vec<String>) {
    match failed {
        None if !planned.is_empty() => faults.push(format!("{what}: works, but {planned:?} was said to lack")),
        Some(said) if planned.is_empty() => faults.push(format!("{what}: nothing was said to lack, but {said}")),
        // What is lacked altogether the error lists.
        Some(said)
            if said.contains("that this process does not have: CAP_") && said.contains("nothing was created") => {}
        Some(said) if said.matches("Error").count() == 0 || !planned.iter().any(|p| said.contains(p.as_str())) => {
            faults.push(format!("{what}: {planned:?} was said to lack, and the error names none: {said}"));
        }
        _ => {}
    }
}

fn matrix(name: &str, prepare: Prepare, faults: &mut Vec<String>) {
    let home = Home::new("matrix");
    let mut sample = Command::new(&home.crust);
    sample.args(["demo-sample", &home.path("status"), &home.path("journal")]).current_dir("/").stdin(Stdio::null());
    for file in ["status", "journal"] {
        fs::write(home.dir.path(file), "").unwrap();
        fs::set_permissions(home.dir.path(file), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    }
    prepare(&mut sample);
    let mut sample = sample.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    home.goes_on();
    let (pid, images) = (sample.id().to_string(), home.path("images"));
    let failed = |output: Output| {
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (!output.status.success()).then_some(said)
    };
    let held: u64 = u64::from_str_radix(&field(std::process::id() as i32, "CapPrm:"), 16).unwrap();
    let all: Vec<u32> = CAPS.iter().map(|c| c.1).filter(|c| held & 1 << c != 0).collect();
    let without = |cap: u32| all.iter().copied().filter(|&c| c != cap).collect::<Vec<u32>>();
    let dump = ["dump", "--unprivileged", "-t", &pid, "-D", &images, "-o", "dump.log"];
    for (cap, number) in CAPS {
        let caps = without(number);
        let planned = lacks(&home, &["--pid", &pid], &caps, "dump");
        let dumped = home.with_caps(&[&dump[..], &["--leave-running"]].concat(), &caps).output().unwrap();
        compare(&format!("{name}: dump without {cap}"), &planned, failed(dumped).as_deref(), faults);
    }
    good(&home.with_caps(&dump, &all).output().unwrap());
    sample.wait().unwrap();
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    let reap = || {
        let wait = || rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        while wait().is_err_and(|e| e == rustix::io::Errno::INTR) {}
    };
    let restore = ["restore", "--unprivileged", "-d", "-D", &images, "-o", "restore.log"];
    for (cap, number) in CAPS {
        let caps = without(number);
        let planned = lacks(&home, &["-D", &images], &caps, "restore");
        let said = failed(home.with_caps(&restore, &caps).output().unwrap());
        compare(&format!("{name}: restore without {cap}"), &planned, said.as_deref(), faults);
        if said.is_none() {
            // Its files change, so that the images of before are of no use.
            home.dir.sample_goes_on(50);
            good(&home.with_caps(&dump, &all).output().unwrap());
            reap();
        }
    }
}

#[test]
fn what_a_missing_capability_hinders_is_known_beforehand() {
    if !rustix::process::geteuid().is_root() || !inside("what_a_missing_capability_hinders_is_known_beforehand") {
        return;
    }
    let mut faults = Vec::new();
    matrix("nobody's", |command| _ = command.uid(NOBODY).gid(NOBODY), &mut faults);
    matrix("somebody else's", someone_else, &mut faults);
    matrix("with descriptors", with_descriptors, &mut faults);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

//! The inner half: runs beside the booted systemd, as its administrator would, and as the service's clients do.
use crate::program::{Program, until};
use crust_rpc::{Client, Error};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const CRUST: &str = "/usr/sbin/crust";
const SOCKET: &str = "/run/criu-service.socket";
const UNITS: &str = "/usr/lib/systemd/system";
const SERVICE: &str = "crust.service";
/// Exposure in tenths from which systemd-analyze no longer says MEDIUM.
const EXPOSED: u32 = 75;

/// All of it, in order: each step finds the state that the one before left.
pub(crate) fn run() {
    let start = Instant::now();
    let mut last = start;
    let mut done = |what: &str| {
        println!("systemd: {what} ({:.1} s)", last.elapsed().as_secs_f64());
        last = Instant::now();
    };
    until("the target is reached", || systemctl(&["is-active", "crust-test.target"]).1 == "active");
    done("booted");
    units_are_good();
    done("units verified");
    enabled_but_not_started();
    done("socket enabled and started, service inactive");
    let sample = Program::sample("systemd", CRUST);
    first_request_and_the_next(&sample);
    done("first request dumps, the same daemon restores");
    stopped_and_activated_again(&sample);
    done("stopped, activated again");
    drop(sample);
    levels_in_the_journal_and_reload();
    done("journal levels, reload");
    let kills = killed_under_load();
    done(&kills);
    watchdog_fires();
    done("watchdog: a daemon that stands still, and one that lives but takes nobody in");
    match users_pair() {
        Ok(()) => done("a user's own pair under systemd --user"),
        Err(why) => crate::skip("users_pair", &why),
    }
    let idle = idle_exits();
    done(&idle);
    one_unit_for_each_connection();
    done("Accept=yes");
    println!("systemd: all of it in {:.1} s", start.elapsed().as_secs_f64());
}

/// Runs a tool to its end: whether it was content, and what it said.
fn tool(program: &str, args: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(args).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
}

fn systemctl(args: &[&str]) -> (bool, String) {
    tool("systemctl", args)
}

/// A command that must succeed.
fn must(args: &[&str]) {
    let (good, text) = systemctl(args);
    assert!(good, "systemctl {}: {text}", args.join(" "));
}

fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", "--property", name, "--value", unit]).1
}

fn state(unit: &str) -> String {
    property(unit, "ActiveState")
}

fn main_pid() -> i32 {
    property(SERVICE, "MainPID").parse().unwrap()
}

fn client() -> Client {
    Client::connect(Path::new(SOCKET)).unwrap()
}

/// Settings for the service on top of the installed ones; none takes them away.
fn service_settings(lines: &[&str]) {
    settings(SERVICE, "Service", lines);
    if state(SERVICE) == "active" {
        must(&["stop", SERVICE]);
    }
}

fn settings(unit: &str, section: &str, lines: &[&str]) {
    let dir = format!("/etc/systemd/system/{unit}.d");
    fs::create_dir_all(&dir).unwrap();
    fs::write(format!("{dir}/test.conf"), format!("[{section}]\n{}\n", lines.join("\n"))).unwrap();
    must(&["daemon-reload"]);
}

/// What the units' own tools say about them.
fn units_are_good() {
    let mut units = Vec::new();
    for entry in fs::read_dir(UNITS).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("crust") && !name.starts_with("crust-test") {
            units.push(format!("{UNITS}/{}", name.replace("@.", "@1.")));
        }
    }
    assert!(units.len() >= 3, "{units:?}");
    // A template is verified by an instance, which must have a file here.
    for instance in units.iter().filter(|u| u.contains("@1.")) {
        fs::copy(instance.replace("@1.", "@."), instance).unwrap();
    }
    let man = Path::new("/usr/bin/man").exists();
    let mut args = vec!["verify", if man { "--man=yes" } else { "--man=no" }];
    args.extend(units.iter().map(String::as_str));
    assert_eq!(tool("systemd-analyze", &args), (true, String::new()));
    for instance in units.iter().filter(|u| u.contains("@1.")) {
        fs::remove_file(instance).unwrap();
    }
    let unit = format!("{UNITS}/{SERVICE}");
    let (_, text) = tool("systemd-analyze", &["security", "--offline=true", "--no-pager", &unit]);
    let overall = text.lines().last().unwrap_or_default();
    println!("systemd: {overall}");
    let tenths: u32 = overall
        .split_whitespace()
        .find_map(|word| word.split_once('.').and_then(|(a, b)| format!("{a}{b}").parse().ok()))
        .unwrap_or_else(|| panic!("no exposure: {text}"));
    assert!(tenths < EXPOSED, "{overall}");
}

fn enabled_but_not_started() {
    must(&["enable", "crust.socket"]);
    must(&["start", "crust.socket"]);
    let link = |name: &str| fs::read_link(Path::new("/etc/systemd/system").join(name)).unwrap();
    assert_eq!(link("sockets.target.wants/crust.socket"), Path::new("/lib/systemd/system/crust.socket"));
    assert_eq!(link("criu.socket"), Path::new("/lib/systemd/system/crust.socket"));
    assert_eq!(link("criu.service"), Path::new("/lib/systemd/system/crust.service"));
    assert_eq!(state("crust.socket"), "active");
    assert_eq!(state("criu.socket"), "active");
    assert_eq!(state(SERVICE), "inactive");
    assert_eq!(fs::metadata(SOCKET).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_link("/run/criu_service.socket").unwrap(), Path::new(SOCKET));
}

fn dump(program: &Program) {
    let images = program.images();
    assert!(!client().dump(program.opts(&images), |_| true).unwrap());
    program.must_be_gone();
}

fn restore(program: &Program) {
    let images = program.images();
    let mut opts = program.opts(&images);
    opts.log_file = Some(b"restore.log".to_vec());
    assert_eq!(client().restore(opts, |_| true).unwrap(), program.pid);
    program.goes_on();
}

/// Nobody has connected so far: the connection that starts the service is served itself, and it is a dump.
fn first_request_and_the_next(sample: &Program) {
    dump(sample);
    assert_eq!(state(SERVICE), "active");
    let pid = main_pid();
    restore(sample);
    // A confined service does not restore itself: the tree would be confined, too.
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", sample.pid)).unwrap();
    assert!(cgroup.contains("/crust-restore@"), "{cgroup}");
    let status = fs::read_to_string(format!("/proc/{}/status", sample.pid)).unwrap();
    assert!(status.contains("Seccomp:\t0") && status.contains("NoNewPrivs:\t0"), "{status}");
    client().check().unwrap();
    // Their logs are CRIU's, without what the journal wants in front.
    for log in ["dump.log", "restore.log"] {
        let text = fs::read_to_string(sample.dir.path("images").join(log)).unwrap();
        assert!(text.starts_with('('), "{log}: {text}");
    }
    assert_eq!(client().version().unwrap().major_number, 4);
    assert_eq!((main_pid(), state(SERVICE)), (pid, "active".to_owned()));
    assert!(property(SERVICE, "StatusText").starts_with("Serving"), "{}", property(SERVICE, "StatusText"));
}

/// Restored trees outlive the service, and what it dumped it can dump again.
fn stopped_and_activated_again(sample: &Program) {
    let pid = main_pid();
    must(&["stop", SERVICE]);
    assert_eq!((state(SERVICE), state("crust.socket")), ("inactive".to_owned(), "active".to_owned()));
    sample.goes_on();
    dump(sample);
    assert_eq!(state(SERVICE), "active");
    assert_ne!(main_pid(), pid);
    restore(sample);
}

/// Lines of the service, as priority and text.
fn journal() -> Vec<(u32, String)> {
    let (good, text) = tool("journalctl", &["--sync"]);
    assert!(good, "{text}");
    // Not by _COMM: a worker may be gone before the journal asks for its name.
    let (good, text) =
        tool("journalctl", &["--unit", SERVICE, "--output=json", "--no-pager", "SYSLOG_IDENTIFIER=crust"]);
    assert!(good, "{text}");
    let field = |line: &str, name: &str| {
        let rest = line.split_once(&format!("\"{name}\":\""))?.1;
        Some(rest.split_once('"')?.0.to_owned())
    };
    text.lines().filter_map(|l| Some((field(l, "PRIORITY")?.parse().ok()?, field(l, "MESSAGE")?))).collect()
}

/// Priorities are those of the messages; a reload keeps the daemon and takes new settings.
fn levels_in_the_journal_and_reload() {
    service_settings(&["ExecStart=", "ExecStart=/usr/sbin/crust service -v4"]);
    assert!(client().version().is_ok());
    let pid = main_pid();
    crate::common::send_raw(client().connection(), b"\xff");
    // Only when its worker has spoken is the next one the only one.
    let said = |priority: u32, text: &str| journal().iter().any(|(p, t)| *p == priority && t.contains(text));
    until("the journal has the error of the first", || said(3, "Error ("));
    until("its worker has ended", || said(7, "ended with 255"));
    // A silent client's worker, killed from outside, is worth a warning.
    let silent = client();
    let worker = || {
        let procs = fs::read_to_string("/sys/fs/cgroup/system.slice/crust.service/cgroup.procs").unwrap_or_default();
        procs.lines().filter_map(|line| line.parse().ok()).find(|p| *p != pid)
    };
    until("the silent client has a worker", || worker().is_some());
    kill_process(Pid::from_raw(worker().unwrap()).unwrap(), Signal::KILL).unwrap();
    let expected = [(3, "Error ("), (4, "was killed"), (6, "serving on"), (7, "serves user 0")];
    until("the journal has the service's messages with their priorities", || {
        let lines = journal();
        expected.iter().all(|(priority, text)| lines.iter().any(|(p, t)| p == priority && t.contains(text)))
    });
    drop(silent);
    for (priority, text) in journal() {
        assert!(!text.starts_with('<'), "a prefix that was not taken: {text}");
        assert!(priority == 3 || !text.contains("Error ("), "{priority}: {text}");
        assert!(priority == 4 || !text.contains("Warn  ("), "{priority}: {text}");
    }

    let status = || property(SERVICE, "StatusText");
    fs::create_dir_all("/etc/criu").unwrap();
    fs::write("/etc/criu/default.conf", "no-such-option\n").unwrap();
    must(&["reload", SERVICE]);
    until("a wrong configuration is refused", || said(3, "the configuration is left as it was"));
    until("the status says so", || status().starts_with("Reload failed"));
    fs::remove_file("/etc/criu/default.conf").unwrap();
    must(&["reload", SERVICE]);
    until("the configuration is read again", || said(6, "configuration read again"));
    until("the reload is over", || state(SERVICE) == "active");
    assert_eq!(main_pid(), pid);
    assert!(client().version().is_ok());
    assert_eq!(main_pid(), pid);
}

/// Processes that somebody traces or that stand still.
fn frozen() -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let traced = status.lines().any(|l| l.starts_with("TracerPid:") && !l.ends_with("\t0"));
        let stopped = status.lines().any(|l| l.starts_with("State:\tT") || l.starts_with("State:\tt"));
        if traced || stopped {
            found.push(status.lines().take(7).collect::<Vec<_>>().join(" "));
        }
    }
    found
}

/// The daemon dies again and again while programs are being dumped; each time the socket starts it anew, and no
/// program is left behind stopped.
fn killed_under_load() -> String {
    const KILLS: usize = 15;
    service_settings(&[]);
    let programs: Vec<Program> = (0..3).map(|i| Program::idle(&format!("load{i}"))).collect();
    let (over, dumps, broken) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut daemons = BTreeSet::new();
    std::thread::scope(|scope| {
        for program in &programs {
            scope.spawn(|| {
                let images = program.images();
                while !over.load(Ordering::Relaxed) {
                    let mut opts = program.opts(&images);
                    opts.leave_running = Some(true);
                    // A connection that nobody accepted may end with the daemon; the next one must be good.
                    match client().dump(opts, |_| true) {
                        Ok(_) => dumps.fetch_add(1, Ordering::Relaxed),
                        Err(Error::Failed(failure)) => panic!("{failure:?}"),
                        Err(_) => broken.fetch_add(1, Ordering::Relaxed),
                    };
                }
            });
        }
        for _ in 0..KILLS {
            let (from, mut pid) = (dumps.load(Ordering::Relaxed), 0);
            until("dumps go on with a daemon that was not there before", || {
                pid = main_pid();
                pid != 0 && !daemons.contains(&pid) && dumps.load(Ordering::Relaxed) > from
            });
            daemons.insert(pid);
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
    until("no process is frozen", || frozen().is_empty());
    // All still there, and in order: each can be dumped once more, and come back.
    for program in &programs {
        dump(program);
        let images = program.images();
        assert_eq!(client().restore(program.opts(&images), |_| true).unwrap(), program.pid);
    }
    let (dumps, broken) = (dumps.into_inner(), broken.into_inner());
    format!("daemon killed {KILLS} times among {dumps} dumps, {broken} connections broken by it, nothing frozen")
}

/// A daemon that no longer answers is ended by systemd, and a client that waits meanwhile is served by the next.
fn watchdog_fires() {
    service_settings(&["WatchdogSec=4s"]);
    assert!(client().version().is_ok());
    let beat = || property(SERVICE, "WatchdogTimestampMonotonic");
    let first = beat();
    until("the service tells that it is well", || beat() != first);
    let pid = main_pid();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
    until("the service stands still", || {
        fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|s| s.contains("State:\tT"))
    });
    let mut waiting = client();
    assert_eq!(waiting.version().unwrap().major_number, 4);
    assert_ne!(main_pid(), pid);
    until("the journal has the reason", || journal_of_the_manager().contains("Watchdog timeout"));

    // One that is alive, but has no descriptor left to take a client in with: it does not say that it is well.
    let (pid, before) = (main_pid(), journal_of_the_manager().matches("Watchdog timeout").count());
    let limit = tool("prlimit", &["--pid", &pid.to_string(), "--nofile=3:"]);
    assert!(limit.0, "{}", limit.1);
    let mut waiting = client();
    assert_eq!(waiting.version().unwrap().major_number, 4);
    assert_ne!(main_pid(), pid);
    until("the journal has it once more", || journal_of_the_manager().matches("Watchdog timeout").count() > before);
}

const USER: &str = "65534";
const USERS_MANAGER: &str = "crust-test-user.service";
pub(crate) const USERS_DIR: &str = "/run/crust-test-user";

/// A command in the name of the user whose manager runs.
fn as_user(program: &str, args: &[&str]) -> (bool, String) {
    let runtime = format!("XDG_RUNTIME_DIR={USERS_DIR}");
    let home = format!("HOME={USERS_DIR}");
    let prefix = ["--reuid", USER, "--regid", USER, "--clear-groups", "env", &runtime, &home, program];
    tool("setpriv", &[&prefix[..], args].concat())
}

/// The pair for `systemctl --user`, with a manager of an ordinary user: activated by the first request, a dump of the
/// user's own process; it does not serve root.
fn users_pair() -> Result<(), String> {
    let unit = format!(
        "[Service]\nType=notify\nUser={USER}\nGroup={USER}\nDelegate=yes\nKillMode=mixed\nTimeoutStartSec=60\n\
         RuntimeDirectory=crust-test-user\nRuntimeDirectoryMode=0700\n\
         Environment=XDG_RUNTIME_DIR={USERS_DIR} HOME={USERS_DIR}\nExecStart=/lib/systemd/systemd --user\n"
    );
    fs::write(format!("/etc/systemd/system/{USERS_MANAGER}"), unit).unwrap();
    must(&["daemon-reload"]);
    let (good, text) = systemctl(&["start", USERS_MANAGER]);
    if !good {
        return Err(format!("no systemd --user can be started: {text}"));
    }
    let user = |args: &[&str]| as_user("systemctl", &[&["--user"], args].concat());
    let good = |args: &[&str]| {
        let (good, text) = user(args);
        assert!(good, "systemctl --user {}: {text}", args.join(" "));
        text
    };
    let show = |name: &str| good(&["show", "--property", name, "--value", SERVICE]);
    good(&["start", "crust.socket"]);
    assert_eq!(show("ActiveState"), "inactive");
    let socket = format!("{USERS_DIR}/criu-service.socket");
    let stat = fs::metadata(&socket).unwrap();
    assert_eq!((stat.permissions().mode() & 0o777, stat.uid().to_string().as_str()), (0o600, USER));

    let me = std::env::current_exe().unwrap();
    let client = || {
        let role = [crate::AS_USER, "--nocapture", "--test-threads=1"];
        let outcome = as_user(me.to_str().unwrap(), &[&["--exact"], &role[..]].concat());
        assert!(outcome.0 && outcome.1.contains("a user's process was dumped"), "{}", outcome.1);
    };
    client();
    assert_eq!(show("ActiveState"), "active");
    let pid = show("MainPID");
    client();
    assert_eq!(show("MainPID"), pid, "the same daemon serves both");
    let program = Program::idle("users-roots");
    let refused = Client::connect(Path::new(&socket)).unwrap().dump(program.opts(&program.images()), |_| true);
    match refused {
        Err(Error::Failed(failure)) => assert!(failure.message.unwrap().contains("does not serve root")),
        other => panic!("{other:?}"),
    }

    good(&["stop", SERVICE]);
    assert_eq!(show("ActiveState"), "inactive");
    client();
    assert_ne!(show("MainPID"), pid);
    must(&["stop", USERS_MANAGER]);
    Ok(())
}

/// The user's client, in a process of the user's own.
pub(crate) fn be_users_client() {
    let socket = Path::new(USERS_DIR).join("criu-service.socket");
    let connect = || Client::connect(&socket).unwrap();
    let program = Program::idle("users");
    let images = program.images();
    assert!(!connect().dump(program.opts(&images), |_| true).unwrap());
    program.must_be_gone();
    assert!(program.dir.path("images/inventory.img").exists());
    // Restoring needs a namespace of one's own, and the answer says so.
    match connect().restore(program.opts(&images), |_| true) {
        Err(Error::Failed(failure)) => {
            let text = failure.message.unwrap_or_default();
            assert!(text.contains("restores for root only") && text.contains("unshare"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    println!("a user's process was dumped");
}

fn journal_of_the_manager() -> String {
    tool("journalctl", &["--unit", SERVICE, "--output=cat", "--no-pager", "_PID=1"]).1
}

/// The service leaves when nobody wants it, and comes back for the next client, also one that calls in that moment.
fn idle_exits() -> String {
    const ROUNDS: usize = 100;
    const IDLE: Duration = Duration::from_millis(120);
    service_settings(&["ExecStart=", "ExecStart=/usr/sbin/crust service --idle-timeout=0.12"]);
    let procs = Path::new("/sys/fs/cgroup/system.slice/crust.service/cgroup.procs");
    let running = || fs::read_to_string(procs).is_ok_and(|p| !p.is_empty());
    let before = journal_of_the_manager().matches("Started").count();
    let (mut calls, mut spread) = (0u32, 0u32);
    let activations = || journal_of_the_manager().matches("Started").count() - before;
    while activations() < ROUNDS {
        for round in 0..20 {
            assert_eq!(client().version().unwrap().major_number, 4, "after {calls} calls");
            calls += 1;
            match round % 2 {
                0 => until("the idle service ends", || !running()),
                // Just about when it ends: sometimes before, sometimes after.
                _ => {
                    spread = (spread * 7 + 3) % 41;
                    std::thread::sleep(IDLE - Duration::from_millis(10) + Duration::from_micros(500) * spread);
                }
            }
        }
    }
    until("the idle service is inactive", || state(SERVICE) == "inactive");
    assert_eq!((property(SERVICE, "Result"), state("crust.socket")), ("success".to_owned(), "active".to_owned()));
    format!("{} idle exits and activations, {calls} of {calls} calls answered", activations())
}

/// With `Accept=yes` each connection has its own unit, and so has the tree that it restores.
fn one_unit_for_each_connection() {
    service_settings(&[]);
    must(&["stop", "crust.socket"]);
    assert!(!Path::new(SOCKET).exists());
    settings("crust.socket", "Socket", &["Accept=yes"]);
    must(&["start", "crust.socket"]);
    let sample = Program::sample("accept", CRUST);
    dump(&sample);
    restore(&sample);
    assert_eq!(state(SERVICE), "inactive");
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", sample.pid)).unwrap();
    assert!(cgroup.contains("/crust@"), "{cgroup}");
    until("the unit lives as long as the tree", || {
        systemctl(&["list-units", "--no-legend", "--plain", "crust@*"]).1.lines().count() == 1
    });
    let unit = systemctl(&["list-units", "--no-legend", "--plain", "crust@*"]).1;
    must(&["stop", unit.split_whitespace().next().unwrap()]);
    sample.must_be_gone();
}

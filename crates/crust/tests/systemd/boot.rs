//! The outer half: installs, boots, runs the inner half beside the booted systemd, and sees that nothing is left.
use crate::common::{CRUST, Dir, Process, copy_program};
use crate::{INSIDE, install, skip};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SYSTEMD: &str = "/lib/systemd/systemd";
/// Makes the root file system and keeps the namespaces as long as we live.
const BOOT: &str = include_str!("boot.sh");
/// Where the copy of this test lies in there.
const DRIVER: &str = "/usr/lib/crust-test/driver";
/// Most time for the whole; it takes a fraction of this on an idle machine.
const LIMIT: Duration = Duration::from_secs(420);

/// Runs the test `name` inside.
pub(crate) fn run(name: &str) {
    if !rustix::process::geteuid().is_root() {
        return skip(name, "root is needed to boot a systemd");
    }
    if !Path::new(SYSTEMD).exists() {
        return skip(name, "systemd is not installed");
    }
    let (root, stage) = (Dir::new("systemd-root"), Dir::new("systemd-stage"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let places = install::Places::new(|name| match name {
        "DESTDIR" => Some(stage.0.display().to_string()),
        "PREFIX" => Some("/usr".to_owned()),
        _ => None,
    });
    install::install(&source, Path::new(CRUST), &places.unwrap()).unwrap();
    let driver = stage.0.join(DRIVER.trim_start_matches('/'));
    fs::create_dir_all(driver.parent().unwrap()).unwrap();
    copy_program(&std::env::current_exe().unwrap(), &driver);

    // The script ends everything when this pipe closes, and so also when this test is killed.
    let mut keeper = Command::new("unshare");
    keeper.args(["--mount", "sh", "-c", BOOT, "boot.sh"]).args([&root.0, &stage.0]);
    let mut keeper = Process(keeper.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut said = BufReader::new(keeper.0.stdout.take().unwrap()).lines();
    let first = said.next().map(|line| line.unwrap()).unwrap_or_default();
    if let Some(why) = first.strip_prefix("refused: ") {
        return skip(name, why);
    }
    let parent = first.strip_prefix("parent ").unwrap_or_else(|| panic!("the namespaces cannot be made: {first}"));

    let started = Instant::now();
    let pid1 = first_process(parent, started);
    let outcome = drive(name, &pid1, started);
    let log = outcome.is_err().then(|| journal(&pid1));

    drop(keeper.0.stdin.take());
    let rest: Vec<String> = said.map(|line| line.unwrap()).collect();
    let status = keeper.0.wait().unwrap();
    if let Err(text) = outcome {
        panic!("{text}\n--- journal\n{}", log.unwrap_or_default());
    }
    assert_eq!((status.code(), rest), (Some(0), vec!["ended".to_owned()]), "something was left behind");
    // Dead, though whoever inherited it may not have waited for it yet.
    assert!(fs::read_link(format!("/proc/{pid1}/exe")).is_err(), "the booted systemd lives on");
}

/// The pid of the booted systemd, as seen from here, once it is systemd.
fn first_process(parent: &str, started: Instant) -> String {
    loop {
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        let pid = children.split_whitespace().next().unwrap_or_default();
        if fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "systemd") {
            return pid.to_owned();
        }
        assert!(Path::new("/proc").join(parent).exists(), "the first process of the namespaces ended");
        assert!(started.elapsed() < Duration::from_secs(60), "systemd was not started");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs this test again, in the namespaces of `pid1`.
fn drive(name: &str, pid1: &str, started: Instant) -> Result<(), String> {
    let mut driver = Command::new("nsenter");
    driver.args(["--all", "--target", pid1, DRIVER, "--exact", name, "--nocapture"]);
    driver.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env(INSIDE, "1").current_dir("/");
    let mut driver = Process(driver.stdin(Stdio::null()).spawn().map_err(|e| format!("nsenter: {e}"))?);
    loop {
        match driver.0.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("inside: {status}")),
            Ok(None) if started.elapsed() > LIMIT => return Err(format!("not done after {LIMIT:?}")),
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            Err(e) => return Err(format!("waiting: {e}")),
        }
    }
}

/// What the services in there said last.
fn journal(pid1: &str) -> String {
    let said = Command::new("nsenter")
        .args(["--all", "--target", pid1, "journalctl", "--no-pager", "--lines=150", "--output=short-precise"])
        .output();
    said.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
}

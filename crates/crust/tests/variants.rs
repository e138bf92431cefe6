//! The variants of dump and restore, cpuinfo, and cleanup, each test in a pid namespace of its own.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unsafe_code, reason = "a terminal is made the controlling one between fork and exec")]
mod common;

use common::{CRUST, Dir, Sample, inside, output_text};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn stat(pid: i32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').map_or_else(Vec::new, |(_, rest)| rest.split_whitespace().map(str::to_owned).collect())
}

/// crust in a directory, with nothing of our environment.
fn crust_in(dir: &Dir, args: &[&str]) -> Command {
    let mut command = Command::new(CRUST);
    command.args(args).current_dir(&dir.0).env_clear();
    command
}

/// The same without anything to read.
fn mute(dir: &Dir, args: &[&str]) -> Command {
    let mut command = crust_in(dir, args);
    command.stdin(Stdio::null());
    command
}

impl Sample {
    fn crust(&self, args: &[&str]) -> Command {
        mute(&self.dir, args)
    }

    fn run(&self, args: &[&str]) -> Output {
        self.crust(args).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap()
    }

    fn good(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}\n{}", output.status, output_text(&output));
        output_text(&output)
    }

    fn dump(&self, more: &[&str]) {
        let pid = self.pid.to_string();
        self.good(&[&["dump", "-t", &pid, "-D", "images", "-o", "dump.log", "-v4"], more].concat());
    }

    fn state(&self) -> String {
        stat(self.pid).first().cloned().unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid).unwrap(), signal).unwrap();
    }

    /// Dumped and killed, and reaped if it was ours.
    fn put_away(&self, more: &[&str]) {
        self.dump(more);
        until("the sample is still there", || {
            let _reaped = waitpid(Pid::from_raw(self.pid), WaitOptions::NOHANG);
            !Path::new(&format!("/proc/{}", self.pid)).exists()
        });
    }
}

const RESTORE: [&str; 7] = ["restore", "-d", "-D", "images", "-o", "restore.log", "-v4"];

#[test]
fn left_stopped_by_dump_and_by_restore() {
    if !inside("left_stopped_by_dump_and_by_restore") {
        return;
    }
    let sample = Sample::start("stopped");
    sample.dump(&["--leave-stopped"]);
    until("it is not stopped", || sample.state() == "T");
    sample.signal(Signal::CONT);
    sample.goes_on();

    sample.put_away(&[]);
    let before = sample.dir.sample_count();
    sample.good(&[&RESTORE[..], &["--leave-stopped"]].concat());
    until("it is not stopped", || sample.state() == "T");
    assert_eq!(sample.dir.sample_count(), before);
    sample.signal(Signal::CONT);
    sample.goes_on();
}

#[test]
fn the_pid_file_is_new_and_names_the_root() {
    if !inside("the_pid_file_is_new_and_names_the_root") {
        return;
    }
    let sample = Sample::start("pidfile");
    sample.put_away(&[]);
    let with_file = [&RESTORE[..], &["--pidfile", "pid"]].concat();
    fs::write(sample.dir.path("images/pid"), "1").unwrap();
    let refused = sample.run(&with_file);
    assert_eq!(refused.status.code(), Some(1));
    assert!(output_text(&refused).contains("pid"), "{}", output_text(&refused));
    until("a refused restore leaves the task", || stat(sample.pid).is_empty());
    fs::remove_file(sample.dir.path("images/pid")).unwrap();
    sample.good(&with_file);
    let file = sample.dir.path("images/pid");
    assert_eq!(fs::read_to_string(&file).unwrap(), sample.pid.to_string());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    sample.goes_on();
}

#[test]
fn a_sibling_is_a_child_of_our_caller_and_a_command_takes_our_place() {
    if !inside("a_sibling_is_a_child_of_our_caller_and_a_command_takes_our_place") {
        return;
    }
    let sample = Sample::start("sibling");
    sample.put_away(&[]);
    let alone = sample.run(&["restore", "--restore-sibling", "-D", "images"]);
    assert_eq!(alone.status.code(), Some(1));
    sample.good(&[&RESTORE[..], &["--restore-sibling"]].concat());
    sample.goes_on();
    assert_eq!(stat(sample.pid)[1], std::process::id().to_string());

    sample.put_away(&[]);
    let script = format!(
        "echo init=$CRTOOLS_INIT_PID; read -r _ _ _ parent _ < /proc/{}/stat; test \"$parent\" = $$ && exit 5; exit 6",
        sample.pid
    );
    let output = sample.run(&["restore", "--exec-cmd", "-D", "images", "--", "/bin/sh", "-c", &script]);
    assert_eq!(output.status.code(), Some(5), "{}", output_text(&output));
    assert!(output_text(&output).contains(&format!("init={}", sample.pid)), "{}", output_text(&output));
    sample.goes_on();
}

#[test]
fn a_dump_that_takes_longer_than_its_timeout_rolls_back() {
    if !inside("a_dump_that_takes_longer_than_its_timeout_rolls_back") {
        return;
    }
    let sample = Sample::start_apart("timeout");
    let script = sample.slow_script("network-lock");
    let pid = sample.pid.to_string();
    let dump = ["dump", "-t", &pid, "-D", "images", "--timeout", "5", "--action-script", &script];
    let late = sample.run(&dump);
    assert_eq!(late.status.code(), Some(1), "{}", output_text(&late));
    assert!(output_text(&late).contains("was not complete within 5s"), "{}", output_text(&late));
    assert!(!sample.dir.path("images/inventory.img").exists());
    sample.goes_on();
}

#[test]
fn what_the_processor_lacks_is_listed() {
    if !inside("what_the_processor_lacks_is_listed") {
        return;
    }
    let sample = Sample::start("cpuinfo");
    sample.good(&["cpuinfo", "dump", "-D", "images"]);
    sample.good(&["cpuinfo", "check", "-D", "images"]);
    sample.good(&["cpuinfo", "check", "--cpu-cap", "-D", "images"]);
    sample.put_away(&["--cpu-cap"]);

    // Another processor: an image that asks for a register set nobody has.
    let image = sample.dir.path("images/cpuinfo.img");
    let json = sample.good(&["image", "show", &image.display().to_string()]);
    let good = fs::read(&image).unwrap();
    let from = json.find("\"xfeatures_mask\":").unwrap() + 17;
    let to = from + json[from..].find([',', '\n']).unwrap();
    let poor = format!("{} {}{}", &json[..from], 1_u64 << 40, &json[to..]);
    fs::write(sample.dir.path("poor.json"), poor).unwrap();
    let poor_image = image.display().to_string();
    sample.good(&["image", "encode", "-i", "poor.json", "-o", &poor_image]);
    let check = sample.run(&["cpuinfo", "check", "-D", "images"]);
    assert_eq!(check.status.code(), Some(1));
    assert!(output_text(&check).contains("XSAVE components 0x10000000000"), "{}", output_text(&check));
    sample.good(&["cpuinfo", "check", "--cpu-cap=none", "-D", "images"]);
    fs::remove_file(sample.dir.path("images/crust-manifest")).unwrap();
    let restore = sample.run(&[&RESTORE[..], &["--cpu-cap"]].concat());
    let said = output_text(&restore);
    assert_eq!(restore.status.code(), Some(1));
    assert!(said.contains("this processor lacks") && said.contains("nothing was created"), "{said}");
    assert_eq!(said.matches("Error:").count(), 1, "{said}");

    fs::write(&image, good).unwrap();
    sample.good(&[&RESTORE[..], &["--cpu-cap"]].concat());
    sample.goes_on();
}

#[test]
fn an_image_of_another_architecture_is_refused_before_anything_is_created() {
    if !inside("an_image_of_another_architecture_is_refused_before_anything_is_created") {
        return;
    }
    let sample = Sample::start("architecture");
    sample.put_away(&[]);
    let image = sample.dir.path(&format!("images/core-{}.img", sample.pid)).display().to_string();
    let good = fs::read(&image).unwrap();
    let json = sample.good(&["image", "show", &image]);
    assert_eq!(json.matches("X86_64").count(), 1, "{json}");
    fs::write(sample.dir.path("other.json"), json.replace("X86_64", "AARCH64")).unwrap();
    sample.good(&["image", "encode", "-i", "other.json", "-o", &image]);
    let restore = sample.run(&RESTORE);
    let said = output_text(&restore);
    assert_eq!(restore.status.code(), Some(1));
    assert!(said.contains("another architecture (AARCH64)") && said.contains("nothing was created"), "{said}");
    assert_eq!(said.matches("Error:").count(), 1, "{said}");
    assert!(!Path::new(&format!("/proc/{}", sample.pid)).exists());

    fs::write(&image, good).unwrap();
    sample.good(&RESTORE);
    sample.goes_on();
}

/// Changes a record of the sample's images: fields of its JSON.
fn change(sample: &Sample, image: &str, from: &str, to: &str) {
    let image = sample.dir.path(&format!("images/{image}")).display().to_string();
    let json = sample.good(&["image", "show", &image]);
    assert_eq!(json.matches(from).count(), 1, "{json}");
    fs::write(sample.dir.path("other.json"), json.replace(from, to)).unwrap();
    sample.good(&["image", "encode", "-i", "other.json", "-o", &image]);
}

#[test]
fn a_security_label_that_this_kernel_has_not_is_refused_by_name() {
    if !inside("a_security_label_that_this_kernel_has_not_is_refused_by_name") {
        return;
    }
    if fs::read_to_string("/proc/self/attr/current").is_ok_and(|label| !label.is_empty()) {
        let name = "a_security_label_that_this_kernel_has_not_is_refused_by_name";
        return common::skipped(name, "labels are in use here");
    }
    let sample = Sample::start("label");
    sample.put_away(&[]);
    change(&sample, "inventory.img", "\"lsmtype\": \"NO_LSM\"", "\"lsmtype\": \"APPARMOR\"");
    let profile = "\"lsm_profile\": \"lxc-container-default\", \"secbits\"";
    change(&sample, &format!("core-{}.img", sample.pid), "\"secbits\"", profile);
    let refused = |more: &[&str], named: &str| {
        let restore = sample.run(&[&RESTORE[..], more].concat());
        let said = output_text(&restore);
        assert_eq!(restore.status.code(), Some(1));
        assert!(said.contains(named) && said.contains("nothing was created"), "{said}");
        assert!(said.contains("--lsm-profile"), "{said}");
        assert_eq!(said.matches("Error:").count(), 1, "{said}");
        assert!(!Path::new(&format!("/proc/{}", sample.pid)).exists());
    };
    refused(&[], "\"lxc-container-default\" of AppArmor");
    refused(&["--lsm-profile", "selinux:a:b:c:d"], "\"a:b:c:d\" of SELinux");

    sample.good(&[&RESTORE[..], &["--lsm-profile", "none"]].concat());
    sample.goes_on();
}

#[test]
fn a_restore_that_takes_longer_than_its_timeout_leaves_nothing() {
    if !inside("a_restore_that_takes_longer_than_its_timeout_leaves_nothing") {
        return;
    }
    let sample = Sample::start("restore-timeout");
    sample.put_away(&[]);
    let script = sample.slow_script("post-restore");
    let late = sample.run(&[&RESTORE[..], &["--timeout", "5", "--action-script", &script]].concat());
    let said = output_text(&late);
    assert_eq!(late.status.code(), Some(1), "{said}");
    assert!(said.contains("was not complete") && said.contains("removed again"), "{said}");
    assert!(!Path::new(&format!("/proc/{}", sample.pid)).exists(), "{said}");

    sample.good(&RESTORE);
    sample.goes_on();
}

#[test]
fn cleanup_shows_and_removes_what_crashed_runs_left() {
    if !inside("cleanup_shows_and_removes_what_crashed_runs_left") {
        return;
    }
    // A signal that came while a thread was in a landing leaves a frame on its stack that names it, and a thread that
    // gets no other signal keeps that for ever: then nothing is removed, and that is right.
    assert!((0..5).any(|_| everything_is_cleaned_up()), "five times something led to a landing");
}

/// False if a landing had to stay.
fn everything_is_cleaned_up() -> bool {
    let sample = Sample::start("cleanup");
    let images = sample.dir.path("images");
    fs::create_dir(images.join(".crust-partial-1-0")).unwrap();
    fs::write(images.join(".crust-partial-1-0/pages-1.img"), "x").unwrap();
    drop(std::os::unix::net::UnixListener::bind(sample.dir.path("dead.socket")).unwrap());
    let _listens = std::os::unix::net::UnixListener::bind(sample.dir.path("live.socket")).unwrap();
    fs::write(images.join("dead.pid"), "32767").unwrap();
    // Dumps die until one leaves something in the task.
    let pid = sample.pid.to_string();
    let whole = Instant::now();
    sample.dump(&["--leave-running"]);
    let whole = whole.elapsed();
    let show = ["cleanup", "--dry-run", "-D", "images", "-t", &pid];
    for n in 0..600_u32 {
        let mut dump = sample.crust(&["dump", "-t", &pid, "-D", "images", "--leave-running", "-o", "d.log"]);
        let mut dump = dump.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The machine may be busier now than it was, or less.
        let scale = [1.0, 4.0, 0.25][(n / 40 % 3) as usize];
        std::thread::sleep(whole.mul_f64(scale * f64::from(n % 40) / 40.0));
        dump.kill().unwrap();
        dump.wait().unwrap();
        if sample.good(&show).contains("tracers that died") {
            break;
        }
    }
    fs::create_dir_all(images.join(".crust-partial-1-0")).unwrap();
    let (dead, live) = (sample.dir.path("dead.socket"), sample.dir.path("live.socket"));
    let (dead, live) = (dead.display().to_string(), live.display().to_string());
    let all = ["cleanup", "-D", "images", "-t", &pid, "--address", &dead, "--pidfile", "dead.pid"];
    let said = sample.good(&[&all[..], &["--dry-run"]].concat());
    for what in ["tracers that died", ".crust-partial-1-0", "dead.socket", "dead.pid"] {
        assert!(said.contains(what), "{what}: {said}");
    }
    assert!(said.contains("left there") && !said.contains("removed"), "{said}");
    assert!(images.join(".crust-partial-1-0").exists() && Path::new(&dead).exists());

    // A dump that runs holds the lock of its directory.
    let held = File::open(images.join(".crust-partial-1-0")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let output = sample.run(&["cleanup", "-D", "images", "-t", &pid, "--address", &live]);
    let said = output_text(&output);
    if said.contains("NOT removed") && said.contains("something in its memory leads to a landing") {
        return false;
    }
    assert!(output.status.success(), "{said}");
    assert!(!said.contains(".crust-partial-1-0") && !said.contains("live.socket"), "{said}");
    assert!(images.join(".crust-partial-1-0").exists());
    drop(held);

    let said = sample.good(&all);
    assert!(!images.join(".crust-partial-1-0").exists() && !Path::new(&dead).exists(), "{said}");
    assert!(!images.join("dead.pid").exists() && Path::new(&live).exists());
    assert_eq!(sample.good(&all), "Nothing was left behind.\n");
    sample.goes_on();
    sample.put_away(&[]);
    sample.good(&RESTORE);
    sample.goes_on();
    true
}

/// A terminal: our side, and the program's.
fn terminal() -> (File, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
    (File::from(master), slave)
}

/// Starts a program as the leader of a session on the terminal.
fn on_terminal(mut command: Command, slave: &OwnedFd) -> std::process::Child {
    let io = || Stdio::from(slave.try_clone().unwrap());
    command.stdin(io()).stdout(io()).stderr(io());
    // SAFETY: two system calls, safe between fork and exec; standard input is the terminal by then.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        });
    }
    command.spawn().unwrap()
}

/// Reads the terminal until `wanted` comes.
fn expect(master: &File, wanted: &str) {
    let (start, mut seen) = (Instant::now(), Vec::new());
    while !String::from_utf8_lossy(&seen).contains(wanted) {
        let left = LIMIT.saturating_sub(start.elapsed());
        assert!(!left.is_zero(), "no {wanted:?} in {:?}", String::from_utf8_lossy(&seen));
        let slice = rustix::time::Timespec { tv_sec: 1, tv_nsec: 0 };
        let mut fds = [rustix::event::PollFd::new(master, rustix::event::PollFlags::IN)];
        if rustix::event::poll(&mut fds, Some(&slice)).unwrap_or(0) > 0 {
            let mut piece = [0; 4096];
            let n = (&*master).read(&mut piece).unwrap_or(0);
            seen.extend_from_slice(&piece[..n]);
        }
    }
}

#[test]
fn a_shell_moves_to_another_terminal() {
    if !inside("a_shell_moves_to_another_terminal") {
        return;
    }
    let dir = Dir::new("shell");
    fs::create_dir(dir.path("images")).unwrap();
    let shell = if Path::new("/bin/bash").exists() { "/bin/bash --norc --noprofile" } else { "/bin/sh" };
    let (first, slave) = terminal();
    let mut outer = Command::new("/bin/sh");
    outer.args(["-c", &format!("{shell} -i; echo outer-done")]).current_dir(&dir.0);
    outer.env_clear().env("PS1", "ready> ").env("PATH", "/usr/bin:/bin").env("TERM", "dumb");
    let mut outer = on_terminal(outer, &slave);
    drop(slave);
    expect(&first, "ready> ");
    (&first).write_all(b"kept=$((6*7)); echo shell=$$.\n").unwrap();
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", outer.id())).unwrap();
    let root = children.split_whitespace().next().unwrap().to_owned();
    // What it says, not the echo of what was typed: that is there before the shell has read it.
    expect(&first, &format!("shell={root}."));
    let crust = |args: &[&str]| crust_in(&dir, args);
    // Without the option the session is an obstacle that is named.
    let refused = crust(&["dump", "-t", &root, "-D", "images"]).stdin(Stdio::null()).output().unwrap();
    assert!(!refused.status.success() && output_text(&refused).contains("--shell-job"), "{}", output_text(&refused));
    let dump = crust(&["dump", "--shell-job", "-t", &root, "-D", "images", "-o", "dump.log", "-v4"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(dump.status.success(), "{}", output_text(&dump));
    expect(&first, "outer-done");
    outer.wait().unwrap();
    drop(first);

    let (second, slave) = terminal();
    let restore = crust(&["restore", "--shell-job", "-D", "images", "-o", "restore.log", "-v4"]);
    let mut restore = on_terminal(restore, &slave);
    drop(slave);
    // Only now: a sleeping shell alone could still wait for the end of its restore.
    let log = || fs::read_to_string(dir.path("images/restore.log")).unwrap_or_default();
    until("the shell does not come back", || log().contains("Restore finished successfully"));
    (&second).write_all(b"echo \"kept=$kept pid=$$\"\n").unwrap();
    expect(&second, &format!("kept=42 pid={root}"));
    // Job control: a job in the foreground, ended by the terminal's own key.
    (&second).write_all(b"sleep 1000; echo slept=$?\n").unwrap();
    until("no job", || fs::read_to_string(format!("/proc/{root}/task/{root}/children")).is_ok_and(|c| !c.is_empty()));
    until("the job does not end", || {
        (&second).write_all(&[3]).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        fs::read_to_string(format!("/proc/{root}/task/{root}/children")).is_ok_and(|c| c.is_empty())
    });
    (&second).write_all(b"exit\n").unwrap();
    assert!(restore.wait().unwrap().success());
}

/// A terminal from outside that the caller names at the dump and replaces at the restore.
#[test]
fn an_external_terminal_is_the_session_s_again() {
    if !inside("an_external_terminal_is_the_session_s_again") {
        return;
    }
    let dir = Dir::new("external-tty");
    fs::create_dir(dir.path("images")).unwrap();
    let (first, slave) = terminal();
    let mut shell = Command::new("/bin/sh");
    shell.arg("-i").current_dir(&dir.0).env_clear().env("PS1", "ready> ").env("PATH", "/usr/bin:/bin");
    let mut shell = on_terminal(shell, &slave);
    let (pid, at) = (shell.id().to_string(), rustix::fs::fstat(&slave).unwrap());
    let key = format!("tty[{:x}:{:x}]", at.st_rdev, at.st_dev);
    drop(slave);
    expect(&first, "ready> ");
    (&first).write_all(b"kept=$((6*7)); echo set=$kept.\n").unwrap();
    expect(&first, "set=42.");
    let crust = |args: &[&str]| mute(&dir, args);
    let dump = crust(&["dump", "-t", &pid, "-D", "images", "--external", &key]).output().unwrap();
    assert!(dump.status.success(), "{}", output_text(&dump));
    shell.wait().unwrap();
    drop(first);

    let missing = crust(&["restore", "-d", "-D", "images"]).output().unwrap();
    let said = output_text(&missing);
    assert!(!missing.status.success() && said.contains("--inherit-fd") && said.contains(&key), "{said}");
    let (second, slave) = terminal();
    let mut restore = crust(&["restore", "-d", "-D", "images", "--inherit-fd", &format!("fd[0]:{key}")]);
    let restore = restore.stdin(slave).output().unwrap();
    assert!(restore.status.success(), "{}", output_text(&restore));
    (&second).write_all(b"exec 3</dev/tty && echo kept=$kept.\n").unwrap();
    expect(&second, "kept=42.");
    // Only the controlling terminal's end hangs a program up that does not read.
    (&second).write_all(b"exec sleep 1000\n").unwrap();
    until("no sleep", || fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "sleep\n"));
    drop(second);
    until("the hang-up does not reach it", || stat(pid.parse().unwrap()).first().is_none_or(|state| state == "Z"));
}

/// A program that talks over one end of a connection whose other end is ours; the caller names it and gives a new one.
#[test]
fn an_external_unix_socket_is_replaced() {
    if !inside("an_external_unix_socket_is_replaced") {
        return;
    }
    use std::os::unix::net::UnixStream;
    let dir = Dir::new("external-unix");
    fs::create_dir(dir.path("images")).unwrap();
    let echoes = |mut end: &UnixStream, text: &str| {
        end.set_read_timeout(Some(LIMIT)).unwrap();
        end.write_all(text.as_bytes()).unwrap();
        let mut back = vec![0; text.len()];
        end.read_exact(&mut back).unwrap();
        assert_eq!(String::from_utf8_lossy(&back), text);
    };
    let (first, its) = UnixStream::pair().unwrap();
    let key = format!("socket:[{}]", rustix::fs::fstat(&its).unwrap().st_ino);
    let mut cat = Command::new("cat");
    cat.current_dir(&dir.0).stderr(Stdio::null());
    cat.stdin(OwnedFd::from(its.try_clone().unwrap())).stdout(OwnedFd::from(its));
    // SAFETY: one system call, safe between fork and exec.
    unsafe { cat.pre_exec(|| Ok(rustix::process::setsid().map(drop)?)) };
    let mut cat = cat.spawn().unwrap();
    echoes(&first, "before");
    let pid = cat.id().to_string();
    let crust = |args: &[&str]| mute(&dir, args);
    let refused = |output: Output, text: &str| {
        let said = output_text(&output);
        assert!(!output.status.success() && said.contains(text) && said.contains("help:"), "{said}");
    };
    let option = format!("--ext-unix-sk={}", key.trim_start_matches("socket:[").trim_end_matches(']'));
    let dump = |more: &[&str]| crust(&[&["dump", "-t", &pid, "-D", "images"], more].concat()).output().unwrap();
    refused(dump(&[]), &option);
    // What waits in it could not be put into another one.
    let signal = |signal| kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), signal).unwrap();
    signal(Signal::STOP);
    until("it does not stop", || stat(pid.parse().unwrap()).first().is_some_and(|state| state == "T"));
    (&first).write_all(b"unread").unwrap();
    refused(dump(&[&option]), "6 bytes from outside wait in the external unix socket");
    signal(Signal::CONT);
    let mut back = [0; 6];
    (&first).read_exact(&mut back).unwrap();
    echoes(&first, "again");

    let output = dump(&[&option]);
    assert!(output.status.success(), "{}", output_text(&output));
    cat.wait().unwrap();
    refused(crust(&["restore", "-d", "-D", "images"]).output().unwrap(), &key);
    let (second, its) = UnixStream::pair().unwrap();
    let mut restore = crust(&["restore", "-d", "-D", "images", "--inherit-fd", &format!("fd[0]:{key}")]);
    let restore = restore.stdin(OwnedFd::from(its)).output().unwrap();
    assert!(restore.status.success(), "{}", output_text(&restore));
    echoes(&second, "after");
    // It holds the only other end.
    drop(second);
    until("it does not see the end", || stat(pid.parse().unwrap()).first().is_none_or(|state| state == "Z"));
}

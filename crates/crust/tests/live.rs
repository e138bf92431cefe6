//! Whole checkpoints and restores of the demonstration's sample, each test in a pid namespace of its own.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
mod common;

use common::{CRUST, Dir, Process, Sample, activated, connect, failure, inside, inside_with, listener, opts, swrk};
use crust_rpc::{Error, Opts};
use rustix::net::SocketType;
use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

impl Sample {
    fn is_gone(&self) -> bool {
        let pid = rustix::process::Pid::from_raw(self.pid);
        let _reaped = rustix::process::waitpid(pid, rustix::process::WaitOptions::NOHANG);
        !std::path::Path::new(&format!("/proc/{}", self.pid)).exists()
    }

    fn must_be_gone(&self) {
        let start = Instant::now();
        while !self.is_gone() {
            assert!(start.elapsed() < Duration::from_secs(60), "pid {} is still there", self.pid);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn images(&self) -> fs::File {
        fs::File::open(self.dir.path("images")).unwrap()
    }

    fn has_images(&self) -> bool {
        self.dir.path("images/inventory.img").exists()
    }

    fn cli(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(CRUST).args(args).current_dir(&self.dir.0).env_clear().output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

fn dump_opts(sample: &Sample, images: &fs::File) -> Opts {
    Opts { pid: Some(sample.pid), notify_scripts: Some(true), log_file: Some(b"dump.log".to_vec()), ..opts(images) }
}

#[test]
fn by_command_line_twice_in_a_row() {
    if !inside("by_command_line_twice_in_a_row") {
        return;
    }
    let sample = Sample::start("cli");
    let pid = sample.pid.to_string();
    for round in 0..2 {
        let before = sample.dir.sample_count();
        let (code, err) = sample.cli(&["dump", "-t", &pid, "-D", "images", "-v4", "-o", "dump.log"]);
        assert_eq!((code, err.as_str()), (Some(0), ""), "round {round}");
        sample.must_be_gone();
        assert!(sample.dir.path("images/stats-dump").exists() && sample.has_images());
        let log = fs::read_to_string(sample.dir.path("images/dump.log")).unwrap();
        assert!(log.contains("Dumping finished successfully"), "{log}");
        // Reads the pid file relative to the work directory.
        let (code, err) =
            sample.cli(&["restore", "-D", "images", "-W", ".", "-d", "--pidfile", &format!("pid{round}")]);
        assert_eq!((code, err.as_str()), (Some(0), ""), "round {round}");
        assert_eq!(fs::read_to_string(sample.dir.path(&format!("pid{round}"))).unwrap(), pid);
        assert!(sample.dir.sample_count() >= before);
        sample.goes_on();
        assert!(sample.dir.path("stats-restore").exists());
    }
}

#[test]
fn a_restore_in_the_foreground_waits_for_the_end() {
    if !inside("a_restore_in_the_foreground_waits_for_the_end") {
        return;
    }
    let sample = Sample::start("wait");
    assert_eq!(sample.cli(&["dump", "-t", &sample.pid.to_string(), "-D", "images"]).0, Some(0));
    sample.must_be_gone();
    let mut command = Command::new(CRUST);
    command.args(["restore", "-D", "images"]).current_dir(&sample.dir.0).stdout(Stdio::null()).stderr(Stdio::null());
    let mut restore = Process(command.spawn().unwrap());
    sample.goes_on();
    assert!(restore.0.try_wait().unwrap().is_none());
    let pid = rustix::process::Pid::from_raw(sample.pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(restore.code(), Some(0));
}

#[test]
fn the_command_of_exec_cmd_becomes_the_parent() {
    if !inside("the_command_of_exec_cmd_becomes_the_parent") {
        return;
    }
    let sample = Sample::start("exec");
    assert_eq!(sample.cli(&["dump", "-t", &sample.pid.to_string(), "-D", "images"]).0, Some(0));
    sample.must_be_gone();
    let text = "grep ^PPid: /proc/$CRTOOLS_INIT_PID/status; echo me $$; kill $CRTOOLS_INIT_PID; exit 7";
    let output = Command::new(CRUST)
        .args(["restore", "-D", "images", "--exec-cmd", "--", "sh", "-c", text])
        .current_dir(&sample.dir.0)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7));
    let said = String::from_utf8(output.stdout).unwrap();
    let numbers: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(numbers.get(1), numbers.get(3), "{said}");
}

/// The same by RPC: the reply comes first, then the worker becomes the command, with its output in the log.
#[test]
fn the_command_of_a_request_becomes_the_parent() {
    if !inside("the_command_of_a_request_becomes_the_parent") {
        return;
    }
    let sample = Sample::start("exec-rpc");
    let images = sample.images();
    let text = "grep ^PPid: /proc/$CRTOOLS_INIT_PID/status; echo me $$; exit 7";
    for by_service in [false, true] {
        let (mut client, _process) = swrk(&sample.dir, &[]);
        client.dump(Opts { notify_scripts: None, ..dump_opts(&sample, &images) }, |_| true).unwrap();
        sample.must_be_gone();
        let (mut client, mut process) = match by_service {
            false => swrk(&sample.dir, &[]),
            true => {
                let path = sample.dir.path("s");
                let service = activated(&sample.dir, listener(&path, SocketType::SEQPACKET), "1");
                (connect(&path), service)
            }
        };
        let log = format!("exec{by_service}.log");
        let exec_cmd = ["sh", "-c", text].map(|w| w.as_bytes().to_vec()).to_vec();
        let restore = Opts { exec_cmd, log_file: Some(log.clone().into_bytes()), ..opts(&images) };
        assert_eq!(client.restore(restore, |_| true).unwrap(), sample.pid);
        if !by_service {
            assert_eq!(process.code(), Some(7));
        }
        let said = || fs::read_to_string(sample.dir.path("images").join(&log)).unwrap();
        let start = Instant::now();
        while !said().lines().any(|line| line.starts_with("me ")) {
            assert!(start.elapsed() < Duration::from_secs(60), "{}", said());
            std::thread::sleep(Duration::from_millis(5));
        }
        let said = said();
        let number = |what: &str| said.lines().find_map(|l| l.strip_prefix(what)).unwrap().trim().to_owned();
        assert_eq!(number("PPid:"), number("me "), "{said}");
        sample.goes_on();
    }
}

#[test]
fn scripts_see_every_step_and_may_refuse() {
    if !inside("scripts_see_every_step_and_may_refuse") {
        return;
    }
    let sample = Sample::start("scripts");
    let pid = sample.pid.to_string();
    let record = "echo \"$CRTOOLS_SCRIPT_ACTION ${CRTOOLS_INIT_PID:-none}\" >> seen; test -d $CRTOOLS_IMAGE_DIR";
    for refused in ["pre-dump", "post-dump"] {
        sample.script("act", &format!("{record} && [ $CRTOOLS_SCRIPT_ACTION != {refused} ]"));
        let (code, err) = sample.cli(&["dump", "-t", &pid, "-D", "images", "-W", ".", "--action-script", "./act"]);
        assert_eq!(code, Some(if refused == "post-dump" { 255 } else { 1 }), "{refused}: {err}");
        assert!(err.contains(refused), "{err}");
        sample.goes_on();
        assert!(!sample.has_images(), "{refused} left images that look good");
    }
    fs::remove_file(sample.dir.path("seen")).unwrap();
    sample.script("act", record);
    let args = ["-D", "images", "-W", ".", "--action-script", "./act"];
    assert_eq!(sample.cli(&[&["dump", "-t", &pid][..], &args].concat()).0, Some(0));
    sample.must_be_gone();
    for refused in ["pre-restore", "post-restore"] {
        sample.script("act", &format!("[ $CRTOOLS_SCRIPT_ACTION != {refused} ]"));
        let (code, err) = sample.cli(&[&["restore", "-d"][..], &args].concat());
        assert_eq!(code, Some(1), "{refused}: {err}");
        sample.must_be_gone();
    }
    // From here on the tree runs, or must: a refusal is only logged.
    sample.script("act", &format!("{record}; [ $CRTOOLS_SCRIPT_ACTION != pre-resume ]"));
    let (code, err) = sample.cli(&[&["restore", "-d"][..], &args].concat());
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("Error (") && err.contains("pre-resume"), "{err}");
    sample.goes_on();
    let seen = fs::read_to_string(sample.dir.path("seen")).unwrap();
    let expected = ["pre-dump", "post-dump"].map(|s| format!("{s} {pid}"));
    let expected = [
        &expected[..],
        &["pre-restore none".to_owned()],
        &["post-restore", "pre-resume", "post-resume"].map(|s| format!("{s} {pid}")),
    ]
    .concat();
    assert_eq!(seen.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn check_pid_says_what_a_dump_would_say() {
    if !inside("check_pid_says_what_a_dump_would_say") {
        return;
    }
    let check = |pid: i32| Command::new(CRUST).args(["check", "--pid", &pid.to_string()]).output().unwrap();
    let sample = Sample::start("checkpid");
    let output = check(sample.pid);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    sample.goes_on();

    // A program in our session, with a connection out of its tree.
    let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut blocked = Command::new("sleep");
    blocked.arg("1000").stdin(std::os::fd::OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
    let mut blocked = Process(blocked.spawn().unwrap());
    let pid = blocked.0.id().to_string();
    let output = check(blocked.0.id() as i32);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    let (code, err) = sample.cli(&["dump", "-t", &pid, "-D", "images", "-W", "."]);
    assert_eq!(code, Some(1));
    let obstacles: Vec<&str> = said.lines().filter_map(|l| l.strip_prefix("- ")).collect();
    assert_eq!(obstacles.len(), 2, "{said}");
    for obstacle in obstacles {
        assert!(err.contains(obstacle), "the dump did not say: {obstacle}\n{err}");
    }
    assert!(blocked.0.try_wait().unwrap().is_none());
}

#[test]
fn an_interrupt_rolls_back() {
    if !inside("an_interrupt_rolls_back") {
        return;
    }
    let args = ["-D", "images", "-W", ".", "--action-script", "./act"];
    // The script stands for the user at the keyboard. At network-lock the tree is frozen.
    for (sample, at) in [(Sample::start("interrupt"), "pre-dump"), (Sample::start_apart("interrupt"), "network-lock")] {
        sample.script("act", &format!("[ $CRTOOLS_SCRIPT_ACTION != {at} ] || kill -INT $PPID"));
        let (code, err) = sample.cli(&[&["dump", "-t", &sample.pid.to_string()][..], &args].concat());
        assert_eq!(code, Some(1), "{at}: {err}");
        assert!(err.contains("cancelled") && !err.contains("namespace"), "{at}: {err}");
        sample.goes_on();
        assert!(!sample.has_images(), "{at}");
    }

    let sample = Sample::start("interrupt");
    let pid = sample.pid.to_string();
    sample.script("act", "[ $CRTOOLS_SCRIPT_ACTION != pre-restore ] || kill -TERM $PPID");
    assert_eq!(sample.cli(&["dump", "-t", &pid, "-D", "images", "-W", "."]).0, Some(0));
    sample.must_be_gone();
    let (code, err) = sample.cli(&[&["restore", "-d"][..], &args].concat());
    assert_eq!(code, Some(1), "{err}");
    sample.must_be_gone();
    assert_eq!(sample.cli(&["restore", "-d", "-D", "images", "-W", "."]).0, Some(0));
    sample.goes_on();
}

/// Who cuts the network of a tree off has to join it again; who shares ours is never told to.
#[test]
fn only_a_network_of_its_own_is_cut_off() {
    if !inside("only_a_network_of_its_own_is_cut_off") {
        return;
    }
    let sample = Sample::start_apart("network");
    let pid = sample.pid.to_string();
    for (refused, why) in [("network-lock", "network-lock"), ("none", "another net namespace")] {
        sample.script("act", &format!("echo $CRTOOLS_SCRIPT_ACTION >> seen; [ $CRTOOLS_SCRIPT_ACTION != {refused} ]"));
        let (code, err) = sample.cli(&["dump", "-t", &pid, "-D", "images", "-W", ".", "--action-script", "./act"]);
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains(why), "{err}");
        let seen = fs::read_to_string(sample.dir.path("seen")).unwrap();
        assert_eq!(seen, "pre-dump\nnetwork-lock\nnetwork-unlock\n");
        fs::remove_file(sample.dir.path("seen")).unwrap();
        sample.goes_on();
        assert!(!sample.has_images());
    }
}

#[test]
fn notifications_come_in_criu_s_order() {
    if !inside("notifications_come_in_criu_s_order") {
        return;
    }
    let sample = Sample::start("order");
    let images = sample.images();
    let mut seen = Vec::new();
    let (mut client, mut process) = swrk(&sample.dir, &[]);
    let restored = client.dump(dump_opts(&sample, &images), |n| {
        seen.push(n.script);
        true
    });
    assert!(!restored.unwrap());
    assert_eq!(process.code(), Some(0));
    assert_eq!(seen, ["pre-dump", "query-ext-files", "post-dump"]);
    sample.must_be_gone();

    let mut seen = Vec::new();
    let (mut client, mut process) = swrk(&sample.dir, &[]);
    let restore = Opts { notify_scripts: Some(true), rst_sibling: Some(true), ..opts(&images) };
    let pid = client.restore(restore, |n| {
        seen.push((n.script, n.pid));
        true
    });
    assert_eq!(pid.unwrap(), sample.pid);
    assert_eq!(process.code(), Some(0));
    let names: Vec<&str> = seen.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, ["pre-restore", "post-restore", "pre-resume", "post-resume"]);
    assert_eq!(seen[1].1, Some(sample.pid));
    sample.goes_on();
    // The sibling of swrk is our child.
    let status = fs::read_to_string(format!("/proc/{}/status", sample.pid)).unwrap();
    assert!(status.contains(&format!("PPid:\t{}\n", std::process::id())), "{status}");
}

#[test]
fn a_client_that_says_no_or_leaves_gets_its_program_back() {
    if !inside("a_client_that_says_no_or_leaves_gets_its_program_back") {
        return;
    }
    let sample = Sample::start("no");
    let images = sample.images();
    for script in ["pre-dump", "query-ext-files", "post-dump"] {
        let (mut client, mut process) = swrk(&sample.dir, &[]);
        let f = failure(client.dump(dump_opts(&sample, &images), |n| n.script != script));
        assert!(f.message.as_deref().is_some_and(|m| m.contains(script)), "{f:?}");
        assert_eq!(process.code(), Some(1), "{script}");
        sample.goes_on();
        assert!(!sample.has_images(), "{script}");

        // The same with a client that hangs up instead.
        let (client, mut process) = swrk(&sample.dir, &[]);
        let ask = common::request(crust_rpc::RequestType::Dump, Some(dump_opts(&sample, &images)));
        client.connection().send(&ask, None).unwrap();
        loop {
            let reply = match client.connection().receive::<crust_rpc::Response>().unwrap() {
                crust_rpc::Packet::Message(reply, _) => reply,
                other => panic!("{other:?}"),
            };
            if reply.notify.unwrap().script.as_deref() == Some(script) {
                break;
            }
            let mut ack = common::request(crust_rpc::RequestType::Notify, None);
            ack.notify_success = Some(true);
            client.connection().send(&ack, None).unwrap();
        }
        drop(client);
        assert!(process.code().is_some());
        sample.goes_on();
        assert!(!sample.has_images(), "{script}");
    }
    // And a good one afterwards.
    let (mut client, _process) = swrk(&sample.dir, &[]);
    let running = Opts { leave_running: Some(true), ..dump_opts(&sample, &images) };
    assert!(!client.dump(running, |_| true).unwrap());
    sample.goes_on();
    assert!(sample.has_images());
}

#[test]
fn restore_by_rpc_refuses_what_is_taken_and_leaves_nothing() {
    if !inside("restore_by_rpc_refuses_what_is_taken_and_leaves_nothing") {
        return;
    }
    let sample = Sample::start("taken");
    let images = sample.images();
    let (mut client, _process) = swrk(&sample.dir, &[]);
    let running = Opts { leave_running: Some(true), ..dump_opts(&sample, &images) };
    client.dump(running, |_| true).unwrap();
    let (mut client, mut process) = swrk(&sample.dir, &[]);
    let f = failure(client.restore(opts(&images), |_| true));
    assert_eq!(f.errno, Some(libc::EEXIST), "{f:?}");
    assert!(f.message.unwrap().contains(&sample.pid.to_string()));
    assert_eq!(process.code(), Some(1));
    sample.goes_on();
}

#[test]
fn who_is_just_dying_does_not_stand_in_the_way() {
    if !inside("who_is_just_dying_does_not_stand_in_the_way") {
        return;
    }
    let sample = Sample::start("dying");
    // Running on it could write to its file before it is killed.
    assert_eq!(sample.cli(&["dump", "-t", &sample.pid.to_string(), "-D", "images", "--leave-stopped"]).0, Some(0));
    let pid = rustix::process::Pid::from_raw(sample.pid).unwrap();
    // Killed, and nobody waits for it.
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let (code, err) = sample.cli(&["restore", "-D", "images", "-d"]);
    assert_eq!(code, Some(1));
    let named = format!("which ended, but its parent {} has not waited for it", std::process::id());
    assert!(err.contains(&named), "{err}");
    assert!(err.contains("help: a process that ended keeps its id until its parent waits for it"), "{err}");
    // Waited for while the restore runs, or before it looks.
    let mut command = Command::new(CRUST);
    command.args(["restore", "-D", "images", "-d"]).current_dir(&sample.dir.0).env_clear();
    let mut restore = Process(command.spawn().unwrap());
    std::thread::sleep(Duration::from_millis(50));
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
    assert_eq!(restore.code(), Some(0));
    sample.goes_on();
}

#[test]
fn errnos_are_what_clients_know() {
    let dir = Dir::new("errno");
    let images = dir.open();
    let (mut client, _process) = swrk(&dir, &[]);
    let nobody = Opts { pid: Some(999_999_999), ..opts(&images) };
    assert_eq!(failure(client.dump(nobody, |_| true)).errno, Some(libc::ESRCH));
    let (mut client, _process) = swrk(&dir, &[]);
    match client.restore(opts(&images), |_| true) {
        Err(Error::Failed(f)) => assert!(f.message.unwrap().contains("inventory.img")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_read_only_image_directory_is_refused_before_the_program_notices() {
    if !rustix::process::geteuid().is_root()
        || !inside("a_read_only_image_directory_is_refused_before_the_program_notices")
    {
        return;
    }
    let sample = Sample::start("readonly");
    let target = sample.dir.path("images");
    let mounted = Command::new("unshare")
        .args(["-m", "sh", "-c", "mount -t tmpfs -o ro none images && exec \"$0\" dump -t $1 -D images -W ."])
        .arg(CRUST)
        .arg(sample.pid.to_string())
        .current_dir(&sample.dir.0)
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&mounted.stderr).into_owned();
    assert_eq!(mounted.status.code(), Some(1), "{err}");
    assert!(err.contains("Read-only"), "{err}");
    sample.goes_on();

    let full = Command::new("unshare")
        .args(["-m", "sh", "-c", "mount -t tmpfs -o size=1m none images && exec \"$0\" dump -t $1 -D images -W ."])
        .arg(CRUST)
        .arg(sample.pid.to_string())
        .current_dir(&sample.dir.0)
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&full.stderr).into_owned();
    assert_eq!(full.status.code(), Some(1), "{err}");
    assert!(err.contains("No space") || err.contains("space"), "{err}");
    sample.goes_on();
    assert!(target.exists());
}

#[test]
fn the_demonstration_ends_well() {
    if !inside("the_demonstration_ends_well") {
        return;
    }
    let output = Command::new(CRUST).arg("demo").stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("Checkpointed, gone, restored, and right.") && !text.contains('\x1b'), "{text}");
}

/// Reads from a terminal's master until `text` has come.
fn hears(master: &OwnedFd, text: &str) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut heard = String::new();
    while !heard.contains(text) {
        let mut fds = [PollFd::new(master, PollFlags::IN)];
        let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
        assert_eq!(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit))), Ok(1), "{heard:?}");
        let mut bytes = [0; 256];
        let n = rustix::io::retry_on_intr(|| rustix::io::read(master, &mut bytes)).unwrap();
        heard.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
    }
}

#[test]
fn who_asks_for_the_master_of_a_terminal_gets_it() {
    if !inside_with("who_asks_for_the_master_of_a_terminal_gets_it", &["-m"]) {
        return;
    }
    // Terminals of our own, so that nobody else takes the number.
    let own = "mount -t devpts -o newinstance,ptmxmode=0666 none /dev/pts && mount --bind /dev/pts/ptmx /dev/ptmx";
    assert!(Command::new("sh").args(["-c", own]).status().unwrap().success());
    let dir = Dir::new("master");
    fs::create_dir(dir.path("images")).unwrap();
    let images = fs::File::open(dir.path("images")).unwrap();
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC;
    let mut master = rustix::pty::openpt(flags).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let slave = rustix::fs::open(&name, rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY, 0.into()).unwrap();
    let says = "stty -echo; echo ready; while read -r line; do echo \"got $line\"; done";
    let mut command = Command::new("setsid");
    command.args(["--ctty", "sh", "-c", says]).current_dir(&dir.0).stdin(slave.try_clone().unwrap());
    command.stdout(slave.try_clone().unwrap()).stderr(slave);
    let child = Process(command.spawn().unwrap());
    drop(command);
    let pid = rustix::process::Pid::from_child(&child.0);
    hears(&master, "ready");
    let ask = Opts { orphan_pts_master: Some(true), notify_scripts: Some(true), ..opts(&images) };
    for word in ["first", "second"] {
        let (mut client, _process) = swrk(&dir, &[]);
        client.dump(Opts { pid: Some(pid.as_raw_nonzero().get()), ..ask.clone() }, |_| true).unwrap();
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
        drop(master);
        let mut seen = Vec::new();
        let mut given = None;
        let (mut client, _process) = swrk(&dir, &[]);
        let restored = client.restore(Opts { rst_sibling: Some(true), ..ask.clone() }, |n| {
            seen.push(n.script);
            given = n.fd.or(given.take());
            true
        });
        assert_eq!(restored.unwrap(), pid.as_raw_nonzero().get());
        let order = ["pre-restore", "orphan-pts-master", "post-restore", "pre-resume", "post-resume"];
        assert_eq!(seen, order);
        master = given.expect("a master");
        rustix::io::write(&master, format!("{word}\n").as_bytes()).unwrap();
        hears(&master, &format!("got {word}\r\n"));
    }
    // It is the session's terminal, with its group in front.
    rustix::io::write(&master, b"\x03").unwrap();
    let ended = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap().unwrap().1;
    assert_eq!(ended.terminating_signal(), Some(libc::SIGINT), "{ended:?}");

    // Nobody asks, and there is no other terminal: nothing is made.
    drop(master);
    let (mut client, _process) = swrk(&dir, &[]);
    let f = failure(client.restore(Opts { notify_scripts: None, ..ask }, |_| true));
    assert!(f.message.as_deref().is_some_and(|m| m.contains("our terminal, and we have none")), "{f:?}");
}

//! Where images come from and go to: directories on small disks, tar streams, criu-image-streamer. Each test dumps and restores
//! the demonstration's sample in a pid namespace of its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, helpers outside of #[test] functions too")]
mod common;

use common::{CRUST, Dir};
use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Generous: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(120);

/// True inside of new pid and mount namespaces; outside, runs the test `name` again inside of them and says false.
fn inside(name: &str) -> bool {
    if std::env::var_os("CRUST_TEST_INSIDE").is_some() {
        return true;
    }
    let mut command = Command::new("unshare");
    command.args(if rustix::process::geteuid().is_root() {
        ["-mpf", "--mount-proc"]
    } else {
        ["-Urmpf", "--mount-proc"]
    });
    let exe = std::env::current_exe().unwrap();
    let command = command.arg(exe).args(["--exact", name, "--nocapture"]).env("CRUST_TEST_INSIDE", "1");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    false
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A running sample and its directory.
struct Sample {
    dir: Dir,
    pid: i32,
}

impl Sample {
    #[allow(clippy::zombie_processes, reason = "waited for by pid: what is restored is not this child any more")]
    fn start(name: &str) -> Self {
        let dir = Dir::new(name);
        fs::create_dir(dir.path("images")).unwrap();
        let child = Command::new(CRUST)
            .arg("demo-sample")
            .args([dir.path("status"), dir.path("journal")])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let sample = Self { dir, pid: child.id() as i32 };
        sample.goes_on();
        sample
    }

    fn count(&self) -> u64 {
        let text = fs::read_to_string(self.dir.path("status")).unwrap_or_default();
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.len() < 10 {
            return 0;
        }
        assert_eq!(words[9], "good", "{text}");
        words[1].parse().unwrap()
    }

    /// It counts, and its memory, pipe and file are as they must be.
    fn goes_on(&self) {
        let (start, from) = (Instant::now(), self.count());
        while self.count() < from + 2000 {
            assert!(start.elapsed() < LIMIT, "the sample does not go on from {from}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `crust VERB -D images MORE`, below the sample's directory.
    fn crust(&self, verb: &str, more: &[&str]) -> Command {
        let mut command = Command::new(CRUST);
        command.current_dir(&self.dir.0).arg(verb).args(["-D", "images", "--shell-job"]).args(more);
        command.stdin(Stdio::null());
        command
    }

    fn dump(&self, more: &[&str]) -> Command {
        let mut command = self.crust("dump", more);
        command.args(["-t", &self.pid.to_string()]);
        command
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.pid).unwrap();
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn good(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    output
}

#[test]
fn a_dump_without_room_stops_nothing() {
    if !inside("a_dump_without_room_stops_nothing") {
        return;
    }
    let sample = Sample::start("noroom");
    let small = sample.dir.path("images");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "none"]).arg(&small).status().unwrap();
    assert!(mounted.success());
    let output = sample.dump(&[]).output().unwrap();
    assert!(!output.status.success());
    let said = said(&output);
    assert!(said.contains("the images need about") && said.contains("are free in the image directory"), "{said}");
    assert!(said.contains("nothing was touched"), "{said}");
    assert_eq!(fs::read_dir(&small).unwrap().count(), 0);
    sample.goes_on();
    assert!(Command::new("umount").arg(&small).status().unwrap().success());
}

#[test]
fn verify_finds_a_changed_byte_in_any_file() {
    if !inside("verify_finds_a_changed_byte_in_any_file") {
        return;
    }
    let sample = Sample::start("verify");
    good(sample.dump(&["--leave-running"]));
    sample.goes_on();
    let images = sample.dir.path("images");
    let verify = || Command::new(CRUST).args(["image", "verify"]).arg(&images).output().unwrap();
    let text = said(&verify());
    assert!(text.contains("good: ") && !text.contains("never hashed"), "{text}");
    let mut large = 0;
    for entry in fs::read_dir(&images).unwrap() {
        let path = entry.unwrap().path();
        // Statistics are no part of the checkpoint.
        if path.file_name().is_some_and(|name| name == "stats-dump") {
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        large += u32::from(bytes.len() > 1 << 20);
        for at in [bytes.len() / 2, bytes.len() - 2] {
            bytes[at] ^= 4;
            fs::write(&path, &bytes).unwrap();
            let output = verify();
            assert!(!output.status.success(), "byte {at} of {}: {}", path.display(), said(&output));
            bytes[at] ^= 4;
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert!(large > 0, "no large file was there");
    assert!(verify().status.success());
}

//! The programs that are dumped: the demonstration's sample, which checks itself, and idle ones.
use crate::common::{Dir, opts, settled};
use crust_rpc::Opts;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that is bound to happen.
const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until `there`.
pub(crate) fn until(what: &str, mut there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !there() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A running program, with a directory for its images.
pub(crate) struct Program {
    pub(crate) dir: Dir,
    pub(crate) pid: i32,
}

impl Program {
    /// The sample: counts, and compares what it has in memory, pipe and file.
    pub(crate) fn sample(name: &str, crust: &str) -> Self {
        let dir = Dir::new(name);
        let mut command = Command::new(crust);
        command.arg("demo-sample").args([dir.path("status"), dir.path("journal")]);
        let sample = Self::start(dir, command);
        sample.goes_on();
        sample
    }

    /// One that sleeps, in a session of its own.
    pub(crate) fn idle(name: &str) -> Self {
        let dir = Dir::new(name);
        let mut command = Command::new("setsid");
        command.args(["sleep", "100000"]);
        let idle = Self::start(dir, command);
        let comm = format!("/proc/{}/comm", idle.pid);
        until("setsid becomes sleep", || fs::read_to_string(&comm).is_ok_and(|c| c.trim() == "sleep"));
        idle
    }

    #[allow(clippy::zombie_processes, reason = "waited for by pid: what is restored is not this child any more")]
    fn start(dir: Dir, mut command: Command) -> Self {
        fs::create_dir(dir.path("images")).unwrap();
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let pid = command.spawn().unwrap().id() as i32;
        Self { dir, pid }
    }

    /// How far the sample has counted, all being well with it.
    pub(crate) fn count(&self) -> u64 {
        let text = settled(&self.dir.path("status"));
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.len() < 10 {
            return 0;
        }
        assert_eq!(words[9], "good", "{text}");
        words[1].parse().unwrap()
    }

    /// The sample counts.
    pub(crate) fn goes_on(&self) {
        let from = self.count();
        until("the sample goes on", || self.count() > from + 1000);
    }

    pub(crate) fn must_be_gone(&self) {
        until("the dumped program is gone", || {
            let _reaped = waitpid(Pid::from_raw(self.pid), WaitOptions::NOHANG);
            !Path::new(&format!("/proc/{}", self.pid)).exists()
        });
    }

    pub(crate) fn images(&self) -> fs::File {
        fs::File::open(self.dir.path("images")).unwrap()
    }

    /// What a request for this program needs.
    pub(crate) fn opts(&self, images: &fs::File) -> Opts {
        Opts { pid: Some(self.pid), log_file: Some(b"dump.log".to_vec()), ..opts(images) }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _gone = kill_process(pid, Signal::KILL);
            let _reaped = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

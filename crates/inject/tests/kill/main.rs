//! Kills the tracer at random moments, and at every single system call it makes, and looks whether the target lives on
//! unharmed: not lost, not stuck, nothing corrupted, no call interrupted.
//!
//! This program is also its targets and its tracer: it runs itself. `CRUST_KILLS=N` sets the random kills in all (2000 for
//! the full run, default 400); `CRUST_KILL_TARGETS=a,b` picks targets.
#![allow(unsafe_code, reason = "targets hold register state by hand, and the page of counters is shared memory")]
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::exit, reason = "a test with its own main")]
mod features;
#[path = "../../../../zoo/src/i386.rs"]
#[allow(dead_code, unreachable_pub, reason = "the zoo, whose it is, uses more of it")]
mod i386;
mod shared;
mod targets;
mod tracer;

use crust_kernel::ptrace::{self, Stop, Waited};
use crust_kernel::{Deadline, HostTid};
use shared::{Page, Word};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// What one target went through.
#[derive(Default)]
struct Tally {
    kills: u64,
    boundary: u64,
    lost: u64,
    stuck: u64,
    corrupt: u64,
    eintr: u64,
    oversleep_us: u64,
    rounds: u64,
    /// Tracers that gave up by themselves: all places for landings burnt by earlier kills.
    refused: u64,
    phases: [u64; tracer::PHASES.len()],
}

impl Tally {
    fn bad(&self) -> u64 {
        self.lost + self.stuck + self.corrupt + self.eintr
    }
}

/// A running target and how to watch it.
struct Target {
    name: &'static str,
    child: Child,
    page: Page,
    path: PathBuf,
    /// Lines that a foreign program has printed so far.
    lines: Option<Arc<AtomicU64>>,
    bad_lines: Arc<AtomicU64>,
    sent: u64,
    stopped: bool,
    reaped: bool,
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.reaped {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// The parts of this test, told apart as the standard runner does: each is named with its outcome, and `--exact NAME...`
/// runs those alone.
struct Parts {
    exact: Option<Vec<String>>,
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Parts {
    fn new(args: &[String]) -> Self {
        let exact = args.iter().any(|a| a == "--exact");
        let names = args.iter().skip(1).filter(|a| !a.starts_with('-')).cloned().collect();
        Self { exact: exact.then_some(names), passed: 0, failed: 0, ignored: 0 }
    }

    /// Runs a part; it fails by panicking or by what it returns, and is left out by returning nothing.
    fn run(&mut self, name: &str, part: impl FnOnce() -> Option<bool>) {
        let name = format!("kill::{}", name.replace(' ', "_"));
        if self.exact.as_ref().is_some_and(|only| !only.contains(&name)) {
            return;
        }
        let start = Instant::now();
        let passed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(part)).unwrap_or(Some(false));
        let (count, outcome) = match passed {
            Some(true) => (&mut self.passed, "ok"),
            Some(false) => (&mut self.failed, "FAILED"),
            None => (&mut self.ignored, "ignored"),
        };
        *count += 1;
        println!("   ({:.0} ms)", start.elapsed().as_secs_f64() * 1e3);
        println!("test {name} ... {outcome}");
    }
}

struct TempDir(PathBuf);

impl Drop for TempDir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

const PYTHON: &str = "
import threading, hashlib, time, sys
n = [0, 0]
def work(i):
    h = hashlib.sha256()
    while True:
        h.update(b'x' * 1000); n[i] += 1
        if n[i] % 50 == 0: time.sleep(0.001)
for i in range(2): threading.Thread(target=work, args=(i,), daemon=True).start()
line = 0
while True:
    print(line, flush=True); line += 1; time.sleep(0.004)
";

const NODE: &str = "
let line = 0, sum = 0;
setInterval(() => { for (let i = 0; i < 20000; i++) sum = (sum * 31 + i) % 1000003; console.log(line++); }, 4);
require('fs').readFile('/proc/self/status', () => {});
";

const JAVA: &str = "
public class T {
    public static void main(String[] a) throws Exception {
        for (int t = 0; t < 2; t++) {
            Thread w = new Thread(() -> { long x = 1; while (true) { x = x * 6364136223846793005L + 1; if ((x & 0xfffff) == 0) { byte[] b = new byte[100000]; } } });
            w.setDaemon(true); w.start();
        }
        for (long line = 0; ; line++) { System.out.println(line); System.out.flush(); Thread.sleep(4); }
    }
}
";

impl Target {
    fn start(name: &'static str, dir: &Path) -> Option<Self> {
        let path = dir.join(format!("page-{name}"));
        std::fs::write(&path, [0; 4096]).unwrap();
        let page = Page::open(&path);
        if name == "tiles" && !crust_kernel::ptrace_x86::supported_xstate().is_ok_and(|c| c & (1 << 18) != 0) {
            println!("{name:11} skipped: no AMX here");
            return None;
        }
        let me = std::env::current_exe().unwrap();
        let mut command = Command::new(&me);
        let foreign = match name {
            "python" => Some(vec!["python3".to_owned(), "-u".into(), "-c".into(), PYTHON.into()]),
            "node" => Some(vec!["node".to_owned(), "-e".into(), NODE.into()]),
            "java" => {
                let source = dir.join("T.java");
                std::fs::write(&source, JAVA).unwrap();
                Some(vec![
                    "java".to_owned(),
                    "-Xshare:auto".into(),
                    "-Xmx256m".into(),
                    source.to_str().unwrap().to_owned(),
                ])
            }
            _ => None,
        };
        match &foreign {
            None if name.starts_with("i386-") => {
                if crust_inject::arch::compat::vdso().is_none() {
                    println!("{name:11} skipped: this kernel runs no 32-bit programs");
                    return None;
                }
                let program = dir.join("i386");
                if !program.exists() {
                    std::fs::write(&program, i386::file()).unwrap();
                    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
                }
                command.arg("exec").arg(&program).arg(&path).arg(&name["i386-".len()..])
            }
            Some(words) => {
                let found =
                    Command::new(&words[0]).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
                if !found.is_ok_and(|s| s.success()) {
                    println!("{name:11} skipped: {} is not installed", words[0]);
                    return None;
                }
                command.arg("exec").args(words).stdout(Stdio::piped())
            }
            None => {
                let program = name.strip_suffix("-stopped").unwrap_or(name);
                command.args(["target", program]).arg(&path)
            }
        };
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let bad_lines = Arc::new(AtomicU64::new(0));
        let lines = child.stdout.take().map(|out| {
            let (lines, bad) = (Arc::new(AtomicU64::new(0)), Arc::clone(&bad_lines));
            let count = Arc::clone(&lines);
            std::thread::spawn(move || {
                for (n, line) in BufReader::new(out).lines().map_while(Result::ok).enumerate() {
                    if line != n.to_string() {
                        bad.fetch_add(1, SeqCst);
                    }
                    count.fetch_add(1, SeqCst);
                }
            });
            lines
        });
        let mut target = Self { name, child, page, path, lines, bad_lines, sent: 0, stopped: false, reaped: false };
        let deadline = Deadline::after(Duration::from_secs(60));
        let mut ready = false;
        while !ready {
            assert!(!deadline.expired(), "{name} does not start");
            std::thread::sleep(Duration::from_millis(5));
            ready = match &target.lines {
                Some(lines) => lines.load(SeqCst) > 3,
                None => target.page.get(Word::Ready) > 0,
            };
            assert!(target.child.try_wait().unwrap().is_none(), "{name} ended at once");
        }
        if name.ends_with("-stopped") {
            ptrace::tgkill(target.pid(), target.pid(), libc::SIGSTOP).unwrap();
            target.stopped = true;
            while target.state() != 'T' {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Some(target)
    }

    fn pid(&self) -> HostTid {
        HostTid::new(i32::try_from(self.child.id()).unwrap()).unwrap()
    }

    fn state(&self) -> char {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        text.rsplit(") ").next().and_then(|t| t.chars().next()).unwrap_or('?')
    }

    /// Everything that must have moved when the target lives.
    fn progress(&self) -> Vec<u64> {
        match &self.lines {
            Some(lines) => vec![lines.load(SeqCst)],
            None => self.page.progress(),
        }
    }

    /// Whether the target is alive and every part of it goes on.
    fn check(&mut self, tally: &mut Tally) -> bool {
        if let Some(status) = self.child.try_wait().unwrap() {
            println!("{}: LOST, {status} (signal {:?})", self.name, status.signal());
            tally.lost += 1;
            return false;
        }
        if self.stopped {
            return self.check_stopped(tally);
        }
        let before = self.progress();
        if self.name == "read" {
            self.child.stdin.as_mut().unwrap().write_all(&self.sent.to_le_bytes()).unwrap();
            self.sent += 1;
        }
        let limit = Deadline::after(Duration::from_secs(60));
        let mut pause = Duration::from_micros(200);
        loop {
            let now = self.progress();
            if now.iter().zip(&before).all(|(n, b)| n > b) {
                break;
            }
            if limit.expired() {
                println!("{}: STUCK, state {}, {before:?} -> {now:?}", self.name, self.state());
                tally.stuck += 1;
                return false;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
        let corrupt = self.page.get(Word::Corrupt) + self.bad_lines.load(SeqCst);
        if corrupt > 0 || (self.name == "read" && self.page.get(Word::Messages) != self.sent) {
            println!("{}: CORRUPT {corrupt}", self.name);
            tally.corrupt += 1;
            return false;
        }
        true
    }

    fn check_stopped(&mut self, tally: &mut Tally) -> bool {
        let limit = Deadline::after(Duration::from_secs(60));
        // After a detach the kernel puts it back into its group stop, which takes a moment.
        while self.state() != 'T' {
            if limit.expired() {
                println!("{}: no longer stopped, state {}", self.name, self.state());
                tally.stuck += 1;
                return false;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        let before = self.progress();
        std::thread::sleep(Duration::from_millis(1));
        if self.progress() != before {
            println!("{}: runs though stopped", self.name);
            tally.corrupt += 1;
            return false;
        }
        true
    }

    fn end(mut self, tally: &mut Tally) {
        if self.stopped {
            ptrace::tgkill(self.pid(), self.pid(), libc::SIGCONT).unwrap();
            self.stopped = false;
            self.check(tally);
        }
        tally.eintr += self.page.get(Word::Eintr);
        tally.oversleep_us = self.page.get(Word::Oversleep);
        tally.rounds = self.page.get(Word::Rounds);
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.reaped = true;
        std::fs::remove_file(&self.path).unwrap();
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

fn spawn_tracer(mode: &str, target: &Target) -> Child {
    let me = std::env::current_exe().unwrap();
    Command::new(me).args([mode, &target.pid().to_string()]).arg(&target.path).spawn().unwrap()
}

/// Kills a looping tracer after a random time.
fn random_kill(target: &mut Target, random: &mut Random, tally: &mut Tally) -> bool {
    let rounds = target.page.get(Word::Rounds);
    target.page.set(Word::Phase, 0);
    let mut tracer = spawn_tracer("tracer", target);
    // Starting a process takes longer than a round: the clock runs from its first step on.
    let limit = Deadline::after(Duration::from_secs(60));
    while target.page.get(Word::Phase) == 0 && !limit.expired() && tracer.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_micros(20));
    }
    // A first round takes about as long as ten later ones: half of the kills fall into it.
    let (first, later) =
        if target.page.get(Word::Ready) > 1 || target.lines.is_some() { (9000, 20_000) } else { (3000, 9000) };
    let most = if random.below(2) == 0 { first } else { later };
    let wait = random.below(most);
    std::thread::sleep(Duration::from_micros(wait));
    if let Some(status) = tracer.try_wait().unwrap() {
        println!("{}: the tracer failed by itself: {status}", target.name);
        tally.corrupt += 1;
        return false;
    }
    let phase = target.page.get(Word::Phase) as usize;
    tracer.kill().unwrap();
    tally.refused += u64::from(tracer.wait().unwrap().signal() != Some(libc::SIGKILL));
    tally.kills += 1;
    tally.phases[phase.min(tracer::PHASES.len() - 1)] += 1;
    debug_assert!(target.page.get(Word::Rounds) >= rounds);
    target.check(tally)
}

#[allow(clippy::zombie_processes, reason = "the tracer is waited for through ptrace")]
/// Kills a tracer at the `n`th entry to or exit from a system call of its round. `None`: the round has fewer.
fn boundary_kill(target: &mut Target, n: u64, tally: &mut Tally) -> Option<bool> {
    target.page.set(Word::Go, 0);
    let mut tracer = spawn_tracer("once", target);
    let tid = HostTid::new(i32::try_from(tracer.id()).unwrap()).unwrap();
    let limit = Deadline::after(Duration::from_secs(60));
    // Seized only when it has started up: exec and the loader are not its round.
    std::thread::sleep(Duration::from_millis(2));
    ptrace::seize(tid, ptrace::Options::default()).unwrap();
    ptrace::interrupt(tid).unwrap();
    assert_eq!(ptrace::wait(tid, limit).unwrap(), Waited::Stopped(Stop::Interrupted));
    target.page.set(Word::Phase, 0);
    target.page.set(Word::Go, 1);
    let mut seen = 0;
    let mut signal = 0;
    let reached = loop {
        ptrace::resume_to_syscall(tid, signal).unwrap();
        signal = 0;
        match ptrace::wait(tid, limit).unwrap() {
            Waited::Stopped(Stop::Syscall) if target.page.get(Word::Phase) > 0 => {
                if seen == n {
                    break true;
                }
                seen += 1;
            }
            Waited::Stopped(Stop::Signal(s)) => signal = s,
            Waited::Stopped(_) => {}
            Waited::Exited(0) => break false,
            other => {
                println!("{}: the tracer failed by itself: {other:?}", target.name);
                tally.corrupt += 1;
                return Some(false);
            }
        }
    };
    if reached {
        ptrace::tgkill(tid, tid, libc::SIGKILL).unwrap();
        loop {
            match ptrace::wait(tid, limit).unwrap() {
                Waited::Stopped(_) => {}
                Waited::Killed(libc::SIGKILL) => break,
                Waited::Killed(_) | Waited::Exited(_) => {
                    tally.refused += 1;
                    break;
                }
            }
        }
        tally.boundary += 1;
    }
    // Reaped above; this only tells the standard library so.
    drop(tracer.try_wait());
    Some(target.check(tally)).filter(|_| reached)
}

fn run_target(name: &'static str, kills: u64, boundaries: bool, dir: &Path, random: &mut Random) -> Option<Tally> {
    let mut tally = Tally::default();
    let mut target = Target::start(name, dir)?;
    let mut alive = true;
    if boundaries {
        for n in 0.. {
            match boundary_kill(&mut target, n, &mut tally) {
                Some(true) => {}
                Some(false) => alive = false,
                None => break,
            }
            // Every other one against a fresh target: the first borrowing takes another way than the later ones.
            if alive && n % 2 == 0 && target.lines.is_none() && !target.stopped {
                target.end(&mut tally);
                target = Target::start(name, dir)?;
            }
            if !alive {
                break;
            }
        }
    }
    for kill in 0..kills {
        if !alive {
            break;
        }
        alive = random_kill(&mut target, random, &mut tally);
        if alive && kill % 20 == 19 && target.lines.is_none() {
            target.end(&mut tally);
            target = Target::start(name, dir)?;
        }
    }
    target.end(&mut tally);
    Some(tally)
}

/// A line for each target, and one for all.
fn report(results: &[(&str, Tally, Duration)]) {
    println!(
        "target           kills boundary  lost stuck corrupt EINTR oversleep     time  kills by phase {:?}",
        tracer::PHASES
    );
    let mut sum = Tally::default();
    for (name, t, took) in results {
        println!(
            "{name:16} {:5} {:8} {:5} {:5} {:7} {:5} {:6} us {:6.1} s  {:?}",
            t.kills,
            t.boundary,
            t.lost,
            t.stuck,
            t.corrupt,
            t.eintr,
            t.oversleep_us,
            took.as_secs_f64(),
            t.phases
        );
        sum.kills += t.kills;
        sum.boundary += t.boundary;
        sum.lost += t.bad();
        sum.refused += t.refused;
    }
    println!(
        "in all {} random and {} boundary kills, {} bad; {} tracers found every place for a landing burnt",
        sum.kills, sum.boundary, sum.lost, sum.refused
    );
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let word = |i: usize| args.get(i).map_or("", String::as_str);
    if matches!(word(1), "target" | "exec" | "tracer" | "once") {
        // Nothing of a test outlives it.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    }
    let pid = |text: &str| HostTid::new(text.parse().unwrap()).unwrap();
    match word(1) {
        "target" => targets::run(word(2), Path::new(word(3))),
        "exec" => panic!("{}", Command::new(word(2)).args(&args[3..]).exec()),
        "tracer" => tracer::run(pid(word(2)), Path::new(word(3))),
        "once" => tracer::once(pid(word(2)), Path::new(word(3))),
        "--list" => return,
        _ => {}
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let kills = number("CRUST_KILLS").unwrap_or(400);
    let only = std::env::var("CRUST_KILL_TARGETS").unwrap_or_default();
    let dir = std::env::temp_dir().join(format!("crust-kill-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let guard = TempDir(dir.clone());
    let seed = number("CRUST_SEED").unwrap_or(u64::from(std::process::id()));
    let mut random = Random(seed);
    println!("{kills} random kills, seed {seed}");
    let mut parts = Parts::new(&args);
    // Name, share of the random kills, and whether every boundary is tried.
    let plan: [(&'static str, u64, bool); 16] = [
        ("counter", 12, true),
        ("sleep", 12, true),
        ("read", 12, true),
        ("vector", 12, true),
        ("tiles", 12, true),
        ("altstack", 12, false),
        ("smallstack", 10, true),
        ("novdso", 10, true),
        ("i386-c", 6, true),
        ("i386-s", 6, true),
        ("i386-a", 6, false),
        ("threads", 12, false),
        ("threads-stopped", 4, false),
        ("python", 5, false),
        ("node", 5, false),
        ("java", 4, false),
    ];
    if only.is_empty() || only.split(',').any(|o| o == "features") {
        features::all(&dir, &mut parts);
    }
    let mut results = Vec::new();
    for (name, share, boundaries) in plan {
        if !only.is_empty() && !only.split(',').any(|o| o == name) {
            continue;
        }
        let start = Instant::now();
        parts.run(name, || {
            let tally = run_target(name, (kills * share).div_ceil(100), boundaries, &dir, &mut random)?;
            let bad = tally.bad();
            results.push((name, tally, start.elapsed()));
            Some(bad == 0)
        });
    }
    report(&results);
    drop(guard);
    let result = if parts.failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {result}. {} passed; {} failed; {} ignored", parts.passed, parts.failed, parts.ignored);
    if parts.failed > 0 {
        std::process::exit(101);
    }
}

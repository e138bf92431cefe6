//! The test's side: a box per test, programs in it, and the tools (crust, CRIU) that dump and restore them.
//!
//! Every wait has a deadline. A test that fails shows the end of each log; a test that passes leaves nothing behind.
use crust_image::{ImageKind, proto::StatsEntry};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Longest wait for one step; `ZOO_SLOW=N` multiplies it on slow machines.
pub fn step_limit() -> Duration {
    let slow = std::env::var("ZOO_SLOW").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    Duration::from_secs(60) * slow
}

/// A checkpoint tool with CRIU's command line.
#[derive(Clone, Debug)]
pub struct Tool {
    /// Short name for messages and directories.
    pub name: &'static str,
    /// The binary.
    pub path: PathBuf,
}

impl Tool {
    /// The binary under test: `CRUST_BIN`, else the one cargo builds beside the zoo.
    pub fn ours() -> Self {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        let path = BUILT.get_or_init(|| std::env::var_os("CRUST_BIN").map_or_else(build_crust, PathBuf::from)).clone();
        // The zoo itself is judged with CRUST_BIN=/path/to/criu; then the route is called criu-criu.
        let name = if path.file_name().is_some_and(|n| n == "criu") { "criu" } else { "ours" };
        Self { name, path }
    }

    /// The reference (`CRUST_JUDGE=/path/to/criu`), for cross routes.
    pub fn judge() -> Option<Self> {
        std::env::var_os("CRUST_JUDGE").map(|path| Self { name: "criu", path: path.into() })
    }
}

/// Cargo builds no binary of another package for a test, so this asks it to, once, in the profile of the zoo.
fn build_crust() -> PathBuf {
    let bins = bin_dir();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "crust"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if bins.ends_with("release") {
        cargo.arg("--release");
    }
    let built = cargo.status().is_ok_and(|s| s.success());
    let path = bins.join("crust");
    assert!(built && path.exists(), "cannot build {}", path.display());
    path
}

/// Where cargo puts binaries: tests run from `deps` below it.
pub fn bin_dir() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    exe.parent().and_then(Path::parent).map(Path::to_path_buf).unwrap_or_default()
}

/// What a test ended with.
pub type Outcome = Result<(), String>;

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With this exit code.
    Exit(i32),
    /// By a signal, as the number.
    Signal(i32),
    /// Not within the limit.
    Timeout,
}

/// A process started in the room, by its pid there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proc(pub i32);

/// A fresh pid namespace with a directory of its own; ends with everything inside when dropped.
#[derive(Debug)]
pub struct Room {
    child: Child,
    /// Scratch directory of this test.
    pub dir: PathBuf,
    keep: bool,
}

impl Room {
    /// Opens a room; `name` is for people who look at the directory after a failure.
    ///
    /// # Errors
    /// If the namespace cannot be made, with the reason.
    pub fn open(name: &str) -> Result<Self, String> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let dir = scratch_dir().join(format!("{name}.{}.{serial}", std::process::id()));
        fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let child = Command::new(bin_dir().join("zoo-box"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|e| format!("zoo-box: {e}"))?;
        Ok(Self { child, dir, keep: false })
    }

    /// Starts a program as the leader of a session of its own, output to `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&mut self, argv: &[&str], env: &[(&str, &str)], log: &str) -> Result<Proc, String> {
        self.begin("spawn", argv, env, log)
    }

    /// Starts a tool and does not wait.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&mut self, argv: &[&str], env: &[(&str, &str)], log: &str) -> Result<Proc, String> {
        self.begin("start", argv, env, log)
    }

    fn begin(&mut self, verb: &str, argv: &[&str], env: &[(&str, &str)], log: &str) -> Result<Proc, String> {
        let mut line = format!("{verb}\t{}\t{}", self.dir.join(log).display(), env.len());
        for (key, value) in env {
            write!(line, "\t{key}={value}").map_err(|e| e.to_string())?;
        }
        for arg in argv {
            let arg = arg.replace('\n', crate::LINE_BREAK);
            write!(line, "\t{arg}").map_err(|e| e.to_string())?;
        }
        let reply = self.ask(&line, step_limit())?;
        let pid = reply.strip_prefix("pid ").and_then(|p| p.parse().ok());
        pid.map(Proc).ok_or_else(|| format!("{}: {reply}", argv[0]))
    }

    /// Waits for a process to end.
    ///
    /// # Errors
    /// If the box itself is gone.
    pub fn wait(&mut self, of: Proc, limit: Duration) -> Result<End, String> {
        let reply = self.ask(&format!("wait\t{}\t{}", of.0, limit.as_millis()), limit + step_limit())?;
        let number = |text: &str| text.parse().map_err(|_| reply.clone());
        match reply.split_once(' ') {
            Some(("exit", n)) => number(n).map(End::Exit),
            Some(("signal", n)) => number(n).map(End::Signal),
            _ if reply == "timeout" => Ok(End::Timeout),
            _ => Err(reply),
        }
    }

    /// Runs a tool to its end.
    ///
    /// # Errors
    /// If it cannot be started, or does not end within the limit.
    pub fn run(&mut self, argv: &[&str], env: &[(&str, &str)], log: &str) -> Result<i32, String> {
        let tool = self.start(argv, env, log)?;
        match self.wait(tool, step_limit())? {
            End::Exit(code) => Ok(code),
            End::Timeout => Err(format!("{} {} did not end in time", argv[0], argv.get(1).unwrap_or(&""))),
            End::Signal(n) => Err(format!("{} {} died of signal {n}", argv[0], argv.get(1).unwrap_or(&""))),
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn kill(&mut self, whom: Proc, signal: i32) -> Outcome {
        match self.ask(&format!("kill\t{}\t{signal}", whom.0), step_limit())?.as_str() {
            "ok" => Ok(()),
            other => Err(other.to_owned()),
        }
    }

    /// The shapes of all processes in the room, one line each.
    ///
    /// # Errors
    /// If the box itself is gone.
    pub fn ps(&mut self) -> Result<Vec<String>, String> {
        let reply = self.ask("ps", step_limit())?;
        Ok(reply.split('\t').filter(|l| !l.is_empty()).map(str::to_owned).collect())
    }

    /// The mounts of the room, as /proc/PID/mountinfo lists them.
    pub fn mounts(&self) -> String {
        fs::read_to_string(format!("/proc/{}/mountinfo", self.child.id())).unwrap_or_default()
    }

    /// All that a dump must leave as it found it, of every process in the room.
    ///
    /// # Errors
    /// If the box itself is gone.
    pub fn look(&mut self) -> Result<String, String> {
        Ok(self.ask("look", step_limit())?.replace(crate::LINE_BREAK, "\n"))
    }

    /// Waits until a file of the program's directory appears; tells its content.
    ///
    /// # Errors
    /// If `stop` appears first (with its content), or neither within the limit.
    pub fn await_file(&mut self, name: &str, stop: &[&str]) -> Result<String, String> {
        let (end, mut looks) = (Instant::now() + step_limit(), 0);
        loop {
            if let Ok(text) = fs::read_to_string(self.dir.join(name)) {
                return Ok(text);
            }
            for stop in stop {
                if let Ok(text) = fs::read_to_string(self.dir.join(stop)) {
                    return Err(format!("{stop}: {text}"));
                }
            }
            looks += 1;
            if looks % 50 == 0 && self.ps()?.is_empty() && !self.dir.join(name).exists() {
                return Err(format!("no process is left, and no file {name}"));
            }
            if Instant::now() > end {
                return Err(format!("no file {name} in time; processes: {:#?}", self.ps()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The text of a file of the program's directory; empty if there is none.
    pub fn read(&self, name: &str) -> String {
        fs::read(self.dir.join(name)).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// Writes an empty file into the program's directory.
    ///
    /// # Errors
    /// As the file system says.
    pub fn touch(&self, name: &str) -> Outcome {
        fs::write(self.dir.join(name), "").map_err(|e| format!("{name}: {e}"))
    }

    /// Takes the outcome of the test: nothing stays after a success, everything after a failure, with the logs shown.
    pub fn close(mut self, outcome: Outcome) -> Outcome {
        self.keep = outcome.is_err();
        outcome.map_err(|text| format!("{text}\n{}kept: {}", tails(&self.dir), self.dir.display()))
    }

    fn ask(&mut self, line: &str, limit: Duration) -> Result<String, String> {
        let gone = |e: io::Error| format!("zoo-box is gone: {e}");
        let (Some(stdin), Some(stdout)) = (&mut self.child.stdin, &mut self.child.stdout) else {
            return Err("zoo-box has no pipes".to_owned());
        };
        stdin.write_all(format!("{line}\n").as_bytes()).map_err(gone)?;
        let (mut reply, end) = (Vec::new(), Instant::now() + limit);
        while reply.last() != Some(&b'\n') {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("zoo-box does not answer {line:?}"));
            }
            if crate::sys::readable(&*stdout, left).map_err(gone)? {
                let mut part = [0; 4096];
                match io::Read::read(stdout, &mut part).map_err(gone)? {
                    0 => return Err("zoo-box is gone (needs root, or a user namespace)".to_owned()),
                    n => reply.extend_from_slice(&part[..n]),
                }
            }
        }
        reply.pop();
        Ok(String::from_utf8_lossy(&reply).into_owned())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let end = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                drop(self.child.kill());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        if !self.keep {
            drop(fs::remove_dir_all(&self.dir));
        }
    }
}

/// Scratch below the target directory, so that `cargo clean` takes it too. `ZOO_TMP` moves it.
fn scratch_dir() -> PathBuf {
    std::env::var_os("ZOO_TMP").map_or_else(
        || bin_dir().parent().map_or_else(std::env::temp_dir, |target| target.join("tmp").join("zoo")),
        PathBuf::from,
    )
}

/// The end of every log below `dir`.
fn tails(dir: &Path) -> String {
    let (mut text, mut todo) = (String::new(), vec![dir.to_path_buf()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.is_symlink() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "log" || e == "out") {
                let log = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
                let lines: Vec<&str> = log.lines().collect();
                if !lines.is_empty() {
                    let tail = lines[lines.len().saturating_sub(25)..].join("\n    ");
                    text.push_str(&format!("--- {}\n    {tail}\n", path.display()));
                }
            }
        }
    }
    text
}

/// Dumper and restorer of one trip.
pub type Route = (Tool, Tool);

/// One program and how to take it through a trip.
#[derive(Clone, Debug)]
pub struct Case {
    /// Name of the module below `zoo/src/programs`.
    pub program: &'static str,
    /// Options for both halves, as CRIU spells them.
    pub options: &'static [&'static str],
    /// Round trips in a row.
    pub cycles: u32,
    /// How large the program is, if not as usual: a variable of the zoo's, and what it says.
    pub size: Option<(&'static str, &'static str)>,
}

impl Case {
    /// A case without options and with two cycles.
    pub fn new(program: &'static str) -> Self {
        Self { program, options: &[], cycles: 2, size: None }
    }

    /// Options for dump and restore.
    pub fn options(self, options: &'static [&'static str]) -> Self {
        Self { options, ..self }
    }

    /// Starts the program in a new room and waits until it is ready for the first time.
    ///
    /// # Errors
    /// `Ok(None)` is a program that cannot play on this machine; the skip is noted.
    pub fn start(&self) -> Result<Option<(Room, Proc)>, String> {
        let mut room = Room::open(self.program)?;
        let path = bin_dir().join("zoo-program").display().to_string();
        let dir = room.dir.display().to_string();
        let env: Vec<(&str, &str)> = std::iter::once(("ZOO_DIR", dir.as_str())).chain(self.size).collect();
        let begun = room.spawn(&[&path, self.program], &env, "program.out");
        let root = match begun {
            Ok(root) => root,
            Err(e) => return room.close(Err(e)).map(|()| None),
        };
        match room.await_file("ready.1", &["skip", "fail.0"]) {
            Ok(_) => Ok(Some((room, root))),
            Err(text) => match text.strip_prefix("skip: ") {
                Some(reason) => {
                    skipped(self.program, reason);
                    Ok(None)
                }
                None => room.close(Err(text)).map(|()| None),
            },
        }
    }

    /// The whole trip: dump, see it gone, restore, see the same processes, let it check itself; then the end.
    ///
    /// # Errors
    /// The first thing that went wrong, with the logs.
    pub fn trip(&self, route: &Route) -> Outcome {
        let Some((mut room, root)) = self.start()? else { return Ok(()) };
        let outcome = self
            .cycles_in(&mut room, root, route)
            .map_err(|e| format!("{} ({} to {}): {e}", self.program, route.0.name, route.1.name));
        room.close(outcome)
    }

    fn cycles_in(&self, room: &mut Room, root: Proc, route: &Route) -> Outcome {
        // CRIU restores into a time namespace of its own making; dumping from there is another matter.
        let cycles = if route.1.name == "criu" && route.0.name != "criu" { 1 } else { self.cycles };
        for n in 1..=cycles {
            room.await_file(&format!("ready.{n}"), &[])?;
            let before = room.ps()?;
            let images = format!("images.{n}");
            self.dump(room, root, &route.0, &images, &[], &[])?;
            expect_gone(room, root)?;
            self.restore(room, &route.1, &images)?;
            let after = room.ps()?;
            if before != after {
                return Err(format!("cycle {n}: processes were\n{before:#?}\nand are\n{after:#?}"));
            }
            check_round(room, n).map_err(|e| format!("cycle {n}: {e}"))?;
        }
        finish(room, root, cycles + 1)
    }

    /// Dumps the tree into the new directory `images` of the room; must succeed and count its pages.
    ///
    /// # Errors
    /// If the tool does not exit with 0, or its statistics are not those of its images.
    pub fn dump(
        &self,
        room: &mut Room,
        root: Proc,
        tool: &Tool,
        images: &str,
        more: &[&str],
        env: &[(&str, &str)],
    ) -> Outcome {
        match self.try_dump(room, root, tool, images, more, env)? {
            0 => expect_counted(&room.dir.join(images)),
            code => Err(format!("{} dump exited with {code}", tool.name)),
        }
    }

    /// Dumps the tree; tells the exit code.
    ///
    /// # Errors
    /// If the tool cannot be run, hangs or dies of a signal.
    pub fn try_dump(
        &self,
        room: &mut Room,
        root: Proc,
        tool: &Tool,
        images: &str,
        more: &[&str],
        env: &[(&str, &str)],
    ) -> Result<i32, String> {
        let argv = self.dump_argv(room, root, tool, images, more)?;
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        room.run(&argv, env, &format!("{images}.dump.out"))
    }

    /// The command line of a dump; makes the image directory.
    ///
    /// # Errors
    /// If the directory cannot be made.
    pub fn dump_argv(
        &self,
        room: &Room,
        root: Proc,
        tool: &Tool,
        images: &str,
        more: &[&str],
    ) -> Result<Vec<String>, String> {
        let dir = room.dir.join(images);
        fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        let (tool, dir) = (tool.path.display().to_string(), dir.display().to_string());
        let log = format!("{dir}.dump.log");
        let pid = root.0.to_string();
        let fixed = [&tool, "dump", "-t", &pid, "-D", &dir, "-o", &log, "-v4"];
        Ok(fixed.iter().chain(self.options).chain(more).map(ToString::to_string).collect())
    }

    /// Restores from `images`, detached; must succeed.
    ///
    /// # Errors
    /// If the tool does not exit with 0.
    pub fn restore(&self, room: &mut Room, tool: &Tool, images: &str) -> Outcome {
        let dir = room.dir.join(images).display().to_string();
        let log = format!("{dir}.restore.log");
        let path = tool.path.display().to_string();
        let mut argv = vec![path.as_str(), "restore", "-d", "-D", &dir, "-o", &log, "-v4"];
        argv.extend(self.options);
        match room.run(&argv, &[], &format!("{images}.restore.out"))? {
            0 => Ok(()),
            code => Err(format!("{} restore exited with {code}", tool.name)),
        }
    }
}

/// Lets round `n` be checked.
///
/// # Errors
/// What the program found wrong, or its silence.
pub fn check_round(room: &mut Room, n: u32) -> Outcome {
    room.touch(&format!("go.{n}"))?;
    room.await_file(&format!("ok.{n}"), &[&format!("fail.{n}")]).map(|_| ())
}

/// Tells the program, ready for round `n`, to leave; it must exit with 0 and leave no process.
///
/// # Errors
/// If it does not.
pub fn finish(room: &mut Room, root: Proc, n: u32) -> Outcome {
    room.await_file(&format!("ready.{n}"), &[])?;
    room.touch("quit")?;
    match room.wait(root, step_limit())? {
        End::Exit(0) => {}
        other => return Err(format!("the program ended with {other:?}")),
    }
    expect_empty(room)
}

/// After a dump: the root was killed and nothing of the tree is left.
///
/// # Errors
/// What is still there.
pub fn expect_gone(room: &mut Room, root: Proc) -> Outcome {
    match room.wait(root, step_limit())? {
        End::Signal(9) => expect_empty(room),
        other => Err(format!("after the dump the program ended with {other:?}")),
    }
}

/// Waits until the room holds no process.
///
/// # Errors
/// The processes that stay.
pub fn expect_empty(room: &mut Room) -> Outcome {
    let end = Instant::now() + step_limit();
    loop {
        let left = room.ps()?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("left over: {left:#?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The routes to take: ours to ours, and with `CRUST_JUDGE` also CRIU to ours and ours to CRIU. `ZOO_ROUTES` (names with
/// commas between) leaves only some of them.
pub fn routes() -> Vec<Route> {
    let mut routes = vec![(Tool::ours(), Tool::ours())];
    if let Some(criu) = Tool::judge() {
        routes.push((criu.clone(), Tool::ours()));
        routes.push((Tool::ours(), criu));
    }
    if let Ok(only) = std::env::var("ZOO_ROUTES") {
        routes.retain(|(from, to)| only.split(',').any(|name| name == format!("{}-{}", from.name, to.name)));
    }
    routes
}

/// Takes a case along every route, honouring `skips.txt`.
///
/// # Panics
/// If a trip fails, or one that is expected to fail passes.
pub fn run(case: &Case) {
    let mut bad = String::new();
    for route in routes() {
        let name = format!("{}-{}", route.0.name, route.1.name);
        match rule(case.program, &name) {
            Some(Rule { fails: false, reason }) => skipped(&format!("{} {name}", case.program), &reason),
            Some(Rule { fails: true, reason }) => match case.trip(&route) {
                Ok(()) => bad.push_str(&format!("{name} passes now: take it out of skips.txt ({reason})\n")),
                Err(_) => skipped(&format!("{} {name}", case.program), &format!("expected to fail: {reason}")),
            },
            None => {
                if let Err(text) = case.trip(&route) {
                    bad.push_str(&text);
                    bad.push('\n');
                }
            }
        }
    }
    assert!(bad.is_empty(), "{bad}");
}

/// Takes a program that holds something no dump may accept: the dump must fail, name the root's pid and what the
/// program says it holds (its file `names`, one a line, `|` between wordings), leave no images, and the program must run on and find itself unchanged.
///
/// # Panics
/// If any of that does not hold.
pub fn run_refused(case: &Case) {
    for (tool, _) in routes().iter().take(1) {
        let route = format!("{}-refuse", tool.name);
        match rule(case.program, &route) {
            Some(Rule { fails: false, reason }) => skipped(case.program, &reason),
            Some(Rule { fails: true, reason }) => {
                assert!(refusal(case, tool).is_err(), "{route} passes now: take it out of skips.txt ({reason})");
                skipped(case.program, &format!("expected to fail: {reason}"));
            }
            None => refusal(case, tool).unwrap_or_else(|text| panic!("{}: {text}", case.program)),
        }
    }
}

fn refusal(case: &Case, tool: &Tool) -> Outcome {
    let Some((mut room, root)) = case.start()? else { return Ok(()) };
    let outcome = (|| {
        for n in 1..=case.cycles {
            room.await_file(&format!("ready.{n}"), &[])?;
            let before = room.ps()?;
            let images = format!("images.{n}");
            if case.try_dump(&mut room, root, tool, &images, &[], &[])? == 0 {
                return Err("the dump was not refused".to_owned());
            }
            expect_no_images(&room.dir.join(&images))?;
            let said = room.read(&format!("{images}.dump.out")) + &room.read(&format!("{images}.dump.log"));
            if tool.name == "ours" && !said.contains("help: ") {
                return Err("the refusal gives no remedy".to_owned());
            }
            if tool.name == "ours" && said.contains(".img") {
                return Err("the refusal speaks of images, and there are none".to_owned());
            }
            for name in room.read("names").lines() {
                if !name.split('|').any(|word| said.contains(word)) {
                    return Err(format!("the refusal does not name {name:?}"));
                }
            }
            let after = room.ps()?;
            if before != after {
                return Err(format!("processes were\n{before:#?}\nand are\n{after:#?}"));
            }
            check_round(&mut room, n)?;
        }
        finish(&mut room, root, case.cycles + 1)
    })();
    room.close(outcome)
}

/// A dump's `stats-dump` tells as many pages, private and shared together, as its pages images hold.
fn expect_counted(dir: &Path) -> Outcome {
    let stats = fs::read(dir.join("stats-dump")).map_err(|e| format!("stats-dump: {e}"))?;
    let stats: StatsEntry =
        crust_image::read_one("stats-dump", &stats, ImageKind::StatsDump).map_err(|e| e.to_string())?;
    let dump = stats.dump.ok_or("stats-dump: not of a dump")?;
    let told = dump.pages_written + dump.shpages_written.ok_or("stats-dump: no shared pages")?;
    let mut bytes = 0;
    for entry in fs::read_dir(dir).map_err(|e| e.to_string())?.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(b"pages-") {
            bytes += entry.metadata().map_err(|e| e.to_string())?.len();
        }
    }
    if bytes == told * 4096 {
        Ok(())
    } else {
        Err(format!("stats-dump tells {told} pages, the images hold {bytes} bytes"))
    }
}

/// After a dump that failed: no file that a restore could take for an image.
///
/// # Errors
/// The names of what is there.
pub fn expect_no_images(dir: &Path) -> Outcome {
    let left: Vec<_> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name()).filter(|n| n != "dump.log").collect();
    if left.is_empty() { Ok(()) } else { Err(format!("left in the image directory: {left:?}")) }
}

/// One line of `skips.txt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// True for `xfail`: it is run and must fail.
    pub fails: bool,
    /// Why.
    pub reason: String,
}

/// The rule for a program on a route, if there is one. Lines: `skip|xfail PROGRAM ROUTE|* REASON`.
pub fn rule(program: &str, route: &str) -> Option<Rule> {
    include_str!("../skips.txt").lines().filter(|l| !l.starts_with('#')).find_map(|line| {
        let mut words = line.splitn(4, ' ');
        let (verb, name, on) = (words.next()?, words.next()?, words.next()?);
        let reason = words.next()?.to_owned();
        (name == program && (on == "*" || on == route)).then_some(Rule { fails: verb == "xfail", reason })
    })
}

/// Notes a skip where people see it, past the test runner's capture, with a running count.
pub fn skipped(what: &str, reason: &str) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    drop(writeln!(io::stderr(), "\nzoo: skip {n}: {what}: {reason}"));
}

#[cfg(test)]
mod tests {
    //! The list of skips is read by eye as often as by the harness.
    #[test]
    fn every_rule_is_well_formed() {
        let lines = include_str!("../skips.txt").lines().filter(|l| !l.starts_with('#') && !l.is_empty());
        for line in lines {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            assert_eq!(words.len(), 4, "{line}");
            assert!(["skip", "xfail"].contains(&words[0]), "{line}");
            assert!(words[2] == "*" || words[2].contains('-'), "{line}");
            assert!(words[3].len() > 5, "no reason: {line}");
        }
    }
}

//! SIGKILL at random moments. Of a dump: its tree runs on unchanged, or is whole on disk. Of a restore: nothing stays, or all
//! of it runs. Of a task under construction: a clean error, and nothing stays.
//!
//! SIGTERM and SIGINT at random moments: a dump or restore is rolled back and says so, or is as complete as any other.
//!
//! The same by way of the RPC, where clients hang up, and services and workers are hit: `crash/rpc.rs`.
//!
//! Ten programs, single processes, trees and hundreds of threads. `CRUST_KILLS=1000` is the number of kills of each
//! sort over all of them (a few by default), `CRUST_CANCELS=1000` that of cancels, `CRUST_SHOTS=1000` that of requests by RPC that
//! are disturbed.
#[path = "crash/rpc.rs"]
mod rpc;

use std::time::{Duration, Instant};
use zoo::harness::{
    Case, End, Outcome, Proc, Room, Tool, check_round, expect_empty, expect_gone, finish, rule, skipped, step_limit,
};

const PROGRAMS: u32 = 10;

/// What is sent at random moments, how often to one program, and where that is said.
#[derive(Clone, Copy)]
struct Shots {
    what: &'static str,
    times: u32,
}

impl Shots {
    fn kills() -> Self {
        Self::of("kill", "CRUST_KILLS", 60)
    }

    fn cancels() -> Self {
        Self::of("cancel", "CRUST_CANCELS", 40)
    }

    fn requests() -> Self {
        Self::of("shot", "CRUST_SHOTS", 40)
    }

    fn of(what: &'static str, knob: &str, all: u32) -> Self {
        let all = std::env::var(knob).ok().and_then(|n| n.parse().ok()).unwrap_or(all);
        Self { what, times: all.div_ceil(PROGRAMS) }
    }
}

/// Runs `body` on a program that has just become ready, unless the list of skips has it.
fn on(program: &'static str, shots: Shots, body: impl FnOnce(&mut Crash<'_>) -> Outcome) {
    let Shots { what, times } = shots;
    let (case, tool) = (Case::new(program), Tool::ours());
    let route = format!("{}-{what}", tool.name);
    if let Some(rule) = rule(program, &route) {
        return skipped(&format!("{program} {route}"), &rule.reason);
    }
    let Some((room, root)) = case.start().unwrap_or_else(|text| panic!("{text}")) else { return };
    let mounts = room.mounts();
    let mut crash =
        Crash { case: &case, tool: &tool, room, root, round: 1, dice: Dice::new(), times, hits: 0, tries: 0, mounts };
    let outcome = body(&mut crash).and_then(|()| finish(&mut crash.room, root, crash.round));
    let outcome = outcome.and_then(|()| {
        let met = format!("zoo: {program} {what}: {} of {} {what}s met the tool at work\n", crash.hits, crash.tries);
        drop(std::io::Write::write_all(&mut std::io::stderr(), met.as_bytes()));
        if crash.hits == 0 { Err(format!("no {what} met the tool at work")) } else { Ok(()) }
    });
    crash.room.close(outcome).unwrap_or_else(|text| panic!("{program}: {text}"));
}

/// A program among crashes.
struct Crash<'a> {
    case: &'a Case,
    tool: &'a Tool,
    room: Room,
    root: Proc,
    /// The round the program is ready for.
    round: u32,
    dice: Dice,
    /// Kills or cancels to come, at least.
    times: u32,
    /// Those that met the tool at work.
    hits: u32,
    /// Those so far.
    tries: u32,
    mounts: String,
}

impl Crash<'_> {
    /// True while there is another kill to come: all of them, and more as long as none met the tool at work.
    fn goes_on(&mut self, n: u32) -> bool {
        const MORE: u32 = 60;
        let on = n < self.times || (self.hits == 0 && n < self.times + MORE);
        self.tries += u32::from(on);
        on
    }

    /// How long kill `n` waits. One run was measured; if that was a slow one all kills may come too late, so the later
    /// ones come earlier and earlier.
    fn wait_of(&mut self, whole: Duration, n: u32) -> Duration {
        let late = n.saturating_sub(self.times) / 4;
        whole.mul_f64(self.dice.roll() / f64::from(1_u32 << late))
    }

    /// The program is asked to check itself, and gets ready for the next round.
    fn check(&mut self) -> Outcome {
        check_round(&mut self.room, self.round)?;
        self.round += 1;
        self.room.await_file(&format!("ready.{}", self.round), &[]).map(|_| ())
    }

    /// Waits until it is clear what a killed tool left: all of the tree, at work and well; nothing; or, while the tree
    /// was being killed after a whole checkpoint, a part of it.
    fn settle(&mut self, before: &[String], part_is_fine: bool) -> Result<Found, String> {
        let end = Instant::now() + step_limit();
        let (go, ok, fail) =
            (format!("go.{}", self.round), format!("ok.{}", self.round), format!("fail.{}", self.round));
        let mut asked = false;
        loop {
            let now = self.room.ps()?;
            if now.is_empty() {
                return Ok(Found::Nothing);
            }
            // Only the program's own word tells a tree at work from one that stands still or is about to die.
            if asked && self.room.dir.join(&ok).exists() && part_of(before, &now) {
                self.room.await_file(&format!("ready.{}", self.round + 1), &[])?;
                self.round += 1;
                return Ok(Found::All);
            }
            if asked && self.room.dir.join(&fail).exists() {
                return Err(self.room.read(&fail));
            }
            if now == before && !asked {
                self.room.touch(&go)?;
                asked = true;
            } else if part_is_fine && !part_of(before, &now) {
                return Ok(Found::Part);
            }
            if Instant::now() > end {
                return Err(format!("processes were\n{before:#?}\nand are\n{now:#?}"));
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// The tree is gone and will come back as it was in its image: what it wrote since then never was.
    fn forget_round(&mut self) -> Outcome {
        let (this, next) = (self.round, self.round + 1);
        let later = [format!("go.{this}"), format!("ok.{this}"), format!("fail.{this}"), format!("ready.{next}")];
        for entry in std::fs::read_dir(&self.room.dir).map_err(|e| e.to_string())?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if later.contains(&name) || name.starts_with(&format!("at.{next}.")) {
                std::fs::remove_file(entry.path()).map_err(|e| format!("{name}: {e}"))?;
            }
        }
        Ok(())
    }

    /// Nothing but processes may have changed.
    fn expect_clean(&self) -> Outcome {
        let now = self.room.mounts();
        if now == self.mounts { Ok(()) } else { Err(format!("mounts were\n{}\nand are\n{now}", self.mounts)) }
    }

    /// The log of a tool that failed tells why, and how it ended.
    fn expect_said(&self, log: &str, why: &str, end: &str) -> Outcome {
        let said = self.room.read(log);
        let told = said.contains(why) && said.contains(end);
        if told { Ok(()) } else { Err(format!("{log} does not say {why:?} and {end:?}")) }
    }

    /// Of a dump that failed there is nothing.
    fn expect_no_images(&self, images: &str) -> Outcome {
        let dir = std::fs::read_dir(self.room.dir.join(images)).map_err(|e| e.to_string())?;
        let left: Vec<_> = dir.flatten().map(|e| e.file_name()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{images} holds {left:?}")) }
    }

    /// Asks a tool to end after `wait`, by SIGTERM or SIGINT, and tells how it ended.
    fn cancel(&mut self, tool: Proc, n: u32, wait: Duration) -> Result<End, String> {
        std::thread::sleep(wait);
        // It may have ended by itself.
        drop(self.room.kill(tool, if n % 4 < 2 { libc::SIGTERM } else { libc::SIGINT }));
        self.room.wait(tool, step_limit())
    }

    /// Restores a tree that is gone, and lets it check itself.
    fn bring_back(&mut self, before: &[String], images: &str) -> Outcome {
        self.case.restore(&mut self.room, self.tool, images)?;
        match self.settle(before, false)? {
            Found::All => Ok(()),
            left => Err(format!("the checkpoint does not come back: {left:?}")),
        }
    }

    fn kill_all(&mut self) -> Outcome {
        for process in self.room.ps()? {
            if let Some(pid) = pid_of(&process) {
                // Some of the tree may be dying already.
                drop(self.room.kill(Proc(pid), libc::SIGKILL));
            }
        }
        expect_empty(&mut self.room)?;
        drop(self.room.wait(self.root, Duration::ZERO));
        Ok(())
    }

    fn start_dump(&mut self, images: &str, leave: bool) -> Result<Proc, String> {
        let more: &[&str] = if leave { &["--leave-running"] } else { &[] };
        let argv = self.case.dump_argv(&self.room, self.root, self.tool, images, more)?;
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        self.room.start(&argv, &[], &format!("{images}.dump.out"))
    }

    fn start_restore(&mut self, images: &str, log: &str, sibling: bool) -> Result<Proc, String> {
        let dir = self.room.dir.join(images).display().to_string();
        let file = self.room.dir.join(format!("{log}.log")).display().to_string();
        let path = self.tool.path.display().to_string();
        let kind = if sibling { "--restore-sibling" } else { "-d" };
        self.room.start(&[&path, "restore", "-d", kind, "-D", &dir, "-o", &file, "-v4"], &[], &format!("{log}.out"))
    }

    /// Dumps the program and sees it gone.
    fn put_away(&mut self, images: &str) -> Outcome {
        self.case.dump(&mut self.room, self.root, self.tool, images, &[], &[])?;
        expect_gone(&mut self.room, self.root)
    }
}

/// True if no process of `before` is missing.
fn part_of(before: &[String], now: &[String]) -> bool {
    before.iter().all(|was| now.iter().any(|is| pid_of(is) == pid_of(was) && is.contains(" Z ") == was.contains(" Z ")))
}

fn pid_of(process: &str) -> Option<i32> {
    process.split(' ').next().and_then(|p| p.parse().ok())
}

/// True if exactly the processes of `before` are there.
fn same_ids(before: &[String], now: &[String]) -> bool {
    let ids = |list: &[String]| list.iter().map(|p| pid_of(p)).collect::<std::collections::BTreeSet<_>>();
    ids(before) == ids(now)
}

/// What a tool says that was asked to end.
const CANCELLED: &str = "the request was cancelled";

/// What is left of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    All,
    Part,
    Nothing,
}

/// Kills dumps, time after time, of one and the same tree.
fn dump(program: &'static str) {
    dumps(program, Shots::kills(), one_dump);
}

/// Starts dumps of one and the same tree, time after time, and lets `one` end them.
fn dumps(program: &'static str, shots: Shots, one: fn(&mut Crash<'_>, u32, bool, Duration) -> Outcome) {
    on(program, shots, |crash| {
        // A whole dump first: it tells how long the dice may roll.
        let from = Instant::now();
        crash.case.dump(&mut crash.room, crash.root, crash.tool, "images.whole", &["--leave-running"], &[])?;
        let whole = from.elapsed();
        crash.check()?;
        let mut n = 0;
        while crash.goes_on(n) {
            let leave = n % 2 == 0;
            let wait = crash.wait_of(whole.mul_f64(1.1), n);
            one(crash, n, leave, wait)
                .map_err(|e| format!("{} {n} after {wait:?} of {whole:?} (leave running: {leave}): {e}", shots.what))?;
            n += 1;
        }
        // After all this a dump succeeds still, and leaves nothing of its forerunners.
        let images = format!("images.{}", crash.round);
        crash.put_away(&images)?;
        crash.case.restore(&mut crash.room, crash.tool, &images)?;
        crash.check()
    });
}

/// Starts a dump and kills it after `wait`. Afterwards the tree is as it was; if the dump had come to killing it, the
/// images must be whole, and the tree is brought back from them.
fn one_dump(crash: &mut Crash<'_>, _: u32, leave: bool, wait: Duration) -> Outcome {
    let before = crash.room.ps()?;
    let images = format!("images.{}", crash.round);
    let tool = crash.start_dump(&images, leave)?;
    std::thread::sleep(wait);
    // It may have ended by itself.
    let killed = crash.room.kill(tool, libc::SIGKILL);
    let end = crash.room.wait(tool, step_limit())?;
    crash.hits += u32::from(killed.is_ok() && end == End::Signal(libc::SIGKILL));
    let whole = !leave && crash.room.dir.join(&images).join("inventory.img").exists();
    if crash.settle(&before, whole)? != Found::All {
        if !whole {
            return Err("the tree is gone, and its images are not whole".to_owned());
        }
        crash.kill_all()?;
        crash.forget_round()?;
        crash.bring_back(&before, &images)?;
    }
    crash.expect_clean()
}

/// Starts a dump and asks it to end after `wait`. Either it says that it was cancelled, and the tree is as it was and the
/// images are not; or it is as complete as any other.
fn cancel_one_dump(crash: &mut Crash<'_>, n: u32, leave: bool, wait: Duration) -> Outcome {
    let before = crash.room.ps()?;
    let images = format!("images.{}", crash.round);
    let tool = crash.start_dump(&images, leave)?;
    let end = crash.cancel(tool, n, wait)?;
    let whole = crash.room.dir.join(&images).join("inventory.img").exists();
    match end {
        End::Exit(0) if whole && leave => {}
        End::Exit(0) if whole => {
            expect_gone(&mut crash.room, crash.root)?;
            crash.bring_back(&before, &images)?;
            return crash.expect_clean();
        }
        // It had not begun.
        End::Signal(_) if !whole => crash.hits += 1,
        End::Exit(1) if !whole => {
            crash.hits += 1;
            crash.expect_said(&format!("{images}.dump.log"), CANCELLED, "Dumping FAILED.")?;
            crash.expect_no_images(&images)?;
        }
        other => return Err(format!("the dump ended with {other:?}, and that there are images is {whole}")),
    }
    // At once: nobody is left stopped, dead or beside the tree.
    let now = crash.room.ps()?;
    if !same_ids(&before, &now) {
        return Err(format!("processes were\n{before:#?}\nand are\n{now:#?}"));
    }
    if crash.settle(&before, false)? != Found::All {
        return Err("the tree is gone".to_owned());
    }
    crash.expect_clean()
}

/// Kills restores of one checkpoint, time after time: the coordinator, or a task under construction.
fn restore(program: &'static str) {
    restores(program, Shots::kills(), one_restore);
}

/// Begins a restore and ends it. Given: what was there before the dump, the images, a number and a time to wait.
type EndsRestore = fn(&mut Crash<'_>, &[String], &str, u32, Duration) -> Result<Found, String>;

/// Ends restores of one checkpoint, time after time, as `one` does, which tells what is there then.
fn restores(program: &'static str, shots: Shots, one: EndsRestore) {
    on(program, shots, |crash| {
        let mut before = crash.room.ps()?;
        let mut images = format!("images.{}", crash.round);
        crash.put_away(&images)?;
        let from = Instant::now();
        crash.case.restore(&mut crash.room, crash.tool, &images)?;
        let whole = from.elapsed();
        if crash.settle(&before, false)? != Found::All {
            return Err("the tree did not come back".to_owned());
        }
        let mut away = false;
        let mut n = 0;
        while crash.goes_on(n) {
            if !away {
                before = crash.room.ps()?;
                images = format!("images.{}", crash.round);
                crash.put_away(&images)?;
            }
            let wait = crash.wait_of(whole.mul_f64(1.05), n);
            let left = one(crash, &before, &images, n, wait)
                .map_err(|e| format!("{} {n} after {wait:?} of {whole:?}: {e}", shots.what))?;
            away = left == Found::Nothing;
            n += 1;
        }
        if away {
            crash.case.restore(&mut crash.room, crash.tool, &images)?;
            return crash.check();
        }
        Ok(())
    });
}

fn one_restore(
    crash: &mut Crash<'_>,
    before: &[String],
    images: &str,
    n: u32,
    wait: Duration,
) -> Result<Found, String> {
    let task = n % 3 == 2;
    let log = format!("restore.{n}");
    // As a sibling the root is no child of the tool, and must go with it nevertheless.
    let tool = crash.start_restore(images, &log, n % 5 == 4)?;
    std::thread::sleep(wait);
    if task {
        let tree: Vec<i32> = crash.room.ps()?.iter().filter_map(|p| pid_of(p)).filter(|&p| p != tool.0).collect();
        let victim = tree.get((crash.dice.roll() * tree.len() as f64) as usize).copied();
        if let Some(victim) = victim {
            drop(crash.room.kill(Proc(victim), libc::SIGKILL));
        }
        return match crash.room.wait(tool, step_limit())? {
            // Too late, or nobody was hit: what is there now is nobody's promise.
            End::Exit(0) => {
                crash.kill_all()?;
                crash.forget_round()?;
                Ok(Found::Nothing)
            }
            End::Exit(1) => {
                crash.hits += 1;
                expect_empty(&mut crash.room)?;
                crash
                    .expect_said(&format!("{log}.log"), "Error (", "Restoring FAILED.")
                    .map_err(|e| format!("task {victim:?} was killed: {e}"))?;
                drop(crash.room.wait(crash.root, Duration::ZERO));
                crash.expect_clean().map(|()| Found::Nothing)
            }
            other => Err(format!("task {victim:?} was killed, and the restore ended with {other:?}")),
        };
    }
    let killed = crash.room.kill(tool, libc::SIGKILL);
    let end = crash.room.wait(tool, step_limit())?;
    crash.hits += u32::from(killed.is_ok() && end == End::Signal(libc::SIGKILL));
    let found = crash.settle(before, false)?;
    if found == Found::Nothing {
        crash.forget_round()?;
        drop(crash.room.wait(crash.root, Duration::ZERO));
    }
    crash.expect_clean().map(|()| found)
}

/// Starts a restore and asks it to end after `wait`. Either it says that it was cancelled, and nothing of the tree is there;
/// or all of it is.
fn cancel_one_restore(
    crash: &mut Crash<'_>,
    before: &[String],
    images: &str,
    n: u32,
    wait: Duration,
) -> Result<Found, String> {
    let log = format!("restore.{n}");
    let tool = crash.start_restore(images, &log, n % 5 == 4)?;
    let end = crash.cancel(tool, n, wait)?;
    match end {
        End::Exit(0) => {
            if crash.settle(before, false)? != Found::All {
                return Err("the restore ended well, and the tree is gone".to_owned());
            }
            return crash.expect_clean().map(|()| Found::All);
        }
        End::Exit(1) => {
            crash.hits += 1;
            crash.expect_said(&format!("{log}.log"), CANCELLED, "Restoring FAILED.")?;
        }
        // It had not begun.
        End::Signal(_) => crash.hits += 1,
        End::Exit(_) | End::Timeout => return Err(format!("the restore ended with {end:?}")),
    }
    expect_empty(&mut crash.room)?;
    crash.forget_round()?;
    drop(crash.room.wait(crash.root, Duration::ZERO));
    crash.expect_clean().map(|()| Found::Nothing)
}

/// Random numbers that need no crate; nothing here depends on their quality.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(now.as_nanos() as u64 | 1)
    }

    /// From 0 to 1.
    fn roll(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0 to `n` - 1.
    fn below(&mut self, n: usize) -> usize {
        ((self.roll() * n as f64) as usize).min(n - 1)
    }
}

macro_rules! tests {
    ($($program:ident),*) => {
        mod killed_dump {
            $(#[test]
            fn $program() {
                super::dump(stringify!($program));
            })*
        }
        mod killed_restore {
            $(#[test]
            fn $program() {
                super::restore(stringify!($program));
            })*
        }
        mod cancelled_dump {
            $(#[test]
            fn $program() {
                super::dumps(stringify!($program), super::Shots::cancels(), super::cancel_one_dump);
            })*
        }
        mod disturbed_dump {
            $(#[test]
            fn $program() {
                super::dumps(stringify!($program), super::Shots::requests(), super::rpc::one_dump);
            })*
        }
        mod disturbed_restore {
            $(#[test]
            fn $program() {
                super::restores(stringify!($program), super::Shots::requests(), super::rpc::one_restore);
            })*
        }
        mod cancelled_restore {
            $(#[test]
            fn $program() {
                super::restores(stringify!($program), super::Shots::cancels(), super::cancel_one_restore);
            })*
        }
    };
}

tests!(
    counter,
    registers_vector,
    blocked_read,
    threads_tls,
    threads_500,
    sigaltstack_used,
    tree_family,
    pipe_tasks,
    orphans,
    posix_timer_thread
);

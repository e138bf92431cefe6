//! A dump that fails, or is killed, at any moment: the target runs on as before, and no half image can be mistaken.
use std::time::{Duration, Instant};
use zoo::harness::{
    Case, End, Outcome, Proc, Room, Tool, check_round, expect_gone, expect_no_images, finish, rule, skipped, step_limit,
};

/// The stages of a dump that can be told to fail by `CRUST_FAULT=stage`.
const STAGES: [&str; 5] = ["find", "freeze", "look", "write", "commit"];

/// Fails a dump once at each stage, then lets one succeed, to see that nothing was left behind that hinders it.
fn fail_everywhere(program: &'static str) {
    let (case, tool) = (Case::new(program), Tool::ours());
    if tool.name != "ours" {
        return skipped(&format!("faults in {program}"), "only crust fails on demand");
    }
    let Some((mut room, root)) = case.start().unwrap_or_else(|text| panic!("{text}")) else { return };
    let outcome = (|| {
        let mut round = 0;
        for stage in STAGES {
            round += 1;
            room.await_file(&format!("ready.{round}"), &[])?;
            let (before, images) = (room.ps()?, format!("images.{stage}"));
            let fault = [("CRUST_FAULT", stage)];
            if case.try_dump(&mut room, root, &tool, &images, &[], &fault)? == 0 {
                return Err(format!("the dump did not fail at {stage}"));
            }
            let said = room.read(&format!("{images}.dump.out")) + &room.read(&format!("{images}.dump.log"));
            if !said.contains(&format!("asked for a failure at {stage}")) {
                return Err(format!("the dump failed before it came to {stage}"));
            }
            expect_no_images(&room.dir.join(&images)).map_err(|e| format!("{stage}: {e}"))?;
            expect_same(&mut room, &before).map_err(|e| format!("{stage}: {e}"))?;
            check_round(&mut room, round).map_err(|e| format!("{stage}: {e}"))?;
        }
        round += 1;
        room.await_file(&format!("ready.{round}"), &[])?;
        case.dump(&mut room, root, &tool, "images.good", &[], &[])?;
        expect_gone(&mut room, root)?;
        case.restore(&mut room, &tool, "images.good")?;
        check_round(&mut room, round)?;
        finish(&mut room, root, round + 1)
    })();
    room.close(outcome).unwrap_or_else(|text| panic!("{program}: {text}"));
}

/// Fails the calls of a dump that change the image directory, one after the other, with `errno`: every `step`th, or each one
/// if `ZOO_EVERY_CALL` is set. The first dump that has no such call left succeeds, and the program comes back from it.
fn fail_every_call(program: &'static str, errno: i32, step: usize) {
    let (case, tool) = (Case::new(program), Tool::ours());
    if tool.name != "ours" || !cfg!(debug_assertions) {
        return skipped(&format!("failing calls in {program}"), "only crust with debug assertions fails on demand");
    }
    let step = if std::env::var_os("ZOO_EVERY_CALL").is_some() { 1 } else { step };
    let Some((mut room, root)) = case.start().unwrap_or_else(|text| panic!("{text}")) else { return };
    let said = std::io::Error::from_raw_os_error(errno).to_string();
    let said = said.split(" (os").next().unwrap_or_default();
    let outcome = (|| {
        room.await_file("ready.1", &[])?;
        let before = room.ps()?;
        let mut refused = 0;
        for nth in (1..2000).step_by(step) {
            let (images, fault) = (format!("images.{nth}"), format!("{nth}:{errno}"));
            if case.try_dump(&mut room, root, &tool, &images, &[], &[("CRUST_FAULT_IO", &fault)])? == 0 {
                break;
            }
            refused += 1;
            let log = room.read(&format!("{images}.dump.out")) + &room.read(&format!("{images}.dump.log"));
            if !log.contains(said) || !log.contains("help: ") {
                return Err(format!("call {nth}: the error does not say {said:?}: {log}"));
            }
            expect_no_images(&room.dir.join(&images)).map_err(|e| format!("call {nth}: {e}"))?;
            expect_same(&mut room, &before).map_err(|e| format!("call {nth}: {e}"))?;
        }
        if refused < 30 / step {
            return Err(format!("only {refused} calls were there to fail"));
        }
        expect_gone(&mut room, root)?;
        case.restore(&mut room, &tool, &format!("images.{}", 1 + refused * step))?;
        check_round(&mut room, 1)?;
        finish(&mut room, root, 2)
    })();
    room.close(outcome).unwrap_or_else(|text| panic!("{program}: {text}"));
}

/// Writes that take only a part each time lose nothing.
fn short_writes(program: &'static str) {
    let (case, tool) = (Case::new(program), Tool::ours());
    if tool.name != "ours" || !cfg!(debug_assertions) {
        return skipped(&format!("short writes in {program}"), "only crust with debug assertions fails on demand");
    }
    let Some((mut room, root)) = case.start().unwrap_or_else(|text| panic!("{text}")) else { return };
    let outcome = (|| {
        room.await_file("ready.1", &[])?;
        case.dump(&mut room, root, &tool, "images", &[], &[("CRUST_FAULT_IO", "0:0")])?;
        expect_gone(&mut room, root)?;
        case.restore(&mut room, &tool, "images")?;
        check_round(&mut room, 1)?;
        finish(&mut room, root, 2)
    })();
    room.close(outcome).unwrap_or_else(|text| panic!("{program}: {text}"));
}

#[test]
fn the_disk_fails_at_every_call() {
    fail_every_call("counter", libc::EIO, 5);
}

#[test]
fn the_disk_is_full_at_every_call() {
    fail_every_call("pipe_tasks", libc::ENOSPC, 9);
}

#[test]
fn the_quota_ends_at_every_call() {
    fail_every_call("counter", libc::EDQUOT, 8);
}

#[test]
fn writes_are_short() {
    short_writes("counter");
    short_writes("pipe_tasks");
}

/// Kills the tool at random moments of its dump, time after time. `ZOO_KILLS=N` sets how often.
fn kill_anytime(program: &'static str) {
    let (case, tool) = (Case::new(program), Tool::ours());
    let route = format!("{}-kill", tool.name);
    if let Some(rule) = rule(program, &route) {
        return skipped(&format!("{program} {route}"), &rule.reason);
    }
    let kills = std::env::var("ZOO_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let Some((mut room, root)) = case.start().unwrap_or_else(|text| panic!("{text}")) else { return };
    let mut hits = 0;
    let outcome = (|| {
        // A whole dump first: it tells how long the dice may roll.
        let from = Instant::now();
        case.dump(&mut room, root, &tool, "images.whole", &["--leave-running"], &[])?;
        let whole = from.elapsed();
        check_round(&mut room, 1)?;
        let mut dice = Dice::new();
        for n in 0..kills {
            let leave = n % 2 == 0;
            let wait = whole.mul_f64(dice.roll() * 1.1);
            let round = n + 2;
            room.await_file(&format!("ready.{round}"), &[])?;
            hits += u32::from(
                one_kill(&case, &mut room, root, &tool, &format!("images.{round}"), leave, wait)
                    .and_then(|hit| check_round(&mut room, round).map(|()| hit))
                    .map_err(|e| format!("kill {n} after {wait:?} of {whole:?} (leave running: {leave}): {e}"))?,
            );
        }
        finish(&mut room, root, kills + 2)
    })();
    let outcome = outcome
        .and_then(|()| if kills >= 10 && hits == 0 { Err("no kill met a dump under way".to_owned()) } else { Ok(()) });
    room.close(outcome).unwrap_or_else(|text| panic!("{program}: {text}"));
}

/// Starts a dump and kills it after `wait`; true if it was still under way. Afterwards the tree is as it was; if the
/// dump had come to killing it, the images must be whole, and the tree is brought back from them.
fn one_kill(
    case: &Case,
    room: &mut Room,
    root: Proc,
    tool: &Tool,
    images: &str,
    leave: bool,
    wait: Duration,
) -> Result<bool, String> {
    let before = room.ps()?;
    let argv = case.dump_argv(room, root, tool, images, if leave { &["--leave-running"] } else { &[] })?;
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let dump = room.start(&argv, &[], &format!("{images}.dump.out"))?;
    std::thread::sleep(wait);
    // It may have ended by itself.
    let killed = room.kill(dump, libc::SIGKILL);
    let end = room.wait(dump, step_limit())?;
    let hit = killed.is_ok() && end == End::Signal(libc::SIGKILL);
    match expect_same(room, &before) {
        Ok(()) => return Ok(hit),
        // It had begun to kill the tree: then the images are whole and hold everything.
        Err(_) if !leave && room.dir.join(images).join("inventory.img").exists() => {}
        Err(changed) => return Err(changed),
    }
    for process in room.ps()? {
        let pid = process.split(' ').next().and_then(|p| p.parse().ok());
        // Some of the tree may still be dying.
        drop(pid.map(|pid| room.kill(Proc(pid), libc::SIGKILL)));
    }
    zoo::harness::expect_empty(room)?;
    drop(room.wait(root, Duration::ZERO));
    case.restore(room, tool, images)?;
    expect_same(room, &before)?;
    Ok(hit)
}

/// The processes are those of before, helpers of a dead tool being given a moment to go.
fn expect_same(room: &mut Room, before: &[String]) -> Outcome {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let now = room.ps()?;
        if now == before {
            return Ok(());
        }
        if Instant::now() > end || now.is_empty() {
            return Err(format!("processes were\n{before:#?}\nand are\n{now:#?}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
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
}

macro_rules! tests {
    ($module:ident, $test:ident: $($program:ident),*) => {
        mod $module {
            $(#[test]
            fn $program() {
                super::$test(stringify!($program));
            })*
        }
    };
}

tests!(fault, fail_everywhere: counter, threads_tls, tree_family, pipe_tasks, mem_shared_fork, pending_shared, creds_user);
tests!(kill, kill_anytime: counter, registers_vector, registers_general, nanosleep, blocked_read, threads_tls,
    sigaltstack_used, tree_family, stopped_task, posix_timer_thread);

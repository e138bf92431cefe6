//! A dump that fails at any stage: the target runs on as before, and no half image can be mistaken. Kills: `crash.rs`.
use std::time::{Duration, Instant};
use zoo::harness::{
    Case, Outcome, Room, Tool, check_round, expect_gone, expect_no_images, finish, skipped, step_limit,
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

/// The processes are those of before, helpers of a dead tool being given a moment to go.
fn expect_same(room: &mut Room, before: &[String]) -> Outcome {
    let end = Instant::now() + step_limit();
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

//! Control groups from outside: made again when they are gone, left alone or refused as `--manage-cgroups` says, removed after
//! a restore that failed; and frozen for a dump, as found afterwards whatever happens.
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zoo::cgroups::{own, path_of, remove};
use zoo::harness::{Case, End, Outcome, Proc, Room, Tool, check_round, expect_empty, expect_gone, finish, step_limit};

/// Removes what a program that failed leaves.
struct Sweep(Vec<PathBuf>);

impl Drop for Sweep {
    fn drop(&mut self) {
        for dir in &self.0 {
            drop(remove(dir));
        }
    }
}

/// Starts a program that tells its groups in the file `groups`; `body` gets them, and whatever it leaves of them is removed.
fn on(program: &'static str, body: impl FnOnce(&Case, &Tool, &mut Room, Proc, &[PathBuf]) -> Outcome) {
    let (case, tool) = (Case::new(program), Tool::ours());
    let Some((mut room, root)) = case.start().unwrap_or_else(|text| panic!("{text}")) else { return };
    let told: Vec<PathBuf> = room.read("groups").lines().map(PathBuf::from).collect();
    let dirs = told.iter().map(|p| if p.is_dir() { p.clone() } else { p.parent().unwrap_or(p).to_path_buf() });
    let sweep = Sweep(dirs.collect());
    let outcome = body(&case, &tool, &mut room, root, &told);
    for state in told.iter().filter(|t| t.is_file() && is_frozen(t)) {
        // Frozen processes could not even be killed.
        drop(set_frozen(state, false));
    }
    room.close(outcome).unwrap_or_else(|text| panic!("{program}: {text}"));
    drop(sweep);
}

fn gone(groups: &[PathBuf]) -> Outcome {
    groups.iter().try_for_each(|g| remove(g).map_err(|e| format!("{}: {e}", g.display())))
}

/// Dumps the tree, sees it gone, and takes its groups away.
fn put_away(case: &Case, tool: &Tool, room: &mut Room, root: Proc, groups: &[PathBuf]) -> Outcome {
    case.dump(room, root, tool, "images.1", &[], &[])?;
    expect_gone(room, root)?;
    gone(groups)
}

/// A restore with more options; tells its exit code.
fn restore(room: &mut Room, tool: &Tool, images: &str, more: &[&str]) -> Result<i32, String> {
    let dir = room.dir.join(images).display().to_string();
    let (path, log) = (tool.path.display().to_string(), format!("{dir}.restore.log"));
    let mut argv = vec![path.as_str(), "restore", "-d", "-D", &dir, "-o", &log, "-v4"];
    argv.extend(more);
    room.run(&argv, &[], &format!("{images}.restore.out"))
}

#[test]
fn groups_are_made_again() {
    on("cgroups", |case, tool, room, root, groups| {
        for n in 1..=2 {
            room.await_file(&format!("ready.{n}"), &[])?;
            let (images, before) = (format!("images.{n}"), room.ps()?);
            case.dump(room, root, tool, &images, &[], &[])?;
            expect_gone(room, root)?;
            gone(groups)?;
            case.restore(room, tool, &images)?;
            if before != room.ps()? {
                return Err(format!("other processes than {before:#?}: {:#?}", room.ps()));
            }
            check_round(room, n)?;
        }
        finish(room, root, 3)
    });
}

#[test]
fn modes_say_what_may_be_made() {
    on("cgroups", |case, tool, room, root, groups| {
        if tool.name != "ours" {
            return Ok(());
        }
        case.dump(room, root, tool, "images.1", &[], &[])?;
        expect_gone(room, root)?;
        let mut refused = |mode: &str, why: &str| {
            if restore(room, tool, "images.1", &[mode])? == 0 {
                return Err(format!("{mode} was not refused"));
            }
            let said = room.read("images.1.restore.log");
            fs::write(room.dir.join("images.1.restore.log"), "").map_err(|e| e.to_string())?;
            if said.contains(why) { expect_empty(room) } else { Err(format!("{mode} does not say {why:?}: {said}")) }
        };
        refused("--manage-cgroups=strict", "exists already")?;
        gone(groups)?;
        refused("--manage-cgroups=none", "does not exist")?;
        refused("--manage-cgroups=props", "does not exist")?;
        if let Some(made) = groups.iter().find(|g| g.exists()) {
            return Err(format!("{} was made", made.display()));
        }
        // Settings come back in a group that exists only if that is asked for.
        let file = groups.first().map(|g| g.join("main/cgroup.max.descendants")).filter(|_| groups.len() > 1);
        let set = |value: &str| match &file {
            Some(file) => fs::create_dir_all(file.parent().unwrap_or(file))
                .and_then(|()| fs::write(file, value))
                .map_err(|e| format!("{}: {e}", file.display())),
            None => Ok(()),
        };
        set("9")?;
        match restore(room, tool, "images.1", &["--manage-cgroups=full"])? {
            0 => {}
            code => return Err(format!("--manage-cgroups=full: exit code {code}")),
        }
        check_round(room, 1)?;
        finish(room, root, 2)
    });
}

#[test]
fn another_root_and_a_failure_that_leaves_nothing() {
    on("cgroups", |case, tool, room, root, groups| {
        if tool.name != "ours" {
            return Ok(());
        }
        put_away(case, tool, room, root, groups)?;
        // The program's output is open in it.
        let (log, away) = (room.dir.join("program.out"), room.dir.join("away"));
        fs::rename(&log, &away).map_err(|e| e.to_string())?;
        if restore(room, tool, "images.1", &[])? == 0 {
            return Err("a restore without its files did not fail".to_owned());
        }
        if let Some(made) = groups.iter().find(|g| g.exists()) {
            return Err(format!("{} was left", made.display()));
        }
        fs::rename(&away, &log).map_err(|e| e.to_string())?;
        expect_empty(room)?;
        // A group beside the old one, in each hierarchy.
        let other = |g: &PathBuf| g.with_file_name(name_of(g) + "-other");
        let sweep = Sweep(groups.iter().map(other).collect());
        let hierarchies =
            ["", "pids"].iter().filter(|c| own(c).is_some_and(|o| groups.iter().any(|g| g.starts_with(&o))));
        let roots: Vec<String> = hierarchies
            .map(|c| {
                let here = path_of("self", c).unwrap_or_default();
                format!("{c}:{}/{}-other", here.trim_end_matches('/'), name_of(&groups[0]))
            })
            .collect();
        let asked: Vec<&str> = roots.iter().flat_map(|r| ["--cgroup-root", r.as_str()]).collect();
        if restore(room, tool, "images.1", &asked)? != 0 {
            return Err("the restore with --cgroup-root failed".to_owned());
        }
        // It finds itself elsewhere.
        match check_round(room, 1) {
            Err(text) if text.contains("-other") => {}
            other => return Err(format!("the tree is not in another root: {other:?}")),
        }
        finish(room, root, 2)?;
        drop(sweep);
        Ok(())
    });
}

#[test]
fn what_a_killed_restore_made_is_cleaned_up() {
    on("cgroups", |case, tool, room, root, groups| {
        if tool.name != "ours" {
            return Ok(());
        }
        put_away(case, tool, room, root, groups)?;
        // The groups are made by then, and nothing else is.
        let script = room.dir.join("kill-restore");
        let text = "#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" = pre-restore ] || exit 0\n\
            for p in /proc/[0-9]*; do [ \"$(cat $p/comm)\" != crust ] || kill -9 ${p#/proc/}; done\n";
        fs::write(&script, text).map_err(|e| e.to_string())?;
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).map_err(|e| e.to_string())?;
        let script = script.display().to_string();
        match restore(room, tool, "images.1", &["--action-script", &script]) {
            Err(text) if text.contains("signal 9") => {}
            other => return Err(format!("the restore was not killed: {other:?}")),
        }
        expect_empty(room)?;
        if !groups.iter().all(|g| g.exists()) {
            return Err("the restore was killed before it made groups".to_owned());
        }
        let path = tool.path.display().to_string();
        let dir = room.dir.display().to_string();
        let clean = |room: &mut Room, more: &[&str], out: &str| -> Result<String, String> {
            let argv = [&[path.as_str(), "cleanup", "-D", &dir][..], more].concat();
            let code = room.run(&argv, &[], out)?;
            let said = room.read(out);
            if code == 0 { Ok(said) } else { Err(format!("cleanup: exit code {code}: {said}")) }
        };
        let said = clean(room, &["--dry-run"], "cleanup.1")?;
        for group in groups {
            let line = said.lines().find(|l| l.contains(&format!("{}:", name_of(group))));
            if !line.is_some_and(|l| l.contains("left there")) || !group.exists() {
                return Err(format!("{} is not shown: {said}", group.display()));
            }
        }
        clean(room, &[], "cleanup.2")?;
        if let Some(left) = groups.iter().find(|g| g.exists()) {
            return Err(format!("{} was not removed", left.display()));
        }
        // Those of a restore that went well are the tree's.
        case.restore(room, tool, "images.1")?;
        let said = clean(room, &[], "cleanup.3")?;
        if said.contains("cgroup") || !groups.iter().all(|g| g.exists()) {
            return Err(format!("the groups of a tree at work: {said}"));
        }
        check_round(room, 1)?;
        finish(room, root, 2)
    });
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// True if the group with this state file is frozen, or on its way.
fn is_frozen(state: &Path) -> bool {
    fs::read_to_string(state).is_ok_and(|s| s.starts_with('1') || s.starts_with("FR"))
}

fn set_frozen(state: &Path, frozen: bool) -> Outcome {
    let v2 = state.ends_with("cgroup.freeze");
    let text = match (v2, frozen) {
        (true, true) => "1",
        (true, false) => "0",
        (false, true) => "FROZEN",
        (false, false) => "THAWED",
    };
    fs::write(state, text).map_err(|e| format!("{}: {e}", state.display()))
}

#[test]
fn a_fork_storm_comes_back_whole() {
    on("fork_storm", |case, tool, room, root, states| {
        let mut round = 0;
        let freezers = states.iter().map(|s| s.parent().map(|dir| dir.display().to_string()));
        for freezer in std::iter::once(None).chain(freezers) {
            round += 1;
            room.await_file(&format!("ready.{round}"), &[])?;
            let images = format!("images.{round}");
            let more: Vec<&str> = freezer.iter().flat_map(|dir| ["--freeze-cgroup", dir.as_str()]).collect();
            case.dump(room, root, tool, &images, &more, &[])?;
            expect_gone(room, root)?;
            if let Some(state) = states.iter().find(|s| is_frozen(s)) {
                return Err(format!("{}: left frozen", state.display()));
            }
            case.restore(room, tool, &images)?;
            check_round(room, round)?;
        }
        finish(room, root, round + 1)
    });
}

/// With pids.max at the number of tasks nobody gets another thread: what two would have read one reads.
#[test]
fn a_tree_comes_back_where_no_thread_is_left() {
    let full = own("pids").or_else(|| own("")).map(|own| own.join(format!("zoo-full-{}", std::process::id())));
    let (case, tool) = (Case::new("mem_private"), Tool::ours());
    let Some((mut room, root)) = case.start().unwrap_or_else(|text| panic!("{text}")) else { return };
    let full = full.expect("a hierarchy of control groups");
    let sweep = Sweep(vec![full.clone()]);
    let mut trip = || {
        fs::create_dir(&full).map_err(|e| format!("{}: {e}", full.display()))?;
        case.dump(&mut room, root, &tool, "images.1", &[], &[])?;
        expect_gone(&mut room, root)?;
        // The tool and the task.
        fs::write(full.join("pids.max"), "2").map_err(|e| format!("pids.max: {e}"))?;
        let dir = room.dir.join("images.1").display().to_string();
        let inside = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", full.display());
        let path = tool.path.display().to_string();
        let argv = ["sh", "-c", &inside, "sh", &path, "restore", "-d", "-D", &dir, "-o", "restore.log"];
        match room.run(&argv, &[], "restore.out")? {
            0 => {}
            code => return Err(format!("exit code {code}: {}", room.read("images.1/restore.log"))),
        }
        check_round(&mut room, 1)?;
        finish(&mut room, root, 2)
    };
    let outcome = trip();
    room.close(outcome).unwrap_or_else(|text| panic!("{text}"));
    drop(sweep);
}

#[test]
fn a_frozen_group_stays_as_found() {
    on("fork_storm", |case, tool, room, root, states| {
        let mut round = 0;
        for state in states {
            let dir = state.parent().unwrap_or(state).display().to_string();
            for (found, fault) in [(true, None), (true, Some("look")), (false, Some("look")), (false, None)] {
                round += 1;
                room.await_file(&format!("ready.{round}"), &[])?;
                set_frozen(state, found)?;
                let images = format!("images.{round}");
                let env: Vec<(&str, &str)> =
                    fault.iter().filter(|_| tool.name == "ours").map(|&stage| ("CRUST_FAULT", stage)).collect();
                let more = ["--freeze-cgroup", &dir, "--leave-running"];
                let code = case.try_dump(room, root, tool, &images, &more, &env)?;
                if (code == 0) != env.is_empty() {
                    return Err(format!("round {round}: the dump ended with {code}"));
                }
                if is_frozen(state) != found {
                    return Err(format!("round {round}: {} is not as it was found, frozen: {found}", state.display()));
                }
                set_frozen(state, false)?;
                check_round(room, round)?;
            }
        }
        finish(room, root, round + 1)
    });
}

#[test]
fn a_killed_dump_leaves_its_group_as_found() {
    let kills: u64 = std::env::var("CRUST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    on("fork_storm", |case, tool, room, root, states| {
        if tool.name != "ours" {
            return Ok(());
        }
        for n in 0..kills {
            let Some(state) = states.get(n as usize % states.len().max(1)) else { return Ok(()) };
            let found = n % 4 > 1;
            set_frozen(state, found)?;
            let dir = state.parent().unwrap_or(state).display().to_string();
            let more = ["--freeze-cgroup", &dir, "--leave-running"];
            let argv = case.dump_argv(room, root, tool, &format!("images.{n}"), &more)?;
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            let dump = room.start(&argv, &[], "killed.dump.out")?;
            // Most of it is over after some 60 ms.
            std::thread::sleep(Duration::from_micros(n * 7919 % 60_000));
            // It may have ended by itself.
            drop(room.kill(dump, 9));
            if room.wait(dump, step_limit())? == End::Timeout {
                return Err("a killed dump did not end".to_owned());
            }
            // Whoever watched over the freezer has done its work.
            let end = Instant::now() + step_limit();
            while room.ps()?.iter().any(|p| p.contains("\"crust\"")) {
                if Instant::now() > end {
                    return Err(format!("something of the killed dump does not end: {:#?}", room.ps()));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            if is_frozen(state) != found {
                return Err(format!("kill {n}: {} is not as it was found, frozen: {found}", state.display()));
            }
            set_frozen(state, false)?;
        }
        check_round(room, 1)?;
        finish(room, root, 2)
    });
}

//! Options about files: what is given to the restore from outside, what changed meanwhile, what is too large to be saved.
use std::ffi::CString;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::time::Instant;
use zoo::harness::{
    Case, End, Outcome, Proc, Room, Tool, check_round, expect_gone, expect_no_images, finish, skipped, step_limit,
};
use zoo::{queues, tuns};

/// Runs a test with a program that waits for its first round.
fn with(program: &'static str, test: impl FnOnce(&Case, &mut Room, Proc, &Tool) -> Outcome) {
    with_case(Case::new(program), test);
}

fn with_case(case: Case, test: impl FnOnce(&Case, &mut Room, Proc, &Tool) -> Outcome) {
    let (program, tool) = (case.program, Tool::ours());
    let Some((mut room, root)) = case.start().unwrap_or_else(|text| panic!("{text}")) else { return };
    let outcome = test(&case, &mut room, root, &tool);
    room.close(outcome).unwrap_or_else(|text| panic!("{program}: {text}"));
}

/// Dumps the tree with more options and sees it gone.
fn dump(case: &Case, room: &mut Room, root: Proc, tool: &Tool, more: &[&str]) -> Outcome {
    case.dump(room, root, tool, "images", more, &[])?;
    expect_gone(room, root)
}

/// A dump that must be refused with this text; the program runs on and checks itself.
fn refused(case: &Case, room: &mut Room, root: Proc, tool: &Tool, more: &[&str], text: &str, round: u32) -> Outcome {
    let images = format!("images.refused.{round}");
    if case.try_dump(room, root, tool, &images, more, &[])? == 0 {
        return Err(format!("the dump with {more:?} was not refused"));
    }
    expect_no_images(&room.dir.join(&images))?;
    expect_text(room, &format!("{images}.dump.out"), text)?;
    check_round(room, round)?;
    room.await_file(&format!("ready.{}", round + 1), &[]).map(drop)
}

fn expect_text(room: &Room, log: &str, text: &str) -> Outcome {
    let said = room.read(log);
    if said.contains(text) { Ok(()) } else { Err(format!("{log} does not say {text:?}:\n{said}")) }
}

/// Restores with more options; `given` is a file that the tool gets as descriptor 9.
fn restore(room: &mut Room, tool: &Tool, more: &[&str], given: Option<&str>, log: &str) -> Result<i32, String> {
    let dir = room.dir.join("images").display().to_string();
    let path = tool.path.display().to_string();
    let given = given.map_or("/dev/null".to_owned(), |name| room.dir.join(name).display().to_string());
    let fixed = ["/bin/sh", "-c", r#"f=$1; shift; exec "$@" 9<>"$f""#, "sh", &given];
    let mut argv: Vec<&str> = fixed.to_vec();
    argv.extend([path.as_str(), "restore", "-d", "-D", &dir]);
    argv.extend(more);
    room.run(&argv, &[], log)
}

/// A restore that must fail with this text and leave nothing.
fn restore_fails(room: &mut Room, tool: &Tool, more: &[&str], text: &str) -> Outcome {
    restore_fails_given(room, tool, more, None, text)
}

fn restore_fails_given(room: &mut Room, tool: &Tool, more: &[&str], given: Option<&str>, text: &str) -> Outcome {
    if restore(room, tool, more, given, "restore.fails.out")? == 0 {
        return Err(format!("the restore did not fail, but should: {text}"));
    }
    expect_text(room, "restore.fails.out", text)?;
    match room.ps()?.as_slice() {
        [] => Ok(()),
        left => Err(format!("left over: {left:?}")),
    }
}

fn restores(room: &mut Room, tool: &Tool, more: &[&str], given: Option<&str>) -> Outcome {
    match restore(room, tool, more, given, "restore.out")? {
        0 => Ok(()),
        code => Err(format!("the restore with {more:?} exited with {code}: {}", room.read("restore.out"))),
    }
}

fn sees(room: &mut Room, round: u32, text: &str) -> Outcome {
    check_round(room, round)?;
    let seen = room.read(&format!("seen.{round}"));
    if seen == text { Ok(()) } else { Err(format!("the program reads {seen:?}, not {text:?}")) }
}

fn write(room: &Room, name: &str, text: &str) -> Outcome {
    fs::write(room.dir.join(name), text).map_err(|e| format!("{name}: {e}"))
}

/// That the refusal before says all of this.
fn says(room: &Room, texts: &[&str]) -> Outcome {
    texts.iter().try_for_each(|text| expect_text(room, "restore.fails.out", text))
}

#[test]
fn a_refusal_names_task_descriptor_path_reason_and_remedy() {
    with("held_file", |case, room, root, tool| {
        let at = room.read("at");
        let path = room.dir.join("held").display().to_string();
        dump(case, room, root, tool, &[])?;
        fs::remove_file(room.dir.join("held")).map_err(|e| e.to_string())?;
        let gone = format!("{at}, {path}: the file that the program had open is not there");
        restore_fails(room, tool, &[], &gone)?;
        says(room, &["No such file or directory", "help: put the file back"])?;
        write(room, "held", "longer than it was")?;
        restore_fails(room, tool, &[], &format!("{at}, {path}: the file had 5 bytes at the dump, now it has 18"))?;
        says(room, &["help: "])?;
        write(room, "held", "again")?;
        restores(room, tool, &[], None)?;
        sees(room, 1, "again")?;
        finish(room, root, 2)
    });
}

#[test]
fn a_terminal_that_is_taken_is_named() {
    with("pty_pair", |case, room, root, tool| {
        let at = room.read("at");
        dump(case, room, root, tool, &[])?;
        // The tool itself has it: what it is given is a new terminal, which gets the lowest number.
        restore_fails_given(
            room,
            tool,
            &[],
            Some("/dev/ptmx"),
            &format!("{at}, /dev/pts/0: the terminal number 0 is in use"),
        )?;
        says(room, &["help: close the terminal that has it"])?;
        restores(room, tool, &[], None)?;
        check_round(room, 1)?;
        finish(room, root, 2)
    });
}

#[test]
fn a_pipe_is_given_to_the_restore() {
    with("held_pipe", |case, room, root, tool| {
        let key = room.read("key");
        dump(case, room, root, tool, &[])?;
        let fifo = room.dir.join("other");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .map_err(|e| format!("mkfifo: {e}"))?;
        let mut both = fs::File::options().read(true).write(true).open(&fifo).map_err(|e| e.to_string())?;
        both.write_all(b"from outside").map_err(|e| e.to_string())?;
        restores(room, tool, &["--inherit-fd", &format!("fd[9]:{key}")], Some("other"))?;
        sees(room, 1, "from outside")?;
        finish(room, root, 2)
    });
}

#[test]
fn a_device_may_be_found_by_another_node() {
    with("held_file", |case, room, root, tool| {
        if room.dir.join("no-node").exists() {
            skipped("evasive devices", "no device nodes can be made here");
            return finish(room, root, 1);
        }
        let dir = room.dir.display().to_string();
        let cover = r#"cd "$1" && mknod -m 600 cover c 1 5 && mount --bind cover node"#;
        if room.run(&["/bin/sh", "-c", cover, "sh", &dir], &[], "cover.out")? != 0 {
            skipped("evasive devices", "nothing can be mounted here");
            return finish(room, root, 1);
        }
        refused(case, room, root, tool, &[], "leads to another file now", 1)?;
        dump(case, room, root, tool, &["--evasive-devices"])?;
        restores(room, tool, &[], None)?;
        sees(room, 2, "first")?;
        finish(room, root, 3)
    });
}

#[test]
fn an_external_file_is_given_to_the_restore() {
    with("held_file", |case, room, root, tool| {
        let key = room.read("key");
        dump(case, room, root, tool, &["--external", &key])?;
        write(room, "other", "from outside")?;
        // Nobody asks for it by its name.
        fs::remove_file(room.dir.join("held")).map_err(|e| e.to_string())?;
        restore_fails(room, tool, &[], "--inherit-fd fd[N]:file[")?;
        says(room, &[&room.read("at"), &key, "help: "])?;
        restores(room, tool, &["--inherit-fd", &format!("fd[9]:{key}")], Some("other"))?;
        sees(room, 1, "from outside")?;
        finish(room, root, 2)
    });
}

#[test]
fn a_descriptor_takes_the_place_of_a_path() {
    with("held_file", |case, room, root, tool| {
        dump(case, room, root, tool, &[])?;
        write(room, "other", "from outside")?;
        let path = room.dir.join("held").display().to_string();
        let key = path.trim_start_matches('/');
        restore_fails(room, tool, &["--inherit-fd", &format!("fd[77]:{key}")], "--inherit-fd")?;
        restores(room, tool, &["--inherit-fd", &format!("fd[9]:{key}")], Some("other"))?;
        sees(room, 1, "from outside")?;
        finish(room, root, 2)
    });
}

#[test]
fn a_file_of_another_size_is_refused() {
    with("held_file", |case, room, root, tool| {
        dump(case, room, root, tool, &[])?;
        write(room, "held", "first and more")?;
        restore_fails(room, tool, &[], "the file had 5 bytes at the dump, now it has 14")?;
        write(room, "held", "other")?;
        restores(room, tool, &[], None)?;
        sees(room, 1, "other")?;
        finish(room, root, 2)
    });
}

#[test]
fn a_log_may_grow_and_what_is_excepted_may_differ() {
    with("held_file", |case, room, root, tool| {
        dump(case, room, root, tool, &[])?;
        write(room, "log", "be")?;
        restore_fails(room, tool, &[], "the file had 5 bytes at the dump, now it has 2")?;
        says(room, &[&format!("--file-validation-except={}", room.dir.join("log").display())])?;
        write(room, "held", "rotated")?;
        let dir = room.dir.display().to_string();
        let except = |name: &str| format!("--file-validation-except={dir}/{name}");
        restore_fails(room, tool, &[&except("log")], "the file had 5 bytes at the dump, now it has 7")?;
        // Another's line behind its own.
        write(room, "log", "begun and more")?;
        restores(room, tool, &[&except("held")], None)?;
        sees(room, 1, "rotated")?;
        finish(room, root, 2)
    });
}

#[test]
fn all_below_an_excepted_directory_may_differ() {
    with("held_file", |case, room, root, tool| {
        dump(case, room, root, tool, &[])?;
        write(room, "log", "")?;
        write(room, "held", "rotated")?;
        let elsewhere = format!("--file-validation-except={}-not", room.dir.display());
        restore_fails(room, tool, &[&elsewhere], "the file had 5 bytes at the dump, now it has ")?;
        restores(room, tool, &[&format!("--file-validation-except={}", room.dir.display())], None)?;
        sees(room, 1, "rotated")?;
        finish(room, root, 2)
    });
}

#[test]
fn a_program_of_another_build_is_refused() {
    with("held_file", |case, room, root, tool| {
        dump(case, room, root, tool, &[])?;
        let path = room.dir.join("program");
        let good = fs::read(&path).map_err(|e| e.to_string())?;
        // The note's name and type stand before the id.
        let Some(at) = good.windows(8).position(|w| w == b"\x03\0\0\0GNU\0") else {
            skipped("build ids", "the programs of this test have none");
            restores(room, tool, &[], None)?;
            return finish(room, root, 1);
        };
        let mut other = good.clone();
        other[at + 8] ^= 0xff;
        let put = |bytes: &[u8]| fs::write(&path, bytes).map_err(|e| e.to_string());
        put(&other)?;
        restore_fails(room, tool, &[], "another build id")?;
        restores(room, tool, &["--file-validation", "filesize"], None)?;
        sees(room, 1, "first")?;
        put(&good)?;
        finish(room, root, 2)
    });
}

#[test]
fn another_mode_is_refused_unless_it_may_differ() {
    with("held_file", |case, room, root, tool| {
        dump(case, room, root, tool, &[])?;
        let mode = fs::Permissions::from_mode(0o611);
        fs::set_permissions(room.dir.join("held"), mode).map_err(|e| e.to_string())?;
        restore_fails(room, tool, &[], "--skip-file-rwx-check")?;
        restores(room, tool, &["--skip-file-rwx-check"], None)?;
        sees(room, 1, "first")?;
        finish(room, root, 2)
    });
}

#[test]
fn a_deleted_file_may_be_too_large() {
    with("unlinked_file", |case, room, root, tool| {
        refused(case, room, root, tool, &["--ghost-limit", "10K"], "--ghost-limit", 1)?;
        // The program itself moved the position to the end.
        dump(case, room, root, tool, &["--ghost-limit", "100K"])?;
        restores(room, tool, &[], None)?;
        check_round(room, 2)?;
        finish(room, root, 3)
    });
}

#[test]
fn links_made_for_a_dump_go_with_its_restore() {
    with("link_remap", |case, room, root, tool| {
        let links = |room: &Room| {
            let names = fs::read_dir(&room.dir).into_iter().flatten().flatten().map(|e| e.file_name());
            names.filter(|n| n.to_string_lossy().starts_with("link_remap.")).count()
        };
        let expect = |room: &Room, n: usize, when: &str| match links(room) {
            found if found == n => Ok(()),
            found => Err(format!("{found} links {when}, and not {n}")),
        };
        refused(case, room, root, tool, &[], "--link-remap", 1)?;
        expect(room, 0, "after a dump that was refused")?;
        let fault = [("CRUST_FAULT", "commit")];
        if case.try_dump(room, root, tool, "images.fault", &["--link-remap"], &fault)? == 0 {
            return Err("the dump did not fail at its commit".to_owned());
        }
        expect(room, 0, "after a dump that failed")?;
        // A name that is taken already is not ours to remove.
        write(room, "link_remap.1", "not ours")?;
        dump(case, room, root, tool, &["--link-remap"])?;
        expect(room, 3, "after the dump")?;
        restores(room, tool, &[], None)?;
        expect(room, 1, "after the restore")?;
        check_round(room, 2)?;
        finish(room, root, 3)
    });
}

/// Names of the program's devices: one that ends with it, and two others.
fn devices(room: &Room) -> [String; 3] {
    let text = room.read("devices");
    let mut names = text.split_whitespace().map(str::to_owned);
    [(); 3].map(|()| names.next().unwrap_or_default())
}

/// The plan of privileges has the one for network devices for so many steps: one of the devices belongs to somebody else.
fn needs_net_admin(room: &mut Room, tool: &Tool, of: &[&str], steps: usize) -> Outcome {
    let path = tool.path.display().to_string();
    let code = room.run(&[&[path.as_str(), "check", "--needs"], of].concat(), &[], "needs.out")?;
    let said = room.read("needs.out");
    fs::remove_file(room.dir.join("needs.out")).map_err(|e| e.to_string())?;
    match said.matches("CAP_NET_ADMIN [held]").count() {
        found if found == steps && code == 0 => Ok(()),
        found => Err(format!("CAP_NET_ADMIN is named {found} times (exit code {code}):\n{said}")),
    }
}

#[test]
fn a_network_device_stays_until_its_program_is_back() {
    with("tun", |case, room, root, tool| {
        let [ends, ..] = devices(room);
        let expect = |stays: Option<bool>, when: &str| match tuns::flags(&ends).map(|f| f & tuns::IFF_PERSIST != 0) {
            found if found == stays => Ok(()),
            found => Err(format!("the device stays ({found:?}) {when}")),
        };
        needs_net_admin(room, tool, &["--pid", &root.0.to_string()], 2)?;
        let fault = [("CRUST_FAULT", "commit")];
        if case.try_dump(room, root, tool, "images.fault", &[], &fault)? == 0 {
            return Err("the dump did not fail at its commit".to_owned());
        }
        expect(Some(false), "after a dump that failed")?;
        case.dump(room, root, tool, "images.runs", &["--leave-running"], &[])?;
        expect(Some(false), "after a dump that left the program running")?;
        check_round(room, 1)?;
        dump(case, room, root, tool, &[])?;
        expect(Some(true), "after the dump")?;
        needs_net_admin(room, tool, &["-D", &room.dir.join("images").display().to_string()], 1)?;
        let images = room.dir.join("images");
        restore_fails(room, tool, &["--pidfile", &images.join("files.img").display().to_string()], "pid file")?;
        expect(Some(true), "after a restore that failed")?;
        restores(room, tool, &[], None)?;
        expect(Some(false), "after the restore")?;
        check_round(room, 2)?;
        finish(room, root, 3)?;
        expect(None, "after the program's end")
    });
}

#[test]
fn a_network_device_that_is_gone_is_named_with_what_makes_it() {
    with("tun", |case, room, root, tool| {
        let [ends, stays, queues] = devices(room);
        dump(case, room, root, tool, &[])?;
        let tap = tuns::IFF_TAP | tuns::IFF_NO_PI | tuns::IFF_VNET_HDR | tuns::IFF_MULTI_QUEUE;
        for (name, flags) in [(&ends, tuns::IFF_TUN | tuns::IFF_NO_PI), (&stays, tuns::IFF_TUN), (&queues, tap)] {
            let gone = tuns::attach(name, flags).and_then(|fd| tuns::stay(&fd, false));
            gone.map_err(|e| format!("{name}: {e}"))?;
        }
        // One of another sort in the place of the first.
        let other = tuns::attach(&ends, tuns::IFF_TAP).map_err(|e| e.to_string())?;
        restore_fails(room, tool, &[], &format!("network device {stays}: the tun or tap device that the program"))?;
        says(
            room,
            &[
                &format!("ip tuntap add dev {stays} mode tun pi user 65534"),
                &format!("ip tuntap add dev {queues} mode tap vnet_hdr multi_queue"),
                &format!("network device {ends}: the device has other flags"),
            ],
        )?;
        drop(other);
        Ok(())
    });
}

#[test]
fn watched_files_are_found_by_searching() {
    with("inotify", |case, room, root, tool| {
        refused(case, room, root, tool, &["--force-irmap"], "--irmap-scan-path", 1)?;
        let dir = room.dir.display().to_string();
        dump(case, room, root, tool, &["--force-irmap", "--irmap-scan-path", &dir])?;
        restores(room, tool, &[], None)?;
        check_round(room, 2)?;
        finish(room, root, 3)
    });
}

#[test]
fn a_message_queue_that_changed_is_refused() {
    with("mqueue", |case, room, root, tool| {
        let names = room.read("queues");
        let named = |at: usize| CString::new(names.lines().nth(at).unwrap_or_default()).map_err(|e| e.to_string());
        let (full, empty) = (named(0)?, named(1)?);
        dump(case, room, root, tool, &[])?;
        let io = |e: std::io::Error| e.to_string();
        let queue = queues::open(&full, libc::O_RDWR | libc::O_NONBLOCK).map_err(io)?;
        queues::receive(&queue).map_err(io)?;
        restore_fails(room, tool, &[], "2 messages waited in the queue at the dump, now there are 1")?;
        queues::send(&queue, b"first", 9).map_err(io)?;
        // Of the other nobody misses anything.
        queues::unlink(&empty).map_err(io)?;
        queues::make(&empty, libc::O_RDWR, 0o600, 2, 15).map_err(io)?;
        restore_fails(room, tool, &[], "took 2 messages of 16 bytes at the dump, now it takes 2 of 15")?;
        queues::unlink(&empty).map_err(io)?;
        restores(room, tool, &[], None)?;
        check_round(room, 1)?;
        room.await_file("ready.2", &[])?;
        dump(case, room, root, tool, &[])?;
        queues::unlink(&full).map_err(io)?;
        queues::unlink(&empty).map_err(io)?;
        restore_fails(room, tool, &[], "the queue is gone, with the 2 messages that waited in it")
    });
}

#[test]
fn an_inherited_descriptor_is_closed_first() {
    with("counter", |case, room, root, tool| {
        dump(case, room, root, tool, &[])?;
        let fifo = room.dir.join("fifo");
        let name = fifo.display().to_string();
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .map_err(|e| format!("mkfifo: {e}"))?;
        let reader = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo);
        let mut reader = reader.map_err(|e| format!("{name}: {e}"))?;
        let (images, path) = (room.dir.join("images").display().to_string(), tool.path.display().to_string());
        let script = r#"f=$1; shift; exec 9>"$f"; echo begun >&9; exec "$@""#;
        // In the foreground: the tool lives as long as its tree.
        let argv = ["/bin/sh", "-c", script, "sh", &name, &path, "restore", "-D", &images, "--close", "9"];
        let restorer = room.start(&argv, &[], "restore.out")?;
        let (end, mut said) = (Instant::now() + step_limit(), Vec::new());
        // The writer's text, then the end of it: nobody has the other end open any more.
        loop {
            let mut part = [0; 64];
            match reader.read(&mut part) {
                Ok(0) if said == b"begun\n" => break,
                Ok(n) => said.extend_from_slice(&part[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(format!("{name}: {e}")),
            }
            if Instant::now() > end {
                return Err(format!("the descriptor was not closed; read so far: {said:?}"));
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        check_round(room, 1)?;
        room.await_file("ready.2", &[])?;
        room.touch("quit")?;
        match room.wait(restorer, step_limit())? {
            End::Exit(0) => Ok(()),
            other => Err(format!("the restore ended with {other:?}: {}", room.read("restore.out"))),
        }
    });
}

/// A thread that waits in vfork cannot be stopped; a dump waits for it, within its deadline.
#[test]
fn a_vfork_that_ends_is_waited_for() {
    with("vfork_ends", |case, room, root, tool| {
        let argv = case.dump_argv(room, root, tool, "images", &["--timeout", "60"])?;
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let dump = room.start(&argv, &[], "images.dump.out")?;
        // Long enough for the dump to come to where it waits. If it does not, it has less to wait for.
        std::thread::sleep(std::time::Duration::from_millis(300));
        room.touch("end.1")?;
        match room.wait(dump, step_limit())? {
            End::Exit(0) => {}
            other => return Err(format!("the dump ended with {other:?}")),
        }
        expect_gone(room, root)?;
        case.restore(room, tool, "images")?;
        check_round(room, 1)?;
        finish(room, root, 2)
    });
}

/// Whoever does not stop is not waited for any longer than that is wanted.
#[test]
fn a_freeze_can_be_cancelled() {
    with("refused_vfork", |case, room, root, tool| {
        let (began, act) = (room.dir.join("freezing"), room.dir.join("act"));
        // By a process without threads: what another test starts just now could have a file of ours open for writing.
        let script =
            r##"printf '#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != pre-dump ] || : > %s\n' "$1" > "$2"; chmod +x "$2""##;
        let (began, act) = (began.display().to_string(), act.display().to_string());
        if room.run(&["/bin/sh", "-c", script, "sh", &began, &act], &[], "act.out")? != 0 {
            return Err("the script cannot be written".to_owned());
        }
        let more = ["--timeout", "6000", "--action-script", &act];
        let argv = case.dump_argv(room, root, tool, "images", &more)?;
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let dump = room.start(&argv, &[], "images.dump.out")?;
        room.await_file("freezing", &[])?;
        room.kill(dump, libc::SIGTERM)?;
        match room.wait(dump, step_limit())? {
            End::Exit(1) => {}
            other => return Err(format!("the dump ended with {other:?}")),
        }
        if !room.read("images.dump.log").contains("the request was cancelled") {
            return Err("the log does not say that it was cancelled".to_owned());
        }
        expect_no_images(&room.dir.join("images"))?;
        check_round(room, 1)?;
        finish(room, root, 2)
    });
}

/// Nobody of a tree is held while whoever waits for him in a vfork cannot be stopped.
#[test]
fn a_vfork_storm_is_frozen() {
    with("vfork_storm", |case, room, root, tool| {
        for round in 1..=2 {
            let images = format!("images.{round}");
            case.dump(room, root, tool, &images, &["--timeout", "60"], &[])?;
            expect_gone(room, root)?;
            case.restore(room, tool, &images)?;
            check_round(room, round)?;
            room.await_file(&format!("ready.{}", round + 1), &[])?;
        }
        finish(room, root, 3)
    });
}

/// A row of processes that cannot be stopped is let go as a whole, not one after the other.
#[test]
fn a_row_of_vforks_is_let_go_at_once() {
    with("vfork_deep", |case, room, root, tool| {
        let start = std::time::Instant::now();
        let argv = case.dump_argv(room, root, tool, "images", &["--timeout", "1"])?;
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        if room.run(&argv, &[], "images.dump.out")? == 0 {
            return Err("who cannot be stopped was dumped".into());
        }
        // Forty of them, and two seconds for each, would be more.
        if start.elapsed() > std::time::Duration::from_secs(60) {
            return Err(format!("the dump took {:?}", start.elapsed()));
        }
        room.touch("end.1")?;
        check_round(room, 1)?;
        finish(room, root, 2)
    });
}

/// A dump takes a few descriptors for the processes that it is just looking at, and none for the others.
#[test]
fn many_processes_take_few_descriptors() {
    let case = Case { size: Some(("ZOO_CHILDREN", "300")), ..Case::new("children_1000") };
    with_case(case, |case, room, root, tool| {
        let argv = case.dump_argv(room, root, tool, "images", &[])?;
        let limited = |limit| format!("ulimit -n {limit}; exec \"$@\"");
        let run = |room: &mut Room, limit: u32| {
            let limited = limited(limit);
            let argv: Vec<&str> =
                ["/bin/sh", "-c", &limited, "sh"].into_iter().chain(argv.iter().map(String::as_str)).collect();
            room.run(&argv, &[], "images.dump.out")
        };
        if run(room, 24)? == 0 {
            return Err("a dump cannot do with 24 descriptors".into());
        }
        expect_text(room, "images.dump.out", "ulimit -Hn")?;
        if run(room, 256)? != 0 {
            return Err("the dump failed".into());
        }
        expect_gone(room, root)?;
        case.restore(room, tool, "images")?;
        check_round(room, 1)?;
        finish(room, root, 2)
    });
}

//! The command line from outside: exit codes, streams, configuration files, directories that are wrong.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
mod common;

use common::Dir;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Output};

fn crust(dir: &Dir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crust"));
    command.current_dir(&dir.0).env_clear().env("HOME", &dir.0);
    command
}

/// Exit code, standard output, standard error.
fn ends(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().expect("ended by a signal"), text(stdout), text(stderr))
}

#[test]
fn version_is_one_line_even_without_standard_error() {
    let dir = Dir::new("version");
    let (code, out, err) = ends(crust(&dir).arg("--version"));
    assert_eq!((code, out.as_str(), err.as_str()), (0, "Version: 4.2\n", ""));
    // LXC closes standard error.
    let mut sh = Command::new("sh");
    sh.args(["-c", "exec \"$0\" -V 2>&-", env!("CARGO_BIN_EXE_crust")]);
    assert_eq!(ends(&mut sh).1, "Version: 4.2\n");
}

#[test]
fn called_criu_it_is_the_same() {
    let dir = Dir::new("link");
    symlink(env!("CARGO_BIN_EXE_crust"), dir.0.join("criu")).unwrap();
    let mut criu = Command::new(dir.0.join("criu"));
    let (code, out, _) = ends(criu.arg("--help"));
    assert_eq!(code, 0);
    assert!(out.contains("criu VERB"), "{out}");
}

#[test]
fn inherited_descriptors_must_be_there() {
    let dir = Dir::new("inherit");
    // Descriptor 5 would be one of our own files by the time it is looked at.
    let mut restore = crust(&dir);
    restore.args(["restore", "-D"]).arg(&dir.0).args(["--inherit-fd", "fd[5]:pipe:[77]"]);
    let (code, _, err) = ends(&mut restore);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("fd[5]:pipe:[77]: crust was started without a descriptor 5"), "{err}");
    for verb in [&["restore"][..], &["dump", "-t", "1"], &["check"]] {
        let (code, _, err) = ends(crust(&dir).args(verb).args(["--status-fd", "5"]));
        assert_eq!(code, 1, "{verb:?}: {err}");
        assert!(err.contains("--status-fd 5: crust was started without a descriptor 5"), "{verb:?}: {err}");
    }
}

#[test]
fn the_command_for_after_a_restore_must_be_there() {
    let dir = Dir::new("exec-missing");
    std::fs::write(dir.0.join("text"), "no program").unwrap();
    for program in ["/nonexistent/program", "no-such-program", "./text", "/"] {
        let mut restore = crust(&dir);
        restore.args(["restore", "-D"]).arg(&dir.0).args(["--exec-cmd", "--", program]);
        let (code, _, err) = ends(&mut restore);
        assert_eq!(code, 1, "{err}");
        assert!(err.contains(&format!("{program}: the command of --exec-cmd cannot be run")), "{err}");
    }
}

#[test]
fn exit_codes_are_criu_s() {
    let dir = Dir::new("codes");
    for (args, code) in [
        (&["--help"][..], 0),
        (&["-h"], 0),
        (&["--h"], 0),
        (&["fly", "--help"], 0),
        (&["image", "tree", "--help"], 0),
        (&["-V"], 0),
        (&[], 1),
        (&["fly"], 1),
        (&["dump", "extra", "-t", "1"], 1),
        (&["dump", "--nonsense"], 1),
        (&["dump"], 1),
        (&["dump", "-t", "0"], 1),
        (&["dump", "-t", "x"], 1),
        (&["pre-dump"], 1),
        (&["restore"], 1),
        (&["restore", "-S"], 1),
        (&["dump", "-t", "1", "--mntns-compat-mode"], 1),
        (&["dump", "-t", "1", "--inherit-fd", "fd[1]:tty[1:2]"], 1),
        (&["check", "--feature", "list"], 1),
        (&["check", "--feature", "no_such_thing"], 1),
        (&["--ms", "check"], 1),
        (&["cpuinfo"], 1),
        (&["cpuinfo", "fly"], 1),
        (&["page-server", "--port", "0"], 1),
        (&["page-server"], 1),
        (&["lazy-pages"], 1),
        (&["dedup"], 1),
        (&["swrk"], 1),
        (&["swrk", "x"], 255),
        (&["swrk", "77"], 255),
        (&["exec"], 255),
        (&["show"], 255),
        (&["image"], 1),
        (&["image", "fly"], 1),
    ] {
        let (got, out, err) = ends(crust(&dir).args(args));
        assert_eq!(got, code, "{args:?}: {out}{err}");
        if code != 0 {
            assert!(err.contains("Error ("), "{args:?} gave no reason: {err}");
        }
    }
}

#[test]
fn a_wrong_option_shows_usage_on_stdout_and_the_reason_on_stderr() {
    let dir = Dir::new("usage");
    let (_, out, err) = ends(crust(&dir).args(["dump", "--nonsense"]));
    assert!(out.contains("Usage:") && out.contains("--help"), "{out}");
    assert!(err.contains("unrecognized option '--nonsense'"), "{err}");
    assert!(!out.contains("nonsense"));
}

#[test]
fn configuration_files_are_read_in_order_and_missing_ones_ignored() {
    let dir = Dir::new("config");
    let (home, env, given) = (dir.0.join(".criu/default.conf"), dir.0.join("env.conf"), dir.0.join("given.conf"));
    fs::create_dir(dir.0.join(".criu")).unwrap();
    let log = |name: &str| fs::metadata(dir.0.join(name)).is_ok();
    let dump = ["dump", "-t", "999999999", "-D", "."];

    fs::write(&home, "log-file home.log\n").unwrap();
    assert_eq!(ends(crust(&dir).args(dump)).0, 1);
    assert!(log("home.log"));

    fs::write(&env, "log-file=env.log # comment\n").unwrap();
    assert_eq!(ends(crust(&dir).args(dump).env("CRIU_CONFIG_FILE", &env)).0, 1);
    assert!(log("env.log"));

    fs::write(&given, "log-file \"given.log\"\n").unwrap();
    assert_eq!(ends(crust(&dir).args(dump).arg("--config").arg(&given)).0, 1);
    assert!(log("given.log"));

    assert_eq!(ends(crust(&dir).args(dump).args(["-o", "argv.log"]).env("CRIU_CONFIG_FILE", &env)).0, 1);
    assert!(log("argv.log"));

    for name in ["home.log", "env.log", "given.log", "argv.log"] {
        fs::remove_file(dir.0.join(name)).unwrap();
    }
    ends(crust(&dir).args(dump).arg("--no-default-config").env("CRIU_CONFIG_FILE", "missing"));
    assert!(!log("home.log"));

    fs::write(&home, "nonsense\n").unwrap();
    assert_eq!(ends(crust(&dir).arg("--version")).0, 1, "a broken file is told even to --version");
    assert_eq!(ends(crust(&dir).arg("--help")).0, 0);
    assert_eq!(ends(crust(&dir).args(["--no-default-config", "--version"])).0, 0);
    fs::write(&home, "version\n").unwrap();
    assert_eq!(ends(crust(&dir).arg("dump")).1, "Version: 4.2\n");
    fs::write(&home, "log-file \"never closed\n").unwrap();
    let (code, _, err) = ends(crust(&dir).arg("check"));
    assert_eq!(code, 1);
    assert!(err.contains("line 1"), "{err}");
}

#[test]
fn wrong_directories_are_told_and_nothing_is_changed() {
    let dir = Dir::new("dirs");
    fs::write(dir.0.join("file"), "x").unwrap();
    for verb in ["dump", "restore"] {
        for images in ["missing", "file", "missing/deeper"] {
            let (code, _, err) = ends(crust(&dir).args([verb, "-t", "999999999", "-D", images]));
            assert_eq!(code, 1);
            assert!(err.contains(images) && err.contains("help:"), "{verb} {images}: {err}");
        }
    }
    let (code, _, err) = ends(crust(&dir).args(["dump", "-t", "999999999", "-D", ".", "-W", "missing"]));
    assert_eq!(code, 1);
    assert!(err.contains("missing"), "{err}");
    let (code, _, err) = ends(crust(&dir).args(["dump", "-t", "999999999", "-D", ".", "-o", "no/such.log"]));
    assert_eq!(code, 1);
    assert!(err.contains("no/such.log"), "{err}");
    let (code, _, err) = ends(crust(&dir).args(["dump", "-t", "999999999", "-D", ".", "-L", "no-plugins"]));
    assert_eq!(code, 1);
    assert!(err.contains("no-plugins"), "{err}");
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1, "only the file that was there");
}

#[test]
fn the_log_file_keeps_its_inode_and_is_private() {
    use std::os::unix::fs::MetadataExt;
    let dir = Dir::new("log");
    let path = dir.0.join("dump.log");
    fs::write(&path, "old\n".repeat(1000)).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    ends(crust(&dir).args(["dump", "-t", "999999999", "-D", ".", "-v4", "-o", "dump.log"]));
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    assert!(!text.contains("old") && text.contains("Error (") && text.starts_with("(00."), "{text}");
    ends(crust(&dir).args(["dump", "-t", "999999999", "-D", ".", "-o", "new.log"]));
    assert_eq!(fs::metadata(dir.0.join("new.log")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn we_do_not_dump_ourselves() {
    let dir = Dir::new("self");
    let me = std::process::id().to_string();
    let (code, _, err) = ends(crust(&dir).args(["dump", "-t", &me, "-D", "."]));
    assert_eq!(code, 1);
    assert!(err.contains("within dumped tree"), "{err}");
}

#[test]
fn a_pid_that_is_not_there_is_told() {
    let dir = Dir::new("pid");
    let (code, _, err) = ends(crust(&dir).args(["dump", "-t", "999999999", "-D", ".", "-o", "dump.log"]));
    assert_eq!(code, 1);
    // Also where people look first, although the log is a file.
    assert!(!err.is_empty() && !fs::read_to_string(dir.0.join("dump.log")).unwrap().is_empty());
    assert!(!dir.0.join("inventory.img").exists());
}

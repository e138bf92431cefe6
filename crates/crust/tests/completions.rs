//! The completions for bash, zsh and fish: each shell, where it is there, reads its script without complaint and completes
//! with it; where it is not, the script is at least well-formed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
mod common;

use common::{CRUST, Dir};
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

/// The script for a shell, in a file that has the name the shell looks for.
fn script(dir: &Dir, shell: &str) -> (String, String) {
    let output = Command::new(CRUST).args(["help-completion", shell]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let path = dir.path(if shell == "fish" { "crust.fish" } else { "_crust" });
    fs::write(&path, &text).unwrap();
    (text, path.display().to_string())
}

/// Runs `program` in a shell without its user's settings. None where there is no such shell.
fn shell(dir: &Dir, name: &str, args: &[&str], program: &str) -> Option<String> {
    let mut command = Command::new(name);
    // Whatever it keeps for its user goes with the test.
    command.args(args).env("HOME", &dir.0).env("XDG_DATA_HOME", &dir.0).env("XDG_CONFIG_HOME", &dir.0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            // Past the harness, which keeps what a passing test prints to itself; `.ci/run` lists these lines.
            let line = format!("zoo: skip 1 completions: {name} is not installed\n");
            std::io::stdout().write_all(line.as_bytes()).unwrap();
            return None;
        }
        Err(e) => panic!("{name}: {e}"),
    };
    // It reads all of it before it does anything.
    child.stdin.take().unwrap().write_all(program.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}");
    Some(said)
}

/// What is offered behind words of a command line: each of these must be among it, the last must not.
const CASES: [(&str, &[&str], &str); 4] = [
    ("crust du", &["dump"], "restore"),
    ("crust dump --leave-", &["--leave-running", "--leave-stopped"], "--shell-job"),
    ("criu cpuinfo ", &["dump", "check"], "restore"),
    ("crust image ", &["show", "pack", "unpack", "verify"], "restore"),
];

#[test]
fn bash_completes() {
    let dir = Dir::new("bash");
    let (text, path) = script(&dir, "bash");
    assert!(text.trim_end().ends_with("complete -F _crust crust criu"));
    for (line, wanted, unwanted) in CASES {
        let program = format!(
            "set -u; . {path}; COMP_LINE='{line}'; COMP_WORDS=({line} ); case $COMP_LINE in *' ') COMP_WORDS+=('') ;; esac
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _crust; printf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
        );
        let Some(said) = shell(&dir, "bash", &["--norc", "--noprofile", "-s"], &program) else { return };
        for word in wanted {
            assert!(said.lines().any(|l| l == *word), "{line}: no {word} in {said}");
        }
        assert!(!said.lines().any(|l| l == unwanted), "{line}: {said}");
    }
}

#[test]
fn fish_completes() {
    let dir = Dir::new("fish");
    let (text, path) = script(&dir, "fish");
    // Every line is one call; quotes are closed.
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        assert!(line.starts_with("complete -c crust ") || line.starts_with("complete -c criu "), "{line}");
        let unquoted = line.replace("\\\\", "").replace("\\'", "");
        assert_eq!(unquoted.matches('\'').count() % 2, 0, "{line}");
    }
    for (line, wanted, unwanted) in CASES {
        let program = format!("source {path}; complete -C '{line}'\n");
        let Some(said) = shell(&dir, "fish", &["--no-config"], &program) else { return };
        let offered: Vec<&str> = said.lines().filter_map(|l| l.split('\t').next()).collect();
        for word in wanted {
            assert!(offered.contains(word), "{line}: no {word} in {said}");
        }
        assert!(!offered.contains(&unwanted), "{line}: {said}");
    }
}

#[test]
fn zsh_reads_its_function() {
    let dir = Dir::new("zsh");
    let (text, path) = script(&dir, "zsh");
    assert!(text.starts_with("#compdef crust criu\n"));
    // One call, each specification on a line of its own, quoted, its brackets closed.
    let specs: Vec<&str> = text.lines().filter(|l| l.starts_with("  '")).collect();
    assert!(specs.len() > 100, "{text}");
    for spec in &specs {
        assert_eq!(spec.replace("'\\''", "").matches('\'').count(), 2, "{spec}");
        let bare = spec.replace("\\[", "").replace("\\]", "");
        assert_eq!(bare.matches('[').count(), bare.matches(']').count(), "{spec}");
    }
    let Some(said) = shell(&dir, "zsh", &["-f", "-n", &path], "") else { return };
    assert_eq!(said, "");
    // `_arguments` itself says whether it understands each specification; outside of a completion it can only be asked to
    // read them. So the function is loaded as compinit loads it, and its head is.
    let program = format!(
        "fpath=({} $fpath); autoload -Uz compinit; compinit -u -D; print -r -- $_comps[criu]\n",
        dir.0.display()
    );
    let said = shell(&dir, "zsh", &["-f"], &program).unwrap_or_default();
    assert_eq!(said.trim(), "_crust");
}

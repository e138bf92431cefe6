//! Developer commands: `cargo xtask check` is what CI runs before the tests; `cargo xtask tidy` is its quick half.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command for people")]
mod install;
#[cfg(test)]
mod install_tests;
mod tidy;

use install::{Places, VARIABLES};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const HELP: &str = "cargo xtask COMMAND
  check            formatting, tidy, clippy, documentation: all that CI asks for before the tests
  tidy             the rules of ARCHITECTURE.md that no other tool knows
  install [NAME=VALUE...]    builds and installs binary, units, manual pages, completions and the link `criu`
  uninstall [NAME=VALUE...]  removes what install put there, and only that
                   NAME: DESTDIR, PREFIX (/usr/local), SBINDIR (PREFIX/sbin), SYSTEMDUNITDIR (PREFIX/lib/systemd/system),
                   SYSTEMDUSERUNITDIR (PREFIX/lib/systemd/user)";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let done = match args.next().as_deref() {
        Some("check") => check(),
        Some("tidy") => tidy::run(&root()),
        Some("install") => install(&args.collect::<Vec<_>>()),
        Some("uninstall") => uninstall(&args.collect::<Vec<_>>()),
        _ => Err(HELP.to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace, wherever it was cloned to.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Every step runs even if one fails, so that one look shows all there is to mend.
fn check() -> Result<(), String> {
    let doc = [("RUSTDOCFLAGS", "-D warnings")];
    let steps = [
        ("tidy", tidy::run(&root())),
        ("formatting", cargo(&["fmt", "--all", "--check"], &[])),
        ("clippy", cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])),
        ("documentation", cargo(&["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"], &doc)),
    ];
    let mut bad = String::new();
    for (name, outcome) in steps {
        match outcome {
            Ok(()) => println!("{name}: ok"),
            Err(text) => bad.push_str(&format!("{name}: {text}\n")),
        }
    }
    if bad.is_empty() { Ok(()) } else { Err(bad) }
}

fn cargo(args: &[&str], env: &[(&str, &str)]) -> Result<(), String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).args(args).envs(env.iter().copied()).current_dir(root()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(format!("cargo {} is not content", args[0])),
        Err(e) => Err(format!("cargo: {e}")),
    }
}

/// Places are given as NAME=VALUE behind the command, or in the environment as for make.
fn places(args: &[String]) -> Result<Places, String> {
    let given = |arg: &String| arg.split_once('=').map(|(name, _)| VARIABLES.contains(&name)).unwrap_or(false);
    if let Some(odd) = args.iter().find(|arg| !given(arg)) {
        return Err(format!("{odd}: not understood\n{HELP}"));
    }
    Places::new(|name| {
        let assigned = args.iter().rev().find_map(|arg| arg.strip_prefix(name)?.strip_prefix('='));
        assigned.map(str::to_owned).or_else(|| std::env::var(name).ok())
    })
}

/// The release build, which lies beside the directory of this program wherever cargo was told to build.
fn built() -> Result<PathBuf, String> {
    let me = std::env::current_exe().map_err(|e| format!("this program: {e}"))?;
    let target = me.parent().and_then(Path::parent).ok_or("this program lies nowhere")?;
    Ok(target.join("release/crust"))
}

fn install(args: &[String]) -> Result<(), String> {
    let places = places(args)?;
    cargo(&["build", "--release", "--package", "crust"], &[])?;
    install::install(&root(), &built()?, &places)?;
    if places.destdir == Path::new("/") {
        println!("next: systemctl daemon-reload && systemctl enable --now crust.socket");
    }
    Ok(())
}

fn uninstall(args: &[String]) -> Result<(), String> {
    let places = places(args)?;
    for name in ["crust.socket", "crust.service"] {
        let wanted = Path::new("/etc/systemd/system/sockets.target.wants").join(name);
        if places.destdir == Path::new("/") && wanted.symlink_metadata().is_ok() {
            return Err(format!("{name} is enabled: first `systemctl disable --now {name}`"));
        }
    }
    install::uninstall(&places)
}

//! Developer commands: `cargo xtask check` is what CI runs before the tests; `cargo xtask tidy` is its quick half.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command for people")]
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const HELP: &str = "cargo xtask COMMAND
  check            formatting, tidy, clippy, documentation: all that CI asks for before the tests
  tidy             the rules of ARCHITECTURE.md that no other tool knows
  install [DIR]    the release binary, and its other name `criu`, into DIR/bin (default /usr/local)";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let done = match args.next().as_deref() {
        Some("check") => check(),
        Some("tidy") => tidy::run(&root()),
        Some("install") => install(&args.next().map_or_else(|| PathBuf::from("/usr/local"), PathBuf::from)),
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

fn install(prefix: &Path) -> Result<(), String> {
    cargo(&["build", "--release", "--package", "crust"], &[])?;
    let (bin, built) = (prefix.join("bin"), root().join("target/release/crust"));
    let say = |what: &Path, e: std::io::Error| format!("{}: {e}", what.display());
    std::fs::create_dir_all(&bin).map_err(|e| say(&bin, e))?;
    // A running binary cannot be written over, but its name can be given to another file.
    let (part, whole, link) = (bin.join(".crust.part"), bin.join("crust"), bin.join("criu"));
    std::fs::copy(&built, &part).map_err(|e| say(&built, e))?;
    std::fs::rename(&part, &whole).map_err(|e| say(&whole, e))?;
    println!("installed {}", whole.display());
    match std::os::unix::fs::symlink("crust", &link) {
        Ok(()) => println!("installed {}, a link to it", link.display()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            println!("{} is there already: left alone", link.display())
        }
        Err(e) => return Err(say(&link, e)),
    }
    Ok(())
}

//! The invariants of ARCHITECTURE.md that neither the compiler nor clippy can hold, read off the sources as text.
use std::fs;
use std::path::Path;
use std::process::Command;

/// Files that may run other programs, with the reason.
const MAY_EXEC: [(&str, &str); 13] = [
    ("crates/crust/src/commands.rs", "restore runs the command line it is given (--exec-cmd)"),
    ("crates/crust/src/events.rs", "action scripts, which the user asks for (--action-script)"),
    ("crates/crust/src/rootless.rs", "`crust run` starts the program it is given"),
    ("crates/crust/src/service/worker.rs", "restore runs the command line that the request gives (exec_cmd)"),
    ("crates/crust/src/demo/", "starts the service and a sample program, both of them this binary"),
    ("crates/crust/tests/", "tests"),
    ("crates/engine/tests/", "tests"),
    ("crates/kernel/src/pidfd.rs", "a unit test needs a child"),
    ("crates/rpc/src/client.rs", "a client starts the service it talks to"),
    ("crates/sd-daemon", "tests"),
    ("crates/inject/tests/", "tests"),
    ("zoo/", "the zoo starts programs and tools"),
    ("xtask/", "starts cargo, and asks the built binary for its manual page"),
];

/// Where assembly may be.
const MAY_ASM: [(&str, &str); 5] = [
    ("crates/inject/tests/", "targets that hold every register live while their tracer is killed"),
    ("crates/inject/src/arch/", "the project's only assembly that ships in the tool"),
    ("crates/sd-daemon-capi/src/notifyf.rs", "C's variable arguments"),
    ("zoo/src/i386.rs", "a 32-bit program, for machines without a compiler for such"),
    ("zoo/src/programs/", "programs that hold every register live, or must not touch errno"),
];

/// Crates that stay free of unsafe code.
const NO_UNSAFE: [&str; 2] = ["crates/image/src/lib.rs", "crates/rpc/src/lib.rs"];

/// What every room of the engine may import; the journeys (dump, restore, check) import the rooms, never the reverse.
/// Of other rooms only these: the task being looked at, the search for an instruction that restore needs twice, and the
/// trait by which memory asks the files for a record without knowing them.
const SHARED: [&str; 14] = [
    "error",
    "events",
    "fault",
    "images",
    "options",
    "plugins",
    "task::Target",
    "task::regs",
    "memory::FileIds",
    "memory::PageCount",
    "Error",
    "Kind",
    "Result",
    "Stage",
];

/// Files of the engine's rooms that belong to the journeys and may import any room.
const JOURNEYS: [&str; 3] = ["crates/engine/src/restore/", "crates/engine/src/dump/", "crates/engine/src/check/"];

/// Kinds of descriptors that may use another kind's module, with the reason.
const KIND_USES: [(&str, &str, &str); 3] = [
    ("fifo", "pipe", "a fifo's content is a pipe's"),
    ("fifo", "regular", "a fifo has a path like a file"),
    ("tun", "regular", "an open device has a path like a file"),
];

/// Checks every file that git tracks.
///
/// # Errors
/// All that is wrong, one a line as `file:line: text`.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output();
    let listed = listed.map_err(|e| format!("git: {e}"))?;
    let mut found = Vec::new();
    let names = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut sources = Vec::new();
    for name in names.split('\0').filter(|n| !n.is_empty()) {
        // A file that is deleted but not committed, or that is no text, has nothing to check.
        let Ok(text) = fs::read_to_string(root.join(name)) else { continue };
        any_file(name, &text, &mut found);
        if name.ends_with(".rs") {
            source(name, &text, &mut found);
            sources.push((name.to_owned(), text));
        }
    }
    rooms(&sources, &mut found);
    zoo(&sources, &mut found);
    if found.is_empty() { Ok(()) } else { Err(format!("\n{}", found.join("\n"))) }
}

/// Rules for text of any kind.
fn any_file(name: &str, text: &str, found: &mut Vec<String>) {
    // Written in two halves, so that this file passes its own rules.
    let unfinished = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX"), concat!("HA", "CK:")];
    let unfinished_code = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("db", "g!(")];
    let places = [concat!("/wo", "rk/"), concat!("/ro", "ot/."), concat!("bash_", "jobs")];
    if name == "Cargo.lock" {
        return;
    }
    for (i, line) in text.lines().enumerate() {
        let mut say = |what: &str| found.push(format!("{name}:{}: {what}", i + 1));
        if unfinished.iter().any(|word| words(line).any(|w| w == word.trim_end_matches(':'))) {
            say("unfinished: finish it or open an issue");
        }
        if name.ends_with(".rs") && unfinished_code.iter().any(|word| line.contains(word)) {
            say("unfinished code");
        }
        if places.iter().any(|place| line.contains(place)) {
            say("names a path of somebody's machine");
        }
        if line.ends_with([' ', '\t']) && !name.ends_with(".md") {
            say("white space at the end");
        }
    }
}

/// Rules for one Rust file.
fn source(name: &str, text: &str, found: &mut Vec<String>) {
    let mut say = |line: usize, what: &str| found.push(format!("{name}:{line}: {what}"));
    if !text.starts_with("//! ") {
        say(1, "starts without a //! line that says what it holds");
    }
    let may = |list: &[(&str, &str)]| list.iter().any(|(place, _)| name.starts_with(place));
    let (exec_ok, asm_ok) = (may(&MAY_EXEC), may(&MAY_ASM));
    for (i, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let exec = ["process::Command", "Command::new(", "execve", "execvp", "SYS_exec", "posix_spawn"];
        if !exec_ok && exec.iter().any(|word| code.contains(word)) {
            say(i + 1, "runs another program: the tool never does (list in xtask/src/tidy.rs)");
        }
        if !asm_ok
            && name != "xtask/src/tidy.rs"
            && ["asm!(", "naked_asm!", "#[naked]"].iter().any(|w| code.contains(w))
        {
            say(i + 1, "assembly belongs below crates/inject/src/arch");
        }
    }
    if NO_UNSAFE.contains(&name) && !text.contains("#![forbid(unsafe_code)]") {
        say(1, "this crate forbids unsafe code");
    }
    if name.starts_with("crates/image/src/") {
        for (i, line) in text.lines().enumerate() {
            if ["use rustix", "use libc", "std::fs", "std::process", "net::Tcp", "net::Udp", "net::Unix"]
                .iter()
                .any(|w| line.contains(w))
            {
                say(i + 1, "the image crate makes no system calls");
            }
        }
    }
}

/// The engine's rooms know the shared modules and themselves; one kind of descriptor does not know another.
fn rooms(sources: &[(String, String)], found: &mut Vec<String>) {
    let below = |name: &str| name.strip_prefix("crates/engine/src/").map(str::to_owned);
    let kinds: Vec<String> = sources
        .iter()
        .filter(|(name, text)| name.starts_with("crates/engine/src/files/") && text.contains("impl FdKind for"))
        .filter_map(|(name, _)| Some(Path::new(name).file_stem()?.to_str()?.to_owned()))
        .collect();
    for (name, text) in sources {
        let Some((room, file)) = below(name).and_then(|n| n.split_once('/').map(|(r, f)| (r.to_owned(), f.to_owned())))
        else {
            continue;
        };
        if JOURNEYS.iter().any(|journey| name.starts_with(journey)) {
            continue;
        }
        let stem = file.trim_end_matches(".rs");
        for (i, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for (at, _) in code.match_indices("crate::") {
                let path = &code[at + "crate::".len()..];
                let first: String = path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let shared =
                    SHARED.iter().any(|s| path.starts_with(s)) || path.starts_with('{') || path.starts_with('$');
                if first != room && !shared && first.chars().next().is_some_and(char::is_lowercase) {
                    found.push(format!("{name}:{}: room {room} imports room {first}", i + 1));
                }
            }
            if let Some(used) = code.trim().strip_prefix("use super::").filter(|_| kinds.iter().any(|k| k == stem)) {
                let other = kinds.iter().find(|k| *k != stem && used.starts_with(&format!("{k}::")));
                let listed = |other: &str| KIND_USES.iter().any(|(a, b, _)| (*a, *b) == (stem, other));
                if let Some(other) = other.filter(|o| !listed(o)) {
                    found.push(format!("{name}:{}: kind {stem} uses kind {other}", i + 1));
                }
            }
        }
    }
}

/// Every zoo program is in the table, or it would never be run.
fn zoo(sources: &[(String, String)], found: &mut Vec<String>) {
    let table = sources.iter().find(|(name, _)| name == "zoo/src/table.rs").map(|(_, text)| text.as_str());
    for (name, _) in sources {
        let program = name.strip_prefix("zoo/src/programs/").and_then(|n| n.strip_suffix(".rs"));
        if let Some(program) = program.filter(|p| *p != "mod")
            && !table.is_some_and(|t| words(t).any(|w| w == program))
        {
            found.push(format!("{name}:1: not in zoo/src/table.rs, so it is never run"));
        }
    }
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty())
}

#[cfg(test)]
mod tests {
    //! Each rule meets text that breaks it and text that does not.
    use super::*;

    fn found(name: &str, text: &str) -> String {
        let mut found = Vec::new();
        any_file(name, text, &mut found);
        if name.ends_with(".rs") {
            source(name, text, &mut found);
            rooms(&[(name.to_owned(), text.to_owned())], &mut found);
        }
        found.join("\n")
    }

    #[test]
    fn clean_text_passes() {
        assert_eq!(found("crates/engine/src/files/x.rs", "//! X.\nuse crate::images::Source;\nfn f() {}\n"), "");
        assert_eq!(found("README.md", "Run `cargo run`.  \n"), "");
    }

    #[test]
    fn each_rule_bites() {
        let engine = "crates/engine/src/files/x.rs";
        for (name, text, says) in [
            (engine, "fn f() {}\n", "starts without"),
            (engine, concat!("//! X.\n// TO", "DO later\n"), "unfinished"),
            (engine, concat!("//! X.\nfn f() { to", "do!() }\n"), "unfinished code"),
            (engine, concat!("//! X.\nconst P: &str = \"/wo", "rk/x\";\n"), "machine"),
            (engine, "//! X.\nfn f() {} \n", "white space"),
            (engine, "//! X.\nuse std::process::Command;\n", "another program"),
            (engine, "//! X.\nstd::arch::asm!(\"nop\");\n", "assembly"),
            (engine, "//! X.\nuse crate::memory::Mm;\n", "imports room memory"),
            ("crates/image/src/lib.rs", "//! X.\n", "forbids unsafe"),
            ("crates/image/src/x.rs", "//! X.\nuse std::fs::File;\n", "no system calls"),
        ] {
            let said = found(name, text);
            assert!(said.contains(says), "{text:?} in {name}: {said:?}");
        }
    }

    #[test]
    fn one_kind_does_not_use_another() {
        let file = |name: &str, text: &str| (format!("crates/engine/src/files/{name}.rs"), text.to_owned());
        let sources = [
            file("a", "//! A.\nuse super::b::look;\nimpl FdKind for A {}\n"),
            file("b", "//! B.\nuse super::table::Records;\nimpl FdKind for B {}\n"),
        ];
        let mut found = Vec::new();
        rooms(&sources, &mut found);
        assert_eq!(found, ["crates/engine/src/files/a.rs:2: kind a uses kind b"]);
    }

    #[test]
    fn a_program_outside_the_table_is_found() {
        let table = ("zoo/src/table.rs".to_owned(), "first listed;".to_owned());
        let program = |name: &str| (format!("zoo/src/programs/{name}.rs"), String::new());
        let mut found = Vec::new();
        zoo(&[table, program("listed"), program("forgotten"), program("mod")], &mut found);
        assert_eq!(found.len(), 1, "{found:?}");
    }
}

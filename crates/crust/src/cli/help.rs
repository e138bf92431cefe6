//! Help and manual page, made from the option table.
use super::options::{Arg, OPTIONS, OptionDef, Scope, Section};
use std::fmt::Write as _;

/// The verbs with what they do.
pub(super) const VERBS: [(&str, &str); 16] = [
    ("dump -t PID", "checkpoint a process tree"),
    ("pre-dump -t PID", "write the memory of a tree that runs on"),
    ("restore", "bring a tree back"),
    ("check", "tell what this kernel offers"),
    ("check --pid PID", "tell what would stop a dump of this tree"),
    ("run -- PROGRAM", "start a program that its user can checkpoint and restore without any privilege"),
    ("service", "serve requests on a socket, also one from systemd"),
    ("swrk FD", "serve the requests of one caller, for libcriu and container engines"),
    ("image show FILE", "print an image file as JSON"),
    ("page-server", "receive pages"),
    ("lazy-pages", "serve pages on demand"),
    ("dedup", "remove pages that a later dump replaces"),
    ("cleanup", "remove what a crashed run left (--dry-run only shows it)"),
    ("cpuinfo dump", "write what this CPU can do"),
    ("cpuinfo check", "compare this CPU with the images"),
    ("demo", "see a program checkpointed and restored"),
];

/// Column where the descriptions start.
const COLUMN: usize = 32;
/// Where they end.
const WIDTH: usize = 100;

/// What follows a mistake.
pub(crate) fn usage(program: &str) -> String {
    let mut text = format!("\nUsage:\n  {program} VERB [OPTIONS]\n\nVerbs:\n");
    verbs(&mut text);
    text.push_str("\nTry -h|--help for more info\n");
    text
}

fn verbs(text: &mut String) {
    for (verb, what) in VERBS {
        entry(text, verb, what);
    }
}

/// The whole help.
pub(crate) fn full(program: &str) -> String {
    let mut text = format!("\nUsage:\n  {program} VERB [OPTIONS]\n\nVerbs:\n");
    verbs(&mut text);
    text.push_str(
        "\nLong options may be shortened as long as they are unique, and most flags take back as --no-FLAG.\n\
         Each long option is also a line of a configuration file, without its dashes.\n",
    );
    for section in Section::ALL {
        let _infallible = writeln!(text, "\n{}:", section.title());
        for def in OPTIONS.iter().filter(|d| d.section == section) {
            entry(&mut text, &names(def, "|"), &described(def));
        }
    }
    text.push_str(
        "\nExit status: 0 success, 1 failure, 255 removed verbs, broken swrk connection, refused by a post-dump script.\n",
    );
    text
}

fn names(def: &OptionDef, between: &str) -> String {
    let short = def.short.map(|c| format!("-{c}{between}")).unwrap_or_else(|| "   ".to_owned());
    let arg = match def.arg {
        Arg::None => String::new(),
        Arg::Required(name) => format!(" {name}"),
        Arg::Optional(name) => format!("[={name}]"),
    };
    format!("{short}--{}{arg}", def.long)
}

fn described(def: &OptionDef) -> String {
    let scope = match def.scope {
        Scope::All | Scope::Both | Scope::Server => "",
        Scope::Dump => " [dump]",
        Scope::Restore => " [restore]",
        Scope::Check => " [check]",
    };
    match def.ignored {
        Some(why) => format!("{}{scope} (changes nothing: {why})", def.help),
        None => format!("{}{scope}", def.help),
    }
}

/// One name with its description beside or below it, wrapped.
fn entry(text: &mut String, name: &str, what: &str) {
    let mut line = format!("  {name}");
    if line.chars().count() + 2 > COLUMN {
        text.push_str(&line);
        text.push('\n');
        line = String::new();
    }
    let _infallible = write!(line, "{:pad$}", "", pad = COLUMN.saturating_sub(line.chars().count()));
    let mut length = COLUMN;
    for word in what.split_whitespace() {
        let width = word.chars().count();
        if length + 1 + width > WIDTH {
            text.push_str(line.trim_end());
            text.push('\n');
            line = " ".repeat(COLUMN);
            length = COLUMN;
        }
        line.push_str(word);
        line.push(' ');
        length += width + 1;
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

/// The manual page crust(8), in man(7) macros.
pub(crate) fn man_page() -> String {
    let mut text = String::from(
        ".TH CRUST 8\n.SH NAME\ncrust \\- checkpoint and restore of process trees\n.SH SYNOPSIS\n.B crust\nVERB [OPTIONS]\n\
         .SH DESCRIPTION\ncrust writes a running process tree to image files and brings it back. It takes the command line, \
         the RPC and the images of CRIU 4.2.\n.SH VERBS\n",
    );
    for (verb, what) in VERBS {
        let _infallible = writeln!(text, ".TP\n.B {}\n{}", roff(verb), roff(what));
    }
    text.push_str(".SH OPTIONS\n");
    for section in Section::ALL {
        let _infallible = writeln!(text, ".SS {}", roff(section.title()));
        for def in OPTIONS.iter().filter(|d| d.section == section) {
            let no = if def.negatable() { format!(", --no-{}", def.long) } else { String::new() };
            let _infallible = writeln!(
                text,
                ".TP\n.B {}\n{}",
                roff(&format!("{}{no}", names(def, ", ").trim())),
                roff(&described(def))
            );
        }
    }
    text.push_str(
        ".SH FILES\n.I /etc/criu/default.conf\nand\n.I ~/.criu/default.conf\nare read first, then the file that\n\
         .B CRIU_CONFIG_FILE\nnames, then\n.BR \\-\\-config ,\nthen the command line. One option stands on each line, \
         without its dashes.\n.SH EXIT STATUS\n0 success; 1 failure; 255 removed verbs, a broken swrk connection, a \
         post-dump script that said no.\n",
    );
    text
}

fn roff(text: &str) -> String {
    text.replace('\\', "\\\\").replace('-', "\\-").replace('\'', "\\(aq")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_told_in_help_and_manual() {
        let (help, man) = (full("crust"), man_page());
        for def in OPTIONS {
            assert!(help.contains(&format!("--{}", def.long)), "{}", def.long);
            assert!(man.contains(&roff(&format!("--{}", def.long))), "{}", def.long);
            assert!(!def.help.is_empty(), "{}", def.long);
        }
        assert!(help.lines().all(|l| l.chars().count() <= WIDTH + 20), "{help}");
    }
}

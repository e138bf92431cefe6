//! GNU `getopt_long` semantics over the option table: unique abbreviations, glued values, options before or after verbs.
//!
//! Own code, because the small libraries differ where CRIU's callers notice: they know no abbreviations (CRIU's tests
//! write `--lib` and `--conf`), and they take the `=` in `-v=4` away.
use super::options::{Arg, OPTIONS, OptionDef};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// One argument, understood.
#[derive(Debug)]
pub(crate) enum Token {
    /// An option of the table.
    Option {
        def: &'static OptionDef,
        /// Given as `--no-X`.
        negated: bool,
        value: Option<OsString>,
    },
    /// A verb, or what follows it.
    Word(OsString),
}

/// Why an argument is no option of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unknown(pub(crate) String);

/// How a long name that was found stands in the table.
type Found = (&'static OptionDef, bool);

/// Finds `name` (without dashes) exactly, or as the only option that starts so.
pub(crate) fn long(name: &str) -> Result<Found, Unknown> {
    let names =
        || OPTIONS.iter().flat_map(|def| [(def, false), (def, true)]).filter(|(def, no)| !no || def.negatable());
    let full = |(def, no): Found| format!("{}{}", if no { "no-" } else { "" }, def.long);
    if let Some(found) = names().find(|&f| full(f) == name) {
        return Ok(found);
    }
    // Options that CRIU lacks must not make its abbreviations ambiguous.
    let mut hits = names().filter(|&(def, no)| !def.ours && full((def, no)).starts_with(name));
    match (hits.next(), hits.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(Unknown(format!("unrecognized option '--{name}'"))),
        (Some(first), Some(second)) => {
            let all: Vec<String> = [first, second].into_iter().chain(hits).map(|f| format!("--{}", full(f))).collect();
            Err(Unknown(format!("option '--{name}' is ambiguous: {}", all.join(" "))))
        }
    }
}

/// Understands `args` (without the program's name) up to the first mistake.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> (Vec<Token>, Result<(), Unknown>) {
    let mut tokens = Vec::new();
    let mut args = args.into_iter();
    let outcome = loop {
        let Some(arg) = args.next() else { break Ok(()) };
        let bytes = arg.as_bytes();
        let step = if bytes == b"--" {
            tokens.extend(args.by_ref().map(Token::Word));
            Ok(())
        } else if let Some(rest) = bytes.strip_prefix(b"--") {
            one_long(rest, &mut args, &mut tokens)
        } else if bytes.len() > 1 && bytes.starts_with(b"-") {
            shorts(bytes.get(1..).unwrap_or_default(), &mut args, &mut tokens)
        } else {
            tokens.push(Token::Word(arg));
            Ok(())
        };
        if step.is_err() {
            break step;
        }
    };
    (tokens, outcome)
}

fn one_long(rest: &[u8], args: &mut impl Iterator<Item = OsString>, tokens: &mut Vec<Token>) -> Result<(), Unknown> {
    let mut parts = rest.splitn(2, |&b| b == b'=');
    let name = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let glued = parts.next().map(|v| OsStr::from_bytes(v).to_os_string());
    let (def, negated) = long(&name)?;
    let value = match (def.arg, negated, glued) {
        (Arg::None, ..) | (_, true, _) if rest.contains(&b'=') => {
            return Err(Unknown(format!("option '--{}' doesn't allow an argument", def.long)));
        }
        (Arg::None, ..) | (_, true, _) => None,
        (Arg::Optional(_), _, glued) => glued,
        (Arg::Required(_), _, Some(value)) => Some(value),
        (Arg::Required(_), _, None) => {
            Some(args.next().ok_or_else(|| Unknown(format!("option '--{}' requires an argument", def.long)))?)
        }
    };
    tokens.push(Token::Option { def, negated, value });
    Ok(())
}

fn shorts(
    mut cluster: &[u8],
    args: &mut impl Iterator<Item = OsString>,
    tokens: &mut Vec<Token>,
) -> Result<(), Unknown> {
    while let Some((&letter, rest)) = cluster.split_first() {
        let letter = char::from(letter);
        let def = OPTIONS
            .iter()
            .find(|def| def.short == Some(letter))
            .ok_or_else(|| Unknown(format!("invalid option -- '{letter}'")))?;
        cluster = rest;
        let value = match def.arg {
            Arg::None => None,
            Arg::Optional(_) if rest.is_empty() => None,
            Arg::Required(_) if rest.is_empty() => {
                Some(args.next().ok_or_else(|| Unknown(format!("option requires an argument -- '{letter}'")))?)
            }
            Arg::Optional(_) | Arg::Required(_) => {
                cluster = &[];
                Some(OsString::from_vec(rest.to_vec()))
            }
        };
        tokens.push(Token::Option { def, negated: false, value });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(args: &[&str]) -> String {
        let (tokens, outcome) = parse(args.iter().map(OsString::from));
        let mut words: Vec<String> = tokens
            .iter()
            .map(|t| match t {
                Token::Word(w) => format!("'{}'", w.to_string_lossy()),
                Token::Option { def, negated, value } => {
                    let no = if *negated { "no-" } else { "" };
                    let value = value.as_ref().map(|v| format!("={}", v.to_string_lossy())).unwrap_or_default();
                    format!("{no}{}{value}", def.long)
                }
            })
            .collect();
        if let Err(Unknown(why)) = outcome {
            words.push(format!("! {why}"));
        }
        words.join(" ")
    }

    #[test]
    fn options_stand_before_or_after_the_verb() {
        assert_eq!(show(&["-t", "5", "dump", "-D", "d"]), "tree=5 'dump' images-dir=d");
        assert_eq!(show(&["dump", "-t5", "--images-dir=d"]), "'dump' tree=5 images-dir=d");
    }

    #[test]
    fn unique_abbreviations_work_and_others_are_named() {
        assert_eq!(show(&["--lib", "x", "--conf", "f", "--tre", "1"]), "libdir=x config=f tree=1");
        assert_eq!(show(&["--h"]), "help");
        assert!(show(&["--v"]).contains("! option '--v' is ambiguous: "), "{}", show(&["--v"]));
        assert_eq!(show(&["--tls"]), "tls");
        assert_eq!(show(&["--pid", "f"]), "pid=f");
        assert_eq!(show(&["--pi", "f"]), "pidfile=f");
    }

    #[test]
    fn optional_values_are_only_glued() {
        assert_eq!(show(&["-v", "dump"]), "verbosity 'dump'");
        assert_eq!(show(&["-v4", "-vvv", "--verbosity=1"]), "verbosity=4 verbosity=vv verbosity=1");
        assert_eq!(show(&["-verbosity=0"]), "verbosity=erbosity=0");
        assert_eq!(show(&["--manage-cgroups", "full"]), "manage-cgroups 'full'");
        assert_eq!(show(&["-x1,2", "--cpu-cap=none"]), "ext-unix-sk=1,2 cpu-cap=none");
    }

    #[test]
    fn negations_are_for_flags_only() {
        assert_eq!(show(&["--no-tcp-established"]), "no-tcp-established");
        assert_eq!(show(&["--no-leave-running"]), "! unrecognized option '--no-leave-running'");
        assert_eq!(show(&["--no-default-config"]), "no-default-config");
    }

    #[test]
    fn clusters_and_the_end_of_options() {
        assert_eq!(
            show(&["-jld", "restore", "--", "-t", "x"]),
            "shell-job file-locks restore-detached 'restore' '-t' 'x'"
        );
        assert_eq!(show(&["-djD", "dir"]), "restore-detached shell-job images-dir=dir");
        assert_eq!(show(&["-"]), "'-'");
    }

    #[test]
    fn mistakes_are_told() {
        assert_eq!(show(&["--tree"]), "! option '--tree' requires an argument");
        assert_eq!(show(&["--shell-job=1"]), "! option '--shell-job' doesn't allow an argument");
        assert_eq!(show(&["-q"]), "! invalid option -- 'q'");
        assert_eq!(show(&["dump", "--nonsense"]), "'dump' ! unrecognized option '--nonsense'");
    }
}

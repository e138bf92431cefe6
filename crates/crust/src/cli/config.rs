//! Configuration files: CRIU's syntax, one option per line without its dashes, turned into arguments.
use super::getopt::{self, Token, Unknown};
use super::options::Arg;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Where every run looks first.
pub(crate) const GLOBAL: &str = "/etc/criu/default.conf";
/// Below `$HOME`.
pub(crate) const USER: &str = ".criu/default.conf";
/// Environment variable that names one more file.
pub(crate) const ENVIRONMENT: &str = "CRIU_CONFIG_FILE";

/// Why a file cannot be used.
#[derive(Debug)]
pub(crate) enum BadFile {
    /// Not even a line could be made of it: CRIU's service gives no reply then.
    Syntax(String),
    /// A line names no option.
    Option(String),
}

impl BadFile {
    /// The text for people.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Syntax(text) | Self::Option(text) => text,
        }
    }
}

/// Reads `path`; a file that is not there has no options.
pub(crate) fn read(path: &Path) -> Result<Vec<Token>, BadFile> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        // Under another user's HOME there is nothing for us.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            log::info!("configuration file {} cannot be read and is ignored: {e}", path.display());
            return Ok(Vec::new());
        }
        Err(e) => {
            log::warn!("configuration file {} cannot be read and is ignored: {e}", path.display());
            return Ok(Vec::new());
        }
    };
    log::debug!("Parsing config file {}", path.display());
    parse(&bytes).map_err(|e| match e {
        BadFile::Syntax(text) => BadFile::Syntax(format!("{}: {text}", path.display())),
        BadFile::Option(text) => BadFile::Option(format!("{}: {text}", path.display())),
    })
}

/// The options in the text of a file.
pub(crate) fn parse(text: &[u8]) -> Result<Vec<Token>, BadFile> {
    let mut tokens = Vec::new();
    for (number, line) in text.split(|&b| b == b'\n').enumerate() {
        let number = number + 1;
        let words = split(line)
            .map_err(|what| BadFile::Syntax(format!("line {number}: unsupported configuration file format: {what}")))?;
        let Some((key, value)) = words else { continue };
        let (mut found, outcome) = understand(key, value);
        outcome.map_err(|Unknown(what)| BadFile::Option(format!("line {number}: {what}")))?;
        tokens.append(&mut found);
    }
    Ok(tokens)
}

fn understand(key: OsString, value: Option<OsString>) -> (Vec<Token>, Result<(), Unknown>) {
    let name = key.to_string_lossy().into_owned();
    let mut dashed = OsString::from("--");
    dashed.push(&key);
    let mut args = vec![dashed];
    if let Some(value) = value {
        // `verbosity 4`: on the command line only `=` would bind the value.
        match getopt::long(&name) {
            Ok((def, false)) if matches!(def.arg, Arg::Optional(_)) => {
                if let Some(first) = args.first_mut() {
                    first.push("=");
                    first.push(value);
                }
            }
            // A flag with a value is tolerated, as in CRIU.
            Ok((def, negated)) if negated || matches!(def.arg, Arg::None) => {}
            _ => args.push(value),
        }
    }
    let (mut tokens, outcome) = getopt::parse(args);
    tokens.retain(|t| matches!(t, Token::Option { .. }));
    (tokens, outcome)
}

type Words = Option<(OsString, Option<OsString>)>;

/// Key and value of one line; `None` for an empty line or a comment.
fn split(line: &[u8]) -> Result<Words, &'static str> {
    let line = line.trim_ascii();
    if line.is_empty() || line.starts_with(b"#") {
        return Ok(None);
    }
    let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    let (key, rest) = line.split_at(end);
    let rest = rest.trim_ascii_start();
    let value = match rest.first() {
        None | Some(b'#') => None,
        Some(b'"') => Some(quoted(rest.get(1..).unwrap_or_default())?),
        Some(_) => {
            let end = rest.iter().position(|b| b.is_ascii_whitespace() || *b == b'#').unwrap_or(rest.len());
            let (value, after) = rest.split_at(end);
            only_comment(after)?;
            Some(unescape(value))
        }
    };
    Ok(Some((OsStr::from_bytes(key).to_os_string(), value)))
}

/// What stands before the closing quote of `text`, whose opening quote is gone already.
fn quoted(text: &[u8]) -> Result<OsString, &'static str> {
    let mut escaped = false;
    let end = text
        .iter()
        .position(|&b| {
            let closing = b == b'"' && !escaped;
            escaped = b == b'\\';
            closing
        })
        .ok_or("a quote is not closed")?;
    let (value, after) = text.split_at(end);
    only_comment(after.get(1..).unwrap_or_default())?;
    Ok(unescape(value))
}

fn only_comment(rest: &[u8]) -> Result<(), &'static str> {
    match rest.trim_ascii_start().first() {
        None | Some(b'#') => Ok(()),
        Some(_) => Err("more than one value"),
    }
}

/// `\"` stands for a quote; every other backslash for itself.
fn unescape(value: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(value.len());
    for (i, &b) in value.iter().enumerate() {
        if !(b == b'\\' && value.get(i + 1) == Some(&b'"')) {
            out.push(b);
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        match parse(text.as_bytes()) {
            Err(BadFile::Syntax(why)) => format!("syntax: {why}"),
            Err(BadFile::Option(why)) => format!("option: {why}"),
            Ok(tokens) => {
                let texts: Vec<String> = tokens
                    .into_iter()
                    .map(|t| match t {
                        Token::Option { def, value, negated } => format!(
                            "{}{}{}",
                            if negated { "no-" } else { "" },
                            def.long,
                            value.map(|v| format!("={}", v.to_string_lossy())).unwrap_or_default()
                        ),
                        Token::Word(_) => "word".to_owned(),
                    })
                    .collect();
                texts.join(" ")
            }
        }
    }

    #[test]
    fn keys_values_comments_and_quotes() {
        let text = "# comment\n\n  tcp-close\nverbosity 4\nlog-file=a.log\nlog-file b.log # note\n\twork-dir\t/w  \n";
        assert_eq!(show(text), "tcp-close verbosity=4 log-file=a.log log-file=b.log work-dir=/w");
        assert_eq!(show("lsm-profile \"selinux:a b\" # c"), "lsm-profile=selinux:a b");
        assert_eq!(show(r#"cgroup-props "say \"hi\"""#), r#"cgroup-props=say "hi""#);
        assert_eq!(show("root \"\""), "root=");
        assert_eq!(show("tcp-close yes\nno-tcp-close # x"), "tcp-close no-tcp-close");
        assert_eq!(show("verbosity=4 "), "verbosity=4");
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        assert_eq!(show("tcp-close\n--tcp-close"), "option: line 2: unrecognized option '----tcp-close'");
        assert!(show("root \"a").starts_with("syntax: line 1"), "{}", show("root \"a"));
        assert!(show("root \"").starts_with("syntax"));
        assert!(show("root a b").starts_with("syntax"));
        assert!(show("root \"a\" b").starts_with("syntax"));
        assert!(show("nonsense 1").starts_with("option: line 1"));
        assert!(show("tree").contains("requires an argument"));
    }

    #[test]
    fn any_bytes_give_an_answer() {
        for seed in 0u32..2000 {
            let mut x = seed.wrapping_mul(2_654_435_761) | 1;
            let bytes: Vec<u8> = (0..seed % 60)
                .map(|_| {
                    x ^= x << 13;
                    x ^= x >> 17;
                    x ^= x << 5;
                    *b"root\"\\# \n\ttcp=-x\xff".get((x % 17) as usize).unwrap()
                })
                .collect();
            let _any = parse(&bytes);
        }
    }
}

//! A small JSON reader and writer. Objects keep their order, integers keep 64 bits, and the text is written the way
//! Python's json module does it, because crit's output is what scripts compare with.
use crate::{Error, Result};
use std::fmt::Write;

/// Deeper nesting than any image has; keeps the reader's stack small.
const MAX_DEPTH: usize = 128;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number without fraction and exponent. Wide enough for u64 and i64.
    Int(i128),
    /// Any other number.
    Float(f64),
    /// Text.
    Str(String),
    /// A list.
    Array(Vec<Json>),
    /// Members in order. Of two with one name, the last counts.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// A member of an object.
    pub fn get(&self, name: &str) -> Option<&Json> {
        match self {
            Self::Object(members) => members.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(s) => Some(s),
            _ => None,
        }
    }

    /// The value of an integer that fits.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Int(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The value of a bool.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// The items of a list.
    pub fn as_array(&self) -> Option<&[Json]> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The members of an object.
    pub fn as_object(&self) -> Option<&[(String, Json)]> {
        match self {
            Self::Object(members) => Some(members),
            _ => None,
        }
    }

    /// On one line, as Python's `json.dumps(value)`.
    pub fn to_line(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, None, 0);
        out
    }

    /// On many lines, as Python's `json.dumps(value, indent=4)`.
    pub fn to_pretty(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, Some(4), 0);
        out
    }

    /// Appends the value as it stands `depth` levels inside of another.
    pub(crate) fn write(&self, out: &mut String, indent: Option<usize>, depth: usize) {
        fn newline(out: &mut String, indent: Option<usize>, depth: usize) {
            if let Some(width) = indent {
                out.push('\n');
                let mut left = width * depth;
                while left > 0 {
                    let now = left.min(BLANKS.len());
                    out.push_str(BLANKS.get(..now).unwrap_or_default());
                    left -= now;
                }
            }
        }
        let comma = if indent.is_some() { "," } else { ", " };
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            // Numbers of 64 bits are printed several times as fast as those of 128.
            Self::Int(n) => match (u64::try_from(*n), i64::try_from(*n)) {
                (Ok(n), _) => push(out, format_args!("{n}")),
                (_, Ok(n)) => push(out, format_args!("{n}")),
                _ => push(out, format_args!("{n}")),
            },
            Self::Float(x) if x.is_nan() => out.push_str("NaN"),
            Self::Float(x) if x.is_infinite() => out.push_str(if *x > 0.0 { "Infinity" } else { "-Infinity" }),
            Self::Float(x) => push(out, format_args!("{x:?}")),
            Self::Str(s) => quote(out, s),
            Self::Array(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push_str(comma);
                    }
                    newline(out, indent, depth + 1);
                    item.write(out, indent, depth + 1);
                }
                if !items.is_empty() {
                    newline(out, indent, depth);
                }
                out.push(']');
            }
            Self::Object(members) => {
                out.push('{');
                for (at, (name, value)) in members.iter().enumerate() {
                    if at > 0 {
                        out.push_str(comma);
                    }
                    newline(out, indent, depth + 1);
                    quote(out, name);
                    out.push_str(": ");
                    value.write(out, indent, depth + 1);
                }
                if !members.is_empty() {
                    newline(out, indent, depth);
                }
                out.push('}');
            }
        }
    }

    /// Reads one value; nothing but white space may follow. `file` is for errors.
    ///
    /// # Errors
    /// With line and column of what is not JSON.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let mut p = Parser { file, text, at: 0 };
        let value = p.value(0)?;
        p.space();
        if p.at < text.len() { Err(p.error("nothing more")) } else { Ok(value) }
    }
}

fn push(out: &mut String, args: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let done = out.write_fmt(args);
    debug_assert!(done.is_ok());
}

/// As Python does it with ensure_ascii.
const BLANKS: &str = "                                                                ";

fn quote(out: &mut String, s: &str) {
    out.push('"');
    let mut rest = s;
    loop {
        // Most text is plain from one end to the other.
        let plain =
            rest.bytes().position(|b| !matches!(b, b' '..=b'~') || b == b'"' || b == b'\\').unwrap_or(rest.len());
        let (now, after) = rest.split_at_checked(plain).unwrap_or((rest, ""));
        out.push_str(now);
        let mut chars = after.chars();
        let Some(c) = chars.next() else { break };
        rest = chars.as_str();
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    push(out, format_args!("\\u{unit:04x}"));
                }
            }
        }
    }
    out.push('"');
}

struct Parser<'a> {
    file: &'a str,
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn error(&self, wanted: &str) -> Error {
        let before = self.text.get(..self.at).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.len() - before.rfind('\n').map_or(0, |n| n + 1) + 1;
        let found = match self.text.get(self.at..).and_then(|t| t.chars().next()) {
            Some(c) => format!("found {c:?}"),
            None => "the text ends".to_owned(),
        };
        Error::text(self.file, format!("line {line}, column {column}: {wanted} expected, but {found}"))
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, what: &str) -> bool {
        let is = self.text.as_bytes().get(self.at..).is_some_and(|t| t.starts_with(what.as_bytes()));
        if is {
            self.at += what.len();
        }
        is
    }

    fn value(&mut self, depth: usize) -> Result<Json> {
        if depth > MAX_DEPTH {
            return Err(self.error("less nesting"));
        }
        self.space();
        match self.peek() {
            Some(b'{') => {
                self.at += 1;
                let mut members = Vec::new();
                self.space();
                if self.eat("}") {
                    return Ok(Json::Object(members));
                }
                loop {
                    self.space();
                    if self.peek() != Some(b'"') {
                        return Err(self.error("a member's name"));
                    }
                    let name = self.string()?;
                    self.space();
                    if !self.eat(":") {
                        return Err(self.error("a colon"));
                    }
                    members.push((name, self.value(depth + 1)?));
                    self.space();
                    if self.eat("}") {
                        return Ok(Json::Object(members));
                    }
                    if !self.eat(",") {
                        return Err(self.error("a comma or a closing brace"));
                    }
                }
            }
            Some(b'[') => {
                self.at += 1;
                let mut items = Vec::new();
                self.space();
                if self.eat("]") {
                    return Ok(Json::Array(items));
                }
                loop {
                    items.push(self.value(depth + 1)?);
                    self.space();
                    if self.eat("]") {
                        return Ok(Json::Array(items));
                    }
                    if !self.eat(",") {
                        return Err(self.error("a comma or a closing bracket"));
                    }
                }
            }
            Some(b'"') => self.string().map(Json::Str),
            // Python reads and writes these three.
            _ if self.eat("NaN") => Ok(Json::Float(f64::NAN)),
            _ if self.eat("Infinity") => Ok(Json::Float(f64::INFINITY)),
            _ if self.eat("-Infinity") => Ok(Json::Float(f64::NEG_INFINITY)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ if self.eat("true") => Ok(Json::Bool(true)),
            _ if self.eat("false") => Ok(Json::Bool(false)),
            _ if self.eat("null") => Ok(Json::Null),
            _ => Err(self.error("a value")),
        }
    }

    fn number(&mut self) -> Result<Json> {
        let start = self.at;
        while matches!(self.peek(), Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) {
            self.at += 1;
        }
        let text = self.text.get(start..self.at).unwrap_or_default();
        let value = match text.parse::<i128>() {
            Ok(n) => Some(Json::Int(n)),
            Err(_) => text.parse().ok().filter(|x: &f64| x.is_finite()).map(Json::Float),
        };
        value.ok_or_else(|| {
            self.at = start;
            self.error("a number")
        })
    }

    fn string(&mut self) -> Result<String> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            let Some(stop) = rest.find(['"', '\\']) else {
                self.at = self.text.len();
                return Err(self.error("a closing quote"));
            };
            out.push_str(rest.get(..stop).unwrap_or_default());
            self.at += stop + 1;
            if rest.as_bytes().get(stop) == Some(&b'"') {
                return Ok(out);
            }
            let escape = self.peek();
            self.at += 1;
            out.push(match escape {
                Some(b'"') => '"',
                Some(b'\\') => '\\',
                Some(b'/') => '/',
                Some(b'n') => '\n',
                Some(b'r') => '\r',
                Some(b't') => '\t',
                Some(b'b') => '\u{8}',
                Some(b'f') => '\u{c}',
                Some(b'u') => self.unicode()?,
                _ => {
                    self.at -= 1;
                    return Err(self.error("an escape"));
                }
            });
        }
    }

    fn unicode(&mut self) -> Result<char> {
        let first = self.hex4()?;
        let code = match first {
            0xd800..=0xdbff => {
                if !self.eat("\\u") {
                    return Err(self.error("the second half of a surrogate pair"));
                }
                let second = self.hex4()?;
                if !(0xdc00..=0xdfff).contains(&second) {
                    return Err(self.error("the second half of a surrogate pair"));
                }
                0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)
            }
            _ => first,
        };
        char::from_u32(code).ok_or_else(|| self.error("a character"))
    }

    fn hex4(&mut self) -> Result<u32> {
        let digits = self.text.get(self.at..self.at + 4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        match digits.and_then(|d| u32::from_str_radix(d, 16).ok()) {
            Some(n) => {
                self.at += 4;
                Ok(n)
            }
            None => Err(self.error("four hexadecimal digits")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_as_python_does() -> Result<()> {
        let text = r#"{"a": [1, -2, 18446744073709551615], "b": {}, "c": [], "d": "\u00e9\ud83d\ude00\n\"", "e": null, "f": true, "g": 1.5}"#;
        let value = Json::parse("t", text)?;
        assert_eq!(value.to_line(), text);
        assert_eq!(value.get("d").and_then(Json::as_str), Some("é😀\n\""));
        assert_eq!(
            Json::parse("t", r#"{"a":[1,{}]}"#)?.to_pretty(),
            "{\n    \"a\": [\n        1,\n        {}\n    ]\n}"
        );
        Ok(())
    }

    #[test]
    fn refuses_with_the_place() {
        for (text, said) in [
            ("{\n \"a\" 1}", "line 2, column 6: a colon expected, but found '1'"),
            ("[1", "line 1, column 3: a comma or a closing bracket expected, but the text ends"),
            ("\"\\ud800x\"", "line 1, column 8: the second half of a surrogate pair expected, but found 'x'"),
            ("\"é\\u00é0\"", "four hexadecimal digits"),
            ("--1", "a number expected"),
            ("1e999", "a number expected"),
            ("1 2", "nothing more expected"),
        ] {
            let e = Json::parse("t", text).unwrap_err().to_string();
            assert!(e.contains(said), "{text}: {e}");
        }
        assert!(Json::parse("t", &"[".repeat(100_000)).is_err());
    }
}

//! How bytes become text and back: base64 in lines, quoted-printable, addresses, device numbers. All as Python writes them,
//! because crit's JSON carries them that way.
use std::net::{Ipv4Addr, Ipv6Addr};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 in lines of 76 characters, each with its newline.
pub(crate) fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(57) * 77);
    for line in bytes.chunks(57) {
        for three in line.chunks(3) {
            let mut word = 0_usize;
            for at in 0..3 {
                word = word << 8 | usize::from(three.get(at).copied().unwrap_or(0));
            }
            for digit in 0..4 {
                let c = ALPHABET.get(word >> (18 - 6 * digit) & 63).copied().unwrap_or(b'A');
                out.push(if digit > three.len() { '=' } else { char::from(c) });
            }
        }
        out.push('\n');
    }
    out
}

/// The bytes of base64 text, white space ignored; `None` if it is none.
pub(crate) fn unbase64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut word, mut digits, mut padding) = (0_u32, 0, 0);
    for c in text.bytes().filter(|c| !c.is_ascii_whitespace()) {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => {
                padding += 1;
                continue;
            }
            _ => return None,
        };
        if padding > 0 {
            return None;
        }
        word = word << 6 | u32::from(value);
        digits += 1;
        if digits == 4 {
            out.extend_from_slice(&word.to_be_bytes()[1..]);
            (word, digits) = (0, 0);
        }
    }
    match (digits, padding) {
        (0, 0) => {}
        (2, 2) => out.push((word >> 4) as u8),
        (3, 1) => out.extend_from_slice(&((word >> 2) as u16).to_be_bytes()),
        _ => return None,
    }
    Some(out)
}

/// Longest line of quoted-printable text.
const QUOTED_LINE: usize = 76;

/// Quoted-printable, the choices left open by RFC 1521 made as Python's binascii makes them.
pub(crate) fn quoted(bytes: &[u8]) -> String {
    let first_newline = bytes.iter().position(|&c| c == b'\n');
    let crlf = first_newline.is_some_and(|at| at > 0 && bytes.get(at - 1) == Some(&b'\r'));
    let newline = if crlf { "\r\n" } else { "\n" };
    let mut out = String::new();
    let (mut at, mut line) = (0, 0);
    while let Some(&c) = bytes.get(at) {
        let next = bytes.get(at + 1).copied();
        let is_last = next.is_none();
        let lone_dot = c == b'.' && line == 0 && matches!(next, None | Some(b'\n' | b'\r' | 0));
        let control = c < 33 && !matches!(c, b'\r' | b'\n' | b'\t' | b' ');
        let blank_at_end = matches!(c, b'\t' | b' ') && is_last;
        if c > 126 || c == b'=' || lone_dot || control || blank_at_end {
            if line + 3 >= QUOTED_LINE {
                out.push('=');
                out.push_str(newline);
                line = 0;
            }
            out.push_str(&format!("={c:02X}"));
            line += 3;
            at += 1;
        } else if c == b'\n' || c == b'\r' && next == Some(b'\n') {
            line = 0;
            // Blanks at the end of a line would be lost on the way.
            if let Some(blank) = out.pop_if_blank() {
                out.push_str(&format!("={:02X}", blank as u32));
            }
            out.push_str(newline);
            at += if c == b'\r' { 2 } else { 1 };
        } else {
            if !is_last && next != Some(b'\n') && line + 1 >= QUOTED_LINE {
                out.push('=');
                out.push_str(newline);
                line = 0;
            }
            line += 1;
            out.push(char::from(c));
            at += 1;
        }
    }
    out
}

trait PopIfBlank {
    fn pop_if_blank(&mut self) -> Option<char>;
}

impl PopIfBlank for String {
    fn pop_if_blank(&mut self) -> Option<char> {
        self.ends_with([' ', '\t']).then(|| self.pop()).flatten()
    }
}

/// The bytes of quoted-printable text. What is no escape stands for itself.
pub(crate) fn unquoted(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let hex = |at: usize| bytes.get(at).and_then(|&c| char::from(c).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&c) = bytes.get(at) {
        match (c, bytes.get(at + 1), hex(at + 1), hex(at + 2)) {
            (b'=', Some(b'\n'), ..) => at += 2,
            (b'=', Some(b'\r'), ..) if bytes.get(at + 2) == Some(&b'\n') => at += 3,
            (b'=', _, Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                at += 3;
            }
            _ => {
                out.push(c);
                at += 1;
            }
        }
    }
    out
}

/// An address from its words in network order: one for IPv4, four for IPv6.
pub(crate) fn ip(words: &[u32]) -> Option<String> {
    match *words {
        [v4] => Some(Ipv4Addr::from(v4.to_le_bytes()).to_string()),
        [a, b, c, d] => {
            let mut groups = [0_u16; 8];
            for (at, word) in [a, b, c, d].into_iter().enumerate() {
                let [w, x, y, z] = word.to_le_bytes();
                groups[at * 2] = u16::from_be_bytes([w, x]);
                groups[at * 2 + 1] = u16::from_be_bytes([y, z]);
            }
            Some(ip6(&groups))
        }
        _ => None,
    }
}

/// Compressed, and always in hexadecimal: Rust would write `::ffff:127.0.0.1`, Python does not.
fn ip6(groups: &[u16; 8]) -> String {
    let (mut best_at, mut best_len, mut len) = (0, 1, 0);
    for (at, &group) in groups.iter().enumerate() {
        len = if group == 0 { len + 1 } else { 0 };
        if len > best_len {
            (best_at, best_len) = (at + 1 - len, len);
        }
    }
    let join = |part: &[u16]| part.iter().map(|g| format!("{g:x}")).collect::<Vec<_>>().join(":");
    if best_len < 2 {
        return join(groups);
    }
    let (left, right) = (groups.get(..best_at), groups.get(best_at + best_len..));
    format!("{}::{}", join(left.unwrap_or_default()), join(right.unwrap_or_default()))
}

/// The words of an address.
pub(crate) fn unip(text: &str) -> Option<Vec<u32>> {
    if let Ok(v4) = text.parse::<Ipv4Addr>() {
        return Some(vec![u32::from_le_bytes(v4.octets())]);
    }
    let octets = text.parse::<Ipv6Addr>().ok()?.octets();
    Some(octets.chunks(4).map(|c| c.iter().rev().fold(0, |word, &b| word << 8 | u32::from(b))).collect())
}

/// A device number: `major:minor`. `old` is the encoding of stat(2), else the kernel's own.
pub(crate) fn dev(value: u64, old: bool) -> String {
    let (major, minor) = if old {
        (value >> 8 & 0xfff | value >> 32 & !0xfff, value & 0xff | value >> 12 & 0xffff_ff00)
    } else {
        (value >> 20, value & 0xf_ffff)
    };
    format!("{major}:{minor}")
}

/// A device number from `major:minor`.
pub(crate) fn undev(text: &str, old: bool) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    let (major, minor): (u64, u64) = (major.trim().parse().ok()?, minor.trim().parse().ok()?);
    if major > u64::from(u32::MAX) || minor > u64::from(u32::MAX) {
        return None;
    }
    Some(if old {
        (major & 0xfff) << 8 | (major & !0xfff) << 32 | minor & 0xff | (minor & !0xff) << 12
    } else {
        major << 20 | minor
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_python() {
        assert_eq!(base64(b""), "");
        assert_eq!(base64(b"a"), "YQ==\n");
        assert_eq!(base64(b"ab"), "YWI=\n");
        assert_eq!(base64(&[0xff; 58]).lines().map(str::len).collect::<Vec<_>>(), [76, 4]);
        for len in 0..200 {
            let bytes: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
            assert_eq!(unbase64(&base64(&bytes)), Some(bytes));
        }
        for bad in ["Y", "YQ", "YQ=", "YQ==YQ==", "Y?==", "===="] {
            assert_eq!(unbase64(bad), None, "{bad}");
        }
    }

    #[test]
    fn quoted_as_python() {
        // Right sides are what Python 3.11's quopri.encodestring gave.
        for (bytes, text) in [
            (&b"\0/tmp/.X11-unix/X0"[..], "=00/tmp/.X11-unix/X0"),
            (b"a=b c\xff", "a=3Db c=FF"),
            (b".", "=2E"),
            (b"end ", "end=20"),
            (b"end \nx", "end=20\nx"),
            (b"a\r\nb", "a\r\nb"),
        ] {
            assert_eq!(quoted(bytes), text);
            assert_eq!(unquoted(text), bytes);
        }
        for c in [b'a', 0xe9] {
            let long = [c; 200];
            assert!(quoted(&long).lines().all(|l| l.len() <= 76));
            assert_eq!(unquoted(&quoted(&long)), long);
        }
    }

    #[test]
    fn addresses_and_devices() {
        for (words, text) in [
            (vec![0x0100_007f], "127.0.0.1"),
            (vec![0; 4], "::"),
            (vec![0, 0, 0, 0x0100_0000], "::1"),
            (vec![0, 0, 0xffff_0000, 0x0100_007f], "::ffff:7f00:1"),
            (vec![0xb80d_0120, 0x0100_0000, 0, 0x0100_0000], "2001:db8:0:1::1"),
        ] {
            assert_eq!(ip(&words).as_deref(), Some(text));
            assert_eq!(unip(text), Some(words));
        }
        assert_eq!(ip(&[1, 2]), None);
        assert_eq!(dev(0x80_0001, false), "8:1");
        assert_eq!(undev("8:1", false), Some(0x80_0001));
        assert_eq!(dev(0x801, true), "8:1");
        assert_eq!(undev("8:300", true), Some(0x8_2c | 0x10_0800));
        assert_eq!(dev(0x10_082c, true), "8:300");
        assert_eq!(undev("8", true), None);
    }
}

//! Numbers as the protocol's environment variables carry them: C's `strtoul` with base 0, plus `0b` and `0o`.
//!
//! The grammar is libsystemd's, quirks included, because the question is what *it* would answer. Measured against it
//! by `tests/differential.rs`.

/// Why a text is no number of the wanted kind; the errno libsystemd has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotANumber {
    /// Not the text of a number.
    Invalid,
    /// A number, but too small or too large.
    Range,
}

impl NotANumber {
    pub(crate) fn errno(self) -> i32 {
        match self {
            NotANumber::Invalid => libc::EINVAL,
            NotANumber::Range => libc::ERANGE,
        }
    }
}

/// Result of reading digits the way `strtoul` does.
struct Scanned {
    negative: bool,
    /// `None`: does not fit 64 bits.
    magnitude: Option<u64>,
}

fn is_c_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

/// Removes the white space that libsystemd itself skips, then a `0b` or `0o` prefix with the base it names (0: by C's
/// own rules). `strtoul` will skip white space and a sign after that again.
fn strip(text: &[u8]) -> (&[u8], u32) {
    let start = text.iter().position(|b| !matches!(b, b' ' | b'\t' | b'\n' | b'\r')).unwrap_or(text.len());
    let text = &text[start..];
    match text {
        [b'0', b'b' | b'B', rest @ ..] => (rest, 2),
        [b'0', b'o' | b'O', rest @ ..] => (rest, 8),
        _ => (text, 0),
    }
}

/// `strtoul`/`strtol` on the whole text: sign and magnitude, or `Invalid` if anything is left over. `limits` are the
/// greatest magnitudes without and with a minus sign.
fn scan(text: &[u8], base: u32, limits: [u64; 2]) -> Result<Scanned, NotANumber> {
    let start = text.iter().position(|b| !is_c_space(*b)).unwrap_or(text.len());
    let (negative, digits) = match &text[start..] {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let (base, digits) = match (base, digits) {
        (0, [b'0', b'x' | b'X', rest @ ..]) => (16, rest),
        (0, [b'0', ..]) => (8, digits),
        (0, _) => (10, digits),
        (base, digits) => (base, digits),
    };
    if digits.is_empty() {
        return Err(NotANumber::Invalid);
    }
    let mut magnitude = Some(0u64);
    for b in digits {
        let Some(d) = char::from(*b).to_digit(base) else {
            // C stops at the first foreign character. An overflow before it is reported first.
            return Err(if magnitude.is_none() { NotANumber::Range } else { NotANumber::Invalid });
        };
        magnitude = magnitude.and_then(|m| m.checked_mul(base.into())).and_then(|m| m.checked_add(d.into()));
        magnitude = magnitude.filter(|m| *m <= limits[usize::from(negative)]);
    }
    Ok(Scanned { negative, magnitude })
}

/// An unsigned number, as libsystemd's parsers of `unsigned long` and `uint64_t` take it.
pub(crate) fn unsigned(text: &[u8]) -> Result<u64, NotANumber> {
    let (text, base) = strip(text);
    let Scanned { negative, magnitude } = scan(text, base, [u64::MAX; 2])?;
    let magnitude = magnitude.ok_or(NotANumber::Range)?;
    // A minus sign is looked for at the first byte only: "\v-1", white space for strtoul but not for libsystemd, wraps.
    match (negative, magnitude) {
        (true, m) if m != 0 && text.first() == Some(&b'-') => Err(NotANumber::Range),
        (true, m) => Ok(m.wrapping_neg()),
        (false, m) => Ok(m),
    }
}

/// A `u32`, as libsystemd's parser of `unsigned` takes it.
pub(crate) fn unsigned32(text: &[u8]) -> Result<u32, NotANumber> {
    u32::try_from(unsigned(text)?).map_err(|_| NotANumber::Range)
}

/// A C `int`.
pub(crate) fn int(text: &[u8]) -> Result<i32, NotANumber> {
    let (text, base) = strip(text);
    let Scanned { negative, magnitude } = scan(text, base, [(1 << 63) - 1, 1 << 63])?;
    let wide = i128::from(magnitude.ok_or(NotANumber::Range)?);
    i32::try_from(if negative { -wide } else { wide }).map_err(|_| NotANumber::Range)
}

/// A process id: greater than zero.
pub(crate) fn pid(text: &[u8]) -> Result<u32, NotANumber> {
    match i32::try_from(unsigned(text)?) {
        Ok(pid) if pid > 0 => Ok(pid.unsigned_abs()),
        _ => Err(NotANumber::Range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_a_number_may_take() {
        for (text, want) in [
            ("5", Ok(5)),
            (" \t\n\r5", Ok(5)),
            ("+5", Ok(5)),
            ("0x1F", Ok(31)),
            ("017", Ok(15)),
            ("0b101", Ok(5)),
            ("0o17", Ok(15)),
            ("0b+101", Ok(5)),
            ("-0", Ok(0)),
            ("-1", Err(NotANumber::Range)),
            ("\u{b}-1", Ok(u64::MAX)),
            ("18446744073709551615", Ok(u64::MAX)),
            ("18446744073709551616", Err(NotANumber::Range)),
            ("18446744073709551616x", Err(NotANumber::Range)),
            ("", Err(NotANumber::Invalid)),
            (" ", Err(NotANumber::Invalid)),
            ("0x", Err(NotANumber::Invalid)),
            ("08", Err(NotANumber::Invalid)),
            ("5 ", Err(NotANumber::Invalid)),
            ("5x", Err(NotANumber::Invalid)),
            ("--5", Err(NotANumber::Invalid)),
        ] {
            assert_eq!(unsigned(text.as_bytes()), want, "{text:?}");
        }
        assert_eq!(int(b"-2147483648"), Ok(i32::MIN));
        assert_eq!(int(b"9223372036854775808x"), Err(NotANumber::Range));
        assert_eq!(int(b"9223372036854775807x"), Err(NotANumber::Invalid));
        assert_eq!(int(b"2147483648"), Err(NotANumber::Range));
        assert_eq!(pid(b"0"), Err(NotANumber::Range));
        assert_eq!(pid(b"2147483648"), Err(NotANumber::Range));
    }
}

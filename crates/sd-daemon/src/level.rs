//! Log levels, and the `<N>` prefixes by which the journal reads them off standard error.
use std::fmt;

/// A syslog level, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// `<0>`: the system is unusable.
    Emergency = 0,
    /// `<1>`: something must be done at once.
    Alert = 1,
    /// `<2>`: critical.
    Critical = 2,
    /// `<3>`: error.
    Error = 3,
    /// `<4>`: warning.
    Warning = 4,
    /// `<5>`: normal, but worth notice.
    Notice = 5,
    /// `<6>`: information.
    Info = 6,
    /// `<7>`: for developers.
    Debug = 7,
}

impl Level {
    /// All eight.
    pub const ALL: [Level; 8] = [
        Level::Emergency,
        Level::Alert,
        Level::Critical,
        Level::Error,
        Level::Warning,
        Level::Notice,
        Level::Info,
        Level::Debug,
    ];

    /// The prefix of a line of this level, `SD_ERR` and the like in C.
    pub const fn prefix(self) -> &'static str {
        match self {
            Level::Emergency => "<0>",
            Level::Alert => "<1>",
            Level::Critical => "<2>",
            Level::Error => "<3>",
            Level::Warning => "<4>",
            Level::Notice => "<5>",
            Level::Info => "<6>",
            Level::Debug => "<7>",
        }
    }

    /// Takes the prefix off a line, if it has one.
    pub fn of_line(line: &str) -> (Option<Level>, &str) {
        Level::ALL
            .into_iter()
            .find_map(|l| line.strip_prefix(l.prefix()).map(|rest| (Some(l), rest)))
            .unwrap_or((None, line))
    }

    /// A message as it belongs on standard error: the prefix before *each* of its lines (the journal reads line by
    /// line, and a line that starts with a prefix of its own is not to be taken for one), and a newline after each.
    pub fn lines(self, message: impl fmt::Display) -> String {
        let message = message.to_string();
        let mut out = String::with_capacity(message.len() + 4);
        for line in message.strip_suffix('\n').unwrap_or(&message).split('\n') {
            out.push_str(self.prefix());
            out.push_str(line);
            out.push('\n');
        }
        out
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.prefix())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_gets_the_prefix() {
        for (n, level) in Level::ALL.into_iter().enumerate() {
            assert_eq!(level.prefix(), format!("<{n}>"));
            assert_eq!(level as usize, n);
        }
        assert_eq!(Level::Error.lines("a\n<7>b\n"), "<3>a\n<3><7>b\n");
        assert_eq!(Level::Info.lines(""), "<6>\n");
        assert_eq!(Level::of_line("<5>x"), (Some(Level::Notice), "x"));
        assert_eq!(Level::of_line("<8>x"), (None, "<8>x"));
    }
}

//! The exit codes that callers of CRIU act on.

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0.
    Good,
    /// 1: every failure that has no code of its own.
    Failure,
    /// 255: removed verbs, a broken `swrk` connection, a dump whose post-dump script said no.
    Minus1,
}

impl Exit {
    /// The number.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Failure => 1,
            Self::Minus1 => 255,
        }
    }
}

//! Errors of this crate: they name file, offset, record and what was expected there.
use std::fmt;

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong with an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// The file ends inside something: what it was, bytes wanted, bytes there.
    Truncated(&'static str, u64, u64),
    /// Another magic number than this kind of image has: expected, found.
    Magic(u32, u32),
    /// No kind of image has this magic number.
    UnknownMagic(u32),
    /// A length above the limit: what it is the length of, found, limit.
    TooLong(&'static str, u64, u64),
    /// A message that protobuf cannot decode as the record expected here.
    Record(&'static str, String),
    /// A record was expected here, but the file ends.
    Missing(&'static str),
    /// Bytes after the last record that belongs here: how many.
    Trailing(u64),
    /// Well-formed, but impossible.
    Impossible(String),
    /// Text given to us (JSON, a file name) that cannot be what it should.
    Text(String),
    /// The place that takes the bytes refused them.
    Write(std::io::ErrorKind, String),
}

/// One thing wrong at one place of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Inner {
    file: String,
    offset: u64,
    record: Option<u64>,
    what: What,
}

impl Error {
    /// `offset` is in bytes from the start of the file; `record` counts from 0.
    pub fn new(file: impl Into<String>, offset: u64, record: Option<u64>, what: What) -> Self {
        Self(Box::new(Inner { file: file.into(), offset, record, what }))
    }

    /// Text that cannot be what it should, where there is no offset to name.
    pub fn text(file: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(file, 0, None, What::Text(what.into()))
    }

    /// The image's file name, or the name of its kind where the reader was not told.
    pub fn file(&self) -> &str {
        &self.0.file
    }

    /// Where, in bytes from the start of the file.
    pub fn offset(&self) -> u64 {
        self.0.offset
    }

    /// Which record, counted from 0; `None` outside of records.
    pub fn record(&self) -> Option<u64> {
        self.0.record
    }

    /// What is wrong.
    pub fn what(&self) -> &What {
        &self.0.what
    }

    /// Puts a better file name in.
    #[must_use]
    pub fn in_file(mut self, file: impl Into<String>) -> Self {
        self.0.file = file.into();
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.file)?;
        if !matches!(self.0.what, What::Text(_)) {
            write!(f, ", byte {}", self.0.offset)?;
        }
        if let Some(record) = self.0.record {
            write!(f, ", record {record}")?;
        }
        match &self.0.what {
            What::Truncated(what, wanted, there) => {
                write!(f, ": the file ends inside {what}: {wanted} bytes expected, {there} there")
            }
            What::Magic(wanted, found) => write!(f, ": magic {wanted:#010x} expected, {found:#010x} found"),
            What::UnknownMagic(found) => write!(f, ": no image of CRIU's starts with magic {found:#010x}"),
            What::TooLong(what, found, limit) => write!(f, ": {what} of {found} bytes, more than the limit of {limit}"),
            What::Record(name, why) => write!(f, ": a {name} record expected, but {why}"),
            What::Missing(what) => write!(f, ": {what} expected, but the file ends"),
            What::Trailing(bytes) => write!(f, ": {bytes} bytes too many at the end"),
            What::Impossible(why) | What::Text(why) => write!(f, ": {why}"),
            What::Write(_, why) => write!(f, ": cannot write: {why}"),
        }
    }
}

impl std::error::Error for Error {}

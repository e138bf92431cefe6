//! The manifest as it is stored: as few bytes as it takes, so that a checkpoint with it is no larger than without.
//!
//! Numbers are protobuf's varints unless their bytes are counted here, texts are a length and bytes; all is little-endian.
//!
//! | what | how |
//! |---|---|
//! | magic | `CRM`, and the format (2) as a byte |
//! | version | text |
//! | parent | the byte 0, or 1 and 16 bytes: its id |
//! | features | their number; for each a text, and the byte 1 if it must be understood, else 0 |
//! | files | their number; each as below, ordered by number, then kind |
//! | id | 16 bytes |
//! | check | the last 4 bytes of xxh3-128 of all bytes before |
//!
//! A file is a byte that holds its kind (the place in the table of kinds), plus 128 if its number is not that of the file
//! before (at first 0): how much it is more follows. The kind 127 stands for any other name, which follows as text. Then come
//! the length, and what is kept of its hash: 8 bytes for pages, 4 for others, nothing but zeros if it was never computed.
use super::{ContentHash, Digest, FORMAT, Feature, FileLine, MAX_FILES, Manifest, bad};
use crate::decode::Wire;
use crate::encode::varint;
use crate::{ImageKind, Result};

const MAGIC: &[u8; 3] = b"CRM";
const CHECK_BYTES: usize = 4;
/// Stands for a name that no kind has.
const ANY_NAME: u8 = 127;
/// Another number than that of the file before follows.
const OTHER_NUMBER: u8 = 128;

/// Appends the check to a manifest whose other bytes are these.
pub fn seal(mut body: Vec<u8>) -> Vec<u8> {
    let check = ContentHash::of(&body).0.to_le_bytes();
    body.extend_from_slice(&check[..CHECK_BYTES]);
    body
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn kept_bytes(name: &str) -> usize {
    Digest::bits_for(name) as usize / 8
}

impl Manifest {
    /// What is stored under [`super::MANIFEST_NAME`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.push(FORMAT as u8);
        put_text(&mut out, &self.version);
        out.push(self.parent.is_some().into());
        out.extend(self.parent.iter().flat_map(|id| id.0.to_le_bytes()));
        varint(&mut out, self.features.len() as u64);
        for feature in &self.features {
            put_text(&mut out, &feature.name);
            out.push(feature.must_understand.into());
        }
        let place = |file: &FileLine| match ImageKind::of_file_name(&file.name) {
            Some((kind, number)) => (number.unwrap_or(0), kind.place()),
            None => (0, ANY_NAME),
        };
        let mut files: Vec<((u64, u8), &FileLine)> = self.files.iter().map(|f| (place(f), f)).collect();
        files.sort_by_key(|(place, _)| *place);
        varint(&mut out, files.len() as u64);
        let mut last = 0;
        for ((number, kind), file) in files {
            out.push(if number == last { kind } else { kind | OTHER_NUMBER });
            if number != last {
                varint(&mut out, number - last);
            }
            last = number;
            if kind == ANY_NAME {
                put_text(&mut out, &file.name);
            }
            varint(&mut out, file.len_bytes);
            let hash = file.hash.map_or(0, |h| h.value).to_le_bytes();
            out.extend_from_slice(&hash[..kept_bytes(&file.name)]);
        }
        out.extend_from_slice(&self.id().0.to_le_bytes());
        seal(out)
    }

    /// Reads what [`Manifest::to_bytes`] wrote.
    pub(super) fn from_bytes(stored: &[u8]) -> Result<Self> {
        let after = stored.strip_prefix(MAGIC).and_then(|rest| rest.split_first());
        match after.map(|(&format, _)| u64::from(format)) {
            Some(FORMAT) => {}
            Some(later) => return Err(bad(format!("format {later} is newer than this version of crust understands"))),
            None => return Err(bad("not a manifest")),
        }
        let body = stored.len().checked_sub(CHECK_BYTES).and_then(|len| stored.get(..len)).unwrap_or_default();
        if seal(body.to_vec()) != stored {
            return Err(bad("its check does not fit: the manifest was changed, or cut short"));
        }
        Self::parse(body.get(MAGIC.len() + 1..).unwrap_or_default()).map_err(bad)?.checked()
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let mut wire = Wire(bytes);
        let mut m = Self { version: text(&mut wire)?, ..Self::default() };
        if flag(&mut wire)? {
            m.parent = Some(ContentHash(number(&mut wire, 16)?));
        }
        for _ in 0..wire.varint()? {
            m.features.push(Feature { name: text(&mut wire)?, must_understand: flag(&mut wire)? });
        }
        let count = wire.varint()?;
        if count > MAX_FILES as u64 {
            return Err(format!("more than {MAX_FILES} files"));
        }
        let mut last = 0_u64;
        for _ in 0..count {
            let kind = number(&mut wire, 1)? as u8;
            if kind & OTHER_NUMBER != 0 {
                last = last.checked_add(wire.varint()?).ok_or("a file's number is too large")?;
            }
            let name = match kind & !OTHER_NUMBER {
                ANY_NAME => text(&mut wire)?,
                place => ImageKind::at(place).ok_or_else(|| format!("no kind of image is {place}"))?.file_name(last),
            };
            let (len_bytes, bytes) = (wire.varint()?, kept_bytes(&name));
            let value = number(&mut wire, bytes)?;
            let hash = (value != 0).then_some(Digest { value, bits: 8 * bytes as u32 });
            m.files.push(FileLine { name, len_bytes, hash });
        }
        m.stored_id = Some(ContentHash(number(&mut wire, 16)?));
        if wire.0.is_empty() { Ok(m) } else { Err("bytes follow its end".to_owned()) }
    }
}

/// A number of so many bytes.
fn number(wire: &mut Wire<'_>, bytes: usize) -> std::result::Result<u128, String> {
    Ok(wire.take(bytes as u64)?.iter().rev().fold(0, |n, &b| n << 8 | u128::from(b)))
}

fn flag(wire: &mut Wire<'_>) -> std::result::Result<bool, String> {
    match number(wire, 1)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(format!("{other} is neither yes nor no")),
    }
}

fn text(wire: &mut Wire<'_>) -> std::result::Result<String, String> {
    let len = wire.varint()?;
    String::from_utf8(wire.take(len)?.to_vec()).map_err(|_| "a name is no text".to_owned())
}

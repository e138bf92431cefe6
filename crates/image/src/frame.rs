//! The framing of image files: magic numbers, record lengths, raw bytes in between. Every length is checked first.
use crate::{Error, ImageKind, Result, What};
use prost::Message;
use std::io;

/// The longest record accepted. An address space of a million mappings takes about 60 MiB.
pub const MAX_RECORD_BYTES: u64 = 256 << 20;

/// Short name of a message type, for errors.
fn type_name<T>() -> &'static str {
    std::any::type_name::<T>().rsplit("::").next().unwrap_or("record")
}

/// Writes an image of version 1.1: magic, then records and raw bytes in the order given.
///
/// Each call makes a few small writes: give it a `Vec<u8>` or a `BufWriter`.
#[derive(Debug)]
pub struct Writer<W: io::Write> {
    out: W,
    kind: ImageKind,
    offset: u64,
    records: u64,
}

impl<W: io::Write> Writer<W> {
    /// Writes the magic numbers of `kind`; a raw kind has none.
    ///
    /// # Errors
    /// [`What::Write`] if `out` refuses.
    pub fn new(out: W, kind: ImageKind) -> Result<Self> {
        let mut w = Self { out, kind, offset: 0, records: 0 };
        for magic in [kind.head_magic(), kind.magic()].into_iter().flatten() {
            w.put(&magic.to_le_bytes())?;
        }
        Ok(w)
    }

    /// Writes one record with its length.
    ///
    /// # Errors
    /// [`What::TooLong`] for a record that no reader would accept, [`What::Write`] if the output refuses.
    pub fn entry(&mut self, record: &impl Message) -> Result<()> {
        self.entry_bytes(&record.encode_to_vec())
    }

    /// Writes one record that is encoded already.
    ///
    /// # Errors
    /// As [`Writer::entry`].
    pub fn entry_bytes(&mut self, record: &[u8]) -> Result<()> {
        let len = u32::try_from(record.len())
            .ok()
            .filter(|&len| u64::from(len) <= MAX_RECORD_BYTES)
            .ok_or_else(|| self.error(What::TooLong(self.kind.record_name(), record.len() as u64, MAX_RECORD_BYTES)))?;
        self.put(&len.to_le_bytes())?;
        self.put(record)?;
        self.records += 1;
        Ok(())
    }

    /// Writes raw bytes, as they follow some records.
    ///
    /// # Errors
    /// [`What::Write`] if the output refuses.
    pub fn extra(&mut self, bytes: &[u8]) -> Result<()> {
        self.put(bytes)
    }

    /// Bytes written so far, magic included.
    pub fn len(&self) -> u64 {
        self.offset
    }

    /// True if nothing is written, not even a magic: a raw image in the beginning.
    pub fn is_empty(&self) -> bool {
        self.offset == 0
    }

    /// Records written so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Gives the output back. Nothing is buffered here.
    pub fn into_inner(self) -> W {
        self.out
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| self.error(What::Write(e.kind(), e.to_string())))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn error(&self, what: What) -> Error {
        Error::new(self.kind.file_name(0), self.offset, Some(self.records), what)
    }
}

/// A whole image of one record, in memory.
///
/// # Errors
/// [`What::TooLong`] for a record that no reader would accept.
pub fn encode_one(kind: ImageKind, record: &impl Message) -> Result<Vec<u8>> {
    encode_all(kind, [record])
}

/// A whole image of records without raw bytes between them, in memory.
///
/// # Errors
/// [`What::TooLong`] for a record that no reader would accept.
pub fn encode_all<'a, T: Message + 'a>(kind: ImageKind, records: impl IntoIterator<Item = &'a T>) -> Result<Vec<u8>> {
    let mut w = Writer::new(Vec::new(), kind)?;
    for record in records {
        w.entry(record)?;
    }
    Ok(w.into_inner())
}

/// Reads an image held in memory, versions 1.0 (magic) and 1.1 (common magic, magic).
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    kind: ImageKind,
    file: Option<String>,
    records: u64,
}

impl<'a> Reader<'a> {
    /// Checks the magic numbers. `kind` may be a raw one, then [`Reader::extra`] and [`Reader::rest`] give the bytes.
    ///
    /// # Errors
    /// [`What::Magic`] if this is another kind of image, [`What::Truncated`] if it is too short for any.
    pub fn open(bytes: &'a [u8], kind: ImageKind) -> Result<Self> {
        Self::start(bytes, kind, None)
    }

    /// As [`Reader::open`], with the file's name for errors.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn open_named(name: &str, bytes: &'a [u8], kind: ImageKind) -> Result<Self> {
        Self::start(bytes, kind, Some(name.to_owned()))
    }

    /// Takes the kind from the file's name, or from the magic where the name says nothing.
    ///
    /// # Errors
    /// [`What::UnknownMagic`] if neither says anything, else as [`Reader::open`].
    pub fn open_any(name: &str, bytes: &'a [u8]) -> Result<Self> {
        if let Some((kind, _)) = ImageKind::of_file_name(name) {
            return Self::open_named(name, bytes, kind);
        }
        let mut probe = Self { bytes, at: 0, kind: ImageKind::Inventory, file: Some(name.to_owned()), records: 0 };
        let mut magic = probe.u32("the magic")?;
        if ImageKind::is_head_magic(magic) {
            magic = probe.u32("the magic")?;
        }
        match ImageKind::of_magic(magic) {
            Some(kind) => Self::open_named(name, bytes, kind),
            None => Err(Error::new(name, 0, None, What::UnknownMagic(magic))),
        }
    }

    fn start(bytes: &'a [u8], kind: ImageKind, file: Option<String>) -> Result<Self> {
        let mut r = Self { bytes, at: 0, kind, file, records: 0 };
        if let Some(wanted) = kind.magic() {
            let mut found = r.u32("the magic")?;
            if kind.head_magic() == Some(found) {
                found = r.u32("the magic")?;
            }
            if found != wanted {
                r.at -= 4;
                return Err(r.error(What::Magic(wanted, found)));
            }
        }
        Ok(r)
    }

    /// The next record, or `None` at the end of the file.
    ///
    /// # Errors
    /// [`What::Truncated`], [`What::TooLong`] or [`What::Record`]; the place is not left then.
    #[allow(clippy::should_implement_trait, reason = "each call names its record type; an Iterator has one")]
    pub fn next<T: Message + Default>(&mut self) -> Result<Option<T>> {
        let before = self.at;
        let Some(body) = self.next_bytes()? else { return Ok(None) };
        T::decode(body).map(Some).map_err(|e| {
            self.at = before;
            self.records -= 1;
            self.error(What::Record(type_name::<T>(), e.to_string()))
        })
    }

    /// The next record, which must be there.
    ///
    /// # Errors
    /// [`What::Missing`] at the end of the file, else as [`Reader::next`].
    pub fn expect<T: Message + Default>(&mut self) -> Result<T> {
        match self.next()? {
            Some(record) => Ok(record),
            None => Err(self.error(What::Missing(type_name::<T>()))),
        }
    }

    /// The next record, not decoded.
    ///
    /// # Errors
    /// [`What::Truncated`] or [`What::TooLong`]; the place is not left then.
    pub fn next_bytes(&mut self) -> Result<Option<&'a [u8]>> {
        if self.remaining() == 0 {
            return Ok(None);
        }
        let before = self.at;
        let len = u64::from(self.u32("a record's length")?);
        let body = if len > MAX_RECORD_BYTES {
            Err(self.error(What::TooLong("a record", len, MAX_RECORD_BYTES)))
        } else {
            self.take(len, "a record")
        };
        match body {
            Ok(body) => {
                self.records += 1;
                Ok(Some(body))
            }
            Err(e) => {
                self.at = before;
                Err(e)
            }
        }
    }

    /// The next `len` raw bytes.
    ///
    /// # Errors
    /// [`What::Truncated`] if there are fewer.
    pub fn extra(&mut self, len: u64) -> Result<&'a [u8]> {
        self.take(len, "raw bytes")
    }

    /// All bytes up to the end.
    pub fn rest(&mut self) -> &'a [u8] {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        self.at = self.bytes.len();
        rest
    }

    /// Makes sure that nothing is left.
    ///
    /// # Errors
    /// [`What::Trailing`] otherwise.
    pub fn finish(self) -> Result<()> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(self.error(What::Trailing(left))),
        }
    }

    /// The kind of image this is read as.
    pub fn kind(&self) -> ImageKind {
        self.kind
    }

    /// Bytes from the start of the file to the next thing read.
    pub fn offset(&self) -> u64 {
        self.at as u64
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// Records read so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// An error about the last record read: for callers that find it impossible.
    pub fn impossible(&self, why: impl Into<String>) -> Error {
        let name = self.name();
        Error::new(name, self.offset(), Some(self.records.saturating_sub(1)), What::Impossible(why.into()))
    }

    fn name(&self) -> String {
        self.file.clone().unwrap_or_else(|| self.kind.file_name(0))
    }

    fn error(&self, what: What) -> Error {
        Error::new(self.name(), self.offset(), Some(self.records), what)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32> {
        let bytes = self.take(4, what)?;
        let mut word = [0; 4];
        word.copy_from_slice(bytes);
        Ok(u32::from_le_bytes(word))
    }

    fn take(&mut self, len: u64, what: &'static str) -> Result<&'a [u8]> {
        let there = self.remaining();
        if len > there {
            return Err(self.error(What::Truncated(what, len, there)));
        }
        // In range: no more than what remains of a slice.
        let end = self.at + len as usize;
        let bytes = self.bytes.get(self.at..end).unwrap_or_default();
        self.at = end;
        Ok(bytes)
    }
}

/// The only record of an image that has exactly one.
///
/// # Errors
/// [`What::Missing`], [`What::Trailing`], or as [`Reader::open`] and [`Reader::next`].
pub fn read_one<T: Message + Default>(name: &str, bytes: &[u8], kind: ImageKind) -> Result<T> {
    let mut r = Reader::open_named(name, bytes, kind)?;
    let record = r.expect()?;
    r.finish()?;
    Ok(record)
}

/// All records of an image without raw bytes between them.
///
/// # Errors
/// As [`Reader::open`] and [`Reader::next`].
pub fn read_all<T: Message + Default>(name: &str, bytes: &[u8], kind: ImageKind) -> Result<Vec<T>> {
    let mut r = Reader::open_named(name, bytes, kind)?;
    let mut records = Vec::new();
    while let Some(record) = r.next()? {
        records.push(record);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{FsEntry, InventoryEntry, PipeDataEntry, PstreeEntry};

    #[test]
    fn records_and_raw_bytes_come_back() -> Result<()> {
        let mut w = Writer::new(Vec::new(), ImageKind::PipesData)?;
        let one = PipeDataEntry { pipe_id: 1, bytes: 3, size: Some(65536) };
        let two = PipeDataEntry { pipe_id: 2, bytes: 0, size: None };
        w.entry(&one)?;
        w.extra(b"abc")?;
        w.entry(&two)?;
        let bytes = w.into_inner();
        assert_eq!(bytes[..8], [0x19, 0x43, 0x56, 0x54, 0x09, 0x37, 0x45, 0x56]);

        let mut r = Reader::open(&bytes, ImageKind::PipesData)?;
        assert_eq!(r.next::<PipeDataEntry>()?, Some(one));
        assert_eq!(r.extra(3)?, b"abc");
        assert_eq!(r.expect::<PipeDataEntry>()?, two);
        assert_eq!(r.next::<PipeDataEntry>()?, None);
        r.finish()
    }

    #[test]
    fn version_1_0_has_no_common_magic() -> Result<()> {
        let v11 = encode_one(ImageKind::Pstree, &PstreeEntry { pid: 7, ..Default::default() })?;
        let back: PstreeEntry = read_one("pstree.img", &v11[4..], ImageKind::Pstree)?;
        assert_eq!(back.pid, 7);
        // The inventory never has one.
        let inventory = encode_one(ImageKind::Inventory, &InventoryEntry { img_version: 2, ..Default::default() })?;
        assert_eq!(inventory[..4], 0x5831_3116_u32.to_le_bytes());
        Ok(())
    }

    #[test]
    fn absent_required_fields_read_as_default() -> Result<()> {
        let mut w = Writer::new(Vec::new(), ImageKind::Fs)?;
        w.entry_bytes(&[0x08, 5])?;
        let fs: FsEntry = read_one("fs-1.img", &w.into_inner(), ImageKind::Fs)?;
        assert_eq!(fs, FsEntry { cwd_id: 5, root_id: 0, umask: None });
        Ok(())
    }

    #[test]
    fn errors_name_the_place() {
        let mut bytes = encode_one(ImageKind::Pstree, &PstreeEntry { pid: 7, ..Default::default() }).unwrap();
        bytes.extend([9, 0, 0, 0, 1, 2]);
        let mut r = Reader::open_named("pstree.img", &bytes, ImageKind::Pstree).unwrap();
        assert!(r.next::<PstreeEntry>().unwrap().is_some());
        let e = r.next::<PstreeEntry>().unwrap_err();
        assert_eq!((e.file(), e.record()), ("pstree.img", Some(1)));
        assert_eq!(e.what(), &What::Truncated("a record", 9, 2));
        assert_eq!(
            e.to_string(),
            "pstree.img, byte 24, record 1: the file ends inside a record: 9 bytes expected, 2 there"
        );

        let e = Reader::open(&bytes, ImageKind::Fs).unwrap_err();
        assert_eq!(e.what(), &What::Magic(0x5140_3912, 0x5027_3030));
        assert_eq!(e.offset(), 4);
        let e = Reader::open(&bytes[..3], ImageKind::Fs).unwrap_err();
        assert_eq!(e.what(), &What::Truncated("the magic", 4, 3));
        let e = Reader::open_any("what", &[1, 2, 3, 4, 5]).unwrap_err();
        assert_eq!(e.what(), &What::UnknownMagic(0x0403_0201));
    }

    #[test]
    fn hostile_lengths_are_refused_before_use() {
        let mut bytes = encode_one(ImageKind::Pstree, &PstreeEntry::default()).unwrap();
        bytes.truncate(8);
        bytes.extend(u32::MAX.to_le_bytes());
        let e = Reader::open(&bytes, ImageKind::Pstree).unwrap().next::<PstreeEntry>().unwrap_err();
        assert_eq!(e.what(), &What::TooLong("a record", u64::from(u32::MAX), MAX_RECORD_BYTES));
        assert!(Reader::open(&bytes, ImageKind::Pstree).unwrap().extra(u64::MAX).is_err());
    }
}

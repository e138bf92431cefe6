//! Images in a tar archive, read and written in one pass over a stream. What is unpacked comes from strangers: only plain
//! files in one directory are taken, and whatever could lead elsewhere refuses the archive.
//!
//! Read are ustar, pax and GNU archives as tar(1), Go and Python make them; written is plain ustar (sizes from 8 GiB on in
//! GNU's binary form, which all of those read).
use crate::manifest::{ContentHash, Hasher, MANIFEST_NAME, is_pages, is_plain_name};
use crate::{Error, ImageKind, ImageSet, Result, What};
use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};

/// Archives come in blocks of this size.
const BLOCK: usize = 512;
const BLOCK_BYTES: u64 = 512;
/// Long names and extended headers may take this much.
const MAX_HEADER_BYTES: u64 = 64 << 10;
/// More entries than a checkpoint of 100,000 tasks has.
const MAX_ENTRIES: u64 = 1 << 21;
/// The largest file that is read into memory.
const MAX_RECORDS_BYTES: u64 = 1 << 30;

/// A stream of bytes that may be able to leave some out.
pub trait Input: Read {
    /// Goes `bytes` ahead without looking at them.
    ///
    /// # Errors
    /// As read(2); `UnexpectedEof` if the stream ends before.
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.take(bytes), &mut io::sink())?;
        if skipped < bytes { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

impl Input for &[u8] {}

/// A file of the checkpoint, found in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarFile {
    /// Its plain name, without directories.
    pub name: String,
    /// Its length in bytes.
    pub len_bytes: u64,
}

/// Reads an archive from its beginning to its end.
#[derive(Debug)]
pub struct TarReader<R> {
    input: R,
    /// Bytes taken from the input.
    at: u64,
    entries: u64,
    /// Content of the present file that nobody read yet, and what fills its last block.
    left: u64,
    padding: u64,
    /// Where the images are inside the archive, once one was seen.
    root: Option<String>,
    seen: HashSet<String>,
    skipped: Vec<String>,
}

/// What extended headers say about the next entry.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<R: Input> TarReader<R> {
    /// Begins to read.
    pub fn new(input: R) -> Self {
        Self { input, at: 0, entries: 0, left: 0, padding: 0, root: None, seen: HashSet::new(), skipped: Vec::new() }
    }

    /// The next file of the checkpoint, past what was left unread of the one before; `None` at the archive's end.
    ///
    /// # Errors
    /// With the place of whatever is no tar archive, or one that no checkpoint needs: links, devices, paths that are absolute
    /// or lead upwards, files that are there twice.
    pub fn next_file(&mut self) -> Result<Option<TarFile>> {
        let mut extended = Extended::default();
        loop {
            self.skip_rest()?;
            let mut block = [0; BLOCK];
            self.exact(&mut block, "a header")?;
            if self.at == BLOCK_BYTES {
                self.refuse_compressed(&block)?;
            }
            if block.iter().all(|b| *b == 0) {
                return Ok(None);
            }
            if self.entries == MAX_ENTRIES {
                return Err(self.error(What::TooLong("an archive of entries", self.entries + 1, MAX_ENTRIES)));
            }
            self.entries += 1;
            let header = self.header(&block)?;
            self.left = header.size;
            self.padding = header.size.wrapping_neg() % BLOCK_BYTES;
            match header.kind {
                b'x' => self.pax(&mut extended)?,
                b'g' => {
                    let mut unused = Extended::default();
                    self.pax(&mut unused)?;
                    if unused.name.is_some() || unused.size.is_some() {
                        return Err(self.impossible("names or sizes for all entries at once"));
                    }
                }
                b'L' => {
                    let mut name = self.small("a long name")?;
                    name.truncate(name.iter().position(|b| *b == 0).unwrap_or(name.len()));
                    extended.name = Some(name);
                }
                kind => {
                    let Extended { name, size } = std::mem::take(&mut extended);
                    let size = size.unwrap_or(header.size);
                    self.left = size;
                    self.padding = size.wrapping_neg() % BLOCK_BYTES;
                    if let Some(file) = self.entry(kind, &name.unwrap_or(header.name), size)? {
                        return Ok(Some(file));
                    }
                }
            }
        }
    }

    /// Reads content of the present file; 0 at its end.
    ///
    /// # Errors
    /// If the archive ends inside of it, or the input refuses.
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let Some(into) = into.get_mut(..want).filter(|into| !into.is_empty()) else { return Ok(0) };
        loop {
            return match self.input.read(into) {
                Ok(0) => Err(self.error(What::Truncated("a file", self.left, 0))),
                Ok(n) => {
                    self.left -= n as u64;
                    self.at += n as u64;
                    Ok(n)
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => Err(self.impossible(format!("cannot be read: {e}"))),
            };
        }
    }

    /// The rest of the present file.
    ///
    /// # Errors
    /// If it is longer than `limit`, else as [`TarReader::read`].
    pub fn read_all(&mut self, limit: u64) -> Result<Vec<u8>> {
        if self.left > limit {
            return Err(self.error(What::TooLong("a file of records", self.left, limit)));
        }
        // Room grows with what arrives, not with what the header promises.
        let mut all = Vec::new();
        let mut piece = vec![0; 64 << 10];
        loop {
            match self.read(&mut piece)? {
                0 => return Ok(all),
                n => all.extend_from_slice(piece.get(..n).unwrap_or_default()),
            }
        }
    }

    /// Reads on to the input's end, so that whoever writes it is not cut off. Only padding may follow an archive's end.
    ///
    /// # Errors
    /// If something else follows.
    pub fn finish(mut self) -> Result<()> {
        let mut piece = vec![0; 10 << 10];
        loop {
            match self.input.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(n) if piece.get(..n).is_some_and(|p| p.iter().all(|b| *b == 0)) => self.at += n as u64,
                Ok(n) => return Err(self.error(What::Trailing(n as u64))),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.impossible(format!("cannot be read: {e}"))),
            }
        }
    }

    /// Paths of files that are no images and were left out.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    fn error(&self, what: What) -> Error {
        Error::new("tar archive", self.at, Some(self.entries.saturating_sub(1)), what)
    }

    fn impossible(&self, why: impl Into<String>) -> Error {
        self.error(What::Impossible(why.into()))
    }

    fn exact(&mut self, into: &mut [u8], what: &'static str) -> Result<()> {
        let mut filled = 0;
        while let Some(room) = into.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.input.read(room) {
                Ok(0) => return Err(self.error(What::Truncated(what, into.len() as u64, filled as u64))),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.impossible(format!("cannot be read: {e}"))),
            }
        }
        self.at += filled as u64;
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<()> {
        for bytes in [std::mem::take(&mut self.left), std::mem::take(&mut self.padding)] {
            match self.input.skip(bytes) {
                Ok(()) => self.at = self.at.saturating_add(bytes),
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(self.error(What::Truncated("a file", bytes, 0)));
                }
                Err(e) => return Err(self.impossible(format!("cannot be read: {e}"))),
            }
        }
        Ok(())
    }

    /// The present entry's content, which must be small: it is no file.
    fn small(&mut self, what: &'static str) -> Result<Vec<u8>> {
        if self.left > MAX_HEADER_BYTES {
            return Err(self.error(What::TooLong(what, self.left, MAX_HEADER_BYTES)));
        }
        self.read_all(MAX_HEADER_BYTES)
    }

    fn refuse_compressed(&self, block: &[u8; BLOCK]) -> Result<()> {
        let kinds: [(&[u8], &str); 5] = [
            (&[0x1f, 0x8b], "gzip"),
            (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
            (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"),
            (b"BZh", "bzip2"),
            (&[0x04, 0x22, 0x4d, 0x18], "lz4"),
        ];
        match kinds.iter().find(|(magic, _)| block.starts_with(magic)) {
            Some((_, tool)) => {
                let what =
                    format!("compressed: decompress it first (`{tool} -dc ARCHIVE |` in front, and `-` as name)");
                Err(Error::text("tar archive", what))
            }
            None => Ok(()),
        }
    }

    fn header(&self, block: &[u8; BLOCK]) -> Result<Header> {
        let field = |from: usize, len: usize| block.get(from..from + len).unwrap_or_default();
        let stored = octal(field(148, 8));
        let counted = block.iter().enumerate().map(|(at, b)| match at {
            148..156 => u64::from(b' '),
            _ => u64::from(*b),
        });
        if stored != Some(counted.sum()) {
            return Err(self.impossible("a header's checksum does not fit: no tar archive, or a damaged one"));
        }
        let size = number(field(124, 12)).ok_or_else(|| self.impossible("a file's size is no number"))?;
        let text = |field: &[u8]| field.split(|b| *b == 0).next().unwrap_or_default().to_vec();
        let mut name = text(field(345, 155));
        if field(257, 6) != b"ustar\0" || name.is_empty() {
            name = text(field(0, 100));
        } else {
            name.push(b'/');
            name.extend_from_slice(&text(field(0, 100)));
        }
        let kind = block.get(156).copied().unwrap_or(0);
        // Only plain files have content; some writers give others a size all the same.
        let size = if matches!(kind, b'1'..=b'6') { 0 } else { size };
        Ok(Header { name, size, kind })
    }

    fn pax(&mut self, extended: &mut Extended) -> Result<()> {
        let body = self.small("an extended header")?;
        let mut rest = body.as_slice();
        while !rest.is_empty() {
            let record = pax_record(rest).ok_or_else(|| self.impossible("an extended header that cannot be read"))?;
            rest = record.rest;
            match record.key {
                b"path" => extended.name = Some(record.value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(record.value).ok().and_then(|v| v.parse().ok());
                    let size = size.filter(|s| *s <= i64::MAX as u64);
                    extended.size = Some(size.ok_or_else(|| self.impossible("a file's size is no number"))?);
                }
                key if key.starts_with(b"GNU.sparse") => {
                    return Err(self.impossible("sparse files cannot be read: pack them without --sparse"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What to do with an entry: `Some` if it is one of the checkpoint's files.
    fn entry(&mut self, kind: u8, path: &[u8], size: u64) -> Result<Option<TarFile>> {
        let shown = String::from_utf8_lossy(path).into_owned();
        let Some((dir, name)) = split(path) else {
            return Err(self.impossible(format!("{shown:?} is no path inside of an archive")));
        };
        match kind {
            b'0' | 0 | b'7' => {}
            b'5' => return Ok(None),
            b'1' | b'2' => return Err(self.impossible(format!("{shown:?} is a link: a checkpoint has none"))),
            b'3' | b'4' | b'6' => return Err(self.impossible(format!("{shown:?} is a device or a fifo"))),
            b'S' => return Err(self.impossible("sparse files cannot be read: pack them without --sparse")),
            other => return Err(self.impossible(format!("{shown:?} is of unknown type {other:#x}"))),
        }
        if path.ends_with(b"/") {
            // How archives before POSIX had directories.
            return Ok(None);
        }
        if size > i64::MAX as u64 {
            return Err(self.error(What::TooLong("a file", size, i64::MAX as u64)));
        }
        if !self.seen.insert(format!("{dir}/{name}")) {
            return Err(self.impossible(format!("{shown:?} is there twice")));
        }
        let is_image = ImageKind::of_file_name(&name).is_some_and(|(kind, _)| !kind.is_service());
        if !is_image && name != MANIFEST_NAME {
            self.skipped.push(shown);
            return Ok(None);
        }
        match &self.root {
            None => self.root = Some(dir),
            Some(root) if *root == dir => {}
            Some(root) => {
                let what = format!("images are in two directories, {root:?} and {dir:?}: one checkpoint expected");
                return Err(self.impossible(what));
            }
        }
        Ok(Some(TarFile { name, len_bytes: size }))
    }
}

struct Header {
    name: Vec<u8>,
    size: u64,
    kind: u8,
}

struct PaxRecord<'a> {
    key: &'a [u8],
    value: &'a [u8],
    rest: &'a [u8],
}

/// `LENGTH KEY=VALUE\n`, the length counting itself.
fn pax_record(text: &[u8]) -> Option<PaxRecord<'_>> {
    let digits = text.iter().position(|b| *b == b' ')?;
    let len: usize = std::str::from_utf8(text.get(..digits)?).ok()?.parse().ok()?;
    let record = text.get(digits + 1..len)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    Some(PaxRecord { key: record.get(..equals)?, value: record.get(equals + 1..)?, rest: text.get(len..)? })
}

/// Directory and name of a path that stays inside; a leading `./` means nothing.
fn split(path: &[u8]) -> Option<(String, String)> {
    let path = std::str::from_utf8(path).ok()?;
    if path.is_empty() || path.starts_with('/') || path.contains('\0') || path.len() > 4096 {
        return None;
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.iter().any(|part| !is_plain_name(part)) {
        return None;
    }
    match parts.split_last() {
        Some((name, dirs)) => Some((dirs.join("/"), (*name).to_owned())),
        // The archive's own top.
        None => Some((String::new(), ".".to_owned())),
    }
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = field.split(|b| *b == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(text).ok()?.trim_matches(' ');
    u64::from_str_radix(if text.is_empty() { "0" } else { text }, 8).ok().filter(|_| !text.starts_with('+'))
}

/// Octal digits, or GNU's binary form.
fn number(field: &[u8]) -> Option<u64> {
    match field.split_first() {
        Some((0x80, rest)) => {
            let (high, low) = rest.split_at_checked(rest.len().checked_sub(8)?)?;
            let value = u64::from_be_bytes(low.try_into().ok()?);
            (high.iter().all(|b| *b == 0) && value <= i64::MAX as u64).then_some(value)
        }
        Some((0x81..=0xff, _)) => None,
        _ => octal(field),
    }
}

/// The header before a file's content.
///
/// # Errors
/// If the name does not fit into a header, or the length into a number.
pub fn header(name: &str, len_bytes: u64, modified_unix_secs: u64) -> Result<[u8; 512]> {
    if !is_plain_name(name) || name.len() > 100 || len_bytes > i64::MAX as u64 {
        return Err(Error::text(name, "cannot be put into a tar archive"));
    }
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = block.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if len_bytes < 1 << 33 {
        put(124, format!("{len_bytes:011o}\0").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &len_bytes.to_be_bytes());
    }
    put(136, format!("{:011o}\0", modified_unix_secs & 0o77_777_777_777).as_bytes());
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(265, b"root");
    put(297, b"root");
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    if let Some(field) = block.get_mut(148..156) {
        field.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    Ok(block)
}

/// Zeros that follow `len_bytes` of content.
pub fn padding(len_bytes: u64) -> usize {
    (len_bytes.wrapping_neg() % BLOCK_BYTES) as usize
}

/// What ends an archive.
pub const END: [u8; 1024] = [0; 1024];

/// A checkpoint read from an archive, for the tools: records are held, pages only counted and hashed.
#[derive(Debug, Default)]
pub struct TarSet {
    files: BTreeMap<String, Held>,
}

#[derive(Debug)]
struct Held {
    /// `None` for pages.
    bytes: Option<Vec<u8>>,
    len_bytes: u64,
    /// `None` if it was not asked for.
    hash: Option<ContentHash>,
}

impl TarSet {
    /// Reads an archive to its end. `hashes`: look at the bytes of pages, too.
    ///
    /// # Errors
    /// As [`TarReader::next_file`].
    pub fn read(input: impl Input, hashes: bool) -> Result<Self> {
        let mut tar = TarReader::new(input);
        let mut set = Self::default();
        while let Some(file) = tar.next_file()? {
            let mut held = Held { bytes: None, len_bytes: file.len_bytes, hash: None };
            if !is_pages(&file.name) {
                held.bytes = Some(tar.read_all(MAX_RECORDS_BYTES)?);
            } else if hashes {
                let mut hasher = Hasher::for_file(&file.name);
                let mut piece = vec![0; 256 << 10];
                loop {
                    match tar.read(&mut piece)? {
                        0 => break,
                        n => hasher.update(piece.get(..n).unwrap_or_default()),
                    }
                }
                held.hash = Some(hasher.finish());
            }
            set.files.insert(file.name, held);
        }
        tar.finish()?;
        Ok(set)
    }
}

impl ImageSet for TarSet {
    fn names(&self) -> Result<Vec<String>> {
        Ok(self.files.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.files.get(name).and_then(|f| f.bytes.clone()))
    }

    fn len_bytes(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.files.get(name).map(|f| f.len_bytes))
    }

    fn hash(&self, name: &str) -> Result<Option<ContentHash>> {
        Ok(self.files.get(name).and_then(|f| match &f.bytes {
            Some(bytes) => {
                let mut hasher = Hasher::for_file(name);
                hasher.update(bytes);
                Some(hasher.finish())
            }
            None => f.hash,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive of ours with one file changed by `change` (its header, before the checksum is made to fit).
    fn archive(files: &[(&str, &[u8])], change: impl Fn(usize, &mut [u8; 512])) -> Vec<u8> {
        let mut out = Vec::new();
        for (at, (name, content)) in files.iter().enumerate() {
            let mut block = header(name, content.len() as u64, 1_700_000_000).unwrap();
            change(at, &mut block);
            fit(&mut block);
            out.extend_from_slice(&block);
            out.extend_from_slice(content);
            out.resize(out.len() + padding(content.len() as u64), 0);
        }
        out.extend_from_slice(&END);
        out
    }

    fn fit(block: &mut [u8; 512]) {
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    fn all(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut tar = TarReader::new(bytes);
        let mut files = Vec::new();
        while let Some(file) = tar.next_file()? {
            let content = tar.read_all(1 << 20)?;
            assert_eq!(content.len() as u64, file.len_bytes);
            files.push((file.name, content));
        }
        tar.finish()?;
        Ok(files)
    }

    fn refused(bytes: &[u8]) -> String {
        all(bytes).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_is_read() -> Result<()> {
        let content: [(&str, &[u8]); 4] =
            [("pages-1.img", &[7; 8192]), ("core-1.img", b"abc"), ("mm-1.img", b""), ("inventory.img", &[1; 512])];
        let files = all(&archive(&content, |_, _| ()))?;
        assert!(files.iter().map(|(n, c)| (n.as_str(), c.as_slice())).eq(content));
        // What nobody reads is left out.
        let mut tar = TarReader::new(&*archive(&content, |_, _| ()).leak());
        let mut names = Vec::new();
        while let Some(file) = tar.next_file()? {
            names.push(file.name);
        }
        assert_eq!(names.len(), 4);
        Ok(())
    }

    #[test]
    fn only_one_directory_of_images_is_taken() -> Result<()> {
        let named = |names: &'static [&'static str]| {
            let files: Vec<(&str, &[u8])> = names.iter().map(|_| ("x", &b"1"[..])).collect();
            archive(&files, |at, block| {
                block[..100].fill(0);
                block[..names[at].len()].copy_from_slice(names[at].as_bytes());
            })
        };
        let podman = named(&["spec.dump", "checkpoint/core-1.img", "checkpoint/dump.log", "checkpoint/inventory.img"]);
        let names: Vec<String> = all(&podman)?.into_iter().map(|f| f.0).collect();
        assert_eq!(names, ["core-1.img", "inventory.img"]);
        let dotted = named(&["./core-1.img", "././inventory.img"]);
        assert_eq!(all(&dotted)?.len(), 2);
        assert!(refused(&named(&["a/core-1.img", "b/core-2.img"])).contains("in two directories"));
        assert!(refused(&named(&["core-1.img", "./core-1.img"])).contains("there twice"));
        for bad in ["/core-1.img", "../core-1.img", "a/../../core-1.img", "a/.."] {
            let names: &'static [&'static str] = vec![bad].leak();
            assert!(refused(&named(names)).contains("no path inside"), "{bad}");
        }
        Ok(())
    }

    #[test]
    fn links_devices_and_sparse_files_are_refused() {
        for (kind, said) in [
            (b'1', "is a link"),
            (b'2', "is a link"),
            (b'3', "is a device"),
            (b'4', "is a device"),
            (b'6', "is a device"),
            (b'S', "sparse"),
            (b'V', "unknown type 0x56"),
        ] {
            let e = refused(&archive(&[("core-1.img", b"abc")], |_, block| block[156] = kind));
            assert!(e.contains(said) && e.starts_with("tar archive, byte 512, record 0"), "{e}");
        }
    }

    #[test]
    fn damage_and_giants_are_refused() {
        let whole = archive(&[("core-1.img", &[1; 700]), ("inventory.img", b"x")], |_, _| ());
        for cut in 0..whole.len() - 1024 {
            assert!(all(&whole[..cut]).is_err(), "{cut}");
        }
        let mut damaged = whole.clone();
        damaged[3] ^= 1;
        assert!(refused(&damaged).contains("checksum"));
        let mut trailing = whole;
        trailing.extend_from_slice(b"more");
        assert!(refused(&trailing).contains("too many"));

        let giant = |size: &'static [u8]| {
            archive(&[("core-1.img", b"abc")], |_, block| block[124..124 + size.len()].copy_from_slice(size))
        };
        // 8 EiB - 1 in each of its spellings; nothing is allocated for it.
        let e = refused(&giant(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]));
        assert!(e.contains("more than the limit"), "{e}");
        assert!(TarSet::read(&*giant(b"77777777777\0"), true).is_err());
        for bad in [&[0x80, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0][..], &[0xff; 12], b"12345678\0", b"-1\0"] {
            let e = refused(&giant(bad.to_vec().leak()));
            assert!(e.contains("no number"), "{e}");
        }
    }

    #[test]
    fn extended_headers_are_understood_and_limited() -> Result<()> {
        let pax = |body: &'static [u8]| {
            archive(&[("x", body), ("core-1.img", b"abc")], |at, block| {
                if at == 0 {
                    block[156] = b'x';
                }
            })
        };
        assert_eq!(all(&pax(b"17 path=mm-7.img\n"))?, [("mm-7.img".to_owned(), b"abc".to_vec())]);
        assert_eq!(all(&pax(b"30 mtime=1350244992.023960108\n"))?[0].0, "core-1.img");
        assert!(refused(&pax(b"19 path=../mm-7.img\n")).contains("extended header"));
        assert!(refused(&pax(b"20 path=../mm-7.img\n")).contains("no path inside"));
        assert!(refused(&pax(b"13 size=none\n")).contains("no number"));
        assert!(refused(&pax(b"22 GNU.sparse.major=1\n")).contains("sparse"));
        assert!(refused(&pax(b"99999999999999999999999 a=b\n")).contains("extended header"));
        let long = |kind: u8| {
            archive(&[("x", b"a/core-9.img\0"), ("core-1.img", b"abc")], move |at, block| {
                if at == 0 {
                    block[156] = kind;
                }
            })
        };
        assert_eq!(all(&long(b'L'))?[0].0, "core-9.img");
        let global = archive(&[("x", b"17 path=mm-7.img\n"), ("core-1.img", b"abc")], |at, block| {
            if at == 0 {
                block[156] = b'g';
            }
        });
        assert!(refused(&global).contains("for all entries"));
        Ok(())
    }

    #[test]
    fn what_is_no_archive_is_named() {
        let mut gzip = vec![0; 1024];
        gzip[..2].copy_from_slice(&[0x1f, 0x8b]);
        assert!(refused(&gzip).contains("gzip -dc"));
        assert!(refused(&[b'x'; 2048]).contains("checksum"));
        assert!(refused(b"").contains("a header"));
    }

    #[test]
    fn sizes_beyond_octal_come_back() -> Result<()> {
        let block = header("pages-1.img", 20 << 30, 0)?;
        assert_eq!(number(&block[124..136]), Some(20 << 30));
        assert!(header("../x", 1, 0).is_err() && header(&"x".repeat(101), 1, 0).is_err());
        Ok(())
    }
}

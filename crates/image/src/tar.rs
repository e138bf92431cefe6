//! Images in a tar archive, read and written in one pass over a stream. The format is the `tar` crate's; ours is what is taken:
//! what is unpacked comes from strangers, so only plain files in one directory, and whatever could lead elsewhere refuses
//! the archive.
//!
//! Read are ustar, pax and GNU archives as tar(1), Go and Python make them; written is plain ustar (sizes from 8 GiB on in
//! GNU's binary form, which all of those read).
use crate::manifest::{ContentHash, Hasher, is_manifest, is_pages, is_plain_name};
use crate::{Error, ImageKind, ImageSet, Result, What};
use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read, Seek, SeekFrom};
use tar::{Archive, Entry, EntryType, Header, PaxExtensions};

/// Archives come in blocks of this size.
const BLOCK_BYTES: u64 = 512;
/// What may stand before one file's content: its header, long names, extended headers. They are held in memory.
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
pub struct TarFile<'a> {
    /// Its plain name, without directories.
    pub name: String,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Content that nobody read yet.
    left: u64,
    content: &'a mut dyn Read,
    progress: &'a Progress,
}

impl TarFile<'_> {
    /// Reads content; 0 at its end.
    ///
    /// # Errors
    /// If the archive ends inside of it, or the input refuses.
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        if into.is_empty() || self.left == 0 {
            return Ok(0);
        }
        match self.content.read(into) {
            Ok(0) => Err(self.progress.error(What::Truncated("a file", self.left, 0))),
            Ok(n) => {
                self.left = self.left.saturating_sub(n as u64);
                Ok(n)
            }
            Err(e) => Err(self.progress.impossible(format!("cannot be read: {e}"))),
        }
    }

    /// The rest of the content.
    ///
    /// # Errors
    /// If it is longer than `limit`, else as [`TarFile::read`].
    pub fn read_all(&mut self, limit: u64) -> Result<Vec<u8>> {
        if self.left > limit {
            return Err(self.progress.error(What::TooLong("a file of records", self.left, limit)));
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
}

/// How far an archive was read, and why not further.
#[derive(Default)]
struct Progress {
    /// Bytes taken from the input.
    at: Cell<u64>,
    entries: Cell<u64>,
    /// How an archive begins.
    start: Cell<[u8; 6]>,
    /// What may still be read before the next file's content; `None` inside of content.
    budget: Cell<Option<u64>>,
    stopped: Cell<Option<Stop>>,
}

#[derive(Clone, Copy)]
enum Stop {
    /// The input ended where more was wanted.
    Ended,
    /// It ended within so many bytes that were to be skipped.
    EndedSkipping(u64),
    /// Headers beyond all measure.
    OverBudget,
    /// The input refused.
    Refused,
}

impl Progress {
    fn error(&self, what: What) -> Error {
        Error::new("tar archive", self.at.get(), Some(self.entries.get().saturating_sub(1)), what)
    }

    fn impossible(&self, why: impl Into<String>) -> Error {
        self.error(What::Impossible(why.into()))
    }

    fn advance(&self, bytes: u64) {
        self.at.set(self.at.get().saturating_add(bytes));
    }

    /// Why there is no next entry, if that is not the archive's proper end.
    fn stopped(&self, error: Option<&io::Error>) -> Option<Error> {
        if let Some(e) = refuse_compressed(self.start.get()) {
            return Some(e);
        }
        Some(match (self.stopped.get(), error) {
            (Some(Stop::Ended), _) => {
                let there = self.at.get() % BLOCK_BYTES;
                self.at.set(self.at.get() - there);
                self.error(What::Truncated("a header", BLOCK_BYTES, there))
            }
            (Some(Stop::EndedSkipping(bytes)), _) => self.error(What::Truncated("a file", bytes, 0)),
            (Some(Stop::OverBudget), _) => {
                self.impossible(format!("extended headers of more than {MAX_HEADER_BYTES} bytes before a file"))
            }
            (Some(Stop::Refused), Some(e)) => self.impossible(format!("cannot be read: {e}")),
            (_, Some(e)) => self.impossible(format!("no tar archive, or a damaged one: {e}")),
            (_, None) => return None,
        })
    }
}

/// The input as the `tar` crate sees it. The crate holds what stands before a file in memory however long it is, and takes an
/// input's end for an archive's: both are noticed here.
struct Guard<'a, R> {
    input: R,
    progress: &'a Progress,
}

impl<R: Input> Read for Guard<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let budget = self.progress.budget.get();
        let room = usize::try_from(budget.unwrap_or(u64::MAX)).unwrap_or(usize::MAX).min(into.len());
        let stop = |why| self.progress.stopped.set(Some(why));
        if room < into.len() && room == 0 {
            stop(Stop::OverBudget);
            return Err(io::ErrorKind::InvalidData.into());
        }
        let Some(into) = into.get_mut(..room).filter(|into| !into.is_empty()) else { return Ok(0) };
        let n = loop {
            match self.input.read(into) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other.inspect_err(|_| stop(Stop::Refused))?,
            }
        };
        if n == 0 {
            stop(Stop::Ended);
        } else if self.progress.at.get() == 0 {
            let mut start = [0; 6];
            start.iter_mut().zip(into.iter().take(n)).for_each(|(to, from)| *to = *from);
            self.progress.start.set(start);
        }
        self.progress.advance(n as u64);
        self.progress.budget.set(budget.map(|left| left.saturating_sub(n as u64)));
        Ok(n)
    }
}

impl<R: Input> Seek for Guard<'_, R> {
    /// Forward only, which is all that skipping content takes.
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let SeekFrom::Current(ahead) = to else { return Err(io::ErrorKind::Unsupported.into()) };
        let ahead = u64::try_from(ahead).map_err(|_| io::ErrorKind::Unsupported)?;
        self.input.skip(ahead).inspect_err(|e| {
            self.progress.stopped.set(Some(match e.kind() {
                io::ErrorKind::UnexpectedEof => Stop::EndedSkipping(ahead),
                _ => Stop::Refused,
            }));
        })?;
        self.progress.advance(ahead);
        Ok(self.progress.at.get())
    }
}

/// Reads an archive from its beginning to its end; `each` gets the checkpoint's files and may leave content unread. Gives the
/// paths of files that are no images and were left out.
///
/// # Errors
/// With the place of whatever is no tar archive, or one that no checkpoint needs: links, devices, paths that are absolute
/// or lead upwards, files that are there twice. Else as `each`.
pub fn read<E: From<Error>>(
    input: impl Input,
    mut each: impl FnMut(&mut TarFile<'_>) -> std::result::Result<(), E>,
) -> std::result::Result<Vec<String>, E> {
    let progress = Progress::default();
    let mut archive = Archive::new(Guard { input, progress: &progress });
    let mut chosen = Chosen { progress: &progress, root: None, seen: HashSet::new(), skipped: Vec::new() };
    let mut entries = archive.entries_with_seek().map_err(|e| progress.impossible(e.to_string()))?;
    loop {
        progress.budget.set(Some(MAX_HEADER_BYTES));
        let mut entry = match entries.next() {
            Some(Ok(entry)) => entry,
            Some(Err(e)) => return Err(progress.stopped(Some(&e)).unwrap_or_else(|| progress.impossible("")).into()),
            None => match progress.stopped(None) {
                Some(e) => return Err(e.into()),
                None => break,
            },
        };
        progress.entries.set(progress.entries.get() + 1);
        if progress.entries.get() > MAX_ENTRIES {
            return Err(progress.error(What::TooLong("an archive of entries", MAX_ENTRIES + 1, MAX_ENTRIES)).into());
        }
        if let Some(name) = chosen.choose(&mut entry)? {
            progress.budget.set(None);
            let len_bytes = entry.size();
            each(&mut TarFile { name, len_bytes, left: len_bytes, content: &mut entry, progress: &progress })?;
        }
    }
    let skipped = chosen.skipped;
    finish(archive.into_inner().input, &progress)?;
    Ok(skipped)
}

/// Reads on to the input's end, so that whoever writes it is not cut off. Only padding may follow an archive's end.
fn finish(mut input: impl Input, progress: &Progress) -> Result<()> {
    let mut piece = vec![0; 10 << 10];
    loop {
        match input.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(n) if piece.get(..n).is_some_and(|p| p.iter().all(|b| *b == 0)) => progress.advance(n as u64),
            Ok(n) => return Err(progress.error(What::Trailing(n as u64))),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(progress.impossible(format!("cannot be read: {e}"))),
        }
    }
}

fn refuse_compressed(start: [u8; 6]) -> Option<Error> {
    let kinds: [(&[u8], &str); 5] = [
        (&[0x1f, 0x8b], "gzip"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"),
        (b"BZh", "bzip2"),
        (&[0x04, 0x22, 0x4d, 0x18], "lz4"),
    ];
    let (_, tool) = kinds.iter().find(|(magic, _)| start.starts_with(magic))?;
    let what = format!("compressed: decompress it first (`{tool} -dc ARCHIVE |` in front, and `-` as name)");
    Some(Error::text("tar archive", what))
}

/// What was taken from an archive so far.
struct Chosen<'a> {
    progress: &'a Progress,
    /// Where the images are inside the archive, once one was seen.
    root: Option<String>,
    seen: HashSet<String>,
    skipped: Vec<String>,
}

impl Chosen<'_> {
    /// What to do with an entry: a name if it is one of the checkpoint's files.
    fn choose<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<Option<String>> {
        let impossible = |why: String| Err(self.progress.impossible(why));
        let kind = entry.header().entry_type();
        let mut extended = Extended::default();
        if kind == EntryType::XGlobalHeader {
            let mut body = Vec::new();
            if let Err(e) = entry.read_to_end(&mut body) {
                return Err(self.progress.stopped(Some(&e)).unwrap_or_else(|| self.progress.impossible("")));
            }
            self.pax(PaxExtensions::new(&body), &mut extended)?;
        }
        match entry.pax_extensions() {
            Ok(Some(own)) => self.pax(own, &mut extended)?,
            Ok(None) => {}
            Err(e) => return impossible(format!("an extended header that cannot be read: {e}")),
        }
        if kind == EntryType::XGlobalHeader {
            return match extended {
                Extended { name: false, size: false } => Ok(None),
                _ => impossible("names or sizes for all entries at once".to_owned()),
            };
        }
        let path = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&path).into_owned();
        let Some((dir, name)) = split(&path) else {
            return impossible(format!("{shown:?} is no path inside of an archive"));
        };
        // How archives before POSIX had directories.
        let is_dir = kind == EntryType::Directory || kind == EntryType::Regular && path.ends_with(b"/");
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::Directory => {}
            EntryType::Link | EntryType::Symlink => {
                return impossible(format!("{shown:?} is a link: a checkpoint has none"));
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                return impossible(format!("{shown:?} is a device or a fifo"));
            }
            EntryType::GNUSparse => return impossible(SPARSE.to_owned()),
            other => return impossible(format!("{shown:?} is of unknown type {:#x}", other.as_byte())),
        }
        // GNU's binary form has more digits than the crate looks at.
        let digits = entry.header().as_old().size;
        if digits[0] & 0x80 != 0 && digits[..4] != [0x80, 0, 0, 0] {
            return impossible("a file's size is no number".to_owned());
        }
        if entry.size() > i64::MAX as u64 {
            return Err(self.progress.error(What::TooLong("a file", entry.size(), i64::MAX as u64)));
        }
        if is_dir {
            // Some tools skip what such a size says, some do not: nobody could tell what follows.
            return match entry.size() {
                0 => Ok(None),
                _ => impossible(format!("{shown:?} is a directory with content")),
            };
        }
        if !self.seen.insert(format!("{dir}/{name}")) {
            return impossible(format!("{shown:?} is there twice"));
        }
        let is_image = ImageKind::of_file_name(&name).is_some_and(|(kind, _)| !kind.is_service());
        if !is_image && !is_manifest(&name) {
            self.skipped.push(shown);
            return Ok(None);
        }
        match &self.root {
            None => self.root = Some(dir),
            Some(root) if *root == dir => {}
            Some(root) => {
                let what = format!("images are in two directories, {root:?} and {dir:?}: one checkpoint expected");
                return Err(self.progress.impossible(what));
            }
        }
        Ok(Some(name))
    }

    /// Refuses what tools understand differently: the crate takes the first of two, and none of what is no number.
    fn pax(&self, records: PaxExtensions<'_>, extended: &mut Extended) -> Result<()> {
        for record in records {
            let record =
                record.map_err(|e| self.progress.impossible(format!("an extended header that cannot be read: {e}")))?;
            let twice = match record.key_bytes() {
                b"path" => std::mem::replace(&mut extended.name, true),
                b"size" => {
                    if !record.value().is_ok_and(|v| v.parse::<u64>().is_ok_and(|s| s <= i64::MAX as u64)) {
                        return Err(self.progress.impossible("a file's size is no number"));
                    }
                    std::mem::replace(&mut extended.size, true)
                }
                key if key.starts_with(b"GNU.sparse") => return Err(self.progress.impossible(SPARSE)),
                _ => false,
            };
            if twice {
                return Err(self.progress.impossible("an extended header that says the same thing twice"));
            }
        }
        Ok(())
    }
}

const SPARSE: &str = "sparse files cannot be read: pack them without --sparse";

/// What extended headers say about an entry.
#[derive(Default)]
struct Extended {
    name: bool,
    size: bool,
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

/// The header before a file's content.
///
/// # Errors
/// If the name does not fit into a header, or the length into a number.
pub fn header(name: &str, len_bytes: u64, modified_unix_secs: u64) -> Result<[u8; 512]> {
    let refused = || Error::text(name, "cannot be put into a tar archive");
    if !is_plain_name(name) || name.len() > 100 || len_bytes > i64::MAX as u64 {
        return Err(refused());
    }
    let mut header = Header::new_ustar();
    header.set_path(name).map_err(|_| refused())?;
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(len_bytes);
    header.set_mtime(modified_unix_secs);
    header.set_entry_type(EntryType::Regular);
    header.set_username("root").map_err(|_| refused())?;
    header.set_groupname("root").map_err(|_| refused())?;
    header.set_cksum();
    Ok(*header.as_bytes())
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
    /// As [`read`].
    pub fn read(input: impl Input, hashes: bool) -> Result<Self> {
        let mut set = Self::default();
        read::<Error>(input, |file| {
            let mut held = Held { bytes: None, len_bytes: file.len_bytes, hash: None };
            if !is_pages(&file.name) {
                held.bytes = Some(file.read_all(MAX_RECORDS_BYTES)?);
            } else if hashes {
                let mut hasher = Hasher::for_file(&file.name);
                let mut piece = vec![0; 256 << 10];
                loop {
                    match file.read(&mut piece)? {
                        0 => break,
                        n => hasher.update(piece.get(..n).unwrap_or_default()),
                    }
                }
                held.hash = Some(hasher.finish());
            }
            set.files.insert(file.name.clone(), held);
            Ok(())
        })?;
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
        let mut files = Vec::new();
        read::<Error>(bytes, |file| {
            let content = file.read_all(1 << 20)?;
            assert_eq!(content.len() as u64, file.len_bytes);
            files.push((file.name.clone(), content));
            Ok(())
        })?;
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
        let mut names = Vec::new();
        read::<Error>(&*archive(&content, |_, _| ()), |file| {
            names.push(file.name.clone());
            Ok(())
        })?;
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
            let said = ["no number", "not a number", "size overflow", "more than the limit"];
            assert!(said.iter().any(|said| e.contains(said)), "{e}");
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
        assert!(refused(&pax(b"17 path=mm-7.img\n17 path=mm-8.img\n")).contains("twice"));
        let endless = |kind: u8| {
            archive(&[("x", &[b'x'; 70_000]), ("core-1.img", b"abc")], move |at, block| {
                if at == 0 {
                    block[156] = kind;
                    block[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0]);
                }
            })
        };
        for kind in *b"xgLK" {
            let e = refused(&endless(kind));
            assert!(e.contains("extended headers of more than 65536 bytes"), "{}: {e}", char::from(kind));
        }
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
        assert!(refused(&[b'x'; 2048]).contains("no tar archive"));
        assert!(refused(b"").contains("a header"));
    }

    #[test]
    fn sizes_beyond_octal_come_back() -> Result<()> {
        let block = header("pages-1.img", 20 << 30, 0)?;
        assert_eq!(Header::from_byte_slice(&block).entry_size().unwrap(), 20 << 30);
        // The size that an extended header has counts, not the one that did not fit.
        let mut bytes = archive(&[("x", b"10 size=3\n"), ("core-1.img", b"")], |at, block| {
            if at == 0 {
                block[156] = b'x';
            }
        });
        bytes.splice(1536..1536, [&b"abc"[..], &[0; 509]].concat());
        assert_eq!(all(&bytes)?, [("core-1.img".to_owned(), b"abc".to_vec())]);
        assert!(header("../x", 1, 0).is_err() && header(&"x".repeat(101), 1, 0).is_err());
        Ok(())
    }
}

//! The manifest: what files a checkpoint consists of, so that a torn copy or a changed byte is found.
//!
//! It lies beside the images as `crust-manifest`; CRIU and its tools ignore it. Its hashes are xxh3-128: they find damage, they
//! do not withstand forgery. Two kinds: that of a whole file (`xxh128sum` gives the same), and for the bytes of pages a sum
//! over pages that several threads can compute, each over a part, see [`PageSum`]. Of each hash the file keeps the last bits
//! ([`Digest`]), enough to name the damaged file, and one hash over all of them, whole, so that no damage is missed
//! ([`Manifest::id`]). `manifest/bytes.rs` has the layout; what `crust image show` prints of it is JSON, which the
//! first versions stored.
use crate::json::Json;
use crate::pagemap::PAGE_BYTES;
use crate::{Error, ImageKind, Result};
use std::fmt;
use twox_hash::XxHash3_128;

mod bytes;

pub use bytes::seal;

/// Name of the manifest inside the image directory.
pub const MANIFEST_NAME: &str = "crust-manifest";
/// What it was called when it was text. Such manifests are still read.
pub const TEXT_NAME: &str = "crust-manifest.json";

/// Of the text that was stored, and of what is stored now.
const TEXT_FORMAT: u64 = 1;
const FORMAT: u64 = 2;
/// More files than a checkpoint of 100,000 tasks has.
const MAX_FILES: usize = 1 << 20;

/// A hash of a file's content.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash(pub u128);

impl ContentHash {
    /// Hashes bytes that are at hand as a whole.
    pub fn of(bytes: &[u8]) -> Self {
        Self(XxHash3_128::oneshot(bytes))
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hash of a file of pages: the sum (modulo 2^128) over all pages of xxh3(xxh3(page), number of the page), numbers being
/// 64 bits, little-endian. Parts of a file can be hashed in any order and added up; a last page cut short counts as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageSum(u128);

/// A hash of one page's content, wherever in the file it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHash(u128);

impl PageHash {
    /// Of a page, the file's last may be short.
    pub fn of(page: &[u8]) -> Self {
        Self(XxHash3_128::oneshot(page))
    }
}

impl PageSum {
    /// Takes whole pages (the file's last may be short) that begin at page `first` of the file.
    pub fn add(&mut self, first: u64, pages: &[u8]) {
        for (page, number) in pages.chunks(PAGE_BYTES as usize).zip(first..) {
            self.take(number, PageHash::of(page));
        }
    }

    /// Takes pages whose content was hashed before it was known that they begin at page `first` of the file.
    pub fn add_hashed(&mut self, first: u64, pages: &[PageHash]) {
        for (&page, number) in pages.iter().zip(first..) {
            self.take(number, page);
        }
    }

    fn take(&mut self, number: u64, page: PageHash) {
        let mut leaf = [0; 24];
        let (hash, at) = leaf.split_at_mut(16);
        hash.copy_from_slice(&page.0.to_le_bytes());
        at.copy_from_slice(&number.to_le_bytes());
        self.0 = self.0.wrapping_add(XxHash3_128::oneshot(&leaf));
    }

    /// Takes what somebody else summed over other pages of the file.
    pub fn join(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }

    /// The hash of all that was taken.
    pub fn finish(self) -> ContentHash {
        ContentHash(self.0)
    }
}

/// Hashes a file that comes piece by piece.
#[derive(Clone)]
pub struct Hasher(Way);

#[derive(Clone)]
enum Way {
    Whole(Box<XxHash3_128>),
    /// The sum, the number of the next page, and the beginning of that page.
    Pages(PageSum, u64, Vec<u8>),
}

impl Hasher {
    /// Starts with nothing, for a file of any kind but pages.
    pub fn new() -> Self {
        Self(Way::Whole(Box::new(XxHash3_128::new())))
    }

    /// Starts with nothing; the file's name says which kind of hash it has.
    pub fn for_file(name: &str) -> Self {
        if is_pages(name) { Self(Way::Pages(PageSum::default(), 0, Vec::new())) } else { Self::new() }
    }

    /// Takes the next piece.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let (sum, next, begun) = match &mut self.0 {
            Way::Whole(hasher) => return hasher.write(bytes),
            Way::Pages(sum, next, begun) => (sum, next, begun),
        };
        let page = PAGE_BYTES as usize;
        if !begun.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(page - begun.len()));
            begun.extend_from_slice(head);
            bytes = rest;
            if begun.len() < page {
                return;
            }
            sum.add(*next, begun);
            *next += 1;
            begun.clear();
        }
        let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % page);
        sum.add(*next, whole);
        *next += (whole.len() / page) as u64;
        begun.extend_from_slice(rest);
    }

    /// The hash of all pieces in a row.
    pub fn finish(&self) -> ContentHash {
        match &self.0 {
            Way::Whole(hasher) => ContentHash(hasher.finish_128()),
            Way::Pages(sum, next, begun) => {
                let mut sum = *sum;
                sum.add(*next, begun);
                sum.finish()
            }
        }
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

/// As much of a hash as a manifest keeps: its last bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest {
    value: u128,
    bits: u32,
}

impl Digest {
    /// Of pages, whose hashes are in no other hash.
    const PAGES_BITS: u32 = 64;
    const OTHER_BITS: u32 = 32;

    /// How much is kept of the hash of such a file.
    fn bits_for(name: &str) -> u32 {
        if is_pages(name) { Self::PAGES_BITS } else { Self::OTHER_BITS }
    }

    fn shortened(self, bits: u32) -> Self {
        let bits = bits.min(self.bits);
        Self { value: self.value & (u128::MAX >> (128 - bits)), bits }
    }

    /// True if this may be what was kept of `hash`.
    pub fn fits(self, hash: ContentHash) -> bool {
        Self::from(hash).shortened(self.bits) == self
    }
}

impl From<ContentHash> for Digest {
    fn from(hash: ContentHash) -> Self {
        Self { value: hash.0, bits: 128 }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0width$x}", self.value, width = (self.bits / 4) as usize)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The member of a manifest's line that holds the hash of such a file.
fn hash_member(name: &str) -> &'static str {
    if is_pages(name) { "xxh3_pages" } else { "xxh3" }
}

/// One file of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileLine {
    /// Plain file name inside the image directory.
    pub name: String,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Hash of the content, of the kind that goes with the name; `None` if it was never computed.
    pub hash: Option<Digest>,
}

/// Something about this checkpoint that a reader has to know, or may want to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name, for instance `compressed-pages`.
    pub name: String,
    /// A reader that does not know it must refuse the checkpoint.
    pub must_understand: bool,
}

/// The list of everything in an image directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Version of crust that wrote it.
    pub version: String,
    /// What readers have to know.
    pub features: Vec<Feature>,
    /// [`Manifest::id`] of the parent checkpoint that some pages come from.
    pub parent: Option<ContentHash>,
    /// All files, ordered by name.
    pub files: Vec<FileLine>,
    /// As it was stored; `None` while the hashes of all files are whole.
    pub stored_id: Option<ContentHash>,
}

/// A name for files by their content: the hash over all of them except page contents, which may be hashed later.
pub fn id_of(files: &[FileLine]) -> ContentHash {
    let mut hasher = Hasher::new();
    let mut lines: Vec<&FileLine> = files.iter().filter(|f| !is_pages(&f.name)).collect();
    lines.sort_by(|a, b| a.name.cmp(&b.name));
    for line in lines {
        let hash = line.hash.map(|h| h.to_string()).unwrap_or_default();
        hasher.update(format!("{}\0{}\0{hash}\n", line.name, line.len_bytes).as_bytes());
    }
    hasher.finish()
}

fn bad(why: impl Into<String>) -> Error {
    Error::text(MANIFEST_NAME, why)
}

impl Manifest {
    /// Names this checkpoint by its content, see [`id_of`].
    pub fn id(&self) -> ContentHash {
        self.stored_id.unwrap_or_else(|| id_of(&self.files))
    }

    /// The line of a file.
    pub fn file(&self, name: &str) -> Option<&FileLine> {
        self.files.iter().find(|f| f.name == name)
    }

    /// Reads what is stored under [`MANIFEST_NAME`] or [`TEXT_NAME`].
    ///
    /// # Errors
    /// If it is not a manifest, was changed, names a file outside of the directory, or is of a later format.
    pub fn read(stored: &[u8]) -> Result<Self> {
        match stored.first() {
            Some(b'{') => Self::from_text(&String::from_utf8_lossy(stored)),
            _ => Self::from_bytes(stored),
        }
    }

    /// As JSON for people, one file a line.
    pub fn show(&self) -> String {
        let text = |s: &str| Json::Str(s.to_owned());
        let files = self.files.iter().map(|f| {
            let mut members =
                vec![("name".to_owned(), text(&f.name)), ("bytes".to_owned(), Json::Int(f.len_bytes.into()))];
            if let Some(hash) = f.hash {
                members.push((hash_member(&f.name).to_owned(), Json::Str(hash.to_string())));
            }
            Json::Object(members)
        });
        let features = self.features.iter().map(|f| {
            Json::Object(vec![
                ("name".to_owned(), text(&f.name)),
                ("must_understand".to_owned(), Json::Bool(f.must_understand)),
            ])
        });
        let mut members = vec![
            ("format".to_owned(), Json::Int(FORMAT.into())),
            ("version".to_owned(), text(&self.version)),
            ("id".to_owned(), Json::Str(self.id().to_string())),
        ];
        if let Some(parent) = &self.parent {
            members.push(("parent".to_owned(), Json::Str(parent.to_string())));
        }
        members.push(("features".to_owned(), Json::Array(features.collect())));
        members.push(("files".to_owned(), Json::Array(files.collect())));
        let member = |(name, value): &(String, Json)| match value {
            Json::Array(items) if !items.is_empty() => {
                let lines: Vec<String> = items.iter().map(|i| format!("  {}", i.to_line())).collect();
                format!(" \"{name}\": [\n{}\n ]", lines.join(",\n"))
            }
            _ => format!(" \"{name}\": {}", value.to_line()),
        };
        format!("{{\n{}\n}}\n", members.iter().map(member).collect::<Vec<_>>().join(",\n"))
    }

    /// Reads the text that the first versions stored.
    fn from_text(text: &str) -> Result<Self> {
        let root = Json::parse(TEXT_NAME, text)?;
        match root.get("format").and_then(Json::as_u64) {
            Some(TEXT_FORMAT) => {}
            Some(later) => return Err(bad(format!("no manifest is text of format {later}"))),
            None => return Err(bad("\"format\" is missing: not a manifest")),
        }
        let (body, end) = text.rfind(CHECK).map(|at| text.split_at(at)).unwrap_or((text, ""));
        if end != check_line(body) {
            return Err(bad("the check in its last line does not fit: the manifest was changed"));
        }
        let string = |json: &Json, name: &str| json.get(name).and_then(Json::as_str).map(str::to_owned);
        let list = |name: &str| root.get(name).and_then(Json::as_array).unwrap_or_default();
        let hash = |text: &str| {
            let hash = u128::from_str_radix(text, 16).map(ContentHash);
            hash.map_err(|_| bad(format!("{text:?} is not a hash")))
        };
        let mut m = Self {
            version: string(&root, "tool").map(|t| t.trim_start_matches("crust ").to_owned()).unwrap_or_default(),
            parent: string(&root, "parent").as_deref().map(hash).transpose()?,
            ..Self::default()
        };
        for feature in list("features") {
            m.features.push(Feature {
                name: string(feature, "name").ok_or_else(|| bad("a feature without name"))?,
                must_understand: feature.get("must_understand").and_then(Json::as_bool).unwrap_or(true),
            });
        }
        for file in list("files") {
            let name = string(file, "name").ok_or_else(|| bad("a file without name"))?;
            let len_bytes = file.get("bytes").and_then(Json::as_u64);
            let len_bytes = len_bytes.ok_or_else(|| bad(format!("{name}: \"bytes\" is missing")))?;
            let digest = string(file, hash_member(&name)).as_deref().map(hash).transpose()?.map(Digest::from);
            m.files.push(FileLine { name, len_bytes, hash: digest });
        }
        let m = m.checked()?;
        if string(&root, "id") != Some(m.id().to_string()) {
            return Err(bad("the id does not fit the list of files: the manifest was changed"));
        }
        Ok(m)
    }

    /// Itself, in order, if what it names are different files inside of the directory.
    fn checked(mut self) -> Result<Self> {
        if self.files.len() > MAX_FILES {
            return Err(bad(format!("more than {MAX_FILES} files")));
        }
        if let Some(file) = self.files.iter().find(|f| !is_plain_name(&f.name)) {
            return Err(bad(format!("{:?} is not the name of a file in this directory", file.name)));
        }
        self.files.sort_by(|a, b| a.name.cmp(&b.name));
        match self.files.windows(2).find(|pair| matches!(pair, [a, b] if a.name == b.name)) {
            Some(pair) => Err(bad(format!("{} is listed twice", pair.first().map_or("", |f| f.name.as_str())))),
            None => Ok(self),
        }
    }

    /// Features that this version does not know and must not ignore.
    pub fn not_understood(&self, known: &[&str]) -> Vec<&str> {
        let unknown = self.features.iter().filter(|f| f.must_understand && !known.contains(&f.name.as_str()));
        unknown.map(|f| f.name.as_str()).collect()
    }
}

/// How the line begins that holds a hash of all lines before it.
const CHECK: &str = " \"check\": ";

/// The lines that end a manifest of text whose others are `body`.
pub fn check_line(body: &str) -> String {
    format!("{CHECK}\"{}\"\n}}\n", ContentHash::of(body.as_bytes()))
}

/// True for a name that stays inside the directory it is used in.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// True for the names under which a manifest is stored.
pub fn is_manifest(name: &str) -> bool {
    name == MANIFEST_NAME || name == TEXT_NAME
}

/// True for the files that hold the bytes of pages.
pub fn is_pages(name: &str) -> bool {
    matches!(ImageKind::of_file_name(name), Some((ImageKind::Pages, _)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let line = |name: &str, len_bytes, hash: Option<ContentHash>| FileLine {
            name: name.to_owned(),
            len_bytes,
            hash: hash.map(Digest::from),
        };
        Manifest {
            version: "0".to_owned(),
            features: vec![Feature { name: "x".to_owned(), must_understand: true }],
            parent: Some(ContentHash(0xab)),
            files: vec![
                line("core-1.img", 3, Some(ContentHash::of(b"abc"))),
                line("core-70000.img", 300, Some(ContentHash::of(b"abd"))),
                line("ghost-file-1f.img", 1 << 40, None),
                line("inventory.img", 80, Some(ContentHash::of(b"inventory"))),
                line("of-no-kind", 1, Some(ContentHash::of(b"x"))),
                line("pages-1.img", 4096, Some(ContentHash::of(b"pages"))),
                line("pages-2.img", 4096, None),
                line("pagemap-shmem-1.img", 20, Some(ContentHash::of(b"shmem"))),
            ],
            stored_id: None,
        }
    }

    /// As the version before the bytes stored it.
    fn stored_text() -> String {
        let hash = ContentHash::of(b"abc");
        let mut m = Manifest { version: "0".to_owned(), ..Manifest::default() };
        m.files = vec![FileLine { name: "core-1.img".to_owned(), len_bytes: 3, hash: Some(hash.into()) }];
        let body = format!(
            "{{\n \"format\": 1,\n \"tool\": \"crust 0\",\n \"id\": \"{}\",\n \"features\": [],\n \"files\": [\n  \
             {{\"name\": \"core-1.img\", \"bytes\": 3, \"xxh3\": \"{hash}\"}}\n ],\n",
            m.id()
        );
        body.clone() + &check_line(&body)
    }

    #[test]
    fn comes_back_with_what_is_kept_of_hashes() -> Result<()> {
        let m = sample();
        let stored = m.to_bytes();
        let back = Manifest::read(&stored)?;
        assert_eq!(
            (&back.version, &back.features, back.parent, back.id()),
            (&m.version, &m.features, m.parent, m.id())
        );
        assert_eq!(back.files.len(), m.files.len());
        for (file, was) in back.files.iter().zip(m.clone().checked()?.files) {
            assert_eq!((&file.name, file.len_bytes), (&was.name, was.len_bytes));
            let whole = was.hash.map(|h| ContentHash(h.value));
            assert_eq!(file.hash.is_some(), whole.is_some(), "{}", file.name);
            if let (Some(kept), Some(whole)) = (file.hash, whole) {
                assert!(kept.fits(whole) && !kept.fits(ContentHash(whole.0 ^ 1)), "{}", file.name);
                assert_eq!(kept.bits, if is_pages(&file.name) { 64 } else { 32 });
                assert!(whole.to_string().ends_with(&kept.to_string()));
            }
        }
        assert_eq!(back.to_bytes(), stored);
        assert_eq!(m.not_understood(&[]), ["x"]);
        assert!(m.not_understood(&["x"]).is_empty());
        Ok(())
    }

    #[test]
    fn files_of_a_process_take_few_bytes() {
        let hash = Some(ContentHash::of(b"x").into());
        let of = |pid: u64| {
            let kinds = [ImageKind::Core, ImageKind::Fs, ImageKind::Ids, ImageKind::Mm, ImageKind::Pagemap];
            kinds.map(|kind| FileLine { name: kind.file_name(pid), len_bytes: 1000, hash })
        };
        let m = Manifest { files: (5000..6000).flat_map(of).collect(), ..Manifest::default() };
        assert!(m.to_bytes().len() < 5000 * 8, "{}", m.to_bytes().len());
    }

    #[test]
    fn id_is_the_content_without_pages() {
        let mut m = sample();
        let id = m.id();
        m.files[5].hash = Some(ContentHash(7).into());
        assert_eq!(m.id(), id, "pages may be hashed later");
        m.files[0].hash = Some(ContentHash::of(b"abd").into());
        assert_ne!(m.id(), id);
    }

    #[test]
    fn changed_and_hostile_bytes_are_refused() {
        let stored = sample().to_bytes();
        for at in 0..stored.len() {
            let mut bytes = stored.clone();
            bytes[at] ^= 1;
            assert!(Manifest::read(&bytes).is_err(), "byte {at}");
            assert!(Manifest::read(&stored[..at]).is_err(), "cut at {at}");
        }
        let hostile = |name: &str, said: &str| {
            let mut m = sample();
            m.files[4].name = name.to_owned();
            let e = Manifest::read(&m.to_bytes()).unwrap_err().to_string();
            assert!(e.contains(said), "{e}");
        };
        hostile("../core-1", "is not the name of a file");
        hostile("core-1.img", "listed twice");
        let mut later = stored[..stored.len() - 4].to_vec();
        later[3] += 1;
        let e = Manifest::read(&seal(later)).unwrap_err().to_string();
        assert!(e.contains("newer"), "{e}");
        let e = Manifest::read(b"something else").unwrap_err().to_string();
        assert!(e.contains("not a manifest"), "{e}");
    }

    #[test]
    fn stored_text_is_read_unless_it_was_changed() {
        let text = stored_text();
        let m = Manifest::read(text.as_bytes()).unwrap();
        assert_eq!(m.version, "0");
        assert!(m.file("core-1.img").unwrap().hash.unwrap().fits(ContentHash::of(b"abc")));
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(Manifest::read(&bytes).is_err(), "byte {at}");
        }
        let body = &text[..text.rfind(CHECK).unwrap()];
        for (from, to, said) in [
            ("\"bytes\": 3", "\"bytes\": 4", "the id does not fit"),
            ("core-1.img", "../core-1", "is not the name of a file"),
            ("\"format\"", "\"formal\"", "not a manifest"),
        ] {
            assert!(body.contains(from), "{from}");
            let body = body.replace(from, to);
            let e = Manifest::read((body.clone() + &check_line(&body)).as_bytes()).unwrap_err().to_string();
            assert!(e.contains(said), "{e}");
        }
    }

    #[test]
    fn what_fits_file_by_file_must_fit_as_a_whole() {
        let name = ImageKind::PluginData.file_name(1);
        let line = FileLine { name: name.clone(), len_bytes: 1, hash: Some(ContentHash::of(b"x").into()) };
        let mut m = Manifest { files: vec![line], ..Manifest::default() };
        let mut said = |id| {
            m.stored_id = id;
            let images = [(name.clone(), b"x".to_vec()), (MANIFEST_NAME.to_owned(), m.to_bytes())];
            let set = std::collections::BTreeMap::from(images);
            crate::tools::verify(&set)
                .unwrap()
                .problems
                .iter()
                .any(|p| p.contains("some image is not what was written"))
        };
        assert!(!said(None));
        assert!(said(Some(ContentHash(1))));
    }

    #[test]
    fn is_shown_as_json() {
        let shown = sample().show();
        let json = Json::parse("shown", &shown).unwrap();
        assert_eq!(json.get("files").and_then(Json::as_array).map(<[Json]>::len), Some(8), "{shown}");
        assert!(shown.contains("\"name\": \"core-1.img\", \"bytes\": 3, \"xxh3\": "), "{shown}");
    }

    #[test]
    fn pieces_hash_like_the_whole() {
        let bytes: Vec<u8> = (0..10_000_u32).map(|n| (n % 251) as u8).collect();
        let mut h = Hasher::for_file("core-1.img");
        bytes.chunks(333).for_each(|c| h.update(c));
        assert_eq!(h.finish(), ContentHash::of(&bytes));

        let mut whole = PageSum::default();
        whole.add(0, &bytes);
        for len in [1, 333, 4096, 5000, 10_000] {
            let mut h = Hasher::for_file("pages-1.img");
            bytes.chunks(len).for_each(|c| h.update(c));
            assert_eq!(h.finish(), whole.finish(), "{len}");
        }
    }

    #[test]
    fn pages_sum_in_any_order_and_every_change_shows() {
        let mut bytes: Vec<u8> = (0..20_000_u32).map(|n| (n % 251) as u8).collect();
        let sum = |bytes: &[u8]| {
            let mut sum = PageSum::default();
            sum.add(0, bytes);
            sum
        };
        let whole = sum(&bytes);
        let (mut late, mut early) = (PageSum::default(), PageSum::default());
        late.add(2, &bytes[8192..]);
        early.add(0, &bytes[..8192]);
        late.join(early);
        assert_eq!(late, whole);
        let hashed: Vec<PageHash> = bytes.chunks(PAGE_BYTES as usize).map(PageHash::of).collect();
        let mut by_hash = PageSum::default();
        by_hash.add_hashed(2, &hashed[2..]);
        by_hash.add_hashed(0, &hashed[..2]);
        assert_eq!(by_hash, whole);
        for at in (0..bytes.len()).step_by(97) {
            bytes[at] ^= 1;
            assert_ne!(sum(&bytes), whole, "{at}");
            bytes[at] ^= 1;
        }
        // Two equal pages count twice, and pages that change places are noticed.
        assert_ne!(sum(&[7; 8192]), PageSum::default());
        let mut swapped = bytes.clone();
        swapped.copy_within(4096..8192, 0);
        swapped[4096..8192].copy_from_slice(&bytes[..4096]);
        assert_ne!(sum(&swapped), whole);
    }
}

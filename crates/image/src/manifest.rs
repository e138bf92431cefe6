//! The manifest: what files a checkpoint consists of, so that a torn copy or a changed byte is found.
//!
//! It lies beside the images as `crust-manifest.json`; CRIU and its tools ignore it. Its hashes are xxh3-128: they find
//! damage, they do not withstand forgery. Two kinds: `xxh3` of a whole file (`xxh128sum` gives the same), and for the bytes
//! of pages `xxh3_pages`, a sum over pages that several threads can compute, each over a part, see [`PageSum`].
use crate::json::Json;
use crate::pagemap::PAGE_BYTES;
use crate::{Error, ImageKind, Result};
use std::fmt;
use twox_hash::XxHash3_128;

/// Name of the manifest inside the image directory.
pub const MANIFEST_NAME: &str = "crust-manifest.json";

const FORMAT: u64 = 1;
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

impl PageSum {
    /// Takes whole pages (the file's last may be short) that begin at page `first` of the file.
    pub fn add(&mut self, first: u64, pages: &[u8]) {
        for (page, number) in pages.chunks(PAGE_BYTES as usize).zip(first..) {
            let mut leaf = [0; 24];
            let (hash, at) = leaf.split_at_mut(16);
            hash.copy_from_slice(&XxHash3_128::oneshot(page).to_le_bytes());
            at.copy_from_slice(&number.to_le_bytes());
            self.0 = self.0.wrapping_add(XxHash3_128::oneshot(&leaf));
        }
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
    pub hash: Option<ContentHash>,
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
    /// Who wrote it.
    pub tool: String,
    /// What readers have to know.
    pub features: Vec<Feature>,
    /// [`Manifest::id`] of the parent checkpoint that some pages come from.
    pub parent: Option<String>,
    /// All files, ordered by name.
    pub files: Vec<FileLine>,
}

impl Manifest {
    /// Names this checkpoint by its content: the hash over all files except page contents, which may be hashed later.
    pub fn id(&self) -> String {
        let mut hasher = Hasher::new();
        let mut lines: Vec<&FileLine> = self.files.iter().filter(|f| !is_pages(&f.name)).collect();
        lines.sort_by(|a, b| a.name.cmp(&b.name));
        for line in lines {
            let hash = line.hash.map(|h| h.to_string()).unwrap_or_default();
            hasher.update(format!("{}\0{}\0{hash}\n", line.name, line.len_bytes).as_bytes());
        }
        hasher.finish().to_string()
    }

    /// The line of a file.
    pub fn file(&self, name: &str) -> Option<&FileLine> {
        self.files.iter().find(|f| f.name == name)
    }

    /// The text to store.
    pub fn to_text(&self) -> String {
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
            ("tool".to_owned(), text(&self.tool)),
            ("id".to_owned(), Json::Str(self.id())),
        ];
        if let Some(parent) = &self.parent {
            members.push(("parent".to_owned(), text(parent)));
        }
        members.push(("features".to_owned(), Json::Array(features.collect())));
        members.push(("files".to_owned(), Json::Array(files.collect())));
        // One file a line: readable, and small enough for thousands of files.
        let mut out = String::from("{\n");
        for (name, value) in &members {
            match value {
                Json::Array(items) if !items.is_empty() => {
                    let lines: Vec<String> = items.iter().map(|i| format!("  {}", i.to_line())).collect();
                    out.push_str(&format!(" \"{name}\": [\n{}\n ],\n", lines.join(",\n")));
                }
                _ => out.push_str(&format!(" \"{name}\": {},\n", value.to_line())),
            }
        }
        let end = check_line(&out);
        out + &end
    }

    /// Reads what [`Manifest::to_text`] wrote, and what later versions add to it.
    ///
    /// # Errors
    /// If it is not a manifest, names a file outside of the directory, is of a later format, or its id does not fit.
    pub fn from_text(text: &str) -> Result<Self> {
        let bad = |why: String| Error::text(MANIFEST_NAME, why);
        let root = Json::parse(MANIFEST_NAME, text)?;
        if root.get("format").and_then(Json::as_u64) == Some(FORMAT) {
            let (body, end) = text.rfind(CHECK).map(|at| text.split_at(at)).unwrap_or((text, ""));
            if end != check_line(body) {
                return Err(bad("the check in its last line does not fit: the manifest was changed".to_owned()));
            }
        }
        match root.get("format").and_then(Json::as_u64) {
            Some(FORMAT) => {}
            Some(later) => return Err(bad(format!("format {later} is newer than this version of crust understands"))),
            None => return Err(bad("\"format\" is missing: not a manifest".to_owned())),
        }
        let string = |json: &Json, name: &str| json.get(name).and_then(Json::as_str).map(str::to_owned);
        let list = |name: &str| root.get(name).and_then(Json::as_array).unwrap_or_default();
        let mut m = Self {
            tool: string(&root, "tool").unwrap_or_default(),
            parent: string(&root, "parent"),
            ..Self::default()
        };
        for feature in list("features") {
            m.features.push(Feature {
                name: string(feature, "name").ok_or_else(|| bad("a feature without name".to_owned()))?,
                must_understand: feature.get("must_understand").and_then(Json::as_bool).unwrap_or(true),
            });
        }
        if list("files").len() > MAX_FILES {
            return Err(bad(format!("more than {MAX_FILES} files")));
        }
        for file in list("files") {
            let name = string(file, "name").ok_or_else(|| bad("a file without name".to_owned()))?;
            if !is_plain_name(&name) {
                return Err(bad(format!("{name:?} is not the name of a file in this directory")));
            }
            let len_bytes = file.get("bytes").and_then(Json::as_u64);
            let len_bytes = len_bytes.ok_or_else(|| bad(format!("{name}: \"bytes\" is missing")))?;
            let hash = match file.get(hash_member(&name)) {
                None => None,
                Some(hash) => Some(
                    hash.as_str()
                        .and_then(|h| u128::from_str_radix(h, 16).ok())
                        .map(ContentHash)
                        .ok_or_else(|| bad(format!("{name}: {:?} is not a hash", hash_member(&name))))?,
                ),
            };
            m.files.push(FileLine { name, len_bytes, hash });
        }
        m.files.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = m.files.windows(2).find(|pair| matches!(pair, [a, b] if a.name == b.name)) {
            return Err(bad(format!("{} is listed twice", pair.first().map_or("", |f| f.name.as_str()))));
        }
        if root.get("id").and_then(Json::as_str) != Some(&m.id()) {
            return Err(bad("the id does not fit the list of files: the manifest was changed".to_owned()));
        }
        Ok(m)
    }

    /// Features that this version does not know and must not ignore.
    pub fn not_understood(&self, known: &[&str]) -> Vec<&str> {
        let unknown = self.features.iter().filter(|f| f.must_understand && !known.contains(&f.name.as_str()));
        unknown.map(|f| f.name.as_str()).collect()
    }
}

/// How the line begins that holds a hash of all lines before it.
const CHECK: &str = " \"check\": ";

/// The lines that end a manifest whose others are `body`.
pub fn check_line(body: &str) -> String {
    format!("{CHECK}\"{}\"\n}}\n", ContentHash::of(body.as_bytes()))
}

/// True for a name that stays inside the directory it is used in.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// True for the files that hold the bytes of pages.
pub fn is_pages(name: &str) -> bool {
    matches!(ImageKind::of_file_name(name), Some((ImageKind::Pages, _)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        Manifest {
            tool: "crust 0".to_owned(),
            features: vec![Feature { name: "x".to_owned(), must_understand: true }],
            parent: Some("ab".to_owned()),
            files: vec![
                FileLine { name: "core-1.img".to_owned(), len_bytes: 3, hash: Some(ContentHash::of(b"abc")) },
                FileLine { name: "pages-1.img".to_owned(), len_bytes: 4096, hash: None },
            ],
        }
    }

    #[test]
    fn comes_back() -> Result<()> {
        let m = sample();
        assert_eq!(Manifest::from_text(&m.to_text())?, m);
        assert_eq!(m.not_understood(&[]), ["x"]);
        assert!(m.not_understood(&["x"]).is_empty());
        Ok(())
    }

    #[test]
    fn id_is_the_content_without_pages() {
        let mut m = sample();
        let id = m.id();
        m.files[1].hash = Some(ContentHash(7));
        assert_eq!(m.id(), id, "pages may be hashed later");
        m.files[0].hash = Some(ContentHash::of(b"abd"));
        assert_ne!(m.id(), id);
    }

    #[test]
    fn changed_and_hostile_text_is_refused() {
        let text = sample().to_text();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(Manifest::from_text(&String::from_utf8(bytes).unwrap()).is_err(), "byte {at}");
        }
        let body = &text[..text.rfind(CHECK).unwrap()];
        for (from, to, said) in [
            ("\"bytes\": 3", "\"bytes\": 4", "the id does not fit"),
            ("core-1.img", "../core-1", "is not the name of a file"),
            ("\"format\": 1", "\"format\": 2", "newer"),
            ("pages-1.img", "core-1.img", "twice"),
            ("\"format\"", "\"formal\"", "not a manifest"),
        ] {
            assert!(body.contains(from), "{from}");
            let body = body.replace(from, to);
            let e = Manifest::from_text(&(body.clone() + &check_line(&body))).unwrap_err().to_string();
            assert!(e.contains(said), "{e}");
        }
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

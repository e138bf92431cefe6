//! The manifest: what files a checkpoint consists of, so that a torn copy or a changed byte is found.
//!
//! It lies beside the images as `crust-manifest.json`; CRIU and its tools ignore it. Its hashes are xxh3-128: they find
//! damage, they do not withstand forgery.
use crate::json::Json;
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

/// Hashes bytes that come piece by piece.
#[derive(Clone)]
pub struct Hasher(XxHash3_128);

impl Hasher {
    /// Starts with nothing.
    pub fn new() -> Self {
        Self(XxHash3_128::new())
    }

    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The hash of all pieces in a row.
    pub fn finish(&self) -> ContentHash {
        ContentHash(self.0.finish_128())
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

/// One file of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileLine {
    /// Plain file name inside the image directory.
    pub name: String,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Hash of the content; `None` if it was too much to hash before the tree had to go on.
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
                members.push(("xxh3".to_owned(), Json::Str(hash.to_string())));
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
        let last = members.len() - 1;
        for (at, (name, value)) in members.iter().enumerate() {
            let end = if at == last { "\n" } else { ",\n" };
            match value {
                Json::Array(items) if !items.is_empty() => {
                    let lines: Vec<String> = items.iter().map(|i| format!("  {}", i.to_line())).collect();
                    out.push_str(&format!(" \"{name}\": [\n{}\n ]{end}", lines.join(",\n")));
                }
                _ => out.push_str(&format!(" \"{name}\": {}{end}", value.to_line())),
            }
        }
        out.push_str("}\n");
        out
    }

    /// Reads what [`Manifest::to_text`] wrote, and what later versions add to it.
    ///
    /// # Errors
    /// If it is not a manifest, names a file outside of the directory, is of a later format, or its id does not fit.
    pub fn from_text(text: &str) -> Result<Self> {
        let bad = |why: String| Error::text(MANIFEST_NAME, why);
        let root = Json::parse(MANIFEST_NAME, text)?;
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
            let hash = match file.get("xxh3") {
                None => None,
                Some(hash) => Some(
                    hash.as_str()
                        .and_then(|h| u128::from_str_radix(h, 16).ok())
                        .map(ContentHash)
                        .ok_or_else(|| bad(format!("{name}: \"xxh3\" is not a hash")))?,
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
        for (from, to, said) in [
            ("\"bytes\": 3", "\"bytes\": 4", "the id does not fit"),
            ("core-1.img", "../core-1", "is not the name of a file"),
            ("\"format\": 1", "\"format\": 2", "newer"),
            ("pages-1.img", "core-1.img", "twice"),
            ("\"format\"", "\"formal\"", "not a manifest"),
        ] {
            assert!(text.contains(from), "{from}");
            let e = Manifest::from_text(&text.replace(from, to)).unwrap_err().to_string();
            assert!(e.contains(said), "{e}");
        }
    }

    #[test]
    fn pieces_hash_like_the_whole() {
        let bytes: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
        let mut h = Hasher::new();
        bytes.chunks(333).for_each(|c| h.update(c));
        assert_eq!(h.finish(), ContentHash::of(&bytes));
    }
}

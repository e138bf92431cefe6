//! What is fuzzed: every reader of the image crate, on bytes from anywhere. Nothing may panic, and what decodes must encode
//! to something that decodes to the same.
use crust_image::json::Json;
use crust_image::manifest::{Manifest, check_line, is_plain_name, seal};
use crust_image::pagemap::{Chain, Pagemap};
use crust_image::proto::{CoreEntry, FileEntry, InventoryEntry, MmEntry};
use crust_image::streamer;
use crust_image::tar::{self, TarSet};
use crust_image::{ImageKind, Message, Reader, Style, count_records, decode_image, encode_image, tools};
use std::collections::{BTreeMap, BTreeSet};

/// One image file of any kind, known by its magic.
pub fn image(data: &[u8]) {
    for pretty in [false, true] {
        for without_payload in [false, true] {
            let Ok(json) = decode_image("fuzz", data, Style { pretty, without_payload }) else { continue };
            let text = if pretty { json.to_pretty() } else { json.to_line() };
            let parsed = Json::parse("fuzz", &text).expect("what we wrote is JSON");
            if without_payload {
                continue;
            }
            // Required fields may be absent in bytes, never in what is encoded.
            if let Ok(bytes) = encode_image("fuzz", &parsed) {
                let again =
                    decode_image("fuzz", &bytes, Style { pretty, without_payload }).expect("what we encoded decodes");
                assert_eq!(text, if pretty { again.to_pretty() } else { again.to_line() });
            }
        }
    }
    let _count = count_records("fuzz", data);
    typed::<InventoryEntry>(data, ImageKind::Inventory);
    typed::<CoreEntry>(data, ImageKind::Core);
    typed::<MmEntry>(data, ImageKind::Mm);
    typed::<FileEntry>(data, ImageKind::Files);
    if let Ok(map) = Pagemap::parse("fuzz", data, ImageKind::Pagemap) {
        let again = Pagemap::parse("fuzz", &map.encode(ImageKind::Pagemap).expect("encodes"), ImageKind::Pagemap);
        assert_eq!(again.as_ref(), Ok(&map));
        let chain = Chain::new(vec![map.clone(), map]).expect("two levels");
        if let Ok(pieces) = chain.pieces() {
            for piece in pieces.iter().take(100) {
                assert!(chain.lookup(piece.vaddr).is_ok_and(|p| p.is_some()));
            }
        }
    }
}

fn typed<T: Message + Default>(data: &[u8], kind: ImageKind) {
    let Ok(mut r) = Reader::open(data, kind) else { return };
    while let Ok(Some(record)) = r.next::<T>() {
        let _length = record.encoded_len();
    }
}

/// The files of a checkpoint: for each a byte for its kind, two for its length, and its bytes.
pub fn checkpoint(data: &[u8]) {
    let kinds: Vec<ImageKind> = ImageKind::all().collect();
    let mut set = BTreeMap::new();
    let mut rest = data;
    while let [kind, low, high, after @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
        let (bytes, next) = after.split_at(len);
        rest = next;
        let kind = kinds[usize::from(*kind) % kinds.len()];
        set.insert(kind.file_name(1), bytes.to_vec());
    }
    let _results = (tools::verify(&set), tools::tree(&set, true), tools::tree_json(&set), tools::html(&set));
    let _results = (tools::ps(&set), tools::fds(&set), tools::mems(&set), tools::rss(&set));
    if let Ok(same) = tools::diff(&set, &set) {
        assert_eq!(same, "");
    }
    let _difference = tools::diff(&set, &BTreeMap::new());
}

/// Text that may be an image as JSON.
pub fn json(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(json) = Json::parse("fuzz", text) else { return };
    assert_eq!(Json::parse("fuzz", &json.to_line()).map(|j| j.to_line()), Ok(json.to_line()));
    if let Ok(bytes) = encode_image("fuzz", &json) {
        decode_image("fuzz", &bytes, Style::default()).expect("what we encoded decodes");
    }
}

/// Bytes or text that may be a manifest.
pub fn manifest(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let unchecked = data.len().saturating_sub(4);
    // As it is, and as if whoever changed it had made its check fit.
    for stored in [data.to_vec(), seal(data[..unchecked].to_vec()), format!("{text}{}", check_line(&text)).into()] {
        if let Ok(m) = Manifest::read(&stored) {
            let again = Manifest::read(&m.to_bytes()).expect("what we wrote is a manifest");
            assert_eq!(again.to_bytes(), m.to_bytes());
            assert_eq!(Json::parse("fuzz", &m.show()).map(|_| ()), Ok(()));
        }
    }
}

/// A tar archive from anywhere: what comes out of it are plain names, each once, and as many bytes as were announced.
pub fn tar(data: &[u8]) {
    let mut seen = BTreeSet::new();
    let _what_came = tar::read(data, |file| {
        assert!(is_plain_name(&file.name) && seen.insert(file.name.clone()), "{:?}", file.name);
        file.read_all(1 << 20).map(|content| assert_eq!(content.len() as u64, file.len_bytes))
    });
    for hashes in [false, true] {
        if let Ok(set) = TarSet::read(data, hashes) {
            let _results = (tools::verify(&set), tools::tree(&set, false));
        }
    }
}

/// Bytes that a streamer, or somebody in its place, sends.
pub fn streamer(data: &[u8]) {
    let mut from = data;
    while let Ok(Some(name)) = streamer::read_request(&mut from) {
        let again = streamer::request(&name);
        assert_eq!(streamer::read_request(&mut again.as_slice()), Ok(Some(name)));
    }
    let mut from = data;
    while let Ok(Some(exists)) = streamer::read_reply(&mut from) {
        assert_eq!(streamer::read_reply(&mut streamer::reply(exists).as_slice()), Ok(Some(exists)));
    }
}

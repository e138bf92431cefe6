//! The fuzz targets over their corpus and damaged copies of it: a short replay for every ordinary test run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, helpers outside of #[test] functions too")]
#[allow(unreachable_pub, reason = "the fuzz workspace has the same file as a library")]
#[path = "../../../fuzz/src/targets.rs"]
mod targets;

use std::path::Path;

/// Runs a target over its corpus; every file whole, cut short, with single bytes changed, and with pieces of the next one in it.
fn replay(target: &str, run: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let all: Vec<Vec<u8>> = files.iter().map(|f| std::fs::read(f).unwrap()).collect();
    // The same damage in every run: xorshift from a fixed seed.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    for (at, whole) in all.iter().enumerate() {
        run(whole);
        let damages = (25_000 / whole.len().max(1)).clamp(2, 20);
        for _ in 0..damages {
            run(&whole[..random(whole.len())]);
            let mut changed = whole.clone();
            for _ in 0..=random(4) {
                let place = random(changed.len());
                if let Some(byte) = changed.get_mut(place) {
                    *byte = [0, 0xff, *byte ^ 1, *byte ^ 0x80, random(256) as u8][random(5)];
                }
            }
            run(&changed);
            let other = &all[(at + 1) % all.len()];
            let piece = &other[random(other.len())..];
            let mut mixed = whole[..random(whole.len())].to_vec();
            mixed.extend_from_slice(&piece[..piece.len().min(500)]);
            run(&mixed);
        }
    }
}

#[test]
fn image() {
    replay("image", targets::image);
}

#[test]
fn checkpoint() {
    replay("checkpoint", targets::checkpoint);
}

#[test]
fn json() {
    replay("json", targets::json);
}

#[test]
fn manifest() {
    replay("manifest", targets::manifest);
}

#[test]
fn tar() {
    replay("tar", targets::tar);
}

#[test]
fn streamer() {
    replay("streamer", targets::streamer);
}

/// What is written record by record is what the whole would be.
#[test]
fn text_is_the_same_piece_by_piece() {
    use crust_image::{Style, decode_image, tools};
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/image");
    let mut compared = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        for pretty in [false, true] {
            let Ok(json) = decode_image("x", &bytes, Style { pretty, without_payload: false }) else { continue };
            let whole = if pretty { json.to_pretty() } else { json.to_line() };
            assert_eq!(tools::decode("x", &bytes, pretty).unwrap(), whole);
            compared += 1;
        }
    }
    assert!(compared > 100, "{compared}");
}

//! The fuzz targets of the decoders of requests and of what plugins say over their corpora and damaged copies of them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#[allow(unreachable_pub, reason = "the fuzz workspace has the same file")]
#[path = "../../../fuzz/src/plugin.rs"]
mod plugin;
#[allow(unreachable_pub, reason = "the fuzz workspace has the same file")]
#[path = "../../../fuzz/src/request.rs"]
mod request;

use std::path::Path;

#[test]
fn requests_whole_cut_and_changed() {
    whole_cut_and_changed("request", request::request);
    request::request(&[8; 5000]);
}

#[test]
fn replies_of_plugins_whole_cut_and_changed() {
    whole_cut_and_changed("plugin", plugin::reply);
    plugin::reply(&[8; 5000]);
}

fn whole_cut_and_changed(corpus: &str, target: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(corpus);
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 8);
    // The same damage in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    for file in files {
        let whole = std::fs::read(file).unwrap();
        target(&whole);
        for end in 0..whole.len() {
            target(&whole[..end]);
        }
        for _ in 0..1000 {
            let mut changed = whole.clone();
            for _ in 0..=random(4) {
                let place = random(changed.len());
                if let Some(byte) = changed.get_mut(place) {
                    *byte = [0, 0xff, *byte ^ 1, *byte ^ 0x80, random(256) as u8][random(5)];
                }
            }
            target(&changed);
        }
    }
}

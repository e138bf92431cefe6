//! A private mapping of a file with some pages changed: these are ours, the others are the file's.
use std::os::fd::AsFd;
use zoo::mem::{Map, PAGE, fill, holds};

const PAGES: usize = 8;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mut content = vec![0; PAGES * PAGE];
    content.chunks_exact_mut(PAGE).enumerate().for_each(|(i, page)| fill(page, i as u64));
    let file = zoo.path("mapped");
    let done = std::fs::write(&file, &content);
    zoo.get("writing the file", done);
    let Ok(open) = std::fs::File::open(&file) else { return };
    let flags = libc::MAP_PRIVATE;
    let mut map = Map::new(PAGES * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, Some((open.as_fd(), 0)));
    let late = Map::new(2 * PAGE, libc::PROT_READ, flags, Some((open.as_fd(), 6 * PAGE as i64)));
    drop(open);
    loop {
        let seed = 100 + u64::from(zoo.round());
        for page in [2, 5] {
            fill(&mut map.bytes_mut()[page * PAGE..][..PAGE], seed);
        }
        let on = zoo.gap();
        for (i, page) in map.bytes().chunks_exact(PAGE).enumerate() {
            let want = if i == 2 || i == 5 { seed } else { i as u64 };
            zoo.ok(&format!("page {i}"), holds(page, want));
        }
        zoo.ok("mapping with an offset", late.bytes() == &content[6 * PAGE..]);
        zoo.ok("the file itself", std::fs::read(&file).is_ok_and(|now| now == content));
        if !on {
            return;
        }
    }
}

//! Memory inherited over fork: pages that parent and child still share, and pages that each changed for itself.
use zoo::mem::{Map, PAGE, fill, holds};

const PAGES: usize = 1024;

fn check(zoo: &mut zoo::Zoo, map: &Map, mine: u64) {
    for (i, page) in map.bytes().chunks_exact(PAGE).enumerate() {
        let seed = if (i as u64) % 10 == mine { 1000 + mine } else { i as u64 };
        zoo.ok(&format!("page {i}"), holds(page, seed));
    }
}

fn change(map: &mut Map, mine: u64) {
    for (i, page) in map.bytes_mut().chunks_exact_mut(PAGE).enumerate() {
        if (i as u64) % 10 == mine {
            fill(page, 1000 + mine);
        }
    }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mut map = Map::anon(PAGES * PAGE);
    map.bytes_mut().chunks_exact_mut(PAGE).enumerate().for_each(|(i, page)| fill(page, i as u64));
    for child in 1..4 {
        zoo.fork(&format!("child{child}"), |mut zoo| {
            change(&mut map, child);
            while zoo.gap() {
                check(&mut zoo, &map, child);
            }
        });
    }
    change(&mut map, 9);
    while zoo.gap() {
        check(&mut zoo, &map, 9);
    }
}

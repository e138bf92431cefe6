//! Pages that a tree of forks shares by copying on write are shared again, over several levels and between equal children;
//! what one process changed, dropped or protected is its own.
use std::os::fd::AsFd;
use zoo::mem::{Map, PAGE, fill, frames, holds};

const PAGES: usize = 64;

struct Memory {
    anon: Map,
    file: Map,
}

/// What a process did to the pages of each class of eight: [`Some`] seed of its own content, or dropped.
type Done<'a> = &'a [(usize, Option<u64>)];

fn original(page: usize) -> u64 {
    100 + page as u64
}

fn change(m: &mut Memory, done: Done<'_>) {
    for &(class, seed) in done {
        for page in (class..PAGES).step_by(8) {
            for map in [&mut m.anon, &mut m.file] {
                match seed {
                    Some(seed) => fill(&mut map.bytes_mut()[page * PAGE..][..PAGE], seed + page as u64),
                    None => zoo::must(map.advise_at(page * PAGE, PAGE, libc::MADV_DONTNEED)),
                }
            }
        }
    }
}

fn check(zoo: &mut zoo::Zoo, m: &Memory, done: Done<'_>) {
    for page in 0..PAGES {
        let mine = done.iter().rev().find(|d| page % 8 == d.0).map(|d| d.1);
        let (anon, file) = (&m.anon.bytes()[page * PAGE..][..PAGE], &m.file.bytes()[page * PAGE..][..PAGE]);
        match mine {
            Some(None) => {
                zoo.ok(&format!("page {page} is empty"), anon.iter().all(|&b| b == 0));
                zoo.ok(&format!("page {page} is the file's"), file.iter().all(|&b| b == b'f'));
            }
            other => {
                let seed = other.flatten().map_or(original(page), |seed| seed + page as u64);
                zoo.ok(&format!("page {page}"), holds(anon, seed) && holds(file, seed));
            }
        }
    }
}

/// A member that changes its memory and checks it in every round. `before` is what it inherited.
fn member(mut zoo: zoo::Zoo, m: &mut Memory, before: Done<'_>, own: Done<'_>) {
    change(m, own);
    while zoo.gap() {
        check(&mut zoo, m, &[before, own].concat());
    }
}

/// All pages but those of these classes are the same in both processes.
fn shared(zoo: &mut zoo::Zoo, m: &Memory, a: i32, b: i32, but: &[usize]) {
    for (what, map) in [("memory", &m.anon), ("file", &m.file)] {
        let same = |page: usize| but.contains(&(page % 8)) || frames(a, map, page) == frames(b, map, page);
        // The kernel may move a page between two looks.
        let lost: Vec<usize> = (0..PAGES).filter(|&p| !(0..50).any(|_| same(p))).collect();
        zoo.ok(&format!("{what} of {a} and {b}: pages {lost:?} are not shared"), lost.is_empty());
    }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::write("file", vec![b'f'; PAGES * PAGE]));
    let file = zoo::must(std::fs::File::open("file"));
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    let mut m = Memory {
        anon: Map::anon(PAGES * PAGE),
        file: Map::new(PAGES * PAGE, rw, libc::MAP_PRIVATE, Some((file.as_fd(), 0))),
    };
    for page in 0..PAGES {
        for map in [&mut m.anon, &mut m.file] {
            fill(&mut map.bytes_mut()[page * PAGE..][..PAGE], original(page));
        }
    }
    let me = zoo::sys::getpid();
    if frames(me, &m.anon, 0).is_none() {
        zoo.skip("page frames are hidden from us");
    }
    let parent = &[(1, Some(1000)), (5, None)];
    zoo.expect("grandchild");
    let child = zoo.fork("child", |mut zoo| {
        change(&mut m, parent);
        let grandchild = zoo.fork("grandchild", |zoo| member(zoo, &mut m, parent, &[(2, Some(2000))]));
        zoo.tell("pid.grandchild", &grandchild.to_string());
        let me = zoo::sys::getpid();
        while zoo.gap() {
            check(&mut zoo, &m, parent);
            shared(&mut zoo, &m, me, grandchild, &[2, 5]);
        }
    });
    // Equal in all but some pages.
    let left = zoo.fork("left", |zoo| member(zoo, &mut m, &[], &[(3, Some(3000))]));
    let right = zoo.fork("right", |zoo| member(zoo, &mut m, &[], &[(3, Some(4000)), (4, None)]));
    let grandchild = zoo.hear("pid.grandchild").and_then(|p| p.parse().ok()).unwrap_or(-1);
    change(&mut m, &[(6, Some(6000))]);
    while zoo.gap() {
        check(&mut zoo, &m, &[(6, Some(6000))]);
        shared(&mut zoo, &m, me, child, &[1, 5, 6]);
        shared(&mut zoo, &m, child, grandchild, &[2, 5]);
        shared(&mut zoo, &m, me, left, &[3, 6]);
        shared(&mut zoo, &m, me, right, &[3, 4, 6]);
        shared(&mut zoo, &m, left, right, &[3, 4, 6]);
    }
}

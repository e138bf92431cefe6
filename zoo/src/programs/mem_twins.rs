//! Many children that are equal but for some pages: those that they share with each other alone, for their parent has changed
//! or dropped its own, are shared again.
use zoo::mem::{Map, PAGE, fill, frames, holds};

const PAGES: usize = 32;
const CHILDREN: u64 = 12;

/// The last page is read-only by the time of the dump.
const PROTECTED: usize = PAGES - 1;

fn seed(page: usize) -> u64 {
    50 + page as u64
}

/// Each child has a page of its own, drops the one before it, and has its own last page.
fn own(n: u64) -> (usize, usize) {
    (2 * n as usize + 1, 2 * n as usize)
}

fn member(mut zoo: zoo::Zoo, map: &mut Map, n: u64) {
    let (changed, dropped) = own(n);
    let mut write = |page: usize| fill(&mut map.bytes_mut()[page * PAGE..][..PAGE], 1000 * (n + 1) + page as u64);
    write(changed);
    write(PROTECTED);
    zoo::must(map.advise_at(dropped * PAGE, PAGE, libc::MADV_DONTNEED));
    map.protect(PROTECTED * PAGE, PAGE, libc::PROT_READ);
    while zoo.gap() {
        for page in 0..PAGES {
            let bytes = &map.bytes()[page * PAGE..][..PAGE];
            let right = match page {
                p if p == dropped => bytes.iter().all(|&b| b == 0),
                p if p == changed || p == PROTECTED => holds(bytes, 1000 * (n + 1) + page as u64),
                _ => holds(bytes, seed(page)),
            };
            zoo.ok(&format!("page {page}"), right);
        }
    }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mut map = Map::anon(PAGES * PAGE);
    for page in 0..PAGES {
        fill(&mut map.bytes_mut()[page * PAGE..][..PAGE], seed(page));
    }
    if frames(zoo::sys::getpid(), &map, 0).is_none() {
        zoo.skip("page frames are hidden from us");
    }
    let children: Vec<i32> =
        (0..CHILDREN).map(|n| zoo.fork(&format!("child{n}"), |zoo| member(zoo, &mut map, n))).collect();
    // From here on only the children share these with anybody.
    zoo::must(map.advise(libc::MADV_DONTNEED));
    map.protect(PROTECTED * PAGE, PAGE, libc::PROT_READ);
    while zoo.gap() {
        zoo.ok("ours are empty", map.bytes().iter().all(|&b| b == 0));
        for (n, pair) in (0..).zip(children.windows(2)) {
            let not =
                |page: usize| [own(n), own(n + 1)].iter().any(|o| page == o.0 || page == o.1) || page == PROTECTED;
            // The first is the others' model: what it has for itself alone, they do not share with each other.
            let model = |page: usize| page < 2;
            let same = |p: usize| not(p) || model(p) || frames(pair[0], &map, p) == frames(pair[1], &map, p);
            // The kernel may move a page between two looks.
            let lost: Vec<usize> = (0..PAGES).filter(|&p| !(0..50).any(|_| same(p))).collect();
            zoo.ok(&format!("children {n} and {}: pages {lost:?} are not shared", n + 1), lost.is_empty());
        }
    }
}

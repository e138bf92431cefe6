//! Memory that is locked as soon as it is mapped (mlockall(2) with MCL_FUTURE): at once in the root, when touched in a child,
//! not at all in another; what was mapped before stays as it was.
#![allow(unsafe_code, reason = "mlockall has no wrapper that takes what the tests need")]
use zoo::Zoo;
use zoo::mem::{Map, PAGE, vmas_of};

/// Whether new memory is marked as locked, whether as locked when touched, and whether it is there untouched.
fn new_memory() -> (bool, bool, bool) {
    let map = Map::anon(4 * PAGE);
    let marked = |flag| vmas_of(&map).iter().any(|v| v.flags.split(' ').any(|f| f == flag));
    let mut there = [0_u8; 4];
    // SAFETY: a mapping of four pages, and four bytes to say so.
    let asked = unsafe { libc::mincore(map.addr() as *mut _, map.len(), there.as_mut_ptr()) };
    (marked("lo"), marked("lf"), asked == 0 && there.iter().all(|page| page & 1 == 1))
}

fn lock(zoo: &mut Zoo, flags: i32) {
    // SAFETY: locking changes no content.
    zoo.eq("mlockall", unsafe { libc::mlockall(flags) }, 0);
}

fn stay(mut zoo: Zoo, mut before: Map, want: (bool, bool, bool)) {
    before.fill(7);
    // Neighbours of the same sort may join it.
    let marks = |map: &Map| vmas_of(map).into_iter().map(|v| v.flags).collect::<Vec<_>>();
    let marked = marks(&before);
    zoo.ok("the kernel does it", new_memory() == want);
    while zoo.gap() {
        zoo.eq("new memory", new_memory(), want);
        zoo.eq("what was mapped before", marks(&before), marked.clone());
        zoo.ok("content", before.holds(7));
    }
}

pub(super) fn main() {
    let mut zoo = Zoo::start();
    let before = Map::anon(4 * PAGE);
    lock(&mut zoo, libc::MCL_FUTURE);
    // Children do not inherit it.
    zoo.fork("when touched", |mut zoo| {
        let before = Map::anon(4 * PAGE);
        lock(&mut zoo, libc::MCL_FUTURE | libc::MCL_ONFAULT);
        stay(zoo, before, (true, true, false));
    });
    zoo.fork("everything", |mut zoo| {
        let before = Map::anon(4 * PAGE);
        lock(&mut zoo, libc::MCL_CURRENT | libc::MCL_FUTURE);
        stay(zoo, before, (true, false, true));
    });
    zoo.fork("never", |zoo| stay(zoo, Map::anon(4 * PAGE), (false, false, false)));
    stay(zoo, before, (true, false, true));
}

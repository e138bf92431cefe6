//! Stacks that grow on demand: the main one, and a mapping made with `MAP_GROWSDOWN`.
#![allow(unsafe_code, reason = "touches memory below a mapping on purpose")]
use zoo::mem::{Map, PAGE, vmas};

#[inline(never)]
fn dig(depth: u64) -> u64 {
    let here = std::hint::black_box([depth; 500]);
    if depth == 0 { 0 } else { dig(depth - 1) + here[usize::from(depth.is_multiple_of(2))] }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let room = Map::new(16 << 20, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None);
    let top = room.addr() + room.len() as u64;
    drop(room);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN | libc::MAP_FIXED_NOREPLACE;
    let from = (top - 4 * PAGE as u64) as *mut libc::c_void;
    // SAFETY: the place was free a moment ago, and MAP_FIXED_NOREPLACE fails if it is not.
    let at = unsafe { libc::mmap(from, 4 * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    zoo.eq("mmap", at, from);
    let mut low = at.cast::<u64>();
    let start = |zoo: &mut zoo::Zoo| {
        let found = vmas().into_iter().find(|v| v.end == top);
        zoo.ok("it may grow", found.as_ref().is_some_and(|v| v.flags.contains("gd")));
        found.map_or(0, |v| v.start)
    };
    let mut pages = 0;
    while zoo.gap() {
        let before = start(&mut zoo);
        pages += 1;
        // SAFETY: right below a mapping that grows on such a touch.
        unsafe {
            low = low.sub(PAGE / 8);
            low.write_volatile(pages);
        }
        let after = start(&mut zoo);
        zoo.eq("its start, grown by a page", after, before - PAGE as u64);
        for i in 0..pages {
            // SAFETY: pages that earlier rounds have touched.
            let value = unsafe { low.add(i as usize * PAGE / 8).read_volatile() };
            zoo.eq("grown page", value, pages - i);
        }
        let depth = 200 + pages * 100;
        zoo.eq("main stack", dig(depth), depth * (depth + 1) / 2);
    }
}

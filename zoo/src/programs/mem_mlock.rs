//! Locked memory.
#![allow(unsafe_code, reason = "mlock takes an address")]
use zoo::mem::{Map, PAGE, vmas_of};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mut map = Map::anon(16 * PAGE);
    map.fill(1);
    // SAFETY: the range is this mapping.
    let locked = unsafe { rustix::mm::mlock(map.addr() as *mut _, 8 * PAGE) };
    zoo.get("mlock", locked);
    let (before, size) = (vmas_of(&map), zoo::proc::field("status", "VmLck:"));
    zoo.ok("the kernel marks it", before.iter().any(|v| v.flags.contains("lo")));
    while zoo.gap() {
        zoo.ok("content", map.holds(1));
        zoo.eq("mappings", vmas_of(&map), before.clone());
        zoo.eq("VmLck", zoo::proc::field("status", "VmLck:"), size.clone());
    }
}

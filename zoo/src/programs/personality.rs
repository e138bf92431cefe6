//! The execution domain: address space randomisation off, legacy layout.
#![allow(unsafe_code, reason = "personality has no safe wrapper")]
fn personality(value: u64) -> i32 {
    // SAFETY: takes a number.
    unsafe { libc::personality(value) }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let want = libc::ADDR_NO_RANDOMIZE | libc::ADDR_COMPAT_LAYOUT;
    personality(want.unsigned_abs().into());
    while zoo.gap() {
        zoo.eq("personality", personality(0xffff_ffff), want);
    }
}

//! Refused: an anonymous inode that no dump knows, here a Landlock rule set.
#![allow(unsafe_code, reason = "landlock has no safe wrapper")]
pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let handled: u64 = 1;
    // SAFETY: the attributes are 8 bytes as told, and the kernel only reads them.
    let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const handled, 8, 0) };
    super::hold_refused(&mut zoo, fd, "landlock-ruleset");
}

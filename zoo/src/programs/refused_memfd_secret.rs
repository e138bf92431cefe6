//! Refused: secret memory, which the kernel shows to nobody but the process.
#![allow(unsafe_code, reason = "memfd_secret has no safe wrapper")]
pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    // SAFETY: takes flags.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, 0) };
    super::hold_refused(&mut zoo, fd, "secret memory");
}

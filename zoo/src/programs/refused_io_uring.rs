//! Refused: an io_uring, whose requests live in the kernel.
#![allow(unsafe_code, reason = "io_uring_setup has no safe wrapper")]
pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mut params = [0_u32; 30];
    // SAFETY: the kernel fills the 120 bytes of io_uring_params.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) };
    super::hold_refused(&mut zoo, fd, "io_uring");
}

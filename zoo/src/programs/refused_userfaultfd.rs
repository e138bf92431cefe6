//! Refused: a userfaultfd, whose faults this process serves itself.
#![allow(unsafe_code, reason = "userfaultfd has no safe wrapper here")]
pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    // SAFETY: takes flags: UFFD_USER_MODE_ONLY and close-on-exec.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, 1 | libc::O_CLOEXEC) };
    super::hold_refused(&mut zoo, fd, "userfaultfd");
}

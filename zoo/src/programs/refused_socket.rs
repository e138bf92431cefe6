//! Refused: a socket of a family that no dump knows (AF_ALG, else AF_VSOCK).
#![allow(unsafe_code, reason = "families that the wrappers do not name")]
pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    // SAFETY: takes numbers.
    let fd = unsafe {
        match libc::socket(libc::AF_ALG, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) {
            -1 => libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0),
            fd => fd,
        }
    };
    super::hold_refused(&mut zoo, fd.into(), "socket");
}

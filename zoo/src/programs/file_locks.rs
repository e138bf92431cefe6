//! Locks on files: flock, POSIX byte ranges, and byte ranges that belong to the open file (OFD).
#![allow(unsafe_code, reason = "OFD locks have no safe wrapper")]
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use std::fs::File;
use std::os::fd::AsRawFd;

/// Asks for a write lock of two bytes for the open file.
fn lock_two_bytes(file: &File) -> std::io::Result<i32> {
    let (kind, whence) = (libc::F_WRLCK as i16, libc::SEEK_SET as i16);
    let range = libc::flock { l_type: kind, l_whence: whence, l_start: 1, l_len: 2, l_pid: 0 };
    // SAFETY: the kernel reads the structure, which lives over the call.
    zoo::sys::cvt(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) })
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::write("a", "lock"));
    zoo::must(std::fs::write("b", "lock"));
    let open = |name| std::fs::OpenOptions::new().read(true).write(true).open(name);
    let (Ok(a), Ok(b), Ok(rival)) = (open("a"), open("b"), open("a")) else { return };
    let done = flock(&a, FlockOperation::LockExclusive).and_then(|()| fcntl_lock(&b, FlockOperation::LockExclusive));
    zoo.get("lock", done);
    zoo::must(std::fs::write("c", "lock"));
    let (Ok(c), Ok(c_rival)) = (open("c"), open("c")) else { return };
    let twin = zoo::must(c.try_clone());
    zoo.ok("a lock of the open file", lock_two_bytes(&c).is_ok());
    while zoo.gap() {
        zoo.ok("a rival's lock of an open file", lock_two_bytes(&c_rival).is_err());
        zoo.ok("it is the open file's, not the descriptor's", lock_two_bytes(&twin).is_ok());
        let got = flock(&rival, FlockOperation::NonBlockingLockShared);
        zoo.eq("a rival's flock", got, Err(rustix::io::Errno::WOULDBLOCK));
        let child = zoo::sys::fork(|| {
            let got = open("b").map(|b| fcntl_lock(&b, FlockOperation::NonBlockingLockShared));
            i32::from(!matches!(got, Ok(Err(_))))
        });
        zoo.eq("a rival's POSIX lock is refused", zoo::sys::waitpid(child).ok(), Some(0));
    }
}

//! Refused: a thread that has a key in a keyring of its own.
#![allow(unsafe_code, reason = "add_key(2) has no wrapper")]

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    // SAFETY: the call reads two strings and one byte.
    let key = unsafe {
        let (kind, name) = (c"user".as_ptr(), c"crust-zoo".as_ptr());
        libc::syscall(libc::SYS_add_key, kind, name, c"x".as_ptr(), 1, libc::KEY_SPEC_THREAD_KEYRING)
    };
    if key < 0 {
        zoo.skip("this kernel has no keys, or gives none");
    }
    zoo.tell("names", &format!("task {}\nthread keyring", zoo::sys::getpid()));
    while zoo.gap() {
        // SAFETY: the request takes numbers only.
        let found = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_READ, libc::KEY_SPEC_THREAD_KEYRING, 0, 0) };
        zoo.eq("bytes of key numbers", found, 4);
    }
}

//! Secure bits with their locks, and the promise to gain no privileges.
use zoo::sys::prctl;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    // NOROOT and its lock, NO_SETUID_FIXUP, KEEP_CAPS, NO_CAP_AMBIENT_RAISE and its lock.
    let bits = 0b1101_0111;
    let set =
        prctl(libc::PR_SET_SECUREBITS, [bits, 0, 0, 0]).and_then(|_| prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0]));
    zoo.get("set", set);
    let look = || {
        let ask = |what| prctl(what, [0; 4]).unwrap_or(-1);
        (ask(libc::PR_GET_SECUREBITS), ask(libc::PR_GET_NO_NEW_PRIVS), ask(libc::PR_GET_KEEPCAPS))
    };
    while zoo.gap() {
        zoo.eq("secure bits, no_new_privs, keepcaps", look(), (bits as i32, 1, 1));
    }
}

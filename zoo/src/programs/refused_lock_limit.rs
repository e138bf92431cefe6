//! Refused: a process that locks whatever it maps and has used up what it may lock (RLIMIT_MEMLOCK), so that it can have no
//! mapping more.
#![allow(unsafe_code, reason = "mlockall and capset have no wrappers that take what the test needs")]
use rustix::process::{Resource, Rlimit, setrlimit};
use zoo::mem::{Map, PAGE};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo.tell("names", "task \nRLIMIT_MEMLOCK\nprlimit --pid");
    let room = 32;
    let mut filled = Map::anon(room * PAGE);
    let limit = Some((room * PAGE) as u64);
    zoo.get("limit", setrlimit(Resource::Memlock, Rlimit { current: limit, maximum: limit }));
    // Version 3: two times effective, permitted and inheritable.
    let (mut head, mut sets) = ([0x2008_0522_u32, 0], [0_u32; 6]);
    // SAFETY: two words that name version and task, and six for the answer, all live. Locking changes no content.
    let done = unsafe {
        libc::syscall(libc::SYS_capget, head.as_mut_ptr(), sets.as_mut_ptr());
        sets[0] &= !(1 << 14); // CAP_IPC_LOCK
        sets[1] &= !(1 << 14);
        libc::syscall(libc::SYS_capset, head.as_mut_ptr(), sets.as_ptr())
            + i64::from(libc::mlock(filled.addr() as *const _, filled.len()))
            + i64::from(libc::mlockall(libc::MCL_FUTURE))
    };
    zoo.eq("no right, all of the limit, and mlockall", done, 0);
    filled.fill(3);
    while zoo.gap() {
        zoo.ok("content", filled.holds(3));
    }
}

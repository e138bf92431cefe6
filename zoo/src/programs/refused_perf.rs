//! Refused: a performance counter.
#![allow(unsafe_code, reason = "perf_event_open has no safe wrapper")]
pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    // The first version of perf_event_attr: a software counter (type 1) of the cpu clock (config 0).
    let mut attr = [0_u32; 16];
    (attr[0], attr[1]) = (1, 64);
    // SAFETY: the attributes are 64 bytes as they say; this process on any cpu, no group.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), 0, -1, -1, 8) };
    super::hold_refused(&mut zoo, fd, "perf_event");
}

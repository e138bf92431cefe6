//! Restartable sequences: the area that the C library registered is registered still, and the kernel writes to it.
#![allow(unsafe_code, reason = "the rseq area is found through the C library's symbols")]
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use zoo::sys::{cvt, fs_base};

/// Address of this thread's area, `None` if the C library has none.
fn area() -> Option<u64> {
    // SAFETY: if there, the symbol is a ptrdiff_t constant of the C library.
    let offset = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<i64>().as_ref()? };
    fs_base().checked_add_signed(*offset)
}

/// Second word of the area: the cpu, or a negative number when not registered.
fn cpu_id(area: u64) -> usize {
    // SAFETY: the area belongs to this thread and lives as long as it.
    unsafe { ((area + 4) as *const u32).read_volatile() as usize }
}

/// Registering again: errno tells whether it was registered already.
fn again(area: u64) -> Option<i32> {
    // SAFETY: the area is that of the C library, so a success would do what it wants done.
    let got = cvt(unsafe { libc::syscall(libc::SYS_rseq, area, 32, 0, 0x5305_3053) });
    got.err().and_then(|e| e.raw_os_error())
}

fn check(eq: &mut dyn FnMut(&str, usize, usize), area: u64) {
    eq("registered: errno of a second time", again(area).unwrap_or(0).unsigned_abs() as usize, libc::EBUSY as usize);
    let all = sched_getaffinity(None).unwrap_or_default();
    for cpu in (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu)).take(2) {
        let mut one = CpuSet::new();
        one.set(cpu);
        zoo::must(sched_setaffinity(None, &one));
        eq("cpu of getcpu", sched_getcpu(), cpu);
        eq("cpu in the area", cpu_id(area), cpu);
    }
    zoo::must(sched_setaffinity(None, &all));
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    if area().is_none() {
        zoo.skip("this C library registers no rseq area");
    }
    for i in 0..3 {
        zoo.thread(&i.to_string(), |seat| {
            while seat.gap() {
                check(&mut |what, got, want| seat.eq(what, got, want), area().unwrap_or(0));
            }
        });
    }
    while zoo.gap() {
        check(&mut |what, got, want| zoo.eq(what, got, want), area().unwrap_or(0));
    }
}

//! Clocks through the vDSO: it is where the auxiliary vector says, agrees with the kernel, and never goes back.
#![allow(unsafe_code, reason = "asks the kernel past the vDSO")]
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of a clock, asked from the kernel.
fn from_kernel(clock: i32) -> i128 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills a live timespec.
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut now) };
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

fn from_vdso(clock: ClockId) -> i128 {
    let now = clock_gettime(clock);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    // SAFETY: getauxval takes a number.
    let header = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    let clocks = [(ClockId::Monotonic, 1), (ClockId::Realtime, 0), (ClockId::Boottime, 7)];
    let mut last = clocks.map(|(id, _)| from_vdso(id));
    while zoo.gap() {
        let vmas = zoo::mem::vmas();
        let vdso: Vec<_> = vmas.iter().filter(|v| v.name == "[vdso]").collect();
        zoo.eq("vDSOs", vdso.len(), 1);
        zoo.ok("the vDSO is where the program calls it", vdso.iter().all(|v| v.start == header));
        for (i, (id, number)) in clocks.into_iter().enumerate() {
            for _ in 0..1000 {
                let now = from_vdso(id);
                zoo.ok(&format!("clock {number} went back from {} to {now}", last[i]), now >= last[i]);
                last[i] = now;
            }
            let (low, now, high) = (from_kernel(number), from_vdso(id), from_kernel(number));
            let near = low - 10_000_000 <= now && now <= high + 10_000_000;
            zoo.ok(&format!("clock {number}: {now}, but the kernel says {low} to {high}"), near);
        }
        zoo.ok("getcpu", rustix::thread::sched_getcpu() < 4096);
    }
}

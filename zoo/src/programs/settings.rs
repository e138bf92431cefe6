//! Settings that CRIU does not save: core dump filter, memory policy, machine checks, KSM, time stamp counter, memory that
//! denies write and execute (MDWE), deadline scheduling, time slices.
#![allow(unsafe_code, reason = "calls without a wrapper")]
use zoo::sys::{prctl, prctl_read};

const PR_SET_MDWE: i32 = 65;
const PR_GET_MDWE: i32 = 66;
const PR_SET_MEMORY_MERGE: i32 = 67;
const PR_GET_MEMORY_MERGE: i32 = 68;
const ARCH_GET_XCOMP_SUPP: i32 = 0x1021;
const ARCH_GET_XCOMP_PERM: i32 = 0x1022;
const ARCH_REQ_XCOMP_PERM: i32 = 0x1023;
/// The data of AMX tiles, among the components of CPU state.
const TILES: u64 = 1 << 18;
const MPOL_INTERLEAVE: i32 = 3;

/// Mode and nodes of this thread's memory policy.
fn memory_policy() -> (i64, i32, u64) {
    let (mut mode, mut nodes) = (0_i32, [0_u64; 16]);
    // SAFETY: one number and a mask of 1024 bits, both live.
    let got = unsafe { libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, nodes.as_mut_ptr(), 1024, 0, 0) };
    (got, mode, nodes[0])
}

/// Components of CPU state that exist, or that this process may use; none where the kernel knows of none.
fn xstate(which: i32) -> u64 {
    let mut mask = 0_u64;
    // SAFETY: one live u64.
    unsafe { libc::syscall(libc::SYS_arch_prctl, which, &raw mut mask) };
    mask
}

/// A row of 64 bytes, through a tile and back.
fn tile_of(byte: u8) -> [u8; 64] {
    #[repr(C, align(64))]
    struct Config([u8; 64]);
    let mut config = Config([0; 64]);
    // Palette 1; tile 0 is one row of 64 bytes.
    (config.0[0], config.0[16], config.0[48]) = (1, 64, 1);
    let (from, mut to) = ([byte; 64], [0_u8; 64]);
    // SAFETY: loads 64 bytes of `config` and a row of `from`, stores a row to `to`; tiles hold nothing of the compiler's.
    unsafe {
        std::arch::asm!(
            "ldtilecfg [{config}]", "tileloadd tmm0, [{from} + {stride}*1]", "tilestored [{to} + {stride}*1], tmm0", "tilerelease",
            config = in(reg) config.0.as_ptr(), from = in(reg) from.as_ptr(), to = in(reg) to.as_mut_ptr(), stride = in(reg) 0_u64,
        );
    }
    to
}

/// struct sched_attr of this thread: policy, flags, runtime, deadline, period.
fn schedule() -> [u64; 5] {
    let mut attr = [0_u64; 7];
    // SAFETY: 56 bytes that are live, as the kernel is told.
    unsafe { libc::syscall(libc::SYS_sched_getattr, 0, attr.as_mut_ptr(), 56, 0) };
    [attr[0] >> 32, attr[1], attr[3], attr[4], attr[5]]
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo.fork("strict memory", |mut zoo| {
        zoo.ok("MDWE", prctl(PR_SET_MDWE, [1, 0, 0, 0]).is_ok());
        while zoo.gap() {
            zoo.eq("MDWE", prctl(PR_GET_MDWE, [0; 4]).ok(), Some(1));
            let rwx = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            // SAFETY: a new mapping at a place of the kernel's choice, which it must refuse.
            let at =
                unsafe { libc::mmap(std::ptr::null_mut(), 4096, rwx, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
            zoo.ok("memory to write and to run", at == libc::MAP_FAILED);
        }
    });
    if xstate(ARCH_GET_XCOMP_SUPP) & TILES != 0 {
        zoo.fork("tiles", |mut zoo| {
            // SAFETY: a number; what is allowed is used below.
            zoo.eq("ARCH_REQ_XCOMP_PERM", unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, 18) }, 0);
            let mut running = true;
            while running {
                running = zoo.gap();
                zoo.eq("AMX permission", xstate(ARCH_GET_XCOMP_PERM) & TILES, TILES);
            }
            // For the first time here: SIGILL without the permission.
            zoo.eq("a tile", tile_of(0x5a), [0x5a; 64]);
        });
    }
    zoo.thread("no counter", |seat| {
        let set = prctl(libc::PR_SET_TSC, [2, 0, 0, 0]).is_ok();
        seat.ok("PR_SET_TSC", set);
        while seat.gap() {
            seat.eq("PR_GET_TSC", prctl_read(libc::PR_GET_TSC).ok(), Some(2));
        }
    });
    zoo.thread("deadline", |seat| {
        // SCHED_DEADLINE, 1 ms in each 100 ms.
        let attr = [56 | 6 << 32, 0, 0, 1_000_000, 100_000_000, 100_000_000, 0_u64];
        // SAFETY: 56 live bytes, as their first field says. A machine that does not allow it leaves the policy as it is.
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, attr.as_ptr(), 0) };
        let before = schedule();
        while seat.gap() {
            seat.eq("policy, flags, runtime, deadline, period", schedule(), before);
        }
    });
    zoo.thread("slice", |seat| {
        // 5 ms at once. A kernel before 6.12 has no slices of one's own.
        let attr = [56, 0, 0, 5_000_000, 0, 0, 0_u64];
        // SAFETY: 56 live bytes, as their first field says.
        let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, attr.as_ptr(), 0) };
        seat.eq("sched_setattr", set, 0);
        let before = schedule();
        while seat.gap() {
            seat.eq("policy, flags, slice", schedule(), before);
        }
    });
    zoo::must(std::fs::write("/proc/self/coredump_filter", "0x11"));
    let nodes = 1_u64;
    // SAFETY: a mask of 64 bits, of which 63 are told.
    unsafe { libc::syscall(libc::SYS_set_mempolicy, MPOL_INTERLEAVE, &raw const nodes, 64) };
    let policy = memory_policy();
    zoo.ok("machine checks", prctl(libc::PR_MCE_KILL, [1, 1, 0, 0]).is_ok());
    // A kernel without KSM refuses.
    let merge = prctl(PR_SET_MEMORY_MERGE, [1, 0, 0, 0]).ok().and_then(|_| prctl(PR_GET_MEMORY_MERGE, [0; 4]).ok());
    while zoo.gap() {
        let filter = std::fs::read_to_string("/proc/self/coredump_filter").unwrap_or_default();
        zoo.eq("core dump filter", filter.trim(), "00000011");
        zoo.eq("memory policy", memory_policy(), policy);
        zoo.eq("machine checks", prctl(libc::PR_MCE_KILL_GET, [0; 4]).ok(), Some(1));
        zoo.eq("KSM", prctl(PR_GET_MEMORY_MERGE, [0; 4]).ok().filter(|_| merge.is_some()), merge);
    }
}

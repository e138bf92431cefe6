//! 32-bit tasks (i386 emulation): what the kernel keeps apart for them. Registers are in [`super::regs`] as those of all.
//!
//! Such a program makes its calls with other numbers, which an interrupted call is told by; its handlers of signals, lists of
//! robust futexes and segments are set by calls of 32-bit code only, or by ptrace. Which sort a program is of the kernel
//! tells by the vDSO that it gave it. A program restored by us has one thing less than one just begun: its thread flag that
//! limits addresses to 4 GiB (TIF_ADDR32), which only exec sets. Its own calls are limited to that without it.
use crate::{Error, Kind, Result, ResultExt};
use crust_image::proto::{CoreEntry, SaEntry, UserDescT, UserX86RegsMode};
use crust_inject::arch::compat::{self as arch, NR_GET_ROBUST_LIST, NR_RT_SIGACTION, NR_SET_ROBUST_LIST};
use crust_inject::arch::regs::{Regs, is_32bit, syscall_args};
use crust_inject::plan::{DataRef, Expect, PlanId, Program, Slot};
use crust_kernel::HostTid;
use crust_kernel::ptrace_x86::{self, Segment};

/// Bytes of the head of a robust list.
pub const ROBUST_LIST_BYTES: u32 = 12;
/// Entries of the GDT that are each thread's own.
const OWN_ENTRIES: std::ops::Range<u32> = 12..15;

/// True for the record of a 32-bit thread.
pub fn is(core: &CoreEntry) -> bool {
    core.thread_info.as_ref().is_some_and(|info| info.gpregs.mode == Some(UserX86RegsMode::Compat as i32))
}

/// Why a 32-bit task cannot be restored here.
pub fn check(core: &CoreEntry) -> Option<Error> {
    (is(core) && arch::vdso().is_none()).then(|| {
        Error::unsupported(
            "is a 32-bit task, and this kernel runs none",
            "boot with ia32_emulation=1, or restore it on a kernel built with CONFIG_IA32_EMULATION",
        )
    })
}

/// The call that a stopped thread is in, as x86_64 numbers it, and its arguments. `None` for calls of 32-bit code that
/// nobody here needs to tell apart.
pub fn call(regs: &Regs) -> Option<(i64, [u64; 6])> {
    let args = syscall_args(regs);
    if !is_32bit(regs) {
        return Some((regs.orig_rax as i64, args));
    }
    let (nr, _) = arch::as_native(regs.orig_rax as i64)?;
    Some((one_of_many(nr, args[0]).unwrap_or(nr), args))
}

/// Which call is meant where many are one.
fn one_of_many(nr: i64, which: u64) -> Option<i64> {
    const IPC_CALL: u64 = 0xffff;
    Some(match (nr, which) {
        (arch::SOCKETCALL, 3) => libc::SYS_connect,
        (arch::SOCKETCALL, 5) => libc::SYS_accept,
        (arch::SOCKETCALL, 18) => libc::SYS_accept4,
        (arch::SOCKETCALL, 10 | 12) => libc::SYS_recvfrom,
        (arch::SOCKETCALL, 9 | 11) => libc::SYS_sendto,
        (arch::SOCKETCALL, 16) => libc::SYS_sendmsg,
        (arch::SOCKETCALL, 17) => libc::SYS_recvmsg,
        (arch::SOCKETCALL, 19) => libc::SYS_recvmmsg,
        (arch::SOCKETCALL, 20) => libc::SYS_sendmmsg,
        (arch::IPC, which) if which & IPC_CALL == 1 => libc::SYS_semop,
        (arch::IPC, which) if which & IPC_CALL == 4 => libc::SYS_semtimedop,
        _ => return None,
    })
}

/// Reads the segments of a stopped thread, if it uses any: 64-bit threads can have some, and hardly any has.
///
/// # Errors
/// As ptrace(2).
pub fn segments(tid: HostTid, regs: &Regs) -> Result<Vec<Segment>> {
    if !is_32bit(regs) && [regs.fs, regs.gs, regs.ds, regs.es].iter().all(|&selector| selector == 0) {
        return Ok(Vec::new());
    }
    OWN_ENTRIES.map(|entry| ptrace_x86::get_segment(tid, entry).during("PTRACE_GET_THREAD_AREA")).collect()
}

/// Asks a process for its own table of segments (LDT).
pub fn ask_table(p: &mut Program, plan: PlanId) -> Slot {
    const READ: u64 = 0;
    let at = p.reserve(8);
    p.syscall_slot(plan, "modify_ldt", libc::SYS_modify_ldt, &[READ.into(), at.into(), 8.into()], Expect::Any)
}

/// Refuses a process with one: there is no place for it in the images.
pub fn refuse_table(answer: i64) -> Option<Error> {
    // The kernel gives 32 bits, also of an error.
    let help = "restart the program without modify_ldt(2): old emulators, and Wine of old, use it";
    (answer as i32 > 0).then(|| Error::unsupported("has a table of segments of its own (modify_ldt)", help))
}

/// Records of a thread's segments: CRIU wants all three, also of threads that have none.
pub fn descriptors(segments: &[Segment]) -> Vec<UserDescT> {
    let bit = |s: &Segment, at: u32| s.bits & (1 << at) != 0;
    let record = |s: &Segment| UserDescT {
        entry_number: s.entry,
        base_addr: s.base,
        limit: s.limit,
        seg_32bit: bit(s, 0),
        contents_l: bit(s, 1),
        contents_h: bit(s, 2),
        read_exec_only: bit(s, 3),
        limit_in_pages: bit(s, 4),
        seg_not_present: bit(s, 5),
        usable: bit(s, 6),
    };
    let none = |entry| Segment { entry, bits: 1 << 3 | 1 << 5, ..Segment::default() };
    OWN_ENTRIES.map(|entry| record(segments.iter().find(|s| s.entry == entry).unwrap_or(&none(entry)))).collect()
}

fn segment(d: &UserDescT) -> Segment {
    let bits =
        [d.seg_32bit, d.contents_l, d.contents_h, d.read_exec_only, d.limit_in_pages, d.seg_not_present, d.usable];
    let bits = bits.iter().enumerate().map(|(at, &set)| u32::from(set) << at).sum();
    Segment { entry: d.entry_number, base: d.base_addr, limit: d.limit, bits }
}

/// Gives a stopped thread its segments. Registers that select them come later.
///
/// # Errors
/// `BadImage` for segments that no thread may have; otherwise as ptrace(2).
pub fn set_segments(tid: HostTid, descriptors: &[UserDescT]) -> Result<()> {
    for d in descriptors.iter().filter(|d| !d.seg_not_present) {
        if !OWN_ENTRIES.contains(&d.entry_number) {
            return Err(Error::new(Kind::BadImage, format!("entry {} is no thread's own segment", d.entry_number)));
        }
        ptrace_x86::set_segment(tid, &segment(d)).during("PTRACE_SET_THREAD_AREA")?;
    }
    Ok(())
}

/// Where the segment begins that a selector in fs or gs names; `None` if it names none of the thread's own.
pub fn base_of(selector: u64, descriptors: &[UserDescT]) -> Option<u64> {
    const TABLE: u64 = 4;
    let own = |d: &&UserDescT| u64::from(d.entry_number) == selector >> 3 && !d.seg_not_present;
    (selector & TABLE == 0).then(|| descriptors.iter().find(own)).flatten().map(|d| d.base_addr.into())
}

/// Adds the question for the calling thread's list of robust futexes: its head, then its length.
pub fn ask_robust_list(p: &mut Program, plan: PlanId) -> DataRef {
    let at = p.reserve(16);
    p.syscall32(plan, "get_robust_list", NR_GET_ROBUST_LIST, &[0.into(), at.into(), at.offset(8).into()]);
    at
}

/// Sets it in a restored thread.
pub fn plan_robust_list(p: &mut Program, plan: PlanId, head: u64) {
    p.syscall32(plan, "set_robust_list", NR_SET_ROBUST_LIST, &[head.into(), ROBUST_LIST_BYTES.into()]);
}

/// Sets one signal action in a restored task, so that the kernel knows its handler for 32-bit code.
///
/// # Errors
/// `BadImage` for addresses that 32-bit code cannot reach.
pub fn plan_action(p: &mut Program, plan: PlanId, signal: i32, entry: &SaEntry) -> Result<()> {
    const SIGSET_BYTES: u64 = 8;
    let low = |word: u64| {
        u32::try_from(word).map_err(|_| Error::new(Kind::BadImage, format!("{word:#x} is no handler of 32-bit code")))
    };
    let words = [low(entry.sigaction)?, entry.flags as u32, low(entry.restorer)?];
    let mask = [entry.mask as u32, (entry.mask >> 32) as u32];
    let bytes: Vec<u8> = words.iter().chain(&mask).flat_map(|w| w.to_le_bytes()).collect();
    let at = p.data(&bytes);
    let args = [signal.into(), at.into(), 0.into(), SIGSET_BYTES.into()];
    p.syscall32(plan, "rt_sigaction", NR_RT_SIGACTION, &args);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_there_and_back() {
        let tls = Segment { entry: 12, base: 0x5655_9000, limit: 0xf_ffff, bits: 0b101_0001 };
        let records = descriptors(&[tls]);
        assert_eq!(records.len(), 3);
        assert_eq!(segment(&records[0]), tls);
        assert!(records[1].seg_not_present && records[1].read_exec_only);
        assert_eq!(base_of(0x63, &records), Some(0x5655_9000));
        assert_eq!(base_of(0x6b, &records), None);
        assert_eq!(base_of(0x67, &records), None, "of the LDT");
    }

    #[test]
    fn calls_of_32_bit_code() {
        let stopped = |nr: u64, rbx: u64| Regs { cs: 0x23, orig_rax: nr, rbx, ..crust_inject::arch::regs::zeroed() };
        let nr = |nr, first| call(&stopped(nr, first)).map(|c| c.0);
        assert_eq!(nr(407, 0), Some(libc::SYS_clock_nanosleep));
        assert_eq!(nr(102, 12), Some(libc::SYS_recvfrom));
        assert_eq!(nr(102, 9), Some(libc::SYS_sendto), "send");
        assert_eq!(nr(102, 2), Some(arch::SOCKETCALL), "bind");
        assert_eq!(nr(117, 1 << 16 | 4), Some(libc::SYS_semtimedop));
        assert_eq!((nr(3, 0), nr(5, 0)), (Some(libc::SYS_read), None));
    }
}

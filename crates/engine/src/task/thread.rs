//! What a thread or process has of its own besides registers, signals and credentials: name, ids in user memory, robust list,
//! rseq, scheduling, personality, and the prctl settings.
#![allow(unsafe_code, reason = "asks the C library where its rseq area is, and names the process")]
use super::creds::Cap;
use super::{compat, signals};
use crate::error::ResultExt;
use crate::{Error, Kind, Result};
use crust_image::proto::{CoreEntry, CrustThreadSettings, RseqEntry, TaskCoreEntry};
use crust_inject::plan::{Arg, Expect, PlanId, Program};
use crust_kernel::procfs::{Limit, ProcDir, Stat};
use crust_kernel::{HostTid, NsTid};

/// Bytes of struct robust_list_head; the kernel takes no other length.
const ROBUST_LIST_BYTES: u64 = 24;
const RSEQ_FLAG_UNREGISTER: u32 = 1;

/// What we are before a plan changes it: calls that change nothing are left out.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    /// Personality bits.
    pub personality: u32,
    /// Nice value.
    pub nice: i32,
    /// Scheduling policy and real-time priority.
    pub policy: u32,
    /// See `policy`.
    pub priority: u32,
    /// Resource limits.
    pub limits: [Limit; 16],
    /// We may not use every processor.
    pub pinned: bool,
}

impl Own {
    /// Looks at the calling process.
    ///
    /// # Errors
    /// If /proc/self cannot be read.
    pub fn look() -> Result<Self> {
        let me = HostTid::new(rustix::process::getpid().as_raw_nonzero().get())
            .ok_or_else(|| Error::new(Kind::Internal, "we have no pid"))?;
        let proc = ProcDir::open_self(me).during("opening /proc/self")?;
        let stat = proc.read("stat").during("reading /proc/self/stat")?;
        let stat =
            Stat::parse(&stat).ok_or_else(|| Error::new(Kind::Internal, "/proc/self/stat has an unknown form"))?;
        let personality = proc.read_text("personality").during("reading /proc/self/personality")?;
        Ok(Self {
            personality: u32::from_str_radix(personality.trim(), 16).unwrap_or(0),
            nice: stat.nice,
            policy: stat.policy,
            priority: stat.rt_priority,
            limits: super::limits::look(&proc)?,
            pinned: super::settings::own_is_pinned(),
        })
    }
}

/// Gives the calling process a name; nothing depends on it.
pub fn set_own_comm(comm: &[u8]) {
    let mut name = [0u8; 16];
    let len = comm.len().min(15);
    name[..len].copy_from_slice(&comm[..len]);
    // SAFETY: PR_SET_NAME reads at most 16 bytes up to a NUL, which `name` has.
    let _named = unsafe { crust_kernel::process::prctl(libc::PR_SET_NAME, [name.as_ptr() as u64, 0, 0, 0]) };
}

/// Takes back the C library's rseq registration of this process: its area is about to be unmapped, and the kernel would kill
/// the task when it next writes there.
pub fn plan_forget_rseq(p: &mut Program, plan: PlanId) {
    let symbol = |name: &std::ffi::CStr| {
        // SAFETY: dlsym with a NUL-terminated name; the result is only compared and read below.
        unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
    };
    let (offset, size) = (symbol(c"__rseq_offset"), symbol(c"__rseq_size"));
    if offset.is_null() || size.is_null() {
        return; // a C library that registers none
    }
    // SAFETY: glibc documents both as constants: ptrdiff_t and unsigned int.
    let (offset, size) = unsafe { (*offset.cast::<isize>(), *size.cast::<u32>()) };
    if size == 0 {
        return;
    }
    let area = thread_pointer().wrapping_add_signed(offset as i64);
    // The registered length is 32 for the original area; newer C libraries may have registered more. The kernel tells which
    // by refusing all others, so both are tried; one of them or "not registered" is right.
    for len in [32, size.next_multiple_of(32)] {
        let args: [Arg; 4] = [area.into(), len.into(), RSEQ_FLAG_UNREGISTER.into(), RSEQ_SIGNATURE.into()];
        p.syscall_expect(plan, "rseq unregister", libc::SYS_rseq, &args, Expect::Any);
    }
}

#[cfg(target_arch = "x86_64")]
const RSEQ_SIGNATURE: u32 = 0x5305_3053;

#[cfg(target_arch = "x86_64")]
fn thread_pointer() -> u64 {
    let mut base = 0u64;
    const ARCH_GET_FS: i32 = 0x1003;
    // SAFETY: ARCH_GET_FS stores eight bytes at the address given.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_FS, &raw mut base) };
    base
}

/// Settings of the whole process.
pub fn plan_process(p: &mut Program, plan: PlanId, tc: &TaskCoreEntry, thp_disabled: bool, own: &Own) {
    if tc.personality != own.personality {
        p.syscall_expect(plan, "personality", libc::SYS_personality, &[tc.personality.into()], Expect::Ok);
    }
    let subreaper = i32::from(tc.child_subreaper());
    let args = [libc::PR_SET_CHILD_SUBREAPER.into(), subreaper.into()];
    p.syscall(plan, "PR_SET_CHILD_SUBREAPER", libc::SYS_prctl, &args);
    if thp_disabled {
        let args = [libc::PR_SET_THP_DISABLE.into(), 1.into(), 0.into(), 0.into(), 0.into()];
        p.syscall(plan, "PR_SET_THP_DISABLE", libc::SYS_prctl, &args);
    }
    // MEMBARRIER_CMD_REGISTER_*: the mask holds the commands themselves.
    let mask = tc.membarrier_registration_mask();
    for bit in (0..32).filter(|b| mask & (1 << b) != 0) {
        p.syscall(plan, "membarrier register", libc::SYS_membarrier, &[(1u32 << bit).into(), 0.into(), 0.into()]);
    }
}

/// Settings of one thread, made by itself.
///
/// # Errors
/// `BadImage` for a thread record that is not there.
pub fn plan_thread(p: &mut Program, plan: PlanId, core: &CoreEntry, tid: NsTid, own: &Own) -> Result<()> {
    let missing = || Error::bad_image(format!("core-{tid}.img"), "has no thread part or no x86 registers");
    let t = core.thread_core.as_ref().ok_or_else(missing)?;
    let info = core.thread_info.as_ref().ok_or_else(missing)?;
    let own_tid = Expect::Equals(tid.as_raw() as u64);
    let args = [info.clear_tid_addr.into()];
    p.syscall_expect(plan, "set_tid_address", libc::SYS_set_tid_address, &args, own_tid);
    if compat::is(core) {
        compat::plan_robust_list(p, plan, t.futex_rla);
    } else {
        let args = [t.futex_rla.into(), ROBUST_LIST_BYTES.into()];
        p.syscall(plan, "set_robust_list", libc::SYS_set_robust_list, &args);
    }
    if let Some(RseqEntry { rseq_abi_pointer, rseq_abi_size, signature, .. }) = t.rseq_entry
        && rseq_abi_pointer != 0
    {
        let args = [rseq_abi_pointer.into(), rseq_abi_size.into(), 0.into(), signature.into()];
        p.syscall(plan, "rseq", libc::SYS_rseq, &args);
    }
    if let Some(sas) = &t.sas {
        signals::plan_altstack(p, plan, sas);
    }
    let comm = t.comm.as_ref().or(core.tc.as_ref().map(|tc| &tc.comm));
    if let Some(comm) = comm {
        let name = p.cstr(&comm[..comm.len().min(15)]);
        p.syscall(plan, "PR_SET_NAME", libc::SYS_prctl, &[libc::PR_SET_NAME.into(), name.into()]);
    }
    let ordinary = CrustThreadSettings::default();
    super::tiles::plan_room(p, plan, core);
    super::settings::plan_thread(p, plan, t.crust_settings.as_ref().unwrap_or(&ordinary), own.pinned);
    let (policy, prio) = (t.sched_policy(), t.sched_prio());
    let attr = t.crust_settings.as_ref().is_some_and(|s| s.sched_attr.is_some());
    if attr {
        // Set with all that belongs to it.
    } else if policy != own.policy || prio != own.priority {
        let param = p.data(&prio.to_le_bytes());
        let args = [0.into(), policy.into(), param.into()];
        p.syscall(plan, "sched_setscheduler", libc::SYS_sched_setscheduler, &args);
    }
    if t.sched_nice.is_some_and(|nice| nice != own.nice) {
        let args = [libc::PRIO_PROCESS.into(), 0.into(), t.sched_nice().into()];
        p.syscall(plan, "setpriority", libc::SYS_setpriority, &args);
    }
    Ok(())
}

/// The capability that a step of a thread's plan takes, where the kernel refuses it.
pub fn takes(label: &str) -> Option<Cap> {
    matches!(label, "sched_setscheduler" | "sched_setattr" | "setpriority" | "ioprio_set").then_some(Cap::SYS_NICE)
}

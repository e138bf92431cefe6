//! Settings of threads and processes that CRIU's format has no place for: processors, I/O priority, timer slack,
//! SCHED_DEADLINE and time slices, memory policy, speculation, time stamp counter and CPUID traps, machine checks; of the
//! process KSM, MDWE, kinds of huge page avoidance, the core dump filter, the permission to use AMX tiles.
//!
//! They are asked and set by the thread itself, as a part of its plan, and kept in fields of our own, which CRIU skips.
//! What differs from nothing is recorded only: no record means that the setting is as every program has it.
use super::tiles;
use crate::error::ResultExt;
use crate::{Error, Result};
use crust_image::proto::{CrustProcessSettings, CrustThreadSettings};
use crust_inject::Ran;
use crust_inject::plan::{Arg, DataRef, Expect, PlanId, Program, Slot};
use crust_kernel::HostTid;
use crust_kernel::process::Sched;
use crust_kernel::procfs::{ProcDir, Status};
use std::sync::OnceLock;

const PR_SET_SPECULATION_CTRL: i32 = 53;
const PR_GET_SPECULATION_CTRL: i32 = 52;
const PR_SCHED_CORE: i32 = 62;
const PR_SET_MDWE: i32 = 65;
const PR_GET_MDWE: i32 = 66;
const PR_SET_MEMORY_MERGE: i32 = 67;
const PR_GET_MEMORY_MERGE: i32 = 68;
const ARCH_GET_CPUID: i32 = 0x1011;
const ARCH_SET_CPUID: i32 = 0x1012;
const ARCH_GET_XCOMP_PERM: i32 = 0x1022;
const ARCH_REQ_XCOMP_PERM: i32 = 0x1023;
const ARCH_GET_XCOMP_GUEST_PERM: i32 = 0x1024;
const ARCH_REQ_XCOMP_GUEST_PERM: i32 = 0x1025;
/// Components of CPU state that a process has only if it asks for them: AMX tile data.
const ASKED_FOR: u64 = tiles::DATA;
const IOPRIO_WHO_PROCESS: i32 = 1;
const PR_MCE_KILL_SET: i32 = 1;
const PR_MCE_KILL_DEFAULT: i64 = 2;
const PR_TSC_ENABLE: u32 = 1;
/// Settable at all, and enabled: how every thread starts.
const SPEC_ORDINARY: i64 = 0b11;
const SPEC_SETTABLE: i64 = 1;
/// Store bypass, indirect branches, L1D flush.
const SPECULATION: [u32; 3] = [0, 1, 2];
/// Most bytes of a processor mask: 8192 processors.
const MASK_BYTES: usize = 1024;
/// struct sched_attr with utilisation clamps
const SCHED_ATTR_BYTES: usize = 56;
/// What the kernel starts its first process with: everybody's timer slack, in nanoseconds, and kinds of memory in core dumps.
const ORDINARY_SLACK_NS: u64 = 50_000;
const ORDINARY_COREDUMP_FILTER: u32 = 0x33;
/// PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE together: PR_SET_IO_FLUSHER.
const IO_FLUSHER: u64 = 0x0018_0000;

/// Where a thread's answers come to lie.
#[derive(Debug)]
pub struct AskedThread {
    mask_len: Slot,
    mask: DataRef,
    io_priority: Slot,
    timer_slack: Slot,
    tsc: DataRef,
    cpuid: Slot,
    machine_check: Slot,
    speculation: Vec<(u32, Slot)>,
    policy: Slot,
    policy_mode: DataRef,
    policy_nodes: DataRef,
    attr: DataRef,
    cookie: Option<DataRef>,
    keys: Slot,
}

/// Where a process's answers come to lie.
#[derive(Debug)]
pub struct AskedProcess {
    merges: Slot,
    mdwe: Slot,
    thp: Slot,
    keys: Slot,
    /// On a CPU that has something to ask for.
    xstate: Option<DataRef>,
    guest_xstate: Option<DataRef>,
}

/// What this kernel and CPU know at all; asked once, of ourselves.
struct Known {
    speculation: Vec<u32>,
    core_scheduling: bool,
    /// Bytes of a mask of all processors, and of all memory nodes, that may ever be.
    mask_bytes: usize,
    node_bytes: usize,
    /// Our own time slice: that of everybody who asked for no other.
    slice_ns: u64,
}

fn prctl(option: i32, args: [u64; 4]) -> rustix::io::Result<i32> {
    #![allow(unsafe_code, reason = "prctl with numbers, and with one place for eight bytes")]
    // SAFETY: called below with options that take numbers, and with PR_SCHED_CORE, whose fourth argument is the address of a
    // live u64 of the caller.
    unsafe { crust_kernel::process::prctl(option, args) }
}

fn known() -> &'static Known {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let settable = |&which: &u32| {
            let now = prctl(PR_GET_SPECULATION_CTRL, [which.into(), 0, 0, 0]);
            now.is_ok_and(|state| i64::from(state) & SPEC_SETTABLE != 0)
        };
        let mut cookie = 0u64;
        let core_scheduling = prctl(PR_SCHED_CORE, [0, 0, 0, &raw mut cookie as u64]).is_ok();
        let bytes = |path: &str, otherwise: usize| {
            let list = std::fs::read_to_string(path).ok().and_then(|t| parse_list(&t)).filter(|l| !l.is_empty());
            list.map_or(otherwise, |l| l.len().next_multiple_of(8))
        };
        Known {
            speculation: SPECULATION.into_iter().filter(settable).collect(),
            core_scheduling,
            mask_bytes: bytes("/sys/devices/system/cpu/possible", MASK_BYTES),
            node_bytes: bytes("/sys/devices/system/node/possible", 128),
            slice_ns: own_schedule().map_or(0, |own| own.slice_ns),
        }
    })
}

fn own_schedule() -> Option<Sched> {
    crust_kernel::process::sched(HostTid::new(rustix::thread::gettid().as_raw_nonzero().get())?).ok()
}

/// Whether a `struct sched_attr` says more than policy, priority and nice value: SCHED_DEADLINE, or a time slice of one's own.
fn says_more(attr: &[u8]) -> bool {
    let policy = attr.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    let runtime = attr.get(24..32).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    match policy as i32 {
        libc::SCHED_DEADLINE => true,
        libc::SCHED_OTHER | libc::SCHED_BATCH => runtime != 0 && runtime != known().slice_ns,
        _ => false,
    }
}

/// Asks how many bytes of key numbers a keyring has. Unlike the session's, these two do not come to be by asking.
fn ask_keys(p: &mut Program, plan: PlanId, keyring: i32) -> Slot {
    let args = [libc::KEYCTL_READ.into(), keyring.into(), 0.into(), 0.into()];
    p.syscall_slot(plan, "KEYCTL_READ", libc::SYS_keyctl, &args, Expect::Any)
}

/// Refuses keys: their numbers, which programs remember, are the kernel's to give, and not all tell their content.
fn refuse_keys(found: i64, whose: &str) -> Result<()> {
    if found <= 0 {
        return Ok(());
    }
    let what = format!("has {} keys in its {whose} keyring", found / 4);
    Err(Error::unsupported(what, "let the program remove them before the dump (KEYCTL_CLEAR)"))
}

/// Asks a thread.
pub fn ask_thread(p: &mut Program, plan: PlanId) -> AskedThread {
    let ask = |p: &mut Program, label: &'static str, nr: i64, args: &[Arg]| {
        p.syscall_slot(plan, label, nr, args, Expect::Any)
    };
    let option = |p: &mut Program, option: i32, arg: u32| {
        ask(p, "prctl", libc::SYS_prctl, &[option.into(), arg.into(), 0.into(), 0.into(), 0.into()])
    };
    let mask = p.reserve(known().mask_bytes);
    let args = [0.into(), known().mask_bytes.into(), mask.into()];
    let mask_len = ask(p, "sched_getaffinity", libc::SYS_sched_getaffinity, &args);
    let io_priority = ask(p, "ioprio_get", libc::SYS_ioprio_get, &[IOPRIO_WHO_PROCESS.into(), 0.into()]);
    let timer_slack = option(p, libc::PR_GET_TIMERSLACK, 0);
    let tsc = p.reserve(4);
    let args = [libc::PR_GET_TSC.into(), tsc.into()];
    p.syscall_expect(plan, "PR_GET_TSC", libc::SYS_prctl, &args, Expect::Any);
    let cpuid = ask(p, "ARCH_GET_CPUID", libc::SYS_arch_prctl, &[ARCH_GET_CPUID.into(), 0.into()]);
    let machine_check = option(p, libc::PR_MCE_KILL_GET, 0);
    let speculation = known().speculation.iter();
    let speculation = speculation.map(|&which| (which, option(p, PR_GET_SPECULATION_CTRL, which))).collect();
    let (policy_mode, policy_nodes) = (p.reserve(4), p.reserve(known().node_bytes));
    let args = [policy_mode.into(), policy_nodes.into(), max_node(known().node_bytes), 0.into(), 0.into()];
    let policy = ask(p, "get_mempolicy", libc::SYS_get_mempolicy, &args);
    let attr = p.reserve(SCHED_ATTR_BYTES);
    let args = [0.into(), attr.into(), SCHED_ATTR_BYTES.into(), 0.into()];
    p.syscall_expect(plan, "sched_getattr", libc::SYS_sched_getattr, &args, Expect::Any);
    let cookie = known().core_scheduling.then(|| {
        let at = p.reserve(8);
        let args = [PR_SCHED_CORE.into(), 0.into(), 0.into(), 0.into(), at.into()];
        p.syscall_expect(plan, "PR_SCHED_CORE_GET", libc::SYS_prctl, &args, Expect::Any);
        at
    });
    AskedThread {
        mask_len,
        mask,
        io_priority,
        timer_slack,
        tsc,
        cpuid,
        machine_check,
        speculation,
        policy,
        policy_mode,
        policy_nodes,
        attr,
        cookie,
        keys: ask_keys(p, plan, libc::KEY_SPEC_THREAD_KEYRING),
    }
}

/// Asks a process, through one of its threads.
pub fn ask_process(p: &mut Program, plan: PlanId) -> AskedProcess {
    let option = |p: &mut Program, option: i32| {
        let args = [option.into(), 0.into(), 0.into(), 0.into(), 0.into()];
        p.syscall_slot(plan, "prctl", libc::SYS_prctl, &args, Expect::Any)
    };
    let keys = ask_keys(p, plan, libc::KEY_SPEC_PROCESS_KEYRING);
    let mut allowed = |label: &'static str, which: i32| {
        (tiles::on_request() != 0).then(|| {
            let at = p.reserve(8);
            p.syscall_expect(plan, label, libc::SYS_arch_prctl, &[which.into(), at.into()], Expect::Any);
            at
        })
    };
    let xstate = allowed("ARCH_GET_XCOMP_PERM", ARCH_GET_XCOMP_PERM);
    let guest_xstate = allowed("ARCH_GET_XCOMP_GUEST_PERM", ARCH_GET_XCOMP_GUEST_PERM);
    AskedProcess {
        keys,
        xstate,
        guest_xstate,
        merges: option(p, PR_GET_MEMORY_MERGE),
        mdwe: option(p, PR_GET_MDWE),
        thp: option(p, libc::PR_GET_THP_DISABLE),
    }
}

/// Whether a process may use AMX tiles.
pub fn may_use_tiles(asked: &AskedProcess, ran: &Ran) -> bool {
    let mask =
        asked.xstate.and_then(|at| ran.data(at, 8)).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    mask & tiles::DATA != 0
}

/// A thread's answers as a record.
///
/// # Errors
/// `Unsupported` for core scheduling: a group's cookie is the kernel's secret. And for keys.
pub fn thread(
    asked: &AskedThread,
    read: &dyn Fn(DataRef, usize) -> Result<Vec<u8>>,
    slot: &dyn Fn(Slot) -> Result<i64>,
) -> Result<CrustThreadSettings> {
    if let Some(at) = asked.cookie
        && read(at, 8)?.iter().any(|&b| b != 0)
    {
        let help = "dump it before it joins a core scheduling group (prctl PR_SCHED_CORE)";
        return Err(Error::unsupported("is in a core scheduling group", help));
    }
    refuse_keys(slot(asked.keys)?, "thread")?;
    let len = usize::try_from(slot(asked.mask_len)?).unwrap_or(0).min(known().mask_bytes);
    let mask = read(asked.mask, len)?;
    let positive = |slot: i64| u32::try_from(slot).ok().filter(|&n| n != 0);
    let word = |at| read(at, 4).map(|b| b.try_into().map_or(0, u32::from_le_bytes));
    let mode = if slot(asked.policy)? == 0 { word(asked.policy_mode)? } else { 0 };
    let attr = read(asked.attr, SCHED_ATTR_BYTES)?;
    let mut speculation = Vec::new();
    for &(which, at) in &asked.speculation {
        let state = slot(at)?;
        if state > 0 && state & SPEC_SETTABLE != 0 && state != SPEC_ORDINARY {
            speculation.extend([which, (state & !SPEC_SETTABLE) as u32]);
        }
    }
    Ok(CrustThreadSettings {
        affinity: (!mask.is_empty() && pinned(&mask)).then(|| trimmed(mask)),
        io_priority: positive(slot(asked.io_priority)?),
        timer_slack_ns: u64::try_from(slot(asked.timer_slack)?).ok().filter(|&ns| ns != 0 && ns != ORDINARY_SLACK_NS),
        tsc: Some(word(asked.tsc)?).filter(|&state| state > PR_TSC_ENABLE),
        cpuid_traps: (slot(asked.cpuid)? == 0).then_some(true),
        machine_check: Some(slot(asked.machine_check)?)
            .filter(|&p| p != PR_MCE_KILL_DEFAULT && p >= 0)
            .map(|p| p as u32),
        speculation,
        memory_policy: Some(mode).filter(|&m| m != 0),
        memory_nodes: if mode == 0 { None } else { Some(trimmed(read(asked.policy_nodes, known().node_bytes)?)) },
        sched_attr: says_more(&attr).then_some(attr),
        dispatch: None,
        debug_registers: Vec::new(),
        tile_room: None,
    })
}

/// A process's answers as a record, with what /proc knows.
///
/// # Errors
/// `Unsupported` for an I/O flusher, and for keys.
pub fn process(
    asked: &AskedProcess,
    proc: &ProcDir,
    task_flags: u64,
    read: &dyn Fn(DataRef, usize) -> Result<Vec<u8>>,
    slot: &dyn Fn(Slot) -> Result<i64>,
) -> Result<CrustProcessSettings> {
    if task_flags & IO_FLUSHER == IO_FLUSHER {
        let help = "dump it before it makes itself one (prctl PR_SET_IO_FLUSHER)";
        return Err(Error::unsupported("is an I/O flusher, part of a block device or filesystem in user space", help));
    }
    refuse_keys(slot(asked.keys)?, "process")?;
    let filter = proc.read_text("coredump_filter").ok();
    let allowed = |at: Option<DataRef>| -> Result<Option<u64>> {
        let mask = at.map(|at| read(at, 8)).transpose()?.and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        Ok(mask.map(|mask| mask & ASKED_FOR).filter(|&mask| mask != 0))
    };
    Ok(CrustProcessSettings {
        xstate_permission: allowed(asked.xstate)?,
        xstate_guest_permission: allowed(asked.guest_xstate)?,
        merges_memory: (slot(asked.merges)? == 1).then_some(true),
        mdwe: u32::try_from(slot(asked.mdwe)?).ok().filter(|&bits| bits != 0),
        thp_flags: u32::try_from(slot(asked.thp)? & !1).ok().filter(|&flags| flags != 0),
        coredump_filter: filter
            .and_then(|f| u32::from_str_radix(f.trim(), 16).ok())
            .filter(|&kinds| kinds != ORDINARY_COREDUMP_FILTER),
        autogroup_nice: None,
        locks_new: None,
    })
}

/// What can be said against a process from outside.
pub fn blocker(status: &Status) -> Option<Error> {
    let mask = status.get("untag_mask")?;
    let tags = u64::from_str_radix(mask.trim_start_matches("0x"), 16).is_ok_and(|m| m != u64::MAX);
    let help = "run the program without linear address masking";
    tags.then(|| Error::unsupported("uses tagged addresses (linear address masking)", help))
}

/// The kernel's way to give the length of a node mask: one more than its bits.
fn max_node(bytes: usize) -> Arg {
    (bytes * 8 + 1).into()
}

/// Without zeros at the end.
fn trimmed(mut bytes: Vec<u8>) -> Vec<u8> {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

/// The processors that are online, as a mask; empty if the kernel does not tell.
fn online() -> &'static [u8] {
    static ONLINE: OnceLock<Vec<u8>> = OnceLock::new();
    ONLINE.get_or_init(|| {
        std::fs::read_to_string("/sys/devices/system/cpu/online").ok().and_then(|t| parse_list(&t)).unwrap_or_default()
    })
}

/// `0-3,8` as a mask.
fn parse_list(text: &str) -> Option<Vec<u8>> {
    let mut mask = vec![0u8; MASK_BYTES];
    for part in text.trim().split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        for cpu in first.parse::<usize>().ok()?..=last.parse().ok()? {
            *mask.get_mut(cpu / 8)? |= 1 << (cpu % 8);
        }
    }
    Some(trimmed(mask))
}

/// True unless the mask has every processor that is online.
fn pinned(mask: &[u8]) -> bool {
    let online = online();
    online.is_empty() || online.iter().enumerate().any(|(i, &all)| mask.get(i).copied().unwrap_or(0) & all != all)
}

/// Whether the calling thread may not use every processor.
pub fn own_is_pinned() -> bool {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return false };
    let mut mask = vec![0u8; rustix::thread::CpuSet::MAX_CPU / 8];
    for cpu in (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)) {
        mask[cpu / 8] |= 1 << (cpu % 8);
    }
    pinned(&mask)
}

/// Why a thread's settings cannot be had here: asked before anything is created.
pub fn check(want: &CrustThreadSettings) -> Option<Error> {
    let mask = want.affinity.as_ref()?;
    let here = online();
    let none = !here.is_empty() && !here.iter().zip(mask).any(|(a, b)| a & b != 0);
    none.then(|| {
        let what =
            format!("may only run on processors (mask {mask:02x?}, lowest first) that this machine does not have");
        Error::unsupported(what, "restore it where there are as many processors, or dump it unpinned (taskset -ap)")
    })
}

/// Why a process's settings cannot be had here: asked before anything is created.
pub fn check_process(want: &CrustProcessSettings) -> Option<Error> {
    no_such_state(want.xstate_permission() | want.xstate_guest_permission(), tiles::on_request())
}

fn no_such_state(wanted: u64, here: u64) -> Option<Error> {
    let (missing, others) = (wanted & !here & ASKED_FOR, wanted & !ASKED_FOR);
    if others != 0 {
        return Some(Error::bad_image(
            "the core image",
            format!("permission for CPU state {others:#x}, which crust knows not"),
        ));
    }
    (missing != 0).then(tiles::not_here)
}

/// Sets what is recorded of a thread. `pinned`: whether we are.
pub fn plan_thread(p: &mut Program, plan: PlanId, want: &CrustThreadSettings, pinned: bool) {
    let affinity = match &want.affinity {
        Some(mask) => Some(mask.clone()),
        // It could go everywhere: so it can again, wherever we are tied to.
        None => pinned.then(|| vec![0xff; MASK_BYTES]),
    };
    if let Some(mut mask) = affinity {
        mask.resize(mask.len().next_multiple_of(8), 0);
        let at = p.data(&mask);
        let args = [0.into(), mask.len().into(), at.into()];
        p.syscall(plan, "sched_setaffinity", libc::SYS_sched_setaffinity, &args);
    }
    let option = |p: &mut Program, label: &'static str, option: i32, args: [Arg; 2]| {
        p.syscall(plan, label, libc::SYS_prctl, &[option.into(), args[0], args[1], 0.into(), 0.into()]);
    };
    let args = [IOPRIO_WHO_PROCESS.into(), 0.into(), want.io_priority().into()];
    p.syscall(plan, "ioprio_set", libc::SYS_ioprio_set, &args);
    // A thread begins with that of whoever started it.
    let slack = want.timer_slack_ns.unwrap_or(ORDINARY_SLACK_NS);
    option(p, "PR_SET_TIMERSLACK", libc::PR_SET_TIMERSLACK, [slack.into(), 0.into()]);
    if let Some(state) = want.tsc {
        option(p, "PR_SET_TSC", libc::PR_SET_TSC, [state.into(), 0.into()]);
    }
    if want.cpuid_traps() {
        let args = [ARCH_SET_CPUID.into(), 0.into()];
        p.syscall(plan, "ARCH_SET_CPUID", libc::SYS_arch_prctl, &args);
    }
    if let Some(policy) = want.machine_check {
        option(p, "PR_MCE_KILL", libc::PR_MCE_KILL, [PR_MCE_KILL_SET.into(), policy.into()]);
    }
    for pair in want.speculation.chunks_exact(2) {
        option(p, "PR_SET_SPECULATION_CTRL", PR_SET_SPECULATION_CTRL, [pair[0].into(), pair[1].into()]);
    }
    if let Some(mode) = want.memory_policy {
        let mut nodes = want.memory_nodes().to_vec();
        nodes.resize(nodes.len().next_multiple_of(8).max(8), 0);
        let at = p.data(&nodes);
        let args = [mode.into(), at.into(), max_node(nodes.len())];
        p.syscall(plan, "set_mempolicy", libc::SYS_set_mempolicy, &args);
    }
    if let Some(attr) = &want.sched_attr {
        let at = p.data(attr);
        p.syscall(plan, "sched_setattr", libc::SYS_sched_setattr, &[0.into(), at.into(), 0.into()]);
    }
}

/// Sets what is recorded of a process; all its memory is in place.
pub fn plan_process(p: &mut Program, plan: PlanId, want: &CrustProcessSettings) {
    let guest = want.xstate_guest_permission();
    for (label, which, mask) in [
        ("ARCH_REQ_XCOMP_PERM", ARCH_REQ_XCOMP_PERM, want.xstate_permission()),
        ("ARCH_REQ_XCOMP_GUEST_PERM", ARCH_REQ_XCOMP_GUEST_PERM, guest),
    ] {
        for component in (0..64_u32).filter(|c| mask & 1 << c != 0) {
            p.syscall(plan, label, libc::SYS_arch_prctl, &[which.into(), component.into()]);
        }
    }
    let mut option = |label: &'static str, option: i32, args: [Arg; 2]| {
        p.syscall(plan, label, libc::SYS_prctl, &[option.into(), args[0], args[1], 0.into(), 0.into()]);
    };
    if want.merges_memory() {
        option("PR_SET_MEMORY_MERGE", PR_SET_MEMORY_MERGE, [1.into(), 0.into()]);
    }
    if let Some(flags) = want.thp_flags {
        option("PR_SET_THP_DISABLE", libc::PR_SET_THP_DISABLE, [1.into(), flags.into()]);
    }
    if let Some(bits) = want.mdwe {
        option("PR_SET_MDWE", PR_SET_MDWE, [bits.into(), 0.into()]);
    }
}

/// Gives the calling process the core dump filter that is recorded, or the ordinary one.
///
/// # Errors
/// If it cannot be written.
pub fn set_coredump_filter(want: &CrustProcessSettings) -> Result<()> {
    let filter = want.coredump_filter.unwrap_or(ORDINARY_COREDUMP_FILTER);
    let path = "/proc/self/coredump_filter";
    let now = std::fs::read_to_string(path).ok().and_then(|t| u32::from_str_radix(t.trim(), 16).ok());
    // A kernel without core dumps has none.
    if now.is_none_or(|now| now == filter) {
        return Ok(());
    }
    std::fs::write(path, format!("{filter:#x}")).during("setting the core dump filter")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn a_permission_for_state_that_is_not_here_is_refused() {
        assert!(no_such_state(ASKED_FOR, ASKED_FOR).is_none());
        let e = no_such_state(ASKED_FOR, 0).expect("no tiles here");
        assert!(e.kind() == Kind::Unsupported && e.to_string().contains("AMX tiles"), "{e}");
        assert_eq!(no_such_state(1 << 63, ASKED_FOR).expect("never heard of").kind(), Kind::BadImage);
    }

    #[test]
    fn lists_of_processors() {
        assert_eq!(parse_list("0-3,8\n"), Some(vec![0x0f, 0x01]));
        assert_eq!(parse_list("1"), Some(vec![0x02]));
        assert_eq!(parse_list(""), Some(vec![]));
        assert_eq!(parse_list("0-x"), None);
        assert_eq!(parse_list("0-999999999"), None);
    }

    #[test]
    fn processors_that_are_not_here_are_told() {
        let mut far = vec![0u8; 512];
        far.push(1);
        let want = CrustThreadSettings { affinity: Some(far), ..Default::default() };
        assert_eq!(check(&want).expect("told").kind(), Kind::Unsupported);
        let want = CrustThreadSettings { affinity: Some(vec![0xff; 8]), ..Default::default() };
        assert!(check(&want).is_none());
    }
}

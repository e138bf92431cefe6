//! Seccomp: strict mode and filter programs of each thread, in `seccomp.img` and the thread's record.
//!
//! A thread's record names its oldest program; `prev` leads from there to each newer one (so CRIU writes it, against the
//! field's name). Equal chains are stored once. Programs that all threads of a process share (TSYNC) are the leader's alone
//! in the image, with the TSYNC flag; the other threads then have no mode of their own.
//!
//! At restore programs are installed while the coordinator traces the thread with its filters suspended, so that none of them
//! judges what is still to be done, and before credentials change, so that no right to install them is missing.
use crate::{Error, Kind, Result};
use crust_image::proto::{CoreEntry, SeccompEntry, SeccompFilter};
use crust_inject::plan::{Arg, DataRef, Expect, PlanId, Program};
use crust_kernel::procfs::{ProcDir, Status};
use crust_kernel::ptrace::{self, BpfInsn};
use crust_kernel::{HostTid, NsTid};
use rustix::io::Errno;
use std::collections::HashMap;

const STRICT: i32 = 1;
const FILTER: i32 = 2;
const TSYNC: u32 = 1;
const INSN_BYTES: usize = 8;
/// BPF_MAXINSNS
const MAX_INSNS: usize = 4096;
const SECCOMP_SET_MODE_FILTER: u64 = 1;
/// The inode of the first user namespace (`PROC_USER_INIT_INO`), which the kernel never gives to another.
pub(crate) const FIRST_USER_NS: &str = "user:[4026531837]";

/// Why filters can neither be read nor suspended by this process, if they cannot. The kernel wants CAP_SYS_ADMIN in the first
/// user namespace, of somebody who is under no filter himself.
pub fn out_of_reach() -> Option<&'static str> {
    let me = HostTid::new(rustix::process::getpid().as_raw_nonzero().get())?;
    let proc = ProcDir::open_self(me).ok()?;
    let status = Status::new(proc.read_text("status").ok()?);
    if status.number("Seccomp").is_some_and(|mode| mode != 0) {
        return Some("crust itself runs under seccomp");
    }
    if status.mask("CapEff").is_some_and(|caps| caps & (1 << 21) == 0) {
        return Some("crust lacks CAP_SYS_ADMIN");
    }
    let first = proc.readlink("ns/user").is_ok_and(|link| link == FIRST_USER_NS.as_bytes());
    (!first).then_some("crust runs in a user namespace other than the first")
}

fn no_right(why: &str) -> Error {
    let what = format!("runs under seccomp, whose filters may not be read or suspended: {why}");
    Error::unsupported(what, "run crust as root outside of the container, or start the program without seccomp")
}

/// What can be said against a process from outside.
pub fn blocker(status: &Status) -> Option<Error> {
    let active = status.number("Seccomp").is_some_and(|mode| mode != 0);
    active.then(out_of_reach).flatten().map(no_right)
}

/// A thread's seccomp state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// None.
    #[default]
    Off,
    /// Only read, write, exit and sigreturn.
    Strict,
    /// Programs, the oldest first.
    Filters(Vec<Installed>),
}

/// One installed program.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Installed {
    code: Vec<u8>,
    flags: u32,
}

/// Reads the state of a stopped thread.
///
/// # Errors
/// `Unsupported` without the right to read filters, and for filters that ask a listener.
pub fn look(tid: HostTid, status: &Status) -> Result<Mode> {
    match status.number("Seccomp").unwrap_or(0) {
        0 => Ok(Mode::Off),
        1 => Ok(Mode::Strict),
        2 => filters(tid).map(Mode::Filters),
        other => Err(Error::unsupported(
            format!("thread {tid} is in seccomp mode {other}, which is not known"),
            "dump it before or after",
        )),
    }
}

fn filters(tid: HostTid) -> Result<Vec<Installed>> {
    let mut all = Vec::new();
    loop {
        let index = all.len() as u32;
        let insns = match ptrace::get_seccomp_filter(tid, index) {
            Ok(insns) => insns,
            Err(Errno::NOENT) if index > 0 => return Ok(all),
            Err(Errno::ACCESS) => return Err(no_right("the kernel refuses it")),
            Err(e) => return Err(Error::kernel(format!("reading seccomp filter {index} of thread {tid}"), e)),
        };
        if insns.iter().any(asks_listener) {
            let what = format!("a seccomp filter of thread {tid} asks a listener (SECCOMP_RET_USER_NOTIF)");
            let help = "dump it without whoever supervises it: a new listener cannot be given to the old supervisor";
            return Err(Error::unsupported(what, help));
        }
        // A kernel without metadata has no flags that would be lost: both came with Linux 4.16 or before.
        let flags = ptrace::get_seccomp_flags(tid, index).unwrap_or(0) as u32;
        let code = insns.iter().flat_map(encode).collect();
        all.push(Installed { code, flags });
    }
}

/// `BPF_RET | BPF_K` with the action SECCOMP_RET_USER_NOTIF.
fn asks_listener(i: &BpfInsn) -> bool {
    i.code == 0x06 && i.k & 0xffff_0000 == 0x7fc0_0000
}

fn encode(i: &BpfInsn) -> [u8; INSN_BYTES] {
    let ([a, b], [e, f, g, h]) = (i.code.to_le_bytes(), i.k.to_le_bytes());
    [a, b, i.jt, i.jf, e, f, g, h]
}

/// All programs of a tree, each chain stored once: the content of `seccomp.img`.
#[derive(Debug, Default)]
pub struct Chains {
    entry: SeccompEntry,
    known: HashMap<(Installed, Option<u32>), u32>,
}

impl Chains {
    /// Stores what the threads of one process (leader first) have, and notes it in their records.
    pub fn save<'a>(&mut self, modes: &[Mode], cores: impl Iterator<Item = &'a mut CoreEntry>) {
        let shared = match modes {
            [Mode::Filters(first), rest @ ..] if !rest.is_empty() => {
                rest.iter().all(|m| *m == modes[0]).then_some(first)
            }
            _ => None,
        };
        for (k, (mode, core)) in modes.iter().zip(cores).enumerate() {
            let Some(thread) = &mut core.thread_core else { continue };
            match (mode, shared) {
                (Mode::Off, _) => {}
                (Mode::Strict, _) => thread.seccomp_mode = Some(STRICT),
                (Mode::Filters(_), Some(_)) if k > 0 => {}
                (Mode::Filters(chain), _) => {
                    let sync = if shared.is_some() { TSYNC } else { 0 };
                    thread.seccomp_mode = Some(FILTER);
                    thread.seccomp_filter = self.intern(chain, sync);
                }
            }
        }
    }

    /// The place of the oldest program of a chain.
    fn intern(&mut self, chain: &[Installed], extra_flags: u32) -> Option<u32> {
        let mut newer = None;
        for one in chain.iter().rev() {
            let one = Installed { flags: one.flags | extra_flags, ..one.clone() };
            let next = self.entry.seccomp_filters.len() as u32;
            let place = *self.known.entry((one.clone(), newer)).or_insert(next);
            if place == next {
                let filter = SeccompFilter { filter: one.code, prev: newer, flags: Some(one.flags) };
                self.entry.seccomp_filters.push(filter);
            }
            newer = Some(place);
        }
        newer
    }

    /// The content of `seccomp.img`.
    pub fn record(&self) -> &SeccompEntry {
        &self.entry
    }
}

/// What one process of an image needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Duty {
    /// Places of programs that the leader installs for all threads.
    shared: Vec<usize>,
    /// What each thread installs for itself, leader first.
    own: Vec<Own>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Own {
    #[default]
    Nothing,
    Strict,
    Filters(Vec<usize>),
}

/// The programs of an image as restore reads them.
#[derive(Debug, Default)]
pub struct Filters {
    entry: SeccompEntry,
}

impl Filters {
    /// From the content of `seccomp.img`, if there is one.
    pub fn new(entry: Option<SeccompEntry>) -> Self {
        Self { entry: entry.unwrap_or_default() }
    }

    /// The places of a chain, oldest first.
    fn chain(&self, first: u32) -> Result<Vec<usize>> {
        let bad = |what: String| Error::bad_image("seccomp.img", what);
        let all = &self.entry.seccomp_filters;
        let mut chain = Vec::new();
        let mut at = Some(first);
        while let Some(place) = at {
            let filter = all.get(place as usize).ok_or_else(|| bad(format!("has no program {place}")))?;
            let insns = filter.filter.len() / INSN_BYTES;
            if filter.filter.len() % INSN_BYTES != 0 || insns == 0 || insns > MAX_INSNS {
                return Err(bad(format!("program {place} has {} bytes", filter.filter.len())));
            }
            chain.push(place as usize);
            if chain.len() > all.len() {
                return Err(bad(format!("the programs behind {first} lead round in a circle")));
            }
            at = filter.prev;
        }
        Ok(chain)
    }

    fn flags(&self, place: usize) -> u32 {
        self.entry.seccomp_filters.get(place).and_then(|f| f.flags).unwrap_or(0)
    }

    fn same(&self, a: usize, b: usize) -> bool {
        let of = |i: usize| self.entry.seccomp_filters.get(i).map(|f| (&f.filter, f.flags() & !TSYNC));
        of(a) == of(b)
    }

    /// What a process with these threads (leader first) needs; `None` if no thread is under seccomp.
    ///
    /// # Errors
    /// `BadImage` for programs that are not there or are none.
    pub fn duty(&self, cores: &[CoreEntry]) -> Result<Option<Duty>> {
        let mut chains = Vec::with_capacity(cores.len());
        let mut own = Vec::with_capacity(cores.len());
        let mut sync_all = false;
        for core in cores {
            let thread = core.thread_core.as_ref();
            let mut mode = thread.and_then(|t| t.seccomp_mode).unwrap_or(0);
            let mut first = thread.and_then(|t| t.seccomp_filter).unwrap_or(0);
            if let Some(tc) = &core.tc {
                // Before CRIU 3.4 the process had one mode, and the filter held for all its threads.
                mode = tc.old_seccomp_mode.unwrap_or(mode);
                first = tc.old_seccomp_filter.unwrap_or(first);
                sync_all |= tc.old_seccomp_filter.is_some();
            }
            let chain = if mode == FILTER { self.chain(first)? } else { Vec::new() };
            own.push(match mode {
                0 => Own::Nothing,
                STRICT => Own::Strict,
                FILTER => Own::Filters(Vec::new()),
                other => return Err(Error::bad_image("seccomp.img", format!("a thread has mode {other}"))),
            });
            chains.push(chain);
        }
        if own.iter().all(|o| *o == Own::Nothing) {
            return Ok(None);
        }
        let Some((first, rest)) = chains.split_first() else { return Ok(None) };
        // What all threads have in common was installed for all at once, or may as well have been.
        let common = |n: usize| rest.iter().all(|c| c.get(n).zip(first.get(n)).is_some_and(|(&a, &b)| self.same(a, b)));
        let alike = if rest.is_empty() { 0 } else { (0..first.len()).take_while(|&n| common(n)).count() };
        let asked = first.iter().take_while(|&&p| sync_all || self.flags(p) & TSYNC != 0).count();
        let shared = first[..alike.max(asked)].to_vec();
        for (k, (own, chain)) in own.iter_mut().zip(&chains).enumerate() {
            if let Own::Filters(places) = own {
                *places = chain[if k == 0 { shared.len() } else { alike }..].to_vec();
            }
        }
        Ok(Some(Duty { shared, own }))
    }

    /// Bytes of plan data that a process needs beside what every process needs.
    pub fn room(&self, duty: &Duty) -> u64 {
        let own = duty.own.iter().flat_map(|o| if let Own::Filters(f) = o { f.as_slice() } else { &[] });
        let len = |&place: &usize| self.entry.seccomp_filters.get(place).map_or(0, |f| f.filter.len() as u64 + 256);
        duty.shared.iter().chain(own).map(len).sum()
    }

    /// Installs everything. Each thread of the process runs its plan; the leader's comes first in `plans`. All of it happens
    /// while the threads are traced with their filters suspended.
    pub fn plan(&self, p: &mut Program, plans: &[PlanId], duty: &Duty) {
        let mut programs: HashMap<usize, DataRef> = HashMap::new();
        let mut program = |p: &mut Program, place: usize| -> Arg {
            let at = *programs.entry(place).or_insert_with(|| {
                let code = self.entry.seccomp_filters.get(place).map_or(&[][..], |f| &f.filter);
                let insns = p.data(code);
                // struct sock_fprog
                let len = ((code.len() / INSN_BYTES) as u64).to_le_bytes();
                let head = p.data(&[len, [0; 8]].concat());
                p.pointer(head.offset(8), insns);
                head
            });
            at.into()
        };
        let mut install = |p: &mut Program, plan: PlanId, place: usize, sync: bool| {
            let flags = self.flags(place) & !TSYNC | if sync { TSYNC } else { 0 };
            let args = [SECCOMP_SET_MODE_FILTER.into(), flags.into(), program(p, place)];
            // With TSYNC a positive result is the thread that could not follow.
            p.syscall_expect(plan, "seccomp", libc::SYS_seccomp, &args, Expect::Equals(0));
        };
        let Some(&leader) = plans.first() else { return };
        // The other threads must not install theirs before they have what all have.
        let done = (plans.len() > 1 && !duty.shared.is_empty()).then(|| p.reserve(16));
        for &place in &duty.shared {
            install(p, leader, place, done.is_some());
        }
        if let Some(done) = done {
            p.gate_open(leader, done);
            for &plan in &plans[1..] {
                p.gate_wait(plan, done);
            }
        }
        for (&plan, own) in plans.iter().zip(&duty.own) {
            match own {
                Own::Nothing => {}
                Own::Strict => {
                    let args = [libc::PR_SET_SECCOMP.into(), STRICT.into(), 0.into(), 0.into(), 0.into()];
                    p.syscall(plan, "PR_SET_SECCOMP", libc::SYS_prctl, &args);
                }
                Own::Filters(places) => places.iter().for_each(|&place| install(p, plan, place, false)),
            }
        }
    }
}

/// Becomes the tracer of threads that are about to get their filters. From here on no filter of theirs holds until the end.
///
/// # Errors
/// Without the right to suspend filters; names the thread.
pub fn suspend(threads: &[(HostTid, NsTid)]) -> Result<()> {
    for &(tid, inner) in threads {
        let options = ptrace::Options { exit_kill: true, suspend_seccomp: true };
        ptrace::seize(tid, options).map_err(|errno| {
            let why = out_of_reach().unwrap_or("the kernel refuses it");
            Error::kernel(format!("suspending the seccomp filters of thread {inner} ({why})"), errno)
                .kind_is(Kind::Permission)
                .help("restore tasks with seccomp filters as root in the first user namespace")
        })?;
    }
    Ok(())
}

/// Why an image with filters cannot be restored here, asked before anything is created.
pub fn check() -> Option<Error> {
    let why = out_of_reach()?;
    let what = format!("the task runs under seccomp, and filters cannot be suspended while it is built: {why}");
    Some(Error::new(Kind::Permission, what).help("restore it as root in the first user namespace"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_image::proto::ThreadCoreEntry;

    fn filter(k: u32) -> Installed {
        Installed { code: encode(&BpfInsn { code: 6, jt: 0, jf: 0, k }).to_vec(), flags: 2 }
    }

    fn thread() -> CoreEntry {
        CoreEntry { thread_core: Some(ThreadCoreEntry::default()), ..Default::default() }
    }

    fn round(modes: &[Mode]) -> (Filters, Duty) {
        let mut chains = Chains::default();
        let mut cores: Vec<CoreEntry> = modes.iter().map(|_| thread()).collect();
        chains.save(modes, cores.iter_mut());
        let filters = Filters::new(Some(chains.record().clone()));
        let duty = filters.duty(&cores).expect("reads").expect("has work");
        (filters, duty)
    }

    fn keys(filters: &Filters, places: &[usize]) -> Vec<u8> {
        places.iter().map(|&p| filters.entry.seccomp_filters[p].filter[4]).collect()
    }

    #[test]
    fn threads_that_share_all_are_synchronised() {
        let both = Mode::Filters(vec![filter(1), filter(2)]);
        let (filters, duty) = round(&[both.clone(), both]);
        assert_eq!(keys(&filters, &duty.shared), [1, 2]);
        assert_eq!(duty.own, [Own::Filters(vec![]), Own::Nothing]);
        assert!(filters.entry.seccomp_filters.iter().all(|f| f.flags == Some(3)), "LOG stays, TSYNC comes");
    }

    #[test]
    fn what_threads_have_in_common_is_installed_once() {
        let a = Mode::Filters(vec![filter(1), filter(2)]);
        let b = Mode::Filters(vec![filter(1), filter(3)]);
        let (filters, duty) = round(&[a, b]);
        assert_eq!(keys(&filters, &duty.shared), [1]);
        let own = |k: usize| if let Own::Filters(f) = &duty.own[k] { keys(&filters, f) } else { vec![] };
        assert_eq!((own(0), own(1)), (vec![2], vec![3]));
    }

    #[test]
    fn equal_chains_are_stored_once_and_modes_differ_by_thread() {
        let a = Mode::Filters(vec![filter(1), filter(2)]);
        let mut chains = Chains::default();
        for _ in 0..3 {
            let mut core = thread();
            chains.save(std::slice::from_ref(&a), std::iter::once(&mut core));
            assert_eq!(core.thread_core.and_then(|t| t.seccomp_filter), Some(1));
        }
        assert_eq!(chains.record().seccomp_filters.len(), 2);
        let (filters, duty) = round(&[Mode::Off, Mode::Strict, a]);
        assert!(duty.shared.is_empty());
        assert_eq!(duty.own[..2], [Own::Nothing, Own::Strict]);
        assert!(matches!(&duty.own[2], Own::Filters(f) if keys(&filters, f) == [1, 2]));
    }

    #[test]
    fn hostile_chains_are_refused() {
        let f = |prev| SeccompFilter { filter: vec![6, 0, 0, 0, 0, 0, 0, 0], prev, flags: None };
        let of = |list: Vec<SeccompFilter>| Filters::new(Some(SeccompEntry { seccomp_filters: list }));
        assert!(of(vec![f(Some(0))]).chain(0).is_err(), "a circle");
        assert!(of(vec![f(Some(7))]).chain(0).is_err(), "no such program");
        assert!(of(vec![SeccompFilter { filter: vec![1; 9], ..f(None) }]).chain(0).is_err(), "no whole instructions");
        assert!(of(vec![SeccompFilter { filter: vec![], ..f(None) }]).chain(0).is_err(), "empty");
    }

    #[test]
    fn a_filter_that_asks_a_listener_is_seen() {
        assert!(asks_listener(&BpfInsn { code: 6, jt: 0, jf: 0, k: 0x7fc0_0001 }));
        assert!(!asks_listener(&BpfInsn { code: 6, jt: 0, jf: 0, k: 0x7fff_0000 }));
        assert!(!asks_listener(&BpfInsn { code: 0x15, jt: 0, jf: 0, k: 0x7fc0_0000 }));
    }
}

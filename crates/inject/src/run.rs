//! Running plans in the threads of a stopped process: many calls for one stop.
//!
//! Behind a plan's own records come four more: getpid, gettid, a signal to itself, and a jump to its landing. While we
//! trace, the signal stops the thread (even an ignored one does) and we bring it home. If we are dead the signal is
//! ignored and the landing takes the thread home: the signal must be one that the program neither catches nor blocks and
//! whose default is to be ignored. Where there is none (Go catches all) the plan is stepped from call to call instead.
use crate::arch::{landing, regs};
use crate::error::{During, Error, Kind, Result};
use crate::home::ALL_SIGNALS;
use crate::plan::{Arg, DataRef, Expect, Failure, Linked, PlanId, Program, RECORD_BYTES, Slot};
use crate::seize::SeizedProcess;
use crust_kernel::procfs::Status;
use crust_kernel::ptrace::Stop;
use crust_kernel::remote_mem::{RemoteRange, process_vm_read_all};
use crust_kernel::{HostTid, VirtAddr};

/// Bytes that the four records of our own may take, labels included.
const OWN_RECORDS_BYTES: usize = 4 * RECORD_BYTES + 128;
/// Longest label read back.
const LABEL_BYTES: usize = 128;

/// A program that ran, with everything it left in its memory.
#[derive(Debug)]
pub struct Ran {
    base: u64,
    bytes: Vec<u8>,
    linked: Linked,
}

/// The record of a plan whose result was not the expected one. The plan went no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanFailure {
    /// What the record was for.
    pub label: String,
    /// Number of its system call.
    pub nr: u32,
    /// Its arguments, as stored.
    pub args: [u64; 6],
    /// Its result, `-errno` for most.
    pub value: i64,
}

impl std::fmt::Display for PlanFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { label, nr, args, value } = self;
        match crate::remote::errno_of(*value) {
            Some(errno) => write!(f, "{label} (syscall {nr} {args:x?}): {}", std::io::Error::from(errno)),
            None => write!(f, "{label} (syscall {nr} {args:x?}) gave {value:#x}"),
        }
    }
}

impl Ran {
    /// Where it ran: in our area, as long as that is there ([`SeizedProcess::clean_up`]).
    pub fn address(&self) -> VirtAddr {
        VirtAddr(self.base)
    }

    fn at(&self, address: u64, len: usize) -> Option<&[u8]> {
        let from = usize::try_from(address.checked_sub(self.base)?).ok()?;
        self.bytes.get(from..from.checked_add(len)?)
    }

    fn word(&self, address: u64) -> Option<u64> {
        Some(u64::from_le_bytes(self.at(address, 8)?.try_into().ok()?))
    }

    /// A kept result.
    pub fn result(&self, plan: PlanId, slot: Slot) -> Option<i64> {
        let header = self.linked.headers.get(plan.index())?;
        self.word(header.checked_add(slot.header_offset())?).map(|w| w as i64)
    }

    /// Data of the program, as the calls left them.
    pub fn data(&self, data: DataRef, len: usize) -> Option<&[u8]> {
        self.at(self.linked.address(data), len)
    }

    /// What went wrong in a plan, if something did.
    pub fn failure(&self, plan: PlanId) -> Option<PlanFailure> {
        let header = *self.linked.headers.get(plan.index())?;
        let failure = Failure::parse_header(self.at(header, crate::plan::HEADER_BYTES)?)?;
        let record = self.at(failure.record, RECORD_BYTES).unwrap_or(&[]);
        let label = Failure::label_distance(record)
            .and_then(|d| failure.record.checked_add(u64::from(d)))
            .and_then(|a| self.bytes.get(usize::try_from(a.checked_sub(self.base)?).ok()?..))
            .map(|text| text.split(|&b| b == 0).next().unwrap_or(&[]))
            .map(|text| String::from_utf8_lossy(&text[..text.len().min(LABEL_BYTES)]).into_owned());
        Some(PlanFailure {
            label: label.unwrap_or_else(|| "an unknown record".into()),
            nr: Failure::syscall_nr(record).unwrap_or(0),
            args: Failure::args(record).unwrap_or_default(),
            value: failure.value,
        })
    }
}

/// A signal that stops a traced thread and passes an untraced one without a trace: ignored by default, not caught, not
/// blocked by any of `masks`.
fn choose_mark(caught: u64, masks: impl Iterator<Item = u64>) -> Option<i32> {
    let taken = masks.fold(caught, |all, mask| all | mask);
    [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD, libc::SIGCONT].into_iter().find(|s| taken & (1 << (s - 1)) == 0)
}

/// A thread that runs a plan.
#[derive(Debug)]
struct Runner {
    index: usize,
    /// Address of the slot that tells that the plan is over.
    over_at: u64,
    over: bool,
}

/// A program under way.
#[derive(Debug)]
pub(crate) struct Running {
    runners: Vec<Runner>,
    mark: Option<i32>,
    base: u64,
    linked: Linked,
}

impl Running {
    /// The threads that run it.
    pub(crate) fn indices(&self) -> impl Iterator<Item = usize> {
        self.runners.iter().map(|r| r.index)
    }
}

/// Bytes of memory in the target that a program needs.
pub(crate) fn room_for(program: &Program, plans: usize) -> u64 {
    (program.linked_len() + plans * OWN_RECORDS_BYTES + 64) as u64
}

impl SeizedProcess {
    /// Runs plans of `program`, each in its thread, all at once, and brings the threads home. No plan may leave the
    /// interpreter itself (sigreturn, callout) or have an error path: both are added here.
    ///
    /// # Errors
    /// If a plan could not be run or did not come to its end; failures of single records are in [`Ran::failure`].
    pub fn run(&mut self, program: Program, on: &[(HostTid, PlanId)]) -> Result<Ran> {
        crate::each::run_one(self, program, on)
    }

    /// Sends the threads off. There must be an area with room for the program ([`room_for`]).
    pub(crate) fn launch(
        &mut self,
        mut program: Program,
        on: &[(HostTid, PlanId)],
        indices: &[usize],
    ) -> Result<Running> {
        let room = room_for(&program, on.len());
        let mark = self.choose_mark(indices)?;
        let (site, mem, _) = self.parts()?;
        let base = site.take_data(mem, room)?;
        let landings = self.write_landings(indices)?;
        let mut over_slots = Vec::with_capacity(on.len());
        for ((_, plan), landing) in on.iter().zip(&landings) {
            over_slots.push(add_end(&mut program, *plan, mark, *landing));
        }
        let (site, mem, _) = self.parts()?;
        let entry = site.interpreter().ok_or_else(|| Error::new(Kind::Unexpected, on[0].0, "no interpreter"))?;
        let linked = program.link(base);
        if linked.bytes.len() as u64 > room {
            return Err(Error::new(Kind::Unexpected, self.pid, "a program longer than it said"));
        }
        mem.write(VirtAddr(base), &linked.bytes).during(self.pid, "writing the plan")?;

        let mut runners = Vec::with_capacity(on.len());
        for ((&index, (_, plan)), slot) in indices.iter().zip(on).zip(over_slots) {
            let header = linked.headers[plan.index()];
            runners.push(Runner { index, over_at: header + slot.header_offset(), over: false });
            let thread = &mut self.threads[index];
            let mask = mark.map_or(ALL_SIGNALS, |m| ALL_SIGNALS & !(1 << (m - 1)));
            thread.send(&regs::with_plan(&thread.regs, entry, header), mask)?;
            thread.go(mark.is_none(), 0)?;
        }
        Ok(Running { runners, mark, base, linked })
    }

    /// True if plans in all of its threads would have to be stepped from call to call, which costs two stops for each.
    pub fn steps_plans(&self, status: &Status) -> bool {
        let caught = status.mask("SigCgt").unwrap_or(u64::MAX);
        choose_mark(caught, self.threads.iter().map(|t| t.sigmask)).is_none()
    }

    fn choose_mark(&mut self, indices: &[usize]) -> Result<Option<i32>> {
        // Unknown means that all may be caught.
        let caught = self.status()?.mask("SigCgt").unwrap_or(u64::MAX);
        Ok(choose_mark(caught, indices.iter().map(|&i| self.threads[i].sigmask)))
    }

    /// Looks at threads that run a program, without waiting. True for "moved" and true for "all over".
    pub(crate) fn poll_plans(&mut self, running: &mut Running) -> Result<(bool, bool)> {
        let mark = running.mark;
        let mut stopped = Vec::new();
        for (n, runner) in running.runners.iter().enumerate().filter(|(_, r)| !r.over) {
            let Some(stop) = self.threads[runner.index].poll_stop()? else { continue };
            let ours = match (stop, mark) {
                (Stop::Signal(signal), Some(mark)) => signal == mark,
                (Stop::Syscall, None) => true,
                _ => false,
            };
            stopped.push((n, stop, ours));
        }
        // The same signal may have come from elsewhere, before the end; that one is dropped as it would be without us.
        let marked: Vec<usize> = stopped.iter().filter(|(.., ours)| *ours).map(|&(n, ..)| n).collect();
        self.note_over(&mut running.runners, &marked)?;
        for &(n, stop, ours) in &stopped {
            let runner = &running.runners[n];
            if !runner.over {
                let thread = &mut self.threads[runner.index];
                let signal = if ours { 0 } else { thread.pass_by(stop)? };
                thread.go(mark.is_none(), signal)?;
            }
        }
        Ok((!stopped.is_empty(), running.runners.iter().all(|r| r.over)))
    }

    /// Finds out which of `some` runners are through.
    fn note_over(&self, runners: &mut [Runner], some: &[usize]) -> Result<()> {
        const AT_ONCE: usize = 512;
        for some in some.chunks(AT_ONCE) {
            let tid = self.threads[runners[some[0]].index].tid;
            let ranges: Vec<_> = some.iter().map(|&n| RemoteRange::word(VirtAddr(runners[n].over_at))).collect();
            let mut words = vec![0; ranges.len() * 8];
            process_vm_read_all(tid, &mut words, &ranges).during(tid, "watching its plan")?;
            for (&n, word) in some.iter().zip(words.chunks_exact(8)) {
                runners[n].over = word.iter().any(|&b| b != 0);
            }
        }
        Ok(())
    }

    /// What a program that is over left behind.
    pub(crate) fn results(&mut self, running: Running) -> Result<Ran> {
        let Running { base, mut linked, .. } = running;
        let mut bytes = std::mem::take(&mut linked.bytes);
        self.memory()?.read(VirtAddr(base), &mut bytes).during(self.pid, "reading the plan's results")?;
        Ok(Ran { base, bytes, linked })
    }
}

/// Adds the records that end a plan, failed or not, and returns the slot that is set once its own records are through.
fn add_end(program: &mut Program, plan: PlanId, mark: Option<i32>, landing: u64) -> Slot {
    program.error_path(plan);
    let pid = program.syscall_slot(plan, "getpid at the end", libc::SYS_getpid, &[], Expect::Any);
    let tid = program.syscall_slot(plan, "gettid at the end", libc::SYS_gettid, &[], Expect::Any);
    match mark {
        Some(mark) => {
            let args = [Arg::from(pid), Arg::from(tid), Arg::from(mark)];
            program.syscall_expect(plan, "the end mark", libc::SYS_tgkill, &args, Expect::Any);
        }
        // One more stop for the stepping tracer, after the slot is set.
        None => program.syscall_expect(plan, "the end mark", libc::SYS_getpid, &[], Expect::Any),
    }
    program.callout(plan, 0, &[Arg::from(landing + landing::FULL_ENTRY), Arg::from(0u64)]);
    tid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_neither_caught_nor_blocked() {
        let bit = |s: i32| 1u64 << (s - 1);
        assert_eq!(choose_mark(0, [0].into_iter()), Some(libc::SIGURG));
        assert_eq!(choose_mark(bit(libc::SIGURG), [0].into_iter()), Some(libc::SIGWINCH));
        assert_eq!(choose_mark(bit(libc::SIGURG), [0, bit(libc::SIGWINCH)].into_iter()), Some(libc::SIGCHLD));
        assert_eq!(choose_mark(u64::MAX, [0].into_iter()), None);
    }
}

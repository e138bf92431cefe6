//! Plans: syscalls as data. Ordinary Rust builds them, the interpreter of `arch` runs them where no Rust can.
//!
//! A [`Program`] holds one plan per thread and the data they refer to. [`Program::link`] gives the bytes for one address.
//! Layout: headers with their result slots, then records, then data. All pointers are absolute after linking.
//! On an unexpected result the interpreter writes record address and value into the header ([`Failure`]) and continues with
//! the plan's error path if it has one; otherwise the process ends with status 112.
use std::borrow::Cow;
use std::collections::HashMap;

/// Bytes of a record; the interpreter's stride.
pub const RECORD_BYTES: usize = 72;
/// Bytes of a header without result slots.
pub const HEADER_BYTES: usize = 64;
/// Slots 0..8 are the header's own words.
const FIRST_SLOT: u32 = (HEADER_BYTES / 8) as u32;
/// Header status: not started, running, failed.
pub const STATUS_FAILED: u32 = 2;

/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;
/// Room for as many records from the start.
const MANY_RECORDS: usize = 24;

const OP_SYSCALL: u8 = 1;
const OP_BARRIER: u8 = 2;
const OP_COPY: u8 = 3;
const OP_THREAD: u8 = 4;
const OP_SIGRETURN: u8 = 5;
const OP_CALLOUT: u8 = 6;
const OP_WAKEALL: u8 = 7;
const OP_SYSCALL32: u8 = 8;
const OP_TILES: u8 = 9;

/// A result kept in the header of the plan that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u32);

impl Slot {
    /// Offset in bytes from the plan's header.
    pub fn header_offset(self) -> u64 {
        u64::from(self.0) * 8
    }
}

/// A place in the program's data, made absolute by linking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataRef(u64);

impl DataRef {
    /// A place further on. The caller stays inside what it reserved.
    pub fn offset(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// Which plan of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanId(usize);

impl PlanId {
    /// Index into [`Linked::headers`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// An argument of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// This number.
    Value(u64),
    /// An earlier result of the same plan, plus a small number (48 bits, signed).
    Result(Slot, i64),
    /// The address of data of the program.
    Data(DataRef),
    /// The address of the page in which data of the program begin.
    PageOf(DataRef),
    /// The address of a plan's header.
    Header(PlanId),
    /// The address of the failed record: for error paths.
    FailedRecord,
}

impl From<u64> for Arg {
    fn from(v: u64) -> Self {
        Self::Value(v)
    }
}
impl From<usize> for Arg {
    fn from(v: usize) -> Self {
        Self::Value(v as u64)
    }
}
impl From<u32> for Arg {
    fn from(v: u32) -> Self {
        Self::Value(u64::from(v))
    }
}
impl From<i32> for Arg {
    fn from(v: i32) -> Self {
        Self::Value(i64::from(v) as u64)
    }
}
impl From<i64> for Arg {
    fn from(v: i64) -> Self {
        Self::Value(v as u64)
    }
}
impl From<Slot> for Arg {
    fn from(slot: Slot) -> Self {
        Self::Result(slot, 0)
    }
}
impl From<DataRef> for Arg {
    fn from(d: DataRef) -> Self {
        Self::Data(d)
    }
}

/// What a record's result must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Anything: the builder looks at the slot later, or does not care.
    Any,
    /// No `-errno`.
    Ok,
    /// Exactly this.
    Equals(u64),
}

#[derive(Clone, Debug)]
struct Record {
    op: u8,
    nr: u32,
    args: [Arg; 6],
    expect: Expect,
    slot: Option<Slot>,
    label: Cow<'static, str>,
}

#[derive(Clone, Debug)]
struct Plan {
    name: Cow<'static, str>,
    records: Vec<Record>,
    slots: u32,
    error_path: Option<usize>,
}

/// Plans for the threads of one process, with their data.
#[derive(Clone, Debug, Default)]
pub struct Program {
    plans: Vec<Plan>,
    data: Vec<u8>,
    pointers: Vec<(u64, Arg)>,
}

/// A program as bytes for one address.
#[derive(Debug)]
pub struct Linked {
    /// To be copied to the base address; must stay writable.
    pub bytes: Vec<u8>,
    /// Address of each plan's header, by [`PlanId::index`].
    pub headers: Vec<u64>,
    data_base: u64,
}

impl Linked {
    /// Where the data went.
    pub fn address(&self, data: DataRef) -> u64 {
        self.data_base + data.0
    }
}

/// What a failed plan left in its header and record; read with [`Failure::parse_header`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Address of the record.
    pub record: u64,
    /// Its result: `-errno` for most.
    pub value: i64,
}

impl Failure {
    /// `None` while the header says no failure, or if it is too short.
    pub fn parse_header(header: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?));
        (word(0)? as u32 == STATUS_FAILED).then_some(())?;
        Some(Self { record: word(8)?, value: word(16)? as i64 })
    }

    /// Distance of the label's text behind the record, from the record's own bytes; the text ends with NUL.
    pub fn label_distance(record: &[u8]) -> Option<u32> {
        Some(u32::from_le_bytes(record.get(68..72)?.try_into().ok()?))
    }

    /// The syscall number of a record, from its bytes.
    pub fn syscall_nr(record: &[u8]) -> Option<u32> {
        Some(u32::from_le_bytes(record.get(4..8)?.try_into().ok()?))
    }

    /// The six arguments of a record as stored.
    pub fn args(record: &[u8]) -> Option<[u64; 6]> {
        let mut args = [0; 6];
        for (i, arg) in args.iter_mut().enumerate() {
            *arg = u64::from_le_bytes(record.get(8 + 8 * i..16 + 8 * i)?.try_into().ok()?);
        }
        Some(args)
    }
}

impl Program {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a plan for one thread.
    pub fn plan(&mut self, name: impl Into<Cow<'static, str>>) -> PlanId {
        let records = Vec::with_capacity(MANY_RECORDS);
        self.plans.push(Plan { name: name.into(), records, slots: FIRST_SLOT, error_path: None });
        PlanId(self.plans.len() - 1)
    }

    /// Stores bytes, aligned to 16.
    pub fn data(&mut self, bytes: &[u8]) -> DataRef {
        let at = self.reserve(bytes.len());
        self.data[at.0 as usize..][..bytes.len()].copy_from_slice(bytes);
        at
    }

    /// Stores text with a NUL behind it.
    pub fn cstr(&mut self, text: &[u8]) -> DataRef {
        let at = self.reserve(text.len() + 1);
        self.data[at.0 as usize..][..text.len()].copy_from_slice(text);
        at
    }

    /// Reserves zeroed bytes, aligned to 16.
    pub fn reserve(&mut self, len: usize) -> DataRef {
        let at = self.data.len().next_multiple_of(16);
        self.data.resize(at + len, 0);
        DataRef(at as u64)
    }

    /// Overwrites the eight bytes at `at` with an address that is known only after linking.
    pub fn pointer(&mut self, at: DataRef, to: impl Into<Arg>) {
        self.pointers.push((at.0, to.into()));
    }

    /// Adds a syscall whose result must not be an error.
    pub fn syscall(&mut self, plan: PlanId, label: impl Into<Cow<'static, str>>, nr: i64, args: &[Arg]) {
        self.push(plan, OP_SYSCALL, nr as u32, args, Expect::Ok, None, label.into());
    }

    /// Adds a syscall with another expectation.
    pub fn syscall_expect(
        &mut self,
        plan: PlanId,
        label: impl Into<Cow<'static, str>>,
        nr: i64,
        args: &[Arg],
        expect: Expect,
    ) {
        self.push(plan, OP_SYSCALL, nr as u32, args, expect, None, label.into());
    }

    /// Adds a syscall whose result is kept.
    pub fn syscall_slot(
        &mut self,
        plan: PlanId,
        label: impl Into<Cow<'static, str>>,
        nr: i64,
        args: &[Arg],
        expect: Expect,
    ) -> Slot {
        let slot = Slot(self.plans[plan.0].slots);
        self.plans[plan.0].slots += 1;
        self.push(plan, OP_SYSCALL, nr as u32, args, expect, Some(slot), label.into());
        slot
    }

    /// Adds a syscall as 32-bit code makes it, whose result must not be an error. All memory that it is given must lie
    /// below 4 GiB, and so must the program, if it is data of it.
    pub fn syscall32(&mut self, plan: PlanId, label: impl Into<Cow<'static, str>>, nr: u32, args: &[Arg]) {
        self.push(plan, OP_SYSCALL32, nr, args, Expect::Ok, None, label.into());
    }

    /// Counts itself in at `arrived`, wakes waiters there when `n` have come, then waits until the word at `go` reaches `value`.
    /// Both words are absolute addresses of 32-bit words in memory shared between the processes that meet.
    pub fn barrier(&mut self, plan: PlanId, arrived: u64, n: u32, go: u64, value: u32) {
        let args = [arrived.into(), n.into(), go.into(), value.into()];
        self.push(plan, OP_BARRIER, 0, &args, Expect::Any, None, "barrier".into());
    }

    /// Opens the gate at the zeroed word `gate` of the program: who waits there goes on.
    pub fn gate_open(&mut self, plan: PlanId, gate: DataRef) {
        let args = [gate.into(), 1.into(), gate.into(), 1.into()];
        self.push(plan, OP_BARRIER, 0, &args, Expect::Any, None, "gate".into());
    }

    /// Waits at the word `gate` (with one more word behind it) until another plan opens it.
    pub fn gate_wait(&mut self, plan: PlanId, gate: DataRef) {
        // Nobody waits for those who wait: they are counted in the word behind, to no end.
        let args = [gate.offset(4).into(), 0.into(), gate.into(), 1.into()];
        self.push(plan, OP_BARRIER, 0, &args, Expect::Any, None, "gate".into());
    }

    /// Copies memory inside the process.
    pub fn copy(&mut self, plan: PlanId, to: impl Into<Arg>, from: impl Into<Arg>, bytes: u64) {
        self.push(plan, OP_COPY, 0, &[to.into(), from.into(), bytes.into()], Expect::Any, None, "copy".into());
    }

    /// Starts a thread with clone3 that runs `child`.
    pub fn thread(&mut self, plan: PlanId, clone_args: DataRef, size: usize, child: PlanId) {
        self.spawn(plan, "clone3 of a thread", clone_args, size, child);
    }

    /// Starts whatever the clone3 arguments say, a thread or a process, that runs `child`. A process finds this program where
    /// it is, as a copy or as the same memory, depending on how it was mapped.
    pub fn spawn(
        &mut self,
        plan: PlanId,
        label: impl Into<Cow<'static, str>>,
        clone_args: DataRef,
        size: usize,
        child: PlanId,
    ) {
        let args = [clone_args.into(), size.into(), Arg::Header(child)];
        self.push(plan, OP_THREAD, 0, &args, Expect::Ok, None, label.into());
    }

    /// Leaves through rt_sigreturn; `frame` is the address of the frame's ucontext.
    pub fn sigreturn(&mut self, plan: PlanId, frame: impl Into<Arg>) {
        self.push(plan, OP_SIGRETURN, 0, &[frame.into()], Expect::Any, None, "rt_sigreturn".into());
    }

    /// Leaves the interpreter: rip, rsp, then rdi, rsi, rdx, r10, with `nr` in eax.
    pub fn callout(&mut self, plan: PlanId, nr: u32, args: &[Arg]) {
        self.push(plan, OP_CALLOUT, nr, args, Expect::Any, None, "callout".into());
    }

    /// Wakes waiters of a shared futex word until `n` have really been woken.
    pub fn wake_all(&mut self, plan: PlanId, word: u64, n: u32) {
        self.push(plan, OP_WAKEALL, 0, &[word.into(), n.into()], Expect::Any, None, "futex wake".into());
    }

    /// Uses an AMX tile and releases it, as from then on the kernel keeps room for the thread's tiles, in signal frames too.
    /// Without the process's permission (ARCH_REQ_XCOMP_PERM) it ends by SIGILL.
    pub fn tile_room(&mut self, plan: PlanId) {
        // Palette 1; tile 0 is one row of 64 bytes.
        let mut config = [0u8; 64];
        (config[0], config[16], config[48]) = (1, 64, 1);
        let at = self.data(&config);
        self.push(plan, OP_TILES, 0, &[at.into()], Expect::Any, None, "first use of AMX tiles".into());
    }

    /// The records added from here on run only after a failure. Nothing of the ordinary path may fall through into them.
    pub fn error_path(&mut self, plan: PlanId) {
        let plan = &mut self.plans[plan.0];
        plan.error_path = Some(plan.records.len());
    }

    /// Number of records of a plan.
    pub fn len(&self, plan: PlanId) -> usize {
        self.plans[plan.0].records.len()
    }

    /// True while nothing was added.
    pub fn is_empty(&self) -> bool {
        self.plans.iter().all(|p| p.records.is_empty())
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of a record, in its order")]
    fn push(
        &mut self,
        plan: PlanId,
        op: u8,
        nr: u32,
        args: &[Arg],
        expect: Expect,
        slot: Option<Slot>,
        label: Cow<'static, str>,
    ) {
        let mut six = [Arg::Value(0); 6];
        six[..args.len()].copy_from_slice(args);
        self.plans[plan.0].records.push(Record { op, nr, args: six, expect, slot, label });
    }

    /// The whole program as text, one record a line: what `--dry-run` shows.
    pub fn listing(&self) -> String {
        let mut out = String::new();
        for plan in &self.plans {
            out.push_str(&format!("plan {}\n", plan.name));
            for (i, r) in plan.records.iter().enumerate() {
                let error = if plan.error_path == Some(i) { " (error path)" } else { "" };
                out.push_str(&format!("  {i:4} {}{error} nr {} {:x?} {:?}\n", r.label, r.nr, r.args, r.expect));
            }
        }
        out
    }

    /// Upper bound of the bytes that [`Program::link`] will give.
    pub fn linked_len(&self) -> usize {
        let labels: usize = self.plans.iter().flat_map(|p| &p.records).map(|r| r.label.len() + 1).sum();
        let per_plan = |p: &Plan| p.slots as usize * 8 + p.records.len() * RECORD_BYTES;
        self.plans.iter().map(per_plan).sum::<usize>() + self.data.len() + labels + 64
    }

    /// Makes every address absolute for `base` (aligned to 16).
    pub fn link(&self, base: u64) -> Linked {
        let mut headers = Vec::with_capacity(self.plans.len());
        let mut at = base;
        for plan in &self.plans {
            headers.push(at);
            at += u64::from(plan.slots) * 8;
        }
        let mut record_bases = Vec::with_capacity(self.plans.len());
        for plan in &self.plans {
            record_bases.push(at);
            at += (plan.records.len() * RECORD_BYTES) as u64;
        }
        let data_base = at.next_multiple_of(16);
        let labels_base = data_base + self.data.len() as u64;
        let mut labels = Vec::new();
        let mut label_at: HashMap<&str, u64> = HashMap::new();
        // The same call is often made many times.
        let mut last: Option<(&str, u64)> = None;
        let mut bytes = vec![0u8; (data_base - base) as usize];
        bytes.extend_from_slice(&self.data);
        let put = |bytes: &mut [u8], at: u64, value: u64| {
            bytes[(at - base) as usize..][..8].copy_from_slice(&value.to_le_bytes());
        };
        let resolve = |arg: Arg| -> (u64, bool) {
            match arg {
                Arg::Value(v) => (v, false),
                Arg::Data(d) => (data_base + d.0, false),
                Arg::PageOf(d) => ((data_base + d.0) & !(PAGE_BYTES - 1), false),
                Arg::Header(p) => (headers[p.0], false),
                Arg::Result(slot, plus) => ((plus << 16) as u64 | u64::from(slot.0), true),
                Arg::FailedRecord => (1, true),
            }
        };
        for (i, plan) in self.plans.iter().enumerate() {
            put(&mut bytes, headers[i] + 24, headers[i]);
            put(&mut bytes, headers[i] + 32, record_bases[i]);
            let on_error = plan.error_path.map_or(0, |n| record_bases[i] + (n * RECORD_BYTES) as u64);
            put(&mut bytes, headers[i] + 40, on_error);
            for (n, r) in plan.records.iter().enumerate() {
                let rec = record_bases[i] + (n * RECORD_BYTES) as u64;
                let label = match last {
                    Some((text, at)) if text == r.label => at,
                    _ => *label_at.entry(&r.label).or_insert_with(|| {
                        let at = labels_base + labels.len() as u64;
                        labels.extend_from_slice(r.label.as_bytes());
                        labels.push(0);
                        at
                    }),
                };
                last = Some((&r.label, label));
                let (expect, want) = match r.expect {
                    Expect::Any => (0u8, 0),
                    Expect::Ok => (1, 0),
                    Expect::Equals(v) => (2, v),
                };
                let mut refmask = 0u8;
                for (j, &arg) in r.args.iter().enumerate() {
                    let (value, is_ref) = resolve(arg);
                    refmask |= u8::from(is_ref) << j;
                    put(&mut bytes, rec + 8 + 8 * j as u64, value);
                }
                let head = [r.op, expect, refmask, u8::from(r.slot.is_some())];
                bytes[(rec - base) as usize..][..4].copy_from_slice(&head);
                bytes[(rec - base) as usize + 4..][..4].copy_from_slice(&r.nr.to_le_bytes());
                put(&mut bytes, rec + 56, want);
                let tail = u64::from(r.slot.map_or(0, |s| s.0)) | ((label - rec) << 32);
                put(&mut bytes, rec + 64, tail);
            }
        }
        for &(at, to) in &self.pointers {
            let (value, _) = resolve(to);
            put(&mut bytes, data_base + at, value);
        }
        bytes.extend_from_slice(&labels);
        Linked { bytes, headers, data_base }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_any_base_alike() {
        let mut p = Program::new();
        let plan = p.plan("main");
        let text = p.cstr(b"hello");
        let ptr = p.reserve(8);
        p.pointer(ptr, text);
        let pid = p.syscall_slot(plan, "getpid", libc::SYS_getpid, &[], Expect::Ok);
        p.syscall(plan, "kill", libc::SYS_kill, &[pid.into(), 0.into()]);
        let a = p.link(0x10000);
        let b = p.link(0x7000_0000_0000);
        assert_eq!(a.bytes.len(), b.bytes.len());
        assert!(a.bytes.len() <= p.linked_len());
        let at = (a.address(ptr) - 0x10000) as usize;
        assert_eq!(u64::from_le_bytes(a.bytes[at..at + 8].try_into().expect("8")), a.address(text));
    }

    #[test]
    fn failure_is_read_back() {
        let mut header = [0u8; HEADER_BYTES];
        assert_eq!(Failure::parse_header(&header), None);
        header[0] = 2;
        header[8] = 0x40;
        header[16..24].copy_from_slice(&(-17i64).to_le_bytes());
        assert_eq!(Failure::parse_header(&header), Some(Failure { record: 0x40, value: -17 }));
        assert_eq!(Failure::parse_header(&header[..20]), None);
    }
}

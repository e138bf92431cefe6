//! Lending what is left of a wait to a call whose limit is not in its registers: it is in the caller's memory, or an option of
//! a socket, and the call has to begin again.
//!
//! The limit is changed while nobody but the waiting thread runs, that thread makes its call, and once it sleeps the limit is
//! changed back: the kernel took it when the call began. Letting a tracee go that sleeps, without interrupting it, only the end
//! of its tracer can. So this is done by a child of ours, which is gone when it is done. Our death does not hinder it.
//!
//! Whatever hinders it leaves the call with its whole limit, or the thread in the call it has made meanwhile.
use crate::task::wait::{self, Call, Limit, SocketLimit, Timespec};
use crust_inject::arch::regs;
use crust_kernel::fork::{Fork, fork};
use crust_kernel::pidfd::PidFd;
use crust_kernel::procfs::{ProcDir, Stat};
use crust_kernel::ptrace::{self, Options, Stop, Waited};
use crust_kernel::remote_mem::{RemoteMem, process_vm_read, process_vm_write};
use crust_kernel::{Backoff, Deadline, HostTid, TargetFd, VirtAddr};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_timeout};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// A wait that was let go with its whole limit.
#[derive(Clone, Debug)]
pub(crate) struct Lent {
    pub(crate) pid: HostTid,
    pub(crate) tid: HostTid,
    pub(crate) call: Call,
    /// What was left of it then.
    pub(crate) left: Duration,
    pub(crate) at: Instant,
}

/// All of them together may take so long; the rest of a crowd waits its whole time.
const ALL: Duration = Duration::from_secs(5);
/// A thread that was told to stop does, and has to be told to begin again then, or its call ends with EINTR. On a machine with
/// too much to do it may take long until it has its turn.
const TO_STOP: Duration = Duration::from_secs(30);

/// Lends to each of `waits` what is left. Their threads run, everything else of their trees stands still.
pub(crate) fn lend(waits: &[Lent]) {
    if waits.is_empty() {
        return;
    }
    let child = match fork() {
        Ok(Fork::Parent(child)) => child,
        Ok(Fork::Child) => {
            let deadline = Deadline::after(ALL);
            let done = waits.iter().filter(|w| !deadline.expired() && one(w, deadline).is_some()).count();
            log::debug!("{done} of {} waits got what was left of their time", waits.len());
            crust_kernel::process::exit_now(0)
        }
        Err(e) => {
            log::info!("{} waits begin again with their whole time: fork: {e}", waits.len());
            return;
        }
    };
    reap(child);
}

/// Its own deadlines end it; that it may be stopped by somebody must not keep us.
fn reap(child: HostTid) {
    let Some(pid) = Pid::from_raw(child.as_raw()) else { return };
    let (deadline, mut backoff) = (Deadline::after(ALL + TO_STOP), Backoff::new());
    loop {
        match waitpid(Some(pid), WaitOptions::NOHANG) {
            Ok(None) if backoff.pause(deadline) => {}
            Ok(None) => {
                let _gone_is_fine = kill_process(pid, Signal::KILL);
                while matches!(waitpid(Some(pid), WaitOptions::empty()), Err(Errno::INTR)) {}
                return;
            }
            Err(Errno::INTR) => {}
            Ok(Some(_)) | Err(_) => return,
        }
    }
}

fn one(w: &Lent, deadline: Deadline) -> Option<()> {
    let proc = ProcDir::open(w.pid).ok()?;
    let mut backoff = Backoff::new();
    while !sleeps(&proc, w) {
        if !backoff.pause(deadline) {
            let now = proc.read_text(&format!("task/{}/syscall", w.tid)).unwrap_or_default();
            log::debug!("thread {} does not come to sleep in {:x?}: {now}", w.tid, w.call);
            return None;
        }
    }
    let loan = Loan::of(w, &proc)?;
    ptrace::seize(w.tid, Options::default()).ok()?;
    ptrace::interrupt(w.tid).ok()?;
    expect(w.tid, Stop::Interrupted, Deadline::after(TO_STOP))?;
    let mut at = regs::read(w.tid).ok()?;
    let call = Call::of(&at);
    if wait::ended_by_stop(&at) {
        regs::call_again(&mut at, call.args[3]);
        regs::write(w.tid, &at).ok()?;
    }
    if call != w.call || !regs::begins_again(&at) {
        return ptrace::detach(w.tid, 0).ok();
    }
    ptrace::resume_to_syscall(w.tid, 0).ok()?;
    expect(w.tid, Stop::Syscall, deadline)?;
    let left = w.left.saturating_sub(w.at.elapsed()).max(wait::LEAST);
    let lent = loan.give(left);
    backoff.reset();
    let mut done = ptrace::resume_to_syscall(w.tid, 0).is_err();
    while !done {
        done = match ptrace::poll_wait(w.tid) {
            Ok(None) => sleeps(&proc, w) || !backoff.pause(deadline),
            Ok(Some(Waited::Stopped(stop))) => {
                // The wait is over: whatever it answered is the thread's.
                loan.take_back();
                return let_go(w.tid, stop);
            }
            Ok(Some(_)) | Err(_) => true,
        };
    }
    loan.take_back();
    lent
}

/// True if the thread sleeps in its call, so that the kernel has taken the limit.
fn sleeps(proc: &ProcDir, w: &Lent) -> bool {
    let read = |name: &str| proc.read_small(&format!("task/{}/{name}", w.tid));
    let asleep = || read("stat").ok().and_then(|s| Stat::parse(&s)).is_some_and(|s| s.state == b'S');
    let call = || Call::parse(&String::from_utf8_lossy(&read("syscall").ok()?));
    asleep() && call() == Some(w.call)
}

/// Waits for a stop. At another one the thread goes on, with its signal.
fn expect(tid: HostTid, want: Stop, deadline: Deadline) -> Option<()> {
    match ptrace::wait(tid, deadline) {
        Ok(Waited::Stopped(stop)) if stop == want => Some(()),
        Ok(Waited::Stopped(stop)) => let_go(tid, stop).and(None),
        _ => None,
    }
}

/// With the signal that stopped it.
fn let_go(tid: HostTid, stop: Stop) -> Option<()> {
    ptrace::detach(tid, if let Stop::Signal(signal) = stop { signal } else { 0 }).ok()
}

/// A socket of another process.
pub(crate) struct Socket {
    socket: OwnedFd,
    which: Timeout,
}

impl Socket {
    pub(crate) fn open(proc: &ProcDir, limit: SocketLimit) -> Option<Self> {
        // Of other files not even a copy is taken: a last close can have effects.
        proc.readlink(&format!("fd/{}", limit.fd)).ok().filter(|link| link.starts_with(b"socket:"))?;
        let socket = PidFd::open(proc.id()).and_then(|p| p.get_fd(TargetFd(limit.fd))).ok()?;
        Some(Self { socket, which: if limit.sends { Timeout::Send } else { Timeout::Recv } })
    }

    /// Its time limit. `None`: it has none, or is no socket.
    pub(crate) fn limit(&self) -> Option<Duration> {
        socket_timeout(&self.socket, self.which).ok().flatten()
    }

    fn set(&self, limit: Duration) -> Option<()> {
        set_socket_timeout(&self.socket, self.which, Some(limit)).ok()
    }
}

/// A place whose limit can be changed, and back.
enum Loan {
    Memory { pid: HostTid, time: Timespec, was: Vec<u8> },
    Socket { socket: Socket, was: Duration },
}

impl Loan {
    fn of(w: &Lent, proc: &ProcDir) -> Option<Self> {
        match w.call.limit()? {
            Limit::Time(_, time) => {
                let mut was = vec![0; time.bytes_len()];
                (process_vm_read(w.pid, VirtAddr(time.at), &mut was) == Ok(was.len())).then_some(())?;
                Some(Self::Memory { pid: w.pid, time, was })
            }
            Limit::Socket(limit) => {
                let socket = Socket::open(proc, limit)?;
                let was = socket.limit()?;
                Some(Self::Socket { socket, was })
            }
            Limit::Ms(..) => None,
        }
    }

    fn give(&self, left: Duration) -> Option<()> {
        match self {
            Self::Memory { pid, time, .. } => write(*pid, VirtAddr(time.at), &time.bytes(left)),
            Self::Socket { socket, .. } => socket.set(left),
        }
    }

    fn take_back(&self) {
        let taken = match self {
            Self::Memory { pid, time, was } => write(*pid, VirtAddr(time.at), was),
            Self::Socket { socket, was } => socket.set(*was),
        };
        if taken.is_none() {
            log::debug!("a time limit cannot be put back, if its owner is still there");
        }
    }
}

/// Constants lie in memory that only the kernel and tracers may write.
fn write(pid: HostTid, at: VirtAddr, bytes: &[u8]) -> Option<()> {
    if process_vm_write(pid, at, bytes) == Ok(bytes.len()) {
        return Some(());
    }
    RemoteMem::open(pid).and_then(|mem| mem.write(at, bytes)).ok()
}

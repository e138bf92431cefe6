//! Seccomp filters of a target: switched off while we borrow a thread, and read to know what a crash of ours would mean.
//!
//! With CAP_SYS_ADMIN filters are suspended for as long as we trace. If we die while a borrowed call has yet to be made,
//! suspension dies with us: a filter that kills that call kills the target. So the filters are evaluated beforehand.
use crate::arch::AUDIT_ARCH;
use crate::bpf::{Action, Data};
use crate::error::{Error, Kind, Result};
use crate::seize::{SeizedProcess, SeizedThread};
use crust_kernel::HostTid;
use crust_kernel::procfs::{ProcDir, Status};
use crust_kernel::ptrace::{self, BpfInsn, Options};
use rustix::io::Errno;

/// The calls that borrowing itself makes, whatever is asked of the thread.
const OWN_CALLS: [i64; 7] = [
    libc::SYS_rt_sigprocmask,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
];

/// Whether the target would survive our sudden death while one of its threads makes calls for us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CrashSafety {
    /// No filter, or filters that allow all of it.
    Safe,
    /// A filter would kill the process, or answer wrongly, for this call.
    Unsafe {
        /// The first such call.
        nr: i64,
    },
    /// There are filters that we have no right to read.
    Unknown,
}

/// Mode as in `Seccomp:` of /proc/PID/status: 0 none, 1 strict, 2 filter.
fn mode(pid: HostTid, tid: HostTid) -> i64 {
    let status = ProcDir::open_thread(pid, tid).and_then(|d| d.read_text("status"));
    // A kernel without the line has no seccomp.
    status.ok().and_then(|text| Status::new(text).number("Seccomp")).unwrap_or(0)
}

fn filters(tid: HostTid) -> Option<Vec<Vec<BpfInsn>>> {
    let mut all = Vec::new();
    loop {
        match ptrace::get_seccomp_filter(tid, u32::try_from(all.len()).ok()?) {
            Ok(filter) => all.push(filter),
            Err(Errno::NOENT) => return Some(all),
            Err(_) => return None,
        }
    }
}

fn judge(tid: HostTid, mode: i64, calls: &[i64]) -> CrashSafety {
    match mode {
        0 => CrashSafety::Safe,
        2 => match filters(tid) {
            None => CrashSafety::Unknown,
            Some(filters) => {
                let refused = OWN_CALLS.iter().chain(calls).find(|&&nr| {
                    let data = Data { nr: nr as i32, arch: AUDIT_ARCH, ip: 0, args: [0; 6] };
                    crate::bpf::run_all(&filters, &data) != Some(Action::Allow)
                });
                refused.map_or(CrashSafety::Safe, |&nr| CrashSafety::Unsafe { nr })
            }
        },
        _ => CrashSafety::Unsafe { nr: libc::SYS_rt_sigprocmask },
    }
}

/// As [`make_way`] for all of these threads. Where the process has one thread its status, which is read anyway, may say that
/// there is nothing to suspend.
pub(crate) fn make_way_for(process: &mut SeizedProcess, indices: &[usize]) -> Result<()> {
    let (pid, options) = (process.pid, process.options);
    if let [thread] = &mut process.threads[..]
        && !thread.suspended_seccomp
    {
        let free = process.status()?.number("Seccomp") == Some(0);
        process.threads[0].suspended_seccomp = free;
    }
    indices.iter().try_for_each(|&index| make_way(pid, &mut process.threads[index], options))
}

/// Suspends the filters of a stopped thread, if it has any, before it is borrowed.
pub(crate) fn make_way(pid: HostTid, thread: &mut SeizedThread, options: Options) -> Result<()> {
    if thread.suspended_seccomp {
        return Ok(());
    }
    match ptrace::set_options(thread.tid, Options { suspend_seccomp: true, ..options }) {
        Ok(()) => {
            // Asking for a filter is far cheaper than reading the thread's status, which matters for many threads.
            let filtered = ptrace::get_seccomp_filter(thread.tid, 0).is_ok();
            if filtered && judge(thread.tid, 2, &[]) != CrashSafety::Safe {
                log::warn!(
                    "thread {}: its seccomp filter refuses our calls; it survives them, but would not survive our death",
                    thread.tid
                );
            }
        }
        Err(Errno::SRCH) => return Err(Error::call(thread.tid, "suspending its seccomp filter", Errno::SRCH)),
        // Not allowed to, or not known to this kernel: fine where there is nothing to suspend, or where it allows what we
        // do. Without the right to suspend there is mostly no right to read filters either.
        Err(errno) => {
            let mode = mode(pid, thread.tid);
            if judge(thread.tid, mode, &[]) != CrashSafety::Safe {
                let what = format!("it runs under seccomp (mode {mode}), which cannot be suspended: {errno}");
                return Err(Error::new(Kind::Unsupported, thread.tid, what));
            }
        }
    }
    thread.suspended_seccomp = true;
    Ok(())
}

impl SeizedProcess {
    /// Says of which threads the caller knows, since they stand still, that no filter judges their calls.
    pub fn no_seccomp_in(&mut self, free: impl Fn(HostTid) -> bool) {
        for thread in self.threads.iter_mut().filter(|t| !t.suspended_seccomp) {
            thread.suspended_seccomp = free(thread.tid);
        }
    }

    /// Whether thread `tid` would survive our death while it makes `calls` for us. Arguments are taken as zero.
    pub fn crash_safety(&self, tid: HostTid, calls: &[i64]) -> CrashSafety {
        judge(tid, mode(self.pid, tid), calls)
    }
}

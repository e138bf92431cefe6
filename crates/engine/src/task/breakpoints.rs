//! Hardware breakpoints: the debug registers that a debugger set in a thread and left there.
use crate::error::{OnObject, ResultExt};
use crate::{Error, Kind, Result};
use crust_kernel::HostTid;
use crust_kernel::ptrace_x86::{get_debug_register, set_debug_register};
use rustix::io::Errno;

/// Addresses, what happened, and what is on.
const SAVED: [usize; 6] = [0, 1, 2, 3, 6, CONTROL];
const CONTROL: usize = 7;
/// A bit for each breakpoint and whether it is of this task or all tasks.
const ON: u64 = 0xff;

/// The registers of a stopped thread (DR0 to DR3, DR6, DR7); none if no breakpoint is on.
///
/// # Errors
/// The thread is gone.
pub fn look(tid: HostTid) -> Result<Vec<u64>> {
    let read = |number| get_debug_register(tid, number).during("reading a debug register");
    if read(CONTROL)? & ON == 0 {
        return Ok(Vec::new());
    }
    SAVED.into_iter().map(read).collect()
}

/// Gives them to a restored thread, which stands still and runs no more code of ours.
///
/// # Errors
/// The kernel's, with what it needs.
pub fn set(tid: HostTid, want: &[u64]) -> Result<()> {
    if !want.is_empty() && want.len() != SAVED.len() {
        return Err(Error::new(Kind::BadImage, format!("thread {tid} has {} debug registers", want.len())));
    }
    for (number, &value) in SAVED.into_iter().zip(want) {
        set_debug_register(tid, number, value).during("setting a debug register").on_task(tid.as_raw()).map_err(
            |e| match e.errno() {
                Some(Errno::NOSPC) => {
                    e.help("other tools (perf, debuggers) use all hardware breakpoints of a processor: end them")
                }
                _ => e.help("this machine may have no hardware breakpoints"),
            },
        )?;
    }
    Ok(())
}

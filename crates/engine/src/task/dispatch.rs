//! Syscall user dispatch: system calls that the kernel sends to their own thread, as SIGSYS. Emulators live on it.
//!
//! A byte of the program, the selector, says whether calls are sent. The calls we have a thread make would be sent, too, and to
//! switch the selector or the dispatch off meanwhile would leave it off if we died. So a thread is saved where its selector
//! allows calls, as it does wherever one waits in the kernel.
use crate::error::{OnObject, ResultExt};
use crate::{Error, Kind, Result};
use crust_image::proto::CrustDispatch;
use crust_kernel::ptrace::{self, Dispatch};
use crust_kernel::remote_mem::process_vm_read;
use crust_kernel::{HostTid, VirtAddr};
use rustix::io::Errno;
use std::collections::HashMap;

const ON: u64 = 1;
/// What [`Dispatch::mode`] calls it if the range is the one from where calls are sent.
const ON_INSIDE: u64 = 2;
/// SYSCALL_DISPATCH_FILTER_ALLOW
const ALLOW: u8 = 0;

/// What stopped threads of one process have of it.
///
/// # Errors
/// `Unsupported` for a thread that could make no call for us, now or once another thread runs.
pub fn look(tids: &[HostTid]) -> Result<HashMap<HostTid, CrustDispatch>> {
    let mut found = HashMap::new();
    let mut selectors = Vec::new();
    for &tid in tids {
        let config = match ptrace::get_dispatch(tid) {
            Ok(config) if config.mode != 0 => config,
            // Before Linux 6.4 nobody can be asked.
            Ok(_) | Err(Errno::IO) => continue,
            Err(e) => {
                let e = Error::kernel("PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG", e);
                return Err(if e.errno() == Some(Errno::SRCH) { e.kind_is(Kind::TargetChanged) } else { e });
            }
        };
        let mut byte = [!ALLOW];
        let read = config.selector != 0 && process_vm_read(tid, VirtAddr(config.selector), &mut byte) == Ok(1);
        if let Some((what, help)) = obstacle(config, byte[0], read && selectors.contains(&config.selector)) {
            return Err(Error::unsupported(format!("thread {tid} {what} (syscall user dispatch)"), help));
        }
        selectors.push(config.selector);
        found.insert(tid, CrustDispatch { selector: config.selector, offset: config.offset, len: config.len });
    }
    Ok(found)
}

/// Why a thread cannot make calls for us, and what to do.
fn obstacle(config: Dispatch, selected: u8, shared: bool) -> Option<(&'static str, &'static str)> {
    const OFF: &str = "dump it while PR_SET_SYSCALL_USER_DISPATCH is off";
    match selected {
        _ if config.selector == 0 => Some(("has system calls sent to itself, always", OFF)),
        _ if shared => Some(("shares with another thread the byte that says whether system calls are sent", OFF)),
        ALLOW => None,
        _ => {
            let help = "try again: it can be dumped while the program's selector allows system calls, as in a wait";
            Some(("is where its system calls are sent to itself", help))
        }
    }
}

/// Gives it to a restored thread, which stands still and makes no more calls for us.
///
/// # Errors
/// The kernel's, with what it needs.
pub fn set(tid: HostTid, want: CrustDispatch) -> Result<()> {
    let done = ptrace::set_dispatch(tid, config(want)).during("PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG");
    done.on_task(tid.as_raw()).map_err(|e| match e.errno() {
        Some(Errno::IO) => {
            e.kind_is(Kind::Unsupported).help("syscall user dispatch is restored by Linux 6.4 and newer")
        }
        Some(Errno::INVAL) => e.kind_is(Kind::Unsupported).help("this kind of syscall user dispatch needs Linux 6.17"),
        _ => e,
    })
}

/// The kernel tells a range from where calls are sent as the one around it, from its end to its start, which it does not take.
fn config(want: CrustDispatch) -> Dispatch {
    let CrustDispatch { selector, offset, len } = want;
    let end = offset.wrapping_add(len);
    if offset != 0 && end <= offset {
        Dispatch { mode: ON_INSIDE, selector, offset: end, len: len.wrapping_neg() }
    } else {
        Dispatch { mode: ON, selector, offset, len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_can_make_calls_for_us() {
        let on = Dispatch { mode: ON, selector: 0x5000, offset: 0x1000, len: 0x1000 };
        assert_eq!(obstacle(on, ALLOW, false), None);
        assert!(obstacle(on, ALLOW, true).is_some(), "another thread could block its calls once we are dead");
        assert!(obstacle(on, 1, false).is_some());
        assert!(obstacle(Dispatch { selector: 0, ..on }, ALLOW, false).is_some());
    }

    #[test]
    fn a_range_inside_out_is_turned_back() {
        let want = |offset, len| CrustDispatch { selector: 0x5000, offset, len };
        assert_eq!(config(want(0x1000, 0x2000)), Dispatch { mode: ON, selector: 0x5000, offset: 0x1000, len: 0x2000 });
        assert_eq!(config(want(0, 0)), Dispatch { mode: ON, selector: 0x5000, offset: 0, len: 0 });
        // What is told of the range 0x1000-0x3000.
        let told = want(0x3000, 0x2000_u64.wrapping_neg());
        assert_eq!(config(told), Dispatch { mode: ON_INSIDE, selector: 0x5000, offset: 0x1000, len: 0x2000 });
    }
}

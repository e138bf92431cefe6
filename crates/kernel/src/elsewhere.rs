//! A new thread that begins at once, on another processor than its maker, which works on.
//!
//! The kernel often puts a new thread on the processor of the thread that makes it, although others are idle, above all in
//! virtual machines: an idle virtual processor counts as taken away by the host. There the new thread waits until its maker's
//! time slice ends, about a millisecond, or until the load is balanced. Work that is shared for a millisecond or two is then
//! done by the maker alone (Linux 6.18, two virtual processors: begun after 0.9 ms so, after 0.08 ms this way).
use rustix::thread::{sched_getaffinity, sched_getcpu, sched_setaffinity};
use std::io;
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// Starts `work` in a thread of `scope` that takes no signals of this process.
///
/// # Errors
/// No thread is to be had: a limit of threads, or no memory.
pub fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    let maker = sched_getcpu();
    let thread = Builder::new().name(name.to_owned()).spawn_scoped(scope, move || {
        // Signals are for the thread that waits for them.
        crate::signals::block_all_here();
        leave(maker);
        work()
    })?;
    // If it waits for this processor, it goes from here first of all.
    std::thread::yield_now();
    Ok(thread)
}

/// Moves this thread away from a processor, if it is there and may run on another one. It may go anywhere afterwards.
fn leave(cpu: usize) {
    if sched_getcpu() != cpu {
        return;
    }
    // Where this is not allowed, the thread begins later.
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let mut others = allowed;
    others.unset(cpu);
    if others.count() > 0 && sched_setaffinity(None, &others).is_ok() {
        sched_setaffinity(None, &allowed).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_leaves_and_may_go_anywhere_afterwards() {
        let allowed = sched_getaffinity(None).expect("sched_getaffinity");
        std::thread::scope(|scope| {
            let after = spawn(scope, "look", || {
                let here = sched_getcpu();
                leave(here);
                sched_getaffinity(None).expect("sched_getaffinity")
            });
            let after = after.expect("a thread").join().expect("no panic");
            assert_eq!(after, allowed);
        });
        assert_eq!(sched_getaffinity(None).expect("sched_getaffinity"), allowed, "the maker stays where it may be");
    }

    #[test]
    fn a_thread_that_may_run_on_one_processor_stays_there() {
        std::thread::scope(|scope| {
            let stays = spawn(scope, "look", || {
                let here = sched_getcpu();
                let mut one = rustix::thread::CpuSet::new();
                one.set(here);
                sched_setaffinity(None, &one).expect("sched_setaffinity");
                leave(here);
                sched_getaffinity(None).expect("sched_getaffinity") == one
            });
            assert!(stays.expect("a thread").join().expect("no panic"));
        });
    }
}

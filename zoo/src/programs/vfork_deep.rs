//! A row of processes, each in a vfork for the next. The last one waits for a file, so that none of the others can be stopped.
#![allow(unsafe_code, reason = "one stack for each process of the row")]
use super::{vfork_ends, vfork_storm};

const LEVELS: usize = 40;
const STACK: usize = 1 << 14;

/// The stacks of those that come, as many as there are.
struct Row(Vec<u128>);

/// The number of those below, which is its exit code too.
extern "C" fn level(row: *mut libc::c_void) -> i32 {
    // SAFETY: who came before waits in its vfork, so this process has the row alone.
    let row = unsafe { &mut *row.cast::<Row>() };
    if row.0.is_empty() {
        return vfork_ends::wait_for_end(std::ptr::null_mut());
    }
    let mut stack = row.0.split_off(row.0.len() - STACK / 16);
    vfork_storm::vfork(&mut stack, level, std::ptr::from_mut(row).cast()) + 1
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let first = std::thread::spawn(|| level((&raw mut *Box::leak(Box::new(Row(vec![0; LEVELS * STACK / 16])))).cast()));
    while zoo::proc::all().map_or(0, |all| all.len()) <= LEVELS {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    while zoo.gap() {
        while !first.is_finished() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    zoo.eq("levels", first.join().unwrap_or_default(), LEVELS.try_into().unwrap_or_default());
}

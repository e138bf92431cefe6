//! Small things of a process that few programs have: membarrier registrations, the login user id, the nice value of a
//! session's scheduling group, speculation controls.
#![allow(unsafe_code, reason = "calls without a wrapper")]
use zoo::sys::prctl;

const GLOBAL_EXPEDITED: i32 = 1 << 1;
const REGISTER: [i32; 3] = [1 << 2, 1 << 4, 1 << 6];
const PRIVATE_EXPEDITED: i32 = 1 << 3;
const GET_REGISTRATIONS: i32 = 1 << 9;
const PR_GET_SPECULATION_CTRL: i32 = 52;
const PR_SET_SPECULATION_CTRL: i32 = 53;

fn membarrier(command: i32) -> i64 {
    // SAFETY: three numbers.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The nice value; the group's number is the kernel's.
fn autogroup() -> Option<String> {
    read("/proc/self/autogroup")?.rsplit_once("nice ").map(|(_, nice)| nice.to_owned())
}

/// Store bypass and indirect branches of this thread.
fn speculation() -> [Option<i32>; 2] {
    [0, 1].map(|which| prctl(PR_GET_SPECULATION_CTRL, [which, 0, 0, 0]).ok())
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    // What this machine does not have, or does not allow, stays as it is.
    let known: Vec<i32> = REGISTER.into_iter().filter(|&command| membarrier(command) == 0).collect();
    zoo.ok("some registration is known", !known.is_empty());
    let registered = membarrier(GET_REGISTRATIONS);
    for (path, value) in [("/proc/self/loginuid", "4321"), ("/proc/self/autogroup", "7")] {
        std::fs::write(path, value).unwrap_or_default();
    }
    for which in [0, 1] {
        // PR_SPEC_DISABLE
        prctl(PR_SET_SPECULATION_CTRL, [which, 4, 0, 0]).unwrap_or_default();
    }
    let (login, group, controls) = (read("/proc/self/loginuid"), autogroup(), speculation());
    while zoo.gap() {
        zoo.eq("registrations", membarrier(GET_REGISTRATIONS), registered);
        if known.contains(&REGISTER[1]) {
            zoo.eq("a barrier among threads", membarrier(PRIVATE_EXPEDITED), 0);
        }
        zoo.eq("a barrier among all", membarrier(GLOBAL_EXPEDITED), 0);
        zoo.eq("login user id", read("/proc/self/loginuid"), login.clone());
        zoo.eq("nice value of the scheduling group", autogroup(), group.clone());
        zoo.eq("speculation controls", speculation(), controls);
    }
}

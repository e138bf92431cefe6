//! Seccomp filters: two in the main thread, of which the later decides; a third in another thread; one child without
//! no_new_privs; one child with a filter that logs, read through ptrace.
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use zoo::bpf;

/// The errno of two harmless calls: getppid and getpgrp's old form.
fn probe() -> [Option<i32>; 2] {
    [libc::SYS_getppid, libc::SYS_getpgrp].map(bpf::errno_of)
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo.fork("privileged", |mut zoo| {
        zoo.ok("filter", bpf::refuse(libc::SYS_getppid, 70, 0));
        let few = CapabilitySets {
            permitted: CapabilitySet::DAC_OVERRIDE,
            effective: CapabilitySet::DAC_OVERRIDE,
            inheritable: CapabilitySet::empty(),
        };
        zoo.ok("no right to install any more", set_capabilities(None, few).is_ok());
        while zoo.gap() {
            zoo.eq("both calls", probe(), [Some(70), None]);
            zoo.eq("no_new_privs", zoo::proc::field("status", "NoNewPrivs:"), "0".to_owned());
        }
    });
    let logs = zoo.fork("logs", |mut zoo| {
        zoo.ok("no_new_privs", bpf::no_new_privs());
        zoo.ok("filter", bpf::refuse(libc::SYS_getppid, 71, 0) && bpf::refuse(libc::SYS_getpgrp, 72, bpf::LOG));
        while zoo.gap() {
            zoo.eq("both calls", probe(), [Some(71), Some(72)]);
        }
    });
    // Who is under a filter may not ask for those of others.
    zoo.fork("reader", |mut zoo| {
        while zoo.gap() {
            zoo.eq("flags of the other child's filters", bpf::flags(logs), vec![0, u64::from(bpf::LOG)]);
        }
    });
    zoo.ok("no_new_privs", bpf::no_new_privs());
    zoo.ok("filters", bpf::refuse(libc::SYS_getppid, 76, 0) && bpf::refuse(libc::SYS_getppid, 77, 0));
    zoo.thread("second", |seat| {
        seat.ok("filter", bpf::refuse(libc::SYS_getpgrp, 78, 0));
        while seat.gap() {
            seat.eq("both calls", probe(), [Some(77), Some(78)]);
        }
    });
    while zoo.gap() {
        zoo.eq("both calls", probe(), [Some(77), None]);
        zoo.eq("mode", zoo::proc::field("status", "Seccomp:"), "2".to_owned());
        zoo.eq("number of filters", zoo::proc::field("status", "Seccomp_filters:"), "2".to_owned());
    }
}

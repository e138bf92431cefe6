//! All resource limits, soft and hard.
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let limits = [
        (Resource::Nofile, 700, 900),
        (Resource::Core, 0, 0),
        (Resource::Stack, 4 << 20, 16 << 20),
        (Resource::Cpu, 5000, 6000),
        (Resource::Fsize, 64 << 20, 128 << 20),
        (Resource::Data, 1 << 30, 2 << 30),
        (Resource::As, 8 << 30, 9 << 30),
        (Resource::Memlock, 32 << 10, 48 << 10),
        (Resource::Nproc, 500, 600),
        (Resource::Sigpending, 300, 400),
        (Resource::Msgqueue, 10_000, 20_000),
        (Resource::Rss, 1 << 30, 1 << 31),
    ];
    for (which, soft, hard) in limits {
        let hard = getrlimit(which).maximum.map_or(hard, |max| max.min(hard));
        let set = setrlimit(which, Rlimit { current: Some(soft.min(hard)), maximum: Some(hard) });
        zoo.get(&format!("setting {which:?}"), set);
    }
    let look = || std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let before = look();
    while zoo.gap() {
        zoo.eq("limits", look(), before.clone());
    }
}

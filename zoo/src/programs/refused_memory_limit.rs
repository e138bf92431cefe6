//! Refused: a process that has used up its address space (RLIMIT_AS), so that it can have no mapping more.
use rustix::process::{Resource, Rlimit, setrlimit};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo.tell("names", "task \nRLIMIT_AS\nprlimit --pid");
    let statm = zoo::must(std::fs::read_to_string("/proc/self/statm"));
    let pages: u64 = zoo::must(statm.split(' ').next().unwrap_or_default().parse());
    let limit = Some(pages * rustix::param::page_size() as u64);
    zoo.get("limit", setrlimit(Resource::As, Rlimit { current: limit, maximum: None }));
    while zoo.gap() {
        let now = rustix::process::getrlimit(Resource::As).current;
        zoo.eq("limit", now, limit);
    }
}

//! Two processes that fork and reap as fast as they can, also while they are dumped: no child is lost, none comes twice. They
//! live in control groups of their own, so that these can be frozen.
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use zoo::cgroups::{enter, own, remove};
use zoo::mem::{Map, PAGE};
use zoo::sys::{fork, getpid, waitpid};

const STORMS: usize = 2;
const STOP: usize = STORMS;
const FAULTS: usize = STORMS + 1;

/// Forks and reaps until it is told to stop; counts in `map`.
fn storm(map: &Map, i: usize) -> i32 {
    let me = getpid();
    while map.word(STOP).load(SeqCst) == 0 {
        let child = fork(|| if std::os::unix::process::parent_id().cast_signed() == me { 7 } else { 8 });
        let good = waitpid(child).is_ok_and(|status| status == 7 << 8);
        if !good {
            map.word(FAULTS).fetch_add(1, SeqCst);
        }
        map.word(i).fetch_add(1, SeqCst);
    }
    // Nobody is left.
    i32::from(waitpid(-1).is_ok())
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let name = std::env::current_dir().ok().and_then(|d| Some(d.file_name()?.to_str()?.to_owned()));
    let Some(name) = name else { zoo.skip("the directory has no name") };
    let groups: Vec<_> = ["freezer", ""].into_iter().filter_map(|c| Some((c, own(c)?))).collect();
    let mut told = String::new();
    for (controller, before) in &groups {
        let group = before.join(&name);
        zoo::must(std::fs::create_dir(&group));
        zoo::must(enter(&group));
        let file = if controller.is_empty() { "cgroup.freeze" } else { "freezer.state" };
        told.push_str(&format!("{}\n", group.join(file).display()));
    }
    zoo.tell("groups", &told);
    let map = Map::shared(PAGE);
    let storms: Vec<i32> = (0..STORMS).map(|i| fork(|| storm(&map, i))).collect();
    let blows = |since: [u64; STORMS]| {
        let end = Instant::now() + Duration::from_secs(60);
        while (0..STORMS).any(|i| map.word(i).load(SeqCst) < since[i] + 3) {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    };
    let now = || std::array::from_fn(|i| map.word(i).load(SeqCst));
    zoo.ok("it begins to blow", blows([0; STORMS]));
    while zoo.gap() {
        zoo.ok("it still blows", blows(now()));
        zoo.eq("children that came to another end", map.word(FAULTS).load(SeqCst), 0);
    }
    map.word(STOP).store(1, SeqCst);
    for storm in storms {
        zoo.eq("a storm's end", waitpid(storm).ok(), Some(0));
    }
    for (_, before) in &groups {
        zoo::must(enter(before));
        zoo::must(remove(&before.join(&name)));
    }
}

//! Two processes that fork and reap as fast as they can, also while they are dumped: no child is lost, none comes twice. They
//! live in control groups of their own, so that these can be frozen.
use zoo::cgroups::{enter, own, remove};
use zoo::storms::Storms;
use zoo::sys::{fork, getpid, waitpid};

/// A child that ends, as its parent's.
fn round() -> bool {
    let me = getpid();
    let child = fork(|| if std::os::unix::process::parent_id().cast_signed() == me { 7 } else { 8 });
    waitpid(child).is_ok_and(|status| status == 7 << 8)
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
    Storms::start(2, round).live(&mut zoo);
    for (_, before) in &groups {
        zoo::must(enter(before));
        zoo::must(remove(&before.join(&name)));
    }
}

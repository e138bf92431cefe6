//! Control groups: a process in one, its child in another, a thread in a third, an empty one, and settings of them. Version 2
//! if it is mounted, and of version 1 the pids controller.
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use zoo::cgroups::{enter, own, path_of, remove};

/// A hierarchy with our groups in it.
#[derive(Clone, Debug)]
struct Groups {
    controller: &'static str,
    /// Where we were.
    before: PathBuf,
    top: PathBuf,
    /// The same as /proc/PID/cgroup calls it.
    path: String,
}

impl Groups {
    fn new(controller: &'static str, name: &str) -> Option<Self> {
        let before = own(controller)?;
        let path = format!("{}/{name}", path_of("self", controller)?.trim_end_matches('/'));
        Some(Self { controller, top: before.join(name), before, path })
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.top.join(name)
    }

    /// A setting that the groups are given, and one that no new group has.
    fn setting(&self) -> (&'static str, &'static str) {
        if self.controller.is_empty() { ("cgroup.max.descendants", "7") } else { ("pids.max", "12345") }
    }

    fn make(&self, zoo: &mut zoo::Zoo) {
        let made = ["main/thread", "child", "main/empty"].map(|d| fs::create_dir_all(self.dir(d)));
        for made in made {
            zoo.get("making a group", made);
        }
        if self.controller.is_empty() {
            zoo.get("threaded", fs::write(self.dir("main/thread/cgroup.type"), "threaded"));
        }
        let (file, value) = self.setting();
        zoo.get("a setting", fs::write(self.dir("main").join(file), value));
        zoo.get("an owner", chown(self.dir("main/empty"), Some(1234), Some(4321)));
        zoo.get("a mode", fs::set_permissions(self.dir("main/empty"), fs::Permissions::from_mode(0o700)));
        zoo.get("an owner", chown(self.dir("child/cgroup.procs"), Some(1234), None));
    }

    fn check(&self, zoo: &mut zoo::Zoo) {
        let shown = |path: Option<String>| format!("{}:{}", self.controller, path.unwrap_or_default());
        let found = path_of("self", self.controller);
        zoo.eq("our group", shown(found), shown(Some(format!("{}/main", self.path))));
        let (file, value) = self.setting();
        let found = fs::read_to_string(self.dir("main").join(file)).unwrap_or_default();
        zoo.eq("a setting", found.trim_end(), value);
        let owner = |path: PathBuf| fs::metadata(path).map(|m| (m.uid(), m.gid(), m.mode() & 0o7777)).ok();
        zoo.eq("the empty group", owner(self.dir("main/empty")), Some((1234, 4321, 0o700)));
        zoo.eq("a file's owner", owner(self.dir("child/cgroup.procs")).map(|o| o.0), Some(1234));
    }

    fn move_thread(&self, dir: &Path) -> std::io::Result<()> {
        let file = if self.controller.is_empty() { "cgroup.threads" } else { "tasks" };
        fs::write(dir.join(file), "0")
    }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let name = std::env::current_dir().ok().and_then(|d| Some(d.file_name()?.to_str()?.to_owned()));
    let Some(name) = name else { zoo.skip("the directory has no name") };
    let all: Vec<Groups> = ["", "pids"].into_iter().filter_map(|c| Groups::new(c, &name)).collect();
    if all.is_empty() {
        zoo.skip("no cgroup hierarchy is mounted");
    }
    let tops: Vec<String> = all.iter().map(|g| g.top.display().to_string()).collect();
    for g in &all {
        g.make(&mut zoo);
    }
    zoo.tell("groups", &tops.join("\n"));
    for g in &all {
        zoo.get("entering a group", enter(&g.dir("main")));
    }
    let groups = all.clone();
    let child = zoo.fork("child", |mut zoo| {
        for g in &groups {
            zoo.get("the child's group", enter(&g.dir("child")));
        }
        while zoo.gap() {
            for g in &groups {
                zoo.eq("the child's group", path_of("self", g.controller), Some(format!("{}/child", g.path)));
            }
        }
    });
    let groups = all.clone();
    zoo.thread("thread", move |seat| {
        for g in &groups {
            seat.ok("the thread's group", g.move_thread(&g.dir("main/thread")).is_ok());
        }
        while seat.gap() {
            for g in &groups {
                let found = path_of("thread-self", g.controller);
                seat.eq("the thread's group", found, Some(format!("{}/main/thread", g.path)));
            }
        }
    });
    while zoo.gap() {
        for g in &all {
            g.check(&mut zoo);
        }
    }
    zoo.get("the child's end", zoo::sys::waitpid(child));
    for g in &all {
        zoo::must(enter(&g.before));
        zoo::must(remove(&g.top));
    }
}

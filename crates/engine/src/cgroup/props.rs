//! Which files of a control group are its settings, by controller: CRIU's lists, and what `--cgroup-props` changes in them.
use crate::error::{Error, Kind, Object, OnObject, Result, ResultExt};
use crate::options::Options;

/// Settings of each version 1 controller, in the order in which they can be set.
const BY_CONTROLLER: [(&str, &[&str]); 10] = [
    ("cpu", &["cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.rt_period_us", "cpu.rt_runtime_us"]),
    (
        "memory",
        &[
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "memory.swappiness",
            "memory.soft_limit_in_bytes",
            "memory.move_charge_at_immigrate",
            "memory.oom_control",
            "memory.use_hierarchy",
            "memory.kmem.limit_in_bytes",
            "memory.kmem.tcp.limit_in_bytes",
        ],
    ),
    (
        "cpuset",
        &[
            "cpuset.cpus",
            "cpuset.mems",
            "cpuset.memory_migrate",
            "cpuset.cpu_exclusive",
            "cpuset.mem_exclusive",
            "cpuset.mem_hardwall",
            "cpuset.memory_spread_page",
            "cpuset.memory_spread_slab",
            "cpuset.sched_load_balance",
            "cpuset.sched_relax_domain_level",
        ],
    ),
    ("blkio", &["blkio.weight"]),
    ("freezer", &[]),
    ("perf_event", &[]),
    ("net_cls", &["net_cls.classid"]),
    ("net_prio", &["net_prio.ifpriomap"]),
    ("pids", &["pids.max"]),
    ("devices", &["devices.list"]),
];
/// Of every version 1 group.
const V1: [&str; 4] = ["cgroup.clone_children", "notify_on_release", "cgroup.procs", "tasks"];
/// Of every version 2 group.
const V2: [&str; 5] =
    ["cgroup.subtree_control", "cgroup.max.descendants", "cgroup.max.depth", "cgroup.freeze", "cgroup.type"];
/// Of version 2, if their owner or mode is not what a new group's is: whom the group is delegated to. CRIU does not save them.
const V2_DELEGATED: [&str; 2] = ["cgroup.procs", "cgroup.threads"];
/// Limits of version 2, which CRIU does not save, with what a new group has: only other values are saved, so that a group
/// without limits can be made where its controllers are off.
const V2_LIMITS: [(&str, &[&str]); 14] = [
    ("memory.min", &["0"]),
    ("memory.low", &["0"]),
    ("memory.high", &["max"]),
    ("memory.max", &["max"]),
    ("memory.swap.high", &["max"]),
    ("memory.swap.max", &["max"]),
    ("memory.zswap.max", &["max"]),
    ("memory.oom.group", &["0"]),
    ("cpu.weight", &["100", "0"]),
    ("cpu.max", &["max 100000"]),
    ("cpu.max.burst", &["0"]),
    ("pids.max", &["max"]),
    ("io.weight", &["default 100"]),
    ("io.max", &[""]),
];

/// Settings that must be made before a group has tasks or children: right when it is made.
pub(super) fn is_special(name: &str) -> bool {
    const SPECIAL: [&str; 8] = [
        "cpuset.cpus",
        "cpuset.mems",
        "devices.list",
        "memory.kmem.limit_in_bytes",
        "memory.swappiness",
        "memory.oom_control",
        "memory.use_hierarchy",
        "cgroup.type",
    ];
    SPECIAL.contains(&name)
}

/// Files whose content is no setting: only their owner and mode are.
pub(super) fn has_no_value(name: &str) -> bool {
    matches!(name, "cgroup.procs" | "cgroup.threads" | "tasks")
}

/// Settings that take one line at each write.
pub(super) fn by_lines(name: &str) -> bool {
    matches!(name, "net_prio.ifpriomap" | "io.max")
}

/// The lists in force.
#[derive(Debug)]
pub(super) struct Lists(Vec<(String, Vec<String>)>);

impl Lists {
    /// The built-in lists, changed by `--cgroup-props`, then by `--cgroup-props-file`.
    pub(super) fn new(opts: &Options) -> Result<Self> {
        let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        let mut lists = Self(BY_CONTROLLER.iter().map(|&(c, names)| (c.to_owned(), owned(names))).collect());
        if let Some(text) = &opts.cgroup_props {
            lists.change(text).map_err(|e| e.on(Object::Option("--cgroup-props".into())))?;
        }
        if let Some(path) = &opts.cgroup_props_file {
            let name = path.to_string_lossy();
            let text =
                std::fs::read_to_string(path).during("reading the file of --cgroup-props-file").on_path(&name)?;
            lists.change(&text).on_path(&name)?;
        }
        Ok(lists)
    }

    fn change(&mut self, text: &str) -> Result<()> {
        for change in parse(text)? {
            match self.0.iter_mut().find(|(c, _)| *c == change.controller) {
                Some((_, names)) if change.merge => names.extend(change.names),
                Some((_, names)) => *names = change.names,
                None => self.0.push((change.controller, change.names)),
            }
        }
        Ok(())
    }

    /// Settings of a group in a hierarchy with these controllers, in order, with the values that are not worth saving.
    pub(super) fn of<'a>(&'a self, controllers: &[&str]) -> Vec<(&'a str, &'static [&'static str])> {
        let own = controllers.iter().flat_map(|c| self.0.iter().filter(move |(name, _)| name == c));
        let mut all: Vec<(&str, &[&str])> =
            own.flat_map(|(_, names)| names.iter().map(|n| (n.as_str(), &[][..]))).collect();
        if controllers == [""] {
            all.extend(V2.map(|n| (n, &[][..])));
            all.extend(V2_DELEGATED.map(|n| (n, &[][..])));
            let listed: Vec<&str> = all.iter().map(|a| a.0).collect();
            all.extend(V2_LIMITS.iter().filter(|l| !listed.contains(&l.0)));
        } else {
            all.extend(V1.map(|n| (n, &[][..])));
        }
        all
    }
}

/// One controller of `--cgroup-props`.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    controller: String,
    merge: bool,
    names: Vec<String>,
}

/// Parses CRIU's very simple YAML: `"cpu":` then ` - "strategy": "replace"` then ` - "properties": ["cpu.shares", …]`.
fn parse(text: &str) -> Result<Vec<Change>> {
    let bad = |at: &Reader<'_>, want: &str| {
        let near: String = at.0.chars().take(20).collect();
        Error::new(Kind::BadRequest, format!("{want} is expected before {near:?}"))
            .help("the format is \"CONTROLLER\":\\n - \"strategy\": \"merge\" or \"replace\"\\n - \"properties\": [\"FILE\", …]")
    };
    let mut all = Vec::new();
    let mut r = Reader(text);
    while !r.at_end() {
        let controller = r.quoted().ok_or_else(|| bad(&r, "the name of a controller in quotes"))?;
        let head = r.sign(':') && r.sign('-') && r.quoted().as_deref() == Some("strategy") && r.sign(':');
        let strategy = head.then(|| r.quoted()).flatten().ok_or_else(|| bad(&r, "- \"strategy\": \"…\""))?;
        let merge = match strategy.as_str() {
            "merge" => true,
            "replace" => false,
            _ => return Err(bad(&r, "the strategy \"merge\" or \"replace\"")),
        };
        if !(r.sign('-') && r.quoted().as_deref() == Some("properties") && r.sign(':') && r.sign('[')) {
            return Err(bad(&r, "- \"properties\": ["));
        }
        let mut names = Vec::new();
        while !r.sign(']') {
            let name = r.quoted().ok_or_else(|| bad(&r, "the name of a file in quotes"))?;
            if name.contains('/') || name == ".." {
                return Err(bad(&r, "the name of a file of the group, without a slash,"));
            }
            names.push(name);
            if !r.sign(',') && !r.0.trim_start().starts_with(']') {
                return Err(bad(&r, "] or a comma"));
            }
        }
        all.push(Change { controller, merge, names });
    }
    Ok(all)
}

struct Reader<'a>(&'a str);

impl Reader<'_> {
    fn at_end(&self) -> bool {
        self.0.trim_start().is_empty()
    }

    fn sign(&mut self, sign: char) -> bool {
        match self.0.trim_start().strip_prefix(sign) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn quoted(&mut self) -> Option<String> {
        let (word, rest) = self.0.trim_start().strip_prefix('"')?.split_once('"')?;
        self.0 = rest;
        Some(word.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(lists: &Lists, controllers: &[&str]) -> Vec<String> {
        lists.of(controllers).iter().map(|p| p.0.to_owned()).collect()
    }

    #[test]
    fn lists_are_merged_and_replaced() {
        let text = "\"cpu\":\n - \"strategy\": \"replace\"\n - \"properties\": [\"cpu.shares\"]\n\
                    \"pids\":\n - \"strategy\": \"merge\"\n - \"properties\": [ \"pids.x\", \"pids.y\" ]\n\
                    \"new\":\n - \"strategy\": \"merge\"\n - \"properties\": []\n";
        let opts = Options { cgroup_props: Some(text.into()), ..Options::default() };
        let lists = Lists::new(&opts).expect("well formed");
        assert_eq!(names(&lists, &["cpu"])[..2], ["cpu.shares", "cgroup.clone_children"]);
        assert_eq!(names(&lists, &["pids"])[..3], ["pids.max", "pids.x", "pids.y"]);
        assert_eq!(names(&lists, &["new"]).len(), V1.len());
        assert!(names(&lists, &[""]).contains(&"memory.max".to_owned()));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "cpu",
            "\"cpu\"",
            "\"cpu\":\n - \"strategy\": \"x\"\n - \"properties\": []",
            "\"cpu\":\n - \"strategy\": \"merge\"\n - \"properties\": [\"a\" \"b\"]",
            "\"cpu\":\n - \"strategy\": \"merge\"\n - \"properties\": [\"../x\"]",
            "\"cpu\":\n - \"strategy\": \"merge\"\n - \"properties\": [",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}

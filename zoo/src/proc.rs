//! What /proc says about processes, as the programs and the box compare it.
use std::fmt;
use std::io;

/// The shape of one process: everything that must be the same after restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Process id here.
    pub pid: i32,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub pgid: i32,
    /// Session.
    pub sid: i32,
    /// `Z` for a zombie, `T` for a stopped process, else `-`.
    pub state: char,
    /// Thread ids, in order.
    pub tids: Vec<i32>,
    /// Command name.
    pub comm: String,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, ppid, pgid, sid, state, tids, comm } = self;
        write!(f, "{pid} ppid={ppid} pgid={pgid} sid={sid} {state} {comm:?} tids={tids:?}")
    }
}

/// The shape of process `pid`.
///
/// # Errors
/// If it is gone.
pub fn shape(pid: i32) -> io::Result<Shape> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "stat");
    let (open, close) = (stat.find('(').ok_or_else(bad)?, stat.rfind(')').ok_or_else(bad)?);
    let rest: Vec<&str> = stat[close + 1..].split_whitespace().collect();
    let number = |i: usize| rest.get(i).and_then(|f| f.parse().ok()).ok_or_else(bad);
    let mut tids = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        tids.extend(task?.file_name().to_str().and_then(|t| t.parse::<i32>().ok()));
    }
    tids.sort_unstable();
    Ok(Shape {
        pid,
        ppid: number(1)?,
        pgid: number(2)?,
        sid: number(3)?,
        state: match rest[0] {
            "Z" => 'Z',
            "T" => 'T',
            _ => '-',
        },
        tids,
        comm: stat[open + 1..close].to_owned(),
    })
}

/// All processes of this pid namespace, in order.
///
/// # Errors
/// If /proc cannot be read.
pub fn all() -> io::Result<Vec<Shape>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        found.extend(shape(pid).ok());
    }
    found.sort_unstable_by_key(|p| p.pid);
    Ok(found)
}

/// The value of `field` in /proc/self/`file` (status, limits …): the rest of the first line that begins with it.
pub fn field(file: &str, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    text.lines().find_map(|l| l.strip_prefix(field)).unwrap_or_default().trim().to_owned()
}

/// As [`field`], of process `pid`.
pub fn field_of(pid: i32, file: &str, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    text.lines().find_map(|l| l.strip_prefix(field)).unwrap_or_default().trim().to_owned()
}

/// Several lines of /proc/thread-self/status at once, for comparing.
pub fn status(fields: &[&str]) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    text.lines().filter(|l| fields.iter().any(|f| l.starts_with(&format!("{f}:")))).map(str::to_owned).collect()
}

/// The target of /proc/self/fd/`fd`.
pub fn fd_link(fd: i32) -> String {
    std::fs::read_link(format!("/proc/self/fd/{fd}")).map(|p| p.to_string_lossy().into_owned()).unwrap_or_default()
}

/// One field of /proc/self/fdinfo/`fd`.
pub fn fd_info(fd: i32, name: &str) -> String {
    field(&format!("fdinfo/{fd}"), &format!("{name}:"))
}

/// All open descriptors.
pub fn fds() -> Vec<i32> {
    let mut fds: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&fd| !fd_link(fd).is_empty())
        .collect();
    fds.sort_unstable();
    fds
}

/// All that a dump must leave as it found it, as text: mappings, descriptors with their positions and content marks,
/// limits, timers, and for each thread its signals, ids and capabilities. What changes by itself is left out.
pub fn snapshot(pid: i32) -> String {
    let mut text = String::new();
    let mut add = |head: &str, body: &str| {
        for line in body.lines() {
            text.push_str(&format!("{pid} {head}: {line}\n"));
        }
    };
    let read = |path: String| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    for file in ["maps", "limits", "timers", "oom_score_adj", "personality", "cmdline", "environ"] {
        add(file, &read(format!("/proc/{pid}/{file}")));
    }
    for link in ["cwd", "root", "exe"] {
        let to = std::fs::read_link(format!("/proc/{pid}/{link}")).unwrap_or_default();
        add(link, &to.to_string_lossy());
    }
    for fd in entries(&format!("/proc/{pid}/fd")) {
        let to = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
        let info = read(format!("/proc/{pid}/fdinfo/{fd}"));
        // The time left of a timer descriptor runs.
        let kept: Vec<&str> = info.lines().filter(|l| !l.starts_with("it_value")).collect();
        add(&format!("fd {fd}"), &format!("{}\n{}", to.display(), kept.join("\n")));
    }
    for tid in entries(&format!("/proc/{pid}/task")) {
        let status = read(format!("/proc/{pid}/task/{tid}/status"));
        let moves = ["State:", "Vm", "Rss", "Huge", "voluntary", "nonvoluntary", "SigQ:", "THP", "untag"];
        let kept: Vec<&str> = status.lines().filter(|l| !moves.iter().any(|m| l.starts_with(m))).collect();
        add(&format!("thread {tid}"), &kept.join("\n"));
    }
    text
}

/// The numbers that name the entries of a directory of /proc, in order.
fn entries(dir: &str) -> Vec<i32> {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut numbers: Vec<i32> = names.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

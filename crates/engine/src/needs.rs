//! Which privileges a tree or a checkpoint takes, and why: for people who want to give no more than that. Looks only.
//!
//! The rules are the kernel's. What a restore refuses before it makes anything (ids of its choice, capabilities, limits,
//! no_new_privs, seccomp) it asks the same functions below `task`; the rest dump and restore try, and make no call that would
//! change nothing.
use crate::Options;
use crate::dump::{find_root, stat_of};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::images::Source;
use crate::task::creds::{self, Cap, mask};
use crate::task::{limits, lockall};
use crust_image::ImageKind;
use crust_image::proto::{CoreEntry, CredsEntry, CrustProcessSettings, FileEntry, FsEntry, PstreeEntry};
use crust_kernel::HostTid;
use crust_kernel::procfs::{Limit, ProcDir, Status};
use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

/// Which journey a privilege is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Saving the tree.
    Dump,
    /// Bringing it back on this machine, by whoever asks.
    Restore,
}

/// A privilege, and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// For what.
    pub step: Step,
    /// Its name; of two, either does.
    pub right: &'static str,
    /// What of the tree takes it.
    pub why: String,
    /// The processes of which that is true; none means the tree as a whole.
    pub tasks: Vec<i32>,
    /// We have it.
    pub held: bool,
    /// What happens without, if that is no failure.
    pub without: Option<&'static str>,
}

/// What a tree or a checkpoint takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Dump first.
    pub needs: Vec<Need>,
    /// What else is to be known.
    pub notes: Vec<String>,
}

/// What is asked of one process, wherever it comes from.
#[derive(Default)]
struct Facts {
    pid: i32,
    /// Of each thread.
    creds: Vec<CredsEntry>,
    hard_limits: Vec<u64>,
    oom_score_adj: Option<i32>,
    loginuid: Option<u32>,
    /// Policy and nice value of each thread.
    sched: Vec<(u32, i32)>,
    /// From images only: a running process does not tell.
    locks: CrustProcessSettings,
    seccomp: bool,
    other_root: bool,
    raw_socket: bool,
    fanotify: bool,
    /// Names of the network devices behind its tun files; empty for a file without one.
    tuns: Vec<String>,
    low_ports: Vec<u32>,
}

/// Whoever asks.
struct Own {
    creds: CredsEntry,
    limits: [Limit; 16],
    oom_score_adj: i32,
    loginuid: Option<u32>,
    first_port: u32,
    first_user_ns: bool,
}

fn number(path: &str) -> Option<i64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn sched_of(tid: HostTid) -> Option<(u32, i32)> {
    crust_kernel::process::sched(tid).ok().map(|s| (s.policy, s.nice))
}

impl Own {
    fn look() -> Result<Self> {
        let me = HostTid::new(rustix::process::getpid().as_raw_nonzero().get());
        let me = me.ok_or_else(|| Error::new(Kind::Internal, "we have no pid"))?;
        let proc = ProcDir::open_self(me).during("opening /proc/self")?;
        let status = Status::new(proc.read_text("status").during("reading /proc/self/status")?);
        Ok(Self {
            creds: creds::from_status(&status, 0)?,
            limits: limits::look(&proc)?,
            oom_score_adj: number("/proc/self/oom_score_adj").unwrap_or(0) as i32,
            loginuid: number("/proc/self/loginuid").map(|n| n as u32),
            first_port: number("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or(1024) as u32,
            first_user_ns: proc
                .readlink("ns/user")
                .is_ok_and(|link| link == crate::task::seccomp::FIRST_USER_NS.as_bytes()),
        })
    }
}

impl Needs {
    /// True if we may do all of it.
    pub fn enough(&self) -> bool {
        self.needs.iter().all(|n| n.held || n.without.is_some())
    }

    fn add(&mut self, own: &Own, step: Step, cap: Cap, task: Option<i32>, why: impl Into<String>) -> &mut Need {
        self.add_named(step, cap.name, cap.is_held(&own.creds), task, why.into())
    }

    fn add_named(&mut self, step: Step, right: &'static str, held: bool, task: Option<i32>, why: String) -> &mut Need {
        let same = self.needs.iter().position(|n| n.step == step && n.right == right && n.why == why);
        let at = same.unwrap_or_else(|| {
            self.needs.push(Need { step, right, why, tasks: Vec::new(), held, without: None });
            self.needs.len() - 1
        });
        self.needs[at].tasks.extend(task);
        &mut self.needs[at]
    }

    fn dump(&mut self, own: &Own, pid: i32, creds: &CredsEntry, proc: &ProcDir) {
        let ours = (own.creds.uid, own.creds.gid);
        let theirs = [(creds.uid, creds.gid), (creds.euid, creds.egid), (creds.suid, creds.sgid)];
        let owner = std::fs::metadata(format!("/proc/{}", proc.id())).map_or(creds.euid, |m| m.uid());
        if owner != own.creds.fsuid {
            let why = format!("its memory in /proc belongs to uid {owner}");
            self.add(own, Step::Dump, Cap::DAC_OVERRIDE, Some(pid), why);
        }
        let mut add = |why: String| {
            self.add(own, Step::Dump, Cap::SYS_PTRACE, Some(pid), why);
        };
        if theirs.iter().any(|&ids| ids != ours) {
            add(format!("belongs to uid {}, gid {}; we are uid {}, gid {}", creds.uid, creds.gid, ours.0, ours.1));
        }
        if mask(&creds.cap_prm) & !mask(&own.creds.cap_prm) != 0 {
            add("has capabilities that we lack".into());
        }
        // Its files in /proc are root's then.
        if owner != creds.euid {
            add("may not be looked at by its own user (prctl PR_SET_DUMPABLE, or started with more rights)".into());
        }
        match number("/proc/sys/kernel/yama/ptrace_scope") {
            Some(1 | 2) => add("this machine lets nobody trace others' children (kernel.yama.ptrace_scope)".into()),
            Some(3) => self.notes.push("nobody may trace anybody here: kernel.yama.ptrace_scope is 3".into()),
            _ => {}
        }
    }

    fn seccomp(&mut self, own: &Own, step: Step, pid: i32) {
        let why = "runs under seccomp, whose filters only root in the first user namespace may read and suspend";
        self.add(own, step, Cap::SYS_ADMIN, Some(pid), why).held &= own.first_user_ns;
    }

    fn restore(&mut self, own: &Own, facts: &Facts) {
        let task = Some(facts.pid);
        let mut add = |cap: Cap, why: String| {
            self.add(own, Step::Restore, cap, task, why);
        };
        for (cap, why) in facts.creds.iter().flat_map(|want| creds::needed(&own.creds, want)) {
            add(cap, why);
        }
        let raised = limits::raised(facts.hard_limits.iter().copied(), own.limits.iter().map(|l| l.max)).next();
        if let Some((name, want, have)) = raised {
            add(Cap::SYS_RESOURCE, format!("has the hard limit {want} of {name}, ours is {have}"));
        }
        if facts.oom_score_adj.is_some_and(|want| want < own.oom_score_adj) {
            add(Cap::SYS_RESOURCE, format!("has a lower oom_score_adj than we have ({})", own.oom_score_adj));
        }
        if let Some((policy, _)) = facts.sched.iter().find(|(policy, _)| matches!(policy & 0xff, 1 | 2 | 6)) {
            add(Cap::SYS_NICE, format!("is scheduled in real time (policy {})", policy & 0xff));
        }
        if let Some((_, nice)) = facts.sched.iter().find(|(policy, nice)| *nice < 0 && policy & 0xff == 0) {
            add(Cap::SYS_NICE, format!("has the nice value {nice}"));
        }
        if let Some(why) = lockall::needs_right(&facts.locks, &own.limits) {
            add(Cap::IPC_LOCK, why);
        }
        if facts.raw_socket {
            add(Cap::NET_RAW, "has a raw or packet socket".into());
        }
        if let Some(port) = facts.low_ports.iter().find(|&&port| port < own.first_port) {
            add(Cap::NET_BIND_SERVICE, format!("has a socket on port {port}"));
        }
        if facts.other_root {
            add(Cap::SYS_CHROOT, "has another root directory".into());
        }
        if facts.fanotify {
            add(Cap::SYS_ADMIN, "has a fanotify group".into());
        }
        for (name, (uid, gid)) in facts.tuns.iter().filter_map(|name| Some((name, owner_of_device(name)?))) {
            if uid.is_some_and(|uid| uid != own.creds.euid)
                || gid.is_some_and(|gid| gid != own.creds.egid && !own.creds.groups.contains(&gid))
            {
                let why = format!("is attached to the network device {name}, which belongs to somebody else");
                self.add(own, Step::Restore, Cap::NET_ADMIN, task, why);
            }
        }
        if facts.seccomp {
            self.seccomp(own, Step::Restore, facts.pid);
        }
        if facts.loginuid.is_some_and(|want| own.loginuid.is_some_and(|have| have != want)) {
            let why = "has another login user id than we have";
            self.add(own, Step::Restore, Cap::AUDIT_CONTROL, task, why).without = Some("it gets ours");
        }
        // What nobody can give who does not have it himself.
        let lacking = facts.creds.iter().fold(0, |all, want| all | creds::lacking(&own.creds, want));
        if lacking != 0 {
            let why = format!("has capabilities, or a bounding set, that we lack: {}", creds::names(lacking));
            self.add_named(Step::Restore, "those capabilities", false, task, why);
        }
        if facts.creds.iter().any(|want| creds::is_bound(&own.creds, want)) {
            let why = "has not given up new privileges (no_new_privs), as we have".into();
            self.add_named(Step::Restore, "crust started without no_new_privs", false, task, why);
        }
    }

    fn restore_all(&mut self, own: &Own, all: &[Facts]) {
        let held = creds::may_choose_ids(&own.creds);
        let why = "processes and threads get their ids back".to_owned();
        self.add_named(Step::Restore, "CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN", held, None, why);
        let why = "a time namespace, in which clocks go on from where they stood";
        for cap in [Cap::SYS_ADMIN, Cap::SYS_TIME] {
            self.add(own, Step::Restore, cap, None, why).without =
                Some("the restore is refused only where clocks would go back");
        }
        for facts in all {
            self.restore(own, facts);
        }
        let mut users =
            all.iter().flat_map(|f| &f.creds).flat_map(|c| [(c.uid, c.gid), (c.euid, c.egid), (c.suid, c.sgid)]);
        let first = users.next();
        if let Some((uid, gid)) = first.filter(|&f| users.all(|u| u == f))
            && !self.enough()
        {
            self.notes.push(format!(
                "who is uid {uid}, gid {gid} needs none of it for a restore in namespaces of its own (without \
                 --unprivileged), as far as only ids are concerned"
            ));
        }
    }
}

/// What dump and restore of the tree below `pid` take.
///
/// # Errors
/// Only if the tree cannot be looked at.
pub fn of_tree(pid: i32) -> Result<Needs> {
    let own = Own::look()?;
    let mut found = Needs::default();
    let mut all = Vec::new();
    let mut pids = vec![find_root(pid)?];
    let mut seen: HashSet<HostTid> = pids.iter().copied().collect();
    let user_ns = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    let mut at = 0;
    while let Some(&pid) = pids.get(at) {
        at += 1;
        // Who ended meanwhile needs nothing.
        let Ok(proc) = ProcDir::open(pid) else { continue };
        pids.extend(proc.children().unwrap_or_default().into_iter().filter(|c| seen.insert(*c)));
        if stat_of(&proc).is_none_or(|s| s.state == b'Z') {
            continue;
        }
        let Ok(status) = proc.read_text("status").map(Status::new) else { continue };
        let creds = creds::from_status(&status, 0)?;
        let raw = pid.as_raw();
        match (user_ns("self"), user_ns(&raw.to_string())) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                let note = "lives in a user namespace of its own; a dump of a job of `crust run` enters it, and needs nothing there";
                found.notes.push(format!("process {raw} {note}"));
                continue;
            }
            _ => {}
        }
        found.dump(&own, raw, &creds, &proc);
        let seccomp = status.number("Seccomp").is_some_and(|mode| mode != 0);
        if seccomp {
            found.seccomp(&own, Step::Dump, raw);
        }
        let facts = live(&proc, creds, seccomp);
        if !facts.tuns.is_empty() {
            let why = "has opened /dev/net/tun: whose network such a file belongs to is not told to everybody";
            found.add(&own, Step::Dump, Cap::NET_ADMIN, Some(raw), why);
        }
        all.push(facts);
    }
    found.restore_all(&own, &all);
    Ok(found)
}

fn live(proc: &ProcDir, creds: CredsEntry, seccomp: bool) -> Facts {
    let number = |name: &str| proc.read_text(name).ok()?.trim().parse::<i64>().ok();
    let threads = proc.threads().unwrap_or_default();
    let mut facts = Facts {
        pid: proc.id().as_raw(),
        creds: vec![creds],
        hard_limits: limits::look(proc).map_or_else(|_| Vec::new(), |l| l.iter().map(|l| l.max).collect()),
        oom_score_adj: number("oom_score_adj").map(|n| n as i32),
        loginuid: number("loginuid").map(|n| n as u32),
        sched: threads.into_iter().filter_map(sched_of).collect(),
        seccomp,
        other_root: proc.readlink("root").is_ok_and(|link| link != b"/"),
        ..Default::default()
    };
    let (raw, ports) = sockets(proc);
    for fd in proc.numbers("fd").unwrap_or_default() {
        let Ok(link) = proc.readlink(&format!("fd/{fd}")) else { continue };
        let link = String::from_utf8_lossy(&link);
        facts.fanotify |= link == "anon_inode:[fanotify]";
        if link == "/dev/net/tun" {
            let info = proc.read_text(&format!("fdinfo/{fd}")).unwrap_or_default();
            let name = info.lines().find_map(|line| line.strip_prefix("iff:")).unwrap_or_default();
            facts.tuns.push(name.trim().to_owned());
        }
        let Some(inode) = link.strip_prefix("socket:[").and_then(|l| l.strip_suffix(']')) else { continue };
        facts.raw_socket |= raw.contains(inode);
        facts.low_ports.extend(ports.get(inode).filter(|&&p| p != 0));
    }
    facts
}

/// User and group that may attach to a tun device; `None`: everybody may. Nothing is known of a device that is not here.
fn owner_of_device(name: &str) -> Option<(Option<u32>, Option<u32>)> {
    if name.is_empty() || name.contains('/') {
        return None;
    }
    // -1 for nobody.
    let id = |what| number(&format!("/sys/class/net/{name}/{what}")).and_then(|id| u32::try_from(id).ok());
    Some((id("owner"), id("group")))
}

/// Inodes of raw and packet sockets of a process's network, and the local ports of others.
fn sockets(proc: &ProcDir) -> (HashSet<String>, HashMap<String, u32>) {
    let (mut raw, mut ports) = (HashSet::new(), HashMap::new());
    // The inode's column; packet sockets have it last.
    for (name, column) in [("raw", 9), ("raw6", 9), ("packet", 8), ("tcp", 9), ("tcp6", 9), ("udp", 9), ("udp6", 9)] {
        for line in proc.read_text(&format!("net/{name}")).unwrap_or_default().lines().skip(1) {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let Some(inode) = words.get(column) else { continue };
            let port = words.get(1).and_then(|local| u32::from_str_radix(local.rsplit(':').next()?, 16).ok());
            match port {
                _ if name.starts_with("raw") || name == "packet" => {
                    raw.insert((*inode).to_owned());
                }
                Some(port) => {
                    ports.insert((*inode).to_owned(), port);
                }
                None => {}
            }
        }
    }
    (raw, ports)
}

/// What a restore of the checkpoint in `opts.images_dir` takes here.
///
/// # Errors
/// If it cannot be read.
pub fn of_images(opts: &Options) -> Result<Needs> {
    const LIVE: [u32; 3] = [1, 3, 6];
    const SOCK_RAW: u32 = 3;
    let dir = opts.images_dir.as_ref().ok_or_else(|| Error::new(Kind::BadRequest, "no image directory was given"))?;
    let source = Source::open(dir.as_fd())?;
    let own = Own::look()?;
    let mut whole = Facts::default();
    let mut roots = HashMap::new();
    for file in source.read_all::<FileEntry>(ImageKind::Files, 0)? {
        whole.fanotify |= file.ffy.is_some();
        whole.raw_socket |= file.psk.is_some();
        whole.tuns.extend(file.tunf.and_then(|tun| tun.netdev));
        if let Some(socket) = &file.isk {
            whole.raw_socket |= socket.r#type == SOCK_RAW;
            whole.low_ports.extend(Some(socket.src_port).filter(|&p| p != 0));
        }
        if let Some(reg) = file.reg {
            roots.insert(reg.id, reg.name);
        }
    }
    let mut all = Vec::new();
    for entry in source.read_all::<PstreeEntry>(ImageKind::Pstree, 0)? {
        let mut facts = Facts { pid: entry.pid as i32, ..Default::default() };
        let leader: CoreEntry = source.read_one(ImageKind::Core, entry.pid.into())?;
        let Some(tc) = leader.tc.as_ref().filter(|tc| LIVE.contains(&tc.task_state)) else { continue };
        facts.hard_limits = tc.rlimits.as_ref().map_or_else(Vec::new, |l| l.rlimits.iter().map(|l| l.max).collect());
        facts.oom_score_adj = tc.oom_score_adj;
        facts.loginuid = tc.loginuid;
        facts.locks = tc.crust_settings.unwrap_or_default();
        let others = entry.threads.iter().filter(|&&t| t != entry.pid);
        let others = others.map(|&t| source.read_one(ImageKind::Core, t.into())).collect::<Result<Vec<CoreEntry>>>()?;
        for thread in std::iter::once(&leader).chain(&others).filter_map(|core| core.thread_core.as_ref()) {
            facts.creds.extend(thread.creds.clone());
            facts.sched.extend(thread.sched_policy.map(|p| (p, thread.sched_nice.unwrap_or(0))));
            facts.seccomp |= thread.seccomp_mode.is_some_and(|mode| mode != 0);
        }
        let fs: Option<FsEntry> = source.read_one_if(ImageKind::Fs, entry.pid.into())?;
        facts.other_root = fs.and_then(|fs| roots.get(&fs.root_id)).is_some_and(|name| name != b"/");
        all.push(facts);
    }
    if let Some(root) = all.first_mut() {
        (root.fanotify, root.raw_socket) = (whole.fanotify, whole.raw_socket);
        (root.low_ports, root.tuns) = (whole.low_ports, whole.tuns);
    }
    let mut found = Needs::default();
    found.restore_all(&own, &all);
    Ok(found)
}

//! Credentials of a thread: ids, groups, capabilities, securebits, no_new_privs.
//!
//! Read from /proc/PID/task/TID/status, securebits from inside. Set thread by thread with raw calls, in the order that keeps
//! the right to make the next one.
use crate::{Error, Kind, Result};
use crust_image::proto::CredsEntry;
use crust_inject::plan::{Expect, PlanId, Program};
use crust_kernel::procfs::Status;

const CAP_V3: u32 = 0x2008_0522;
/// Capabilities that the format's two words can hold.
const CAP_COUNT: u32 = 64;

fn two_words(mask: u64) -> Vec<u32> {
    vec![mask as u32, (mask >> 32) as u32]
}

/// A set of capabilities as one number.
pub(crate) fn mask(words: &[u32]) -> u64 {
    u64::from(words.first().copied().unwrap_or(0)) | u64::from(words.get(1).copied().unwrap_or(0)) << 32
}

/// All that Linux 6.18 has, by number.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The names of a set of capabilities.
pub(crate) fn names(mask: u64) -> String {
    let name = |n: u32| NAMES.get(n as usize).map_or_else(|| format!("capability {n}"), |&name| name.to_owned());
    (0..CAP_COUNT).filter(|n| mask & 1 << n != 0).map(name).collect::<Vec<_>>().join(", ")
}

/// A capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    number: u32,
    /// As people know it.
    pub name: &'static str,
}

/// Those that dump and restore may need, for whoever asks beforehand and for those who refuse.
#[allow(missing_docs, reason = "their names say it, and capabilities(7) what they are for")]
impl Cap {
    pub const DAC_OVERRIDE: Self = Self::new(1);
    pub const SETGID: Self = Self::new(6);
    pub const SETUID: Self = Self::new(7);
    pub const SETPCAP: Self = Self::new(8);
    pub const NET_BIND_SERVICE: Self = Self::new(10);
    pub const NET_ADMIN: Self = Self::new(12);
    pub const NET_RAW: Self = Self::new(13);
    pub const IPC_LOCK: Self = Self::new(14);
    pub const SYS_CHROOT: Self = Self::new(18);
    pub const SYS_PTRACE: Self = Self::new(19);
    pub const SYS_ADMIN: Self = Self::new(21);
    pub const SYS_NICE: Self = Self::new(23);
    pub const SYS_RESOURCE: Self = Self::new(24);
    pub const SYS_TIME: Self = Self::new(25);
    pub const AUDIT_CONTROL: Self = Self::new(30);
    pub const CHECKPOINT_RESTORE: Self = Self::new(40);

    const fn new(number: u32) -> Self {
        Self { number, name: NAMES[number as usize] }
    }

    /// What to do if it is missing.
    pub fn remedy(self) -> String {
        format!("give crust {}", self.name)
    }

    /// True if it is in the effective set.
    pub fn is_held(self, by: &CredsEntry) -> bool {
        mask(&by.cap_eff) & 1 << self.number != 0
    }
}

/// True if processes can be made with ids of our choice.
pub fn may_choose_ids(own: &CredsEntry) -> bool {
    Cap::SYS_ADMIN.is_held(own) || Cap::CHECKPOINT_RESTORE.is_held(own)
}

/// What it takes to make `want` of `now`, each with the reason.
pub fn needed(now: &CredsEntry, want: &CredsEntry) -> Vec<(Cap, String)> {
    const NO_SETUID_FIXUP: u32 = 1 << 2;
    let mut all = Vec::new();
    let (uids, gids) = ([now.uid, now.euid, now.suid], [now.gid, now.egid, now.sgid]);
    let uid = [want.uid, want.euid, want.suid, want.fsuid].into_iter().find(|id| !uids.contains(id));
    let gid = [want.gid, want.egid, want.sgid, want.fsgid].into_iter().find(|id| !gids.contains(id));
    if let Some(id) = uid {
        all.push((Cap::SETUID, format!("becomes uid {id}")));
        if now.secbits & NO_SETUID_FIXUP == 0 {
            // Otherwise the first change of ids would take the rights that the next calls need.
            all.push((Cap::SETPCAP, "keeps its capabilities while its ids change".to_owned()));
        }
    }
    if let Some(id) = gid {
        all.push((Cap::SETGID, format!("becomes gid {id}")));
    }
    if want.groups != now.groups {
        all.push((Cap::SETGID, "has other supplementary groups than we have".to_owned()));
    }
    if uid.is_some() || gid.is_some() {
        all.push((Cap::SYS_PTRACE, "is somebody else's when we give it its registers".to_owned()));
    }
    if mask(&now.cap_bnd) & !mask(&want.cap_bnd) != 0 {
        all.push((Cap::SETPCAP, "has a smaller bounding set of capabilities".to_owned()));
    }
    all
}

/// Capabilities that nobody can give who does not have them himself.
pub fn lacking(now: &CredsEntry, want: &CredsEntry) -> u64 {
    let more = |have: &[u32], need: &[u32]| mask(need) & !mask(have);
    more(&now.cap_bnd, &want.cap_bnd) | more(&now.cap_prm, &want.cap_prm)
}

/// True if no_new_privs, which stays, is ours and not theirs.
pub fn is_bound(now: &CredsEntry, want: &CredsEntry) -> bool {
    now.no_new_privs == Some(1) && want.no_new_privs != Some(1)
}

/// Credentials from a status file; `securebits` comes from inside the task.
///
/// # Errors
/// `Internal` if the file lacks a line that every kernel since 6.1 writes.
pub fn from_status(status: &Status, securebits: u32) -> Result<CredsEntry> {
    let missing = |key: &str| Error::new(Kind::Internal, format!("/proc status has no usable line {key}"));
    let four = |key: &str| -> Result<[u32; 4]> {
        status.numbers(key).and_then(|v| v.try_into().ok()).ok_or_else(|| missing(key))
    };
    let caps = |key: &str| status.mask(key).ok_or_else(|| missing(key));
    let [uid, euid, suid, fsuid] = four("Uid")?;
    let [gid, egid, sgid, fsgid] = four("Gid")?;
    Ok(CredsEntry {
        uid,
        gid,
        euid,
        egid,
        suid,
        sgid,
        fsuid,
        fsgid,
        cap_inh: two_words(caps("CapInh")?),
        cap_prm: two_words(caps("CapPrm")?),
        cap_eff: two_words(caps("CapEff")?),
        cap_bnd: two_words(caps("CapBnd")?),
        secbits: securebits,
        groups: status.numbers("Groups").ok_or_else(|| missing("Groups"))?,
        no_new_privs: status.number("NoNewPrivs").filter(|&n| n != 0).map(|n| n as u32),
        cap_amb: two_words(caps("CapAmb")?),
        ..Default::default()
    })
}

/// What must change to get from one set of credentials to another; calls that would change nothing are not made, so that
/// they need no privilege.
pub fn plan(p: &mut Program, plan: PlanId, now: &CredsEntry, want: &CredsEntry) {
    const KEEP_CAPS: u32 = 1 << 4;
    const NO_SETUID_FIXUP: u32 = 1 << 2;
    let ids = |c: &CredsEntry| [c.uid, c.euid, c.suid, c.fsuid];
    let gids = |c: &CredsEntry| [c.gid, c.egid, c.sgid, c.fsgid];
    let ids_change = ids(now) != ids(want);
    let caps_of = |c: &CredsEntry| [mask(&c.cap_inh), mask(&c.cap_prm), mask(&c.cap_eff), mask(&c.cap_amb)];

    if now.groups != want.groups {
        let bytes: Vec<u8> = want.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
        let at = p.data(&bytes);
        p.syscall(plan, "setgroups", libc::SYS_setgroups, &[want.groups.len().into(), at.into()]);
    }
    // Without this, leaving uid 0 would drop the capabilities that the steps below need.
    let mut bits = now.secbits;
    if ids_change && bits & NO_SETUID_FIXUP == 0 {
        bits |= NO_SETUID_FIXUP;
        p.syscall(plan, "PR_SET_SECUREBITS", libc::SYS_prctl, &[libc::PR_SET_SECUREBITS.into(), bits.into()]);
    }
    if gids(now) != gids(want) {
        let [r, e, s, fs] = gids(want);
        p.syscall(plan, "setresgid", libc::SYS_setresgid, &[r.into(), e.into(), s.into()]);
        // setfsgid answers with the old value, never with an error.
        p.syscall_expect(plan, "setfsgid", libc::SYS_setfsgid, &[fs.into()], Expect::Any);
        p.syscall_expect(plan, "setfsgid", libc::SYS_setfsgid, &[(-1i32).into()], Expect::Equals(u64::from(fs)));
    }
    if ids_change {
        let [r, e, s, fs] = ids(want);
        p.syscall(plan, "setresuid", libc::SYS_setresuid, &[r.into(), e.into(), s.into()]);
        p.syscall_expect(plan, "setfsuid", libc::SYS_setfsuid, &[fs.into()], Expect::Any);
        p.syscall_expect(plan, "setfsuid", libc::SYS_setfsuid, &[(-1i32).into()], Expect::Equals(u64::from(fs)));
    }
    let drop = mask(&now.cap_bnd) & !mask(&want.cap_bnd);
    for cap in (0..CAP_COUNT).filter(|c| drop & (1 << c) != 0) {
        p.syscall(plan, "PR_CAPBSET_DROP", libc::SYS_prctl, &[libc::PR_CAPBSET_DROP.into(), cap.into()]);
    }
    if bits != want.secbits {
        // Keeping capabilities over a change of ids is set as it was found, too.
        let args = [libc::PR_SET_SECUREBITS.into(), (want.secbits & !KEEP_CAPS).into()];
        p.syscall(plan, "PR_SET_SECUREBITS", libc::SYS_prctl, &args);
        if want.secbits & KEEP_CAPS != 0 {
            p.syscall(plan, "PR_SET_KEEPCAPS", libc::SYS_prctl, &[libc::PR_SET_KEEPCAPS.into(), 1.into()]);
        }
    }
    if caps_of(now) != caps_of(want) || ids_change {
        let header = p.data(&[CAP_V3.to_le_bytes(), 0u32.to_le_bytes()].concat());
        let word = |words: &[u32], i: usize| words.get(i).copied().unwrap_or(0).to_le_bytes();
        let mut data = Vec::new();
        for i in 0..2 {
            for words in [&want.cap_eff, &want.cap_prm, &want.cap_inh] {
                data.extend_from_slice(&word(words, i));
            }
        }
        let data = p.data(&data);
        p.syscall(plan, "capset", libc::SYS_capset, &[header.into(), data.into()]);
        for cap in (0..CAP_COUNT).filter(|c| mask(&want.cap_amb) & (1 << c) != 0) {
            let args = [libc::PR_CAP_AMBIENT.into(), libc::PR_CAP_AMBIENT_RAISE.into(), cap.into(), 0.into(), 0.into()];
            p.syscall(plan, "PR_CAP_AMBIENT_RAISE", libc::SYS_prctl, &args);
        }
    }
    super::lsm::plan_thread(p, plan, want);
    if want.no_new_privs == Some(1) && now.no_new_privs != Some(1) {
        let args = [libc::PR_SET_NO_NEW_PRIVS.into(), 1.into(), 0.into(), 0.into(), 0.into()];
        p.syscall(plan, "PR_SET_NO_NEW_PRIVS", libc::SYS_prctl, &args);
    }
}

/// Why `want` cannot be reached from `now`, if it cannot: called before anything is created.
pub fn check(now: &CredsEntry, want: &CredsEntry) -> Vec<Error> {
    let refused = |what: String, help: String| Error::new(Kind::Permission, what).help(help);
    let mut all = Vec::new();
    let lacking = lacking(now, want);
    if lacking != 0 {
        let what = format!("the image holds capabilities that this process does not have: {}", names(lacking));
        let help = "restore with more privileges, or in the user namespace of the dump";
        all.push(refused(what, help.to_owned()));
    }
    if is_bound(now, want) {
        let what = "this process has no_new_privs set, and the task in the image has not";
        all.push(refused(what.to_owned(), "start crust without no_new_privs".to_owned()));
    }
    let missing = needed(now, want).into_iter().filter(|(cap, _)| !cap.is_held(now));
    all.extend(missing.map(|(cap, why)| refused(format!("{why}: that takes {}", cap.name), cap.remedy())));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> CredsEntry {
        CredsEntry {
            cap_prm: vec![!0, 1],
            cap_eff: vec![!0, 1],
            cap_bnd: vec![!0, 1],
            cap_inh: vec![0, 0],
            cap_amb: vec![0, 0],
            ..Default::default()
        }
    }

    #[test]
    fn nothing_to_change_needs_no_call() {
        let mut p = Program::new();
        let main = p.plan("x");
        plan(&mut p, main, &root(), &root());
        assert_eq!(p.len(main), 0);
    }

    #[test]
    fn more_than_we_have_is_refused_early() {
        let mut small = root();
        small.cap_prm = vec![0, 0];
        let refused = check(&small, &root());
        assert!(refused.iter().all(|e| e.kind() == Kind::Permission), "{refused:?}");
        assert!(refused[0].to_string().contains("CAP_CHOWN, CAP_DAC_OVERRIDE, "), "{refused:?}");
        assert!(check(&root(), &small).is_empty());
    }

    #[test]
    fn other_ids_take_capabilities() {
        let nobody = CredsEntry { uid: 7, euid: 7, suid: 7, fsuid: 7, groups: vec![4], ..root() };
        let names = |now: &CredsEntry| needed(now, &nobody).into_iter().map(|(cap, _)| cap.name).collect::<Vec<_>>();
        assert_eq!(names(&root()), ["CAP_SETUID", "CAP_SETPCAP", "CAP_SETGID", "CAP_SYS_PTRACE"]);
        assert!(names(&nobody).is_empty());
        let weak = CredsEntry { cap_eff: vec![!(1 << 7), 1], ..root() };
        let refused = check(&weak, &nobody);
        assert!(refused.len() == 1 && refused[0].to_string().contains("CAP_SETUID"), "{refused:?}");
    }
}

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
    pub const SETGID: Self = Self { number: 6, name: "CAP_SETGID" };
    pub const SETUID: Self = Self { number: 7, name: "CAP_SETUID" };
    pub const SETPCAP: Self = Self { number: 8, name: "CAP_SETPCAP" };
    pub const NET_BIND_SERVICE: Self = Self { number: 10, name: "CAP_NET_BIND_SERVICE" };
    pub const NET_RAW: Self = Self { number: 13, name: "CAP_NET_RAW" };
    pub const SYS_CHROOT: Self = Self { number: 18, name: "CAP_SYS_CHROOT" };
    pub const SYS_PTRACE: Self = Self { number: 19, name: "CAP_SYS_PTRACE" };
    pub const SYS_ADMIN: Self = Self { number: 21, name: "CAP_SYS_ADMIN" };
    pub const SYS_NICE: Self = Self { number: 23, name: "CAP_SYS_NICE" };
    pub const SYS_RESOURCE: Self = Self { number: 24, name: "CAP_SYS_RESOURCE" };
    pub const AUDIT_CONTROL: Self = Self { number: 30, name: "CAP_AUDIT_CONTROL" };
    pub const CHECKPOINT_RESTORE: Self = Self { number: 40, name: "CAP_CHECKPOINT_RESTORE" };

    /// True if it is in the effective set.
    pub fn is_held(self, by: &CredsEntry) -> bool {
        mask(&by.cap_eff) & 1 << self.number != 0
    }
}

/// True if processes can be made with ids of our choice.
pub fn may_choose_ids(own: &CredsEntry) -> bool {
    Cap::SYS_ADMIN.is_held(own) || Cap::CHECKPOINT_RESTORE.is_held(own)
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
        no_new_privs: status.number("NoNewPrivs").map(|n| n as u32),
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
pub fn check(now: &CredsEntry, want: &CredsEntry) -> Option<Error> {
    let lacking = lacking(now, want);
    if lacking != 0 {
        let what = format!("the image holds capabilities {lacking:#x} that this process does not have");
        let help = "restore with more privileges (see `capsh --decode`), or in the user namespace of the dump";
        return Some(Error::new(Kind::Permission, what).help(help));
    }
    if is_bound(now, want) {
        let what = "this process has no_new_privs set, and the task in the image has not";
        return Some(Error::new(Kind::Permission, what).help("start crust without no_new_privs"));
    }
    None
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
        assert_eq!(check(&small, &root()).expect("lacks").kind(), Kind::Permission);
        assert!(check(&root(), &small).is_none());
    }
}

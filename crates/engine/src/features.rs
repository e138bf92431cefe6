//! The table behind `crust check`: CRIU's 45 feature names and a few of ours, each with the question that answers it.
use crate::check::Feature;
use crust_inject::arch::compat;
use crust_kernel::probe;
use std::fs;
use std::os::fd::AsRawFd;

/// A row: the name, whether crust cannot do without, what is lost otherwise, and how to find out.
struct Row {
    name: &'static str,
    required: bool,
    help: &'static str,
    ask: fn() -> bool,
}

const fn need(name: &'static str, help: &'static str, ask: fn() -> bool) -> Row {
    Row { name, required: true, help, ask }
}

const fn extra(name: &'static str, help: &'static str, ask: fn() -> bool) -> Row {
    Row { name, required: false, help, ask }
}

const CONFIG: &str = "the kernel must be built with CONFIG_CHECKPOINT_RESTORE";

#[rustfmt::skip]
static ROWS: &[Row] = &[
    // Ours.
    need("checkpoint_restore", CONFIG, probe::checkpoint_restore),
    need("cap_checkpoint_restore", "pids cannot be given back: run as root, or with CAP_CHECKPOINT_RESTORE, or in a user \
          namespace of your own (`unshare -Urpf --mount-proc`)", can_choose_pids),
    // CRIU's.
    need("mnt_id", "files cannot be told from their mounts: Linux 3.15", || fdinfo_has(&fs::File::open("/"), "mnt_id:")),
    extra("mem_dirty_track", "no incremental dumps: the kernel must track memory writes (CONFIG_MEM_SOFT_DIRTY)", soft_dirty),
    extra("aio_remap", "programs with asynchronous I/O contexts cannot be restored (CONFIG_AIO)", probe::aio),
    need("timerfd", CONFIG, timerfd_fdinfo),
    extra("tun", "tun devices cannot be restored (CONFIG_TUN)", || fs::File::options().read(true).write(true).open("/dev/net/tun").is_ok()),
    extra("tun_ns", "tun devices of other network namespaces cannot be told (Linux 4.20)", probe::tun_namespace),
    extra("userns", "user namespaces cannot be restored (CONFIG_USER_NS)", || fs::metadata("/proc/self/ns/user").is_ok()),
    extra("fdinfo_lock", "file locks cannot be saved: Linux 4.1", lock_fdinfo),
    extra("seccomp_suspend", "programs under seccomp need more care (CONFIG_CHECKPOINT_RESTORE, CONFIG_SECCOMP)", seccomp),
    extra("seccomp_filters", "programs with seccomp filters cannot be saved (CONFIG_CHECKPOINT_RESTORE, CONFIG_SECCOMP_FILTER)", || seccomp() && status_has("Seccomp_filters:")),
    extra("loginuid", "login ids are not restored (CONFIG_AUDIT)", || fs::read("/proc/self/loginuid").is_ok()),
    extra("cgroupns", "cgroup namespaces cannot be restored (CONFIG_CGROUPS)", || fs::metadata("/proc/self/ns/cgroup").is_ok()),
    extra("autofs", "autofs mounts cannot be restored (CONFIG_AUTOFS_FS)", || knows_fs("autofs")),
    extra("tcp_half_closed", "half-closed TCP connections cannot be restored: Linux 4.8", probe::tcp_repair_window),
    extra("compat_cr", "32-bit programs cannot be restored (CONFIG_IA32_EMULATION, ia32_emulation=1)", || compat::vdso().is_some()),
    extra("uffd", "no lazy restore (CONFIG_USERFAULTFD, or not allowed)", || probe::userfaultfd_features().is_some()),
    // EVENT_FORK, EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP.
    extra("uffd-noncoop", "no lazy restore of programs that fork or remap", || probe::userfaultfd_features().is_some_and(|f| f & 0x4e == 0x4e)),
    extra("can_map_vdso", "a vDSO of another kernel cannot be replaced (x86: CONFIG_CHECKPOINT_RESTORE)", || probe::map_vdso(64)),
    extra("sk_ns", "sockets cannot be told by their network namespace: Linux 4.10", probe::socket_namespace),
    extra("sk_unix_file", "unix sockets bound to renamed paths cannot be told: Linux 4.15", probe::socket_unix_file),
    extra("net_diag_raw", "raw sockets cannot be saved (CONFIG_INET_RAW_DIAG)", probe::raw_diag),
    extra("nsid", "network namespaces cannot be told from each other: Linux 4.0", probe::net_namespace_ids),
    extra("link_nsid", "links between network namespaces cannot be restored: Linux 4.20", probe::net_namespace_ids),
    extra("kcmp_epoll", "targets of epoll that were duplicated cannot be told: Linux 4.13", probe::kcmp_epoll),
    extra("timens", "monotonic clocks jump at restore (CONFIG_TIME_NS)", || fs::metadata("/proc/self/ns/time").is_ok()),
    extra("external_net_ns", "network namespaces from outside cannot be joined", probe::namespace_owner),
    need("clone3_set_tid", "pids cannot be chosen: Linux 5.5", probe::clone3_set_tid),
    extra("newifindex", "network links cannot get their index back: Linux 3.7", probe::net_namespace_ids),
    extra("nftables", "nftables rules cannot be saved (CONFIG_NF_TABLES)", probe::nf_tables),
    extra("has_ipt_legacy", "no legacy iptables tables here; nftables will be used", || fs::metadata("/proc/net/ip_tables_names").is_ok()),
    need("pidfd_store", "pidfd_getfd(2) is needed: Linux 5.6", probe::pidfd_getfd),
    need("ns_pid", "pids inside namespaces cannot be told: Linux 4.1", || status_has("NSpid:")),
    extra("apparmor_stacking", "AppArmor namespaces cannot be restored", || fs::read_to_string("/sys/kernel/security/apparmor/features/domain/stack").is_ok_and(|t| t.trim() == "yes")),
    extra("network_lock_nftables", "TCP connections cannot be held by nftables (CONFIG_NF_TABLES)", probe::nf_tables),
    extra("sockopt_buf_lock", "locked socket buffer sizes are not kept: Linux 5.14", probe::sockopt_buf_lock),
    extra("memfd_hugetlb", "memfds of huge pages cannot be restored (CONFIG_HUGETLBFS)", probe::memfd_hugetlb),
    extra("move_mount_set_group", "shared mounts are rebuilt the old way: Linux 5.15, and CAP_SYS_ADMIN", probe::move_mount_set_group),
    need("openat2", "openat2(2) is needed: Linux 5.6", probe::openat2),
    extra("get_rseq_conf", "programs with restartable sequences cannot be saved: Linux 5.13", || probe::checkpoint_restore() && probe::rseq()),
    extra("ipv6_freebind", "IPv6 addresses that are not up yet cannot be bound: Linux 4.18", probe::ipv6_freebind),
    extra("pagemap_scan", "page tables are read the slow way: Linux 6.7", || probe::pagemap_scan(false)),
    extra("timer_cr_ids", "POSIX timers get their ids back by counting up: Linux 6.15", probe::timer_create_restore_ids),
    extra("overlayfs_maps", "overlayfs is not there", || knows_fs("overlay")),
    extra("breakpoints", "hardware breakpoints cannot be used here; crust does without", probe::breakpoints),
    extra("pagemap_scan_guard_pages", "guard regions cannot be told from empty memory: Linux 6.15", || probe::pagemap_scan(true)),
];

impl Row {
    fn answer(&self) -> Feature {
        Feature { name: self.name, present: (self.ask)(), required: self.required, help: self.help }
    }
}

/// All rows, asked now.
pub(crate) fn all() -> Vec<Feature> {
    ROWS.iter().map(Row::answer).collect()
}

/// The row of one name, asked now.
pub(crate) fn one(name: &str) -> Option<Feature> {
    ROWS.iter().find(|row| row.name == name).map(Row::answer)
}

fn status_has(field: &str) -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|t| t.lines().any(|l| l.starts_with(field)))
}

fn knows_fs(name: &str) -> bool {
    fs::read_to_string("/proc/filesystems").is_ok_and(|t| t.split_whitespace().any(|w| w == name))
}

/// CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN, over the namespace that our pids live in.
fn can_choose_pids() -> bool {
    let caps = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = caps.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("CapEff:")?.trim(), 16).ok());
    effective.is_some_and(|caps| caps & (1 << 40 | 1 << 21) != 0)
}

fn seccomp() -> bool {
    probe::checkpoint_restore() && status_has("Seccomp:")
}

fn fdinfo_has(file: &std::io::Result<fs::File>, field: &str) -> bool {
    let Ok(file) = file else { return false };
    fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))
        .is_ok_and(|t| t.lines().any(|l| l.starts_with(field)))
}

fn timerfd_fdinfo() -> bool {
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
    let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC);
    fd.is_ok_and(|fd| fdinfo_has(&Ok(fd.into()), "clockid:"))
}

fn lock_fdinfo() -> bool {
    use rustix::fs::{FlockOperation, MemfdFlags, flock, memfd_create};
    let Ok(fd) = memfd_create("probe", MemfdFlags::CLOEXEC) else { return false };
    flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok() && fdinfo_has(&Ok(fd.into()), "lock:")
}

/// Written pages are marked: bit 55 of a fresh page, or the newer scan that can do the same without marks.
fn soft_dirty() -> bool {
    use std::os::unix::fs::FileExt;
    let page = vec![1u8; 4096];
    let written = fs::File::open("/proc/self/pagemap").and_then(|pagemap| {
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, (page.as_ptr() as u64 / 4096) * 8)?;
        Ok(u64::from_ne_bytes(entry) & (1 << 55) != 0)
    });
    // The mark is set from birth, so its presence shows only that it exists, which is what is asked.
    written.unwrap_or(false)
        || (probe::pagemap_scan(false) && probe::userfaultfd_features().is_some_and(|f| f & (1 << 15) != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRIU 4.2's names for `check --feature`.
    const CRIU: &str = "mnt_id mem_dirty_track aio_remap timerfd tun tun_ns userns fdinfo_lock seccomp_suspend \
        seccomp_filters loginuid cgroupns autofs tcp_half_closed compat_cr uffd uffd-noncoop can_map_vdso sk_ns \
        sk_unix_file net_diag_raw nsid link_nsid kcmp_epoll timens external_net_ns clone3_set_tid newifindex nftables \
        has_ipt_legacy pidfd_store ns_pid apparmor_stacking network_lock_nftables sockopt_buf_lock memfd_hugetlb \
        move_mount_set_group openat2 get_rseq_conf ipv6_freebind pagemap_scan timer_cr_ids overlayfs_maps breakpoints \
        pagemap_scan_guard_pages";

    #[test]
    fn all_names_of_criu_are_known_and_none_twice() {
        let mut names: Vec<&str> = ROWS.iter().map(|r| r.name).collect();
        for name in CRIU.split_whitespace() {
            assert!(names.contains(&name), "{name}");
        }
        assert_eq!(CRIU.split_whitespace().count(), 45);
        names.sort_unstable();
        assert!(names.windows(2).all(|w| w[0] != w[1]));
    }

    #[test]
    fn what_the_rest_of_the_engine_relies_on_is_found_here() {
        for name in ["mnt_id", "timerfd", "clone3_set_tid", "pidfd_store", "ns_pid", "openat2", "fdinfo_lock"] {
            assert!(one(name).is_some_and(|f| f.present), "{name}");
        }
        assert!(one("no_such_feature").is_none());
    }
}

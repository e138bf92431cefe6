//! Four different user ids, four group ids, supplementary groups.
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::os::unix::fs::PermissionsExt;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::set_permissions(".", std::fs::Permissions::from_mode(0o777)));
    let (uid, gid) = (Uid::from_raw, Gid::from_raw);
    let set = set_thread_groups(&[gid(5), gid(70000), gid(7)])
        .and_then(|()| set_thread_res_gid(gid(1000), gid(1001), gid(1002)))
        .and_then(|()| set_thread_res_uid(uid(2000), uid(2001), uid(2002)));
    zoo.get("set", set);
    let look = || zoo::proc::status(&["Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapInh", "CapBnd"]);
    let before = look();
    zoo.ok("set", before[0].contains("2000\t2001\t2002\t2001"));
    while zoo.gap() {
        zoo.eq("ids", look(), before.clone());
    }
}

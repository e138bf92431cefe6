//! An ordinary user's process with two threads and a child.
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::os::unix::fs::PermissionsExt;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::set_permissions(".", std::fs::Permissions::from_mode(0o777)));
    let (uid, gid) = (Uid::from_raw(4321), Gid::from_raw(4322));
    let set = set_thread_groups(&[gid])
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid));
    zoo.get("set", set);
    let look = || zoo::proc::status(&["Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapInh", "CapBnd"]);
    let before = look();
    let (for_thread, for_child) = (before.clone(), before.clone());
    zoo.fork("child", |mut zoo| {
        while zoo.gap() {
            zoo.eq("ids of the child", look(), for_child.clone());
        }
    });
    zoo.thread("second", move |seat| {
        while seat.gap() {
            seat.eq("ids", look(), for_thread.clone());
        }
    });
    zoo.ok("set", before[0].contains("4321\t4321\t4321\t4321"));
    while zoo.gap() {
        zoo.eq("ids", look(), before.clone());
        let created = std::fs::write("made", "");
        zoo.get("it can still write its own files", created);
    }
}

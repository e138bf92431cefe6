//! An overlay whose upper layer is on a tmpfs of its own.
use rustix::mount::{MountFlags, mount};
use std::fs::create_dir;

/// Mounts it at `both`, over `t/lower` on that tmpfs, after `fill` made what the lower layer has.
pub fn make(zoo: &mut crate::Zoo, fill: impl FnOnce()) {
    make_over(zoo, "t/lower", fill);
}

/// As [`make`], over any directory.
pub fn make_over(zoo: &mut crate::Zoo, lower: &str, fill: impl FnOnce()) {
    crate::must(create_dir("t"));
    zoo.get("tmpfs", mount("none", "t", "tmpfs", MountFlags::empty(), None));
    ["t/lower", "t/upper", "t/work", "both"].iter().for_each(|dir| crate::must(create_dir(dir)));
    fill();
    let options =
        std::ffi::CString::new(format!("lowerdir={lower},upperdir=t/upper,workdir=t/work")).unwrap_or_default();
    if let Err(e) = mount("none", "both", "overlay", MountFlags::empty(), options.as_c_str()) {
        zoo.skip(&format!("no overlay can be mounted: {e}"));
    }
}

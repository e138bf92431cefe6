//! The image directory on a full, read-only or inode-less filesystem: a clean error, and nothing of an earlier checkpoint lost.
//! Needs a mount namespace of its own; without the privilege for one these tests say so and do nothing.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test speaks on its terminal")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, helpers outside of #[test] functions too")]
use crust_engine::images::{Partial, Source};
use crust_engine::{Kind, Result};
use crust_image::ImageKind;
use crust_image::proto::{InventoryEntry, PstreeEntry};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount};
use rustix::thread::UnshareFlags;
use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

/// A small tmpfs that only this thread sees.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None` without the privilege to make one.
    fn new(name: &str, options: &str) -> Option<Self> {
        // A mount namespace belongs to one thread; each test has its own.
        #[allow(deprecated, reason = "the unsafe replacement is about CLONE_FILES, which is not asked for here")]
        let unshared = rustix::thread::unshare(UnshareFlags::NEWNS);
        if let Err(e) = unshared {
            println!("skipped: no mount namespace: {e}");
            return None;
        }
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let path = std::env::temp_dir().join(format!("crust-full-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        mount("none", &path, "tmpfs", MountFlags::empty(), Some(&*CString::new(options).unwrap())).unwrap();
        Some(Self(path))
    }

    fn fd(&self) -> OwnedFd {
        openat(CWD, &self.0, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn set(&self, options: &str) {
        mount_remount(&self.0, MountFlags::empty(), &*CString::new(options).unwrap()).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
        std::fs::remove_dir(&self.0).unwrap();
    }
}

/// About 100 KiB in 13 files.
fn dump(dir: &OwnedFd, pid: u32) -> Result<()> {
    let partial = Partial::create(dir.as_fd())?;
    partial.put_all(ImageKind::Pstree, 0, &[PstreeEntry { pid, ..Default::default() }])?;
    for n in 0..8 {
        partial.put(&format!("core-{n}.img"), &[pid as u8; 5000])?;
    }
    let mut pages = partial.create_sized("pages-1.img", 32 << 10)?;
    let written = pages.write_all(&[pid as u8; 32 << 10]);
    written.map_err(|e| crust_engine::Error::kernel("pages", rustix::io::Errno::from_io_error(&e).unwrap()))?;
    partial.put("pages-2.img", &[pid as u8; 20 << 10])?;
    let inventory = InventoryEntry { img_version: 2, fdinfo_per_id: Some(true), ..Default::default() };
    partial.put_one(ImageKind::Inventory, 0, &inventory)?;
    partial.commit(true)?.hash_rest(true)?;
    Ok(())
}

fn pid_in(fs: &Tmpfs) -> u32 {
    let source = Source::open(fs.fd().as_fd()).unwrap();
    let verified = crust_image::tools::verify(&source).unwrap();
    let manifest: Vec<&String> = verified.problems.iter().filter(|p| p.contains("written")).collect();
    assert!(manifest.is_empty(), "{manifest:?}");
    source.read_all::<PstreeEntry>(ImageKind::Pstree, 0).unwrap()[0].pid
}

#[test]
fn a_full_disk_at_every_write() {
    let Some(fs) = Tmpfs::new("space", "size=8k") else { return };
    let (mut refused, mut done, mut last) = (0, 0, 0);
    for kib in (4..300).step_by(4) {
        fs.set(&format!("size={kib}k"));
        let before = fs.names();
        match dump(&fs.fd(), kib) {
            Ok(()) => {
                (done, last) = (done + 1, kib);
                assert_eq!(pid_in(&fs), kib);
            }
            Err(e) => {
                refused += 1;
                assert_eq!(e.kind(), Kind::NoSpace, "{kib} KiB: {e}");
                assert_eq!(fs.names(), before, "{kib} KiB: nothing may stay behind");
            }
        }
    }
    // The first whole dump fits at about 130 KiB; each later one needs as much room beside it.
    assert!(refused > 50 && done > 5, "{refused} refused, {done} done");

    // With a whole checkpoint there, a refused one changes nothing.
    let before = fs.names();
    fs.set("size=160k");
    assert_eq!(dump(&fs.fd(), 1).unwrap_err().kind(), Kind::NoSpace);
    assert_eq!(fs.names(), before);
    assert_eq!(pid_in(&fs), last);
}

#[test]
fn no_inodes_at_every_file() {
    let Some(fs) = Tmpfs::new("inodes", "size=4m,nr_inodes=2") else { return };
    let mut refused = 0;
    for inodes in 1..40 {
        fs.set(&format!("nr_inodes={inodes}"));
        let before = fs.names();
        match dump(&fs.fd(), inodes) {
            Ok(()) => assert_eq!(pid_in(&fs), inodes),
            Err(e) => {
                refused += 1;
                assert_eq!(e.kind(), Kind::NoSpace, "{inodes} inodes: {e}");
                assert_eq!(fs.names(), before);
            }
        }
    }
    assert!((10..38).contains(&refused), "{refused}");
}

#[test]
fn the_space_is_asked_for_before() {
    let Some(fs) = Tmpfs::new("ask", "size=1m") else { return };
    let partial = Partial::create(fs.fd().as_fd()).unwrap();
    partial.check_space(900 << 10).unwrap();
    let e = partial.check_space(5 << 20).unwrap_err();
    assert_eq!(e.kind(), Kind::NoSpace);
    assert!(e.headline().starts_with("the images need about 5 MiB"), "{e}");
    let e = partial.create_sized("pages-1.img", 5 << 20).unwrap_err();
    assert_eq!(e.kind(), Kind::NoSpace, "{e}");
}

#[test]
fn a_read_only_filesystem() {
    let Some(fs) = Tmpfs::new("readonly", "size=1m") else { return };
    let partial = Partial::create(fs.fd().as_fd()).unwrap();
    partial.put("core-1.img", b"x").unwrap();
    mount_remount(&fs.0, MountFlags::RDONLY, c"").unwrap();
    let e = partial.put("core-2.img", b"x").unwrap_err();
    assert!(e.advice().contains("read-only"), "{e}");
    let e = Partial::create(fs.fd().as_fd()).unwrap_err();
    assert!(e.advice().contains("read-only"), "{e}");
    mount_remount(&fs.0, MountFlags::empty(), c"").unwrap();
    drop(partial);
    assert!(fs.names().is_empty());
}

//! The image directory: whole or not at all, whatever the disk does and whoever is killed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, helpers outside of #[test] functions too")]
use crust_engine::images::{Partial, Source};
use crust_engine::{Kind, Object, Result};
use crust_image::ImageKind;
use crust_image::manifest::{MANIFEST_NAME, Manifest};
use crust_image::proto::{InventoryEntry, PstreeEntry};
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A directory that goes away with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("crust-images-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
    fn fd(&self) -> OwnedFd {
        open(&self.0)
    }
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn open(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn inventory() -> InventoryEntry {
    InventoryEntry { img_version: 2, fdinfo_per_id: Some(true), ..Default::default() }
}

fn dump(dir: &OwnedFd, pid: u32) -> Result<Manifest> {
    let partial = Partial::create(dir.as_fd())?;
    partial.put_one(ImageKind::Inventory, 0, &inventory())?;
    partial.put_all(ImageKind::Pstree, 0, &[PstreeEntry { pid, ..Default::default() }])?;
    partial.put("core-1.img", &pid.to_le_bytes())?;
    let mut pages = partial.create_sized("pages-1.img", 2 << 20)?;
    pages.write_all(&vec![pid as u8; 2 << 20]).unwrap();
    partial.commit(true)?.hash_rest(true)
}

#[test]
fn appears_whole_and_replaces_only_images() {
    let dir = Dir::new("whole");
    let fd = dir.fd();
    for foreign in ["descriptors.json", "dump.log", "stats-dump", "notes.img"] {
        fs::write(dir.0.join(foreign), foreign).unwrap();
    }
    std::os::unix::fs::symlink("../elsewhere", dir.0.join("parent")).unwrap();
    // An earlier checkpoint of CRIU's, with more files.
    for stale in ["inventory.img", "core-1.img", "core-2.img", "ids-2.img", "pages-7.img"] {
        fs::write(dir.0.join(stale), stale).unwrap();
    }
    let manifest = dump(&fd, 77).unwrap();
    let foreign = ["descriptors.json", "dump.log", "notes.img", "parent", "stats-dump"];
    let ours = ["core-1.img", "crust-manifest", "inventory.img", "pages-1.img", "pstree.img"];
    let mut all: Vec<&str> = foreign.iter().chain(&ours).copied().collect();
    all.sort_unstable();
    assert_eq!(dir.names(), all);
    for name in ["descriptors.json", "dump.log", "stats-dump", "notes.img"] {
        assert_eq!(fs::read_to_string(dir.0.join(name)).unwrap(), name);
    }
    assert_eq!(manifest.files.len(), 4);
    assert!(manifest.files.iter().all(|f| f.hash.is_some()), "{manifest:?}");

    let source = Source::open(fd.as_fd()).unwrap();
    let stored = source.manifest().unwrap();
    assert_eq!(stored.id(), manifest.id());
    assert_eq!(stored.to_bytes(), manifest.to_bytes());
    assert_eq!(source.read_one::<InventoryEntry>(ImageKind::Inventory, 0).unwrap(), inventory());
    assert_eq!(source.read_all::<PstreeEntry>(ImageKind::Pstree, 0).unwrap()[0].pid, 77);
    assert!(source.read_all::<PstreeEntry>(ImageKind::Vmas, 3).unwrap().is_empty());
    assert!(source.read("core-2.img").unwrap().is_none());
    let e = source.read_one::<InventoryEntry>(ImageKind::Mm, 5).unwrap_err();
    assert_eq!(e.headline(), "image mm-5.img: the image is missing");
}

#[test]
fn a_dropped_or_killed_dump_leaves_the_old_checkpoint() {
    let dir = Dir::new("dropped");
    let fd = dir.fd();
    dump(&fd, 1).unwrap();
    let before = dir.names();
    let partial = Partial::create(fd.as_fd()).unwrap();
    partial.put("core-1.img", b"new").unwrap();
    assert_eq!(dir.names().len(), before.len() + 1);
    drop(partial);
    assert_eq!(dir.names(), before);
    assert_eq!(fs::read(dir.0.join("core-1.img")).unwrap(), 1_u32.to_le_bytes());

    // What a killed dump leaves has no lock; a living one's has.
    fs::create_dir(dir.0.join(".crust-partial-1-0")).unwrap();
    fs::write(dir.0.join(".crust-partial-1-0/pages-1.img"), "half").unwrap();
    let alive = Partial::create(fd.as_fd()).unwrap();
    alive.put("core-9.img", b"9").unwrap();
    assert_eq!(dir.names().iter().filter(|n| n.starts_with(".crust")).count(), 1);
    dump(&fd, 2).unwrap();
    assert_eq!(dir.names().iter().filter(|n| n.starts_with(".crust")).count(), 1, "the living dump is untouched");
    drop(alive);
    assert_eq!(dir.names(), before);
}

#[test]
fn unfinished_and_torn_directories_are_refused() {
    let dir = Dir::new("torn");
    let fd = dir.fd();
    let e = Source::open(fd.as_fd()).unwrap_err();
    assert_eq!(e.headline(), "image inventory.img: no checkpoint is in this directory");
    let partial = Partial::create(fd.as_fd()).unwrap();
    let e = Source::open(fd.as_fd()).unwrap_err();
    assert!(e.headline().contains("not finished"), "{e}");
    drop(partial);

    dump(&fd, 3).unwrap();
    let pages = fs::OpenOptions::new().write(true).open(dir.0.join("pages-1.img")).unwrap();
    pages.set_len(4096).unwrap();
    let e = Source::open(fd.as_fd()).unwrap_err();
    assert!(e.headline().contains("4096 bytes, and 2097152 were written"), "{e}");
    pages.set_len(2 << 20).unwrap();
    Source::open(fd.as_fd()).unwrap();
    fs::remove_file(dir.0.join("core-1.img")).unwrap();
    let e = Source::open(fd.as_fd()).unwrap_err();
    assert_eq!(e.headline(), "image core-1.img: the image is missing");
    // CRIU's directories have no manifest and are taken as they are.
    fs::remove_file(dir.0.join(MANIFEST_NAME)).unwrap();
    assert!(Source::open(fd.as_fd()).unwrap().manifest().is_none());
}

#[test]
fn no_name_leads_out_of_the_directory() {
    let dir = Dir::new("escape");
    let fd = dir.fd();
    dump(&fd, 4).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", dir.0.join("mm-1.img")).unwrap();
    rustix::fs::mkfifoat(CWD, dir.0.join("mm-2.img"), Mode::RUSR | Mode::WUSR).unwrap();
    let source = Source::open(fd.as_fd()).unwrap();
    for (name, said) in [
        ("../x", "is not the name"),
        ("/etc/hostname", "is not the name"),
        ("", "is not the name"),
        ("..", "is not the name"),
        ("mm-1.img", "a symbolic link"),
        ("mm-2.img", "not a regular file"),
    ] {
        let e = source.read(name).unwrap_err().headline();
        assert!(e.contains(said), "{name}: {e}");
    }
    let partial = Partial::create(fd.as_fd()).unwrap();
    assert!(partial.put("../core-1.img", b"").is_err());
}

#[test]
fn parents_are_linked_and_checked() {
    let dir = Dir::new("parents");
    for name in ["one", "two", "other"] {
        fs::create_dir(dir.0.join(name)).unwrap();
    }
    dump(&open(&dir.0.join("one")), 1).unwrap();
    dump(&open(&dir.0.join("other")), 9).unwrap();
    let two = open(&dir.0.join("two"));
    let partial = Partial::create(two.as_fd()).unwrap();
    assert!(partial.set_parent(Path::new("../nowhere")).is_err());
    partial.set_parent(Path::new("../one")).unwrap();
    partial.put_one(ImageKind::Inventory, 0, &inventory()).unwrap();
    partial.commit(false).unwrap();
    let parent = Source::open(two.as_fd()).unwrap().parent().unwrap().unwrap();
    assert_eq!(parent.read_all::<PstreeEntry>(ImageKind::Pstree, 0).unwrap()[0].pid, 1);
    assert!(parent.parent().unwrap().is_none());
    fs::remove_file(dir.0.join("two/parent")).unwrap();
    std::os::unix::fs::symlink("../other", dir.0.join("two/parent")).unwrap();
    let e = Source::open(two.as_fd()).unwrap().parent().unwrap_err();
    assert!(e.headline().contains("this one was made on"), "{e}");
    fs::remove_file(dir.0.join("two/parent")).unwrap();
    std::os::unix::fs::symlink("../gone", dir.0.join("two/parent")).unwrap();
    let e = Source::open(two.as_fd()).unwrap().parent().unwrap_err();
    assert_eq!((e.kind(), e.object()), (Kind::BadImage, Some(&Object::Image("parent".to_owned()))));
}

#[test]
fn a_page_server_adds_files_without_a_checkpoint() {
    let dir = Dir::new("pageserver");
    let fd = dir.fd();
    dump(&fd, 5).unwrap();
    let partial = Partial::create(fd.as_fd()).unwrap();
    partial.put("pages-2.img", &[0; 4096]).unwrap();
    partial.commit(true).unwrap();
    assert_eq!(Source::open(fd.as_fd()).unwrap().names().unwrap().len(), 6);
}

#[test]
fn a_vanished_directory_is_an_error() {
    let dir = Dir::new("vanished");
    let inner = dir.0.join("inner");
    fs::create_dir(&inner).unwrap();
    let fd = open(&inner);
    fs::remove_dir(&inner).unwrap();
    let e = Partial::create(fd.as_fd()).unwrap_err();
    assert!(e.advice().contains("removed meanwhile"), "{e}");

    fs::create_dir(&inner).unwrap();
    let partial = Partial::create(open(&inner).as_fd()).unwrap();
    partial.put("core-1.img", b"x").unwrap();
    fs::remove_dir_all(&inner).unwrap();
    assert!(partial.put("core-2.img", b"x").is_err());
    assert!(partial.commit(true).is_err());
}

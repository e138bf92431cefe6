//! Files that have not come to their place yet: a hidden subdirectory beside them, and the renames that reveal it.
use super::{
    MANIFEST_UNDER_WAY, PARENT_LINK, PARTIAL_PREFIX, cannot_write, failed, image, in_memory, names, reopen, sync_file,
};
use crate::{Error, Kind, Result, fault};
use crust_image::ImageKind;
use crust_image::manifest::{FileLine, MANIFEST_NAME, Manifest, TEXT_NAME};
use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// A hidden subdirectory with files that have not come to their place yet. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Aside {
    pub(super) dir: OwnedFd,
    /// The subdirectory, and the lock that says we live.
    pub(super) handle: OwnedFd,
    name: String,
}

impl Aside {
    pub(super) fn create(dir: BorrowedFd<'_>) -> Result<Self> {
        let dir = reopen(dir)?;
        remove_leftovers(&dir);
        let pid = std::process::id();
        for n in 0..1000 {
            let aside_name = format!("{PARTIAL_PREFIX}{pid}-{n}");
            match fault::io().and_then(|()| fs::mkdirat(&dir, &aside_name, Mode::RWXU)) {
                Ok(()) => {}
                Err(Errno::EXIST) => continue,
                Err(e) => return Err(cannot_write("cannot begin a dump in the image directory", e)),
            }
            let opened =
                fs::openat(&dir, &aside_name, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
            let aside = match opened {
                Ok(aside) => aside,
                // Another dump may have taken it for a leftover in the instant before the lock.
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(cannot_write("cannot open the directory of the unfinished dump", e)),
            };
            match fs::flock(&aside, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => continue,
                // Without locks leftovers cannot be told from live dumps; they are left alone then.
                Err(e) => log::debug!("the image directory's filesystem has no locks: {e}"),
            }
            if fs::statat(&dir, &aside_name, AtFlags::SYMLINK_NOFOLLOW).is_err() {
                continue;
            }
            return Ok(Self { dir, handle: aside, name: aside_name });
        }
        Err(Error::new(Kind::Internal, format!("1000 unfinished dumps named {PARTIAL_PREFIX}{pid}-* exist already")))
    }

    pub(super) fn with_file<T>(&self, name: &str, work: impl FnOnce(&File) -> std::io::Result<T>) -> Result<T> {
        let fd = fs::openat(&self.handle, name, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
            .map_err(|e| cannot_write("the written file cannot be opened again", e).on(image(name)))?;
        work(&File::from(fd)).map_err(|e| failed(&e, name))
    }

    /// Brings `names`, which lie aside with a manifest or without, to their places as a whole checkpoint.
    pub(super) fn reveal_all(self, names: Vec<String>, sync: bool) -> Result<()> {
        let sync = sync && !in_memory(&self.dir);
        if sync {
            fs::syncfs(&self.handle).map_err(|e| cannot_write("the images cannot be made durable", e))?;
        }
        let has_manifest = names.iter().any(|name| name == MANIFEST_NAME);
        let files = names.into_iter().filter(|name| name != MANIFEST_NAME);
        let files = files.map(|name| FileLine { name, len_bytes: 0, hash: None }).collect();
        self.reveal(&Manifest { files, ..Manifest::default() }, true, has_manifest, None, sync)
    }

    /// Puts everything in its place, or leaves all as it was.
    pub(super) fn reveal(
        self,
        m: &Manifest,
        whole: bool,
        has_manifest: bool,
        parent: Option<&Path>,
        sync: bool,
    ) -> Result<()> {
        let mut moves = Moves { dir: &self.dir, aside: &self.handle, done: Vec::new() };
        self.rename_all(&mut moves, m, whole, has_manifest, parent, sync).map_err(|e| {
            let undone = moves.undo();
            let half = "the image directory holds no checkpoint now: the dump's images lie in it in part";
            if undone || !whole { e } else { e.state(half) }
        })
    }

    fn rename_all(
        &self,
        moves: &mut Moves<'_>,
        manifest: &Manifest,
        whole: bool,
        has_manifest: bool,
        parent: Option<&Path>,
        sync: bool,
    ) -> Result<()> {
        let inventory = ImageKind::Inventory.file_name(0);
        let sync_dir = || {
            let done = if sync { sync_file(self.dir.as_fd()) } else { Ok(()) };
            done.map_err(|e| cannot_write("the image directory cannot be made durable", e))
        };
        let mut present: HashSet<String> = names(&self.dir)?.into_iter().collect();
        if whole {
            for name in [inventory.as_str(), MANIFEST_NAME, TEXT_NAME] {
                if present.remove(name) {
                    moves.take_away(name)?;
                }
            }
            sync_dir()?;
            for stale in stale_images(&present, manifest) {
                moves.take_away(stale)?;
            }
        }
        if let Some(path) = parent {
            self.link_parent(path)?;
        }
        for file in manifest.files.iter().filter(|f| f.name != inventory) {
            if present.contains(&file.name) {
                moves.take_away(&file.name)?;
            }
            moves.put_in_place(&file.name)?;
        }
        if has_manifest {
            moves.put_in_place(MANIFEST_NAME)?;
        }
        if whole {
            sync_dir()?;
            moves.put_in_place(&inventory)?;
        }
        sync_dir()
    }

    fn link_parent(&self, path: &Path) -> Result<()> {
        match fs::readlinkat(&self.dir, PARENT_LINK, Vec::new()) {
            Ok(now) if now.as_bytes() == path.as_os_str().as_encoded_bytes() => return Ok(()),
            // A link that somebody else placed is theirs (podman points it where the images will be moved to).
            Ok(now) => {
                log::info!("the link {PARENT_LINK} leads to {now:?} already; it stays");
                return Ok(());
            }
            Err(Errno::NOENT) => {}
            Err(e) => return Err(cannot_write("cannot be made a link", e).on(image(PARENT_LINK))),
        }
        fs::symlinkat(path, &self.dir, PARENT_LINK)
            .map_err(|e| cannot_write("cannot be made a link", e).on(image(PARENT_LINK)))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        remove_partial(&self.dir, &self.handle, &self.name);
    }
}

/// What was renamed so far to make a dump visible, so that it can be taken back.
struct Moves<'a> {
    dir: &'a OwnedFd,
    aside: &'a OwnedFd,
    /// Names, and whether the file came into the image directory (else it went from there).
    done: Vec<(String, bool)>,
}

impl Moves<'_> {
    /// Name of an earlier checkpoint's file while it lies aside.
    fn old(name: &str) -> String {
        format!("old {name}")
    }

    fn take_away(&mut self, name: &str) -> Result<()> {
        fault::io()
            .and_then(|()| fs::renameat(self.dir, name, self.aside, Self::old(name)))
            .map_err(|e| cannot_write("the earlier checkpoint cannot be replaced", e).on(image(name)))?;
        self.done.push((name.to_owned(), false));
        Ok(())
    }

    fn put_in_place(&mut self, name: &str) -> Result<()> {
        fault::io()
            .and_then(|()| fs::renameat(self.aside, name, self.dir, name))
            .map_err(|e| cannot_write("the finished image cannot be put in place", e).on(image(name)))?;
        self.done.push((name.to_owned(), true));
        Ok(())
    }

    /// Back to the earlier state, last step first. True if that went well.
    fn undo(self) -> bool {
        let mut well = true;
        for (name, came) in self.done.iter().rev() {
            let undone = if *came {
                fs::renameat(self.dir, name, self.aside, name)
            } else {
                fs::renameat(self.aside, Self::old(name), self.dir, name)
            };
            if let Err(e) = undone {
                log::error!("{name}: the earlier state of the image directory cannot be brought back: {e}");
                well = false;
            }
        }
        well
    }
}

/// Images of an earlier checkpoint that this one does not have.
fn stale_images<'a>(present: &'a HashSet<String>, manifest: &Manifest) -> Vec<&'a str> {
    let ours: HashSet<&str> = manifest.files.iter().map(|f| f.name.as_str()).collect();
    let is_image = |name: &str| ImageKind::of_file_name(name).is_some_and(|(kind, _)| !kind.is_service());
    present.iter().map(String::as_str).filter(|name| is_image(name) && !ours.contains(name)).collect()
}

/// Removes the directories of dumps that were killed: those whose lock nobody holds.
fn remove_leftovers(dir: &OwnedFd) {
    let Ok(found) = names(dir) else { return };
    if found.iter().any(|name| name == MANIFEST_UNDER_WAY)
        && let Err(e) = fs::unlinkat(dir, MANIFEST_UNDER_WAY, AtFlags::empty())
    {
        log::warn!("{MANIFEST_UNDER_WAY} cannot be removed: {e}");
    }
    for name in found.iter().filter(|name| name.starts_with(PARTIAL_PREFIX)) {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(aside) = fs::openat(dir, name, flags, Mode::empty()) else { continue };
        match fs::flock(&aside, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                log::info!("removing {name}, left by a dump that was killed");
                remove_partial(dir, &aside, name);
            }
            Err(Errno::WOULDBLOCK) => log::debug!("{name} belongs to a dump that is running"),
            Err(e) => log::warn!("{name} may be left by a killed dump, but its lock cannot be asked: {e}"),
        }
    }
}

pub(crate) fn remove_partial(dir: &OwnedFd, aside: &OwnedFd, aside_name: &str) {
    for name in names(aside).unwrap_or_default() {
        if let Err(e) = fs::unlinkat(aside, &name, AtFlags::empty()) {
            log::warn!("{aside_name}/{name} cannot be removed: {e}");
        }
    }
    if let Err(e) = fs::unlinkat(dir, aside_name, AtFlags::REMOVEDIR) {
        log::warn!("{aside_name} cannot be removed: {e}");
    }
}

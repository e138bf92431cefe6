//! The images of a dump that are in their place: they can still be taken away again, and are hashed to the end.
use super::hashing::hash_of;
use super::stream::Stream;
use super::{MANIFEST_UNDER_WAY, cannot_write, failed, image, in_memory, open_in, sync_file, write_all};
use crate::{Error, Result, fault};
use crust_image::ImageKind;
use crust_image::manifest::{MANIFEST_NAME, Manifest};
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

#[derive(Debug)]
pub(super) enum Place {
    Directory(OwnedFd),
    Stream(Stream),
}

/// A dump whose images are visible.
#[derive(Debug)]
pub struct Committed {
    pub(super) place: Place,
    pub(super) manifest: Manifest,
    pub(super) has_manifest: bool,
}

impl Committed {
    /// Bytes of all images together.
    pub fn image_bytes(&self) -> u64 {
        self.manifest.files.iter().map(|f| f.len_bytes).sum()
    }

    /// What was written.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Takes the checkpoint away again: somebody refused it after it was made. The inventory goes first, so that nothing
    /// that is left could be taken for a good one.
    ///
    /// # Errors
    /// With the first file that cannot be removed.
    pub fn discard(self) -> Result<()> {
        let dir = match &self.place {
            Place::Directory(dir) => dir,
            Place::Stream(stream) => return stream.discard(),
        };
        let inventory = ImageKind::Inventory.file_name(0);
        let others = self.manifest.files.iter().map(|f| f.name.as_str()).filter(|n| *n != inventory);
        for name in [inventory.as_str(), MANIFEST_NAME].into_iter().chain(others) {
            match fs::unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(cannot_write("the refused checkpoint cannot be removed", e).on(image(name))),
            }
        }
        Ok(())
    }

    /// Hashes the files that are not hashed yet and completes the manifest. For after the tree runs again or is gone.
    /// `sync`: wait for the disk before the manifest is replaced.
    ///
    /// # Errors
    /// If a file cannot be read; the checkpoint stays good, only `verify` knows less.
    pub fn hash_rest(mut self, sync: bool) -> Result<Manifest> {
        let Place::Directory(dir) = &self.place else { return Ok(self.manifest) };
        let missing: Vec<usize> = (0..self.manifest.files.len())
            .filter(|&n| self.manifest.files.get(n).is_some_and(|f| f.hash.is_none()))
            .collect();
        if missing.is_empty() || !self.has_manifest {
            return Ok(self.manifest);
        }
        for n in missing {
            let Some(line) = self.manifest.files.get_mut(n) else { continue };
            let (file, _) = open_in(dir, &line.name)?
                .ok_or_else(|| Error::bad_image(&line.name, "the image vanished after it was written"))?;
            line.hash = Some(hash_of(&file, &line.name).map_err(|e| failed(&e, &line.name))?.into());
        }
        let temporary = MANIFEST_UNDER_WAY;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = fs::openat(dir, temporary, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| cannot_write("cannot complete the manifest", e).on(image(temporary)))?;
        let file = File::from(fd);
        let done = write_all(&file, &self.manifest.to_bytes()).and_then(|()| {
            // A power cut must not find the new name before the new bytes.
            if sync && !in_memory(dir) {
                sync_file(file.as_fd())?;
            }
            fault::io()?;
            fs::renameat(dir, temporary, dir, MANIFEST_NAME)
        });
        if let Err(e) = done {
            if let Err(e) = fs::unlinkat(dir, temporary, AtFlags::empty()) {
                log::warn!("{temporary} stays behind in the image directory: {e}");
            }
            return Err(cannot_write("cannot be completed", e).on(image(MANIFEST_NAME)));
        }
        Ok(self.manifest)
    }
}

//! A directory of images, wherever it is: what the tools read from. This crate makes no syscalls, so its users bring it.
use crate::manifest::{ContentHash, Hasher};
use crate::{ImageKind, Message, Result, read_all};
use std::collections::BTreeMap;

/// A set of image files.
pub trait ImageSet {
    /// Names of all files, images or not.
    ///
    /// # Errors
    /// If they cannot be listed.
    fn names(&self) -> Result<Vec<String>>;

    /// A whole file, `None` if there is none. Not for the bytes of pages.
    ///
    /// # Errors
    /// If it is there but cannot be read.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>>;

    /// Length of a file in bytes, `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be asked for.
    fn len_bytes(&self, name: &str) -> Result<Option<u64>>;

    /// Hash of a file's content as [`Hasher::for_file`] makes it, `None` if there is none. Files may be larger than memory.
    ///
    /// # Errors
    /// If it cannot be read.
    fn hash(&self, name: &str) -> Result<Option<ContentHash>>;
}

/// Images in memory.
impl ImageSet for BTreeMap<String, Vec<u8>> {
    fn names(&self) -> Result<Vec<String>> {
        Ok(self.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.get(name).cloned())
    }

    fn len_bytes(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.get(name).map(|bytes| bytes.len() as u64))
    }

    fn hash(&self, name: &str) -> Result<Option<ContentHash>> {
        Ok(self.get(name).map(|bytes| {
            let mut hasher = Hasher::for_file(name);
            hasher.update(bytes);
            hasher.finish()
        }))
    }
}

/// All records of an image without raw bytes between them; `None` if there is no such image.
pub(crate) fn records<T: Message + Default>(set: &dyn ImageSet, kind: ImageKind, id: u64) -> Result<Option<Vec<T>>> {
    let name = kind.file_name(id);
    set.read(&name)?.map(|bytes| read_all(&name, &bytes, kind)).transpose()
}

/// The first record of an image; `None` if there is no such image, or nothing in it.
pub(crate) fn record<T: Message + Default>(set: &dyn ImageSet, kind: ImageKind, id: u64) -> Result<Option<T>> {
    Ok(records(set, kind, id)?.and_then(|all| all.into_iter().next()))
}

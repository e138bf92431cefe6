//! Our own descriptors as /proc shows them. A copy of a task's descriptor (pidfd_getfd) has the same link and nearly the same
//! fdinfo as the original, and looking at our own side is several times cheaper: the numbers come back again and again, so
//! that their directory entries are warm and their fdinfo files can stay open.
#![allow(unsafe_code, reason = "fcntl's question for locks is in no safe wrapper")]
use crate::fdinfo::FdInfo;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// `/proc/self/fd` and `/proc/self/fdinfo`, held open by one thread.
#[derive(Debug)]
pub struct OwnFds {
    links: OwnedFd,
    infos: OwnedFd,
    /// fdinfo files by number: the kernel makes their text anew, for whatever has the number then, at each read from the start.
    open: HashMap<RawFd, OwnedFd>,
    most_open: usize,
}

impl OwnFds {
    /// Opens the directories. So many fdinfo files are kept open.
    ///
    /// # Errors
    /// As openat(2): without a /proc that knows this process.
    pub fn open(kept: usize) -> Result<Self> {
        let dir = |path| rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        Ok(Self {
            links: dir("/proc/self/fd")?,
            infos: dir("/proc/self/fdinfo")?,
            open: HashMap::new(),
            most_open: kept,
        })
    }

    /// The text of the link.
    ///
    /// # Errors
    /// As readlinkat(2).
    pub fn link(&self, fd: impl AsFd) -> Result<Vec<u8>> {
        let name = name_of(fd.as_fd().as_raw_fd());
        Ok(rustix::fs::readlinkat(&self.links, name.as_str(), Vec::with_capacity(128))?.into_bytes())
    }

    /// The fdinfo; `None` if it has an unknown form, or is longer than a page. Its flags are those of the open file; close-on-exec
    /// and POSIX locks are those of this process.
    ///
    /// # Errors
    /// As openat(2) and read(2).
    pub fn info(&mut self, fd: impl AsFd) -> Result<Option<FdInfo>> {
        let number = fd.as_fd().as_raw_fd();
        let mut text = [0u8; 4096];
        let read =
            |file: &OwnedFd, text: &mut [u8]| rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *text, 0));
        let n = match self.open.get(&number) {
            Some(file) => read(file, &mut text)?,
            None => {
                let file = rustix::fs::openat(
                    &self.infos,
                    name_of(number).as_str(),
                    OFlags::RDONLY | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                let n = read(&file, &mut text)?;
                if self.open.len() < self.most_open {
                    self.open.insert(number, file);
                }
                n
            }
        };
        let Some(text) = text.get(..n).filter(|t| t.len() < text.len()) else { return Ok(None) };
        Ok(FdInfo::parse(String::from_utf8_lossy(text).into_owned()))
    }
}

/// A number as text, without an allocation.
fn name_of(number: RawFd) -> Name {
    let mut name = Name { text: [0; 11], from: 11 };
    let mut left = number.unsigned_abs();
    loop {
        name.from -= 1;
        name.text[name.from] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            return name;
        }
    }
}

struct Name {
    text: [u8; 11],
    from: usize,
}

impl Name {
    fn as_str(&self) -> &str {
        std::str::from_utf8(self.text.get(self.from..).unwrap_or_default()).unwrap_or_default()
    }
}

/// True if anybody but us holds a POSIX lock or an OFD lock on any part of the file (F_GETLK). Takes nothing. Only for
/// filesystems that know their locks without asking a server.
///
/// # Errors
/// `EBADF` for an `O_PATH` descriptor.
pub fn is_locked(fd: impl AsFd) -> Result<bool> {
    let mut lock =
        libc::flock { l_type: libc::F_WRLCK as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    // SAFETY: the kernel reads and writes one `struct flock`; `lock` is that and lives over the call.
    let ret = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_GETLK, &raw mut lock) };
    if ret < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(lock.l_type != libc::F_UNLCK as i16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fd::{LockRange, lock_range};
    use std::io::{Seek, SeekFrom};

    #[test]
    fn a_number_used_again_shows_the_new_file() {
        let mut own = OwnFds::open(8).expect("own /proc");
        let mut file = std::fs::File::open("/proc/self/exe").expect("open");
        file.seek(SeekFrom::Start(77)).expect("seek");
        let number = 731;
        crate::fd::place(&file, number, true).expect("dup3");
        let seen = crate::fd::borrow_placed(number);
        let info = own.info(seen).expect("readable").expect("parses");
        assert_eq!((info.pos, info.cloexec), (77, true));
        let (r, _w) = rustix::pipe::pipe().expect("pipe");
        let ino = rustix::fs::fstat(&r).expect("fstat").st_ino;
        crate::fd::place(&r, number, false).expect("dup3");
        let info = own.info(seen).expect("readable").expect("parses");
        assert_eq!((info.pos, info.cloexec, info.ino), (0, false, ino));
        assert_eq!(own.link(seen).expect("link"), format!("pipe:[{ino}]").into_bytes());
        crate::fd::close_range(number as u32, number as u32).expect("close");
        assert!(own.info(seen).is_err() && own.link(seen).is_err());
    }

    #[test]
    fn names_are_numbers() {
        for number in [0, 7, 10, 4095, i32::MAX] {
            assert_eq!(name_of(number).as_str(), number.to_string());
        }
    }

    #[test]
    fn locks_of_others_show() {
        let name = format!("crust-locks-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let file = std::fs::File::create_new(&path).expect("create");
        let other = std::fs::File::open(&path).expect("open");
        std::fs::remove_file(&path).expect("unlink");
        assert_eq!(is_locked(&other), Ok(false));
        // A lock of the open file is nobody's process: it is another's for every asker.
        lock_range(&file, LockRange { write: true, start: 5, len: 3 }, true).expect("lock");
        assert_eq!((is_locked(&other), is_locked(&file)), (Ok(true), Ok(true)));
    }
}

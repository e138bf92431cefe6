//! Our own descriptors as /proc shows them. A copy of a task's descriptor (pidfd_getfd) has the same link and nearly the same
//! fdinfo as the original, and looking at our own side is several times cheaper: the numbers come back again and again, so
//! that their directory entries are warm and their fdinfo files can stay open.
#![allow(unsafe_code, reason = "fcntl's question for locks is in no safe wrapper")]
use crate::fdinfo::FdInfo;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// `/proc/self/fd` and `/proc/self/fdinfo`, held open by one thread.
#[derive(Debug)]
pub struct OwnFds {
    links: Directory,
    infos: Directory,
}

/// One of them, and files in it by number: the kernel makes their text anew, for whatever has the number then, at each reading.
#[derive(Debug)]
struct Directory {
    dir: OwnedFd,
    flags: OFlags,
    open: HashMap<RawFd, OwnedFd>,
    most_open: usize,
}

impl Directory {
    fn open(path: &str, flags: OFlags, most_open: usize) -> Result<Self> {
        let dir = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { dir, flags: flags | OFlags::CLOEXEC, open: HashMap::new(), most_open })
    }

    /// Does something with the file of a number.
    fn with<T>(&mut self, number: RawFd, work: impl FnOnce(&OwnedFd) -> Result<T>) -> Result<T> {
        if let Some(file) = self.open.get(&number) {
            return work(file);
        }
        let file = rustix::fs::openat(&self.dir, name_of(number).as_str(), self.flags, Mode::empty())?;
        let done = work(&file)?;
        if self.open.len() < self.most_open {
            self.open.insert(number, file);
        }
        Ok(done)
    }
}

impl OwnFds {
    /// Opens the directories. So many files are kept open in each.
    ///
    /// # Errors
    /// As openat(2): without a /proc that knows this process.
    pub fn open(kept: usize) -> Result<Self> {
        let links = Directory::open("/proc/self/fd", OFlags::PATH | OFlags::NOFOLLOW, kept)?;
        Ok(Self { links, infos: Directory::open("/proc/self/fdinfo", OFlags::RDONLY, kept)? })
    }

    /// The text of the link.
    ///
    /// # Errors
    /// As readlinkat(2).
    pub fn link(&mut self, fd: impl AsFd) -> Result<Vec<u8>> {
        let read = |link: &OwnedFd| rustix::fs::readlinkat(link, "", Vec::with_capacity(128));
        self.links.with(fd.as_fd().as_raw_fd(), read).map(CString::into_bytes)
    }

    /// The fdinfo; `None` if it has an unknown form. Its flags are those of the open file; close-on-exec and POSIX locks are
    /// those of this process.
    ///
    /// # Errors
    /// As openat(2) and read(2).
    pub fn info(&mut self, fd: impl AsFd) -> Result<Option<FdInfo>> {
        let text = self.infos.with(fd.as_fd().as_raw_fd(), read_text)?;
        Ok(FdInfo::parse(
            String::from_utf8(text).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()),
        ))
    }
}

/// All that an fdinfo file says now. The kernel writes it as one, keeps what there was no room for, and gives less than was
/// asked for only at the end.
fn read_text(file: &OwnedFd) -> Result<Vec<u8>> {
    let read =
        |room: &mut [u8], at: usize| rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *room, at as u64));
    let mut first = [0u8; 4096];
    let mut n = read(&mut first, 0)?;
    let mut text = first.get(..n).unwrap_or_default().to_vec();
    let mut asked = first.len();
    while n == asked {
        let end = text.len();
        asked = 1 << 16;
        text.resize(end + asked, 0);
        n = read(text.get_mut(end..).unwrap_or_default(), end)?;
        text.truncate(end + n);
    }
    Ok(text)
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
    fn a_long_text_is_whole() {
        use rustix::event::epoll;
        let mut own = OwnFds::open(8).expect("own /proc");
        let ep = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
        let (r, _w) = rustix::pipe::pipe().expect("pipe");
        // Above the numbers that other tests choose.
        let twins: Vec<OwnedFd> = (0..1500).map_while(|_| rustix::io::fcntl_dupfd_cloexec(&r, 800).ok()).collect();
        for (n, twin) in twins.iter().enumerate() {
            epoll::add(&ep, twin, epoll::EventData::new_u64(n as u64), epoll::EventFlags::IN).expect("add");
            // Also where the text ends with a page, or nearly.
            if n > 1490 || n % 40 < 2 {
                let info = own.info(&ep).expect("readable").expect("parses");
                assert_eq!(info.all("tfd").count(), n + 1);
                assert_eq!(info.lines().last().map(|line| line.contains("sdev:")), Some(true));
            }
        }
        assert!(twins.len() > 100);
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

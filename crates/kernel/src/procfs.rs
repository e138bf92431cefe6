//! /proc/PID as a directory descriptor, and the small text files in it. Parsers never panic, whatever the text.
use crate::HostTid;
use rustix::fs::{AtFlags, Mode, OFlags, RawDir};
use rustix::io::{Errno, Result};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// `/proc/PID` (or `/proc/PID/task/TID`), held open: it never turns into another process of the same number, unless
/// [`ProcDir::rest`] let go of it. When the task is gone every access says `ESRCH` or `ENOENT`.
#[derive(Debug)]
pub struct ProcDir {
    path: String,
    /// Absent while it rests.
    dir: Mutex<Option<Arc<OwnedFd>>>,
    id: HostTid,
    /// What [`ProcDir::read_kept`] read.
    kept: Mutex<Vec<Kept>>,
}

/// A file's name and content.
type Kept = (&'static str, Arc<[u8]>);

/// Most bytes that are read at once.
const PIECE: usize = 4096;

impl ProcDir {
    /// Opens `/proc/PID`.
    ///
    /// # Errors
    /// `ENOENT` if there is no such task in this proc mount.
    pub fn open(pid: HostTid) -> Result<Self> {
        Self::open_path(format!("/proc/{pid}"), pid)
    }

    /// Opens `/proc/self`. `pid` is our own id: inside a new pid namespace an old /proc knows us by another number.
    ///
    /// # Errors
    /// `ENOENT` without a mounted /proc.
    pub fn open_self(pid: HostTid) -> Result<Self> {
        Self::open_path("/proc/self".to_owned(), pid)
    }

    /// Opens `/proc/PID/task/TID`.
    ///
    /// # Errors
    /// `ENOENT` if there is no such thread.
    pub fn open_thread(pid: HostTid, tid: HostTid) -> Result<Self> {
        Self::open_path(format!("/proc/{pid}/task/{tid}"), tid)
    }

    fn open_path(path: String, id: HostTid) -> Result<Self> {
        let new = Self { path, dir: Mutex::default(), id, kept: Mutex::default() };
        new.dir()?;
        Ok(new)
    }

    /// The directory, opened again if it rests.
    fn dir(&self) -> Result<Arc<OwnedFd>> {
        let mut dir = self.dir.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &*dir {
            return Ok(open.clone());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = Arc::new(rustix::fs::open(&self.path, flags, Mode::empty())?);
        *dir = Some(open.clone());
        Ok(open)
    }

    /// Closes the directory until it is looked into again, so that a tree of thousands of tasks takes no thousands of
    /// descriptors. For a task whose number goes to nobody else meanwhile: a tracee of ours (not even its parent can wait
    /// for it), or a zombie whose parent is one.
    pub fn rest(&self) {
        *self.dir.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The task's id.
    pub fn id(&self) -> HostTid {
        self.id
    }

    /// Opens a file below the directory for reading.
    ///
    /// # Errors
    /// As openat(2).
    pub fn open_file(&self, name: &str) -> Result<OwnedFd> {
        self.open_with(name, OFlags::RDONLY)
    }

    /// Opens a file below the directory; `O_CLOEXEC` is added.
    ///
    /// # Errors
    /// As openat(2).
    pub fn open_with(&self, name: &str, flags: OFlags) -> Result<OwnedFd> {
        rustix::fs::openat(&*self.dir()?, name, flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// A whole file.
    ///
    /// # Errors
    /// As openat(2) and read(2).
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        if let Some(kept) = self.kept(name) {
            return Ok(kept.to_vec());
        }
        let file = self.open_file(name)?;
        // One read for the text and one that finds the end, for nearly all files of /proc.
        let mut all = vec![0; 8192];
        let mut len = 0;
        loop {
            match rustix::io::read(&file, &mut all[len..]) {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
            if all.len() - len < 4096 {
                all.resize(all.len() * 2, 0);
            }
        }
        all.truncate(len);
        Ok(all)
    }

    /// A whole file that the kernel makes in one piece (`stat`, `status`, `auxv`, `fdinfo` …; not those with a line per
    /// object, such as `maps`): there a short read is the end, which saves asking for it.
    ///
    /// # Errors
    /// As [`ProcDir::read`].
    pub fn read_small(&self, name: &str) -> Result<Vec<u8>> {
        if let Some(kept) = self.kept(name) {
            return Ok(kept.to_vec());
        }
        self.read_until(name, PIECE)
    }

    /// A whole file of short words. The kernel fills a page with them as long as the next one has room: a read that left
    /// much of it empty was the last.
    fn read_list(&self, name: &str) -> Result<Vec<u8>> {
        self.read_until(name, PIECE / 2)
    }

    /// Reads pieces until one is shorter than `short`.
    fn read_until(&self, name: &str, short: usize) -> Result<Vec<u8>> {
        let file = self.open_file(name)?;
        let mut buf = [0u8; PIECE];
        let mut all = Vec::new();
        loop {
            let n = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut buf))?;
            all.extend_from_slice(buf.get(..n).unwrap_or_default());
            if n < short {
                return Ok(all);
            }
        }
    }

    /// As [`ProcDir::read_small`]; from now on all reads of this file through this directory give the same bytes. For a
    /// task that stands still.
    ///
    /// # Errors
    /// As [`ProcDir::read`].
    pub fn read_kept(&self, name: &'static str) -> Result<Arc<[u8]>> {
        if let Some(kept) = self.kept(name) {
            return Ok(kept);
        }
        let bytes: Arc<[u8]> = self.read_small(name)?.into();
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push((name, bytes.clone()));
        Ok(bytes)
    }

    fn kept(&self, name: &str) -> Option<Arc<[u8]>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(n, _)| *n == name).map(|(_, bytes)| bytes.clone())
    }

    /// Forgets what [`ProcDir::read_kept`] read.
    pub fn forget(&self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// A whole file as text; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// As [`ProcDir::read`].
    pub fn read_text(&self, name: &str) -> Result<String> {
        Ok(match String::from_utf8(self.read(name)?) {
            Ok(text) => text,
            Err(e) => String::from_utf8_lossy(e.as_bytes()).into_owned(),
        })
    }

    /// What a file below the directory is; links are followed.
    ///
    /// # Errors
    /// As statat(2).
    pub fn stat_file(&self, name: &str) -> Result<rustix::fs::Stat> {
        rustix::fs::statat(&*self.dir()?, name, AtFlags::empty())
    }

    /// The target of a link.
    ///
    /// # Errors
    /// As readlinkat(2).
    pub fn readlink(&self, name: &str) -> Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&*self.dir()?, name, Vec::new())?.into_bytes())
    }

    /// The entries of a subdirectory whose names are numbers, sorted (`task`, `fd`, `fdinfo`).
    ///
    /// # Errors
    /// As openat(2) and getdents64(2).
    pub fn numbers(&self, name: &str) -> Result<Vec<u32>> {
        let dir = self.open_with(name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut buf = [MaybeUninit::uninit(); 16384];
        let mut found = Vec::new();
        let mut iter = RawDir::new(dir, &mut buf);
        while let Some(entry) = iter.next() {
            if let Some(n) = entry?.file_name().to_str().ok().and_then(|s| s.parse().ok()) {
                found.push(n);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Thread ids of the process, leader first where it still exists.
    ///
    /// # Errors
    /// As [`ProcDir::numbers`].
    pub fn threads(&self) -> Result<Vec<HostTid>> {
        let all = self.numbers("task")?;
        Ok(all.into_iter().filter_map(|n| HostTid::new(n.try_into().ok()?)).collect())
    }

    /// How many threads the process has, ended ones that nobody has reaped included.
    ///
    /// # Errors
    /// As statat(2).
    pub fn count_threads(&self) -> Result<usize> {
        // The directory of the threads counts a link for each, besides its own two.
        let links = self.stat_file("task")?.st_nlink;
        Ok(usize::try_from(links).unwrap_or(usize::MAX).saturating_sub(2))
    }

    /// Children of the process, all threads' children together, in the kernel's order.
    ///
    /// # Errors
    /// `ENOENT` also where the kernel lacks CONFIG_PROC_CHILDREN.
    pub fn children(&self) -> Result<Vec<HostTid>> {
        if self.count_threads()? == 1 { self.children_of([self.id]) } else { self.children_of(self.threads()?) }
    }

    /// Children of the process whose threads are known.
    ///
    /// # Errors
    /// As [`ProcDir::children`].
    pub fn children_of(&self, threads: impl IntoIterator<Item = HostTid>) -> Result<Vec<HostTid>> {
        let mut all = Vec::new();
        for tid in threads {
            match self.read_list(&format!("task/{tid}/children")) {
                Ok(text) => {
                    let words = text.split(u8::is_ascii_whitespace).filter_map(|w| std::str::from_utf8(w).ok());
                    all.extend(words.filter_map(|w| HostTid::new(w.parse().ok()?)));
                }
                Err(Errno::NOENT | Errno::SRCH) if tid != self.id => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }
}

/// What crust needs of `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Name, at most 15 bytes; may hold anything but NUL.
    pub comm: Vec<u8>,
    /// `R`, `S`, `D`, `T`, `t`, `Z`, `X`, `I`.
    pub state: u8,
    /// Parent, group, session, as our pid namespace sees them (0 if outside).
    pub ppid: i32,
    /// Process group.
    pub pgrp: i32,
    /// Session.
    pub session: i32,
    /// Device number of the controlling terminal, 0 without.
    pub tty_nr: u32,
    /// PF_* flags of the kernel.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Threads that are not reaped yet.
    pub threads: u32,
    /// Clock ticks since boot; with the pid it names the process uniquely.
    pub start_time: u64,
    /// Pages in memory, about.
    pub resident_pages: u64,
    /// mm fields: code start and end, stack start.
    pub start_code: u64,
    /// End of code.
    pub end_code: u64,
    /// Bottom of the stack as exec left it.
    pub start_stack: u64,
    /// Real-time priority.
    pub rt_priority: u32,
    /// Scheduling policy.
    pub policy: u32,
    /// mm fields: data, brk, arguments, environment.
    pub start_data: u64,
    /// End of data.
    pub end_data: u64,
    /// Start of the heap.
    pub start_brk: u64,
    /// Start of the arguments.
    pub arg_start: u64,
    /// End of the arguments.
    pub arg_end: u64,
    /// Start of the environment.
    pub env_start: u64,
    /// End of the environment.
    pub env_end: u64,
    /// Wait status of a zombie.
    pub exit_code: i32,
}

impl Stat {
    /// Parses the file; `None` if it is not of that form.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let open = text.iter().position(|&b| b == b'(')?;
        let close = text.iter().rposition(|&b| b == b')')?;
        let comm = text.get(open + 1..close)?.to_vec();
        let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
        let f: Vec<&str> = rest.split_ascii_whitespace().collect();
        // f[0] is field 3 of the manual page.
        let at = |field: usize| f.get(field - 3).copied();
        let u = |field: usize| at(field)?.parse::<u64>().ok();
        let i = |field: usize| at(field)?.parse::<i32>().ok();
        Some(Self {
            comm,
            state: *at(3)?.as_bytes().first()?,
            ppid: i(4)?,
            pgrp: i(5)?,
            session: i(6)?,
            tty_nr: i(7)? as u32,
            flags: u(9)?,
            nice: i(19)?,
            threads: u(20)? as u32,
            start_time: u(22)?,
            resident_pages: u(24)?,
            start_code: u(26)?,
            end_code: u(27)?,
            start_stack: u(28)?,
            rt_priority: u(40)? as u32,
            policy: u(41)? as u32,
            start_data: u(45)?,
            end_data: u(46)?,
            start_brk: u(47)?,
            arg_start: u(48)?,
            arg_end: u(49)?,
            env_start: u(50)?,
            env_end: u(51)?,
            exit_code: i(52)?,
        })
    }
}

/// `/proc/PID/status` as key and value; there are few enough lines for a linear search.
#[derive(Clone, Debug)]
pub struct Status {
    text: String,
    /// Where each line begins, has its first colon, and ends.
    lines: Vec<(usize, usize, usize)>,
}

impl Status {
    /// Takes the file's text.
    pub fn new(text: String) -> Self {
        let mut lines = Vec::with_capacity(64);
        let mut start = 0;
        for line in text.split_terminator('\n') {
            let end = start + line.len();
            lines.extend(line.find(':').map(|colon| (start, start + colon, end)));
            start = end + 1;
        }
        Self { text, lines }
    }

    /// The value behind `Key:`, trimmed.
    pub fn get(&self, key: &str) -> Option<&str> {
        let (text, key) = (self.text.as_bytes(), key.as_bytes());
        // Most lines are told apart by the length of their key, or by its last letter.
        let is_it = |&&(start, colon, _): &&(usize, usize, usize)| {
            colon - start == key.len() && text.get(colon - 1) == key.last() && text.get(start..colon) == Some(key)
        };
        let &(_, colon, end) = self.lines.iter().find(is_it)?;
        self.text.get(colon + 1..end).map(str::trim)
    }

    /// A decimal value (its first word).
    pub fn number(&self, key: &str) -> Option<i64> {
        self.get(key)?.split_ascii_whitespace().next()?.parse().ok()
    }

    /// A hexadecimal mask (`SigBlk`, `CapEff` …).
    pub fn mask(&self, key: &str) -> Option<u64> {
        u64::from_str_radix(self.get(key)?, 16).ok()
    }

    /// A list of numbers (`Uid`, `Groups`, `NStgid` …).
    pub fn numbers(&self, key: &str) -> Option<Vec<u32>> {
        self.get(key)?.split_ascii_whitespace().map(|w| w.parse().ok()).collect()
    }
}

/// One resource limit; `u64::MAX` is "unlimited".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Soft limit.
    pub cur: u64,
    /// Hard limit.
    pub max: u64,
}

/// Parses `/proc/PID/limits`, in RLIMIT_* order (16 limits). It stands in for prlimit(2), which wants CAP_SYS_RESOURCE
/// for a task of another uid.
pub fn parse_limits(text: &str) -> Option<[Limit; 16]> {
    const NAMES: [&str; 16] = [
        "Max cpu time",
        "Max file size",
        "Max data size",
        "Max stack size",
        "Max core file size",
        "Max resident set",
        "Max processes",
        "Max open files",
        "Max locked memory",
        "Max address space",
        "Max file locks",
        "Max pending signals",
        "Max msgqueue size",
        "Max nice priority",
        "Max realtime priority",
        "Max realtime timeout",
    ];
    let value = |word: &str| if word == "unlimited" { Some(u64::MAX) } else { word.parse().ok() };
    let mut limits = [Limit { cur: 0, max: 0 }; 16];
    for (limit, name) in limits.iter_mut().zip(NAMES) {
        let mut words = text.lines().find_map(|l| l.strip_prefix(name))?.split_ascii_whitespace();
        *limit = Limit { cur: value(words.next()?)?, max: value(words.next()?)? };
    }
    Some(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> ProcDir {
        ProcDir::open(HostTid::new(std::process::id() as i32).expect("a pid")).expect("own /proc entry")
    }

    #[test]
    fn reads_itself() {
        let dir = own();
        let stat = Stat::parse(&dir.read("stat").expect("stat")).expect("parses");
        assert_eq!(stat.ppid, std::os::unix::process::parent_id() as i32);
        assert!(stat.start_stack != 0 && stat.arg_end >= stat.arg_start);
        let status = Status::new(dir.read_text("status").expect("status"));
        assert_eq!(status.number("Tgid"), Some(i64::from(std::process::id())));
        let limits = parse_limits(&dir.read_text("limits").expect("limits")).expect("parses");
        let nofile = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(limits[7].cur, nofile.current.unwrap_or(u64::MAX));
        assert!(dir.threads().expect("threads").contains(&dir.id()));
    }

    #[test]
    fn comm_with_parentheses_and_spaces() {
        let text = b"7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 5 1 0 99 0 0 0 1 2 3 0 0 0 0 0 0 0 0 0 17 0 6 2 0 0 0 4 5 6 7 8 9 10 11";
        let stat = Stat::parse(text).expect("parses");
        assert_eq!(stat.comm, b"a) b) (c");
        assert_eq!((stat.ppid, stat.nice, stat.rt_priority, stat.policy, stat.exit_code), (1, 5, 6, 2, 11));
    }

    #[test]
    fn garbage_is_none() {
        for text in [&b""[..], b"(", b")(", b"1 (x", b"1 (x) S 1", b"\xff\xff(\xff) \xff"] {
            assert_eq!(Stat::parse(text), None);
        }
        assert_eq!(parse_limits("Max cpu time x y"), None);
    }
}

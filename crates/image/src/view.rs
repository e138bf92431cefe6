//! A checkpoint as people think of it: processes with their memory and descriptors, and what those lead to.
use crate::pagemap::Pagemap;
use crate::proto::{
    CoreEntry, FdTypes, FdinfoEntry, FileEntry, FsEntry, InetSkEntry, InventoryEntry, MmEntry, PstreeEntry,
    RegFileEntry, TaskKobjIdsEntry, UnixSkEntry, VmaEntry,
};
use crate::set::{ImageSet, record, records};
use crate::{Error, ImageKind, Message, Reader, Result, schema, text};
use std::collections::HashMap;
use std::ops::Range;

/// `vma_entry.status`.
pub(crate) mod status {
    pub(crate) const REGULAR: u32 = 1 << 0;
    pub(crate) const STACK: u32 = 1 << 1;
    pub(crate) const VSYSCALL: u32 = 1 << 2;
    pub(crate) const VDSO: u32 = 1 << 3;
    pub(crate) const HEAP: u32 = 1 << 5;
    pub(crate) const FILE_PRIVATE: u32 = 1 << 6;
    pub(crate) const FILE_SHARED: u32 = 1 << 7;
    pub(crate) const ANON_SHARED: u32 = 1 << 8;
    pub(crate) const SYSVIPC: u32 = 1 << 10;
    pub(crate) const SOCKET: u32 = 1 << 11;
    pub(crate) const VVAR: u32 = 1 << 12;
    pub(crate) const AIORING: u32 = 1 << 13;
}

/// `mmap.flags` of a mapping that grows down.
pub(crate) const MAP_GROWSDOWN: u32 = 0x100;

/// `task_core_entry.task_state` of a process that has ended and was not waited for.
const TASK_DEAD: u32 = 2;

/// The bits of open flags that tell how a file is open; 0 is for reading.
const ACCESS: u32 = 3;

const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;
const TCP_LISTEN: u32 = 10;

/// Text that the kernel allows any bytes in.
pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One process.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) entry: PstreeEntry,
    pub(crate) core: CoreEntry,
    pub(crate) ids: Option<TaskKobjIdsEntry>,
    pub(crate) mm: Option<MmEntry>,
    pub(crate) fs: Option<FsEntry>,
    pub(crate) fds: Vec<FdinfoEntry>,
    pub(crate) pagemap: Option<Pagemap>,
}

impl Task {
    /// The command name.
    pub(crate) fn comm(&self) -> String {
        self.core.tc.as_ref().map(|tc| lossy(&tc.comm)).unwrap_or_default()
    }

    /// `Alive`, `Zombie`, `Stopped`. CRIU writes zombies as 2, for which crit has no name.
    pub(crate) fn state(&self) -> String {
        let state = self.core.tc.as_ref().map_or(0, |tc| tc.task_state);
        let names = schema::values("task.task_state");
        match names.iter().find(|(v, _)| *v == u64::from(state)) {
            Some((_, name)) => (*name).to_owned(),
            None if state == TASK_DEAD => "Zombie".to_owned(),
            None => format!("state {state}"),
        }
    }

    /// All mappings.
    pub(crate) fn vmas(&self) -> &[VmaEntry] {
        self.mm.as_ref().map_or(&[], |mm| &mm.vmas)
    }
}

/// What of each process is to be read. The rest is left empty.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Parts {
    /// Mappings.
    pub(crate) memory: bool,
    /// Runs of saved pages.
    pub(crate) pages: bool,
    /// Descriptors, root and working directory.
    pub(crate) descriptors: bool,
}

impl Parts {
    pub(crate) const ALL: Self = Self { memory: true, pages: true, descriptors: true };
}

/// The whole checkpoint, without the bytes of pages.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) inventory: InventoryEntry,
    pub(crate) tasks: Vec<Task>,
    files: Files,
}

/// Open file descriptions by id, encoded: decoded, each takes a hundred times as much room.
#[derive(Debug, Default)]
struct Files {
    bytes: Vec<u8>,
    at: HashMap<u32, Range<usize>>,
}

/// What every file description has, and what most of them are: the rest is skipped, not decoded.
#[derive(Clone, PartialEq, Message)]
struct PlainFile {
    #[prost(uint32, tag = "2")]
    id: u32,
    #[prost(message, optional, tag = "3")]
    reg: Option<Path>,
}

/// Of a file opened by path only that path.
#[derive(Clone, PartialEq, Message)]
struct Path {
    #[prost(bytes = "vec", tag = "6")]
    name: Vec<u8>,
}

impl Files {
    /// Those of files.img.
    fn read(bytes: Vec<u8>, name: &str) -> Result<Self> {
        let mut at = HashMap::new();
        let mut r = Reader::open_named(name, &bytes, ImageKind::Files)?;
        while let Some(body) = r.next_bytes()? {
            let file = PlainFile::decode(body).map_err(|e| r.impossible(format!("file_entry: {e}")))?;
            let end = usize::try_from(r.offset()).map_err(|_| r.impossible("it is too large"))?;
            at.insert(file.id, end - body.len()..end);
        }
        Ok(Self { bytes, at })
    }

    fn get(&self, id: u32) -> Option<&[u8]> {
        self.bytes.get(self.at.get(&id)?.clone())
    }

    /// One of an older image, unless there is a newer one.
    fn add(&mut self, file: &FileEntry) {
        if !self.at.contains_key(&file.id) {
            let start = self.bytes.len();
            self.bytes.extend(file.encode_to_vec());
            self.at.insert(file.id, start..self.bytes.len());
        }
    }
}

impl View {
    /// Reads all that belongs to the process tree.
    pub(crate) fn load(set: &dyn ImageSet) -> Result<Self> {
        Self::load_parts(set, Parts::ALL)
    }

    /// Reads the process tree, and these parts of its processes.
    pub(crate) fn load_parts(set: &dyn ImageSet, parts: Parts) -> Result<Self> {
        let missing = |kind: ImageKind, id: u32| {
            Error::text(kind.file_name(id.into()), "the image is missing, so this is no whole checkpoint")
        };
        let inventory = record(set, ImageKind::Inventory, 0)?.ok_or_else(|| missing(ImageKind::Inventory, 0))?;
        let pstree: Vec<PstreeEntry> =
            records(set, ImageKind::Pstree, 0)?.ok_or_else(|| missing(ImageKind::Pstree, 0))?;
        let mut files = Files::default();
        if parts.memory || parts.descriptors {
            let name = ImageKind::Files.file_name(0);
            if let Some(bytes) = set.read(&name)? {
                files = Files::read(bytes, &name)?;
            }
            load_older_files(set, &mut files)?;
        }
        let mut tables: HashMap<u32, Vec<FdinfoEntry>> = HashMap::new();
        let mut tasks = Vec::with_capacity(pstree.len());
        for entry in pstree {
            let id = u64::from(entry.pid);
            let core: CoreEntry =
                record(set, ImageKind::Core, id)?.ok_or_else(|| missing(ImageKind::Core, entry.pid))?;
            let ids: Option<TaskKobjIdsEntry> = match parts.descriptors {
                true => record(set, ImageKind::Ids, id)?.or(core.ids),
                false => core.ids,
            };
            let mut mm: Option<MmEntry> = if parts.memory { record(set, ImageKind::Mm, id)? } else { None };
            if let Some(mm) = &mut mm
                && mm.vmas.is_empty()
            {
                mm.vmas = records(set, ImageKind::Vmas, id)?.unwrap_or_default();
            }
            let fds = match ids.map(|ids| ids.files_id).filter(|_| parts.descriptors) {
                None => Vec::new(),
                Some(table) => match tables.get(&table) {
                    Some(fds) => fds.clone(),
                    None => {
                        let fds: Vec<FdinfoEntry> = records(set, ImageKind::Fdinfo, table.into())?.unwrap_or_default();
                        tables.insert(table, fds.clone());
                        fds
                    }
                },
            };
            let name = ImageKind::Pagemap.file_name(id);
            let pagemap = match if parts.pages { set.read(&name)? } else { None } {
                Some(bytes) => Some(Pagemap::parse(&name, &bytes, ImageKind::Pagemap)?),
                None => None,
            };
            let fs = if parts.descriptors { record(set, ImageKind::Fs, id)? } else { None };
            tasks.push(Task { entry, core, ids, mm, fs, fds, pagemap });
        }
        Ok(Self { inventory, tasks, files })
    }

    /// Indices of the processes without a parent in the tree, and of the children of each process.
    pub(crate) fn family(&self) -> (Vec<usize>, Vec<Vec<usize>>) {
        let by_pid: HashMap<u32, usize> = self.tasks.iter().enumerate().map(|(at, t)| (t.entry.pid, at)).collect();
        let mut roots = Vec::new();
        let mut kids = vec![Vec::new(); self.tasks.len()];
        for (at, task) in self.tasks.iter().enumerate() {
            // Parents come before children in the image, so a tree that bites its tail cannot be.
            match by_pid.get(&task.entry.ppid).and_then(|&p| kids.get_mut(p).filter(|_| p < at)) {
                Some(siblings) => siblings.push(at),
                None => roots.push(at),
            }
        }
        (roots, kids)
    }

    /// Processes in the order of a walk down the tree, each with its depth.
    pub(crate) fn walk(&self) -> Vec<(usize, usize)> {
        let (roots, kids) = self.family();
        let mut out = Vec::with_capacity(self.tasks.len());
        let mut stack: Vec<(usize, usize)> = roots.iter().rev().map(|&r| (r, 0)).collect();
        while let Some((at, depth)) = stack.pop() {
            out.push((at, depth));
            stack.extend(kids.get(at).into_iter().flatten().rev().map(|&k| (k, depth + 1)));
        }
        out
    }

    /// Whether there is such a file.
    pub(crate) fn has_file(&self, id: u32) -> bool {
        self.files.at.contains_key(&id)
    }

    /// An open file description.
    fn file(&self, id: u32) -> Option<FileEntry> {
        // One that is broken has no description; `verify` says what is wrong with it.
        FileEntry::decode(self.files.get(id)?).ok()
    }

    /// A regular file's path.
    pub(crate) fn path(&self, id: u32) -> Option<String> {
        let name = PlainFile::decode(self.files.get(id)?).ok()?.reg?.name;
        Some(String::from_utf8(name).unwrap_or_else(|e| lossy(e.as_bytes())))
    }

    /// What crit prints for a file: a path, `pipe[N]`, `unix[N (PEER) NAME]`, or type and id.
    pub(crate) fn crit_name(&self, ty: i32, id: u32) -> String {
        match FdTypes::try_from(ty) {
            Ok(FdTypes::Reg) => self.path(id).unwrap_or_else(|| "unknown path".to_owned()),
            Ok(FdTypes::Pipe) => match self.file(id).and_then(|f| f.pipe) {
                Some(pipe) => format!("pipe[{}]", pipe.pipe_id),
                None => "pipe[?]".to_owned(),
            },
            Ok(FdTypes::Unixsk) => match self.file(id).and_then(|f| f.usk) {
                Some(usk) => format!("unix[{} ({}){}]", usk.ino, usk.peer, unix_name(&usk)),
                None => "unix[?]".to_owned(),
            },
            Ok(other) => format!("{}.{id}", other.as_str_name()),
            Err(_) => format!("{ty}.{id}"),
        }
    }

    /// What people want to know about a file.
    pub(crate) fn describe(&self, ty: i32, id: u32) -> String {
        // What most are needs no more than its path.
        if ty == FdTypes::Reg as i32
            && let Some(path) = self.path(id)
        {
            return path;
        }
        let Some(file) = self.file(id) else { return self.crit_name(ty, id) };
        if let Some(isk) = &file.isk {
            return inet(isk);
        }
        if let Some(usk) = &file.usk {
            return unix(usk);
        }
        if let Some(pipe) = &file.pipe {
            let end = if pipe.flags & ACCESS == 0 { "read" } else { "write" };
            return format!("pipe {}, {end} end", pipe.pipe_id);
        }
        if let Some(memfd) = &file.memfd {
            return format!("memfd {}", memfd.inode_id);
        }
        if let Some(fifo) = &file.fifo {
            return format!("fifo {}", self.path(fifo.regf_id()).unwrap_or_default());
        }
        if let Some(tty) = &file.tty {
            let path = self.path(tty.regf_id()).unwrap_or_default();
            return format!("tty {path}").trim_end().to_owned();
        }
        if let Some(efd) = &file.efd {
            return format!("eventfd, counter {}", efd.counter);
        }
        if let Some(epfd) = &file.epfd {
            return format!("epoll on {} descriptors", epfd.tfd.len());
        }
        if let Some(ify) = &file.ify {
            return format!("inotify, {} watches{}", ify.wd.len(), lost(ify.crust_overflow));
        }
        if let Some(ffy) = &file.ffy {
            return format!("fanotify, {} marks{}", ffy.mark.len(), lost(ffy.crust_overflow));
        }
        if let Some(pidfd) = &file.pidfd {
            return format!("pidfd of {}", pidfd.nspid);
        }
        if file.tfd.is_some() {
            return "timerfd".to_owned();
        }
        if file.sgfd.is_some() {
            return "signalfd".to_owned();
        }
        if let Some(nlsk) = &file.nlsk {
            return format!("netlink socket, protocol {}", nlsk.protocol);
        }
        if let Some(psk) = &file.psk {
            return format!("packet socket, protocol {:#06x}", u16::from_be(psk.protocol as u16));
        }
        if let Some(map) = &file.bpf {
            return format!("BPF map {} {:?}", map.map_id, map.map_name);
        }
        if let Some(queue) = file.ext.as_ref().and_then(|ext| ext.crust_mqueue.as_ref()) {
            return format!("message queue {}", lossy(&queue.path));
        }
        self.crit_name(ty, id)
    }

    /// What a mapping is of.
    pub(crate) fn mapping(&self, vma: &VmaEntry) -> String {
        let s = vma.status;
        if s & (status::FILE_PRIVATE | status::FILE_SHARED) != 0 {
            return match u32::try_from(vma.shmid).ok().and_then(|id| self.file(id)) {
                Some(FileEntry { reg: Some(reg), .. }) => lossy(&reg.name),
                Some(FileEntry { memfd: Some(memfd), .. }) => format!("[memfd {}]", memfd.inode_id),
                _ => "[unknown file]".to_owned(),
            };
        }
        for (bit, name) in [
            (status::HEAP, "[heap]"),
            (status::STACK, "[stack]"),
            (status::VSYSCALL, "[vsyscall]"),
            (status::VDSO, "[vdso]"),
            (status::VVAR, "[vvar]"),
            (status::AIORING, "[aio]"),
            (status::SOCKET, "[socket]"),
        ] {
            if s & bit != 0 {
                return name.to_owned();
            }
        }
        match s {
            _ if s & status::SYSVIPC != 0 => format!("[sysv shm {}]", vma.shmid),
            _ if s & status::ANON_SHARED != 0 => format!("[shared {}]", vma.shmid),
            _ if vma.flags & MAP_GROWSDOWN != 0 => "[stack]".to_owned(),
            _ => String::new(),
        }
    }
}

/// Images before files.img had a file for each type.
fn load_older_files(set: &dyn ImageSet, files: &mut Files) -> Result<()> {
    for reg in records::<RegFileEntry>(set, ImageKind::RegFiles, 0)?.unwrap_or_default() {
        let id = reg.id;
        let entry = FileEntry { r#type: FdTypes::Reg as i32, id, reg: Some(Box::new(reg)), ..FileEntry::default() };
        files.add(&entry);
    }
    for pipe in records::<crate::proto::PipeEntry>(set, ImageKind::Pipes, 0)?.unwrap_or_default() {
        let id = pipe.id;
        let entry = FileEntry { r#type: FdTypes::Pipe as i32, id, pipe: Some(Box::new(pipe)), ..FileEntry::default() };
        files.add(&entry);
    }
    for usk in records::<UnixSkEntry>(set, ImageKind::Unixsk, 0)?.unwrap_or_default() {
        let id = usk.id;
        let entry = FileEntry { r#type: FdTypes::Unixsk as i32, id, usk: Some(Box::new(usk)), ..FileEntry::default() };
        files.add(&entry);
    }
    Ok(())
}

fn unix_name(usk: &UnixSkEntry) -> String {
    if usk.name.is_empty() { String::new() } else { format!(" {}", text::quoted(&usk.name)) }
}

/// The name that crit has for a number.
fn named(table: &str, value: u32) -> String {
    let found = schema::values(table).iter().find(|(v, _)| *v == u64::from(value));
    found.map_or_else(|| value.to_string(), |(_, name)| (*name).to_owned())
}

/// `unix stream 12 at /run/x, listening`, `unix dgram 13 to 14`.
fn unix(usk: &UnixSkEntry) -> String {
    let mut out = format!("unix {} {}", named("socket.type", usk.r#type).to_lowercase(), usk.ino);
    match usk.name.as_slice() {
        [] => {}
        // An abstract name begins with a zero byte; a path ends with one.
        [0, name @ ..] => out.push_str(&format!(" at @{}", lossy(name))),
        [name @ .., 0] | name => out.push_str(&format!(" at {}", lossy(name))),
    }
    if usk.peer != 0 {
        out.push_str(&format!(" to {}", usk.peer));
    }
    if usk.state == TCP_LISTEN {
        out.push_str(", listening");
    }
    out
}

fn inet(isk: &InetSkEntry) -> String {
    let end = |words: &[u32], port: u32| {
        let address = text::ip(words).unwrap_or_else(|| "?".to_owned());
        if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
    };
    // crit has no name for it.
    let proto = if isk.proto == IPPROTO_MPTCP { "MPTCP".to_owned() } else { named("socket.proto", isk.proto) };
    // Only TCP's states say something: a datagram socket is "closed" unless connected.
    let state = match isk.proto {
        IPPROTO_TCP | IPPROTO_MPTCP => format!(" {}", named("socket.state", isk.state)),
        _ => String::new(),
    };
    let source = end(&isk.src_addr, isk.src_port);
    if isk.dst_port == 0 {
        format!("{proto} {source}{state}")
    } else {
        format!("{proto} {source} to {}{state}", end(&isk.dst_addr, isk.dst_port))
    }
}

/// What a queue that begins with the loss of events adds to a description.
fn lost(overflow: Option<bool>) -> &'static str {
    if overflow == Some(true) { ", events were lost" } else { "" }
}

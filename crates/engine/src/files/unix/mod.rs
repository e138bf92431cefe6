//! Unix sockets: pairs with their queues, listeners, names in the filesystem and abstract ones.
//!
//! Peers find each other by the inode numbers of the dump. This file is the dump's half; `queue` looks at what waits,
//! `open` and `bind` are the restore's half.
mod bind;
mod creator;
mod open;
mod queue;

use super::look::FdView;
use super::table::{FileTable, Records, UnderWay};
use super::{FdKind, plugged};
use crate::{Error, Result, ResultExt};
use crust_image::proto::{FdTypes, FileEntry, FilePermsEntry, ScmEntry, SkPacketEntry, SkShutdown, UnixSkEntry};
use crust_kernel::sock_diag::{self, UnixSocket, option};
use crust_kernel::unix_msg;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::AsRawFd;

pub(super) use creator::is as is_creator;
pub(super) use open::{Names, Waiting, finish_waiting, must_be_early};

pub(super) static KIND: FdKind =
    FdKind { name: "unix socket", fd_type: FdTypes::Unixsk, recognise, dump, group: open::group, open: open::open };

const LISTEN: u32 = 10;
const ESTABLISHED: u32 = 1;
const CLOSE: u32 = 7;
/// `USK_EXTERN`: the other end of a connection is outside of the tree.
const EXTERN: u32 = 1;
/// `USK_SERVICE`: the other end is ours; the request to dump the program came through it.
const SERVICE: u32 = 2;

fn recognise(v: &FdView<'_>) -> bool {
    v.file_type() == libc::S_IFSOCK
        && v.link.starts_with(b"socket:[")
        && v.copy().is_ok_and(|fd| option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN) == Ok(libc::AF_UNIX))
}

fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let ino = v.stat.st_ino as u32;
    if out.unix.is_none() {
        out.unix = Some(sock_diag::unix_sockets().during("asking for unix sockets (sock_diag)")?);
    }
    let seen = out.unix.as_ref().and_then(|all| all.get(&ino)).cloned();
    // A socket that was never bound, connected or put to listen is not in the kernel's list.
    let s = match seen {
        Some(s) => s,
        None => fresh(v)?,
    };
    let mut state = u32::from(s.state);
    if state != LISTEN && state != ESTABLISHED {
        state = CLOSE;
    }
    if state == LISTEN && s.pending.contains(&0) {
        return Err(Error::unsupported(
            "a client closed its connection to a unix socket before it was accepted: what it sent cannot be saved",
            "try again when the program has accepted it",
        ));
    }
    let mut entry = UnixSkEntry {
        id,
        ino,
        r#type: u32::from(s.kind),
        state,
        flags: v.info.flags,
        backlog: if state == LISTEN { s.backlog } else { 0 },
        peer: s.peer,
        fown: v.fown()?,
        opts: v.socket_options(&mut out.fresh)?,
        name: s.name.clone(),
        crust_pending: s.pending.clone(),
        crust_peer: creator::look(v),
        ..UnixSkEntry::default()
    };
    if s.shutdown != 0 {
        entry.shutdown = Some(match s.shutdown {
            1 => SkShutdown::Read,
            2 => SkShutdown::Write,
            _ => SkShutdown::Both,
        } as i32);
    }
    if s.peer != 0 && out.opts.service_socket_inode == Some(u64::from(s.peer)) {
        (entry.state, entry.peer, entry.uflags) = (CLOSE, 0, SERVICE);
        out.unix_seen.push((ino, 0, v.object()));
        return Ok(FileEntry { usk: Some(entry.into()), ..FileEntry::default() });
    }
    if !s.name.is_empty() && s.name.first() != Some(&0) {
        entry.name.push(0); // as CRIU has it
        named(v, &s, &mut entry)?;
    }
    connection(&s, &mut entry)?;
    out.rights_wait |= v.info.number::<u32>("scm_fds").unwrap_or(0) != 0;
    if state != LISTEN && !out.running {
        waiting(v, &s, id, out)?;
    }
    out.unix_seen.push((ino, entry.peer, v.object()));
    for client in s.pending.iter().filter(|_| state == LISTEN) {
        out.unix_seen.push((ino, *client, v.object()));
    }
    Ok(FileEntry { usk: Some(entry.into()), ..FileEntry::default() })
}

/// Whom a socket is connected to that was not accepted yet.
fn connection(s: &UnixSocket, entry: &mut UnixSkEntry) -> Result<()> {
    if s.listener != 0 {
        if s.backlog != 0 {
            return Err(Error::unsupported(
                "data waits in a connection to a unix socket that is not accepted yet, and it cannot be saved",
                "try again when the program has accepted the connection",
            ));
        }
        // As CRIU has it: the connection leads to the listener itself.
        entry.peer = s.listener;
    } else if entry.state == ESTABLISHED && s.peer == 0 && i32::from(s.kind) != libc::SOCK_DGRAM && s.shutdown != 3 {
        return Err(Error::unsupported(
            "a unix socket is connected to one that is not accepted yet, in another network namespace",
            "try again when the connection was accepted",
        ));
    }
    Ok(())
}

/// The messages that wait in a socket, with the files they carry.
fn waiting(v: &FdView<'_>, s: &UnixSocket, id: u32, out: &mut Records<'_>) -> Result<()> {
    let sent = out
        .unix
        .as_ref()
        .and_then(|all| all.get(&s.peer))
        .filter(|o| o.peer == v.stat.st_ino as u32)
        .map(|o| o.backlog);
    for packet in queue::look(v, s, sent)? {
        let scm = match packet.rights.is_empty() {
            true => Vec::new(),
            false => vec![ScmEntry { r#type: libc::SCM_RIGHTS as u32, rights: Vec::new() }],
        };
        if !packet.rights.is_empty() {
            let (pid, ns_pid, fd) = (v.target.pid, v.target.ns_pid, v.carrier());
            out.under_way.push_back(UnderWay { packet: out.packets.len(), pid, ns_pid, fd, files: packet.rights });
        }
        let length = packet.bytes.len() as u32;
        out.packets.push((SkPacketEntry { id_for: id, length, scm, crust_from: None }, packet.bytes));
    }
    Ok(())
}

fn fresh(v: &FdView<'_>) -> Result<UnixSocket> {
    let kind = option(v.copy()?, libc::SOL_SOCKET, libc::SO_TYPE).during("asking for a socket's type")?;
    let name = rustix::net::getsockname(v.copy()?).during("asking for a socket's name")?;
    let is_bare = SocketAddrUnix::try_from(name).is_ok_and(|n| n.path().is_none() && n.abstract_name().is_none());
    if !is_bare || rustix::net::getpeername(v.copy()?).is_ok() {
        return Err(Error::unsupported(
            "a unix socket of another network namespace is not supported yet",
            "dump from inside the program's network namespace",
        ));
    }
    Ok(UnixSocket { kind: kind as u8, state: CLOSE as u8, ..UnixSocket::default() })
}

/// What belongs to a name in the filesystem: owner and mode, where the name starts from, whether it still leads here.
fn named(v: &FdView<'_>, s: &UnixSocket, entry: &mut UnixSkEntry) -> Result<()> {
    let relative = s.name.first() != Some(&b'/');
    let from = if relative { "cwd" } else { "root" };
    let dir = v.target.proc.open_with(from, OFlags::PATH).during("opening the task's directory")?;
    let start = || v.target.proc.readlink(from).during("reading where a socket's name starts");
    let by_name = rustix::fs::statat(&dir, s.name.strip_prefix(b"/").unwrap_or(&s.name), AtFlags::empty()).ok();
    let file = match unix_msg::bound_file(v.copy()?) {
        Ok(file) => file,
        // Without the privilege to ask for the file: what has the name now, if it has the right number.
        Err(Errno::PERM) => {
            entry.name_dir = relative.then(start).transpose()?;
            match by_name {
                Some(stat) if s.file.is_none_or(|(ino, _)| u64::from(ino) == stat.st_ino & 0xffff_ffff) => {
                    entry.file_perms = Some(perms(&stat));
                }
                _ => entry.deleted = Some(true),
            }
            return Ok(());
        }
        Err(e) => return Err(Error::kernel("asking for the file of a unix socket failed", e)),
    };
    let stat = rustix::fs::fstat(&file).during("fstat")?;
    entry.file_perms = Some(perms(&stat));
    let is_it = |found: Option<Stat>| found.is_some_and(|f| (f.st_dev, f.st_ino) == (stat.st_dev, stat.st_ino));
    if is_it(by_name) {
        let start = start()?;
        entry.name_dir = (relative || start != b"/").then_some(start);
        return Ok(());
    }
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = rustix::fs::readlink(link, Vec::new()).during("reading the name of a socket's file")?.into_bytes();
    let mut there = is_it(rustix::fs::stat(link.as_slice()).ok());
    let mut path = match link.strip_suffix(b" (deleted)") {
        Some(gone) if !there => gone.to_vec(),
        _ => link,
    };
    if !there && stat.st_nlink > 0 {
        path = linked_name(&path, is_it)?;
        there = true;
    }
    entry.deleted = (!there).then_some(true);
    let begin = if relative {
        path.strip_suffix(s.name.as_slice()).and_then(|dir| dir.strip_suffix(b"/")).map(<[u8]>::to_vec)
    } else if is_it(rustix::fs::stat(s.name.as_slice()).ok()) || path == s.name {
        Some(Vec::new())
    } else {
        path.strip_suffix(s.name.as_slice()).map(<[u8]>::to_vec).filter(|dir| start().is_ok_and(|s| s == *dir))
    };
    match begin {
        Some(dir) if dir.is_empty() => entry.name_dir = relative.then(|| b"/".to_vec()),
        Some(dir) => entry.name_dir = Some(dir),
        None => {
            // It was moved after bind(2). A relative name starts as many steps above its file as it has parts.
            let mut dir = path.as_slice();
            for _ in s.name.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".") {
                dir = dir.iter().rposition(|b| *b == b'/').and_then(|at| dir.get(..at)).unwrap_or_default();
            }
            let above = if dir.is_empty() { b"/".to_vec() } else { dir.to_vec() };
            entry.name_dir = relative.then_some(above);
            entry.crust_moved = there.then_some(path);
        }
    }
    Ok(())
}

/// The name that a socket's file has since it was linked to it and lost the one it was bound to, as supervisord does. Only
/// the directory is looked through in which it was made.
fn linked_name(gone: &[u8], is_it: impl Fn(Option<Stat>) -> bool) -> Result<Vec<u8>> {
    let at = gone.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    let (dir, _) = gone.split_at(at);
    let entries = rustix::fs::openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .and_then(rustix::fs::Dir::new);
    for entry in entries.into_iter().flatten().flatten() {
        let socket = matches!(entry.file_type(), FileType::Socket | FileType::Unknown);
        let path = [dir, entry.file_name().to_bytes()].concat();
        if socket && is_it(rustix::fs::lstat(path.as_slice()).ok()) {
            return Ok(path);
        }
    }
    Err(Error::unsupported(
        format!(
            "its file has another name than {}, to which it was bound, and none in that directory",
            bind::shown(gone)
        ),
        "remove that other name, or move it into that directory",
    ))
}

fn perms(stat: &Stat) -> FilePermsEntry {
    FilePermsEntry { mode: stat.st_mode, uid: stat.st_uid, gid: stat.st_gid }
}

/// The error for a datagram socket whose peer neither has it as its peer nor a name to find it by.
fn unreachable(ino: u32, peer: u32, all: Option<&HashMap<u32, UnixSocket>>) -> Option<Error> {
    let (s, other) = (all?.get(&ino)?, all?.get(&peer)?);
    let lost = i32::from(s.kind) == libc::SOCK_DGRAM && s.peer == peer && other.peer != ino && other.name.is_empty();
    lost.then(|| {
        Error::unsupported(
            format!("unix socket {ino} is connected to {peer}, which has no name and another peer"),
            "close the connection before the dump",
        )
    })
}

/// The error for a connection to somebody outside of the tree.
fn stranger(ino: u32, peer: u32) -> Error {
    Error::unsupported(
        format!("unix socket {ino} is connected, and its peer {peer} belongs to no task in the tree"),
        format!(
            "dump from the common parent, close the connection before the dump, have a plugin join it again (--plugin), or \
             pass `--ext-unix-sk={ino}` here and `--inherit-fd fd[N]:socket:[{ino}]` to restore"
        ),
    )
}

/// The error for data that wait in a socket which the caller will replace.
fn unread(ino: u32, all: Option<&HashMap<u32, UnixSocket>>) -> Option<Error> {
    let waiting = all?.get(&ino)?.waiting;
    (waiting > 0).then(|| {
        Error::unsupported(
            format!("{waiting} bytes from outside wait in the external unix socket {ino}"),
            "let the program read them: nothing can put them into the socket that --inherit-fd gives",
        )
    })
}

/// The record of a socket outside of the tree that has a name to connect to.
fn outside(ino: u32, socket: UnixSocket) -> UnixSkEntry {
    let mut name = socket.name;
    if name.first() != Some(&0) {
        name.push(0);
    }
    UnixSkEntry {
        ino,
        r#type: u32::from(socket.kind),
        state: CLOSE,
        flags: libc::O_RDWR as u32,
        uflags: EXTERN,
        name,
        ..UnixSkEntry::default()
    }
}

impl FileTable<'_> {
    /// Connections need both ends in the tree, unless they can be made again by name (`--ext-unix-sk`).
    pub(super) fn check_unix(&mut self) -> Vec<Error> {
        let r = self.records();
        let seen = std::mem::take(&mut r.unix_seen);
        let inside: BTreeSet<u32> = seen.iter().map(|(ino, _, _)| *ino).collect();
        let mut errors = Vec::new();
        // Other ends that are found again by their names.
        let mut made = BTreeMap::new();
        // Other ends that nothing is known of: the tree's end is given to the restore.
        let mut given = BTreeSet::new();
        for (ino, peer, object) in &seen {
            if *peer == 0 {
                continue;
            }
            if inside.contains(peer) {
                errors.extend(unreachable(*ino, *peer, r.unix.as_ref()).map(|e| e.on(object.clone())));
                continue;
            }
            let other = r.unix.as_ref().and_then(|all| all.get(peer)).cloned();
            let by_name = other.as_ref().filter(|o| i32::from(o.kind) == libc::SOCK_DGRAM && !o.name.is_empty());
            let allowed = r.opts.ext_unix_sk || r.opts.is_external_unix(*peer) || r.opts.is_external_unix(*ino);
            match (by_name, allowed) {
                (Some(o), true) => drop(made.insert(*peer, o.clone())),
                (Some(o), false) => errors.push(
                    Error::unsupported(
                        format!(
                            "unix socket {ino} is connected to {}, which belongs to no task in the tree",
                            String::from_utf8_lossy(&o.name).replace('\0', "@")
                        ),
                        "pass `--ext-unix-sk` to connect to the same name at restore",
                    )
                    .on(object.clone()),
                ),
                // It may be on its way through a socket, and only a stopped program's queues are looked into.
                (None, _) if r.running && r.rights_wait => {}
                (None, _) if r.opts.is_external_unix(*ino) => {
                    if !r.running {
                        errors.extend(unread(*ino, r.unix.as_ref()).map(|e| e.on(object.clone())));
                    }
                    given.insert(*peer);
                }
                (None, _) => match plugged::offer_socket(*ino, object, r) {
                    Ok(true) => {
                        errors.extend(unread(*ino, r.unix.as_ref()).map(|e| e.on(object.clone())));
                        given.insert(*peer);
                    }
                    Ok(false) => errors.push(stranger(*ino, *peer).on(object.clone())),
                    Err(e) => errors.push(e.on(object.clone())),
                },
            }
        }
        // CRIU looks for a peer among the sockets it has read already.
        let named = made.into_iter().map(|(ino, other)| outside(ino, other));
        let nameless = given.into_iter().map(|ino| UnixSkEntry {
            ino,
            // As CRIU has it, whatever the socket is.
            r#type: libc::SOCK_DGRAM as u32,
            state: LISTEN,
            uflags: EXTERN,
            ..UnixSkEntry::default()
        });
        let mut records = Vec::new();
        for usk in named.chain(nameless) {
            let id = r.new_id();
            let usk = Some(UnixSkEntry { id, ..usk }.into());
            records.push(FileEntry { r#type: FdTypes::Unixsk as i32, id, usk, ..FileEntry::default() });
        }
        r.files.splice(0..0, records);
        errors
    }
}

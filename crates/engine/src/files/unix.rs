//! Unix sockets: pairs with their queues, listeners, names in the filesystem and abstract ones.
//!
//! Peers find each other by the inode numbers of the dump. Queues are looked at with MSG_PEEK, which takes nothing.
use super::look::FdView;
use super::restore::{FileImages, Opener};
use super::table::{FileTable, Records};
use super::{FdKind, sockopt};
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::{FdTypes, FileEntry, FilePermsEntry, SkPacketEntry, SkShutdown, UnixSkEntry};
use crust_kernel::sock_diag::{self, UnixSocket, option, set_option};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

pub(super) static KIND: FdKind = FdKind { name: "unix socket", fd_type: FdTypes::Unixsk, recognise, dump, group, open };

const LISTEN: u32 = 10;
const ESTABLISHED: u32 = 1;
const CLOSE: u32 = 7;
/// `USK_EXTERN`: the other end of a connection is outside of the tree.
const EXTERN: u32 = 1;
/// `USK_SERVICE`: the other end is ours; the request to dump the program came through it.
const SERVICE: u32 = 2;
/// What a program that dumped itself reads after its restore: the RPC response DUMP, success, restored.
const RESTORED: [u8; 8] = [8, 1, 16, 1, 26, 2, 8, 1];
const SO_PEEK_OFF: i32 = 42;

fn recognise(v: &FdView<'_>) -> bool {
    v.file_type() == libc::S_IFSOCK
        && v.link.starts_with(b"socket:[")
        && option(v.copy(), libc::SOL_SOCKET, libc::SO_DOMAIN) == Ok(libc::AF_UNIX)
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
    if v.info.number::<u32>("scm_fds").unwrap_or(0) != 0 {
        return Err(Error::unsupported(
            "descriptors are on their way through a unix socket, which is not supported yet",
            "try again when they were received",
        ));
    }
    let mut state = u32::from(s.state);
    if state != LISTEN && state != ESTABLISHED {
        state = CLOSE;
    }
    if state == LISTEN && s.waiting > 0 {
        return Err(Error::unsupported(
            format!("{} connections wait to be accepted by a unix socket, which is not supported yet", s.waiting),
            "try again when they were accepted",
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
        opts: sockopt::dump(v.copy(), &mut out.fresh)?,
        name: s.name.clone(),
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
        return Ok(FileEntry { usk: Some(entry), ..FileEntry::default() });
    }
    if !s.name.is_empty() && s.name.first() != Some(&0) {
        entry.name.push(0); // as CRIU has it
        named(v, &s, &mut entry)?;
    }
    queue(v, &s, id, out)?;
    out.unix_seen.push((ino, s.peer, v.object()));
    Ok(FileEntry { usk: Some(entry), ..FileEntry::default() })
}

fn fresh(v: &FdView<'_>) -> Result<UnixSocket> {
    let kind = option(v.copy(), libc::SOL_SOCKET, libc::SO_TYPE).during("asking for a socket's type")?;
    let name = rustix::net::getsockname(v.copy()).during("asking for a socket's name")?;
    let is_bare = SocketAddrUnix::try_from(name).is_ok_and(|n| n.path().is_none() && n.abstract_name().is_none());
    if !is_bare || rustix::net::getpeername(v.copy()).is_ok() {
        return Err(Error::unsupported(
            "a unix socket of another network namespace is not supported yet",
            "dump from inside the program's network namespace",
        ));
    }
    Ok(UnixSocket { kind: kind as u8, state: CLOSE as u8, ..UnixSocket::default() })
}

/// What belongs to a name in the filesystem: owner and mode, the directory of a relative one, whether it still leads here.
fn named(v: &FdView<'_>, s: &UnixSocket, entry: &mut UnixSkEntry) -> Result<()> {
    let t = v.target;
    let relative = s.name.first() != Some(&b'/');
    let base = if relative { "cwd" } else { "root" };
    let dir = t.proc.open_with(base, OFlags::PATH).during("opening the task's directory")?;
    let path = s.name.strip_prefix(b"/").unwrap_or(&s.name);
    if relative {
        entry.name_dir = Some(t.proc.readlink("cwd").during("reading the task's working directory")?);
    }
    match rustix::fs::statat(&dir, path, AtFlags::empty()) {
        // Accepted sockets carry the listener's name, but no file of their own: the kernel shows the listener's.
        Ok(stat) if s.file.is_none_or(|(ino, _)| u64::from(ino) == stat.st_ino & 0xffff_ffff) => {
            entry.file_perms = Some(FilePermsEntry { mode: stat.st_mode, uid: stat.st_uid, gid: stat.st_gid });
        }
        _ => entry.deleted = Some(true),
    }
    Ok(())
}

/// Saves what waits to be received.
fn queue(v: &FdView<'_>, s: &UnixSocket, id: u32, out: &mut Records<'_>) -> Result<()> {
    if u32::from(s.state) == LISTEN {
        return Ok(());
    }
    let fd = v.copy();
    let lost = |what: &str| {
        Error::unsupported(
            format!("{what} in the queue of a unix socket cannot be saved yet"),
            "try again when it was received",
        )
    };
    if i32::from(s.kind) == libc::SOCK_STREAM {
        let waiting = rustix::io::ioctl_fionread(fd).during("asking how much waits in a socket")? as usize;
        if waiting == 0 {
            return Ok(());
        }
        let (bytes, flags) = sock_diag::peek(fd, waiting).during("looking at a socket's queue")?;
        if flags.control || bytes.len() != waiting {
            return Err(lost("a control message"));
        }
        out.packets.push((SkPacketEntry { id_for: id, length: waiting as u32, scm: Vec::new() }, bytes));
        return Ok(());
    }
    // Messages beyond the first show only with an offset, which is put back at once.
    let before = option(fd, libc::SOL_SOCKET, SO_PEEK_OFF).during("asking for a socket's peek offset")?;
    if sock_diag::peek(fd, 0) == Err(Errno::AGAIN) {
        return Ok(());
    }
    set_option(fd, libc::SOL_SOCKET, SO_PEEK_OFF, 0).during("setting a socket's peek offset")?;
    let mut room = 1 << 16;
    let mut found = Vec::new();
    let mut offset = 0usize;
    let result = loop {
        match sock_diag::peek(fd, room) {
            Ok((_, flags)) if flags.cut && room < 1 << 26 => {
                room *= 4;
                if let Err(e) = set_option(fd, libc::SOL_SOCKET, SO_PEEK_OFF, offset as i32) {
                    break Err(Error::kernel("setting a socket's peek offset failed", e));
                }
            }
            Ok((_, flags)) if flags.cut || flags.control => break Err(lost("a control message")),
            // An empty message does not move the offset: it would be seen for ever.
            Ok((bytes, _)) if bytes.is_empty() => break Err(lost("an empty message")),
            Ok((bytes, _)) => {
                offset += bytes.len();
                found.push((SkPacketEntry { id_for: id, length: bytes.len() as u32, scm: Vec::new() }, bytes));
            }
            Err(Errno::AGAIN) => break Ok(()),
            Err(e) => break Err(Error::kernel("looking at a socket's queue failed", e)),
        }
    };
    set_option(fd, libc::SOL_SOCKET, SO_PEEK_OFF, before).during("putting a socket's peek offset back")?;
    result?;
    out.packets.extend(found);
    Ok(())
}

impl FileTable<'_> {
    /// Connections need both ends in the tree, unless they can be made again by name (`--ext-unix-sk`).
    pub(super) fn check_unix(&mut self) -> Vec<Error> {
        let r = self.records();
        let inside: BTreeSet<u32> = r.unix_seen.iter().map(|(ino, _, _)| *ino).collect();
        let mut errors = Vec::new();
        let mut made = Vec::new();
        for (ino, peer, object) in &r.unix_seen {
            if *peer == 0 || inside.contains(peer) {
                continue;
            }
            let other = r.unix.as_ref().and_then(|all| all.get(peer)).cloned();
            let by_name = other.as_ref().filter(|o| i32::from(o.kind) == libc::SOCK_DGRAM && !o.name.is_empty());
            let allowed = r.opts.ext_unix_sk
                || r.opts.ext_unix_inodes.contains(peer)
                || r.opts.external.iter().any(|e| *e == format!("unix[{peer}]"));
            match (by_name, allowed) {
                (Some(o), true) => made.push((*peer, o.clone())),
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
                (None, _) => errors.push(
                    Error::unsupported(
                        format!("unix socket {ino} is connected, and its peer {peer} belongs to no task in the tree"),
                        "dump from the common parent, or close the connection before the dump",
                    )
                    .on(object.clone()),
                ),
            }
        }
        made.sort_by_key(|(ino, _)| *ino);
        made.dedup_by_key(|(ino, _)| *ino);
        for (ino, o) in made {
            let id = r.new_id();
            let mut name = o.name;
            if name.first() != Some(&0) {
                name.push(0);
            }
            let usk = UnixSkEntry {
                id,
                ino,
                r#type: u32::from(o.kind),
                state: CLOSE,
                flags: libc::O_RDWR as u32,
                uflags: EXTERN,
                name,
                ..UnixSkEntry::default()
            };
            r.files.push(FileEntry { r#type: FdTypes::Unixsk as i32, id, usk: Some(usk), ..FileEntry::default() });
        }
        errors
    }
}

/// Connected sockets are made together: pairs, and everybody who is connected to one datagram socket.
fn group(e: &FileEntry, images: &FileImages) -> Option<u64> {
    let mut s = e.usk.as_ref()?;
    let mut least = s.ino;
    for _ in 0..64 {
        if s.peer == 0 {
            return Some(u64::from(s.ino));
        }
        let Some(peer) = images.unix_by_ino(s.peer) else { break };
        if peer.peer == s.ino || peer.ino == s.ino {
            return Some(u64::from(s.ino.min(peer.ino)));
        }
        least = least.min(peer.ino);
        s = peer;
    }
    Some(u64::from(least))
}

fn kind_of(s: &UnixSkEntry) -> SocketType {
    SocketType::from_raw(s.r#type)
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut all: Vec<&UnixSkEntry> = Vec::new();
    for e in entries {
        all.push(cx.body(e, e.usk.as_ref())?);
    }
    let mut opened: Vec<(u32, OwnedFd)> = Vec::new();
    // Ends whose other end was closed before the dump: data they still hold comes from here.
    let mut pairs: Vec<(&UnixSkEntry, &UnixSkEntry)> = Vec::new();
    for (n, s) in all.iter().enumerate() {
        let later = all.iter().skip(n + 1);
        if s.peer != 0
            && let Some(other) = later.copied().find(|o| o.ino == s.peer && o.peer == s.ino)
        {
            pairs.push((s, other));
        }
    }
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    for (a, b) in &pairs {
        let (fa, fb) = rustix::net::socketpair(family, kind_of(a), flags, None).during("socketpair")?;
        for (s, fd, other) in [(*a, &fa, &fb), (*b, &fb, &fa)] {
            sockopt::restore(fd, &s.opts)?;
            let is_listeners = s.state == ESTABLISHED && cx.images.has_listener(&s.name);
            if !s.name.is_empty() && !is_listeners {
                bind(fd, s, cx)?;
            } else if is_listeners {
                log::warn!("socket {} forgets its name: it was that of the listener it came from", s.ino);
            }
            fill(other, s, cx)?;
        }
        for (s, fd) in [(*a, &fa), (*b, &fb)] {
            shut(fd, s)?;
            cx.settle(fd, s.flags, &s.fown)?;
        }
        opened.push((a.id, fa));
        opened.push((b.id, fb));
    }
    let rest: Vec<&UnixSkEntry> = all.iter().copied().filter(|s| !opened.iter().any(|(id, _)| *id == s.id)).collect();
    // Names first: others connect to them.
    for s in rest.iter().filter(|s| s.uflags & EXTERN == 0) {
        let fd = single(s, cx)?;
        opened.push((s.id, fd));
    }
    for s in rest.iter().filter(|s| s.peer != 0 && s.uflags & EXTERN == 0) {
        let Some(target) = cx.images.unix_by_ino(s.peer) else { continue };
        let Some((_, fd)) = opened.iter().find(|(id, _)| *id == s.id) else { continue };
        let to = address(&target.name)?;
        rustix::net::connect(fd, &to)
            .during("connecting a unix socket to its peer again")
            .map_err(|e| e.on(Object::Path(shown(&target.name))))?;
    }
    for s in &rest {
        if let Some((_, fd)) = opened.iter().find(|(id, _)| *id == s.id) {
            shut(fd, s)?;
            cx.settle(fd, s.flags, &s.fown)?;
        }
    }
    Ok(opened)
}

/// A socket that is no half of a pair.
fn single(s: &UnixSkEntry, cx: &mut Opener<'_>) -> Result<OwnedFd> {
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    if s.uflags & SERVICE != 0 {
        let (fd, ours) = rustix::net::socketpair(family, kind_of(s), flags, None).during("socketpair")?;
        sockopt::restore(&fd, &s.opts)?;
        rustix::net::send(&ours, &RESTORED, rustix::net::SendFlags::DONTWAIT).during("answering a self-dump")?;
        return Ok(fd);
    }
    // The kernel calls a datagram socket connected too when others are connected to it.
    let datagram = s.r#type == libc::SOCK_DGRAM as u32;
    let lost_peer = s.state == ESTABLISHED && s.peer == 0 && !datagram;
    let has_queue = cx.images.packets.contains_key(&s.id);
    let fd = if lost_peer || has_queue && (!datagram || s.name.is_empty()) {
        // Connected to nobody any more, or holding messages of somebody outside: a peer that goes again brings both.
        let (fd, peer) = rustix::net::socketpair(family, kind_of(s), flags, None).during("socketpair")?;
        sockopt::restore(&fd, &s.opts)?;
        fill(&peer, s, cx)?;
        fd
    } else {
        let fd = rustix::net::socket_with(family, kind_of(s), flags, None).during("socket")?;
        sockopt::restore(&fd, &s.opts)?;
        fd
    };
    let is_listeners = s.state == ESTABLISHED && cx.images.has_listener(&s.name);
    if !s.name.is_empty() && !is_listeners {
        bind(&fd, s, cx)?;
    }
    if has_queue && datagram && !s.name.is_empty() {
        let sender = rustix::net::socket_with(family, kind_of(s), flags, None).during("socket")?;
        let to = address(&s.name)?;
        rustix::net::connect(&sender, &to).during("connecting to a socket just bound")?;
        fill(&sender, s, cx)?;
    }
    if s.state == LISTEN {
        rustix::net::listen(&fd, s.backlog as i32).during("listen")?;
    }
    Ok(fd)
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).trim_end_matches('\0').replace('\0', "@")
}

/// The address of a name as the images have it.
fn address(name: &[u8]) -> Result<SocketAddrUnix> {
    let bad = |e: Errno| Error::kernel("a unix socket's name is impossible", e);
    match name.strip_prefix(b"\0") {
        Some(rest) => SocketAddrUnix::new_abstract_name(rest).map_err(bad),
        None => SocketAddrUnix::new(name.strip_suffix(b"\0").unwrap_or(name)).map_err(bad),
    }
}

fn bind(fd: &OwnedFd, s: &UnixSkEntry, cx: &Opener<'_>) -> Result<()> {
    let addr = address(&s.name)?;
    let path = s.name.strip_suffix(b"\0").unwrap_or(&s.name);
    let on = |e: Error| e.on(Object::Path(shown(&s.name)));
    let in_files = s.name.first() != Some(&0);
    let mut back = None;
    if in_files && path.first() != Some(&b'/') {
        let dir = s.name_dir.as_deref().unwrap_or(b"/");
        back =
            Some(rustix::fs::open(".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).during("opening our directory")?);
        rustix::process::chdir(dir).during("entering the directory of a socket's name").map_err(on)?;
    }
    let result = bind_here(fd, &addr, path, in_files, s, cx).map_err(on);
    if let Some(back) = back {
        rustix::process::fchdir(&back).during("going back to our directory")?;
    }
    result
}

fn bind_here(
    fd: &OwnedFd,
    addr: &SocketAddrUnix,
    path: &[u8],
    in_files: bool,
    s: &UnixSkEntry,
    _: &Opener<'_>,
) -> Result<()> {
    if in_files && let Ok(stat) = rustix::fs::lstat(path) {
        if stat.st_mode & libc::S_IFMT != libc::S_IFSOCK {
            return Err(Error::new(Kind::Taken, "a file is where the socket's name was").help("move the file away"));
        }
        let in_use = sock_diag::unix_sockets()
            .is_ok_and(|all| all.values().any(|o| o.file.is_some_and(|(ino, _)| u64::from(ino) == stat.st_ino)));
        if in_use {
            return Err(Error::new(Kind::Taken, "another program has a socket of this name").help("stop that program"));
        }
        // Left over from the program that was dumped.
        rustix::fs::unlink(path).during("removing the socket's old name")?;
    }
    rustix::net::bind(fd, addr).map_err(|e| {
        let e2 = Error::kernel("giving a unix socket its name failed", e);
        if e == Errno::ADDRINUSE { e2.kind_is(Kind::Taken) } else { e2 }
    })?;
    if in_files && s.deleted == Some(true) {
        return rustix::fs::unlink(path).during("removing a name that was gone at the dump");
    }
    if in_files && let Some(perms) = &s.file_perms {
        let (uid, gid) = (rustix::fs::Uid::from_raw(perms.uid), rustix::fs::Gid::from_raw(perms.gid));
        rustix::fs::chown(path, Some(uid), Some(gid)).during("giving a socket to its owner")?;
        rustix::fs::chmod(path, Mode::from_bits_retain(perms.mode & 0o7777)).during("setting a socket's mode")?;
    }
    Ok(())
}

fn shut(fd: &OwnedFd, s: &UnixSkEntry) -> Result<()> {
    use rustix::net::Shutdown;
    sockopt::restore_filter(fd, &s.opts)?;
    let how = match s.shutdown.and_then(|v| SkShutdown::try_from(v).ok()) {
        Some(SkShutdown::Read) => Shutdown::Read,
        Some(SkShutdown::Write) => Shutdown::Write,
        Some(SkShutdown::Both) => Shutdown::Both,
        _ => return Ok(()),
    };
    match rustix::net::shutdown(fd, how) {
        Ok(()) | Err(Errno::NOTCONN) => Ok(()),
        Err(e) => Err(Error::kernel("shutdown failed", e)),
    }
}

/// Sends through `peer` what waited in `s`.
fn fill(peer: &OwnedFd, s: &UnixSkEntry, cx: &Opener<'_>) -> Result<()> {
    let Some(packets) = cx.images.packets.get(&s.id) else { return Ok(()) };
    for packet in packets {
        let mut rest = &packet[..];
        loop {
            match rustix::net::send(peer.as_fd(), rest, rustix::net::SendFlags::DONTWAIT) {
                Ok(n) if n >= rest.len() => break,
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(Errno::AGAIN) => {
                    // The sender's buffer was larger then.
                    let size = option(peer, libc::SOL_SOCKET, libc::SO_SNDBUF).during("reading a socket option")?;
                    let want = (rest.len() as i32).saturating_add(size).saturating_mul(2);
                    set_option(peer, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, want)
                        .during("filling a socket's queue")
                        .map_err(|e| e.help("raise /proc/sys/net/core/wmem_max"))?;
                }
                Err(e) => return Err(Error::kernel("filling a socket's queue failed", e)),
            }
        }
    }
    Ok(())
}

//! Unix sockets at restore: made and named, connected, their queues filled, then as they were.
//!
//! Sockets that find each other by name or connection are one unit. What others need of a unit comes first: every socket
//! exists and has its name before anybody connects, and a datagram socket is filled before it connects, since one that
//! is connected takes messages from its peer only. If descriptors wait in a queue of a unit, the second half waits until
//! all files are open that anybody shares.
use super::super::regular::missing_external;
use super::super::restore::{FileImages, Opener, QueuedPacket};
use super::super::sockopt;
use super::bind::{Keep, Place, address, bind, is_path, shown};
use super::{ESTABLISHED, EXTERN, LISTEN, SERVICE, creator};
use crate::options::Options;
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::{CrustPeerCred, FileEntry, SkShutdown, UnixSkEntry};
use crust_kernel::fd as kfd;
use crust_kernel::sock_diag::{option, set_option};
use crust_kernel::unix_msg;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What a program that dumped itself reads after its restore: the RPC response DUMP, success, restored.
const RESTORED: [u8; 8] = [8, 1, 16, 1, 26, 2, 8, 1];
/// A sender with so much room is not what keeps a message from its queue.
const MOST: i32 = 1 << 29;

/// Unix sockets of the images by what they have to do with each other.
#[derive(Debug, Default)]
pub(in super::super) struct Names {
    /// The socket by its inode at the dump: the file's id.
    by_ino: HashMap<u32, u32>,
    /// Listeners by type and name: inode.
    listeners: HashMap<(u32, Vec<u8>), u32>,
    /// One number for all of a unit, by inode.
    unit: HashMap<u32, u32>,
}

impl Names {
    pub(in super::super) fn new<'f>(files: impl Iterator<Item = &'f UnixSkEntry> + Clone) -> Self {
        let mut names = Self::default();
        for s in files.clone() {
            names.by_ino.insert(s.ino, s.id);
            if s.state == LISTEN && !s.name.is_empty() && s.uflags & EXTERN == 0 {
                names.listeners.insert((s.r#type, s.name.clone()), s.ino);
            }
        }
        let mut parent: HashMap<u32, u32> = files.clone().map(|s| (s.ino, s.ino)).collect();
        fn top(parent: &mut HashMap<u32, u32>, of: u32) -> u32 {
            let mut at = of;
            while let Some(&up) = parent.get(&at).filter(|up| **up != at) {
                let over = parent.get(&up).copied().unwrap_or(up);
                parent.insert(at, over);
                at = up;
            }
            at
        }
        for s in files.clone() {
            for other in
                [Some(s.peer).filter(|p| names.by_ino.contains_key(p)), names.listener(s)].into_iter().flatten()
            {
                let (a, b) = (top(&mut parent, s.ino), top(&mut parent, other));
                parent.insert(a.max(b), a.min(b));
            }
        }
        names.unit = files.map(|s| (s.ino, top(&mut parent, s.ino))).collect();
        names
    }

    /// The listener that a connection's end got its name from.
    fn listener(&self, s: &UnixSkEntry) -> Option<u32> {
        let may = s.state == ESTABLISHED && s.r#type != libc::SOCK_DGRAM as u32 && !s.name.is_empty();
        let key = may.then(|| (s.r#type, s.name.clone()))?;
        self.listeners.get(&key).copied()
    }

    /// The file that had this inode.
    pub(in super::super) fn by_ino(&self, ino: u32) -> Option<u32> {
        self.by_ino.get(&ino).copied()
    }
}

/// Connected sockets are made together, and so is everybody who found the other by its name.
pub(super) fn group(e: &FileEntry, images: &FileImages) -> Option<u64> {
    images.unix.unit.get(&e.usk.as_deref()?.ino).map(|u| u64::from(*u))
}

/// True for a socket whose name is taken only for a moment, when no other task may look at that path, or from another
/// directory than ours, which tasks may share.
pub(in super::super) fn must_be_early(e: &FileEntry, images: &FileImages) -> bool {
    let Some(s) = e.usk.as_deref().filter(|s| is_path(&s.name) && s.uflags & (EXTERN | SERVICE) == 0) else {
        return false;
    };
    let connection = s.state == ESTABLISHED && s.r#type != libc::SOCK_DGRAM as u32;
    let elsewhere = s.name.first() != Some(&b'/') || s.name_dir.as_deref().is_some_and(|d| d != b"/");
    elsewhere || s.deleted == Some(true) || s.crust_moved.is_some() || connection && images.unix.listener(s).is_none()
}

/// Name under which `--inherit-fd` gives a socket.
fn key_of(s: &UnixSkEntry) -> String {
    format!("socket:[{}]", s.ino)
}

impl FileImages {
    /// Sockets whose other end is outside, without a name to connect to, must be given.
    pub(in super::super) fn check_unix(&self, opts: &Options) -> Vec<Error> {
        let sockets = self.unix.by_ino.values().filter_map(|id| self.unix_by_id(*id));
        let lost = sockets.filter(|s| {
            let peer = self.unix.by_ino(s.peer).and_then(|id| self.unix_by_id(id));
            s.crust_plugin.is_none() && peer.is_some_and(|p| p.uflags & EXTERN != 0 && p.name.is_empty())
        });
        let missing = lost.map(key_of).filter(|key| !opts.inherit_fds.iter().any(|i| i.key == *key));
        missing.map(|key| missing_external(&key)).collect()
    }
}

/// The second half of a unit that waits for other files.
#[derive(Debug)]
pub(in super::super) struct Waiting {
    ids: Vec<u32>,
    /// Sockets that the caller gave us: connected as they are, by inode.
    given: BTreeSet<u32>,
    places: HashMap<u32, Place>,
    senders: HashMap<u32, OwnedFd>,
}

fn kind_of(s: &UnixSkEntry) -> SocketType {
    SocketType::from_raw(s.r#type)
}

fn new_socket(s: &UnixSkEntry) -> Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, kind_of(s), SocketFlags::CLOEXEC, None).during("socket")
}

fn new_pair(s: &UnixSkEntry) -> Result<(OwnedFd, OwnedFd)> {
    let make =
        || rustix::net::socketpair(AddressFamily::UNIX, kind_of(s), SocketFlags::CLOEXEC, None).during("socketpair");
    let (a, b) = make()?;
    if s.crust_peer.is_some() {
        let (to_a, to_b) = (a.as_raw_fd(), b.as_raw_fd());
        creator::act_as(s.crust_peer, &|| {
            let (a, b) = make()?;
            kfd::place(&a, to_a, true).and_then(|()| kfd::place(&b, to_b, true)).during("dup3")
        })?;
    }
    Ok((a, b))
}

/// Puts a socket to listen, as whoever made it.
fn listen(fd: impl AsFd + Sync, backlog: u32, creator: Option<CrustPeerCred>) -> Result<()> {
    creator::act_as(creator, &|| rustix::net::listen(&fd, backlog as i32).during("listen"))
}

/// True for a datagram socket and its peer that have each other alone: each was there first for the other.
fn is_pair<'e>(
    s: &UnixSkEntry,
    by_ino: impl Fn(u32) -> Option<&'e UnixSkEntry>,
    all: impl Iterator<Item = &'e UnixSkEntry> + Clone,
) -> bool {
    let Some(other) = by_ino(s.peer).filter(|o| o.peer == s.ino && o.ino != s.ino) else { return false };
    !all.clone().any(|o| (o.peer == s.ino || o.peer == other.ino) && o.ino != s.ino && o.ino != other.ino)
}

/// The sockets of one unit while they are made; all by inode.
struct Making<'e> {
    all: BTreeMap<u32, &'e UnixSkEntry>,
    fds: HashMap<u32, OwnedFd>,
    places: HashMap<u32, Place>,
    /// Who can send into a socket; of most it is the other end.
    senders: HashMap<u32, OwnedFd>,
}

pub(super) fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut all = BTreeMap::new();
    for e in entries {
        let s = cx.body(e, e.usk.as_ref())?;
        if all.insert(s.ino, s).is_some() {
            return Err(Error::bad_image("files.img", format!("two unix sockets have the inode {}", s.ino)));
        }
    }
    let mut unit = Making { all, fds: HashMap::new(), places: HashMap::new(), senders: HashMap::new() };
    let own: Vec<&UnixSkEntry> = unit.all.values().copied().filter(|s| s.uflags & EXTERN == 0).collect();
    let mut given = BTreeSet::new();
    for s in &own {
        if let Some(fd) = cx.inherited(&key_of(s))? {
            unit.fds.insert(s.ino, fd);
            given.insert(s.ino);
        }
    }
    // Listeners and datagram sockets first: connections are made through them.
    for s in &own {
        if !unit.is_end(s) && !given.contains(&s.ino) {
            unit.stand(s, cx)?;
        }
    }
    for s in &own {
        if unit.is_end(s) && !unit.fds.contains_key(&s.ino) {
            unit.connection(s, cx)?;
        }
    }
    let Making { fds, places, senders, .. } = unit;
    let ids: Vec<u32> = own.iter().map(|s| s.id).collect();
    let of_ino: HashMap<u32, u32> = own.iter().map(|s| (s.ino, s.id)).collect();
    let opened: Vec<(u32, OwnedFd)> = fds.into_iter().filter_map(|(ino, fd)| Some((*of_ino.get(&ino)?, fd))).collect();
    let rest = Waiting { ids, given, places, senders };
    if rest.ids.iter().any(|id| cx.images.carries_rights(*id)) {
        cx.state.unix.push(rest);
        return Ok(opened);
    }
    let by_id: HashMap<u32, BorrowedFd<'_>> = opened.iter().map(|(id, fd)| (*id, fd.as_fd())).collect();
    rest.finish(&by_id, &HashMap::new(), cx)?;
    Ok(opened)
}

/// Fills the queues that carry descriptors. Every file that one of them carries is among `files`.
pub(in super::super) fn finish_waiting(cx: &mut Opener<'_>) -> Result<()> {
    let waiting = std::mem::take(&mut cx.state.unix);
    let mut files = HashMap::new();
    if !waiting.is_empty() {
        for (id, fd) in &cx.state.shared {
            files.insert(*id, fd.as_fd());
        }
    }
    for unit in waiting {
        unit.finish(&files, &files, cx)?;
    }
    Ok(())
}

impl Making<'_> {
    /// True for one end of a connection: made together with the other end, which may be gone.
    fn is_end(&self, s: &UnixSkEntry) -> bool {
        if s.uflags & SERVICE != 0 {
            return false;
        }
        let other = self.all.get(&s.peer);
        if s.r#type == libc::SOCK_DGRAM as u32 {
            return is_pair(s, |ino| self.all.get(&ino).copied(), self.all.values().copied());
        }
        s.state == ESTABLISHED && other.is_none_or(|o| o.state != LISTEN)
    }

    /// A socket that is no end of a connection.
    fn stand(&mut self, s: &UnixSkEntry, cx: &Opener<'_>) -> Result<()> {
        let datagram = s.r#type == libc::SOCK_DGRAM as u32;
        let has_queue = cx.images.packets.contains_key(&s.id);
        let lost_peer = s.state == ESTABLISHED && s.peer == 0;
        if s.uflags & SERVICE != 0 {
            let (fd, ours) = new_pair(s)?;
            rustix::net::send(&ours, &RESTORED, rustix::net::SendFlags::DONTWAIT).during("answering a self-dump")?;
            self.fds.insert(s.ino, fd);
            return Ok(());
        }
        if datagram && s.name.is_empty() && (has_queue || lost_peer) {
            // What it holds came from one that is gone, or connected to another since.
            let (fd, peer) = new_pair(s)?;
            if !lost_peer {
                unix_msg::disconnect(&fd).during("disconnecting a socket")?;
            }
            self.senders.insert(s.ino, peer);
            self.fds.insert(s.ino, fd);
            return Ok(());
        }
        let fd = new_socket(s)?;
        if !s.name.is_empty() {
            let place = bind(&fd, s, Keep::AsImaged)?;
            if has_queue && datagram {
                let sender = new_socket(s)?;
                place.connect(&sender).during("connecting to a socket just bound")?;
                self.senders.insert(s.ino, sender);
            }
            self.places.insert(s.ino, place);
        }
        if s.state == LISTEN {
            listen(&fd, s.backlog, s.crust_peer)?;
        }
        self.fds.insert(s.ino, fd);
        Ok(())
    }

    /// Both ends of a connection, or the one that is left.
    fn connection(&mut self, s: &UnixSkEntry, cx: &Opener<'_>) -> Result<()> {
        let other = self.all.get(&s.peer).copied().filter(|o| o.peer == s.ino && o.ino != s.ino);
        let datagram = s.r#type == libc::SOCK_DGRAM as u32;
        let nameless = s.name.is_empty() && other.is_none_or(|o| o.name.is_empty());
        let (fd, other_fd) = if datagram || nameless {
            let (fd, other_fd) = new_pair(s)?;
            for (end, fd) in [(Some(s), &fd), (other, &other_fd)] {
                if let Some(end) = end.filter(|e| !e.name.is_empty()) {
                    let place = bind(fd, end, Keep::AsImaged)?;
                    self.places.insert(end.ino, place);
                }
            }
            (fd, other_fd)
        } else {
            // An accepted socket has the name of the listener it came from: so it must come from one again.
            let from_listener = |e: &UnixSkEntry| cx.images.unix.listener(e).is_some();
            let swap = other.is_some_and(|o| !o.name.is_empty() && !from_listener(s));
            let (accepted, client) = match other {
                Some(o) if swap => (o, Some(s)),
                _ => (s, other),
            };
            let client_fd = new_socket(accepted)?;
            if let Some(client) = client.filter(|c| !c.name.is_empty()) {
                let place = bind(&client_fd, client, Keep::AsImaged)?;
                self.places.insert(client.ino, place);
            }
            match self.accept(accepted, client.and_then(|c| c.crust_peer), &client_fd, cx) {
                Ok(accepted_fd) if swap => (client_fd, accepted_fd),
                Ok(accepted_fd) => (accepted_fd, client_fd),
                Err(e) if e.kind() == Kind::Taken && !is_path(&accepted.name) => {
                    log::warn!("socket {} forgets its name {}: {e}", accepted.ino, shown(&accepted.name));
                    new_pair(s)?
                }
                Err(e) => return Err(e),
            }
        };
        let has_queue = |e: &UnixSkEntry| cx.images.packets.contains_key(&e.id);
        if let Some(o) = other {
            for (end, sender) in [(s, &other_fd), (o, &fd)] {
                if has_queue(end) {
                    self.senders.insert(end.ino, sender.try_clone().during("copying a descriptor")?);
                }
            }
            self.fds.insert(o.ino, other_fd);
        } else if has_queue(s) {
            self.senders.insert(s.ino, other_fd);
        }
        self.fds.insert(s.ino, fd);
        Ok(())
    }

    /// Connects `client` to a listener of the name that `s` has, and takes the other end.
    fn accept(
        &self,
        s: &UnixSkEntry,
        listener_cred: Option<CrustPeerCred>,
        client: &OwnedFd,
        cx: &Opener<'_>,
    ) -> Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC;
        let on = |e: Error| e.on(Object::Path(shown(&s.name)));
        let connect = |place: &Place| {
            let act = || place.connect(client).during("connecting a unix socket again");
            creator::act_as(s.crust_peer, &act).map_err(on)
        };
        let known = cx.images.unix.listener(s);
        if let Some((listener, place)) = known.and_then(|ino| Some((self.fds.get(&ino)?, self.places.get(&ino)?))) {
            connect(place)?;
            return rustix::net::accept_with(listener, flags).during("accepting a connection again").map_err(on);
        }
        let listener = new_socket(s)?;
        let place = bind(&listener, s, Keep::Lent)?;
        listen(&listener, 1, listener_cred)?;
        connect(&place)?;
        rustix::net::accept_with(&listener, flags).during("accepting a connection again").map_err(on)
    }
}

impl Waiting {
    /// Fills queues, connects, and makes every socket what it was.
    fn finish(
        mut self,
        sockets: &HashMap<u32, BorrowedFd<'_>>,
        files: &HashMap<u32, BorrowedFd<'_>>,
        cx: &Opener<'_>,
    ) -> Result<()> {
        let mut all = BTreeMap::new();
        for id in &self.ids {
            if let (Some(s), Some(fd)) = (cx.images.unix_by_id(*id), sockets.get(id)) {
                all.insert(s.ino, (s, *fd));
            }
        }
        for (ino, (s, _)) in &all {
            if let Some(packets) = cx.images.packets.get(&s.id) {
                let Some(sender) = self.senders.get(ino) else {
                    return Err(Error::bad_image("sk-queues.img", format!("socket {ino} cannot have a queue")));
                };
                fill(sender, packets, files)?;
            }
        }
        self.senders.clear();
        self.connect(&all, cx)?;
        for (s, fd) in all.values() {
            let form = (libc::AF_UNIX, s.r#type as i32, 0);
            let new = Some((&cx.state.fresh, form)).filter(|_| !self.given.contains(&s.ino));
            sockopt::restore(fd, &s.opts, new)?;
            sockopt::restore_filter(fd, &s.opts)?;
            shut(*fd, s)?;
            cx.settle(fd, s.flags, &s.fown)?;
        }
        Ok(())
    }

    /// Connections that only one side knows of: of datagram sockets, and those that wait to be accepted.
    fn connect(&self, all: &BTreeMap<u32, (&UnixSkEntry, BorrowedFd<'_>)>, cx: &Opener<'_>) -> Result<()> {
        // A socket that is connected accepts its peer only, so whoever connects to it goes before it.
        let mut todo: BTreeSet<u32> = BTreeSet::new();
        let mut awaited: HashMap<u32, usize> = HashMap::new();
        for (ino, (s, _)) in all {
            let datagram = s.r#type == libc::SOCK_DGRAM as u32;
            let made_as_pair = || is_pair(s, |ino| all.get(&ino).map(|(o, _)| *o), all.values().map(|(o, _)| *o));
            if s.peer == 0 || !datagram || made_as_pair() || self.given.contains(ino) {
                continue;
            }
            todo.insert(*ino);
            if s.peer != *ino {
                *awaited.entry(s.peer).or_default() += 1;
            }
        }
        let mut ready: Vec<u32> = todo.iter().copied().filter(|ino| !awaited.contains_key(ino)).collect();
        loop {
            let next = ready.pop().or_else(|| todo.first().copied());
            let Some(ino) = next else { break };
            if !todo.remove(&ino) {
                continue;
            }
            let Some((s, fd)) = all.get(&ino) else { continue };
            self.connect_one(s, *fd, cx)?;
            if let Some(left) = awaited.get_mut(&s.peer).filter(|_| s.peer != ino) {
                *left -= 1;
                if *left == 0 {
                    ready.push(s.peer);
                }
            }
        }
        for (ino, (listener, fd)) in all.iter().filter(|(_, (s, _))| s.state == LISTEN) {
            let waits = |s: &UnixSkEntry| s.state == ESTABLISHED && s.peer == *ino && s.r#type == listener.r#type;
            let mut clients: Vec<u32> = all.values().filter(|(s, _)| waits(s)).map(|(s, _)| s.ino).collect();
            let place = |ino: &u32| listener.crust_pending.iter().position(|p| p == ino).unwrap_or(usize::MAX);
            clients.sort_by_key(|c| (place(c), *c));
            if clients.is_empty() {
                continue;
            }
            let most = (clients.len() as u32).max(listener.backlog);
            listen(fd, most, listener.crust_peer)?;
            for client in &clients {
                if let Some((s, fd)) = all.get(client) {
                    self.connect_one(s, *fd, cx)?;
                }
            }
            listen(fd, listener.backlog, listener.crust_peer)?;
        }
        Ok(())
    }

    fn connect_one(&self, s: &UnixSkEntry, fd: BorrowedFd<'_>, cx: &Opener<'_>) -> Result<()> {
        let Some(peer) = cx.images.unix.by_ino(s.peer).and_then(|id| cx.images.unix_by_id(id)) else {
            let what = format!("socket {} is connected to {}, which is not in files.img", s.ino, s.peer);
            return Err(Error::bad_image("files.img", what));
        };
        match self.places.get(&s.peer) {
            Some(place) => place.connect(fd),
            None => rustix::net::connect(fd, &address(&peer.name)?),
        }
        .during("connecting a unix socket to its peer again")
        .map_err(|e| e.on(Object::Path(shown(&peer.name))))
    }
}

fn shut(fd: BorrowedFd<'_>, s: &UnixSkEntry) -> Result<()> {
    use rustix::net::Shutdown;
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

/// Sends what waited in a socket.
fn fill(sender: &OwnedFd, packets: &[QueuedPacket], files: &HashMap<u32, BorrowedFd<'_>>) -> Result<()> {
    for packet in packets {
        let mut rights = Vec::with_capacity(packet.rights.len());
        for id in &packet.rights {
            let missing = || Error::bad_image("sk-queues.img", format!("file {id} is not in files.img"));
            rights.push(*files.get(id).ok_or_else(missing)?);
        }
        let mut rest = &packet.bytes[..];
        loop {
            match unix_msg::send(sender, rest, &rights) {
                Ok(n) if n >= rest.len() => break,
                Ok(n) => {
                    rest = rest.get(n..).unwrap_or_default();
                    rights.clear();
                }
                Err(Errno::AGAIN) => {
                    // The sender's buffer was larger then.
                    let size = option(sender, libc::SOL_SOCKET, libc::SO_SNDBUF).during("reading a socket option")?;
                    if size > MOST {
                        return Err(Error::kernel("filling a socket's queue failed", Errno::AGAIN)
                            .help("raise /proc/sys/net/unix/max_dgram_qlen"));
                    }
                    let want = (rest.len() as i32).saturating_add(size).saturating_mul(2);
                    set_option(sender, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, want)
                        .during("filling a socket's queue")
                        .map_err(|e| e.help("raise /proc/sys/net/core/wmem_max"))?;
                }
                Err(e) => return Err(Error::kernel("filling a socket's queue failed", e)),
            }
        }
    }
    Ok(())
}

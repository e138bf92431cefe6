//! What waits in a unix socket: messages with the descriptors they carry. Looked at with MSG_PEEK, which takes nothing.
//!
//! Messages beyond the first show only with a peek offset (`SO_PEEK_OFF`), which is put back at once. An empty message
//! shows once with an offset; the kernel skips it afterwards. So a second look could miss some: it counts what the
//! other end has sent, and refuses if something is missing.
use super::super::look::FdView;
use crate::{Error, Result, ResultExt};
use crust_kernel::sock_diag::{UnixSocket, option, set_option};
use crust_kernel::unix_msg::{self, Message};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const SO_PEEK_OFF: i32 = 42;
/// Longest message that is looked at.
const MOST: usize = 1 << 26;

/// A message, or bytes of a stream that came together.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) rights: Vec<OwnedFd>,
}

fn lost(what: &str) -> Error {
    Error::unsupported(
        format!("{what} in the queue of a unix socket cannot be saved yet"),
        "try again when it was received",
    )
}

/// What a message must not have beside its bytes and descriptors.
fn plain(m: Message, watched: bool) -> Result<Packet> {
    if m.other {
        return Err(lost("a control message (or more descriptors than we may have open)"));
    }
    if m.credentials && !watched {
        return Err(lost("a message with its sender's credentials (SO_PASSCRED)"));
    }
    Ok(Packet { bytes: m.bytes, rights: m.rights })
}

/// A socket's peek offset; -1 for none.
fn peek_offset(fd: BorrowedFd<'_>) -> Result<i32> {
    option(fd, libc::SOL_SOCKET, SO_PEEK_OFF).during("asking for a socket's peek offset")
}

fn set_peek_offset(fd: BorrowedFd<'_>, to: i32) -> Result<()> {
    set_option(fd, libc::SOL_SOCKET, SO_PEEK_OFF, to).during("setting a socket's peek offset")
}

/// Everything that waits in a socket, in its order. `sent` is what the other end of a connection has on its way.
pub(super) fn look(v: &FdView<'_>, s: &UnixSocket, sent: Option<u32>) -> Result<Vec<Packet>> {
    let fd = v.copy()?;
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::new(&fd, PollFlags::IN)];
    if poll(&mut polled, Some(&now)).during("asking whether something waits in a socket")? == 0 {
        return Ok(Vec::new());
    }
    let is_stream = i32::from(s.kind) == libc::SOCK_STREAM;
    if polled[0].revents().contains(PollFlags::ERR) {
        // Looking at messages would take it away. A stream's bytes come before it.
        if !is_stream {
            return Err(lost("an error (the other end was closed with messages unread)"));
        }
        log::warn!("{v:?}: the error that waits in the socket (its other end was closed with bytes unread) is lost");
    }
    let waiting = if is_stream {
        rustix::io::ioctl_fionread(fd).during("asking how much waits in a socket")? as usize
    } else {
        0
    };
    if is_stream && waiting == 0 {
        return Ok(Vec::new());
    }
    let before = peek_offset(fd)?;
    let counted = i32::from(s.kind) == libc::SOCK_SEQPACKET && sent.is_some();
    let found = if is_stream { stream(fd, waiting) } else { messages(fd, s, counted) };
    set_peek_offset(fd, before)?;
    let mut found = found?;
    if let Some(sent) = sent.filter(|_| counted) {
        let hidden = hidden(&found, sent);
        if hidden > 0 && !found.is_empty() {
            return Err(lost("an empty message that somebody has looked at before"));
        }
        found.extend((0..hidden).map(|_| Packet { bytes: Vec::new(), rights: Vec::new() }));
    }
    Ok(found)
}

fn stream(fd: BorrowedFd<'_>, waiting: usize) -> Result<Vec<Packet>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < waiting {
        set_peek_offset(fd, at as i32)?;
        let mut seen = plain(unix_msg::peek(fd, waiting - at).during("looking at a socket's queue")?, false)?;
        if seen.bytes.is_empty() {
            return Err(lost("urgent data (MSG_OOB)"));
        }
        let len = seen.bytes.len();
        if !seen.rights.is_empty() {
            // They come with the last message seen: all before it ends within one byte less.
            set_peek_offset(fd, at as i32)?;
            let before = match unix_msg::peek_messages(fd, len - 1) {
                Err(Errno::FAULT) => 0,
                other => other.during("looking at a socket's queue")?,
            };
            if before > 0 {
                let rest = seen.bytes.split_off(before);
                found.push(Packet { bytes: std::mem::replace(&mut seen.bytes, rest), rights: Vec::new() });
            }
        }
        found.push(seen);
        at += len;
    }
    Ok(found)
}

fn messages(fd: BorrowedFd<'_>, s: &UnixSocket, counted: bool) -> Result<Vec<Packet>> {
    // The end of a connection reads as an empty message. Only a message has a sender who can be asked for.
    let may_end = i32::from(s.kind) == libc::SOCK_SEQPACKET && s.shutdown & 1 != 0;
    let asked = option(fd, libc::SOL_SOCKET, libc::SO_PASSCRED).during("reading a socket option")? != 0;
    let watched = may_end && !asked;
    let ask = |on: i32| match watched {
        true => set_option(fd, libc::SOL_SOCKET, libc::SO_PASSCRED, on).during("setting a socket option"),
        false => Ok(()),
    };
    ask(1)?;
    let found = walk(fd, may_end, watched, counted);
    ask(0)?;
    found
}

fn walk(fd: BorrowedFd<'_>, may_end: bool, watched: bool, counted: bool) -> Result<Vec<Packet>> {
    let mut found: Vec<Packet> = Vec::new();
    let (mut room, mut offset) = (1 << 16, 0);
    set_peek_offset(fd, 0)?;
    loop {
        match unix_msg::peek(fd, room) {
            Ok(m) if m.cut && room < MOST => {
                room *= 4;
                set_peek_offset(fd, offset)?;
            }
            Ok(m) if m.cut => return Err(lost("a message that is too long")),
            Ok(m) if may_end && m.bytes.is_empty() && !m.credentials => break,
            Ok(m) => {
                let packet = plain(m, watched)?;
                offset = offset.saturating_add(packet.bytes.len() as i32);
                found.push(packet);
            }
            Err(Errno::AGAIN | Errno::NOTCONN) => break,
            Err(e) => return Err(Error::kernel("looking at a socket's queue failed", e)),
        }
    }
    if found.is_empty() && !counted {
        set_peek_offset(fd, -1)?;
        match unix_msg::peek(fd, 0) {
            Ok(m) if m.credentials || !may_end => {
                return Err(lost("an empty message that somebody has looked at before"));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// How many empty messages the other end has sent beyond those found, told by the memory that its messages take.
fn hidden(found: &[Packet], sent: u32) -> u32 {
    if sent == 0 {
        return 0;
    }
    let measure = || -> Option<u32> {
        let (a, _b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).ok()?;
        let send = |bytes: &[u8]| match unix_msg::send(&a, bytes, &[]) {
            Err(Errno::AGAIN) => {
                set_option(a.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, (MOST / 2) as i32).ok()?;
                unix_msg::send(&a, bytes, &[]).ok()
            }
            other => other.ok(),
        };
        send(&[])?;
        let empty = unix_msg::unreceived(&a).ok().filter(|size| *size > 0)?;
        for packet in found {
            send(&packet.bytes)?;
        }
        let all = unix_msg::unreceived(&a).ok()?;
        Some(sent.saturating_sub(all - empty) / empty)
    };
    measure().unwrap_or(0)
}

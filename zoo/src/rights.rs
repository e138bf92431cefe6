//! Messages with descriptors through unix sockets.
use rustix::io::{Result, read, write};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A pair of unix sockets that never wait.
pub fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    crate::must(socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None))
}

/// A pipe that never waits: reader, writer.
pub fn new_pipe() -> (OwnedFd, OwnedFd) {
    crate::must(pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK))
}

/// Sends through one, receives from the other.
pub fn works(zoo: &mut crate::Zoo, what: &str, w: Option<&OwnedFd>, r: Option<&OwnedFd>) {
    let (Some(w), Some(r)) = (w, r) else { return zoo.ok(what, false) };
    zoo.eq(what, write(w, b"through"), Ok(7));
    let mut got = [0; 20];
    zoo.eq(what, read(r, &mut got), Ok(7));
}

/// Sends bytes with copies of these descriptors.
///
/// # Errors
/// As sendmsg(2).
pub fn send(via: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(via, &[IoSlice::new(bytes)], &mut control, SendFlags::DONTWAIT)
}

/// Takes the next message, without waiting: its bytes and its descriptors.
///
/// # Errors
/// As recvmsg(2).
pub fn receive(via: impl AsFd, room: usize) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; room];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(via, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::DONTWAIT)?;
    bytes.truncate(got.bytes);
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((bytes, fds))
}

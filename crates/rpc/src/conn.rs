//! One SEQPACKET connection: whole messages in and out, with at most one descriptor along.
use crate::{MAX_PACKET_BYTES, Response};
use prost::Message;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recv, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// What one read brought.
#[derive(Debug)]
pub enum Packet<M> {
    /// A message, and the descriptor that came with it.
    Message(M, Option<OwnedFd>),
    /// The other side closed its end, or shut down writing.
    Closed,
    /// Bytes that are no such message.
    Garbage(String),
}

/// A connected SEQPACKET socket.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
}

impl Connection {
    /// Wraps a connected socket; [`Connection::check`] tells whether it is of the right kind.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Refuses a descriptor that is no AF_UNIX SEQPACKET socket.
    ///
    /// # Errors
    /// Says what the descriptor is instead.
    pub fn check(&self) -> io::Result<()> {
        use rustix::net::{AddressFamily, SocketType, sockopt};
        let kind = sockopt::socket_type(&self.socket).map_err(|e| match e {
            Errno::NOTSOCK => io::Error::new(io::ErrorKind::InvalidInput, "not a socket"),
            e => e.into(),
        })?;
        let domain = sockopt::socket_domain(&self.socket)?;
        if domain != AddressFamily::UNIX || kind != SocketType::SEQPACKET {
            let text = format!("not an AF_UNIX SEQPACKET socket (domain {}, type {})", domain.as_raw(), kind.as_raw());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(())
    }

    /// Waits for one packet of any size up to [`MAX_PACKET_BYTES`] and decodes it.
    ///
    /// # Errors
    /// Socket errors only; what the other side sends wrong is a [`Packet`].
    pub fn receive<M: Message + Default>(&self) -> io::Result<Packet<M>> {
        self.receive_at_most(MAX_PACKET_BYTES)
    }

    /// The same with a limit of the caller's own.
    ///
    /// # Errors
    /// As there.
    pub fn receive_at_most<M: Message + Default>(&self, most: usize) -> io::Result<Packet<M>> {
        let (packet, mut fds) = self.receive_all(most)?;
        Ok(match packet {
            Packet::Message(message, _) if !fds.is_empty() => Packet::Message(message, Some(fds.swap_remove(0))),
            packet => packet,
        })
    }

    /// The same with all descriptors that came beside the packet (up to 16), which itself has none.
    ///
    /// # Errors
    /// As there.
    pub fn receive_all<M: Message + Default>(&self, most: usize) -> io::Result<(Packet<M>, Vec<OwnedFd>)> {
        let garbage = |what: String| Ok((Packet::Garbage(what), Vec::new()));
        let mut none = [0u8; 0];
        let peek = RecvFlags::PEEK | RecvFlags::TRUNC;
        let (_, len) = retry_on_intr(|| recv(&self.socket, &mut none[..], peek))?;
        if len > most {
            let mut scrap = [0u8; 1];
            retry_on_intr(|| recv(&self.socket, &mut scrap[..], RecvFlags::empty()))?;
            return garbage(format!("a packet of {len} bytes; {most} are allowed"));
        }
        let mut bytes = vec![0u8; len.max(1)];
        // Room for a few descriptors: what a client sends too many is received, closed, and never left in a queue.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = retry_on_intr(|| {
            let mut iov = [IoSliceMut::new(&mut bytes)];
            recvmsg(&self.socket, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if got.bytes == 0 && fds.is_empty() {
            return Ok((Packet::Closed, fds));
        }
        if got.flags.contains(ReturnFlags::TRUNC) {
            return garbage("the packet grew while it was read".to_owned());
        }
        match M::decode(bytes.get(..got.bytes).unwrap_or_default()) {
            Ok(message) => Ok((Packet::Message(message, None), fds)),
            Err(e) => garbage(e.to_string()),
        }
    }

    /// Waits until something can be read, or the other side is gone. False: not before `end`.
    ///
    /// # Errors
    /// The wait failed.
    pub fn readable_until(&self, end: Instant) -> io::Result<bool> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Throws away what has arrived already, without waiting for more: a socket that is closed with unread packets
    /// makes the other side see a reset instead of the last reply.
    pub fn discard_pending(&self) {
        let mut scrap = [0u8; 1];
        // A hostile sender must not keep us here.
        for _ in 0..64 {
            match recv(&self.socket, &mut scrap[..], RecvFlags::DONTWAIT) {
                Ok((_, 1..)) | Err(Errno::INTR) => {}
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Sends one message as one packet, with a descriptor if one is given. Never raises SIGPIPE.
    ///
    /// # Errors
    /// Socket errors, `EPIPE` if nobody reads any more.
    pub fn send<M: Message>(&self, message: &M, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let bytes = message.encode_to_vec();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Errno::NOBUFS.into());
        }
        retry_on_intr(|| sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// [`Connection::send`] for a server.
    ///
    /// # Errors
    /// As there.
    pub fn send_response(&self, response: &Response) -> io::Result<()> {
        self.send(response, None)
    }

    /// True once the other side is gone altogether. One that only shut down writing still waits for its reply.
    pub fn hung_up(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&now)), Ok(n) if n > 0)
            && fds.iter().any(|f| f.revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL))
    }

    /// Gives the socket back.
    pub fn into_fd(self) -> OwnedFd {
        self.socket
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

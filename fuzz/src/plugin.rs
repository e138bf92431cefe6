//! What is fuzzed of what plugins say: a reply from anywhere, with any number of descriptors beside it. Nothing may panic or wait,
//! and what decodes must encode to something that decodes to the same.
use crust_rpc::plugin::{Hook, Reply, Request};
use crust_rpc::{Connection, Packet};
use prost::Message;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg, socketpair,
};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

/// Larger ones are refused in the run.
const MOST: usize = 4096;
/// So many are taken in, if as many come.
const MOST_FDS: usize = 16;

/// The first byte says how many descriptors come along, the rest is one packet.
pub fn reply(data: &[u8]) {
    let Some((count, data)) = data.split_first() else { return };
    let count = usize::from(*count) % 2 * MOST_FDS + usize::from(*count) / 2 % 4;
    let decoded = Reply::decode(data);
    if let Ok(reply) = &decoded {
        assert_eq!(Reply::decode(reply.encode_to_vec().as_slice()).as_ref(), Ok(reply));
        let _name = Hook::try_from(reply.hook).map(|hook| hook.as_str_name());
    }
    if let Ok(request) = Request::decode(data) {
        assert_eq!(Request::decode(request.encode_to_vec().as_slice()), Ok(request));
    }
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let Ok((ours, theirs)) = pair else { return };
    let fds = vec![ours.as_fd(); count];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    if sendmsg(&ours, &[IoSlice::new(data)], &mut control, flags).is_err() {
        return;
    }
    drop(ours);
    let (packet, fds) = Connection::new(theirs).receive_all::<Reply>(MOST).expect("a packet is there");
    match (packet, decoded) {
        (Packet::Closed, _) => assert!(data.is_empty()),
        (Packet::Garbage(_), Ok(_)) => assert!(data.len() > MOST),
        (Packet::Garbage(why), Err(_)) => assert!(!why.is_empty()),
        (Packet::Message(message, fd), decoded) => {
            assert_eq!(Ok(message), decoded);
            assert!(fd.is_none());
            // The buffer's alignment has room for a few more.
            assert!((count.min(MOST_FDS)..=count).contains(&fds.len()));
        }
    }
}

//! What is fuzzed of the RPC: a request or reply from anywhere, as bytes and as a packet on a socket. Nothing may panic or
//! wait, and what decodes must encode to something that decodes to the same.
use crust_rpc::{Connection, Packet, Request, Response};
use prost::Message;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

/// Larger packets are refused in the run, as the service refuses those of an ordinary user.
const MOST: usize = 4096;

/// One packet.
pub fn request(data: &[u8]) {
    let decoded = Request::decode(data);
    if let Ok(request) = &decoded {
        let again = Request::decode(request.encode_to_vec().as_slice());
        assert_eq!(again.as_ref(), Ok(request));
        let _kind = request.r#type();
        if let Some(o) = &request.opts {
            let _modes = (o.pre_dump_mode(), o.network_lock(), o.manage_cgroups_mode(), o.cpu_cap());
        }
    }
    if let Ok(response) = Response::decode(data) {
        assert_eq!(Response::decode(response.encode_to_vec().as_slice()), Ok(response));
    }
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let Ok((ours, theirs)) = pair else { return };
    if send(&ours, data, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_err() {
        return;
    }
    drop(ours);
    let connection = Connection::new(theirs);
    match (connection.receive_at_most::<Request>(MOST).expect("a packet is there"), decoded) {
        (Packet::Closed, _) => assert!(data.is_empty()),
        (Packet::Garbage(_), Ok(_)) => assert!(data.len() > MOST),
        (Packet::Garbage(why), Err(_)) => assert!(!why.is_empty()),
        (Packet::Message(message, None), decoded) => assert_eq!(Ok(message), decoded),
        (Packet::Message(_, Some(_)), _) => panic!("a descriptor from nowhere"),
    }
}

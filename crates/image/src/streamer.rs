//! The messages between CRIU and criu-image-streamer, over a stream socket: a 32-bit length, then a record. After a request
//! (and, at restore, the reply that there is such a file) one end of a pipe is sent along with a byte; the file's content
//! goes through that pipe. Whoever asks for files closes the connection when it needs no more.
use crate::proto::{ImgStreamerReplyEntry, ImgStreamerRequestEntry};
use crate::{Error, Result, What};
use prost::Message;
use std::io::{self, Read};

/// The socket, inside the image directory, of a streamer that takes a dump's files.
pub const CAPTURE_SOCKET: &str = "streamer-capture.sock";
/// The socket of a streamer that gives a restore its files.
pub const SERVE_SOCKET: &str = "streamer-serve.sock";
/// The longest message; the streamer gives up beyond.
const MAX_BYTES: usize = 10 << 10;

fn frame(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    let mut out = (body.len() as u32).to_le_bytes().to_vec();
    out.extend_from_slice(&body);
    out
}

/// The request for a file.
pub fn request(name: &str) -> Vec<u8> {
    frame(&ImgStreamerRequestEntry { filename: name.to_owned() })
}

/// The answer to a restore's request.
pub fn reply(exists: bool) -> Vec<u8> {
    frame(&ImgStreamerReplyEntry { exists })
}

/// Reads a request; `None` if the other side closed the connection.
///
/// # Errors
/// If what comes is no request.
pub fn read_request(from: &mut impl Read) -> Result<Option<String>> {
    Ok(read::<ImgStreamerRequestEntry>(from, "a request")?.map(|r| r.filename))
}

/// Reads the reply to a request; `None` if the other side closed the connection.
///
/// # Errors
/// If what comes is no reply.
pub fn read_reply(from: &mut impl Read) -> Result<Option<bool>> {
    Ok(read::<ImgStreamerReplyEntry>(from, "a reply")?.map(|r| r.exists))
}

fn read<T: Message + Default>(from: &mut impl Read, what: &'static str) -> Result<Option<T>> {
    let error = |at: u64, what: What| Error::new("image streamer", at, None, what);
    let mut len = [0; 4];
    let there = fill(from, &mut len)?;
    if there == 0 {
        return Ok(None);
    }
    if there < len.len() {
        return Err(error(0, What::Truncated("a message's length", 4, there as u64)));
    }
    let len = u32::from_le_bytes(len) as usize;
    if len > MAX_BYTES {
        return Err(error(0, What::TooLong("a message", len as u64, MAX_BYTES as u64)));
    }
    let mut body = vec![0; len];
    let there = fill(from, &mut body)?;
    if there < len {
        return Err(error(4, What::Truncated("a message", len as u64, there as u64)));
    }
    T::decode(body.as_slice()).map(Some).map_err(|e| error(4, What::Record(what, e.to_string())))
}

/// Reads until `into` is full or the input ends; says how much came.
fn fill(from: &mut impl Read, into: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while let Some(room) = into.get_mut(filled..).filter(|room| !room.is_empty()) {
        match from.read(room) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::text("image streamer", format!("the connection failed: {e}"))),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back() -> Result<()> {
        let bytes = [request("core-1.img"), request("")].concat();
        assert_eq!(bytes[..6], [12, 0, 0, 0, 0x0a, 10]);
        let mut from = bytes.as_slice();
        assert_eq!(read_request(&mut from)?.as_deref(), Some("core-1.img"));
        assert_eq!(read_request(&mut from)?.as_deref(), Some(""));
        assert_eq!(read_request(&mut from)?, None);
        assert_eq!(reply(true), [2, 0, 0, 0, 8, 1]);
        assert_eq!(read_reply(&mut reply(false).as_slice())?, Some(false));
        Ok(())
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (bytes, said) in [
            (&[1_u8, 0][..], "a message's length: 4 bytes expected, 2 there"),
            (&[2, 0, 0, 0, 8], "a message: 2 bytes expected, 1 there"),
            (&[0, 0, 1, 0, 8], "a message of 65536 bytes"),
            (&[2, 0, 0, 0, 0xff, 0xff], "a reply record expected"),
        ] {
            let e = read_reply(&mut &*bytes).unwrap_err().to_string();
            assert!(e.contains(said), "{e}");
        }
    }
}

//! Descriptors on their way through unix sockets: of files that nobody has otherwise, of one that is open too, of both
//! ends of a pipe, of an epoll, and of the socket itself; one sender is gone.
use rustix::event::epoll;
use rustix::io::{read, write};
use rustix::net::SocketType;
use std::os::fd::{AsFd, AsRawFd};
use zoo::rights::{new_pipe, pair, receive, send, works};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let kept = new_pipe();
    let stream = pair(SocketType::STREAM);
    let datagrams = pair(SocketType::DGRAM);
    loop {
        // A stream: bytes before and after those that bring descriptors.
        let (r, w) = new_pipe();
        zoo.eq("write", write(&w, b"under way"), Ok(9));
        zoo.eq("send", send(&stream.0, b"before ", &[]), Ok(7));
        zoo.eq("send", send(&stream.0, b"two", &[r.as_fd(), w.as_fd()]), Ok(3));
        zoo.eq("send", send(&stream.0, b"kept", &[kept.0.as_fd()]), Ok(4));
        zoo.eq("send", send(&stream.0, b" after", &[]), Ok(6));
        drop((r, w));
        // Datagrams, one with the socket that it waits in.
        let (r, w) = new_pipe();
        zoo.eq("send", send(&datagrams.0, b"reader", &[r.as_fd()]), Ok(6));
        zoo.eq("send", send(&datagrams.0, b"plain", &[]), Ok(5));
        zoo.eq("send", send(&datagrams.0, b"itself", &[datagrams.1.as_fd()]), Ok(6));
        drop(r);
        // An epoll that nobody has otherwise, twice, from a sender that is gone.
        let (gone, last) = pair(SocketType::SEQPACKET);
        let ep = zoo::must(epoll::create(epoll::CreateFlags::CLOEXEC));
        zoo::must(epoll::add(&ep, &kept.0, epoll::EventData::new_u64(7), epoll::EventFlags::IN));
        zoo.eq("send", send(&gone, b"epoll", &[ep.as_fd()]), Ok(5));
        zoo.eq("send", send(&gone, b"again", &[ep.as_fd()]), Ok(5));
        drop((gone, ep));

        let on = zoo.gap();
        let mut got = [0; 20];
        let (bytes, fds) = zoo.get("datagram", receive(&datagrams.1, 100));
        zoo.eq("datagram", (bytes.as_slice(), fds.len()), (&b"reader"[..], 1));
        works(&mut zoo, "the pipe's reader", Some(&w), fds.first());
        zoo.eq("datagram", receive(&datagrams.1, 100).map(|(b, f)| (b, f.len())), Ok((b"plain".to_vec(), 0)));
        let (bytes, fds) = zoo.get("datagram", receive(&datagrams.1, 100));
        zoo.eq("datagram", bytes.as_slice(), b"itself");
        works(&mut zoo, "the socket itself", Some(&datagrams.0), fds.first());

        // Bytes that came before may stand in one message with those that bring descriptors (CRIU), or not.
        let (mut bytes, mut fds) = zoo.get("stream", receive(&stream.1, 100));
        if fds.is_empty() {
            let (more, with) = zoo.get("stream", receive(&stream.1, 100));
            bytes.extend(more);
            fds = with;
        }
        zoo.eq("stream", (bytes.as_slice(), fds.len()), (&b"before two"[..], 2));
        let content = fds.first().map(|r| read(r, &mut got));
        zoo.eq("what waited in the pipe", content, Some(Ok(9)));
        works(&mut zoo, "the pipe", fds.get(1), fds.first());
        let (bytes, fds) = zoo.get("stream", receive(&stream.1, 4));
        zoo.eq("stream", (bytes.as_slice(), fds.len()), (&b"kept"[..], 1));
        works(&mut zoo, "the file that was kept", Some(&kept.1), fds.first());
        zoo.eq("stream", receive(&stream.1, 100).map(|(b, f)| (b, f.len())), Ok((b" after".to_vec(), 0)));

        let (bytes, eps) = zoo.get("record", receive(&last, 100));
        zoo.eq("record", (bytes.as_slice(), eps.len()), (&b"epoll"[..], 1));
        let (bytes, twins) = zoo.get("record", receive(&last, 100));
        zoo.eq("record", (bytes.as_slice(), twins.len()), (&b"again"[..], 1));
        zoo.eq("the end", read(&last, &mut got), Ok(0));
        if let (Some(ep), Some(twin)) = (eps.first(), twins.first()) {
            zoo.ok("one epoll", zoo::sys::same_file(ep.as_raw_fd(), twin.as_raw_fd()));
            zoo.eq("write", write(&kept.1, b"x"), Ok(1));
            let mut events = Vec::with_capacity(4);
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            let seen = epoll::wait(ep, rustix::buffer::spare_capacity(&mut events), Some(&now));
            zoo.eq("events", (seen, events.first().map(|e| e.data.u64())), (Ok(1), Some(7)));
            zoo.eq("read", read(&kept.0, &mut got), Ok(1));
        }
        if !on {
            return;
        }
    }
}

//! Sockets on their way through sockets, with descriptors on their way in their own queues; and where among the bytes of
//! a stream descriptors come.
use rustix::event::epoll;
use rustix::io::{read, write};
use rustix::net::SocketType;
use std::os::fd::AsFd;
use zoo::rights::{new_pipe, pair, receive, send, works};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let stream = pair(SocketType::STREAM);
    let datagrams = pair(SocketType::DGRAM);
    let records = pair(SocketType::SEQPACKET);
    let kept = new_pipe();
    loop {
        let (r, w) = new_pipe();
        zoo.eq("send", send(&stream.0, b"before ", &[]), Ok(7));
        zoo.eq("send", send(&stream.0, b"with", &[r.as_fd()]), Ok(4));
        zoo.eq("send", send(&stream.0, b"also", &[r.as_fd()]), Ok(4));
        drop(r);
        // A socket whose queue holds one end of a connection; its other end is ours.
        let (a, b) = pair(SocketType::STREAM);
        let (c, d) = pair(SocketType::DGRAM);
        zoo.eq("send", send(&c, b"inner", &[b.as_fd()]), Ok(5));
        zoo.eq("send", send(&datagrams.0, b"", &[d.as_fd()]), Ok(0));
        drop((b, c, d));
        // A socket in its own queue, which nobody has but another queue; and an epoll two steps away.
        let (e, f) = pair(SocketType::SEQPACKET);
        let ep = zoo::must(epoll::create(epoll::CreateFlags::CLOEXEC));
        zoo::must(epoll::add(&ep, &kept.0, epoll::EventData::new_u64(7), epoll::EventFlags::IN));
        zoo.eq("send", send(&e, b"self", &[f.as_fd(), ep.as_fd()]), Ok(4));
        zoo.eq("send", send(&records.0, b"ring", &[e.as_fd(), f.as_fd()]), Ok(4));
        drop((e, f, ep));

        let on = zoo.gap();
        let mut got = [0; 20];
        zoo.eq("bytes only", receive(&stream.1, 3).map(|(b, f)| (b, f.len())), Ok((b"bef".to_vec(), 0)));
        zoo.eq("bytes only", receive(&stream.1, 4).map(|(b, f)| (b, f.len())), Ok((b"ore ".to_vec(), 0)));
        let (bytes, fds) = zoo.get("stream", receive(&stream.1, 100));
        zoo.eq("stream", (bytes.as_slice(), fds.len()), (&b"with"[..], 1));
        works(&mut zoo, "the pipe", Some(&w), fds.first());
        let (bytes, fds) = zoo.get("stream", receive(&stream.1, 100));
        zoo.eq("stream", (bytes.as_slice(), fds.len()), (&b"also"[..], 1));
        works(&mut zoo, "the pipe again", Some(&w), fds.first());

        let (bytes, fds) = zoo.get("datagram", receive(&datagrams.1, 100));
        zoo.eq("datagram", (bytes.len(), fds.len()), (0, 1));
        let inner = fds.first().map(|d| receive(d, 100).unwrap_or_default());
        let (bytes, inner) = inner.unwrap_or_default();
        zoo.eq("inner", bytes.as_slice(), b"inner");
        works(&mut zoo, "the inner socket", Some(&a), inner.first());

        let (bytes, ring) = zoo.get("record", receive(&records.1, 100));
        zoo.eq("record", (bytes.as_slice(), ring.len()), (&b"ring"[..], 2));
        let own = ring.get(1).map(|f| receive(f, 100).unwrap_or_default());
        let (bytes, own) = own.unwrap_or_default();
        zoo.eq("record", (bytes.as_slice(), own.len()), (&b"self"[..], 2));
        works(&mut zoo, "through the ring", ring.first(), own.first());
        if let Some(ep) = own.get(1) {
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

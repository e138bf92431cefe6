//! Packets on a real socket pair: right ones, wrong ones, and what clients in the field leave out.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
use crust_rpc::{Client, Connection, Error, MAX_PACKET_BYTES, Opts, Packet, Request, RequestType, Response, Version};
use prost::Message;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair, sockopt};
use std::os::fd::{AsFd, AsRawFd};

fn pair() -> (Connection, Connection) {
    let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    (Connection::new(a), Connection::new(b))
}

fn raw(bytes: &[u8]) -> Packet<Request> {
    let (ours, theirs) = pair();
    send(&ours, bytes, SendFlags::empty()).unwrap();
    theirs.receive().unwrap()
}

#[test]
fn garbage_and_truncation_are_told_apart_from_the_end() {
    for bytes in [&b"\xff"[..], b"\x08", b"\x0a\x7fshort", b"\x12\x02\x08", b"\x07"] {
        assert!(matches!(raw(bytes), Packet::Garbage(_)), "{bytes:?}");
    }
    let whole = Request {
        r#type: 1,
        opts: Some(Opts { log_file: Some(vec![b'x'; 100]), ..Opts::default() }),
        ..Default::default()
    };
    let whole = whole.encode_to_vec();
    for end in 1..whole.len() {
        match raw(&whole[..end]) {
            Packet::Message(..) | Packet::Garbage(_) => {}
            Packet::Closed => panic!("{end} bytes are not the end"),
        }
    }
    let (ours, theirs) = pair();
    drop(ours);
    assert!(matches!(theirs.receive::<Request>().unwrap(), Packet::Closed));
}

#[test]
fn fields_that_are_required_on_paper_may_be_missing() {
    // DUMP with opts that hold a pid only: go-criu's tests leave images_dir_fd out.
    let Packet::Message(request, None) = raw(b"\x08\x01\x12\x02\x10\x07") else { panic!("refused") };
    let opts = request.opts.as_ref().unwrap();
    assert_eq!(
        (request.r#type(), opts.pid, opts.images_dir_fd, opts.images_dir_fd()),
        (RequestType::Dump, Some(7), None, -1)
    );
    // Defaults are CRIU's.
    assert_eq!((opts.log_level(), opts.cpu_cap(), opts.ghost_limit()), (2, u32::MAX, 0x10_0000));
    // No type at all, and a cgroup root without its path.
    assert!(matches!(raw(b"\x18\x01"), Packet::Message(r, None) if r.r#type == 0));
    assert!(matches!(raw(b"\x08\x02\x12\x03\xca\x01\x00"), Packet::Message(..)));
}

#[test]
fn unknown_fields_and_enum_values_are_no_error() {
    // Field 72 (image_io_mode of later CRIU) and a request type from the future.
    let Packet::Message(request, None) = raw(b"\x08\x63\x12\x03\xc0\x04\x01") else { panic!("refused") };
    assert_eq!(request.r#type, 99);
}

#[test]
fn a_packet_may_be_large_but_not_boundless() {
    let (ours, theirs) = pair();
    for connection in [&ours, &theirs] {
        sockopt::set_socket_send_buffer_size(connection, 4 << 20).unwrap();
    }
    let big =
        Request { opts: Some(Opts { external: vec!["x".repeat(100); 500], ..Opts::default() }), ..Default::default() };
    ours.send(&big, None).unwrap();
    assert!(matches!(theirs.receive::<Request>().unwrap(), Packet::Message(r, None) if r == big));

    if send(&ours, &vec![0; MAX_PACKET_BYTES + 1], SendFlags::empty()).is_ok() {
        assert!(matches!(theirs.receive::<Request>().unwrap(), Packet::Garbage(_)));
        // What came after it is not lost.
        ours.send(&big, None).unwrap();
        assert!(matches!(theirs.receive::<Request>().unwrap(), Packet::Message(..)));
    }
}

#[test]
fn one_descriptor_travels_and_surplus_ones_are_closed() {
    let (ours, theirs) = pair();
    let file = std::fs::File::open("/dev/null").unwrap();
    ours.send(&Request::default(), Some(file.as_fd())).unwrap();
    let Packet::Message(_, Some(got)) = theirs.receive::<Request>().unwrap() else { panic!("no descriptor") };
    assert_ne!(got.as_raw_fd(), file.as_raw_fd());
    assert!(rustix::io::fcntl_getfd(&got).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn only_seqpacket_sockets_of_this_machine_will_do() {
    assert!(pair().0.check().is_ok());
    let (stream, _) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(Connection::new(stream.into()).check().is_err());
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(Connection::new(tcp.into()).check().is_err());
    assert!(Connection::new(std::fs::File::open("/dev/null").unwrap().into()).check().is_err());
}

#[test]
fn a_hang_up_is_noticed_but_a_half_closed_client_waits() {
    let (ours, theirs) = pair();
    assert!(!theirs.hung_up());
    rustix::net::shutdown(&ours, rustix::net::Shutdown::Write).unwrap();
    assert!(!theirs.hung_up());
    drop(ours);
    assert!(theirs.hung_up());
}

/// Serves one connection with prepared answers and returns what was asked.
fn serve(answers: Vec<Response>, call: impl FnOnce(&mut Client) + Send) -> Vec<Request> {
    let (ours, theirs) = pair();
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            let mut asked = Vec::new();
            for answer in answers {
                let Packet::Message(request, _) = theirs.receive::<Request>().unwrap() else { break };
                asked.push(request);
                theirs.send_response(&answer).unwrap();
            }
            asked
        });
        call(&mut Client::from_fd(ours.into_fd()));
        server.join().unwrap()
    })
}

fn answer(kind: RequestType, success: bool) -> Response {
    Response { r#type: kind.into(), success, ..Response::default() }
}

#[test]
fn the_client_acknowledges_notifications_as_it_is_told() {
    let notify = |script: &str| Response {
        notify: Some(crust_rpc::Notify { script: Some(script.into()), pid: None }),
        ..answer(RequestType::Notify, true)
    };
    let done =
        Response { dump: Some(crust_rpc::DumpResponse { restored: Some(true) }), ..answer(RequestType::Dump, true) };
    let asked = serve(vec![notify("pre-dump"), notify("post-dump"), done], |client| {
        assert!(client.dump(Opts::default(), |n| n.script == "pre-dump").unwrap());
    });
    let acks: Vec<_> = asked.iter().map(|r| (r.r#type(), r.notify_success)).collect();
    assert_eq!(
        acks,
        [(RequestType::Dump, None), (RequestType::Notify, Some(true)), (RequestType::Notify, Some(false))]
    );
}

#[test]
fn the_client_says_what_went_wrong() {
    let refused = Response { cr_errno: Some(3), cr_errmsg: Some("no".into()), ..answer(RequestType::Dump, false) };
    serve(vec![refused], |client| match client.dump(Opts::default(), |_| true) {
        Err(Error::Failed(f)) => assert_eq!((f.errno, f.message.as_deref()), (Some(3), Some("no"))),
        other => panic!("{other:?}"),
    });
    serve(vec![answer(RequestType::Check, true)], |client| {
        assert!(matches!(client.version(), Err(Error::Protocol(_))));
    });
    serve(vec![answer(RequestType::Version, true)], |client| {
        assert!(matches!(client.version(), Err(Error::Protocol(_))));
    });
    serve(vec![], |client| assert!(client.version().is_err()));
    let version = Some(Version { major_number: 4, minor_number: 2, ..Version::default() });
    serve(vec![Response { version, ..answer(RequestType::Version, true) }], |client| {
        assert_eq!(client.version().unwrap().major_number, 4);
    });
}

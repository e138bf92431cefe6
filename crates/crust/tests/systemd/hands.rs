//! Requests that a confined service hands over, and the service that takes them: both ends, with the test in the middle.
use crate::common::{Dir, Process, activated_with, connect, failure, listener, request, wait_deaf};
use crust_rpc::{Connection, Packet, Request, RequestType, Response};
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, socketpair};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

#[test]
fn restores_and_checks_of_root_go_to_the_other_service_with_their_connection() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = Dir::new("give");
    let (here, there) = (dir.path("service"), dir.path("restorer"));
    let restorer = listener(&there, SocketType::SEQPACKET);
    let args = ["--restore-via", there.to_str().unwrap()];
    let _service = activated_with(&dir, listener(&here, SocketType::SEQPACKET), "1", &args, &[]);
    // What it may do itself it does.
    assert_eq!(connect(&here).version().unwrap().major_number, 4);
    for kind in [RequestType::Restore, RequestType::Check] {
        let client = connect(&here);
        client.connection().send(&request(kind, None), None).unwrap();
        let giver = Connection::new(accept_with(&restorer, SocketFlags::CLOEXEC).unwrap());
        let Packet::Message(taken, Some(fd)) = giver.receive::<Request>().unwrap() else { panic!("no connection") };
        assert_eq!(taken, request(kind, None));
        // Whoever has the connection answers, and the service is out of it.
        let answer = Response { r#type: kind.into(), success: true, ..Response::default() };
        Connection::new(fd).send_response(&answer).unwrap();
        let Packet::Message(heard, _) = client.connection().receive::<Response>().unwrap() else { panic!("no answer") };
        assert_eq!(heard, answer);
        assert!(matches!(client.connection().receive::<Response>().unwrap(), Packet::Closed));
    }
    drop(restorer);
    wait_deaf(&there);
    let refused = failure(connect(&here).check().map(|()| 0));
    assert!(refused.message.unwrap().contains("crust-restore.socket"));
}

/// A service that was given `request` for the connection `fd`. The request stands in its socket before it runs: it may
/// refuse the sender and end before it reads, and whoever sends then meets a broken pipe.
fn taker(dir: &Dir, (ours, theirs): (OwnedFd, OwnedFd), fd: Option<BorrowedFd<'_>>) -> (Connection, Process) {
    fs::write(dir.path("stderr"), "").unwrap();
    let giver = Connection::new(ours);
    giver.send(&request(RequestType::Version, None), fd).unwrap();
    (giver, activated_with(dir, theirs, "1", &["--handed-over"], &[]))
}

#[test]
fn the_other_service_answers_the_client_and_takes_nothing_from_strangers() {
    let dir = Dir::new("take");
    let (client, served) = pair();
    let (_giver, mut service) = taker(&dir, pair(), Some(served.as_fd()));
    drop(served);
    let Packet::Message(heard, _) = Connection::new(client).receive::<Response>().unwrap() else { panic!("no answer") };
    assert_eq!(heard.version.unwrap().major_number, 4);
    assert_eq!(service.code(), Some(0));

    let said = || fs::read_to_string(dir.path("stderr")).unwrap();
    let (_giver, mut service) = taker(&dir, pair(), None);
    assert_eq!(service.code(), Some(1));
    assert!(said().contains("a request without its connection"), "{}", said());

    let (pipe, _writer) = std::io::pipe().unwrap();
    let (_giver, mut service) = taker(&dir, pair(), Some(pipe.as_fd()));
    assert_eq!(service.code(), Some(1));
    assert!(said().contains("not a socket"), "{}", said());

    // A thread has credentials of its own, as far as the kernel goes.
    if rustix::process::geteuid().is_root() {
        let nobody = rustix::process::Uid::from_raw(65534);
        let become_nobody = move || {
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            pair()
        };
        let (_client, served) = pair();
        let sockets = std::thread::spawn(become_nobody).join().unwrap();
        let (_giver, mut service) = taker(&dir, sockets, Some(served.as_fd()));
        assert_eq!(service.code(), Some(1));
        assert!(said().contains("user 65534 may not hand requests over"), "{}", said());
    }
}

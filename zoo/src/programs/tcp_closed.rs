//! TCP sockets whose connections have ended: one by both sides, one reset with bytes that nobody has read yet, one whose
//! error nobody has asked for; a listener is on the same port.
use rustix::io::{Errno, ioctl_fionread};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Waits until the kernel calls the socket closed, which is after the last packets of the connection.
fn closed(stream: &TcpStream) {
    let fd = zoo::must(stream.as_fd().try_clone_to_owned());
    let end = Instant::now() + Duration::from_secs(60);
    // The first byte of TCP_INFO is the state, 7 is closed.
    while zoo::must(zoo::sys::get_option(&fd, libc::IPPROTO_TCP, libc::TCP_INFO)).first() != Some(&7) {
        assert!(Instant::now() < end, "a connection does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let at = zoo::net::place();
    let listener = zoo::must(TcpListener::bind(at));
    let connect = || {
        let client = zoo::must(TcpStream::connect(at));
        (client, zoo::must(listener.accept()).0)
    };
    let mut on = true;
    while on {
        let (mut a, b) = connect();
        zoo::must(b.shutdown(Shutdown::Write));
        zoo::must(a.shutdown(Shutdown::Write));
        closed(&a);
        closed(&b);
        let (c, mut d) = connect();
        zoo::must((&c).write_all(b"hello"));
        while ioctl_fionread(&d) != Ok(5) {
            std::thread::yield_now();
        }
        zoo::must(rustix::net::sockopt::set_socket_linger(&c, Some(Duration::ZERO)));
        drop(c);
        closed(&d);
        // The reset's error is asked for here.
        zoo.ok("it was reset", zoo::must(rustix::net::sockopt::socket_error(&d)).is_err());
        let (e, mut f) = connect();
        zoo::must(rustix::net::sockopt::set_socket_linger(&e, Some(Duration::ZERO)));
        drop(e);
        closed(&f);
        on = zoo.gap();
        if !on {
            break;
        }
        let mut got = [0; 16];
        zoo.eq("read from a closed one", a.read(&mut got).ok(), Some(0));
        let broken = |r: std::io::Result<usize>| r.err().and_then(|e| e.raw_os_error());
        zoo.eq("write to it", broken(a.write(b"x")), Some(libc::EPIPE));
        zoo.eq("write to the other", broken((&b).write(b"x")), Some(libc::EPIPE));
        zoo.eq("what was not read", d.read(&mut got).ok(), Some(5));
        zoo.eq("the bytes", &got[..5], b"hello");
        zoo.eq("then the end", d.read(&mut got).ok(), Some(0));
        zoo.eq("write to a reset one", broken(d.write(b"x")), Some(libc::EPIPE));
        zoo.eq("the error", broken(f.read(&mut got)), Some(Errno::CONNRESET.raw_os_error()));
        zoo.eq("the listener", listener.local_addr().ok(), Some(at));
    }
}

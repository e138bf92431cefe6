//! What cannot be saved and is given up by `--skip-in-flight`: events of a queue without a limit, netlink messages. All else
//! stays.
use rustix::io::{Errno, read};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with};
use zoo::sys::{fanotify_init, fanotify_mark};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::write("made", "x"));
    let flags = libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | libc::FAN_UNLIMITED_QUEUE;
    let Ok(events) = fanotify_init(flags, libc::O_RDONLY) else { zoo.skip("fanotify_init is not allowed here") };
    zoo::must(fanotify_mark(&events, libc::FAN_MARK_ADD, libc::FAN_MODIFY, c"made"));
    let route = zoo::must(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None));
    zoo::must(bind(&route, &SocketAddrNetlink::new(0, 0)));
    // RTM_GETLINK for the loopback interface; the answer is there when send returns.
    let mut ask = Vec::new();
    ask.extend_from_slice(&32u32.to_ne_bytes());
    ask.extend_from_slice(&[18, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    ask.extend_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut on = true;
    while on {
        zoo::must(std::fs::write("made", "x"));
        zoo.eq("ask", send(&route, &ask, SendFlags::empty()), Ok(32));
        on = zoo.gap();
        if !on {
            break;
        }
        let mut bytes = [0; 4096];
        zoo.eq("events", read(&events, &mut bytes), Err(Errno::AGAIN));
        zoo.eq("messages", recv(&route, &mut bytes[..], RecvFlags::DONTWAIT).map(|n| n.0), Err(Errno::AGAIN));
    }
}

//! What cannot be saved and is given up by `--skip-in-flight`: events, netlink messages. All else stays.
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::{Errno, read};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let events = zoo::must(inotify::init(CreateFlags::NONBLOCK));
    zoo::must(inotify::add_watch(&events, ".", WatchFlags::DELETE));
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
        zoo::must(std::fs::remove_file("made"));
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

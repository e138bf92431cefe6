//! Socket options that CRIU's images have fields for: lingering, device, filter, buffers, times, priority, addresses.
#![allow(unsafe_code, reason = "setsockopt on structures")]
use std::os::fd::{AsRawFd, OwnedFd};

fn set<T>(fd: &OwnedFd, level: i32, name: i32, value: &T) {
    // SAFETY: the kernel reads as many bytes as `value` has, and it lives over the call.
    let ret =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const *value).cast(), size_of::<T>() as u32) };
    assert_eq!(ret, 0, "option {level}:{name}: {}", std::io::Error::last_os_error());
}

/// The instructions of the socket's filter.
fn filter(fd: &OwnedFd) -> Vec<(u16, u8, u8, u32)> {
    let mut program = [libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; 8];
    let mut len: u32 = 8;
    // SAFETY: the kernel writes at most `len` instructions, which `program` has room for.
    unsafe {
        let (at, level, name) = (program.as_mut_ptr().cast(), libc::SOL_SOCKET, libc::SO_GET_FILTER);
        libc::getsockopt(fd.as_raw_fd(), level, name, at, &raw mut len);
    }
    program.iter().take(len as usize).map(|i| (i.code, i.jt, i.jf, i.k)).collect()
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (sol, ip, ipv6, tcp) = (libc::SOL_SOCKET, libc::IPPROTO_IP, libc::IPPROTO_IPV6, libc::IPPROTO_TCP);
    let udp = zoo::net::udp(zoo::net::place());
    let stream = zoo::must(zoo::net::socket(libc::AF_INET, libc::SOCK_STREAM, tcp));
    let udp6 = zoo::must(zoo::net::socket(libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP));
    set(&stream, sol, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 30 });
    set(&udp, sol, libc::SO_BINDTODEVICE, b"lo");
    // Passes the first 99 bytes of a packet; a return is the only instruction that ends a program.
    let mut program =
        [libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 }, libc::sock_filter { code: 6, jt: 0, jf: 0, k: 99 }];
    set(&udp, sol, libc::SO_ATTACH_FILTER, &libc::sock_fprog { len: 2, filter: program.as_mut_ptr() });
    for (fd, level, name, value) in [
        (&udp, sol, libc::SO_PRIORITY, 3),
        (&udp, sol, libc::SO_BROADCAST, 1),
        (&udp, sol, libc::SO_DONTROUTE, 1),
        (&udp, sol, libc::SO_NO_CHECK, 1),
        (&udp, sol, libc::SO_RCVBUF, 50_000),
        (&udp, ip, libc::IP_PKTINFO, 1),
        (&udp, ip, libc::IP_FREEBIND, 1),
        (&udp, ip, libc::IP_TOS, 16),
        (&udp, ip, libc::IP_TTL, 32),
        (&udp6, ipv6, libc::IPV6_RECVPKTINFO, 1),
        (&udp6, ipv6, 78, 1), // IPV6_FREEBIND
        (&stream, sol, libc::SO_KEEPALIVE, 1),
        (&stream, sol, libc::SO_OOBINLINE, 1),
        (&stream, sol, libc::SO_RCVLOWAT, 7),
        (&stream, tcp, libc::TCP_KEEPIDLE, 77),
        (&stream, tcp, libc::TCP_KEEPINTVL, 78),
        (&stream, tcp, libc::TCP_KEEPCNT, 9),
        (&stream, tcp, libc::TCP_NODELAY, 1),
    ] {
        zoo::must(zoo::sys::set_option(fd, level, name, value));
    }
    set(&stream, sol, libc::SO_RCVTIMEO, &libc::timeval { tv_sec: 5, tv_usec: 40_000 });
    let look = || {
        let all = [&udp, &stream, &udp6].map(|fd| zoo::net::options(fd, &[sol, ip, ipv6, tcp, libc::IPPROTO_UDP]));
        (all, filter(&udp))
    };
    let before = look();
    assert_eq!(before.1.len(), 2);
    while zoo.gap() {
        let now = look();
        for (now, before) in now.0.iter().zip(&before.0) {
            let changed: Vec<_> = now.iter().zip(before).filter(|(a, b)| a != b).collect();
            zoo.ok(&format!("options: got and want {changed:?}"), now == before);
        }
        zoo.eq("filter", now.1, before.1.clone());
    }
}

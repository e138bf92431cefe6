//! Every option of every level that sockets of the common kinds can have, each set to another value than it had.
pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (sol, ip, ipv6, tcp, udp) =
        (libc::SOL_SOCKET, libc::IPPROTO_IP, libc::IPPROTO_IPV6, libc::IPPROTO_TCP, libc::IPPROTO_UDP);
    let (stream, dgram, raw) = (libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW);
    let forms: [(i32, i32, i32, &[i32]); 12] = [
        (libc::AF_INET, stream, tcp, &[sol, ip, tcp]),
        (libc::AF_INET6, stream, tcp, &[sol, ip, ipv6, tcp]),
        (libc::AF_INET, dgram, udp, &[sol, ip, udp]),
        (libc::AF_INET6, dgram, udp, &[sol, ip, ipv6, udp]),
        (libc::AF_INET, dgram, libc::IPPROTO_UDPLITE, &[sol, ip, udp, libc::IPPROTO_UDPLITE]),
        (libc::AF_INET, raw, libc::IPPROTO_ICMP, &[sol, ip, 255]),
        (libc::AF_INET, raw, libc::IPPROTO_RAW, &[sol, ip]),
        (libc::AF_INET6, raw, libc::IPPROTO_ICMPV6, &[sol, ipv6, libc::IPPROTO_ICMPV6]),
        (libc::AF_UNIX, stream, 0, &[sol]),
        (libc::AF_UNIX, dgram, 0, &[sol]),
        (libc::AF_NETLINK, raw, 0, &[sol]),
        (libc::AF_PACKET, raw, 0, &[sol]),
    ];
    let mut held = Vec::new();
    for (family, kind, protocol, levels) in forms {
        let Ok(fd) = zoo::net::socket(family, kind, protocol) else { continue };
        let count = zoo::net::set_all(&fd, levels);
        assert!(count > 5, "{family} {kind} {protocol}: only {count} options could be set");
        let before = zoo::net::options(&fd, levels);
        held.push((fd, levels, before));
    }
    while zoo.gap() {
        for (fd, levels, before) in &held {
            let now = zoo::net::options(fd, levels);
            let changed: Vec<_> = now.iter().zip(before).filter(|(a, b)| a != b).collect();
            zoo.ok(&format!("{levels:?}: got and want {changed:?}"), now == *before);
        }
    }
}

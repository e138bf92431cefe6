//! Options that sockets have: those of `sk_opts_entry`, and all others that are set, as bytes (`crust_options`).
//!
//! An option without a field of its own is saved if its value differs from that of a socket just made. What cannot be read
//! or set again is refused.
use crate::{Error, Result, ResultExt};
use crust_image::proto::{CrustSockopt, SkOptsEntry};
use crust_kernel::sock_diag::{option, option_time, set_option, set_option_time};
use crust_kernel::sockopt;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};
use std::cell::RefCell;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const SOL: i32 = libc::SOL_SOCKET;
const SO_BUF_LOCK: i32 = 72;
const SO_LOCK_FILTER: i32 = 44;
const SO_TXREHASH: i32 = 74;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
const TCP: i32 = libc::IPPROTO_TCP;
const MPTCP: i32 = libc::IPPROTO_MPTCP;
const UDP: i32 = libc::IPPROTO_UDP;
const UDPLITE: i32 = libc::IPPROTO_UDPLITE;
const SOL_PACKET: i32 = 263;

/// SO_DEBUG, TIMESTAMP, TIMESTAMPNS, TIMESTAMPING, RXQ_OVFL, WIFI_STATUS, PEEK_OFF, NOFCS, LOCK_FILTER, SELECT_ERR_QUEUE,
/// BUSY_POLL, MAX_PACING_RATE, INCOMING_CPU, ZEROCOPY, TXTIME, TIMESTAMP_NEW, TIMESTAMPNS_NEW, TIMESTAMPING_NEW,
/// PREFER_BUSY_POLL, BUSY_POLL_BUDGET, RESERVE_MEM, TXREHASH, RCVMARK, PASSPIDFD, RCVPRIORITY, PASSRIGHTS, INQ.
const OF_SOCKETS: &[i32] =
    &[1, 29, 35, 37, 40, 41, 42, 43, 44, 45, 46, 47, 49, 60, 61, 63, 64, 65, 69, 70, 73, 74, 75, 76, 82, 83, 84];
/// IP_OPTIONS, ROUTER_ALERT, RECVOPTS, RETOPTS, MTU_DISCOVER, RECVERR, RECVTTL, RECVTOS, PASSSEC, TRANSPARENT, RECVORIGDSTADDR, MINTTL,
/// CHECKSUM, BIND_ADDRESS_NO_PORT, RECVFRAGSIZE, RECVERR_RFC4884, MULTICAST_LOOP,
/// MULTICAST_ALL, UNICAST_IF, LOCAL_PORT_RANGE.
const OF_IP: &[i32] = &[4, 5, 6, 7, 10, 11, 12, 13, 18, 19, 20, 21, 23, 24, 25, 26, 34, 49, 50, 51];
/// IP_MULTICAST_IF, TTL. In a TCP socket the kernel keeps other things at their places.
const OF_IP_GROUPS: &[i32] = &[32, 33];
/// What version 6 sockets have of it besides, without a field: IP_TOS, IP_TTL, IP_PKTINFO.
const OF_IP_IN_6: &[i32] = &[1, 2, 8];
/// IPV6_MULTICAST_IF, HOPS.
const OF_IPV6_GROUPS: &[i32] = &[17, 18];
/// IPV6_2292PKTINFO, 2292HOPOPTS, 2292DSTOPTS, 2292RTHDR, CHECKSUM, 2292HOPLIMIT, FLOWINFO, UNICAST_HOPS, MULTICAST_LOOP,
/// ROUTER_ALERT, MTU_DISCOVER, RECVERR, MULTICAST_ALL, ROUTER_ALERT_ISOLATE, RECVERR_RFC4884, FLOWINFO_SEND, RECVHOPLIMIT,
/// RECVHOPOPTS, HOPOPTS, RTHDRDSTOPTS, RECVRTHDR, RTHDR, RECVDSTOPTS, DSTOPTS, RECVPATHMTU, DONTFRAG, RECVTCLASS, TCLASS,
/// AUTOFLOWLABEL, ADDR_PREFERENCES, MINHOPCOUNT, RECVORIGDSTADDR, TRANSPARENT, UNICAST_IF, RECVFRAGSIZE.
const OF_IPV6: &[i32] = &[
    2, 3, 4, 5, 7, 8, 11, 16, 19, 22, 23, 25, 29, 30, 31, 33, 51, 53, 54, 55, 56, 57, 58, 59, 60, 62, 66, 67, 70, 72,
    73, 74, 75, 76, 77,
];
/// TCP_SYNCNT, LINGER2, DEFER_ACCEPT, CONGESTION, THIN_LINEAR_TIMEOUTS, THIN_DUPACK, USER_TIMEOUT, FASTOPEN, NOTSENT_LOWAT,
/// SAVE_SYN, FASTOPEN_CONNECT, FASTOPEN_KEY, FASTOPEN_NO_COOKIE, INQ, TX_DELAY, RTO_MAX_MS, RTO_MIN_US, DELACK_MAX_US.
const OF_TCP: &[i32] = &[7, 8, 9, 13, 16, 17, 18, 23, 25, 27, 30, 33, 34, 36, 37, 44, 45, 46];
/// TCP_MAXSEG, WINDOW_CLAMP, QUICKACK: a connection changes them too.
const OF_TCP_FRESH: &[i32] = &[2, 10, 12];
/// UDP_NO_CHECK6_TX, NO_CHECK6_RX, SEGMENT, GRO.
const OF_UDP: &[i32] = &[101, 102, 103, 104];
/// UDPLITE_SEND_CSCOV, RECV_CSCOV.
const OF_UDPLITE: &[i32] = &[10, 11];
/// PACKET_TX_HAS_OFF, QDISC_BYPASS, IGNORE_OUTGOING, VNET_HDR_SZ.
const OF_PACKET: &[i32] = &[19, 20, 23, 24];
/// Room for the longest: IPv6 headers.
const ROOM: usize = 2048;

/// Family, type and protocol of a socket.
pub(super) type Form = (i32, i32, i32);
type Values = Vec<((i32, i32), Vec<u8>)>;

/// What options sockets have that were just made, by form.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    /// Those without a field that such a socket has.
    values: HashMap<Form, Values>,
    /// Those with one, by name.
    fields: HashMap<(Form, i32), Option<i32>>,
}

impl Fresh {
    fn values(&mut self, form: Form) -> &Values {
        self.values.entry(form).or_insert_with(|| make(form).map(|s| read(s.as_fd(), form)).unwrap_or_default())
    }

    /// An option of [`SOL`] that is a number.
    fn field(&mut self, form: Form, name: i32) -> Option<i32> {
        *self.fields.entry((form, name)).or_insert_with(|| option(make(form).ok()?, SOL, name).ok())
    }
}

/// A new socket of this form, or one like it: echo sockets are only for some groups of users, and are like UDP sockets.
fn make((family, kind, protocol): Form) -> rustix::io::Result<OwnedFd> {
    let make = |kind: i32, protocol: i32| {
        let protocol = NonZeroU32::new(protocol as u32).map(Protocol::from_raw);
        let (family, kind) = (AddressFamily::from_raw(family as u16), SocketType::from_raw(kind as u32));
        rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol)
    };
    make(kind, protocol).or_else(|_| make(libc::SOCK_DGRAM, 0))
}

/// The options without a field that a socket of this form may have.
fn names((family, kind, protocol): Form) -> Vec<(i32, i32)> {
    let raw = kind == libc::SOCK_RAW;
    let mut lists: Vec<(i32, &[i32])> = vec![(SOL, OF_SOCKETS)];
    match family {
        libc::AF_INET => lists.push((IP, OF_IP)),
        libc::AF_INET6 if raw => lists.push((IPV6, OF_IPV6)),
        libc::AF_INET6 => lists.extend([(IP, OF_IP), (IP, OF_IP_IN_6), (IPV6, OF_IPV6)]),
        libc::AF_PACKET => lists.push((SOL_PACKET, OF_PACKET)),
        _ => {}
    }
    match family {
        libc::AF_INET if kind != libc::SOCK_STREAM => lists.push((IP, OF_IP_GROUPS)),
        libc::AF_INET6 if raw => lists.push((IPV6, OF_IPV6_GROUPS)),
        libc::AF_INET6 if kind != libc::SOCK_STREAM => lists.extend([(IP, OF_IP_GROUPS), (IPV6, OF_IPV6_GROUPS)]),
        _ => {}
    }
    match protocol {
        TCP | MPTCP if !raw => lists.extend([(TCP, OF_TCP), (TCP, OF_TCP_FRESH)]),
        UDP if !raw => lists.push((UDP, OF_UDP)),
        UDPLITE if !raw => lists.extend([(UDP, OF_UDP), (UDPLITE, OF_UDPLITE)]),
        _ => {}
    }
    lists.iter().flat_map(|(level, names)| names.iter().map(|name| (*level, *name))).collect()
}

fn read(fd: BorrowedFd<'_>, form: Form) -> Values {
    let value = |(level, name)| Some(((level, name), sockopt::bytes(fd, level, name, ROOM).ok()?));
    names(form).into_iter().filter_map(value).collect()
}

/// Segments that a TCP socket has sent or received.
fn segments(fd: BorrowedFd<'_>) -> u32 {
    let info = sockopt::bytes(fd, TCP, libc::TCP_INFO, 256).unwrap_or_default();
    let word = |at: usize| info.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
    word(136) | word(140)
}

/// True if a TCP socket had a connection.
pub(super) fn was_connected(fd: BorrowedFd<'_>) -> bool {
    segments(fd) != 0
}

/// Reads the options of a socket.
pub(super) fn dump(fd: BorrowedFd<'_>, fresh: &mut Fresh) -> Result<SkOptsEntry> {
    let get = |name: i32| option(fd, SOL, name).during("reading a socket option");
    let flag = |name: i32| get(name).map(|v| Some(v != 0));
    let number = |name: i32| get(name).map(|v| Some(v as u32));
    let form = (get(libc::SO_DOMAIN)?, get(libc::SO_TYPE)?, get(libc::SO_PROTOCOL)?);
    let (snd_s, snd_us) = option_time(fd, libc::SO_SNDTIMEO).during("reading a socket option")?;
    let (rcv_s, rcv_us) = option_time(fd, libc::SO_RCVTIMEO).during("reading a socket option")?;
    let mut opts = SkOptsEntry {
        so_sndbuf: get(libc::SO_SNDBUF)? as u32,
        so_rcvbuf: get(libc::SO_RCVBUF)? as u32,
        so_snd_tmo_sec: snd_s as u64,
        so_snd_tmo_usec: snd_us as u64,
        so_rcv_tmo_sec: rcv_s as u64,
        so_rcv_tmo_usec: rcv_us as u64,
        reuseaddr: flag(libc::SO_REUSEADDR)?,
        so_priority: number(libc::SO_PRIORITY)?,
        so_rcvlowat: number(libc::SO_RCVLOWAT)?,
        so_dontroute: flag(libc::SO_DONTROUTE)?,
        so_no_check: flag(libc::SO_NO_CHECK)?,
        so_reuseport: flag(libc::SO_REUSEPORT)?,
        so_broadcast: flag(libc::SO_BROADCAST)?,
        so_keepalive: flag(libc::SO_KEEPALIVE)?,
        so_oobinline: number(libc::SO_OOBINLINE)?,
        so_buf_lock: option(fd, SOL, SO_BUF_LOCK).ok().map(|v| v as u32),
        so_filter: match sockopt::filter(fd) {
            Err(Errno::ACCESS | Errno::PERM) => {
                return Err(Error::unsupported(
                    "a socket filter that is a BPF program (SO_ATTACH_BPF) cannot be saved",
                    "detach the filter",
                ));
            }
            other => other.during("reading a socket's filter")?,
        },
        ..SkOptsEntry::default()
    };
    let mark = get(libc::SO_MARK)?;
    if mark != 0 {
        opts.so_mark = Some(mark as u32);
    }
    if matches!(form.0, libc::AF_UNIX | libc::AF_NETLINK) {
        opts.so_passcred = flag(libc::SO_PASSCRED)?;
        opts.so_passsec = flag(libc::SO_PASSSEC)?;
    }
    let linger = sockopt::bytes(fd, SOL, libc::SO_LINGER, 8).during("reading a socket option")?;
    if let Some((on, seconds)) = linger.split_at_checked(4)
        && on != [0; 4]
    {
        opts.so_linger = seconds.try_into().ok().map(u32::from_ne_bytes);
    }
    let device = sockopt::bytes(fd, SOL, libc::SO_BINDTODEVICE, 16).unwrap_or_default();
    let device = device.split(|b| *b == 0).next().unwrap_or_default();
    if !device.is_empty() {
        opts.so_bound_dev = Some(String::from_utf8_lossy(device).into_owned());
    }
    let had_connection = form.2 == TCP && form.1 == libc::SOCK_STREAM && was_connected(fd);
    // An option that a new socket does not know needs a connection, and what a busy one says is no setting.
    for ((level, name), default) in fresh.values(form) {
        let (level, name) = (*level, *name);
        let Ok(value) = sockopt::bytes(fd, level, name, ROOM) else { continue };
        let by_itself = level == TCP && had_connection && OF_TCP_FRESH.contains(&name)
            || level == SOL && name == SO_TXREHASH && form.2 == TCP && value == 1i32.to_ne_bytes();
        if *default != value && !by_itself {
            log::debug!("socket option {level}:{name} is set to {value:?}");
            opts.crust_options.push(CrustSockopt { level: level as u32, name: name as u32, value });
        }
    }
    if !opts.crust_options.is_empty() {
        // What cannot be set again is better known now than at the restore.
        let scratch = make(form).during("making a socket")?;
        let set = |o| set_extra(scratch.as_fd(), o);
        opts.crust_options.iter().try_for_each(set).map_err(|e| {
            let help = "let the program set the option back before the dump";
            Error::unsupported(format!("a socket has an option that cannot be set again: {}", e.headline()), help)
        })?;
    }
    Ok(opts)
}

/// Gives a socket its options, but for its filter, before it gets an address. `new` tells what it has by now if it was just
/// made; without it every option is asked for.
pub(super) fn restore(fd: impl AsFd, o: &SkOptsEntry, new: Option<(&RefCell<Fresh>, Form)>) -> Result<()> {
    let fd = fd.as_fd();
    let set = |name: i32, want: Option<i32>| -> Result<()> {
        let Some(want) = want else { return Ok(()) };
        // What a listener gives to accepted sockets is asked for.
        let given_on = matches!(name, libc::SO_PASSCRED | libc::SO_PASSSEC);
        let usual = new.filter(|_| !given_on).and_then(|(fresh, form)| fresh.borrow_mut().field(form, name));
        if usual == Some(want) || option(fd, SOL, name) == Ok(want) {
            return Ok(());
        }
        match set_option(fd, SOL, name, want) {
            Err(Errno::OPNOTSUPP | Errno::NOPROTOOPT) if want == 0 => Ok(()),
            other => other.during("setting a socket option"),
        }
    };
    let flag = |v: Option<bool>| v.map(i32::from);
    let number = |v: Option<u32>| v.map(|v| v as i32);
    before_bind(fd, o)?;
    for (want, get, force, plain) in [
        (o.so_sndbuf, libc::SO_SNDBUF, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
        (o.so_rcvbuf, libc::SO_RCVBUF, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
    ] {
        // The kernel doubles what it is given.
        if option(fd, SOL, get) != Ok(want as i32) && want != 0 {
            let half = (want / 2) as i32;
            if set_option(fd, SOL, force, half).is_err() {
                set_option(fd, SOL, plain, half).during("setting a socket's buffer size")?;
            }
        }
    }
    if let Some(lock) = o.so_buf_lock
        && option(fd, SOL, SO_BUF_LOCK).is_ok_and(|now| now != lock as i32)
    {
        set_option(fd, SOL, SO_BUF_LOCK, lock as i32).during("setting a socket option")?;
    }
    for (name, s, us) in [
        (libc::SO_SNDTIMEO, o.so_snd_tmo_sec, o.so_snd_tmo_usec),
        (libc::SO_RCVTIMEO, o.so_rcv_tmo_sec, o.so_rcv_tmo_usec),
    ] {
        if (s, us) != (0, 0) {
            set_option_time(fd, name, (s as i64, us as i64)).during("setting a socket's timeout")?;
        }
    }
    set(libc::SO_PRIORITY, number(o.so_priority))?;
    set(libc::SO_RCVLOWAT, number(o.so_rcvlowat))?;
    set(libc::SO_MARK, number(o.so_mark))?;
    set(libc::SO_PASSCRED, flag(o.so_passcred))?;
    set(libc::SO_PASSSEC, flag(o.so_passsec))?;
    set(libc::SO_DONTROUTE, flag(o.so_dontroute))?;
    set(libc::SO_NO_CHECK, flag(o.so_no_check))?;
    set(libc::SO_BROADCAST, flag(o.so_broadcast))?;
    set(libc::SO_KEEPALIVE, flag(o.so_keepalive))?;
    set(libc::SO_OOBINLINE, number(o.so_oobinline))?;
    if let Some(seconds) = o.so_linger {
        let value = [1u32.to_ne_bytes(), seconds.to_ne_bytes()].concat();
        sockopt::set_bytes(fd, SOL, libc::SO_LINGER, &value).during("setting how long a socket lingers")?;
    }
    if let Some(device) = &o.so_bound_dev {
        // CRIU's own texts may end in a NUL.
        let name = device.trim_end_matches('\0');
        sockopt::set_bytes(fd, SOL, libc::SO_BINDTODEVICE, name.as_bytes())
            .during("binding a socket to its network device")
            .map_err(|e| e.on(crate::Object::Path(name.to_owned())).help("the device must exist under this name"))?;
    }
    for o in o.crust_options.iter().filter(|o| !is_lock(o)) {
        set_extra(fd, o)?;
    }
    Ok(())
}

fn is_lock(o: &CrustSockopt) -> bool {
    o.level == SOL as u32 && o.name == SO_LOCK_FILTER as u32
}

fn set_extra(fd: BorrowedFd<'_>, o: &CrustSockopt) -> Result<()> {
    let (level, name) = (o.level as i32, o.name as i32);
    if sockopt::bytes(fd, level, name, ROOM).is_ok_and(|now| now == o.value) {
        return Ok(());
    }
    sockopt::set_bytes(fd, level, name, &o.value).during(&format!("setting socket option {level}:{name}"))
}

/// Attaches the socket's filter, and locks it. What it had received does not pass here: it must be there already.
pub(super) fn restore_filter(fd: impl AsFd, o: &SkOptsEntry) -> Result<()> {
    let fd = fd.as_fd();
    if !o.so_filter.is_empty() {
        sockopt::attach_filter(fd, &o.so_filter).during("attaching a socket's filter")?;
    }
    o.crust_options.iter().filter(|o| is_lock(o)).try_for_each(|o| set_extra(fd, o))
}

/// Reuse of addresses and ports, which bind(2) asks for.
pub(super) fn before_bind(fd: impl AsFd, o: &SkOptsEntry) -> Result<()> {
    let fd = fd.as_fd();
    for (name, want) in [(libc::SO_REUSEADDR, o.reuseaddr), (libc::SO_REUSEPORT, o.so_reuseport)] {
        if want == Some(true) && option(fd, SOL, name) != Ok(1) {
            set_option(fd, SOL, name, 1).during("setting a socket option")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets each option that a form has to values it may take, and demands that a second socket can be given the same.
    fn all_options_go_over(form: Form) {
        let (family, kind, protocol) = form;
        let make = || -> Option<OwnedFd> {
            let protocol = NonZeroU32::new(protocol as u32).map(Protocol::from_raw);
            let (family, kind) = (AddressFamily::from_raw(family as u16), SocketType::from_raw(kind as u32));
            rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol).ok()
        };
        let Some(mut fresh) = make().map(|_| Fresh::default()) else { return };
        let mut set = 0;
        for (level, name) in names(form) {
            let Some(socket) = make() else { return };
            let Ok(usual) = sockopt::bytes(&socket, level, name, ROOM) else { continue };
            let number = usual.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
            let values = [number ^ 1, 1, 2, 1500, 60];
            // One that the kernel takes and then tells, if there is one.
            let took = values.iter().any(|v| {
                let mut value = usual.clone();
                value.resize(usual.len().max(4), 0);
                value[..4].copy_from_slice(&v.to_ne_bytes());
                sockopt::set_bytes(&socket, level, name, &value).is_ok()
                    && sockopt::bytes(&socket, level, name, ROOM).is_ok_and(|now| now != usual)
            });
            if !took {
                continue;
            }
            set += 1;
            let opts = dump(socket.as_fd(), &mut fresh).expect("dump");
            let saved = opts.crust_options.iter().any(|o| (o.level as i32, o.name as i32) == (level, name));
            assert!(saved, "option {level}:{name} of {form:?} is not saved");
            let other = make().expect("socket");
            restore(&other, &opts, Some((&RefCell::default(), form))).expect("restore");
            restore_filter(&other, &opts).expect("restore the filter");
            let both = [&socket, &other].map(|s| sockopt::bytes(s, level, name, ROOM));
            assert_eq!(both[0], both[1], "option {level}:{name} of {form:?}");
        }
        assert!(set > 2, "{form:?}: only {set} options could be set");
    }

    #[test]
    fn every_option_goes_over() {
        let (stream, dgram, raw) = (libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW);
        for family in [libc::AF_INET, libc::AF_INET6] {
            all_options_go_over((family, stream, TCP));
            all_options_go_over((family, dgram, UDP));
            all_options_go_over((family, dgram, UDPLITE));
            all_options_go_over((family, raw, 1));
        }
        all_options_go_over((libc::AF_UNIX, stream, 0));
        all_options_go_over((libc::AF_NETLINK, raw, 0));
        all_options_go_over((libc::AF_PACKET, raw, 0));
    }

    #[test]
    fn a_new_socket_has_nothing_to_save() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
        let opts = dump(socket.as_fd(), &mut Fresh::default()).expect("dump");
        assert_eq!(opts.crust_options, []);
        assert_eq!((opts.so_linger, opts.so_bound_dev, opts.so_filter), (None, None, Vec::new()));
    }
}

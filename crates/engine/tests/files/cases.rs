//! What the roles hold and check, one case per behaviour.
use crate::{at, borrowed, read_some};
use crust_engine::Options;
use rustix::fs::{Mode, OFlags, open};
use rustix::pipe::{PipeFlags, pipe_with};
use std::io::Write;
use std::path::Path;

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) options: fn(&mut Options),
    /// Makes the descriptors.
    pub(crate) hold: fn(&Path),
    /// If there is a second process: what it does after the fork.
    pub(crate) second: Option<fn()>,
    /// Runs in each restored process, by its number.
    pub(crate) verify: fn(usize),
    /// `verify` consumes things, so the outside look differs.
    pub(crate) verify_changes: bool,
    /// The dump must be refused with this text.
    pub(crate) refused: Option<&'static str>,
    /// Names like `/dir/#123` differ.
    pub(crate) ignore_ghost_names: bool,
}

const PLAIN: Case = Case {
    name: "",
    options: |_| {},
    hold: |_| {},
    second: None,
    verify: |_| {},
    verify_changes: false,
    refused: None,
    ignore_ghost_names: false,
};

fn create(path: &Path, flags: OFlags, content: &[u8]) -> std::fs::File {
    std::fs::write(path, content).unwrap();
    std::fs::File::from(open(path, flags, Mode::empty()).unwrap())
}

pub(crate) static CASES: &[Case] = &[
    Case {
        name: "regular_flags_and_positions",
        hold: |dir| {
            let f = create(&dir.join("a"), OFlags::RDWR, b"0123456789");
            rustix::fs::seek(&f, rustix::fs::SeekFrom::Start(4)).unwrap();
            let twin = f.try_clone().unwrap();
            at(twin, 40, false);
            at(f, 7, true);
            at(create(&dir.join("b"), OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK, b"xy"), 5, false);
            at(open(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap(), 300, true);
            at(open(dir.join("a"), OFlags::PATH, Mode::empty()).unwrap(), 301, false);
            std::os::unix::fs::symlink("a", dir.join("l")).unwrap();
            at(open(dir.join("l"), OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).unwrap(), 302, false);
            for (n, dev) in ["null", "zero", "full", "random", "urandom"].iter().enumerate() {
                at(open(format!("/dev/{dev}"), OFlags::RDONLY, Mode::empty()).unwrap(), 20 + n as i32, false);
            }
        },
        verify: |_| {
            rustix::io::write(borrowed(40), b"4").unwrap();
            rustix::fs::seek(borrowed(7), rustix::fs::SeekFrom::Current(-1)).unwrap();
            assert_eq!(read_some(7), b"456789");
            rustix::fs::seek(borrowed(7), rustix::fs::SeekFrom::Start(4)).unwrap();
        },
        ..PLAIN
    },
    Case {
        name: "deleted_files",
        hold: |dir| {
            let f = create(&dir.join("gone"), OFlags::RDWR, b"deleted content");
            at(open(dir.join("gone"), OFlags::RDONLY, Mode::empty()).unwrap(), 11, false);
            rustix::fs::seek(&f, rustix::fs::SeekFrom::Start(3)).unwrap();
            std::fs::remove_file(dir.join("gone")).unwrap();
            at(f, 10, false);
            let tmp = open(dir, OFlags::RDWR | OFlags::TMPFILE, Mode::RUSR).unwrap();
            rustix::io::write(&tmp, b"nameless").unwrap();
            at(tmp, 12, true);
            std::fs::create_dir(dir.join("sub")).unwrap();
            at(open(dir.join("sub"), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap(), 13, false);
            std::fs::remove_dir(dir.join("sub")).unwrap();
        },
        verify: |_| {
            let mut buf = [0; 64];
            let n = rustix::io::pread(borrowed(11), &mut buf, 0).unwrap();
            assert_eq!(&buf[..n], b"deleted content");
            rustix::io::pwrite(borrowed(10), b"DELETED", 0).unwrap();
            let n = rustix::io::pread(borrowed(11), &mut buf, 0).unwrap();
            assert_eq!(&buf[..n], b"DELETED content", "both are one inode");
            let n = rustix::io::pread(borrowed(12), &mut buf, 0).unwrap();
            assert_eq!(&buf[..n], b"nameless");
            assert_eq!(rustix::fs::fstat(borrowed(13)).unwrap().st_nlink, 0);
        },
        ignore_ghost_names: true,
        ..PLAIN
    },
    Case {
        name: "deleted_file_with_holes",
        options: |o| o.ghost_limit = Some(1 << 30),
        hold: |dir| {
            let f = create(&dir.join("big"), OFlags::RDWR, b"head");
            rustix::io::pwrite(&f, b"middle", 5 << 20).unwrap();
            rustix::fs::ftruncate(&f, 9 << 20).unwrap();
            std::fs::remove_file(dir.join("big")).unwrap();
            at(f, 10, false);
        },
        verify: |_| {
            let mut buf = [0; 6];
            rustix::io::pread(borrowed(10), &mut buf, 5 << 20).unwrap();
            assert_eq!(&buf, b"middle");
            let stat = rustix::fs::fstat(borrowed(10)).unwrap();
            assert_eq!(stat.st_size, 9 << 20);
            assert!(stat.st_blocks * 512 < 1 << 20, "holes stay holes: {} blocks", stat.st_blocks);
        },
        ..PLAIN
    },
    Case {
        name: "deleted_file_over_the_limit",
        hold: |dir| {
            let f = create(&dir.join("big"), OFlags::RDWR, &vec![1; 2 << 20]);
            std::fs::remove_file(dir.join("big")).unwrap();
            at(f, 10, false);
        },
        refused: Some("--ghost-limit"),
        ..PLAIN
    },
    Case {
        name: "renamed_over",
        hold: |dir| {
            at(create(&dir.join("a"), OFlags::RDWR, b"a"), 10, false);
            std::fs::hard_link(dir.join("a"), dir.join("other")).unwrap();
            std::fs::remove_file(dir.join("a")).unwrap();
        },
        refused: Some("--link-remap"),
        ..PLAIN
    },
    Case {
        name: "link_remap",
        options: |o| o.link_remap = true,
        hold: |dir| {
            at(create(&dir.join("a"), OFlags::RDWR, b"content"), 10, false);
            std::fs::hard_link(dir.join("a"), dir.join("other")).unwrap();
            std::fs::remove_file(dir.join("a")).unwrap();
        },
        verify: |_| {
            let stat = rustix::fs::fstat(borrowed(10)).unwrap();
            assert_eq!(
                std::fs::metadata("other").map(|m| std::os::unix::fs::MetadataExt::ino(&m)).unwrap(),
                stat.st_ino
            );
        },
        verify_changes: true,
        ..PLAIN
    },
    Case {
        name: "pipes",
        hold: |_| {
            let (r, w) = pipe_with(PipeFlags::empty()).unwrap();
            rustix::io::write(&w, b"waiting bytes").unwrap();
            rustix::pipe::fcntl_setpipe_size(&w, 1 << 18).unwrap();
            crust_kernel::fd::set_owner(
                &r,
                crust_kernel::fd::Owner { kind: 1, id: std::process::id() as i32, signal: 10 },
            )
            .unwrap();
            at(r, 8, false);
            at(w, 3, true);
            let (r, w) = pipe_with(PipeFlags::NONBLOCK).unwrap();
            drop(w);
            at(r, 9, false);
            let (r, w) = pipe_with(PipeFlags::empty()).unwrap();
            at(
                open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&r)), OFlags::RDWR, Mode::empty())
                    .unwrap(),
                31,
                false,
            );
            at(open("/proc/self/fd/31", OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap(), 32, false);
            drop(r);
            at(w, 30, false);
        },
        verify: |_| assert_eq!(rustix::io::read(borrowed(9), &mut [0; 1]), Ok(0), "the other end is closed"),
        ..PLAIN
    },
    Case {
        name: "pipe_content",
        hold: |_| {
            let (r, w) = pipe_with(PipeFlags::empty()).unwrap();
            rustix::io::write(&w, &vec![7; 65536]).unwrap();
            at(r, 8, false);
            at(w, 9, false);
            let (r, w) = pipe_with(PipeFlags::DIRECT).unwrap();
            for packet in ["one", "two", "three"] {
                rustix::io::write(&w, packet.as_bytes()).unwrap();
            }
            at(r, 10, false);
            at(w, 11, false);
        },
        verify: |_| {
            assert_eq!(read_some(8), vec![7; 65536]);
            for packet in ["one", "two", "three"] {
                assert_eq!(read_some(10), packet.as_bytes());
            }
        },
        verify_changes: true,
        ..PLAIN
    },
    Case {
        name: "fifos",
        hold: |dir| {
            let path = dir.join("fifo");
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
            let both = open(&path, OFlags::RDWR, Mode::empty()).unwrap();
            rustix::io::write(&both, b"in the fifo").unwrap();
            at(open(&path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap(), 10, false);
            at(open(&path, OFlags::WRONLY, Mode::empty()).unwrap(), 11, true);
            drop(both);
        },
        ..PLAIN
    },
    Case {
        name: "eventfds",
        hold: |_| {
            use rustix::event::{EventfdFlags, eventfd};
            at(eventfd(30, EventfdFlags::NONBLOCK).unwrap(), 10, false);
            let e = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            rustix::io::write(&e, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            at(e, 11, true);
            at(eventfd(0, EventfdFlags::empty()).unwrap(), 12, false);
        },
        ..PLAIN
    },
    Case {
        name: "eventfd_semaphore",
        hold: |_| {
            use rustix::event::{EventfdFlags, eventfd};
            at(eventfd(3, EventfdFlags::SEMAPHORE).unwrap(), 10, false);
        },
        verify: |_| {
            assert_eq!(read_some(10), 1u64.to_ne_bytes());
            assert_eq!(read_some(10), 1u64.to_ne_bytes());
        },
        verify_changes: true,
        ..PLAIN
    },
    Case {
        name: "epoll",
        hold: |_| {
            use rustix::event::epoll::{CreateFlags, EventData, EventFlags, add, create};
            let (r, w) = pipe_with(PipeFlags::empty()).unwrap();
            at(r, 20, false);
            at(w, 21, false);
            let ep = create(CreateFlags::CLOEXEC).unwrap();
            add(&ep, borrowed(20), EventData::new_u64(u64::MAX), EventFlags::IN | EventFlags::ET).unwrap();
            add(&ep, borrowed(21), EventData::new_u64(7), EventFlags::OUT | EventFlags::ONESHOT).unwrap();
            let nested = create(CreateFlags::empty()).unwrap();
            add(&nested, &ep, EventData::new_u64(1), EventFlags::IN).unwrap();
            at(nested, 4, false);
            at(ep, 40, true);
            // Added once more under the number it now has: the first number is free again.
            add(borrowed(4), borrowed(40), EventData::new_u64(2), EventFlags::IN).unwrap();
        },
        verify: |_| {
            use rustix::event::{Timespec, epoll::wait};
            let mut events = [rustix::event::epoll::Event {
                flags: rustix::event::epoll::EventFlags::empty(),
                data: rustix::event::epoll::EventData::new_u64(0),
            }; 8];
            let n = wait(borrowed(40), &mut events, Some(&Timespec::default())).unwrap();
            assert_eq!(n, 1);
            let data = events[0].data;
            assert_eq!(data.u64(), 7);
            assert_eq!(wait(borrowed(40), &mut events, Some(&Timespec::default())), Ok(0), "once only");
            rustix::io::write(borrowed(21), b"x").unwrap();
            assert_eq!(wait(borrowed(4), &mut events, Some(&Timespec::default())), Ok(2));
        },
        verify_changes: true,
        ..PLAIN
    },
    Case {
        name: "epoll_looks_the_same",
        hold: |_| {
            use rustix::event::epoll::{CreateFlags, EventData, EventFlags, add, create};
            let ep = create(CreateFlags::CLOEXEC).unwrap();
            let (r, w) = pipe_with(PipeFlags::empty()).unwrap();
            add(&ep, borrowed(at(r, 20, false)), EventData::new_u64(5), EventFlags::IN | EventFlags::EXCLUSIVE)
                .unwrap();
            add(&ep, borrowed(at(w, 19, false)), EventData::new_u64(6), EventFlags::OUT).unwrap();
            at(ep, 3, true);
        },
        ..PLAIN
    },
    Case {
        name: "signalfd",
        hold: |_| {
            at(crust_kernel::fd::signalfd(0x4200).unwrap(), 9, true);
            at(crust_kernel::fd::signalfd(1 << 63).unwrap(), 5, false);
        },
        ..PLAIN
    },
    Case {
        name: "timerfd",
        hold: |_| {
            use crust_kernel::fd::{TimerSpec, clock_now, timerfd_create, timerfd_settime};
            use std::time::Duration;
            let relative = timerfd_create(1).unwrap();
            let spec = TimerSpec { value: Duration::from_secs(1000), interval: Duration::new(7, 5) };
            timerfd_settime(&relative, 0, spec).unwrap();
            at(relative, 10, false);
            let absolute = timerfd_create(0).unwrap();
            let spec = TimerSpec { value: clock_now(0).unwrap() + Duration::from_secs(500), interval: Duration::ZERO };
            timerfd_settime(&absolute, 1, spec).unwrap();
            at(absolute, 11, true);
            let fired = timerfd_create(7).unwrap();
            let spec = TimerSpec { value: Duration::from_nanos(1), interval: Duration::ZERO };
            timerfd_settime(&fired, 0, spec).unwrap();
            at(fired, 12, false);
            at(timerfd_create(1).unwrap(), 13, false);
        },
        verify: |_| {
            let left = |fd: i32| {
                let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
                let line = text.lines().find_map(|l| l.strip_prefix("it_value: (")).unwrap().to_owned();
                line.split(',').next().unwrap().parse::<u64>().unwrap()
            };
            assert!((990..=1000).contains(&left(10)), "{}", left(10));
            assert!((490..=500).contains(&left(11)), "{}", left(11));
            assert_eq!(left(13), 0);
            let info = std::fs::read_to_string("/proc/self/fdinfo/11").unwrap();
            assert!(info.contains("settime flags: 01"), "{info}");
            let info = std::fs::read_to_string("/proc/self/fdinfo/12").unwrap();
            assert!(info.contains("ticks: 1"), "{info}");
        },
        ..PLAIN
    },
    Case {
        name: "pty_pair",
        hold: |_| {
            use crust_kernel::tty;
            // High numbers stay clear of other users of /dev/pts.
            let mut spare = Vec::new();
            let master = loop {
                let m = open("/dev/ptmx", OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
                if tty::pty_index(&m).unwrap() >= 40 {
                    break m;
                }
                spare.push(m);
            };
            let index = tty::pty_index(&master).unwrap();
            tty::set_pty_locked(&master, false).unwrap();
            tty::set_winsize(&master, &tty::Winsize { rows: 11, cols: 22, xpixel: 33, ypixel: 44 }).unwrap();
            let slave =
                open(format!("/dev/pts/{index}"), OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK, Mode::empty())
                    .unwrap();
            let mut modes = tty::termios(&slave).unwrap();
            modes.lflag &= !8;
            modes.cc[6] = 9;
            tty::set_termios(&slave, &modes).unwrap();
            drop(spare);
            at(slave, 31, false);
            at(master, 30, true);
        },
        verify: |_| {
            use crust_kernel::tty;
            assert_eq!(tty::winsize(borrowed(31)), Ok(tty::Winsize { rows: 11, cols: 22, xpixel: 33, ypixel: 44 }));
            let modes = tty::termios(borrowed(31)).unwrap();
            assert_eq!((modes.lflag & 8, modes.cc[6]), (0, 9));
            rustix::io::write(borrowed(30), b"typed\n").unwrap();
            assert_eq!(read_some(31), b"typed\n");
        },
        ..PLAIN
    },
    Case {
        name: "terminal_from_outside",
        hold: |_| {
            use crust_kernel::tty;
            let master = open("/dev/ptmx", OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
            tty::set_pty_locked(&master, false).unwrap();
            let index = tty::pty_index(&master).unwrap();
            let slave = open(format!("/dev/pts/{index}"), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
            at(slave, 31, false);
            // The master lives on in a process outside of the tree.
            crate::park(master);
        },
        refused: Some("--shell-job"),
        ..PLAIN
    },
    Case {
        name: "unix_pairs",
        hold: |_| {
            use std::os::unix::net::{UnixDatagram, UnixStream};
            let (mut a, mut b) = UnixStream::pair().unwrap();
            a.write_all(b"to b").unwrap();
            b.write_all(&vec![5; 100_000]).unwrap();
            at(a, 20, false);
            at(b, 9, true);
            let (a, b) = UnixDatagram::pair().unwrap();
            for n in 1..5u8 {
                a.send(&vec![n; usize::from(n) * 1000]).unwrap();
            }
            at(a, 30, false);
            at(b, 31, false);
            let (mut a, b) = UnixStream::pair().unwrap();
            a.write_all(b"last words").unwrap();
            drop(a);
            at(b, 32, false);
            let (a, b) = UnixStream::pair().unwrap();
            a.shutdown(std::net::Shutdown::Write).unwrap();
            a.set_nonblocking(true).unwrap();
            at(a, 33, false);
            at(b, 34, false);
        },
        verify: |_| {
            let mut got = Vec::new();
            while got.len() < 100_000 {
                got.extend(read_some(20));
            }
            assert!(got.iter().all(|b| *b == 5) && got.len() == 100_000);
            assert_eq!(read_some(9), b"to b");
            for n in 1..5u8 {
                assert_eq!(read_some(31), vec![n; usize::from(n) * 1000]);
            }
            assert_eq!(read_some(32), b"last words");
            assert_eq!(read_some(32), b"", "its peer is gone");
            assert_eq!(read_some(34), b"", "shut down");
            rustix::io::write(borrowed(34), b"x").unwrap();
            assert_eq!(read_some(33), b"x");
        },
        verify_changes: true,
        ..PLAIN
    },
    Case {
        name: "unix_names",
        hold: |dir| {
            use std::os::unix::net::{UnixDatagram, UnixListener};
            std::env::set_current_dir(dir).unwrap();
            at(UnixListener::bind(dir.join("listen")).unwrap(), 20, false);
            std::fs::set_permissions(dir.join("listen"), std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
            at(UnixListener::bind("relative").unwrap(), 21, true);
            at(UnixDatagram::bind(dir.join("dgram")).unwrap(), 22, false);
            let client = UnixDatagram::unbound().unwrap();
            client.connect(dir.join("dgram")).unwrap();
            client.send(b"queued").unwrap();
            at(client, 19, false);
            at(UnixDatagram::unbound().unwrap(), 23, false);
        },
        verify: |_| {
            use std::os::unix::net::UnixStream;
            for name in ["listen", "relative"] {
                let path = std::env::current_dir().unwrap().join(name);
                let mut c = UnixStream::connect(path).unwrap();
                c.write_all(b"hello").unwrap();
            }
            rustix::net::accept(borrowed(20)).unwrap();
            let stat = rustix::fs::stat("listen").unwrap();
            assert_eq!(stat.st_mode & 0o777, 0o640);
            assert_eq!(read_some(22), b"queued");
            rustix::io::write(borrowed(19), b"by name").unwrap();
            assert_eq!(read_some(22), b"by name");
        },
        verify_changes: true,
        ..PLAIN
    },
    Case {
        name: "unix_peek_offset",
        hold: |_| {
            let (mut a, b) = std::os::unix::net::UnixStream::pair().unwrap();
            a.write_all(b"0123456789").unwrap();
            crust_kernel::sock_diag::set_option(&b, libc::SOL_SOCKET, 42, 4).unwrap();
            at(a, 20, false);
            at(b, 21, false);
        },
        verify: |_| {
            assert_eq!(crust_kernel::sock_diag::option(borrowed(21), libc::SOL_SOCKET, 42), Ok(4));
            assert_eq!(crust_kernel::unix_msg::peek(borrowed(21), 3).unwrap().bytes, b"456");
            assert_eq!(read_some(21), b"0123456789");
        },
        verify_changes: true,
        ..PLAIN
    },
    Case {
        name: "unix_queue_refused",
        hold: |_| {
            let (a, b) = std::os::unix::net::UnixDatagram::pair().unwrap();
            rustix::net::sockopt::set_socket_passcred(&b, true).unwrap();
            a.send(b"from me").unwrap();
            at(a, 20, false);
            at(b, 21, false);
        },
        refused: Some("credentials"),
        ..PLAIN
    },
    Case {
        name: "unix_pidfd_under_way",
        hold: |_| {
            let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
            let own = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
            crust_kernel::unix_msg::send(&a, b"me", &[std::os::fd::AsFd::as_fd(&own.unwrap())]).unwrap();
            at(a, 20, false);
            at(b, 21, false);
        },
        refused: Some("a pidfd is on its way"),
        ..PLAIN
    },
    Case {
        name: "unix_peer_outside",
        hold: |_| {
            let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
            crate::park(b.into());
            at(a, 20, false);
        },
        refused: Some("belongs to no task in the tree"),
        ..PLAIN
    },
    Case {
        name: "tcp_listeners_and_udp",
        hold: |dir| {
            use std::net::{TcpListener, UdpSocket};
            let mut ports = Vec::new();
            for (n, at_address) in ["127.0.0.1:0", "[::1]:0"].iter().enumerate() {
                let l = TcpListener::bind(at_address).unwrap();
                ports.push(l.local_addr().unwrap().port());
                l.set_nonblocking(n == 1).unwrap();
                at(l, 20 + n as i32, n == 0);
            }
            let u = UdpSocket::bind("127.0.0.1:0").unwrap();
            let c = UdpSocket::bind("127.0.0.1:0").unwrap();
            c.connect(u.local_addr().unwrap()).unwrap();
            u.set_broadcast(true).unwrap();
            c.set_ttl(9).unwrap();
            at(u, 22, false);
            at(c, 19, false);
            at(
                rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap(),
                23,
                false,
            );
            std::fs::write(dir.join("ports"), format!("{} {}", ports[0], ports[1])).unwrap();
        },
        verify: |_| {
            use crust_kernel::sock_diag::{option, tcp_info};
            let text = std::fs::read_to_string("ports").unwrap();
            let (v4, v6) = text.split_once(' ').unwrap();
            assert_eq!(tcp_info(borrowed(20)).unwrap().backlog, tcp_info(borrowed(21)).unwrap().backlog);
            std::net::TcpStream::connect(format!("127.0.0.1:{v4}")).unwrap();
            std::net::TcpStream::connect(format!("[::1]:{v6}")).unwrap();
            rustix::io::write(borrowed(19), b"datagram").unwrap();
            assert_eq!(read_some(22), b"datagram");
            assert_eq!(option(borrowed(22), libc::SOL_SOCKET, libc::SO_BROADCAST), Ok(1));
            assert_eq!(option(borrowed(19), libc::IPPROTO_IP, libc::IP_TTL), Ok(9));
        },
        ..PLAIN
    },
    Case {
        name: "tcp_connection",
        hold: |_| {
            let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            at(std::net::TcpStream::connect(l.local_addr().unwrap()).unwrap(), 20, false);
            at(l.accept().unwrap().0, 21, false);
        },
        refused: Some("TCP connection 127.0.0.1:"),
        ..PLAIN
    },
    Case {
        name: "memfds",
        hold: |_| {
            use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, ftruncate, memfd_create, seek};
            let m = memfd_create("plain name", MemfdFlags::CLOEXEC).unwrap();
            rustix::io::write(&m, b"in memory").unwrap();
            seek(&m, SeekFrom::Start(3)).unwrap();
            at(
                open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&m)), OFlags::RDONLY, Mode::empty())
                    .unwrap(),
                21,
                false,
            );
            at(m, 20, true);
            let m = memfd_create("sealed", MemfdFlags::ALLOW_SEALING).unwrap();
            ftruncate(&m, 3 << 20).unwrap();
            rustix::io::pwrite(&m, b"far in", 2 << 20).unwrap();
            fcntl_add_seals(&m, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW).unwrap();
            at(m, 19, false);
        },
        verify: |_| {
            use rustix::fs::{SealFlags, fcntl_get_seals};
            let mut buf = [0; 16];
            let n = rustix::io::pread(borrowed(21), &mut buf, 0).unwrap();
            assert_eq!(&buf[..n], b"in memory");
            assert_eq!(fcntl_get_seals(borrowed(20)), Ok(SealFlags::SEAL));
            assert_eq!(fcntl_get_seals(borrowed(19)), Ok(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW));
            rustix::io::pread(borrowed(19), &mut buf[..6], 2 << 20).unwrap();
            assert_eq!(&buf[..6], b"far in");
            let stat = rustix::fs::fstat(borrowed(19)).unwrap();
            assert!(stat.st_size == 3 << 20 && stat.st_blocks * 512 < 1 << 20, "{} blocks", stat.st_blocks);
        },
        ..PLAIN
    },
    Case {
        name: "locks",
        options: |o| o.file_locks = true,
        hold: |dir| {
            use crust_kernel::fd::{LockRange, lock_range};
            at(create(&dir.join("posix"), OFlags::RDWR, b"0123456789"), 20, false);
            lock_range(borrowed(20), LockRange { write: true, start: 2, len: 3 }, false).unwrap();
            lock_range(borrowed(20), LockRange { write: false, start: 8, len: 0 }, false).unwrap();
            at(create(&dir.join("flock"), OFlags::RDWR, b""), 21, false);
            rustix::fs::flock(borrowed(21), rustix::fs::FlockOperation::LockExclusive).unwrap();
            at(borrowed(21).try_clone_to_owned().unwrap(), 22, false);
        },
        verify: |_| {
            let text = std::fs::read_to_string("/proc/self/fdinfo/20").unwrap();
            assert!(
                text.contains("WRITE") && text.contains(" 2 4") && text.contains("READ") && text.contains(" 8 EOF"),
                "{text}"
            );
            let text = std::fs::read_to_string("/proc/self/fdinfo/22").unwrap();
            assert!(text.contains("FLOCK"), "{text}");
        },
        ..PLAIN
    },
    Case {
        name: "locks_not_asked_for",
        hold: |dir| {
            at(create(&dir.join("flock"), OFlags::RDWR, b""), 21, false);
            rustix::fs::flock(borrowed(21), rustix::fs::FlockOperation::LockShared).unwrap();
        },
        refused: Some("--file-locks"),
        ..PLAIN
    },
    Case {
        name: "shared_by_two_processes",
        hold: |dir| {
            let f = create(&dir.join("a"), OFlags::RDWR, b"0123456789");
            rustix::fs::seek(&f, rustix::fs::SeekFrom::Start(2)).unwrap();
            at(f, 10, false);
            let (r, w) = pipe_with(PipeFlags::empty()).unwrap();
            at(r, 11, false);
            at(w, 12, false);
            let g = create(&dir.join("g"), OFlags::RDWR, b"ghost");
            std::fs::remove_file(dir.join("g")).unwrap();
            at(g, 13, false);
        },
        second: Some(|| {
            // One end each; the ghost opened again here, a private file beside it.
            crust_kernel::fd::close_range(11, 11).unwrap();
            at(open("/proc/self/fd/13", OFlags::RDONLY, Mode::empty()).unwrap(), 14, false);
            at(open("/dev/null", OFlags::RDWR, Mode::empty()).unwrap(), 15, false);
        }),
        ..PLAIN
    },
    Case {
        name: "working_directory_and_umask",
        hold: |dir| {
            std::fs::create_dir(dir.join("cwd")).unwrap();
            std::env::set_current_dir(dir.join("cwd")).unwrap();
            rustix::process::umask(Mode::from_bits_retain(0o27));
        },
        verify: |_| {
            assert!(std::env::current_dir().unwrap().ends_with("cwd"));
            assert_eq!(rustix::process::umask(Mode::empty()).bits(), 0o27);
        },
        ..PLAIN
    },
    Case {
        name: "a_thousand",
        hold: |dir| {
            rustix::process::setrlimit(
                rustix::process::Resource::Nofile,
                rustix::process::Rlimit { current: Some(1 << 12), maximum: Some(1 << 13) },
            )
            .unwrap();
            for n in 0..1000 {
                let f = create(&dir.join(format!("f{n}")), OFlags::RDWR, b"x");
                at(f, 1000 + n * 2, n % 2 == 0);
            }
            for n in 0..100 {
                let (r, mut w) = std::io::pipe().unwrap();
                w.write_all(b"data").unwrap();
                at(r, 600 + n, false);
                at(w, 800 + n - 50, false);
            }
        },
        ..PLAIN
    },
];

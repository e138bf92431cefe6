//! `crust service`: activation with right and wrong descriptors, its own socket, many clients, its end.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
mod common;

use common::{
    CRUST, Dir, Manager, Process, activated, activated_with, connect, failure, listener, must_sleep_undisturbed, opts,
    request, send_raw, wait_deaf,
};
use crust_rpc::{Opts, RequestType};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, socketpair};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn stop(process: &mut Process) -> Option<i32> {
    let pid = rustix::process::Pid::from_child(&process.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    process.code()
}

#[test]
fn the_connection_that_woke_it_is_served_and_so_are_the_next() {
    let dir = Dir::new("wake");
    let path = dir.path("s");
    let socket = listener(&path, SocketType::SEQPACKET);
    // The client is there, with its request sent, before the service exists.
    let mut first = connect(&path);
    let ask = request(RequestType::Version, None);
    first.connection().send(&ask, None).unwrap();
    let mut service = activated(&dir, socket, "1");
    assert!(matches!(first.connection().receive::<crust_rpc::Response>().unwrap(), crust_rpc::Packet::Message(..)));
    assert!(first.version().is_err(), "one request without keep_open uses a connection up");
    for _ in 0..20 {
        assert_eq!(connect(&path).version().unwrap().major_number, 4);
    }
    assert_eq!(stop(&mut service), Some(0));
    assert!(path.exists(), "a socket that was passed is not ours to remove");
}

#[test]
fn anything_but_one_listening_seqpacket_socket_is_refused_by_name() {
    let dir = Dir::new("kinds");
    let socket = |kind| socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let cases: Vec<(OwnedFd, &str)> = vec![
        (File::create(dir.path("file")).unwrap().into(), "a regular file"),
        (dir.open().into(), "a directory"),
        (File::open("/dev/null").unwrap().into(), "a character device"),
        (pipe.into(), "a FIFO"),
        (listener(&dir.path("stream"), SocketType::STREAM), "a stream socket"),
        (listener(&dir.path("dgram"), SocketType::DGRAM), "a datagram socket"),
        (socket(SocketType::SEQPACKET), "neither listens nor is connected"),
        (std::net::TcpListener::bind("127.0.0.1:0").unwrap().into(), "not AF_UNIX"),
    ];
    for (fd, said) in cases {
        fs::write(dir.path("stderr"), "").unwrap();
        let mut service = activated(&dir, fd, "1");
        assert_eq!(service.code(), Some(1), "{said}");
        let text = fs::read_to_string(dir.path("stderr")).unwrap();
        assert!(text.contains(said) && text.contains("help:"), "{said}: {text}");
    }
    for count in ["2", "banana", "-1", "99999999999999999999"] {
        fs::write(dir.path("stderr"), "").unwrap();
        let mut service =
            activated(&dir, listener(&dir.path(&format!("s{}", count.len())), SocketType::SEQPACKET), count);
        assert_eq!(service.code(), Some(1), "{count}");
        let text = fs::read_to_string(dir.path("stderr")).unwrap();
        assert!(text.contains("LISTEN_FDS"), "{count}: {text}");
    }
}

fn start_service(dir: &Dir, args: &[&str]) -> Process {
    let stderr = File::options().append(true).create(true).open(dir.path("stderr")).unwrap();
    let mut command = Command::new(CRUST);
    command.arg("service").args(args).current_dir(&dir.0).env_clear();
    Process(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap())
}

#[test]
fn its_own_socket_is_private_and_a_stale_one_is_replaced() {
    let dir = Dir::new("own");
    let path = dir.path("criu_service.socket");
    drop(listener(&path, SocketType::SEQPACKET));
    wait_deaf(&path);
    let mut service = start_service(&dir, &[]);
    assert_eq!(connect(&path).version().unwrap().minor_number, 2);
    let meta = fs::metadata(&path).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);

    // A second one does not take it away.
    let mut second = start_service(&dir, &["--address", "criu_service.socket"]);
    assert_eq!(second.code(), Some(1));
    assert!(fs::read_to_string(dir.path("stderr")).unwrap().contains("another service listens"));
    assert!(connect(&path).version().is_ok());
    assert_eq!(stop(&mut service), Some(0));
    assert!(!path.exists());

    fs::write(dir.path("plain"), "keep me").unwrap();
    assert_eq!(start_service(&dir, &["--address", "plain"]).code(), Some(1));
    assert_eq!(fs::read_to_string(dir.path("plain")).unwrap(), "keep me");

    let mut open = start_service(&dir, &["--address", "open", "--socket-mode", "660"]);
    assert!(connect(&dir.path("open")).version().is_ok());
    assert_eq!(fs::metadata(dir.path("open")).unwrap().permissions().mode() & 0o777, 0o660);
    assert_eq!(stop(&mut open), Some(0));
}

#[test]
fn a_daemon_is_ready_when_its_starter_ends() {
    let dir = Dir::new("daemon");
    let mut starter = start_service(&dir, &["-d", "--address", "s", "--pidfile", "pid", "-o", "log"]);
    assert_eq!(starter.code(), Some(0));
    let pid = fs::read_to_string(dir.path("pid")).unwrap();
    assert!(connect(&dir.path("s")).version().is_ok());
    assert_eq!(fs::metadata(dir.path("pid")).unwrap().permissions().mode() & 0o777, 0o600);
    let raw = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::TERM).unwrap();
    let start_of_wait = Instant::now();
    while dir.path("s").exists() || Path::new("/proc").join(&pid).exists() {
        assert!(start_of_wait.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    // Its pid file is for whoever stopped it to remove.
    assert_eq!(fs::read_to_string(dir.path("pid")).unwrap(), pid);
    // An old one may belong to a service that still runs.
    fs::write(dir.path("pid"), "1").unwrap();
    assert_eq!(start_service(&dir, &["-d", "--address", "s", "--pidfile", "pid"]).code(), Some(1));
    // Not so if its process is gone.
    fs::write(dir.path("pid"), i32::MAX.to_string()).unwrap();
    let mut next = start_service(&dir, &["--address", "s", "--pidfile", "pid"]);
    assert!(connect(&dir.path("s")).version().is_ok());
    assert_ne!(fs::read_to_string(dir.path("pid")).unwrap(), i32::MAX.to_string());
    assert_eq!(stop(&mut next), Some(0));
}

#[test]
fn its_status_descriptor_tells_that_it_listens() {
    let dir = Dir::new("status-fd");
    let (mut reader, writer) = std::io::pipe().unwrap();
    let stderr = File::options().append(true).create(true).open(dir.path("stderr")).unwrap();
    let mut command = Command::new("sh");
    let script = "exec 7<&0 </dev/null; exec \"$0\" service --address s --status-fd 7";
    command.args(["-c", script, CRUST]).current_dir(&dir.0).env_clear();
    let mut service = Process(command.stdin(Stdio::from(OwnedFd::from(writer))).stderr(stderr).spawn().unwrap());
    drop(command);
    let mut bytes = Vec::new();
    // To the end: one byte, and the descriptor is closed although the service goes on.
    std::io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
    assert_eq!(bytes, [0]);
    assert!(crust_rpc::Client::connect(&dir.path("s")).unwrap().version().is_ok());
    assert_eq!(stop(&mut service), Some(0));
}

#[test]
fn a_hundred_clients_at_once_and_silent_ones_between() {
    let dir = Dir::new("many");
    let path = dir.path("s");
    let mut service = activated(&dir, listener(&path, SocketType::SEQPACKET), "1");
    let silent: Vec<_> = (0..20).map(|_| connect(&path)).collect();
    let clients: Vec<_> = (0..100).map(|_| connect(&path)).collect();
    for client in &clients {
        client.connection().send(&request(RequestType::Version, None), None).unwrap();
    }
    for client in clients {
        assert!(matches!(
            client.connection().receive::<crust_rpc::Response>().unwrap(),
            crust_rpc::Packet::Message(..)
        ));
    }
    // With silent clients still connected the end is clean and prompt.
    let before = Instant::now();
    assert_eq!(stop(&mut service), Some(0));
    assert!(before.elapsed() < Duration::from_secs(60));
    drop(silent);
}

/// A process to dump that ends with the test.
fn sleeper() -> Process {
    let mut command = Command::new("sleep");
    Process(command.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

fn dump_of(process: &Process, images: &File) -> Opts {
    let pid = Some(i32::try_from(process.0.id()).unwrap());
    Opts { pid, leave_running: Some(true), shell_job: Some(true), notify_scripts: Some(true), ..opts(images) }
}

#[test]
fn one_connection_of_a_manager_that_accepts_is_served() {
    let dir = Dir::new("accepted");
    let manager = Manager::new(&dir);
    let pair = || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let (ours, theirs) = pair();
    let mut service = activated_with(&dir, theirs, "1", &[], &[manager.env()]);
    let mut client = crust_rpc::Client::from_fd(ours);
    let mut ask = request(RequestType::Version, None);
    ask.keep_open = Some(true);
    assert!(client.call(ask, |_| true).unwrap().version.is_some());
    assert_eq!(client.version().unwrap().major_number, 4);
    manager.wait_for("READY=1");
    manager.wait_for("STOPPING=1");
    assert_eq!(service.code(), Some(0));

    // A client that asks for nonsense, or for nothing, is no failure of the unit.
    for bytes in [&b"\xff\xff"[..], b""] {
        let (ours, theirs) = pair();
        let mut service = activated(&dir, theirs, "1");
        let client = crust_rpc::Client::from_fd(ours);
        if !bytes.is_empty() {
            send_raw(client.connection(), bytes);
        }
        drop(client);
        assert_eq!(service.code(), Some(0));
    }
}

#[test]
fn an_idle_service_ends_and_loses_no_connection() {
    let dir = Dir::new("idle");
    let path = dir.path("s");
    let socket = listener(&path, SocketType::SEQPACKET);
    // One client keeps coming; whenever the service has ended and somebody waits, it is started again, as a manager does.
    let (rounds, path_there) = (12, path.clone());
    let client = std::thread::spawn(move || {
        for i in 0..rounds {
            assert_eq!(connect(&path_there).version().unwrap().major_number, 4, "round {i}");
            // Around the moment at which the service ends, a little later each time.
            std::thread::sleep(Duration::from_millis(950 + 10 * i));
        }
    });
    let (mut starts, start) = (0, Instant::now());
    while !client.is_finished() {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        assert!(start.elapsed() < Duration::from_secs(120), "{}", fs::read_to_string(dir.path("stderr")).unwrap());
        let mut fds = [PollFd::new(&socket, PollFlags::IN)];
        if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 })).unwrap() > 0 {
            let passed = socket.try_clone().unwrap();
            let mut service = activated_with(&dir, passed, "1", &["--idle-timeout", "1"], &[]);
            assert_eq!(service.code(), Some(0));
            starts += 1;
        }
    }
    client.join().unwrap();
    assert!(starts >= 1);
    let text = fs::read_to_string(dir.path("stderr")).unwrap();
    assert!(text.contains("idle: ending until the next connection"), "{text}");

    // A service that nobody would start again stays, and says so.
    let mut own = start_service(&dir, &["--address", "own", "--idle-timeout", "1"]);
    let mut kept = connect(&dir.path("own"));
    std::thread::sleep(Duration::from_millis(1500));
    assert!(kept.version().is_ok() && connect(&dir.path("own")).version().is_ok());
    assert!(fs::read_to_string(dir.path("stderr")).unwrap().contains("--idle-timeout is for socket activation"));
    assert_eq!(stop(&mut own), Some(0));
}

#[test]
fn a_service_with_a_client_is_not_idle() {
    let dir = Dir::new("busy");
    let (path, manager) = (dir.path("s"), Manager::new(&dir));
    let socket = listener(&path, SocketType::SEQPACKET);
    let mut service = activated_with(&dir, socket, "1", &["--idle-timeout", "1"], &[manager.env()]);
    let mut client = connect(&path);
    let mut ask = request(RequestType::Version, None);
    ask.keep_open = Some(true);
    assert!(client.call(ask, |_| true).is_ok());
    std::thread::sleep(Duration::from_millis(2500));
    assert!(service.0.try_wait().unwrap().is_none(), "it left its client");
    assert!(client.version().is_ok());
    manager.wait_for("Idle");
    assert_eq!(service.code(), Some(0));
}

#[test]
fn a_reload_reads_the_configuration_and_tells_the_manager() {
    let dir = Dir::new("reload");
    let (path, manager) = (dir.path("s"), Manager::new(&dir));
    let socket = listener(&path, SocketType::SEQPACKET);
    fs::write(dir.path("conf"), "log-file one.log\n").unwrap();
    // The service's directory is another than that of the configuration's relative name.
    fs::create_dir(dir.path("work")).unwrap();
    let args = ["--config", "conf", "--work-dir", "work"];
    let mut service = activated_with(&dir, socket, "1", &args, &[manager.env()]);
    let ready = manager.wait_for("READY=1");
    assert!(ready.contains("STATUS=Serving on "), "{ready}");
    assert!(connect(&path).version().is_ok());
    let pid = rustix::process::Pid::from_child(&service.0);
    let reload = || {
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
        let text = manager.wait_for("RELOADING=1");
        let stamp: u64 = text.lines().find_map(|l| l.strip_prefix("MONOTONIC_USEC=")).unwrap().parse().unwrap();
        assert!(stamp > 0);
    };
    // The log was moved away, and the file says another one now.
    fs::rename(dir.path("work/one.log"), dir.path("work/old.log")).unwrap();
    fs::write(dir.path("conf"), "log-file two.log\nverbosity 4\n").unwrap();
    reload();
    manager.wait_for("READY=1");
    assert!(connect(&path).version().is_ok());
    fs::write(dir.path("conf"), "no-such-option\n").unwrap();
    reload();
    let text = manager.wait_for("STATUS=Reload failed");
    assert!(text.contains("no-such-option"), "{text}");
    manager.wait_for("READY=1");
    assert!(connect(&path).version().is_ok(), "a wrong file changes nothing");
    assert_eq!(stop(&mut service), Some(0));
    manager.wait_for("STOPPING=1");
    assert!(fs::read_to_string(dir.path("work/two.log")).unwrap().contains("no-such-option"));
}

#[test]
fn a_stopped_service_finishes_what_runs_and_rolls_back_what_does_not_end() {
    let dir = Dir::new("stop");
    let (path, images, victim) = (dir.path("s"), dir.open(), sleeper());
    for (limit, ends) in [("60", true), ("1", false)] {
        let socket = listener(&path, SocketType::SEQPACKET);
        let mut service = activated_with(&dir, socket, "1", &["--stop-timeout", limit], &[]);
        let pid = rustix::process::Pid::from_child(&service.0);
        let mut client = connect(&path);
        let outcome = client.dump(dump_of(&victim, &images), |n| {
            if n.script == "query-ext-files" {
                // The tree is frozen now. A service that is told to stop takes no more clients.
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
                wait_deaf(&path);
                if !ends {
                    // Longer than the service waits; the answer then finds the request given up.
                    assert_eq!(service.code(), Some(0));
                }
            }
            true
        });
        assert_eq!(outcome.is_ok(), ends, "{outcome:?}");
        assert_eq!(dir.path("inventory.img").exists(), ends);
        assert_eq!(service.code(), Some(0));
        must_sleep_undisturbed(victim.0.id());
        if ends {
            fs::remove_file(dir.path("inventory.img")).unwrap();
        }
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn the_watchdog_is_fed_and_a_deadline_ends_a_connection() {
    let dir = Dir::new("watchdog");
    let (path, manager) = (dir.path("s"), Manager::new(&dir));
    let socket = listener(&path, SocketType::SEQPACKET);
    let env = [manager.env(), ("WATCHDOG_USEC", "200000")];
    let mut service = activated_with(&dir, socket, "1", &["--request-timeout", "5"], &env);
    for _ in 0..5 {
        manager.wait_for("WATCHDOG=1");
    }
    // A manager that reads no more would hold the service up.
    let rest = manager.0.try_clone().unwrap();
    std::thread::spawn(move || while rest.recv(&mut [0; 4096]).is_ok() {});
    let mut ask = request(RequestType::Version, None);
    ask.keep_open = Some(true);
    // On a machine that is busy enough the time of a connection may be over before it has asked.
    let start = Instant::now();
    let client = loop {
        let mut client = connect(&path);
        if client.call(ask.clone(), |_| true).is_ok() {
            break client;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "no connection is served in its time");
    };
    // The worker hangs up: this read has no limit of its own.
    assert!(matches!(client.connection().receive::<crust_rpc::Response>().unwrap(), crust_rpc::Packet::Closed));
    assert_eq!(stop(&mut service), Some(0));
}

#[test]
fn hostile_packets_harm_nobody() {
    let dir = Dir::new("hostile");
    let path = dir.path("s");
    let mut service = activated(&dir, listener(&path, SocketType::SEQPACKET), "1");
    for bytes in [&b"\xff"[..], &[0u8; 60_000], b"\x08\x63", b"\x08\x01", b"\x08\x02\x12\x00"] {
        let client = connect(&path);
        send_raw(client.connection(), bytes);
        drop(client);
    }
    let images = dir.open();
    let inside = |change: &dyn Fn(&mut Opts)| {
        let mut o = opts(&images);
        o.pid = Some(999_999_999);
        change(&mut o);
        failure(connect(&path).dump(o, |_| true))
    };
    // The service has none of the caller's descriptors, so these make no sense, whatever their value.
    assert_eq!(inside(&|o| o.rst_sibling = Some(false)).errno, Some(libc::EBADRQC));
    let fd = crust_rpc::InheritFd { key: "x".into(), fd: 0 };
    assert_eq!(inside(&|o| o.inherit_fd = vec![fd.clone()]).errno, Some(libc::EBADRQC));
    assert!(connect(&path).version().is_ok());
    assert_eq!(stop(&mut service), Some(0));
}

/// The calling user may stop its worker, but not keep it for ever: it is killed, and what it had frozen goes on.
#[test]
fn a_worker_that_is_overdue_is_killed() {
    let dir = Dir::new("overdue");
    let (path, images, victim) = (dir.path("s"), dir.open(), sleeper());
    let socket = listener(&path, SocketType::SEQPACKET);
    let mut service = activated_with(&dir, socket, "1", &["--request-timeout", "4"], &[]);
    let children = format!("/proc/{0}/task/{0}/children", service.0.id());
    let (start, mut stopped) = (Instant::now(), false);
    while !stopped {
        // On a machine that is busy enough the time may be over before the tree is frozen.
        assert!(start.elapsed() < Duration::from_secs(120), "no dump comes so far");
        let mut client = connect(&path);
        let outcome = client.dump(dump_of(&victim, &images), |n| {
            if n.script == "query-ext-files" {
                let workers = fs::read_to_string(&children).unwrap();
                for pid in
                    workers.split_whitespace().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?))
                {
                    // One that served an earlier attempt may be gone by now.
                    let _gone = rustix::process::kill_process(pid, rustix::process::Signal::STOP);
                }
                stopped = true;
            }
            true
        });
        assert!(outcome.is_err(), "a stopped worker has no answer");
    }
    must_sleep_undisturbed(victim.0.id());
    assert!(connect(&path).version().is_ok());
    assert_eq!(stop(&mut service), Some(0));
    assert!(fs::read_to_string(dir.path("stderr")).unwrap().contains("is overdue and killed"));
    assert!(!dir.path("inventory.img").exists());
}

#[test]
fn a_hundred_dumps_at_once() {
    const CLIENTS: usize = 100;
    let dir = Dir::new("dumps");
    let path = dir.path("s");
    let mut service = activated(&dir, listener(&path, SocketType::SEQPACKET), "1");
    let victims: Vec<_> = (0..CLIENTS).map(|_| sleeper()).collect();
    // All have asked before anybody reads an answer.
    let asked: Vec<_> = victims
        .iter()
        .enumerate()
        .map(|(i, victim)| {
            let images = dir.path(&format!("images{i}"));
            fs::create_dir(&images).unwrap();
            let images = File::open(images).unwrap();
            let client = connect(&path);
            let o = Opts { notify_scripts: None, ..dump_of(victim, &images) };
            client.connection().send(&request(RequestType::Dump, Some(o)), None).unwrap();
            (client, images)
        })
        .collect();
    for (client, _images) in &asked {
        match client.connection().receive::<crust_rpc::Response>().unwrap() {
            crust_rpc::Packet::Message(reply, _) => assert!(reply.success, "{reply:?}"),
            other => panic!("{other:?}"),
        }
    }
    for (i, victim) in victims.iter().enumerate() {
        assert!(dir.path(&format!("images{i}/inventory.img")).exists());
        must_sleep_undisturbed(victim.0.id());
    }
    assert_eq!(stop(&mut service), Some(0));
}

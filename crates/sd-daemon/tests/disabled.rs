//! With `disable-systemd`, everything that speaks to systemd says "not under systemd", whatever the environment holds;
//! with `disable-mq`, nothing is a message queue. One thread, no libtest: the environment is set.
#![allow(unsafe_code, reason = "sets the environment of this one-threaded program")]
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a test program without libtest")]
use sd_daemon::{Level, Notifier, NotifyState};
use std::ffi::OsStr;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Duration;

fn main() {
    if cfg!(feature = "disable-mq") {
        without_queues();
        println!("test without message queues ... ok");
    }
    if cfg!(feature = "disable-systemd") {
        without_systemd();
        println!("test not under systemd ... ok");
    }
    let [ran, not] = match (cfg!(feature = "disable-mq"), cfg!(feature = "disable-systemd")) {
        (true, true) => [2, 0],
        (false, false) => [0, 2],
        _ => [1, 1],
    };
    println!("{ran} passed, 0 failed, {not} skipped (each needs its feature)");
}

fn without_queues() {
    // SAFETY: a NUL-terminated name, no attributes; the descriptor is left to the end of the program.
    let fd = unsafe {
        let flags = libc::O_CREAT | libc::O_RDWR;
        let fd = libc::mq_open(c"/sd-daemon-disabled".as_ptr(), flags, 0o600, std::ptr::null::<libc::mq_attr>());
        libc::mq_unlink(c"/sd-daemon-disabled".as_ptr());
        std::os::fd::BorrowedFd::borrow_raw(if fd < 0 { 0 } else { fd })
    };
    assert!(!sd_daemon::is_mq(fd, None).unwrap());
}

fn without_systemd() {
    let dir = std::env::temp_dir().join(format!("sd-daemon-disabled-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_nonblocking(true).unwrap();
    let me = std::process::id().to_string();
    let set = |name: &str, value: &OsStr| {
        // SAFETY: one thread.
        unsafe { std::env::set_var(name, value) };
    };
    for (name, value) in
        [("LISTEN_PID", me.as_str()), ("LISTEN_FDS", "1"), ("WATCHDOG_USEC", "5"), ("JOURNAL_STREAM", "1:1")]
    {
        set(name, OsStr::new(value));
    }
    set("NOTIFY_SOCKET", path.as_os_str());

    assert_eq!(sd_daemon::listen_fds(false).unwrap().len(), 0);
    assert_eq!(sd_daemon::listen_fds_with_names(false).unwrap().len(), 0);
    assert_eq!(sd_daemon::listen_fds_count().unwrap(), 0);
    assert!(!sd_daemon::notify(false, &[NotifyState::Ready]).unwrap());
    assert!(!sd_daemon::notify_with_fds(false, Some(1), &[NotifyState::Ready], &[]).unwrap());
    assert!(!sd_daemon::notify_barrier(false, Some(Duration::from_secs(1))).unwrap());
    assert!(Notifier::from_env().unwrap().is_none());
    Notifier::at(path.as_os_str()).unwrap().send(&[NotifyState::Ready]).unwrap();
    assert_eq!(sd_daemon::watchdog_enabled(false).unwrap(), None);
    assert!(!sd_daemon::booted().unwrap());
    assert!(!sd_daemon::is_journal_stream(std::io::stderr()));
    assert!(sd_daemon::Journal::of_stderr().unwrap().is_none());
    assert_eq!(manager.recv(&mut [0; 64]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "something was sent");

    // Unsetting still unsets, so that children are not told.
    assert_eq!(sd_daemon::listen_fds(true).unwrap().len(), 0);
    assert!(!sd_daemon::notify(true, &[]).unwrap());
    assert_eq!(sd_daemon::watchdog_enabled(true).unwrap(), None);
    for name in ["LISTEN_PID", "LISTEN_FDS", "WATCHDOG_USEC", "NOTIFY_SOCKET"] {
        assert!(std::env::var_os(name).is_none(), "{name}");
    }

    // What asks the kernel, or nobody, works on.
    let listener = UnixListener::bind(dir.join("socket")).unwrap();
    let name = dir.join("socket");
    let unix = sd_daemon::UnixName::Path(&name);
    assert!(sd_daemon::is_socket_unix(&listener, None, Some(true), Some(unix)).unwrap());
    assert_eq!(Level::Error.lines("x"), "<3>x\n");
    std::fs::remove_dir_all(dir).unwrap();
}

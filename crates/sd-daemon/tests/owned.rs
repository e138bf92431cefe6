//! Refusals that libsystemd does not have: unsetting beside other threads, owning twice, a deaf service manager.
#![cfg(not(feature = "disable-systemd"))]
use sd_daemon::{Error, Notifier, NotifyState};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

/// Runs this test program again, for one test alone, after a script has made descriptors and environment.
fn again(test: &str, script: &str) {
    let me = std::env::current_exe().expect("this program");
    // `exec` keeps the pid, as a service manager's exec does.
    let run = format!("{script} exec {:?} --exact {test} --nocapture --test-threads=1", me.display());
    let status = Command::new("sh").arg("-c").arg(run).env("SD_DAEMON_INNER", test).status().expect("sh");
    assert!(status.success(), "{test}: {status}");
}

fn inner(test: &str) -> bool {
    std::env::var("SD_DAEMON_INNER").is_ok_and(|t| t == test)
}

#[test]
fn unset_is_refused_beside_other_threads() {
    if !inner("unset_is_refused_beside_other_threads") {
        let script = "exec 3</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=null WATCHDOG_USEC=7;";
        return again("unset_is_refused_beside_other_threads", script);
    }
    // libtest runs this in a thread of its own, so there are two.
    assert!(matches!(sd_daemon::listen_fds(true), Err(Error::Threads)));
    assert!(matches!(sd_daemon::watchdog_enabled(true), Err(Error::Threads)));
    assert!(std::env::var_os("LISTEN_FDS").is_some(), "nothing was done");
    assert_eq!(sd_daemon::watchdog_enabled(false).expect("watchdog"), Some(Duration::from_micros(7)));
    let mut taken = sd_daemon::listen_fds_with_names(false).expect("descriptors");
    assert_eq!(taken.len(), 1);
    assert_eq!(taken.remove(0).name, "null");
    assert!(matches!(sd_daemon::listen_fds(false), Err(Error::AlreadyTaken)));
}

#[test]
fn what_this_process_opened_is_not_handed_out() {
    if !inner("what_this_process_opened_is_not_handed_out") {
        let script = "exec 3>&- 4>&- 5>&-; export LISTEN_PID=$$ LISTEN_FDS=1;";
        return again("what_this_process_opened_is_not_handed_out", script);
    }
    // Whatever takes number 3 now is Rust's own, which the environment wrongly counts.
    let file = std::fs::File::open("/dev/null").expect("/dev/null");
    assert_eq!(std::os::fd::AsRawFd::as_raw_fd(&file), 3);
    assert!(matches!(sd_daemon::listen_fds(false), Err(Error::NotInherited { fd: 3 })));
    assert!(matches!(sd_daemon::listen_fds(false), Err(Error::NotInherited { fd: 3 })), "nor at the second try");
    file.metadata().expect("the file is still its owner's");
}

#[test]
fn a_deaf_service_manager_does_not_hold_us() {
    let dir = std::env::temp_dir().join(format!("sd-daemon-deaf-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("scratch");
    let path = dir.join("socket");
    let _deaf = UnixDatagram::bind(&path).expect("bind");
    let notifier = Notifier::at(path.as_os_str()).expect("address");
    let begin = Instant::now();
    let stuck = (0..100_000).find_map(|_| notifier.send(&[NotifyState::Watchdog]).err());
    assert!(matches!(stuck, Some(Error::Timeout { .. })), "{stuck:?}");
    assert!(begin.elapsed() < Duration::from_secs(60));
    std::fs::remove_dir_all(dir).expect("scratch");
}
